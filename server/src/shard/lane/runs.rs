//! The runs in memory: what the lane knows beside the engine's state, and which of them leave.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use onward_proto::{RunId, SeededBug, Timestamp};

use super::Lane;
use crate::shard::message::Request;
use crate::{
    engine::{Run, SessionId, TaskId, Wake},
    store::WakeAt,
};

/// Facts wait so long behind an open task before its worker is asked to let them in.
const YIELD_AFTER: Duration = Duration::from_secs(1);

/// What a run's keys take in the lane's maps: its id four times, its workflow id, and the nodes.
const IN_MAPS: usize = 512;

/// A journal up to so many bytes is kept from the load of its run to the run's next task.
const KEPT_JOURNAL: usize = 16 << 10;

/// A run in memory.
pub(super) struct Entry {
    /// The engine's part.
    pub(super) run: Run,
    /// Whether its row has been inserted, or stands in a batch that commits.
    pub(super) inserted: bool,
    /// The next journal row's number.
    pub(super) next_seq: u32,
    /// Rows that are known to be durable.
    pub(super) durable_rows: u32,
    /// What column `wake_at` holds, or will once the batches under way are durable.
    pub(super) row_wake: WakeAt,
    /// Whether the close has been written.
    pub(super) row_closed: bool,
    /// Its entry in the lane's deadlines.
    pub(super) deadline: Option<Timestamp>,
    /// Its entry in the lane's yields.
    pub(super) yield_at: Option<Timestamp>,
    /// The task that was asked to yield.
    pub(super) yielded: Option<TaskId>,
    /// The session that has it in its cache, and can go on from there.
    pub(super) cached_on: Option<SessionId>,
    /// Whether the node counts it among those that somebody should look at.
    pub(super) incident: bool,
    /// Signals that wait until a repeated task has ended.
    pub(super) held: Vec<Request>,
    /// Since when the first of them waits.
    pub(super) held_since: Option<Timestamp>,
    /// Its place among the runs that can leave memory.
    pub(super) place: Option<Place>,
    /// Its encoded memo, until its row is inserted.
    pub(super) memo: Bytes,
    /// The journal that it was loaded from, until a task has been made of it.
    pub(super) journal: Vec<Bytes>,
}

impl Entry {
    pub(super) fn fresh(run: Run) -> Self {
        Self {
            run,
            inserted: false,
            next_seq: 0,
            durable_rows: 0,
            row_wake: WakeAt::Never,
            row_closed: false,
            deadline: None,
            yield_at: None,
            yielded: None,
            cached_on: None,
            incident: false,
            held: Vec::new(),
            held_since: None,
            place: None,
            memo: Bytes::new(),
            journal: Vec::new(),
        }
    }

    /// A run that was loaded. A short journal is kept: the worker that gets the run's next task
    /// is likely to have lost it as well.
    pub(super) fn loaded(run: Run, journal: Vec<Bytes>, row_wake: WakeAt) -> Self {
        let row_closed = run.closed_at().is_some();
        let rows = journal.len() as u32;
        let bytes: usize = journal.iter().map(Bytes::len).sum();
        Self {
            inserted: true,
            next_seq: rows,
            durable_rows: rows,
            row_wake,
            row_closed,
            journal: if bytes <= KEPT_JOURNAL && !row_closed { journal } else { Vec::new() },
            ..Self::fresh(run)
        }
    }

    /// The whole durable journal, if it is in memory. It is given once.
    pub(super) fn take_journal(&mut self) -> Option<Vec<Bytes>> {
        let journal = std::mem::take(&mut self.journal);
        (!journal.is_empty() && journal.len() == self.durable_rows as usize).then_some(journal)
    }

    /// Rough bytes that it takes, its places in the lane's maps included.
    fn memory_bytes(&self) -> usize {
        let journal: usize = self.journal.iter().map(|row| row.len() + size_of::<Bytes>()).sum();
        self.run.memory_bytes() + journal + size_of::<Self>() + IN_MAPS
    }

    /// What column `wake_at` should hold.
    pub(super) fn wake_at(&self) -> WakeAt {
        match self.run.wake() {
            Wake::Hot(_) => WakeAt::Hot,
            Wake::Cold(_) if SeededBug::SleepForEver.is_on() => WakeAt::Never,
            Wake::Cold(deadline) => WakeAt::At(deadline),
            Wake::Never => WakeAt::Never,
        }
    }

