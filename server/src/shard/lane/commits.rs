//! Making the open batch durable, and letting go of what waited for it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use onward_proto::{
    RunId, SeededBug, Timestamp,
    v1::{CancelActivityTask, StaleTask, WorkflowStatus, server_item},
};

use super::{
    super::{
        batch::{Deferred, Staged, seal_row},
        lease::Attempts,
        message::{Located, Refusal},
    },
    Beside, Lane, LaneEnd, Owned,
};
use crate::store::{
    Batch, Close, CommitId, Committed, Error as StoreError, JournalInsert, PendingWrite, Resolve,
    Resolved, RunRow, RunUpdate,
};

/// Waits between two tries to write while the database is away.
const RETRY: Duration = Duration::from_millis(100);
/// How long a lease lasts.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// Batches of one run each that look for the run that the database refuses.
pub(super) const CAREFUL_BATCHES: u32 = 10_000;
/// A batch renews the lease when the last renewal is this old.
const RENEW_AFTER: Duration = Duration::from_secs(1);

/// The batch that is on its way.
pub(super) struct Committing {
    pub(super) batch: Arc<Batch>,
    /// Its runs, and what waits for each.
    pub(super) runs: BTreeMap<RunId, Vec<Deferred>>,
}

/// When a write was sent, by the node's own clock.
#[derive(Debug, Clone, Copy)]
pub(in crate::shard) struct Sent {
    /// The attempt that was answered: what the answer's time is held against.
    pub(super) last: Duration,
    /// The first attempt that may have been carried out: since when the lease counts.
    pub(super) first: Duration,
}

impl Committing {
    /// The journal row that this batch writes for a run.
    pub(super) fn row(&self, run_id: RunId) -> Option<(u32, &Bytes)> {
        let row = self.batch.journal.iter().find(|row| row.run_id == run_id)?;
        Some((row.seq, &row.records))
    }
}

impl Lane {
    /// Starts to commit when the batch before is done and there is reason to.
    pub(super) fn start_commit(&mut self) {
        if self.committing.is_some() {
            return;
        }
        if self.open.due_in(self.node.env.boot()) != Some(Duration::ZERO) {
            return;
        }
        let staged = if self.careful > 0 {
            // One run alone, to find the one that the database refuses; if it does not come back,
            // the search ends.
            self.careful -= 1;
            if self.careful == 0 {
                self.node.end_care(self.shard);
            }
            self.open.take_one()
        } else {
            self.open.take(self.node.env.boot())
        };
        if staged.is_empty() {
            return;
        }
        let committing = self.build(staged);
        self.send_batch(Arc::clone(&committing.batch), Duration::ZERO);
        self.committing = Some(committing);
    }

    /// Builds the rows from the runs as they are now.
    fn build(&mut self, staged: BTreeMap<RunId, Staged>) -> Committing {
        let commit_seq = self.owned.commit_seq + 1;
        let renew = self.lease.age(self.node.env.boot()) >= RENEW_AFTER;
        let mut batch = Batch {
            shard_id: self.shard,
            epoch: self.owned.epoch,
            commit_seq,
            commit_id: CommitId(self.node.env.random_uuid()),
            previous: self.owned.commit_id,
            renew_lease_us: renew.then_some(LEASE.as_micros() as i64),
            new_runs: Vec::new(),
            run_updates: Vec::new(),
            journal: Vec::with_capacity(staged.len()),
            pending: Vec::new(),
        };
        let mut runs = BTreeMap::new();
        for (run_id, mut staged) in staged {
            runs.insert(run_id, std::mem::take(&mut staged.deferred));
            self.build_run(&mut batch, run_id, staged);
        }
        self.lease.committing(true);
        Committing { batch: Arc::new(batch), runs }
    }

    fn build_run(&mut self, batch: &mut Batch, run_id: RunId, staged: Staged) {
        let entry = self.runs.get_mut(&run_id).expect("a run with staged records stays in memory");
        let wake_at = entry.wake_at();
        let history = entry.run.history_size();
        let closed_at = entry.run.closed_at();
        if entry.inserted {
            let close = closed_at.filter(|_| !entry.row_closed).map(|closed_at| Close {
                status: entry.run.status(),
                closed_at,
                requests: entry.run.requests().encode(run_id),
            });
            if close.is_some() || wake_at != entry.row_wake {
                batch.run_updates.push(RunUpdate { run_id, wake_at, history, close });
            }
        } else {
            let identity = entry.run.identity();
            batch.new_runs.push(RunRow {
                run_id,
                namespace_id: identity.namespace_id,
                workflow_id: identity.workflow_id.clone(),
                workflow_type: identity.workflow_type.clone(),
                task_queue: identity.task_queue.clone(),
                status: entry.run.status(),
                started_at: identity.started_at,
                closed_at,
                wake_at,
                history,
                memo: std::mem::take(&mut entry.memo),
                requests: entry.run.requests().encode(run_id),
            });
        }
        entry.inserted = true;
        entry.row_wake = wake_at;
        entry.row_closed = closed_at.is_some();
        if !staged.records.is_empty() {
            let records = seal_row(staged.records, batch.epoch, batch.commit_seq);
            batch.journal.push(JournalInsert { run_id, seq: entry.next_seq, records });
            entry.next_seq += 1;
        }
        batch.pending.extend(staged.pending.into_iter().map(|(number, data)| PendingWrite {
            run_id,
            number,
            data,
        }));
    }

