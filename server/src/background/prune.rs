//! Removes batch rows that no check can ask for any more.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{shard::Node, store::ShardId};

/// How often.
const PRUNE: Duration = Duration::from_mins(1);
/// Rows that are kept for each shard.
const KEEP: u32 = 1_000;
/// Rows that are removed at once.
const ROWS: u32 = 20_000;
/// How often a shard that has more is gone on with: no lane makes so many batches in a minute.
const MOST_PAGES: u32 = 50;
/// Waits before it is gone on with: others use the database too.
const PAUSE: Duration = Duration::from_millis(100);

/// Prunes until it is told to stop.
pub(crate) async fn prune_batches(node: Arc<Node>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            () = node.env.sleep(PRUNE) => {}
        }
        for (shard, _) in node.lanes() {
            prune(&node, shard, &stop).await;
        }
    }
}

/// Removes what a shard has too much of, page by page.
async fn prune(node: &Node, shard: ShardId, stop: &watch::Receiver<bool>) {
    for _ in 0..MOST_PAGES {
        match node.store.prune_batches(shard, KEEP, ROWS).await {
            Ok(removed) if removed < u64::from(ROWS) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%shard, %error, "old batch rows were not removed");
                return;
            }
        }
        if *stop.borrow() {
            return;
        }
        node.env.sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{super::fixture::Owner, *};
    use crate::store::Store as _;

    #[tokio::test(start_paused = true)]
    async fn a_minute_of_heavy_traffic_is_pruned_within_the_next_one() {
        let mut owner = Owner::new().await;
        for _ in 0..2 * ROWS + KEEP {
            owner.commit(Vec::new()).await;
        }
        let node = owner.node();
        let (_stop, stopped) = watch::channel(false);
        prune(&node, owner.shard, &stopped).await;
        let left = owner.store.prune_batches(owner.shard, 0, u32::MAX).await.unwrap();
        assert_eq!(left, u64::from(KEEP));
    }
}
