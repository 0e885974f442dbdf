//! Bringing runs into memory: looks at workflow ids, loads, recovery, and deadlines read ahead.
//!
//! All reads go beside the lane. What names a run that is being read waits behind the read; other
//! runs go on.

use std::{
    ops::{Bound, Range},
    time::Duration,
};

use bytes::Bytes;
use onward_proto::{
    RunId, SeededBug, Timestamp,
    v1::{JournalRow, PendingActivity},
};
use prost::Message as _;
use tokio::sync::oneshot;

use super::{
    super::{
        batch::read_row,
        message::{FromWorker, Mail, Refusal, Request},
        node::Parked,
    },
    Beside, HORIZON, IdKey, Lane, LaneEnd, READ_AHEAD,
    load_queue::Urgency,
    reads::RETRY,
    runs::Entry,
};
use crate::{
    background::DueAsk,
    engine::{Existing, Requests, Run, RunIdentity, Stored, Work},
    store::{self, BoxFuture, DueRun, Loaded, LoadedRun, NewestRun, Store, WakeAt},
};
use onward_proto::v1::WorkflowStatus;

/// Statements of one lane's loads that are under way at once.
const LOADS: usize = 2;
/// Runs that one of them asks for at most.
const RUNS_PER_LOAD: usize = 256;
/// Bytes of journal behind which one of them reads no further run.
const BYTES_PER_LOAD: u32 = 4 << 20;
/// A run that sleeps outside memory comes back so long before its deadline.
const PRELOAD: Duration = Duration::from_millis(250);
/// Hot runs listed at once while a lane recovers.
const HOT_PAGE: u32 = 1_000;
/// With more runs in memory, recovery goes on slowly.
const RECOVERED: usize = 100_000;
/// How slowly: a page each time.
const RECOVERY_PACE: Duration = Duration::from_secs(1);

/// How far the list of hot runs has been read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Recovery {
    /// The next page begins behind this run; it is read at that time at the latest.
    Next { after: Option<RunId>, not_before: Duration },
    /// A page is being read.
    Listing,
    /// It has been read whole.
    Done,
}

impl Recovery {
    /// From the start, at once.
    pub(super) const START: Self = Self::Next { after: None, not_before: Duration::ZERO };
}

/// The newest run of a workflow id, or why it cannot be read.
pub(super) type Look = Result<Option<NewestRun>, String>;

impl Lane {
    /// Lets a request wait for a look at its workflow id's newest run.
    pub(super) fn look(&mut self, key: IdKey, request: Request) {
        self.waiting += 1;
        self.waiting_bytes += request.bytes();
        self.looking.entry(key.clone()).or_default().push(request);
        self.look_next.push(key);
        self.start_look();
    }

    /// One statement for all ids that wait; those that come meanwhile go with the next.
    fn start_look(&mut self) {
        if self.look_under_way || self.look_next.is_empty() {
            return;
        }
        self.look_under_way = true;
        let mut ids = std::mem::take(&mut self.look_next);
        let reader = self.reader();
        self.node.env.spawn(async move {
            let mut left = Vec::new();
            while let Some(reply) =
                reader.read("workflow ids", |store| store.find_newest_runs(ids.clone())).await
            {
                let found: Vec<Look> = match reply {
                    Ok(found) => found.into_iter().map(Ok).collect(),
                    // One id fails the statement for all: fewer at once, until it is alone.
                    Err(_) if ids.len() > 1 => {
                        left.splice(0..0, ids.split_off(ids.len() / 2));
                        continue;
                    }
                    Err(error) => {
                        tracing::error!(%error, "the newest run of a workflow id cannot be read");
                        vec![Err(error.to_string())]
                    }
                };
                let found = ids.into_iter().zip(found).collect();
                return reader.tell(Beside::Looked(found, left)).await;
            }
        });
    }

    pub(super) fn on_looked(&mut self, found: Vec<(IdKey, Look)>, left: Vec<IdKey>) {
        self.look_under_way = false;
        self.look_next.splice(0..0, left);
        for (key, look) in found {
            let requests = self.looking.remove(&key).unwrap_or_default();
            self.waiting -= requests.len();
            for request in requests {
                self.waiting_bytes -= request.bytes();
                match &look {
                    Ok(newest) => self.on_looked_at(&key, newest.as_ref(), request),
                    Err(reason) => {
                        let (workflow_id, reason) = (key.1.clone(), reason.clone());
                        request.refuse(Refusal::Unreadable { workflow_id, reason });
                    }
                }
            }
        }
        self.start_look();
    }

