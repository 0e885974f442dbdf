//! The history server of Onward as a library: embed it, or run it as `onward server`.
//!
//! Where data goes, from the outside in: `api` turns messages into inputs, a lane in [`shard`]
//! has the [`engine`] decide them and makes them durable in batches through the [`store`], and
//! [`dispatch`] gives the work that comes of it to workers' sessions.

mod api;
mod background;
pub mod dispatch;
pub mod engine;
pub mod env;
pub mod metrics;
mod server;
pub mod shard;
pub mod store;

pub use server::{
    BuildInfo, Config, Port, ServeError, Server, StartError, StoreConfig, serve_connections,
};
