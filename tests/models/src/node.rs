//! What a node does before a statement and with its answer: the shard's task and its lane.

use crate::{
    database::{
        Batch, Change, Id, LEASE, Owned, Process, Renewal, Resolve, Resolved, ShardRow, Take,
        Taken, Tick, Verdict,
    },
    faults::Faults,
};

/// A batch renews the lease when the last renewal is this old; `RENEW_AFTER` in
/// `server/src/shard/lane/commits.rs`. Idle shards are renewed as often.
const RENEW_AFTER: Tick = 1;
/// How far ahead a clock may be that a thief must not trust.
const AHEAD: Tick = 1;

/// A request that is on its way, or its answer that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Call<Q, A> {
    pub request: Q,
    /// What the database said, once the request has reached it.
    pub answer: Option<A>,
    sent: Tick,
    /// When the first attempt was sent whose reply was lost; `Attempts` in
    /// `server/src/shard/lease.rs`.
    lost: Option<Tick>,
}

impl<Q: Copy, A> Call<Q, A> {
    fn new(request: Q, now: Tick) -> Self {
        Self { request, answer: None, sent: now, lost: None }
    }

    /// The same request again: safe for a takeover and for a resolve.
    fn again(&self, now: Tick) -> Self {
        Self { request: self.request, answer: None, sent: now, lost: self.lost.or(Some(self.sent)) }
    }

    /// What is a lease old counts no more, however old it is.
    fn age(&mut self, oldest: Tick) {
        self.sent = self.sent.max(oldest);
        self.lost = self.lost.map(|lost| lost.max(oldest));
    }

    /// Since when the lease counts that this has renewed; `Attempts::first`.
    fn renewed(&self, now: Tick, faults: Faults) -> Tick {
        match self.lost {
            _ if faults.lease_from_reply => now,
            Some(lost) if !faults.lease_from_last_attempt => lost,
            _ => self.sent,
        }
    }
}

/// A process of the server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    pub id: Process,
    /// Ids that it has drawn.
    drawn: u8,
    pub task: Task,
    /// A failover has lost something that it rests on, and it has not begun anew since. What it
    /// says until then may be wrong, for as long as one lease at most.
    pub rewound: bool,
    /// What a fenced lane left behind, with the fault that keeps it.
    kept: Option<bool>,
}

/// The shard's task; `Shard::serve` in `server/src/shard/ownership.rs`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Task {
    /// The row as it was last seen, and since when it has looked like that.
    Watching(Option<(ShardRow, Tick)>),
    /// A takeover is under way.
    Taking(Call<Take, Taken>, Tick),
    /// The lane runs.
    Serving(Lane),
}

/// The lane; `server/src/shard/lane/mod.rs`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lane {
    pub owned: Owned,
    /// When the last renewal of the lease was sent.
    renewed: Tick,
    /// Whether a run of the workflow id is open, as memory has it; `None` until that is read.
    pub memory: Option<bool>,
    reading: Option<Reading>,
    /// The open batch.
    staged: Option<Change>,
    pub writing: Option<Writing>,
    /// Acks that wait for the lease.
    withheld: Vec<Id>,
    pub renewing: Option<Call<Renewal, Verdict>>,
}

/// What the database has said, on its way to the lane; `server/src/shard/lane/reads.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reading {
    is_open: Option<bool>,
    /// The lease ran out meanwhile and was renewed again: another `Tenure`.
    over_a_gap: bool,
}

/// The batch that is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Writing {
    Committing(Call<Batch, bool>),
    /// Its outcome is unknown.
    Resolving(Batch, Call<Resolve, Resolved>),
}

impl Node {
    /// A process that has just begun.
    pub fn new(id: Process) -> Self {
        Self { id, drawn: 0, task: Task::Watching(None), rewound: false, kept: None }
    }

    /// The lane, if it runs.
    pub fn lane(&self) -> Option<&Lane> {
        match &self.task {
            Task::Serving(lane) => Some(lane),
            Task::Watching(_) | Task::Taking(..) => None,
        }
    }

    /// One round of `Shard::take` in `server/src/shard/ownership.rs`: a row that has changed is
    /// watched anew, and one that may be taken is asked for.
    pub fn look(&mut self, now: Tick, row: ShardRow, faults: Faults) {
        let Task::Watching(watched) = self.task else { return };
        let since = watched.filter(|(seen, _)| *seen == row).map_or(now, |(_, since)| since);
        self.task = if self.may_take(row, now, now - since, faults) {
            // `Shard::try_take`
            let take = Take { watched: row, node: self.id, id: self.draw() };
            Task::Taking(Call::new(take, now), since)
        } else {
            Task::Watching(Some((row, since)))
        };
    }

    /// `Shard::may_take`.
    fn may_take(&self, row: ShardRow, now: Tick, unchanged: Tick, faults: Faults) -> bool {
        row.lease_until.is_none()
            || row.node == Some(self.id)
            || unchanged > LEASE
            || faults.take_by_own_clock && row.lease_until <= Some(now + AHEAD)
    }

