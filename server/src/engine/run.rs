//! A run: its state, its leases, and the two functions that change them.

use bytes::Bytes;
use onward_proto::{
    NamespaceId, RequestId, RunId, SeededBug, Timestamp,
    v1::{
        AcceptedRequest, HistoryEvent, JournalRow, Payload, PendingActivity, WorkflowOutcome,
        WorkflowStatus, WorkflowTaskFailureCause, history_event::Attributes,
    },
};
use prost::Message;

use super::{
    Decision, Effect, Input, LeaseChange, Limits, Rejection, RequestKind, Requests, SessionId,
    Unreadable, Wake,
    activity::{Activity, Attempt},
    close::Closed,
    deadlines::{Deadlines, Due},
    history::{HistorySize, Step, stamp, steps},
    start::Started,
    timer::{Timer, fired},
    workflow_task::{FailedTask, LastTask, Numbers, TaskLease},
};

/// What is known about the attempts of a run that is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Attempts may be out, and their workers may claim them.
    MayBeInFlight,
    /// Attempts may be out, but the time to claim them is over.
    Unclaimed,
    /// No attempt has gone out since its last one ended.
    NoneInFlight,
}

/// What is known of a run that is loaded, beside what the store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// About its attempts.
    pub work: Work,
    /// About its workflow task, when it has failed and the run has left memory since.
    pub failed_task: Option<FailedTask>,
}

impl From<Work> for Known {
    fn from(work: Work) -> Self {
        Self { work, failed_task: None }
    }
}

/// A run as the store has it.
#[derive(Debug)]
pub struct Stored<'a> {
    /// What names it.
    pub identity: &'a RunIdentity,
    /// Its journal, whole.
    pub journal: &'a [JournalRow],
    /// Its rows of `pending`, by activity number.
    pub pending: &'a [(u32, PendingActivity)],
    /// Its column: the window of accepted requests at its start, or at its close.
    pub requests: Requests,
}

/// What names a run and never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunIdentity {
    /// The run.
    pub run_id: RunId,
    /// Its namespace.
    pub namespace_id: NamespaceId,
    /// The caller's key.
    pub workflow_id: String,
    /// The registered name of the workflow function.
    pub workflow_type: String,
    /// Where its workflow tasks go.
    pub task_queue: String,
    /// When it started.
    pub started_at: Timestamp,
}

/// A run: the fold of its journal, and the leases of what is in flight.
#[derive(Debug)]
pub struct Run {
    pub(super) identity: RunIdentity,
    /// What it was started with.
    pub(super) started: Started,
    pub(super) status: WorkflowStatus,
    pub(super) closed: Option<Box<Closed>>,
    /// The number that the next event gets.
    pub(super) next_event_id: u64,
    /// The time of the last numbered event.
    pub(super) last_time: Timestamp,
    /// Encoded bytes of all records.
    pub(super) bytes: u64,
    /// Encoded bytes of the requests in its journal that no record tells of.
    pub(super) request_bytes: u64,
    /// Facts that no completed task has taken, in arrival order.
    pub(super) inbox: Vec<HistoryEvent>,
    pub(super) inbox_bytes: usize,
    /// Failed tasks since the last completed one, numbered.
    pub(super) head: Vec<HistoryEvent>,
    pub(super) last_task: Option<LastTask>,
    pub(super) numbers: Numbers,
    /// By number.
    pub(super) timers: Vec<Timer>,
    /// By number. Boxed, so that closing one of thousands moves pointers only.
    #[allow(clippy::vec_box)]
    pub(super) activities: Vec<Box<Activity>>,
    /// Activities that are ready, out, or may be out: all but those that back off.
    pub(super) active: u32,
    /// Of the run, its task, its timers and its activities.
    pub(super) deadlines: Deadlines,
    /// Signals accepted so far.
    pub(super) signals: u64,
    pub(super) cancel_requested: bool,
    pub(super) requests: Requests,
    pub(super) task: TaskLease,
}