    /// When its open task has to let waiting facts and held signals in.
    fn next_yield(&self) -> Option<Timestamp> {
        let waiting = [self.run.facts_waiting_since(), self.held_since];
        let since = waiting.into_iter().flatten().min()?;
        let open = self.run.open_task()?;
        (self.yielded != Some(open.task_id)).then(|| since + YIELD_AFTER)
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        match self.run.wake() {
            Wake::Hot(deadline) => deadline,
            Wake::Cold(deadline) => Some(deadline),
            Wake::Never => None,
        }
    }
}

/// A run's place among those that can leave memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Cold or closed.
    Idle(u64),
    /// Hot, but nothing of it is in flight: workers have to come, or the time of its next try.
    Waiting(u64),
}

/// Runs that can leave memory, from the least recently used on, and how much of it they may take.
pub(super) struct Leavers {
    order: BTreeMap<u64, (RunId, usize)>,
    tick: u64,
    bytes: usize,
    budget: usize,
}

impl Leavers {
    pub(super) fn new(budget: usize) -> Self {
        Self { order: BTreeMap::new(), tick: 0, bytes: 0, budget }
    }

    fn add(&mut self, run_id: RunId, bytes: usize) -> u64 {
        self.tick += 1;
        self.bytes += bytes;
        self.order.insert(self.tick, (run_id, bytes));
        self.tick
    }

    fn remove(&mut self, tick: u64) {
        if let Some((_, bytes)) = self.order.remove(&tick) {
            self.bytes -= bytes;
        }
    }

    /// The least recently used one, while there are too many.
    fn pop_oldest(&mut self) -> Option<RunId> {
        let taken = (self.bytes > self.budget).then(|| self.order.pop_first())?;
        self.popped(taken)
    }

    /// The most recently used one, while there are too many.
    fn pop_newest(&mut self) -> Option<RunId> {
        let taken = (self.bytes > self.budget).then(|| self.order.pop_last())?;
        self.popped(taken)
    }

    fn popped(&mut self, taken: Option<(u64, (RunId, usize))>) -> Option<RunId> {
        let (_, (run_id, bytes)) = taken?;
        self.bytes -= bytes;
        Some(run_id)
    }
}