    fn send_batch(&self, batch: Arc<Batch>, wait: Duration) {
        let (node, beside) = (Arc::clone(&self.node), self.beside_tx.clone());
        self.node.env.spawn(async move {
            if !wait.is_zero() {
                node.env.sleep(wait).await;
            }
            let sent = node.env.boot();
            let result = node.store.commit(batch).await;
            // The lane may have ended meanwhile; whoever loads next finds the batch in or out.
            drop(beside.send(Beside::Committed(result, sent)).await);
        });
    }

    pub(super) fn on_committed(
        &mut self,
        result: Result<Committed, StoreError>,
        sent: Duration,
    ) -> Option<LaneEnd> {
        let committing = self.committing.as_ref().expect("only a batch under way has an answer");
        match result {
            Ok(Committed::Committed { now }) => {
                let epoch = self.owned.epoch;
                self.on_durable(now, Sent { last: sent, first: sent }, epoch, None);
                None
            }
            Ok(Committed::Fenced) => Some(LaneEnd::Fenced),
            Err(StoreError::Unavailable(reason)) => {
                tracing::warn!(shard = %self.shard, reason, "the database is not available; trying again");
                self.send_batch(Arc::clone(&committing.batch), RETRY);
                None
            }
            Err(StoreError::Unknown(_)) if SeededBug::AssumeLanded.is_on() => {
                let (now, epoch) = (self.now(), self.owned.epoch);
                self.on_durable(now, Sent { last: sent, first: sent }, epoch, None);
                None
            }
            Err(StoreError::Unknown(reason)) => {
                tracing::warn!(shard = %self.shard, reason, "a batch's outcome is unknown; resolving");
                self.resolve();
                None
            }
            Err(error @ (StoreError::Refused(_) | StoreError::Corrupt(_))) => {
                Some(self.on_refused(&error.to_string()))
            }
        }
    }

    /// The database refuses the data. With one run alone the culprit is known and parked; else the
    /// lane loads again and commits one run at a time until it shows.
    fn on_refused(&mut self, reason: &str) -> LaneEnd {
        let mut committing = self.committing.take().expect("only a batch under way has an answer");
        tracing::error!(shard = %self.shard, reason, runs = committing.runs.len(), "a batch is refused");
        if let (1, Some((run_id, waiting))) = (committing.runs.len(), committing.runs.pop_first()) {
            // Who waits for it would ask for the same again, and the lane would load for ever.
            let refusal = Refusal::Parked { run_id, reason: reason.to_owned() };
            for deferred in waiting.into_iter().chain(self.open.forget(run_id)) {
                deferred.refuse(&refusal);
            }
            for waiter in self.waiters.take(run_id) {
                drop(waiter.send(Err(refusal.clone())));
            }
            return self.park_and_reload(run_id, reason.to_owned());
        }
        self.node.be_careful(self.shard);
        self.reload()
    }

    fn resolve(&self) {
        let committing = self.committing.as_ref().expect("only a batch under way is resolved");
        let resolve = Resolve {
            shard_id: self.shard,
            node_id: self.node.id,
            epoch: self.owned.epoch,
            commit_id: committing.batch.commit_id,
            resolve_id: CommitId(self.node.env.random_uuid()),
            lease_us: LEASE.as_micros() as i64,
        };
        let (node, beside) = (Arc::clone(&self.node), self.beside_tx.clone());
        self.node.env.spawn(async move {
            let mut attempts = Attempts::default();
            loop {
                let last = node.env.boot();
                match node.store.resolve(resolve.clone()).await {
                    Ok(resolved) => {
                        let sent = Sent { last, first: attempts.first(last) };
                        let news = Beside::Resolved(resolved, sent, resolve.resolve_id);
                        drop(beside.send(news).await);
                        return;
                    }
                    // Asking again with the same resolve id is safe, whatever came of this one.
                    Err(error) => {
                        attempts.failed(last, &error);
                        tracing::warn!(shard = %resolve.shard_id, %error, "cannot resolve a batch yet");
                        node.env.sleep(RETRY).await;
                    }
                }
                if beside.is_closed() {
                    return;
                }
            }
        });
    }

    pub(super) fn on_resolved(
        &mut self,
        resolved: Resolved,
        sent: Sent,
        resolve_id: CommitId,
    ) -> Option<LaneEnd> {
        match resolved {
            Resolved::Owned { epoch, commit_seq, landed, now }
                if landed || SeededBug::KeepLost.is_on() =>
            {
                let newest = Owned { epoch, commit_seq, commit_id: resolve_id };
                self.on_durable(now, sent, epoch, Some(newest));
                None
            }
            Resolved::Owned { epoch, commit_seq, landed: _, now: _ } => {
                let owned = Owned { epoch, commit_seq, commit_id: resolve_id };
                Some(LaneEnd::Reload { owned, renewed: sent.first })
            }
            Resolved::Fenced => Some(LaneEnd::Fenced),
        }
    }

