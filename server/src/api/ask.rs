//! How the edge asks: a lane for what it knows, the store for what lies in it.

use std::sync::Arc;

use onward_proto::Slot;
use tokio::sync::oneshot;
use tonic::Status;

use super::status::of_store;
use crate::{
    shard::{
        Node,
        message::{Reply, Request},
    },
    store::{self, Store},
};

/// Sends a request to the lane that serves a slot and waits for the answer. A lane that ends drops
/// its replies: whether the request was applied is then unknown, and asking again with the same
/// request id tells.
pub(super) async fn ask<T>(
    node: &Node,
    slot: Slot,
    request: impl FnOnce(Reply<T>) -> Request,
) -> Result<T, Status> {
    let (reply, answer) = oneshot::channel();
    node.ask(slot, request(reply))?;
    match answer.await {
        Ok(result) => result.map_err(Status::from),
        Err(_) => Err(Status::unavailable(
            "the shard is being loaded again; ask again with the same request id",
        )),
    }
}

/// Awaits a database read in a task of its own, so that a caller who hangs up cannot drop it
/// half-way.
pub(super) async fn read<T: Send + 'static, F>(
    node: &Node,
    read: impl FnOnce(Arc<dyn Store>) -> F,
) -> Result<T, Status>
where
    F: Future<Output = store::Result<T>> + Send + 'static,
{
    match node.env.spawn(read(Arc::clone(&node.store))).await {
        Ok(result) => result.map_err(|error| of_store(&error)),
        Err(error) => Err(Status::internal(format!("a read ended badly: {error}"))),
    }
}