impl Run {
    /// A run of which nothing is known yet but its name.
    pub(super) fn new(identity: RunIdentity, requests: Requests) -> Self {
        Self {
            identity,
            started: Started::default(),
            status: WorkflowStatus::Running,
            closed: None,
            next_event_id: 1,
            last_time: Timestamp::MIN,
            bytes: 0,
            request_bytes: 0,
            inbox: Vec::new(),
            inbox_bytes: 0,
            head: Vec::new(),
            last_task: None,
            numbers: Numbers::default(),
            timers: Vec::new(),
            activities: Vec::new(),
            active: 0,
            deadlines: Deadlines::default(),
            signals: 0,
            cancel_requested: false,
            requests,
            task: TaskLease::default(),
        }
    }

    /// Rebuilds a run from what the store has.
    ///
    /// Which attempts run is not known then, unless `known` tells: what may be out can be claimed
    /// for the reconnect grace, counted from `now`. What is due at `due` is not waited for.
    ///
    /// # Errors
    /// When the journal cannot be understood: the run is to be parked.
    pub fn load(
        now: Timestamp,
        due: Timestamp,
        stored: Stored<'_>,
        known: Known,
        limits: &Limits,
    ) -> Result<Self, Unreadable> {
        let mut run = Self::new(stored.identity.clone(), stored.requests.clone());
        for row in stored.journal {
            run.fold(&row.records)?;
            run.adopt(&row.requests);
        }
        if run.is_closed() {
            // The close has written the whole window, and the journal tells of more than that.
            run.requests = stored.requests;
        }
        if SeededBug::ForgetRequests.is_on() {
            run.requests = Requests::default();
        }
        if run.next_event_id == 1 {
            return Err(Unreadable::new("the journal is empty"));
        }
        for (number, row) in stored.pending {
            // A row of an activity that has closed would have gone with the closing event.
            let place = run.activity_place(*number).ok_or_else(|| {
                Unreadable::new(format!("activity {number} has a row but is not pending"))
            })?;
            run.change_activity(place, |activity| activity.row = Some(Box::new(row.clone())));
        }
        run.load_attempts(now, due, known.work, limits);
        if let Some(failed) = known.failed_task {
            run.restore_failed_task(failed);
        }
        run.requests.prune(now, limits);
        Ok(run)
    }

    /// Works out what an input means for this run, and changes nothing.
    ///
    /// True time is `now` or earlier. It goes on record, and deadlines are counted from it, so that
    /// none is early.
    ///
    /// # Errors
    /// Why the input is refused; nothing of it is to be recorded.
    pub fn decide(
        &self,
        now: Timestamp,
        input: &Input,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        match input {
            Input::Signal(signal) => self.decide_signal(now, signal, limits),
            Input::RequestCancel(stop) => self.decide_cancel_request(now, stop, limits),
            Input::Terminate(stop) => self.decide_terminate(now, stop, limits),
            Input::UseExisting { request_id } => self.decide_use_existing(now, *request_id, limits),
            Input::CompleteTask(completion) => self.decide_complete_task(now, completion, limits),
            Input::FailTask { task_id, cause, failure } => {
                self.decide_fail_task(now, *task_id, *cause, failure.as_ref())
            }
            Input::StartAttempt { number, worker, incarnation } => {
                self.decide_start_attempt(now, *number, worker, *incarnation)
            }
            Input::CompleteActivity { token, result, identity } => {
                self.decide_complete_activity(now, *token, result.as_ref(), identity, limits)
            }
            Input::FailActivity { token, failure, identity } => {
                self.decide_fail_activity(now, *token, failure, identity, limits)
            }
            Input::CancelledActivity { token, failure, identity } => {
                self.decide_cancelled_activity(now, *token, failure.as_ref(), identity, limits)
            }
            Input::Heartbeat { token, details } => {
                self.decide_heartbeat(now, *token, details.as_ref(), limits)
            }
            Input::ClaimAttempt { token, worker } => self.decide_claim(now, *token, worker),
            Input::SessionLost { session } => Ok(self.decide_session_lost(now, *session, limits)),
            Input::Deadline { due } => Ok(self.decide_deadline(now, *due, limits)),
        }
    }