    /// A start decides on what the look found, unless that run is open; everything else, and a
    /// start behind another one, needs the run itself.
    fn on_looked_at(&mut self, key: &IdKey, newest: Option<&NewestRun>, request: Request) {
        if let Some(run_id) = self.ids.get(key) {
            return self.with_run(*run_id, request);
        }
        let closed = newest
            .and_then(|newest| newest.status)
            .filter(|status| *status != WorkflowStatus::Running);
        match (request, newest, closed) {
            (Request::Start { start, answer, outcome }, None, _) => {
                self.start_after_look(Existing::None, &start, answer, outcome);
            }
            (Request::Start { start, answer, outcome }, Some(newest), Some(status)) => {
                match Requests::decode(&newest.requests, newest.run_id) {
                    Ok(requests) => {
                        let closed =
                            Existing::Closed { run_id: newest.run_id, status, requests: &requests };
                        self.start_after_look(closed, &start, answer, outcome);
                    }
                    Err(error) => drop(answer.send(Err(Refusal::Parked {
                        run_id: newest.run_id,
                        reason: format!("its requests cannot be read: {error}"),
                    }))),
                }
            }
            (mut request, Some(newest), closed) => {
                // The newest run has closed, and that is the answer, whatever starts meanwhile.
                // Of an open one the load tells whether it still stands for its id.
                if closed.is_some() {
                    request.name_run(newest.run_id);
                }
                self.with_run(newest.run_id, request);
            }
            (request, None, _) => request.refuse_not_found(),
        }
    }

    /// Lets a letter wait until its run is in memory.
    pub(super) fn load(&mut self, run_id: RunId, letter: Mail) {
        self.waiting += 1;
        self.waiting_bytes += letter.request_bytes();
        if let Some(waiting) = self.loading.get_mut(&run_id) {
            waiting.push(letter);
            self.load_next.hurry(run_id);
            return;
        }
        self.loading.insert(run_id, vec![letter]);
        self.load_next.push(run_id, Urgency::Wanted);
    }

    /// Brings a run back because its deadline comes, or because it has work in flight.
    pub(super) fn load_due(&mut self, run_id: RunId) {
        if !self.loading.contains_key(&run_id) && !self.parked.contains_key(&run_id) {
            self.loading.insert(run_id, Vec::new());
            self.load_next.push(run_id, Urgency::Due);
        }
    }

    /// Brings runs back whose deadlines are near: a deadline does not wait for a read, and runs
    /// that are due together are read together.
    pub(super) fn preload(&mut self) {
        let until = self.due_now() + PRELOAD;
        while let Some((at, run_id)) = self.next_preload()
            && at <= until
        {
            self.preloaded = Some((at, run_id));
            // One that has left though it is hot would leave again: it comes back when it is due.
            if !self.runs.contains_key(&run_id) && !self.away.contains_key(&run_id) {
                self.load_due(run_id);
            }
        }
    }

    /// How long until a run may have to come back before its deadline.
    pub(super) fn until_preload(&self, boot: Duration) -> Option<Duration> {
        let (at, _) = self.next_preload()?;
        Some(at.since(self.node.clock().earliest(boot)).saturating_sub(PRELOAD))
    }

    fn next_preload(&self) -> Option<(Timestamp, RunId)> {
        let after = self.preloaded.map_or(Bound::Unbounded, Bound::Excluded);
        self.deadlines.range((after, Bound::Unbounded)).next().copied()
    }

    /// Reads the runs that wait to be loaded, many with one statement.
    pub(super) fn start_loads(&mut self) {
        while self.loads_under_way < LOADS && !self.load_next.is_empty() {
            self.loads_under_way += 1;
            let run_ids = self.load_next.take(RUNS_PER_LOAD);
            let reader = self.reader();
            self.node.env.spawn(async move {
                let mut asked = run_ids.clone();
                while let Some(reply) = reader
                    .read("runs", |store| store.load_runs(asked.clone(), BYTES_PER_LOAD))
                    .await
                {
                    let loaded = match reply {
                        Ok(loaded) => loaded,
                        // One run fails the statement for all: fewer at once, until it is alone.
                        Err(_) if asked.len() > 1 => {
                            asked.truncate(asked.len() / 2);
                            continue;
                        }
                        Err(error) => {
                            vec![Loaded::Corrupt { row: None, reason: error.to_string() }]
                        }
                    };
                    return reader.tell(Beside::Loaded(run_ids, loaded)).await;
                }
            });
        }
    }

    pub(super) fn on_loaded(&mut self, run_ids: Vec<RunId>, loaded: Vec<Loaded>) {
        self.loads_under_way -= 1;
        for run_id in run_ids[loaded.len()..].iter().rev() {
            let wanted = self.loading.get(run_id).is_some_and(|waiting| !waiting.is_empty());
            self.load_next.put_back(*run_id, if wanted { Urgency::Wanted } else { Urgency::Due });
        }
        for (run_id, loaded) in run_ids.into_iter().zip(loaded) {
            self.on_loaded_run(run_id, loaded);
        }
    }

