//! Ownership and order: each shard's runs are changed by one lane, and made durable in batches.

mod batch;
mod clock;
mod incidents;
mod lane;
mod lease;
mod mailbox;
pub mod message;
mod node;
mod ownership;

#[cfg(test)]
mod properties;

pub use clock::DatabaseClock;
pub(crate) use lane::LEASE;
pub use node::{Node, NodeOptions};
pub(crate) use ownership::serve;