    /// Folds a decision in. It stands already, so there is nothing to refuse.
    pub fn apply(&mut self, now: Timestamp, decision: &Decision, limits: &Limits) {
        self.fold(&decision.records).expect("a decision holds whole steps of known kinds");
        self.adopt(&decision.requests);
        for lease in &decision.leases {
            self.apply_lease(lease);
        }
        for (number, row) in &decision.pending {
            if let Some(place) = self.activity_place(*number) {
                self.change_activity(place, |activity| {
                    activity.row = row.clone().map(Box::new);
                    activity.unsaved_details = None;
                    activity.saved_at = now;
                });
            }
        }
        self.requests.prune(now, limits);
    }

    /// The session's workflow task goes elsewhere; its attempts may be claimed for a while.
    fn decide_session_lost(&self, now: Timestamp, session: SessionId, limits: &Limits) -> Decision {
        let mut decision = match &self.task.open {
            Some(open) if open.worker.session == session => {
                self.fail_task(now, open, WorkflowTaskFailureCause::WorkerLost, None)
            }
            Some(_) | None => Decision::default(),
        };
        if self.uses_session(session) {
            let claimable_until = now.plus_micros(limits.reconnect_grace_us);
            decision.leases.push(LeaseChange::SessionLost { session, claimable_until });
        }
        decision
    }

    /// Whether the loss of this session means anything to the run.
    pub fn uses_session(&self, session: SessionId) -> bool {
        let runs_there = |activity: &Activity| matches!(&activity.attempt, Attempt::Running(running) if running.session == session);
        self.task.sticky == Some(session)
            || self.task.open.as_ref().is_some_and(|open| open.worker.session == session)
            || self.activities.iter().any(|activity| runs_there(activity))
    }

    /// What has become due.
    fn decide_deadline(&self, now: Timestamp, due: Timestamp, limits: &Limits) -> Decision {
        if self.is_closed() {
            return Decision::default();
        }
        if let Some((_, kind)) = self.workflow_timeout().filter(|(at, _)| *at <= due) {
            return self.decide_timed_out(now, kind);
        }
        let mut decision = match &self.task.open {
            Some(open) if open.deadline <= due => {
                self.fail_task(now, open, WorkflowTaskFailureCause::TimedOut, None)
            }
            Some(_) | None => Decision::default(),
        };
        let failed = decision.records.len();
        for what in self.deadlines.due(due) {
            match what {
                Due::Timer(number) => decision.records.push(fired(now, number)),
                Due::Activity(number) => {
                    self.expire_activity(now, due, number, limits, &mut decision);
                }
                // The run's own is not due, and those of its task stand around the facts.
                Due::Workflow | Due::Task | Due::TaskBackoff => {}
            }
        }
        if self.task.not_before.is_some_and(|time| time <= due) {
            decision.leases.push(LeaseChange::TaskBackoffOver);
            decision.effects.push(Effect::OfferTask);
        } else if decision.records.len() > failed {
            self.offer_task_for_facts(&mut decision);
        }
        decision
    }

