//! How a node comes to its shards, keeps them, and gives them back.
//!
//! One task a shard: it watches the shard's row, takes it when that is allowed, runs the lane, and
//! begins again when the lane ends.
//!
//! A thief takes only a row that it has itself watched unchanged for a whole lease, by its own
//! clock. A released row, one that bears the own node id, and any row of a store that only one
//! process can open, it takes at once.

use std::{sync::Arc, time::Duration};

use onward_proto::{
    SeededBug,
    v1::{Claim, server_item},
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    lane::{LEASE, Lane, LaneEnd, Owned},
    lease::{Attempts, Lease},
    mailbox::Mailbox,
    message::Mail,
    node::{LaneAddress, Node},
};
use crate::{
    background::{self, DueAsk, ShardsAsk},
    store::{CommitId, ShardRow, Take, Taken},
};

/// Questions that wait to be read together; the rest waits where it is asked.
const ASKS: usize = 256;
/// Waits between two tries while the database is away.
const RETRY: Duration = Duration::from_millis(200);

/// Serves all shards of the store until `stop` says so, then gives them back.
///
/// # Cancel safety
/// Not cancel safe: leases would run out instead of being released.
pub(crate) async fn serve(node: Arc<Node>, stop: watch::Receiver<bool>) {
    let (due_asks, due_asked) = mpsc::channel(ASKS);
    let (shards_asks, shards_asked) = mpsc::channel(ASKS);
    let Some(rows) = background::read_shards(&node, &stop).await else { return };
    let mut shards = Vec::new();
    for row in rows.iter().cloned() {
        let (due_asks, shards_asks) = (due_asks.clone(), shards_asks.clone());
        let (node, stop) = (Arc::clone(&node), stop.clone());
        let shard = Shard { node: Arc::clone(&node), row, stop, due_asks, shards_asks };
        shards.push(node.env.spawn(shard.serve()));
    }
    let watching = background::watch_shards(Arc::clone(&node), shards_asked, stop.clone());
    let watching = node.env.spawn(watching);
    let reading = background::read_due_runs(Arc::clone(&node), due_asked, stop.clone());
    let reading = node.env.spawn(reading);
    let renewal = node.env.spawn(background::renew_leases(Arc::clone(&node), stop.clone()));
    let pruning = node.env.spawn(background::prune_batches(Arc::clone(&node), stop));
    for shard in shards {
        if let Err(error) = shard.await {
            tracing::error!(%error, "a shard's task has ended badly");
        }
    }
    for task in [watching, reading, renewal, pruning] {
        if let Err(error) = task.await {
            tracing::error!(%error, "a background task has ended badly");
        }
    }
}

struct Shard {
    node: Arc<Node>,
    row: ShardRow,
    stop: watch::Receiver<bool>,
    due_asks: mpsc::Sender<DueAsk>,
    shards_asks: mpsc::Sender<ShardsAsk>,
}

impl Shard {
    async fn serve(self) {
        let shard = self.row.shard_id;
        while let Some((mut owned, mut renewed)) = self.take().await {
            loop {
                match self.run_lane(owned, renewed).await {
                    LaneEnd::Reload { owned: newest, renewed: last } => {
                        tracing::warn!(%shard, "a batch was lost; loading again");
                        (owned, renewed) = (newest, last);
                    }
                    LaneEnd::Fenced => {
                        tracing::warn!(%shard, "fenced; watching the shard");
                        break;
                    }
                    LaneEnd::Drained(last) => {
                        let released = self.node.store.release(shard, self.node.id, last.epoch);
                        if let Err(error) = released.await {
                            tracing::warn!(%shard, %error, "the lease could not be released");
                        }
                        return;
                    }
                }
            }
        }
    }

    /// Watches the shard until it may be taken, and takes it. `None` when it is time to stop.
    async fn take(&self) -> Option<(Owned, Duration)> {
        let shard = self.row.shard_id;
        let mut watched: Option<(ShardRow, Duration)> = None;
        while !*self.stop.borrow() {
            let (ask, rows) = oneshot::channel();
            // Without an answer the node stops.
            self.shards_asks.send(ask).await.ok()?;
            let row = rows.await.ok()?.iter().find(|row| row.shard_id == shard)?.clone();
            let boot = self.node.env.boot();
            let since = match &watched {
                Some((seen, since)) if *seen == row => *since,
                _ => boot,
            };
            if self.may_take(&row, boot.saturating_sub(since))
                && let Some(owned) = self.try_take(row.clone()).await
            {
                return Some(owned);
            }
            watched = Some((row, since));
        }
        None
    }

    fn may_take(&self, row: &ShardRow, unchanged: Duration) -> bool {
        row.lease_until.is_none()
            || row.node_id == Some(self.node.id)
            || self.node.store.is_exclusive()
            || unchanged > LEASE
            || SeededBug::TakeAtSight.is_on()
    }

