//! The gRPC edge: messages become inputs here, once, and limits are checked here first.

mod ask;
mod client;
mod convert;
mod describe;
mod history;
mod http;
mod list;
mod page_token;
mod status;
mod worker;

pub(crate) use client::ClientApi;
pub(crate) use http::router;
pub(crate) use worker::{MAX_MESSAGE, WorkerApi};