impl Lane {
    /// Brings a run's deadline, row and place in the cache in line with its state.
    pub(super) fn settle(&mut self, run_id: RunId) {
        let Some(entry) = self.runs.get_mut(&run_id) else { return };
        let deadline = entry.next_deadline();
        if entry.deadline != deadline {
            if let Some(old) = entry.deadline {
                self.deadlines.remove(&(old, run_id));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, run_id));
            }
            entry.deadline = deadline;
        }
        let yield_at = entry.next_yield();
        if entry.yield_at != yield_at {
            if let Some(old) = entry.yield_at {
                self.yields.remove(&(old, run_id));
            }
            if let Some(new) = yield_at {
                self.yields.insert((new, run_id));
            }
            entry.yield_at = yield_at;
        }
        let closed = entry.run.closed_at().is_some();
        if !entry.inserted || entry.wake_at() != entry.row_wake || closed != entry.row_closed {
            self.open.touch(run_id, self.node.env.boot());
        }
        self.place(run_id);
    }

    /// Tells the node when a run comes to have an incident, or has none any more.
    pub(super) fn watch_incident(&mut self, run_id: RunId) {
        let Some(entry) = self.runs.get_mut(&run_id) else { return };
        let incident = entry.run.has_incident(&self.node.limits);
        if entry.incident != incident {
            entry.incident = incident;
            self.node.metrics.incidents(self.node.incidents.set(run_id, incident));
        }
    }

    /// Puts a run among those that can leave memory, or takes it out.
    fn place(&mut self, run_id: RunId) {
        let staged = self.is_staged(run_id);
        let Some(entry) = self.runs.get_mut(&run_id) else { return };
        let stays = staged || !entry.held.is_empty();
        let is_hot = matches!(entry.run.wake(), Wake::Hot(_));
        match (stays, is_hot, entry.place) {
            (false, false, Some(Place::Idle(_))) => {}
            (false, false, _) => {
                self.leave_place(run_id);
                self.place_idle(run_id);
            }
            (false, true, Some(Place::Waiting(_))) if entry.run.can_leave().is_some() => {}
            (false, true, _) if entry.run.can_leave().is_some() => {
                self.leave_place(run_id);
                let Some(entry) = self.runs.get_mut(&run_id) else { return };
                let tick = self.waiting_runs.add(run_id, entry.memory_bytes());
                entry.place = Some(Place::Waiting(tick));
            }
            (_, _, None) => {}
            (_, _, Some(_)) => self.leave_place(run_id),
        }
    }

    fn place_idle(&mut self, run_id: RunId) {
        let Some(entry) = self.runs.get_mut(&run_id) else { return };
        entry.place = Some(Place::Idle(self.idle.add(run_id, entry.memory_bytes())));
    }

    fn leave_place(&mut self, run_id: RunId) {
        let Some(entry) = self.runs.get_mut(&run_id) else { return };
        match entry.place.take() {
            Some(Place::Idle(tick)) => self.idle.remove(tick),
            Some(Place::Waiting(tick)) => self.waiting_runs.remove(tick),
            None => {}
        }
    }

    /// Marks an idle run as just used.
    pub(super) fn touch_idle(&mut self, run_id: RunId) {
        if self.runs.get(&run_id).is_some_and(|run| matches!(run.place, Some(Place::Idle(_)))) {
            self.leave_place(run_id);
            self.place_idle(run_id);
        }
    }

    /// Lets runs go until the budgets hold: of the idle ones the least recently used, of those that
    /// wait for workers the last, because workers take the first.
    pub(super) fn shrink_cache(&mut self) {
        // What is held back looks at its run again, and offers are nowhere but there.
        if !self.withheld.is_empty() {
            return;
        }
        while let Some(run_id) = self.idle.pop_oldest() {
            let Some(entry) = self.forget(run_id) else { continue };
            // A deadline inside the horizon stays: nobody will read it again before it is due.
            if let Some(deadline) = entry.deadline
                && deadline > self.horizon
            {
                self.deadlines.remove(&(deadline, run_id));
            }
        }
        if self.draining {
            return;
        }
        while let Some(run_id) = self.waiting_runs.pop_newest() {
            // Its offers stay, and so does its deadline: nobody reads those of hot runs.
            let Some(entry) = self.forget(run_id) else { continue };
            self.away.extend(entry.run.can_leave().map(|known| (run_id, known)));
        }
    }

    /// Takes a run out of memory, but for its deadline.
    fn forget(&mut self, run_id: RunId) -> Option<Entry> {
        let entry = self.runs.remove(&run_id)?;
        self.node.metrics.in_memory(-1);
        let identity = entry.run.identity();
        let key = (identity.namespace_id, identity.workflow_id.clone());
        if self.ids.get(&key) == Some(&run_id) {
            self.ids.remove(&key);
        }
        Some(entry)
    }

    /// Puts a run into memory.
    pub(super) fn insert(&mut self, entry: Entry) -> RunId {
        let identity = entry.run.identity();
        let run_id = identity.run_id;
        // An open run is the newest of its workflow id. A closed one that was loaded may have
        // successors that are not in memory, so it does not stand for its id.
        if entry.run.closed_at().is_none() {
            let key = (identity.namespace_id, identity.workflow_id.clone());
            self.ids.insert(key, run_id);
        }
        self.runs.insert(run_id, entry);
        self.node.metrics.in_memory(1);
        run_id
    }

    /// The session of a worker, if it is still open.
    pub(super) fn session(&self, session: SessionId) -> Option<Arc<crate::dispatch::Session>> {
        self.node.dispatch.session(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Leavers {
        fn check(&self, runs: &BTreeMap<RunId, Entry>, place: impl Fn(u64) -> Place) {
            let bytes: usize = self.order.values().map(|(_, bytes)| bytes).sum();
            assert_eq!(self.bytes, bytes);
            for (tick, (run_id, _)) in &self.order {
                assert_eq!(runs[run_id].place, Some(place(*tick)), "{run_id} stands elsewhere");
            }
        }
    }

    impl Lane {
        /// Only runs that can leave stand among those that may, each in one place.
        pub(in crate::shard::lane) fn check_places(&self) {
            self.idle.check(&self.runs, Place::Idle);
            self.waiting_runs.check(&self.runs, Place::Waiting);
            let placed = self.runs.iter().filter(|(_, entry)| entry.place.is_some());
            let mut count = 0;
            for (run_id, entry) in placed {
                count += 1;
                assert!(!self.is_staged(*run_id), "{run_id} is not durable and may leave");
                assert!(entry.held.is_empty(), "{run_id} has inputs that wait and may leave");
                let is_hot = matches!(entry.run.wake(), Wake::Hot(_));
                assert!(!is_hot || entry.run.can_leave().is_some(), "{run_id} has work in flight");
            }
            assert_eq!(count, self.idle.order.len() + self.waiting_runs.order.len());
        }

        /// After a turn no more is in memory than may be.
        pub(in crate::shard::lane) fn check_budgets(&self) {
            for leavers in [&self.idle, &self.waiting_runs] {
                assert!(leavers.bytes <= leavers.budget);
            }
        }
    }
}