    async fn try_take(&self, row: ShardRow) -> Option<(Owned, Duration)> {
        let take = Take {
            watched: row,
            node_id: self.node.id,
            address: String::new(),
            commit_id: CommitId(self.node.env.random_uuid()),
            lease_us: LEASE.as_micros() as i64,
        };
        let mut attempts = Attempts::default();
        loop {
            let sent = self.node.env.boot();
            match self.node.store.take(take.clone()).await {
                Ok(Taken::Owned { epoch, commit_seq, now }) => {
                    self.node.sync_clock(now, sent);
                    let owned = Owned { epoch, commit_seq, commit_id: take.commit_id };
                    return Some((owned, attempts.first(sent)));
                }
                Ok(Taken::Changed) => return None,
                // Asking again with the same commit id is safe.
                Err(error) => {
                    attempts.failed(sent, &error);
                    tracing::warn!(shard = %self.row.shard_id, %error, "cannot take the shard yet");
                    if *self.stop.borrow() {
                        return None;
                    }
                    self.node.env.sleep(RETRY).await;
                }
            }
        }
    }

    async fn run_lane(&self, owned: Owned, renewed: Duration) -> LaneEnd {
        let (node, shard) = (&self.node, self.row.shard_id);
        let lease = Arc::new(Lease::new(shard, owned, renewed));
        let careful = node.is_careful(shard);
        let slots = self.row.slots.clone();
        let lane = Lane::new(
            Arc::clone(node),
            shard,
            slots.clone(),
            Arc::clone(&lease),
            owned,
            careful,
            self.due_asks.clone(),
        );
        let (mail, mailbox) = Mailbox::new();
        let incarnation = lane.incarnation();
        node.leases().insert(shard, (Arc::clone(&lease), mail.clone()));
        // First open, then claim: a session that begins meanwhile finds the lane or is found here,
        // or both. Nothing is handed out before the lane runs.
        let address = LaneAddress { slots: slots.clone(), incarnation, mail: mail.clone() };
        node.open_lane(shard, address);
        // Workers forget what they had of these slots before anything new reaches them, and say
        // what they still run.
        for session in node.dispatch.sessions() {
            session.outbox().push(server_item::Kind::Claim(Claim {
                slot_from: slots.start.into(),
                slot_to: slots.end.into(),
                incarnation: incarnation.0,
            }));
        }
        tracing::info!(%shard, epoch = owned.epoch, "serving");
        let drain = node.env.spawn(drain_when_stopped(self.stop.clone(), mail));
        // In a task of its own: a lane that panics is one that ended, and the others go on.
        let end = match node.env.spawn(lane.run(mailbox)).await {
            Ok(end) => end,
            Err(error) => {
                tracing::error!(%shard, %error, "the lane has failed; taking the shard anew");
                node.env.sleep(RETRY).await;
                LaneEnd::Fenced
            }
        };
        drain.abort();
        node.close_lane(shard);
        node.forget_offers(shard);
        node.leases().remove(&shard);
        end
    }
}

/// Aborting this is safe: it holds nothing but a channel.
async fn drain_when_stopped(mut stop: watch::Receiver<bool>, mail: Mailbox) {
    while !*stop.borrow_and_update() {
        if stop.changed().await.is_err() {
            return;
        }
    }
    // A lane that has ended needs no drain.
    mail.put(Mail::Drain).await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::Timestamp;

    use super::*;
    use crate::{
        engine::Limits,
        env::{Env, TokioBootClock},
        shard::NodeOptions,
        store::{CallKind, Fault, MemoryStore, Store as _},
    };

    #[tokio::test(start_paused = true)]
    async fn a_lease_counts_from_the_first_take_that_may_have_begun_it() {
        let store = MemoryStore::new(|| Timestamp::from_micros(1));
        let node = Node::new(NodeOptions {
            env: Env::seeded(Arc::new(TokioBootClock::start()), 1),
            store: Arc::new(store.clone()),
            limits: Limits::default(),
            cache_bytes: 0,
            waiting_bytes: 0,
            shards: 1,
        });
        let row = store.shards(1).await.unwrap().rows.remove(0);
        // The second attempt does it, the fourth one hears of it.
        for fault in [Fault::Refuse, Fault::LoseReply, Fault::Refuse] {
            store.faults().push(CallKind::Take, fault);
        }
        let (_stop, stopped) = watch::channel(false);
        let shard = Shard {
            node: Arc::clone(&node),
            row: row.clone(),
            stop: stopped,
            due_asks: mpsc::channel(1).0,
            shards_asks: mpsc::channel(1).0,
        };
        let begun = node.env.boot();
        let (_, renewed) = shard.try_take(row).await.unwrap();
        let told = node.env.boot();
        assert!(told.saturating_sub(begun) >= 3 * RETRY);
        let after = renewed.saturating_sub(begun);
        assert!((RETRY..2 * RETRY).contains(&after), "{after:?}");
    }
}
