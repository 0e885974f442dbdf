//! Reads the table of shards, for all shards of the store that are waited for at once.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{shard::Node, store::ShardRow};

/// How often at most.
const WATCH: Duration = Duration::from_millis(500);
/// Questions that come within this time are answered together.
const TOGETHER: Duration = Duration::from_millis(5);
/// Waits between two tries to read while the database is away.
const RETRY: Duration = Duration::from_millis(200);

/// A question how the shards stand. It is answered with a read that begins after it.
pub(crate) type ShardsAsk = oneshot::Sender<Arc<[ShardRow]>>;

/// Answers until it is told to stop. While nobody asks, nothing is read.
pub(crate) async fn watch_shards(
    node: Arc<Node>,
    mut asks: mpsc::Receiver<ShardsAsk>,
    mut stop: watch::Receiver<bool>,
) {
    let mut together = Vec::new();
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            count = asks.recv_many(&mut together, usize::MAX) => if count == 0 { return },
        }
        node.env.sleep(TOGETHER).await;
        while let Ok(ask) = asks.try_recv() {
            together.push(ask);
        }
        let Some(rows) = read_shards(&node, &stop).await else { return };
        for ask in together.drain(..) {
            // Who has ended meanwhile does not wait for it.
            drop(ask.send(Arc::clone(&rows)));
        }
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            () = node.env.sleep(WATCH) => {}
        }
    }
}

/// Reads the shards. `None` when it is time to stop.
pub(crate) async fn read_shards(
    node: &Node,
    stop: &watch::Receiver<bool>,
) -> Option<Arc<[ShardRow]>> {
    while !*stop.borrow() {
        match node.store.shards(node.shards).await {
            Ok(shards) => return Some(shards.rows.into()),
            Err(error) => tracing::warn!(%error, "cannot read the shards yet"),
        }
        node.env.sleep(RETRY).await;
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::time::{Instant, sleep};

    use super::{super::fixture::Owner, *};

    #[tokio::test(start_paused = true)]
    async fn a_node_reads_the_shards_twice_a_second_at_most_whoever_waits() {
        let owner = Owner::new().await;
        let (asks, receiver) = mpsc::channel(16);
        let (_stop, stopped) = watch::channel(false);
        tokio::spawn(watch_shards(owner.node(), receiver, stopped));
        let before = owner.store.faults().calls();
        let begun = Instant::now();
        for waiting in 0..8 {
            let asks = asks.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(waiting)).await;
                loop {
                    let (ask, rows) = oneshot::channel();
                    asks.send(ask).await.unwrap();
                    assert_eq!(rows.await.unwrap().len(), 1);
                }
            });
        }
        sleep(Duration::from_secs(10)).await;
        let reads = owner.store.faults().calls() - before;
        assert!((15..=21).contains(&reads), "{reads} in {:?}", begun.elapsed());
    }
}