    fn on_loaded_run(&mut self, run_id: RunId, loaded: Loaded) {
        let waiting = self.loading.remove(&run_id).unwrap_or_default();
        self.waiting -= waiting.len();
        self.waiting_bytes -= waiting.iter().map(Mail::request_bytes).sum::<usize>();
        let is_new = !self.runs.contains_key(&run_id);
        if is_new {
            match loaded {
                Loaded::Run(run) => {
                    let workflow = Some((run.row.namespace_id, run.row.workflow_id.clone()));
                    if let Err(reason) = self.rebuild(*run) {
                        self.park(run_id, Parked { workflow, reason });
                    }
                }
                Loaded::Corrupt { row, reason } => {
                    let workflow = row.map(|row| (row.namespace_id, row.workflow_id));
                    self.park(run_id, Parked { workflow, reason });
                }
                Loaded::Missing => {
                    for letter in waiting {
                        self.refuse_unknown(run_id, letter);
                    }
                    return;
                }
            }
        }
        for letter in waiting {
            match letter {
                Mail::Request(request) => self.with_run(run_id, request),
                Mail::Worker(from) => self.on_worker(from),
                Mail::Matched(found) => self.take_match(found),
                Mail::Lease(_) | Mail::Drain => {}
            }
        }
        if is_new {
            self.offer_all(run_id);
        }
    }

    /// Offers all that a run has to give away. What waits in dispatch already keeps its place.
    fn offer_all(&mut self, run_id: RunId) {
        let Some(entry) = self.runs.get(&run_id) else { return };
        let ready: Vec<u32> = entry.run.ready_activities().collect();
        self.offer_task(run_id);
        for number in ready {
            self.offer_activity(run_id, number);
        }
    }

    fn refuse_unknown(&mut self, run_id: RunId, letter: Mail) {
        match letter {
            Mail::Request(request) => request.refuse_not_found(),
            Mail::Worker(FromWorker::Run { session, input, .. }) => {
                self.tell_stale_input(run_id, &session, &input);
            }
            Mail::Matched(found) => self.give_back(&found.session, found.offer.kind.kind()),
            Mail::Worker(_) | Mail::Lease(_) | Mail::Drain => {}
        }
    }

    fn rebuild(&mut self, loaded: LoadedRun) -> Result<(), String> {
        let (now, due) = self.times();
        let row = loaded.row;
        let identity = RunIdentity {
            run_id: row.run_id,
            namespace_id: row.namespace_id,
            workflow_id: row.workflow_id,
            workflow_type: row.workflow_type,
            task_queue: row.task_queue,
            started_at: row.started_at,
        };
        let run_id = row.run_id;
        let journal = read_journal(&loaded.journal)?;
        let pending = read_pending(&loaded.pending)?;
        let requests = Requests::decode(&row.requests, row.run_id)
            .map_err(|error| format!("its requests cannot be read: {error}"))?;
        let known = match (self.away.remove(&run_id), row.wake_at) {
            (Some(known), _) => known,
            (None, WakeAt::Hot) => Work::MayBeInFlight.into(),
            // An attempt goes out only after the row is hot.
            (None, WakeAt::At(_) | WakeAt::Never) => Work::NoneInFlight.into(),
        };
        let stored = Stored { identity: &identity, journal: &journal, pending: &pending, requests };
        let run = Run::load(now, due, stored, known, &self.node.limits)
            .map_err(|error| error.to_string())?;
        self.insert(Entry::loaded(run, loaded.journal, row.wake_at));
        self.node.metrics.loaded();
        self.watch_incident(run_id);
        self.settle(run_id);
        Ok(())
    }

    /// A run whose records cannot be read stays out of memory; the rest goes on.
    fn park(&mut self, run_id: RunId, parked: Parked) {
        self.report_parked(run_id, &parked);
        self.parked.insert(run_id, parked);
    }

    fn report_parked(&self, run_id: RunId, parked: &Parked) {
        let reason = &parked.reason;
        tracing::error!(shard = %self.shard, %run_id, reason, "a run is parked");
        self.node.metrics.parked();
    }

    /// Parks a run that is in memory. What is staged of it cannot be taken back alone, so the lane
    /// loads again without it.
    pub(super) fn park_and_reload(&self, run_id: RunId, reason: String) -> LaneEnd {
        let workflow = self.runs.get(&run_id).map(|entry| {
            let identity = entry.run.identity();
            (identity.namespace_id, identity.workflow_id.clone())
        });
        let parked = Parked { workflow, reason };
        self.report_parked(run_id, &parked);
        self.node.park(self.shard, run_id, parked);
        self.reload()
    }

    /// The lane ends, and begins again with what is durable.
    pub(super) fn reload(&self) -> LaneEnd {
        LaneEnd::Reload { owned: self.owned, renewed: self.lease.last_renewed() }
    }

