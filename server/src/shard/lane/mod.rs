//! One shard's single task: it owns the shard's runs, and every change of them goes through it.
//!
//! A lane reads like this: take an input, decide, apply, stage; when nothing is committing,
//! commit; when that is durable, let the effects go. Memory runs ahead of the disk, effects do
//! not: whatever leaves a lane waits until all that it rests on is durable, except workflow tasks,
//! whose code has no side effects.
//!
//! Invariants:
//! - One batch commits at a time; the next one fills meanwhile.
//! - A batch whose outcome is unknown is resolved before anything else is written.
//! - If a batch is lost, the lane forgets its runs and loads again, under a new incarnation.
//!
//! What it never does: await the store itself (loads, looks and commits run in tasks of their
//! own, so no database future is ever dropped half-way), or decide a rule.

mod commits;
mod load_queue;
mod loads;
mod reads;
mod requests;
mod runs;
mod tasks;
mod waiting;
mod workers;

#[cfg(test)]
mod properties;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use onward_proto::{
    NamespaceId, RunId, SeededBug, Timestamp,
    v1::{CancelReason, WorkflowOutcome},
};
use tokio::sync::mpsc;

pub(crate) use self::commits::LEASE;
use self::{
    commits::Committing,
    load_queue::LoadQueue,
    runs::Entry,
    waiting::{Follower, Waiting},
};
use super::{
    batch::{Deferred, OpenBatch},
    lease::Lease,
    mailbox::Letter,
    message::{LeaseNews, Mail, Refusal, Reply, Request},
    node::{Node, Parked},
};
use crate::{
    background::DueAsk,
    dispatch::Match,
    engine::{Decision, Effect, Incarnation, Known, RunIdentity, SessionId, TaskId, Token},
    store::{CommitId, Error as StoreError, Loaded, Resolved, ShardId},
};

/// What a load of a lane starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owned {
    /// The owner's epoch.
    pub(crate) epoch: u64,
    /// The newest batch.
    pub(crate) commit_seq: u64,
    /// Its id.
    pub(crate) commit_id: CommitId,
}

/// Why a lane ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneEnd {
    /// A batch is lost but the shard is still ours: load again.
    Reload {
        /// Where the load starts from.
        owned: Owned,
        /// When the last renewal of the lease was sent, by the node's own clock.
        renewed: Duration,
    },
    /// The shard has another owner.
    Fenced,
    /// It was asked to end, and everything staged is durable.
    Drained(Owned),
}

/// What tasks beside the lane tell it.
#[derive(Debug)]
pub(super) enum Beside {
    /// The batch that was committing has an answer.
    Committed(Result<crate::store::Committed, StoreError>, Duration),
    /// The batch whose outcome was unknown has one.
    Resolved(Resolved, commits::Sent, CommitId),
    /// The newest runs of some workflow ids, or why one cannot be read; and ids that were not
    /// looked at because of that one.
    Looked(Vec<(IdKey, loads::Look)>, Vec<IdKey>),
    /// Runs as the store has them: of the first ones, as far as the answers go.
    Loaded(Vec<RunId>, Vec<Loaded>),
    /// The durable rows of a run's journal, for a task that needs its whole history.
    Journal(tasks::JournalRead),
    /// Hot runs to read back.
    Hot(Vec<RunId>, bool),
    /// Cold runs that are due before the horizon.
    Due(Vec<crate::store::DueRun>),
}

/// A workflow id in its namespace.
pub(super) type IdKey = (NamespaceId, String);

/// Results of tasks beside the lane that may wait for it.
const BESIDE: usize = 256;
/// Letters that one turn of the loop reads before it looks whether to commit.
const TURN: usize = 512;
/// How far ahead deadlines of sleeping runs are read.
const HORIZON: Duration = Duration::from_secs(15);
/// How often they are.
const READ_AHEAD: Duration = Duration::from_secs(5);
/// How often a lane whose lease has run out looks whether it has come back.
const LEASE_WATCH: Duration = Duration::from_millis(50);

/// How much too early deadlines are due when a seeded bug says so.
const EARLY: Duration = Duration::from_millis(50);

pub(crate) struct Lane {
    node: Arc<Node>,
    shard: ShardId,
    slots: Range<u16>,
    incarnation: Incarnation,
    lease: Arc<Lease>,
    owned: Owned,

