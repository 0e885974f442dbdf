//! Removes batch rows that no check can ask for any more.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::shard::Node;

/// How often.
const PRUNE: Duration = Duration::from_mins(1);
/// Rows that are kept for each shard.
const KEEP: u32 = 1_000;
/// Rows that are removed at once.
const ROWS: u32 = 20_000;

/// Prunes until it is told to stop.
pub(crate) async fn prune_batches(node: Arc<Node>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            () = node.env.sleep(PRUNE) => {}
        }
        for (shard, _) in node.lanes() {
            match node.store.prune_batches(shard, KEEP, ROWS).await {
                Ok(_) => {}
                Err(error) => tracing::warn!(%shard, %error, "old batch rows were not removed"),
            }
        }
    }
}