    /// After a load of the lane: lists the runs that have work in flight, and reads each once. While
    /// many are in memory it goes on slowly: of those that nobody claims most will leave.
    pub(super) fn recover(&mut self) {
        let Recovery::Next { after, not_before } = self.recovery else { return };
        let is_late = not_before <= self.node.env.boot();
        let has_room = self.runs.len() < RECOVERED && self.load_next.len() < HOT_PAGE as usize;
        if is_late || has_room {
            self.recovery = Recovery::Listing;
            self.list_hot(after);
        }
    }

    fn list_hot(&self, after: Option<RunId>) {
        let (reader, slots) = (self.reader(), self.slots.clone());
        self.node.env.spawn(async move {
            while let Some(reply) =
                reader.read("hot runs", |store| list_hot(store, slots.clone(), after)).await
            {
                match reply {
                    Ok(run_ids) => {
                        let last = run_ids.len() < HOT_PAGE as usize;
                        return reader.tell(Beside::Hot(run_ids, last)).await;
                    }
                    Err(error) => {
                        tracing::error!(%error, "hot runs cannot be listed");
                        reader.node.env.sleep(RETRY).await;
                    }
                }
            }
        });
    }

    pub(super) fn on_hot(&mut self, run_ids: Vec<RunId>, last: bool) {
        self.recovery = if last {
            Recovery::Done
        } else {
            let not_before = self.node.env.boot() + RECOVERY_PACE;
            Recovery::Next { after: run_ids.last().copied(), not_before }
        };
        for run_id in run_ids {
            if !self.runs.contains_key(&run_id) {
                self.load_due(run_id);
            }
        }
    }

    /// Asks for the deadlines of sleeping runs ahead of time. The horizon is raised before the read
    /// is sent: a run that goes cold meanwhile compares its deadline with the new one.
    pub(super) fn read_ahead(&mut self) {
        let boot = self.node.env.boot();
        if self.read_ahead_under_way || boot < self.next_read_ahead {
            return;
        }
        // All lanes of the node at the same moments, so that one statement serves them all.
        let periods = boot.as_secs() / READ_AHEAD.as_secs() + 1;
        self.next_read_ahead = Duration::from_secs(periods * READ_AHEAD.as_secs());
        self.read_ahead_under_way = true;
        let from = self.horizon;
        // The smallest value stands for hot runs, which recovery reads.
        let from = if from == Timestamp::MIN { Timestamp::from_micros(i64::MIN + 1) } else { from };
        let horizon = self.now() + HORIZON;
        if !SeededBug::RaiseHorizonLate.is_on() {
            self.horizon = horizon;
        }
        let (reader, asks, slots) = (self.reader(), self.due_asks.clone(), self.slots.clone());
        self.node.env.spawn(async move {
            let due = reader.ask_under_lease(|| {
                let (answer, due) = oneshot::channel();
                let ask = DueAsk { slots: slots.clone(), from, horizon, answer };
                let asks = asks.clone();
                Box::pin(async move {
                    asks.send(ask).await.ok()?;
                    due.await.ok()
                })
            });
            // Without an answer the node stops.
            if let Some(Some(due)) = due.await {
                reader.tell(Beside::Due(due)).await;
            }
        });
    }

    pub(super) fn on_due(&mut self, due: Vec<DueRun>) {
        self.read_ahead_under_way = false;
        if SeededBug::RaiseHorizonLate.is_on() {
            self.horizon = self.now() + HORIZON;
        }
        for DueRun { wake_at, run_id } in due {
            // A run in memory knows its deadline better.
            if !self.runs.contains_key(&run_id) && !self.parked.contains_key(&run_id) {
                self.deadlines.insert((wake_at, run_id));
            }
        }
    }
}

fn list_hot(
    store: &dyn Store,
    slots: Range<u16>,
    after: Option<RunId>,
) -> BoxFuture<'_, store::Result<Vec<RunId>>> {
    let page = store.hot_runs(slots, after, HOT_PAGE);
    if SeededBug::SwallowListing.is_on() {
        return Box::pin(async { Ok(page.await.unwrap_or_default()) });
    }
    page
}

fn read_journal(rows: &[Bytes]) -> Result<Vec<JournalRow>, String> {
    rows.iter()
        .enumerate()
        .map(|(seq, row)| {
            read_row(row).map_err(|error| format!("journal row {seq} cannot be read: {error}"))
        })
        .collect()
}

fn read_pending(rows: &[(u32, Bytes)]) -> Result<Vec<(u32, PendingActivity)>, String> {
    rows.iter()
        .map(|(number, data)| {
            PendingActivity::decode(data.as_ref())
                .map(|pending| (*number, pending))
                .map_err(|error| format!("pending activity {number} cannot be read: {error}"))
        })
        .collect()
}