    runs: BTreeMap<RunId, Entry>,
    ids: BTreeMap<IdKey, RunId>,
    /// Cold runs, which leave memory when they are too many.
    idle: runs::Leavers,
    /// Hot runs that only wait for workers, or for their next try, which do as well.
    waiting_runs: runs::Leavers,
    /// Hot runs that have left, and what their loads have to know. Dispatch has their offers.
    away: BTreeMap<RunId, Known>,
    /// Runs whose records cannot be read or stored, and why.
    parked: BTreeMap<RunId, Parked>,
    /// Who waits for a run's result.
    waiters: Waiting<Reply<WorkflowOutcome>>,
    /// Who waits for a run's journal to grow.
    followers: Waiting<Follower>,

    open: OpenBatch,
    committing: Option<Committing>,
    /// Effects that wait for the lease to be renewed, in order.
    withheld: VecDeque<Deferred>,
    /// So many batches have one run each, to find the one that the database refuses.
    careful: u32,

    /// Requests that wait for a look at their workflow id's newest run.
    looking: BTreeMap<IdKey, Vec<Request>>,
    /// Ids to look at with the next statement; one look is under way at a time.
    look_next: Vec<IdKey>,
    look_under_way: bool,
    loading: BTreeMap<RunId, Vec<Mail>>,
    /// Letters that wait for looks and loads, and the bytes of the requests among them.
    waiting: usize,
    waiting_bytes: usize,
    load_next: LoadQueue,
    loads_under_way: usize,

    deadlines: BTreeSet<(Timestamp, RunId)>,
    /// The deadlines up to this one have been looked at for runs to bring back.
    preloaded: Option<(Timestamp, RunId)>,
    /// When open tasks have to let waiting facts in.
    yields: BTreeSet<(Timestamp, RunId)>,
    recovery: loads::Recovery,
    horizon: Timestamp,
    next_read_ahead: Duration,
    read_ahead_under_way: bool,

    matched: VecDeque<Match>,
    /// Workflow tasks whose credit has not come back, and who holds them. A task that is void or
    /// too late stays until its worker answers or forgets it.
    tasks_out: BTreeMap<(RunId, TaskId), SessionId>,
    /// The same for attempts.
    attempts_out: BTreeMap<Token, SessionId>,
    task_counter: u64,
    draining: bool,

    due_asks: mpsc::Sender<DueAsk>,
    beside_tx: mpsc::Sender<Beside>,
    beside: mpsc::Receiver<Beside>,
}

/// Everybody who waits is told to ask again, however the lane ends: their senders are dropped.
impl Drop for Lane {
    fn drop(&mut self) {
        self.node.metrics.in_memory(-(self.runs.len() as i64));
        self.node.metrics.incidents(self.node.incidents.forget(&self.slots));
    }
}

impl Lane {
    pub(crate) fn new(
        node: Arc<Node>,
        shard: ShardId,
        slots: Range<u16>,
        lease: Arc<Lease>,
        owned: Owned,
        careful: bool,
        due_asks: mpsc::Sender<DueAsk>,
    ) -> Self {
        let (beside_tx, beside) = mpsc::channel(BESIDE);
        let incarnation = Incarnation(node.env.random());
        Self {
            shard,
            slots,
            incarnation,
            lease,
            owned,
            runs: BTreeMap::new(),
            ids: BTreeMap::new(),
            idle: runs::Leavers::new(node.cache_bytes),
            waiting_runs: runs::Leavers::new(node.waiting_bytes),
            away: BTreeMap::new(),
            parked: BTreeMap::new(),
            waiters: Waiting::default(),
            followers: Waiting::default(),
            open: OpenBatch::default(),
            committing: None,
            withheld: VecDeque::new(),
            careful: if careful { commits::CAREFUL_BATCHES } else { 0 },
            looking: BTreeMap::new(),
            look_next: Vec::new(),
            look_under_way: false,
            loading: BTreeMap::new(),
            waiting: 0,
            waiting_bytes: 0,
            load_next: LoadQueue::default(),
            loads_under_way: 0,
            deadlines: BTreeSet::new(),
            preloaded: None,
            yields: BTreeSet::new(),
            recovery: loads::Recovery::START,
            horizon: Timestamp::MIN,
            next_read_ahead: Duration::ZERO,
            read_ahead_under_way: false,
            matched: VecDeque::new(),
            tasks_out: BTreeMap::new(),
            attempts_out: BTreeMap::new(),
            task_counter: 0,
            draining: false,
            due_asks,
            beside_tx,
            beside,
            node,
        }
    }