    /// Folds records in, step by step.
    fn fold(&mut self, records: &[HistoryEvent]) -> Result<(), Unreadable> {
        for step in steps(records) {
            let step = step?;
            if self.is_closed() {
                return Err(Unreadable::new("a record behind the closing event"));
            }
            if matches!(step, Step::Started(_)) != (self.next_event_id == 1) {
                return Err(Unreadable::new("the start is not the first record"));
            }
            match step {
                Step::Started(event) | Step::Closed(event) => {
                    for fact in std::mem::take(&mut self.inbox) {
                        self.number(fact.time_us);
                    }
                    self.number(event.time_us);
                    self.fold_event(event);
                }
                Step::Arrived(fact) => {
                    self.fold_event(fact);
                    self.inbox_bytes += fact.encoded_len();
                    self.inbox.push(fact.clone());
                }
                Step::Failed(event) => {
                    let mut failed = event.clone();
                    let mut last_time_us = self.last_time.as_micros();
                    stamp(&mut failed, &mut self.next_event_id, &mut last_time_us);
                    self.last_time = Timestamp::from_micros(last_time_us);
                    self.fold_event(event);
                    self.head.push(failed);
                }
                Step::Completed { event, completed, commands } => {
                    let taken = completed.facts_taken as usize;
                    if taken > self.inbox.len() {
                        return Err(Unreadable::new("a completed task took facts that never came"));
                    }
                    Step::remove_late(commands, &mut self.inbox, taken, |fact| fact);
                    let numbered = if step.closes() { self.inbox.len() } else { taken };
                    for fact in 0..numbered {
                        self.number(self.inbox[fact].time_us);
                    }
                    self.inbox.drain(..numbered);
                    self.inbox_bytes = self.inbox.iter().map(Message::encoded_len).sum();
                    if self.inbox.is_empty() {
                        // Most runs sleep with an empty inbox.
                        self.inbox = Vec::new();
                    }
                    for event in std::iter::once(event).chain(commands) {
                        self.number(event.time_us);
                        self.fold_event(event);
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts an event that gets its number now. Order does not matter: the time of the last of
    /// several events is the latest of their times.
    fn number(&mut self, time_us: i64) {
        self.next_event_id += 1;
        self.last_time = self.last_time.max(Timestamp::from_micros(time_us));
    }

    /// Folds what a record says in. It has happened already, so there is nothing to refuse.
    fn fold_event(&mut self, event: &HistoryEvent) {
        self.bytes += event.encoded_len() as u64;
        let at = Timestamp::from_micros(event.time_us);
        let Some(attributes) = &event.attributes else { return };
        match attributes {
            Attributes::WorkflowExecutionStarted(started) => {
                self.started = Started::new(started);
                let timeout = self.workflow_timeout().map(|(at, _)| at);
                self.deadlines.change(Due::Workflow, None, timeout);
                self.accept(at, RequestKind::Start, &started.request_id);
            }
            Attributes::SignalReceived(signal) => {
                self.signals += 1;
                self.accept(at, RequestKind::Signal, &signal.request_id);
            }
            Attributes::WorkflowExecutionCancelRequested(request) => {
                self.cancel_requested = true;
                self.accept(at, RequestKind::Cancel, &request.request_id);
            }
            Attributes::WorkflowTaskCompleted(completed) => self.complete_task(completed),
            // Its event stands in the head.
            Attributes::WorkflowTaskFailed(_) => {}
            Attributes::ActivityScheduled(scheduled) => {
                self.numbers.take_call(scheduled.number);
                self.schedule_activity(scheduled);
            }
            Attributes::ActivityCancelRequested(cancel) => self.cancel_activity(cancel.number),
            Attributes::ActivityCompleted(closed) => self.end_activity(closed.number),
            Attributes::ActivityFailed(closed) => self.end_activity(closed.number),
            Attributes::ActivityTimedOut(closed) => self.end_activity(closed.number),
            Attributes::ActivityCancelled(closed) => self.end_activity(closed.number),
            Attributes::TimerStarted(timer) => {
                self.numbers.take_call(timer.number);
                self.start_timer(timer);
            }
            Attributes::TimerFired(fired) => self.end_timer(fired.number),
            Attributes::TimerCancelled(cancelled) => self.end_timer(cancelled.number),
            Attributes::MarkerRecorded(marker) => {
                self.numbers.take(marker.number);
            }
            Attributes::WorkflowExecutionTerminated(terminated) => {
                self.accept(at, RequestKind::Terminate, &terminated.request_id);
                self.close(at, attributes);
            }
            Attributes::WorkflowExecutionCompleted(_)
            | Attributes::WorkflowExecutionFailed(_)
            | Attributes::WorkflowExecutionCancelled(_)
            | Attributes::WorkflowExecutionTimedOut(_) => self.close(at, attributes),
        }
    }

    /// Remembers requests that no record tells of.
    fn adopt(&mut self, requests: &[AcceptedRequest]) {
        for request in requests {
            self.request_bytes += request.encoded_len() as u64;
            self.requests.adopt(request);
        }
    }

    /// Remembers the request of a record.
    fn accept(&mut self, at: Timestamp, kind: RequestKind, request_id: &[u8]) {
        let answer = self.answer_to(request_id);
        if let Ok(request_id) = RequestId::from_wire(request_id) {
            self.requests.accept(at, kind, request_id, answer);
        }
    }

    /// Folds in what no record tells.
    fn apply_lease(&mut self, lease: &LeaseChange) {
        match lease {
            LeaseChange::TaskVoid => self.change_task(|task| {
                task.open = None;
                task.repeat = true;
            }),
            LeaseChange::TaskFailed { cause, failure, not_before, identity } => {
                self.task_failed(*cause, failure.clone(), *not_before, identity.clone());
            }
            LeaseChange::TaskBackoffOver => self.change_task(|task| task.not_before = None),
            LeaseChange::Sticky(session) => self.task.sticky = Some(*session),
            LeaseChange::SessionLost { session, claimable_until } => {
                if self.task.sticky == Some(*session) {
                    self.task.sticky = None;
                }
                self.lose_attempts(*session, *claimable_until);
            }
            LeaseChange::Attempt { number, attempt } => {
                if let Some(place) = self.activity_place(*number) {
                    self.change_activity(place, |activity| activity.attempt = attempt.clone());
                }
            }
            LeaseChange::Heartbeat { number, at, details } => {
                if let Some(place) = self.activity_place(*number) {
                    self.change_activity(place, |activity| {
                        if let Attempt::Running(running) = &mut activity.attempt {
                            running.sign_at = running.sign_at.max(*at);
                        }
                        if details.is_some() {
                            activity.unsaved_details.clone_from(details);
                        }
                    });
                }
            }
        }
    }

    /// Whether the run only waits, for workers or for a deadline, so that memory can do without it
    /// until then. Tells what the load that brings it back has to know.
    pub fn can_leave(&self) -> Option<Known> {
        if self.task.open.is_some() || self.task.repeat {
            return None;
        }
        let known = |work| Known { work, failed_task: self.failed_task() };
        let mut unclaimed = false;
        for activity in &self.activities {
            unclaimed |= activity.can_leave()? == Work::Unclaimed;
        }
        if !unclaimed {
            return Some(known(Work::NoneInFlight));
        }
        // A load with this takes every attempt for one that may be out: if one has a limit to its
        // wait for a worker, that would count anew with each load.
        let counts_anew = self.activities.iter().any(|each| each.schedule_to_start().is_some());
        (!counts_anew).then_some(known(Work::Unclaimed))
    }

    /// When the run needs attention without an input.
    pub fn wake(&self) -> Wake {
        if self.is_closed() {
            return Wake::Never;
        }
        let hot = self.task.open.is_some() || self.owes_task() || self.active > 0;
        match (hot, self.deadlines.next()) {
            (true, next) => Wake::Hot(next),
            (false, Some(next)) => Wake::Cold(next),
            (false, None) => Wake::Never,
        }
    }

    /// What names the run.
    pub fn identity(&self) -> &RunIdentity {
        &self.identity
    }

    /// Its status.
    pub fn status(&self) -> WorkflowStatus {
        self.status
    }

    /// When it closed.
    pub fn closed_at(&self) -> Option<Timestamp> {
        self.closed.as_ref().map(|closed| closed.at)
    }

    /// How it ended.
    pub fn outcome(&self) -> Option<WorkflowOutcome> {
        self.closed.as_ref().map(|closed| closed.outcome.clone())
    }

    /// The window of accepted requests of its workflow id.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Length and size of its history.
    pub fn history_size(&self) -> HistorySize {
        HistorySize { events: self.next_event_id - 1, bytes: self.bytes }
    }

    /// Bytes of memory, roughly.
    pub fn memory_bytes(&self) -> usize {
        let activities: usize =
            self.activities.iter().map(|activity| activity.memory_bytes()).sum();
        let head: usize =
            self.head.iter().map(|event| size_of::<HistoryEvent>() + event.encoded_len()).sum();
        let closed = self.closed.as_ref();
        let closed = closed.map_or(0, |closed| size_of::<Closed>() + closed.outcome.encoded_len());
        size_of::<Self>()
            + self.started.heap_bytes()
            + self.identity.workflow_id.len()
            + self.identity.workflow_type.len()
            + self.identity.task_queue.len()
            + self.inbox.capacity() * size_of::<HistoryEvent>()
            + self.inbox_bytes * 2
            + head
            + self.task.heap_bytes()
            + self.timers.capacity() * size_of::<Timer>()
            + self.deadlines.heap_bytes()
            + activities
            + closed
            + self.requests.memory_bytes()
    }
}

/// A payload with bytes of its own, for what stays in memory: those of a message are a part of the
/// whole buffer that it came in, and would keep that in memory too.
pub(super) fn detached(payload: &Payload) -> Payload {
    let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
    Payload {
        content_type: payload.content_type.clone(),
        data: copy(&payload.data),
        metadata: payload.metadata.iter().map(|(key, value)| (key.clone(), copy(value))).collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::{
        Command, Failure, HistoryEvent, Payload, PendingActivity, WorkflowTaskFailureCause,
        command::Kind,
    };
    use prost::Message as _;

    use super::{
        super::{activity::Activity, deadlines::Due, fixture::*, timer::Timer, *},
        Closed, Timestamp,
    };

    /// Runs sleep by the million, so what each takes is worth a test.
    #[test]
    fn a_run_that_sleeps_on_a_timer_is_small() {
        let start = Start {
            workflow_id: "order-00000000000042".into(),
            workflow_type: "ship_order_with_care".into(),
            ..start_request()
        };
        let story = history_of(&start, Limits::default()).task([timer(1, secs(5))]);
        assert!(size_of::<Run>() <= 528, "{}", size_of::<Run>());
        let heap = story.run.memory_bytes() - size_of::<Run>();
        assert!(heap <= 200, "{heap}");
    }

    /// A decoded payload is a part of the buffer that its message came in.
    #[test]
    fn a_run_that_waits_keeps_no_buffer_of_a_message_alive() {
        let message = bytes::Bytes::from(vec![b'1'; 8 << 10]);
        let part = || Payload { data: message.slice(..2), ..payload("") };
        let run = {
            let start = Start { arguments: vec![part()], ..start_request() };
            let mut call = call(1);
            let Some(Kind::ScheduleActivity(schedule)) = &mut call.kind else { panic!() };
            schedule.arguments = vec![part()];
            let story = history_of(&start, Limits::default()).task([call]).dispatched(1);
            let (token, details) = (story.tokens[&1], Some(part()));
            story.when(&Input::Heartbeat { token, details }).broke(1, "Flaky").run
        };
        assert_eq!(run.started.event().arguments[0].data, "11");
        assert_eq!(run.activities[0].details().unwrap().data, "11");
        assert!(message.is_unique());
    }

    /// What may stay in memory is judged by this estimate.
    #[test]
    fn all_that_a_run_holds_counts_in_the_estimate_of_its_memory() {
        let large = || "x".repeat(10_000);
        let begun = |start: Start| history_of(&start, Limits::default());
        let named = |name: &str| {
            let [workflow_id, workflow_type, task_queue] = [(); 3].map(|()| name.to_owned());
            begun(Start { workflow_id, workflow_type, task_queue, ..start_request() }).task([])
        };
        let arguments = |text| Start { arguments: vec![payload(text)], ..start_request() };
        let idle = || history().task([]);
        let signals = |mut story: Story| {
            (2_000..2_100).for_each(|n| story.put(&signal("s", request(n))));
            story
        };
        let requests = |mut story: Story| {
            let use_existing = |n| Input::UseExisting { request_id: request(n) };
            (2_000..2_100).for_each(|n| story.put(&use_existing(n)));
            story
        };
        let waits = |commands: Vec<Command>| {
            let story = history().handed_out();
            let completion = story.completion(commands);
            story.when(&Input::CompleteTask(completion))
        };
        let called = || {
            let mut call = call(1);
            let Some(Kind::ScheduleActivity(schedule)) = &mut call.kind else { panic!() };
            schedule.arguments = vec![payload(&"x".repeat(1_000)); 10];
            waits(vec![call])
        };
        let failed = |message: String| {
            let failure = Some(Failure { message, ..failure("Bad") });
            let story = history().handed_out();
            let (task_id, cause) = (story.newest_task(), WorkflowTaskFailureCause::Panic);
            story.when(&Input::FailTask { task_id, cause, failure })
        };
        let saved = || called().dispatched(1).heartbeat(1, Some("one"));
        let message = idle().signal(&"x".repeat(1_000));
        let message_bytes = message.run.inbox[0].encoded_len();
        let grown =
            |without: Story, with: Story| with.run.memory_bytes() - without.run.memory_bytes();
        for (what, grown, held) in [
            ("its names", grown(named(""), named(&"x".repeat(500))), 1_500),
            // An event is larger than its bytes.
            ("its start", grown(begun(arguments("")), begun(arguments(&large()))), 20_000),
            (
                "its arguments",
                grown(begun(arguments("")).task([]), begun(arguments(&large())).task([])),
                10_000,
            ),
            ("a message", grown(idle(), message), size_of::<HistoryEvent>() + 2 * message_bytes),
            ("messages", grown(idle(), signals(idle())), 100 * size_of::<HistoryEvent>()),
            (
                "timers",
                grown(idle(), waits((1..=100).map(|number| timer(number, secs(1))).collect())),
                100 * (size_of::<Timer>() + size_of::<(Timestamp, Due)>()),
            ),
            ("requests", grown(idle(), requests(idle())), 100 * 80),
            // Its names and the places of what it holds are estimated.
            ("an activity", grown(idle(), history().task([call(1)])), size_of::<Activity>() + 100),
            ("a large activity", grown(idle(), called()), size_of::<Activity>() + 10_000),
            (
                "what an attempt saved",
                grown(called(), called().dispatched(1).heartbeat(1, Some(&large()))),
                size_of::<PendingActivity>() + 10_000,
            ),
            (
                "what an attempt will save",
                grown(saved().heartbeat(1, Some("")), saved().heartbeat(1, Some(&large()))),
                10_000,
            ),
            ("a failed task", grown(failed(String::new()), failed(large())), 20_000),
            (
                "a failed task on record",
                grown(failed(String::new()).reload(), failed(large()).reload()),
                10_000,
            ),
            (
                "its outcome",
                grown(idle(), history().task([complete(&large())])),
                size_of::<Closed>() + 10_000,
            ),
        ] {
            assert!((held..2 * held + 500).contains(&grown), "{what}: {held} are {grown} bytes");
        }
    }

    #[test]
    fn what_has_left_the_window_of_requests_leaves_memory_with_the_next_input() {
        let day = Limits::default().request_window_us;
        for input in [
            signal("a", request(9)),
            Input::UseExisting { request_id: request(9) },
            Input::Deadline { due: history().now },
        ] {
            let story = history().task([]).after(day + 1);
            assert_eq!(story.run.requests().len(), 1);
            let story = story.when(&input);
            assert_eq!(story.run.requests().len(), story.last.unwrap().answer.iter().count());
        }
    }

    #[test]
    fn a_run_uses_the_sessions_of_its_task_of_its_attempts_and_of_its_last_task() {
        let used = |story: &Story| -> Vec<u64> {
            (0..9).filter(|&n| story.run.uses_session(SessionId(n))).collect()
        };
        let story = history();
        assert!(used(&story).is_empty());
        let story = story.handed_out_to(4);
        assert_eq!(used(&story), [4], "it has the task");
        let story = story.completed([call(1)]);
        assert_eq!(used(&story), [1], "it completed the task");
        let story = story.dispatched_to(1, 2).signal("a").handed_out_to(3);
        assert_eq!(used(&story), [1, 2, 3]);
        let story = story.session_lost(9).then_effects("").session_lost(1).then_effects("");
        assert_eq!(used(&story), [2, 3]);
        // Its attempt may be claimed, and is until then that session's.
        let story = story.session_lost(2).then_effects("").session_lost(3);
        assert_eq!(used(&story.then_effects("offer-task")), [2]);
    }
}