    /// The answer of the takeover.
    pub fn on_taken(&mut self, now: Tick, faults: Faults) {
        let Task::Taking(call, since) = &self.task else { return };
        self.task = match call.answer {
            Some(Taken::Owned(owned)) => {
                let memory = self.kept.take();
                Task::Serving(Lane { memory, ..Lane::new(owned, call.renewed(now, faults)) })
            }
            Some(Taken::Changed) => {
                self.rewound = false;
                Task::Watching(Some((call.request.watched, *since)))
            }
            None => return,
        };
    }

    /// `Reader::counting` in `server/src/shard/lane/reads.rs`: the database answers.
    pub fn read(&mut self, is_open: Option<bool>) {
        if let Task::Serving(lane) = &mut self.task {
            lane.reading = Some(Reading { is_open, over_a_gap: false });
        }
    }

    /// Whether the lease ran out while the lane read, and stands again.
    pub fn reads_over_a_gap(&self) -> bool {
        self.lane().and_then(|lane| lane.reading).is_some_and(|reading| reading.over_a_gap)
    }

    /// The same: the answer comes, and counts or not.
    pub fn on_read(&mut self, now: Tick, faults: Faults) {
        let Task::Serving(lane) = &mut self.task else { return };
        let Some(reading) = lane.reading.take() else { return };
        let stands = lane.is_serving(now) && (faults.read_over_a_gap || !reading.over_a_gap);
        if stands || faults.read_without_lease {
            lane.memory = reading.is_open;
        }
    }

    /// Stages a change that is decided on memory alone, and commits it when nothing else commits;
    /// `apply` and `start_commit` in `server/src/shard/lane/`.
    pub fn change(&mut self, now: Tick, faults: Faults) -> Option<Id> {
        let Task::Serving(lane) = &mut self.task else { return None };
        let is_open = lane.memory.as_mut()?;
        lane.staged = Some(if *is_open { Change::Close } else { Change::Start });
        *is_open = !*is_open;
        let batch = self.start_commit(now);
        batch.filter(|_| faults.ack_before_commit)
    }

    /// `Lane::start_commit` and `build` in `server/src/shard/lane/commits.rs`.
    fn start_commit(&mut self, now: Tick) -> Option<Id> {
        let id = Id { writer: self.id, number: self.drawn };
        let Task::Serving(lane) = &mut self.task else { return None };
        if lane.writing.is_some() {
            return None;
        }
        let batch = Batch {
            epoch: lane.owned.epoch,
            seq: lane.owned.seq + 1,
            id,
            previous: lane.owned.id,
            renews: now - lane.renewed >= RENEW_AFTER,
            change: lane.staged.take()?,
        };
        lane.writing = Some(Writing::Committing(Call::new(batch, now)));
        self.drawn += 1;
        Some(id)
    }

    /// The answer to what the lane writes: `on_committed` and `on_resolved` in
    /// `server/src/shard/lane/commits.rs`. Gives the batches whose clients are told.
    pub fn on_written(&mut self, now: Tick, faults: Faults) -> Vec<Id> {
        let Task::Serving(lane) = &mut self.task else { return Vec::new() };
        let acked = match lane.writing {
            Some(Writing::Committing(call)) if call.answer == Some(true) => {
                let Batch { epoch, seq, id, renews, .. } = call.request;
                let renewed = renews.then(|| call.renewed(now, faults));
                lane.on_durable(now, id, Owned { epoch, seq, id }, renewed)
            }
            Some(Writing::Resolving(batch, call)) => match call.answer {
                Some(Resolved::Owned { owned, landed: true }) => {
                    lane.on_durable(now, batch.id, owned, Some(call.renewed(now, faults)))
                }
                Some(Resolved::Owned { owned, landed: false }) => {
                    *lane = Lane::new(owned, call.renewed(now, faults));
                    Vec::new()
                }
                _ => return self.on_fenced(faults),
            },
            _ => return self.on_fenced(faults),
        };
        self.start_commit(now);
        acked
    }

    /// The reply is lost: `StoreError::Unknown` in `on_committed`, and the loops that ask again.
    pub fn give_up(&mut self, now: Tick, faults: Faults) {
        let id = Id { writer: self.id, number: self.drawn };
        match &mut self.task {
            Task::Taking(call, _) => *call = call.again(now),
            Task::Serving(lane) => match &mut lane.writing {
                Some(Writing::Committing(_)) if faults.guess_instead_of_resolve => {
                    *lane = Lane::new(lane.owned, lane.renewed);
                }
                Some(Writing::Committing(call)) => {
                    let batch = call.request;
                    let resolve =
                        Resolve { node: self.id, epoch: lane.owned.epoch, batch: batch.id, id };
                    self.drawn += 1;
                    lane.writing = Some(Writing::Resolving(batch, Call::new(resolve, now)));
                }
                Some(Writing::Resolving(_, call)) => *call = call.again(now),
                None => {}
            },
            Task::Watching(_) => {}
        }
    }