    /// The load of this lane; every token and task id carries it.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Serves the shard until it is lost, handed back, or must be loaded again.
    pub(crate) async fn run(mut self, mut mail: mpsc::Receiver<Letter>) -> LaneEnd {
        self.parked = self.node.parked(self.shard);
        let mut letters = Vec::with_capacity(TURN);
        loop {
            if let Some(end) = self.turn() {
                return end;
            }
            let pause = self.pause();
            let reads = !self.open.is_full();
            // Each branch may be dropped half-way: channels keep what was not taken, and the
            // sleep is computed anew each turn.
            tokio::select! {
                biased;
                Some(news) = self.beside.recv() => {
                    if let Some(end) = self.on_beside(news) {
                        return end;
                    }
                }
                count = mail.recv_many(&mut letters, TURN), if reads => {
                    if count == 0 {
                        // The node is gone without a drain: what is staged is as good as lost.
                        return LaneEnd::Drained(self.owned);
                    }
                    for letter in letters.drain(..) {
                        if let Some(end) = self.on_mail(letter.mail) {
                            return end;
                        }
                    }
                }
                () = self.node.env.sleep(pause), if pause < Duration::MAX => {}
            }
        }
    }

    /// What each turn of the loop begins with: what the lease held up, due deadlines, matches, the
    /// next commit.
    fn turn(&mut self) -> Option<LaneEnd> {
        self.release_withheld();
        if !self.draining {
            self.recover();
            self.read_ahead();
            self.preload();
            self.fire_deadlines();
            self.send_yields();
        }
        self.take_matches();
        self.start_loads();
        self.start_commit();
        self.shrink_cache();
        if self.draining && self.open.is_empty() && self.committing.is_none() {
            return Some(LaneEnd::Drained(self.owned));
        }
        None
    }