    /// The batch is in: what waited for it may go.
    fn on_durable(&mut self, now: Timestamp, sent: Sent, epoch: u64, newest: Option<Owned>) {
        let committing = self.committing.take().expect("only a batch under way becomes durable");
        let batch = &committing.batch;
        self.owned = newest.unwrap_or(Owned {
            epoch,
            commit_seq: batch.commit_seq,
            commit_id: batch.commit_id,
        });
        let renewed = (newest.is_some() || batch.renew_lease_us.is_some()).then_some(sent.first);
        self.lease.committed(self.owned, renewed, self.node.env.boot());
        self.node.sync_clock(now, sent.last);
        self.node.metrics.batch(batch.journal.len());
        for row in &batch.journal {
            if let Some(entry) = self.runs.get_mut(&row.run_id) {
                entry.durable_rows = row.seq + 1;
            }
        }
        for run_id in committing.runs.keys() {
            self.settle(*run_id);
            self.tell_followers(*run_id);
        }
        self.release_withheld();
        for deferred in committing.runs.into_values().flatten() {
            self.release(deferred);
        }
    }

    /// Lets go what has waited for the lease, if it stands again.
    pub(super) fn release_withheld(&mut self) {
        while self.is_serving()
            && let Some(deferred) = self.withheld.pop_front()
        {
            self.let_go(deferred);
        }
    }

    /// Whether the lease stands: a fenced owner may neither answer nor dispatch.
    pub(super) fn is_serving(&self) -> bool {
        self.lease.tenure(self.node.env.boot()).is_some() || SeededBug::ServeWithoutLease.is_on()
    }

    /// Lets something go that all durable state allows, once the lease allows it too and all that
    /// waits for the lease has gone before.
    pub(super) fn release(&mut self, deferred: Deferred) {
        if self.is_serving() && self.withheld.is_empty() {
            self.let_go(deferred);
        } else {
            self.withheld.push_back(deferred);
        }
    }

    fn let_go(&mut self, deferred: Deferred) {
        // A receiver that is gone has stopped waiting; the change stands all the same.
        match deferred {
            Deferred::Answer(reply, result) => drop(reply.send(result)),
            Deferred::Describe(reply, description) => drop(reply.send(Ok(description))),
            Deferred::Locate(reply, run_id) => drop(reply.send(self.locate(run_id))),
            Deferred::Outcome(reply, outcome) => drop(reply.send(Ok(*outcome))),
            Deferred::Closed(run_id) => self.tell_waiters(run_id),
            Deferred::OfferTask(run_id) => self.offer_task(run_id),
            Deferred::OfferActivity(run_id, number) => self.offer_activity(run_id, number),
            Deferred::SendActivity(token, session) => self.send_activity(token, session),
            Deferred::CancelAttempt(token, session, reason) => {
                if let Some(session) = self.session(session) {
                    session.outbox().push(server_item::Kind::CancelActivity(CancelActivityTask {
                        token: Some(token.to_wire()),
                        reason: reason.into(),
                    }));
                }
            }
            Deferred::AckTask(session, task_id) => {
                session.outbox().ack_task(task_id.to_wire());
            }
            Deferred::StaleTask(session, run_id, task_id) => {
                session.outbox().push(server_item::Kind::Stale(StaleTask {
                    task_id: Some(task_id.to_wire()),
                    run_id: run_id.to_wire(),
                }));
            }
            Deferred::AckActivity(session, token) => {
                session.outbox().ack_activity(token.to_wire());
            }
        }
    }

    fn tell_waiters(&mut self, run_id: RunId) {
        let Some(outcome) = self.runs.get(&run_id).and_then(|entry| entry.run.outcome()) else {
            return;
        };
        for waiter in self.waiters.take(run_id) {
            drop(waiter.send(Ok(outcome.clone())));
        }
    }

    pub(super) fn locate(&self, run_id: RunId) -> Result<Located, Refusal> {
        let entry = self
            .runs
            .get(&run_id)
            .ok_or_else(|| Refusal::Unavailable("the run has left memory".to_owned()))?;
        let closed = entry.run.status() != WorkflowStatus::Running && !self.is_staged(run_id);
        Ok(Located { run_id, rows: entry.durable_rows, closed })
    }

    fn tell_followers(&mut self, run_id: RunId) {
        let waiting = self.followers.take(run_id);
        let Ok(located) = self.locate(run_id) else { return };
        for follower in waiting {
            if located.rows > follower.beyond || located.closed {
                self.release(Deferred::Locate(follower.reply, run_id));
            } else {
                self.followers.add(run_id, follower);
            }
        }
    }
}