    /// `renew_leases` in `server/src/background/renew.rs`, as far as `Lease::to_renew` lets it.
    pub fn renew(&mut self, now: Tick) {
        let Task::Serving(lane) = &mut self.task else { return };
        let Owned { epoch, seq, id } = lane.owned;
        lane.renewing = Some(Call::new(Renewal { node: self.id, epoch, seq, id }, now));
    }

    /// What `renew_leases` does with a verdict. Gives the batches whose clients are told.
    pub fn on_renewed(&mut self, now: Tick, faults: Faults) -> Vec<Id> {
        let Task::Serving(lane) = &mut self.task else { return Vec::new() };
        let Some(call) = lane.renewing.take() else { return Vec::new() };
        match call.answer {
            Some(Verdict::Kept) => {
                lane.renew(now, call.renewed(now, faults));
                lane.release(now, None)
            }
            Some(Verdict::Fenced | Verdict::Rewound) if lane.is_at(call.request) => {
                self.on_fenced(faults)
            }
            _ => Vec::new(),
        }
    }

    /// `LaneEnd::Fenced`: nobody is told anything, and the shard is watched.
    fn on_fenced(&mut self, faults: Faults) -> Vec<Id> {
        self.kept = self.lane().and_then(|lane| lane.memory).filter(|_| faults.keep_memory);
        self.rewound = false;
        self.task = Task::Watching(None);
        Vec::new()
    }

    /// Time has passed. States that differ in what has become irrelevant are one.
    pub fn age(&mut self, now: Tick) {
        let oldest = now.saturating_sub(LEASE);
        match &mut self.task {
            Task::Watching(None) => {}
            Task::Watching(Some((_, since))) => *since = (*since).max(oldest.saturating_sub(1)),
            Task::Taking(call, since) => {
                call.age(oldest);
                *since = (*since).max(oldest.saturating_sub(1));
            }
            Task::Serving(lane) => {
                lane.renewed = lane.renewed.max(oldest);
                match &mut lane.writing {
                    Some(Writing::Committing(call)) => call.age(oldest),
                    Some(Writing::Resolving(_, call)) => call.age(oldest),
                    None => {}
                }
                if let Some(call) = &mut lane.renewing {
                    call.age(oldest);
                }
            }
        }
    }

    fn draw(&mut self) -> Id {
        self.drawn += 1;
        Id { writer: self.id, number: self.drawn - 1 }
    }
}

impl Lane {
    /// `Lane::new` and `Lease::new`: an empty memory.
    fn new(owned: Owned, renewed: Tick) -> Self {
        Self {
            owned,
            renewed,
            memory: None,
            reading: None,
            staged: None,
            writing: None,
            withheld: Vec::new(),
            renewing: None,
        }
    }

    /// `Lane::on_durable`.
    fn on_durable(&mut self, now: Tick, id: Id, owned: Owned, renewed: Option<Tick>) -> Vec<Id> {
        self.writing = None;
        self.owned = owned;
        if let Some(sent) = renewed {
            self.renew(now, sent);
        }
        self.release(now, Some(id))
    }

    /// `Inner::renew` in `server/src/shard/lease.rs`.
    fn renew(&mut self, now: Tick, sent: Tick) {
        if !self.is_serving(now)
            && let Some(reading) = &mut self.reading
        {
            reading.over_a_gap = true;
        }
        self.renewed = self.renewed.max(sent);
    }

    /// `Lane::release` and `release_withheld`: in order, and only while the lease stands.
    fn release(&mut self, now: Tick, id: Option<Id>) -> Vec<Id> {
        self.withheld.extend(id);
        if self.is_serving(now) { std::mem::take(&mut self.withheld) } else { Vec::new() }
    }

    /// `Lane::is_serving`.
    pub fn is_serving(&self, now: Tick) -> bool {
        now - self.renewed < LEASE
    }

    /// Whether an answer waits for the lease.
    pub fn withholds(&self) -> bool {
        !self.withheld.is_empty()
    }

    /// Whether memory is what the lane knows to be durable. An answer waits until it is.
    pub fn is_durable(&self) -> bool {
        self.writing.is_none() && self.staged.is_none()
    }

    /// Whether the open batch takes another change. A real one takes many.
    pub fn takes_changes(&self) -> bool {
        self.memory.is_some() && self.staged.is_none()
    }

    /// Whether the lane needs to read, and whether it does.
    pub fn reads(&self) -> (bool, bool) {
        (self.memory.is_none() && self.reading.is_none(), self.reading.is_some())
    }

    /// `Lease::to_renew`.
    pub fn is_to_renew(&self, now: Tick) -> bool {
        let is_due = now - self.renewed >= RENEW_AFTER;
        is_due && self.writing.is_none() && self.renewing.is_none()
    }

    /// `Lease::is_at`.
    fn is_at(&self, renewal: Renewal) -> bool {
        let Owned { epoch, seq, .. } = self.owned;
        self.writing.is_none() && (epoch, seq) == (renewal.epoch, renewal.seq)
    }
}