    /// How long nothing happens unless something arrives.
    fn pause(&self) -> Duration {
        let boot = self.node.env.boot();
        let commit = if self.committing.is_none() { self.open.due_in(boot) } else { None };
        if self.draining {
            return commit.unwrap_or(Duration::MAX);
        }
        let read_ahead =
            (!self.read_ahead_under_way).then(|| self.next_read_ahead.saturating_sub(boot));
        let recovery = match self.recovery {
            loads::Recovery::Next { not_before, .. } => Some(not_before.saturating_sub(boot)),
            loads::Recovery::Listing | loads::Recovery::Done => None,
        };
        [commit, self.until_deadline(boot), self.until_preload(boot), read_ahead, recovery]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Duration::MAX)
    }

    /// How long until a deadline comes. `None` while the batch is full: its commit comes first.
    fn until_deadline(&self, boot: Duration) -> Option<Duration> {
        if self.open.is_full() {
            return None;
        }
        let deadlines = [self.deadlines.first(), self.yields.first()];
        let (deadline, _) = deadlines.into_iter().flatten().min()?;
        // One microsecond more: the estimate must have reached the deadline, not be near it.
        let wait = deadline.since(self.node.clock().earliest(boot)) + Duration::from_micros(1);
        // Without a lease nothing fires; the renewal will be heard of, the time alone is watched.
        Some(if self.is_serving() { wait } else { wait.max(LEASE_WATCH) })
    }

    fn on_mail(&mut self, letter: Mail) -> Option<LaneEnd> {
        match letter {
            Mail::Request(request) => self.on_request(request),
            // Of a lane that comes to its end a worker hears no more: it says it again elsewhere.
            Mail::Worker(_) if self.draining => {}
            Mail::Worker(from) => self.on_worker(from),
            Mail::Matched(found) => self.matched.push_back(found),
            // The next turn lets go what has waited for it.
            Mail::Lease(LeaseNews::Renewed) => {}
            Mail::Lease(LeaseNews::Lost) => return Some(LaneEnd::Fenced),
            Mail::Drain => self.draining = true,
        }
        None
    }

    fn on_beside(&mut self, news: Beside) -> Option<LaneEnd> {
        match news {
            Beside::Committed(result, sent) => return self.on_committed(result, sent),
            Beside::Resolved(resolved, sent, id) => return self.on_resolved(resolved, sent, id),
            Beside::Looked(found, left) => self.on_looked(found, left),
            Beside::Loaded(run_ids, loaded) => self.on_loaded(run_ids, loaded),
            Beside::Journal(read) => return self.on_journal(read),
            Beside::Hot(run_ids, last) => self.on_hot(run_ids, last),
            Beside::Due(due) => self.on_due(due),
        }
        None
    }

    /// The time that goes on record: true time is this or earlier, so a deadline set from it is
    /// never early.
    fn now(&self) -> Timestamp {
        self.times().0
    }

    /// The time that deadlines are held against: true time is this or later.
    fn due_now(&self) -> Timestamp {
        self.times().1
    }

    /// Both, by one look at the clock: between two looks this thread may be halted, and what was
    /// due by the second would go on record with the time of the first, which is before it.
    fn times(&self) -> (Timestamp, Timestamp) {
        let (clock, boot) = (self.node.clock(), self.node.env.boot());
        let due = clock.earliest(boot);
        let due = if SeededBug::DueEarly.is_on() { due + EARLY } else { due };
        (clock.latest(boot), due)
    }

    /// Folds a decision in, stages what it writes, and starts or defers its effects.
    fn apply(&mut self, now: Timestamp, run_id: RunId, decision: Decision) {
        let entry = self.runs.get_mut(&run_id).expect("decisions are made for runs in memory");
        entry.run.apply(now, &decision, &self.node.limits);
        // A look at all activities, which most decisions have no reason for.
        let may_change = entry.incident || entry.run.is_blocked(&self.node.limits);
        if may_change || !decision.pending.is_empty() {
            self.watch_incident(run_id);
        }
        self.stage(run_id, &decision);
        // First the run's row: an attempt goes out only behind the row that says it may be out.
        self.settle(run_id);
        for effect in decision.effects {
            self.start_effect(run_id, &effect);
        }
    }

    /// Stages what a decision writes, and tells of a record that is uncommonly large.
    fn stage(&mut self, run_id: RunId, decision: &Decision) {
        let largest = self.open.stage(run_id, decision, self.node.env.boot());
        let limit = self.node.limits.large_record_bytes;
        if largest as u64 > limit
            && let Some(entry) = self.runs.get(&run_id)
        {
            let RunIdentity { workflow_id, workflow_type, .. } = entry.run.identity();
            tracing::warn!(
                %workflow_id,
                %run_id,
                %workflow_type,
                bytes = largest,
                limit,
                "a run records a large payload"
            );
        }
    }

    fn start_effect(&mut self, run_id: RunId, effect: &Effect) {
        match *effect {
            Effect::OfferTask => self.offer_task(run_id),
            Effect::OfferTaskWhenDurable => self.defer(run_id, Deferred::OfferTask(run_id)),
            Effect::OfferActivity { number } => {
                self.defer(run_id, Deferred::OfferActivity(run_id, number));
            }
            Effect::SendActivity { token, session } => {
                self.defer(run_id, Deferred::SendActivity(token, session));
            }
            Effect::CancelAttempt { token, session, reason } => {
                // An attempt that no longer counts is not answered: its credit comes back here.
                if reason == CancelReason::Lost {
                    self.free_attempt(token);
                }
                self.defer(run_id, Deferred::CancelAttempt(token, session, reason));
            }
            Effect::WithdrawTask => self.withdraw_task(run_id),
            Effect::WithdrawActivity { number } => {
                self.node.dispatch.withdraw(run_id, Some(number));
            }
            // A void completion's own answer says so.
            Effect::TaskVoid { .. } => {}
            Effect::Closed => {
                // It gains nothing by waiting, and a start behind it must not come before it.
                self.open.hurry(run_id);
                self.defer(run_id, Deferred::Closed(run_id));
            }
        }
    }

    /// Lets something wait until all that is staged for a run is durable; at once if it is.
    fn defer(&mut self, run_id: RunId, deferred: Deferred) {
        if deferred.is_let_go_by_bug() {
            return self.release(deferred);
        }
        let Err(deferred) = self.open.defer(run_id, deferred) else { return };
        match self.committing.as_mut().and_then(|committing| committing.runs.get_mut(&run_id)) {
            Some(waiting) => deferred.join(waiting),
            None => self.release(deferred),
        }
    }

    /// Whether something of a run is not durable yet.
    fn is_staged(&self, run_id: RunId) -> bool {
        self.open.get(run_id).is_some()
            || self.committing.as_ref().is_some_and(|batch| batch.runs.contains_key(&run_id))
    }

    /// The refusal for requests that a draining lane does not take.
    fn draining_refusal() -> Refusal {
        Refusal::Unavailable("the server is shutting down".to_owned())
    }
}
