//! Workflow tasks: "advance this run".
//!
//! ```text
//! nothing to do ── a fact arrives ──▶ owed ── hand-out ──▶ in flight ── completed ──▶ nothing to do
//!                                     ▲  ▲                  │  │                       or owed
//!                                     │  └── backing off ◀──┘  │ failed, lost, too late
//!                                     └── void ◀───────────────┘ a close with signals unseen
//! ```
//!
//! At most one is in flight. It takes the whole inbox as it stands at hand-out; nothing is written
//! until it completes. A completion is recorded as one step: the task, one event for each command,
//! then the facts that follow from refused commands.

use onward_proto::{
    Timestamp,
    v1::{
        self, ActivityCancelRequested, ActivityScheduled, CancelReason, Command, Failure,
        HistoryEvent, Limit, LocalActivityFailureCause, MarkerKind, MarkerRecorded, RecordMarker,
        ScheduleActivity, StartTimer, TimerCancelled, TimerStarted, WorkflowExecutionCancelled,
        WorkflowExecutionCompleted, WorkflowExecutionFailed, WorkflowTaskCompleted,
        WorkflowTaskFailed, WorkflowTaskFailureCause, command::Kind, history_event::Attributes,
    },
};

use super::{
    Decision, Effect, HandOut, LeaseChange, Limits, Rejection, Run, SessionId, TaskCompletion,
    TaskId, Worker,
    activity::{Attempt, cancelled, closed_activity, refused, remove_row},
    close::broken_limit,
    history::{is_firing_of, replay_order, stamp},
    limits::{
        check_duration, check_failure, check_id, check_payloads, check_text, cut_failure, harmless,
        limit, record,
    },
    timer::fired,
};

/// The wait after a failed task; it doubles with each further one.
const FIRST_BACKOFF_US: i64 = 1_000_000;
/// The longest wait after a failed task.
const MAX_BACKOFF_US: i64 = 100_000_000;
/// Bytes of a task's failure that are kept.
const FAILURE_BYTES: u64 = 64 << 10;

/// A workflow task that waits for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskOffer<'a> {
    /// The queue that it waits in.
    pub task_queue: &'a str,
    /// The session that ran the run's last task: it has the run in its cache.
    pub sticky: Option<SessionId>,
    /// Whether the run has completed a task before.
    pub in_progress: bool,
    /// Since when it is owed.
    pub since: Timestamp,
}

/// The workflow task that is in flight.
#[derive(Debug, Clone, Copy)]
pub struct OpenTask<'a> {
    /// The task.
    pub task_id: TaskId,
    /// The session that holds it.
    pub session: SessionId,
    /// What `ctx.now()` returns in it.
    pub handed_out_at: Timestamp,
    /// From 1; failed hand-outs count.
    pub attempt: u32,
    /// When it fails unless there is a sign of life before.
    pub deadline: Timestamp,
    run: &'a Run,
    taken: usize,
}

impl OpenTask<'_> {
    /// What the task was handed out with: the same events, in the same order.
    pub fn events(&self) -> Vec<HistoryEvent> {
        self.run.events_behind_last_task(self.taken).0
    }

    /// The task that `events` follow; `None` for the first.
    pub fn follows(&self) -> Option<TaskId> {
        self.run.last_task.map(|task| task.task_id)
    }

    /// The event id behind the last of `events`.
    pub fn next_event_id(&self) -> u64 {
        self.run.next_event_id + self.taken as u64
    }
}

/// Where a run's workflow task stands. All of it is a lease, but for the recorded causes.
#[derive(Debug, Default)]
pub(super) struct TaskLease {
    /// The task in flight.
    pub(super) open: Option<Box<Open>>,
    /// The next task repeats a void one, and holds signals.
    pub(super) repeat: bool,
    /// Failed hand-outs since the last completed task.
    pub(super) failures: u32,
    /// When the next hand-out may be, after a failure.
    pub(super) not_before: Option<Timestamp>,
    /// The last failure.
    pub(super) last_failure: Option<Box<LastFailure>>,
    /// The session that ran the last task.
    pub(super) sticky: Option<SessionId>,
    /// Durable: causes on record since the last completed task.
    pub(super) recorded: Vec<WorkflowTaskFailureCause>,
}

/// The task in flight.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) task_id: TaskId,
    pub(super) worker: Worker,
    pub(super) handed_out_at: Timestamp,
    /// How many facts it took: the oldest of the inbox.
    pub(super) taken: usize,
    pub(super) deadline: Timestamp,
    /// New signals wait until it ends.
    pub(super) holds_signals: bool,
}

/// How the last task failed.
#[derive(Debug)]
pub(super) struct LastFailure {
    pub(super) cause: WorkflowTaskFailureCause,
    pub(super) failure: Option<Box<Failure>>,
    pub(super) identity: String,
}

/// The last completed task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LastTask {
    pub(super) task_id: TaskId,
    pub(super) handed_out_at: Timestamp,
    pub(super) more: bool,
}

/// Which numbers of commands are used. Calls take ascending numbers; the marker of a local
/// activity comes later than its number was taken, so lower ones may be free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    last_call: u32,
    greatest: u32,
    /// Ranges below `greatest` that are not used, both ends included, ascending.
    free: Vec<(u32, u32)>,
}

impl Numbers {
    /// Uses the number of a call. False if it is not greater than those of the calls before.
    pub(super) fn take_call(&mut self, number: u32) -> bool {
        if number <= self.last_call || !self.take(number) {
            return false;
        }
        self.last_call = number;
        true
    }

    /// Uses a number. False if it is used already.
    pub(super) fn take(&mut self, number: u32) -> bool {
        if number > self.greatest {
            if number > self.greatest + 1 {
                self.free.push((self.greatest + 1, number - 1));
            }
            self.greatest = number;
            return true;
        }
        let Some(place) = self.free.iter().position(|&(from, to)| (from..=to).contains(&number))
        else {
            return false;
        };
        let (from, to) = self.free.remove(place);
        if number < to {
            self.free.insert(place, (number + 1, to));
        }
        if number > from {
            self.free.insert(place, (from, number - 1));
        }
        true
    }
}

impl Run {
    /// Whether there is something to do for workflow code that no task in flight has.
    pub(super) fn owes_task(&self) -> bool {
        !self.is_closed()
            && self.task.open.is_none()
            && (!self.inbox.is_empty() || self.last_task.is_none_or(|task| task.more))
    }

    /// The workflow task that waits for a worker: owed, not in flight, and not backing off.
    pub fn task_offer(&self, now: Timestamp) -> Option<TaskOffer<'_>> {
        if !self.owes_task() || self.task.not_before.is_some_and(|time| time > now) {
            return None;
        }
        let since = match self.inbox.first() {
            Some(fact) => Timestamp::from_micros(fact.time_us),
            None => self.last_time,
        };
        Some(TaskOffer {
            task_queue: &self.identity.task_queue,
            sticky: self.task.sticky,
            in_progress: self.last_task.is_some(),
            since,
        })
    }

    /// Hands the workflow task out: it takes the whole inbox. `None` when none is owed, one is in
    /// flight, or it backs off.
    pub fn hand_out(
        &mut self,
        now: Timestamp,
        task_id: TaskId,
        worker: &Worker,
        limits: &Limits,
    ) -> Option<HandOut> {
        self.task_offer(now)?;
        let handed_out_at = match self.last_task {
            Some(last) => now.max(last.handed_out_at),
            None => now,
        };
        let taken = self.inbox.len();
        self.task.open = Some(Box::new(Open {
            task_id,
            worker: worker.clone(),
            handed_out_at,
            taken,
            deadline: now.plus_micros(limits.task_deadline_us),
            holds_signals: std::mem::take(&mut self.task.repeat),
        }));
        self.task.not_before = None;
        let (events, next_event_id) = self.events_behind_last_task(taken);
        Some(HandOut {
            events,
            follows: self.last_task.map(|task| task.task_id),
            handed_out_at,
            attempt: self.task.failures + 1,
            next_event_id,
        })
    }

    /// A worker's sign of life for its open task. False when it is not the open one.
    pub fn renew_task(&mut self, now: Timestamp, task_id: TaskId, limits: &Limits) -> bool {
        match &mut self.task.open {
            Some(open) if open.task_id == task_id => {
                let deadline = now.plus_micros(limits.task_deadline_us);
                open.deadline = open.deadline.max(deadline);
                true
            }
            Some(_) | None => false,
        }
    }

    /// The workflow task that is in flight.
    pub fn open_task(&self) -> Option<OpenTask<'_>> {
        let open = self.task.open.as_ref()?;
        Some(OpenTask {
            task_id: open.task_id,
            session: open.worker.session,
            handed_out_at: open.handed_out_at,
            attempt: self.task.failures + 1,
            deadline: open.deadline,
            run: self,
            taken: open.taken,
        })
    }

    /// Whether new signals have to wait until the open task ends: it repeats one that wanted to
    /// close the run without having seen all signals.
    pub fn holds_signals(&self) -> bool {
        self.task.open.as_ref().is_some_and(|open| open.holds_signals)
    }

    /// Since when a fact waits that the open task has not taken.
    pub fn facts_waiting_since(&self) -> Option<Timestamp> {
        let taken = self.task.open.as_ref()?.taken;
        self.inbox.get(taken).map(|fact| Timestamp::from_micros(fact.time_us))
    }

    /// The events behind the last completed task with those of the oldest `taken` facts, and the
    /// number that follows them.
    fn events_behind_last_task(&self, taken: usize) -> (Vec<HistoryEvent>, u64) {
        let first = self.last_task.is_none();
        let mut events = Vec::with_capacity(usize::from(first) + self.head.len() + taken);
        if first {
            let mut started = record(
                self.identity.started_at,
                Attributes::WorkflowExecutionStarted((*self.started).clone()),
            );
            started.event_id = 1;
            events.push(started);
        }
        events.extend_from_slice(&self.head);
        let mut next_event_id = self.next_event_id;
        let mut last_time_us = self.last_time.as_micros();
        for fact in replay_order(&self.inbox[..taken]) {
            let mut event = fact.clone();
            stamp(&mut event, &mut next_event_id, &mut last_time_us);
            events.push(event);
        }
        (events, next_event_id)
    }

    /// Offers the workflow task if these facts make it owed.
    pub(super) fn offer_task_for_facts(&self, _now: Timestamp, decision: &mut Decision) {
        // Owed before means offered before, or backing off.
        if self.task.open.is_none() && self.task.not_before.is_none() && !self.owes_task() {
            decision.effects.push(Effect::OfferTask);
        }
    }

    /// The same, when the decision may hold none.
    pub(super) fn offer_task_for_records(&self, now: Timestamp, decision: &mut Decision) {
        if !decision.records.is_empty() {
            self.offer_task_for_facts(now, decision);
        }
    }

    pub(super) fn decide_complete_task(
        &self,
        now: Timestamp,
        completion: &TaskCompletion,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let open = self.the_open_task(completion.task_id)?;
        let untaken = &self.inbox[open.taken..];
        let closes = completion.commands.last().is_some_and(is_close);

        let is_signal =
            |fact: &HistoryEvent| matches!(fact.attributes, Some(Attributes::SignalReceived(_)));
        if closes && untaken.iter().any(is_signal) {
            let session = completion.worker.session;
            return Ok(Decision {
                effects: vec![
                    Effect::TaskVoid { task_id: open.task_id, session },
                    Effect::OfferTask,
                ],
                leases: vec![LeaseChange::TaskVoid],
                ..Decision::default()
            });
        }
        // A run that ends in order may do so, however long it is.
        if !closes && let Some(limit) = self.history_limit(completion.commands.len() + 1, limits) {
            return Ok(self.decide_full(now, limit));
        }

        let mut commands =
            Commands::new(self, now, open, closes, completion.commands.len(), limits);
        for (place, command) in completion.commands.iter().enumerate() {
            let last = place + 1 == completion.commands.len();
            if let Err(reason) = commands.add(command, last) {
                let failure = Failure {
                    kind: "onward::BadCommands".into(),
                    message: format!("command {place}: {reason}"),
                    ..Failure::default()
                };
                let cause = WorkflowTaskFailureCause::BadCommands;
                return Ok(self.fail_task(now, open, cause, Some(failure)));
            }
        }
        Ok(commands.finish(completion))
    }

    pub(super) fn decide_fail_task(
        &self,
        now: Timestamp,
        task_id: TaskId,
        cause: WorkflowTaskFailureCause,
        failure: Option<&Failure>,
    ) -> Result<Decision, Rejection> {
        let open = self.the_open_task(task_id)?;
        Ok(self.fail_task(now, open, cause, failure.cloned()))
    }

    /// The open task, if that is its id.
    fn the_open_task(&self, task_id: TaskId) -> Result<&Open, Rejection> {
        match &self.task.open {
            Some(open) if open.task_id == task_id => Ok(open),
            Some(_) | None if self.last_task.is_some_and(|last| last.task_id == task_id) => {
                Err(Rejection::Recorded)
            }
            Some(_) | None => Err(Rejection::Stale),
        }
    }

    /// The open task has failed: it goes out again, the first time at once if its worker vanished,
    /// else after a wait that doubles. Each distinct cause is recorded once.
    pub(super) fn fail_task(
        &self,
        now: Timestamp,
        open: &Open,
        cause: WorkflowTaskFailureCause,
        failure: Option<Failure>,
    ) -> Decision {
        let mut decision = Decision::default();
        let failure = failure.map(|failure| cut_failure(&failure, FAILURE_BYTES));
        if !self.task.recorded.contains(&cause) {
            decision.records.push(record(
                now,
                Attributes::WorkflowTaskFailed(WorkflowTaskFailed {
                    task_id: Some(open.task_id.to_wire()),
                    cause: cause.into(),
                    failure: failure.clone(),
                    build_id: open.worker.build_id.clone(),
                    identity: open.worker.identity.clone(),
                }),
            ));
        }
        let vanished = matches!(
            cause,
            WorkflowTaskFailureCause::WorkerLost | WorkflowTaskFailureCause::TimedOut
        );
        let not_before = if vanished && self.task.failures == 0 {
            decision.effects.push(Effect::OfferTask);
            None
        } else {
            let doublings = self.task.failures.min(20);
            let wait = FIRST_BACKOFF_US.saturating_mul(1 << doublings).min(MAX_BACKOFF_US);
            Some(now.plus_micros(wait))
        };
        decision.leases.push(LeaseChange::TaskFailed {
            cause,
            failure: failure.map(Box::new),
            not_before,
            identity: open.worker.identity.clone(),
        });
        decision
    }

    /// Folds a completed task in.
    pub(super) fn complete_task(&mut self, completed: &WorkflowTaskCompleted) {
        if self.last_task.is_none() {
            // The start is not sent again from memory; only what `describe` shows is kept.
            self.started.workflow_id = String::new();
            self.started.workflow_type = String::new();
            self.started.task_queue = String::new();
            self.started.seed = bytes::Bytes::new();
        }
        let task_id = completed.task_id.unwrap_or_default();
        self.last_task = Some(LastTask {
            task_id: TaskId::from_wire(&task_id),
            handed_out_at: Timestamp::from_micros(completed.handed_out_at_us),
            more: completed.more,
        });
        self.head = Vec::new();
        self.task = TaskLease { sticky: self.task.sticky, ..TaskLease::default() };
    }

    /// Folds what no record tells about the task in.
    pub(super) fn task_failed(
        &mut self,
        cause: WorkflowTaskFailureCause,
        failure: Option<Box<Failure>>,
        not_before: Option<Timestamp>,
        identity: String,
    ) {
        self.task.open = None;
        self.task.failures = self.task.failures.saturating_add(1);
        self.task.not_before = not_before;
        self.task.last_failure = Some(Box::new(LastFailure { cause, failure, identity }));
        // The failure evicted the run from that worker's cache.
        self.task.sticky = None;
    }
}

/// Whether a command ends the run.
fn is_close(command: &Command) -> bool {
    matches!(
        command.kind,
        Some(Kind::CompleteWorkflow(_) | Kind::FailWorkflow(_) | Kind::CancelWorkflow(_))
    )
}

/// Works a completion's commands out, one by one.
struct Commands<'a> {
    run: &'a Run,
    now: Timestamp,
    open: &'a Open,
    /// The last command closes the run.
    closes: bool,
    limits: &'a Limits,
    /// The time that the events of the commands will have.
    event_time: Timestamp,
    numbers: Numbers,
    /// The task's own event, then those of the commands.
    records: Vec<HistoryEvent>,
    /// What follows from them: closings of refused and of cancelled calls.
    facts: Vec<HistoryEvent>,
    /// Activities called here, ascending.
    scheduled: Vec<u32>,
    /// Activities called here whose command broke a limit, ascending.
    refused: Vec<u32>,
    /// Activities cancelled here.
    cancelled: Vec<u32>,
    /// Timers started here, ascending.
    timers: Vec<u32>,
    /// Timers cancelled here.
    cancelled_timers: Vec<u32>,
    /// Untaken firings that were taken back.
    taken_back: usize,
    effects: Vec<Effect>,
    pending: Vec<u32>,
}

/// Why a completion makes no sense.
type Malformed = &'static str;

impl<'a> Commands<'a> {
    fn new(
        run: &'a Run,
        now: Timestamp,
        open: &'a Open,
        closes: bool,
        count: usize,
        limits: &'a Limits,
    ) -> Self {
        let facts = if closes { &run.inbox[..] } else { &run.inbox[..open.taken] };
        let newest = facts.iter().map(|fact| fact.time_us).max().unwrap_or(i64::MIN);
        let mut records = Vec::with_capacity(count + 1);
        records.push(HistoryEvent::default()); // the task's own event, written in `finish`
        Self {
            run,
            now,
            open,
            closes,
            limits,
            event_time: now.max(run.last_time).max(Timestamp::from_micros(newest)),
            numbers: run.numbers.clone(),
            records,
            facts: Vec::new(),
            scheduled: Vec::new(),
            refused: Vec::new(),
            cancelled: Vec::new(),
            timers: Vec::new(),
            cancelled_timers: Vec::new(),
            taken_back: 0,
            effects: Vec::new(),
            pending: Vec::new(),
        }
    }

    fn add(&mut self, command: &Command, last: bool) -> Result<(), Malformed> {
        let kind = command.kind.as_ref().ok_or("its kind is unknown")?;
        let attributes = match kind {
            Kind::ScheduleActivity(schedule) => self.schedule_activity(command, schedule)?,
            Kind::CancelActivity(_) => self.cancel_activity(command.number)?,
            Kind::StartTimer(start) => self.start_timer(command, *start)?,
            Kind::CancelTimer(_) => self.cancel_timer(command.number)?,
            Kind::RecordMarker(marker) => self.record_marker(command, marker)?,
            Kind::CompleteWorkflow(complete) if last => {
                match check_payloads(&complete.result, 0, self.limits) {
                    Ok(()) => Attributes::WorkflowExecutionCompleted(WorkflowExecutionCompleted {
                        result: complete.result.clone(),
                        unread_signals: complete.unread_signals.clone(),
                    }),
                    Err(limit) => fail_workflow(limit, &complete.unread_signals),
                }
            }
            Kind::FailWorkflow(fail) if last => match self.check_failure(fail.failure.as_ref()) {
                Ok(()) => Attributes::WorkflowExecutionFailed(WorkflowExecutionFailed {
                    failure: fail.failure.clone(),
                    unread_signals: fail.unread_signals.clone(),
                    refused: None,
                }),
                Err(limit) => fail_workflow(limit, &fail.unread_signals),
            },
            Kind::CancelWorkflow(cancel) if last => {
                match self.check_failure(cancel.failure.as_ref()) {
                    Ok(()) => Attributes::WorkflowExecutionCancelled(WorkflowExecutionCancelled {
                        failure: cancel.failure.clone(),
                        unread_signals: cancel.unread_signals.clone(),
                    }),
                    Err(limit) => fail_workflow(limit, &cancel.unread_signals),
                }
            }
            Kind::CompleteWorkflow(_) | Kind::FailWorkflow(_) | Kind::CancelWorkflow(_) => {
                return Err("the run is closed by a command that is not the last");
            }
        };
        self.records.push(record(self.now, attributes));
        Ok(())
    }

    fn check_failure(&self, failure: Option<&Failure>) -> Result<(), Limit> {
        failure.map_or(Ok(()), |failure| check_failure(failure, self.limits))
    }

    fn schedule_activity(
        &mut self,
        command: &Command,
        schedule: &ScheduleActivity,
    ) -> Result<Attributes, Malformed> {
        if !self.numbers.take_call(command.number) {
            return Err("its number is not greater than those of the calls before");
        }
        if schedule.activity_type.is_empty() {
            return Err("it names no activity");
        }
        let number = command.number;
        let queue = match schedule.task_queue.as_str() {
            "" => &self.run.identity.task_queue,
            queue => queue,
        };
        let mut event = ActivityScheduled {
            number,
            activity_type: String::new(),
            task_queue: String::new(),
            arguments: Vec::new(),
            timeouts: schedule.timeouts,
            retry: None,
            call_site: None,
            arguments_hash: command.arguments_hash,
            summary: String::new(),
            priority: schedule.priority,
            refused: None,
        };
        if let Err(limit) = self.check_activity(command, schedule) {
            event.activity_type = harmless(&schedule.activity_type, self.limits);
            event.task_queue = harmless(queue, self.limits);
            event.call_site = self.harmless_site(command);
            event.refused = Some(limit.clone());
            self.refused.push(number);
            self.facts.push(record(self.now, refused(number, limit)));
        } else {
            event.activity_type.clone_from(&schedule.activity_type);
            queue.clone_into(&mut event.task_queue);
            event.arguments.clone_from(&schedule.arguments);
            event.retry.clone_from(&schedule.retry);
            event.call_site.clone_from(&command.call_site);
            event.summary.clone_from(&command.summary);
            self.scheduled.push(number);
        }
        Ok(Attributes::ActivityScheduled(event))
    }

    fn check_activity(&self, command: &Command, schedule: &ScheduleActivity) -> Result<(), Limit> {
        let limits = self.limits;
        check_id("activity_type_bytes", &schedule.activity_type, limits)?;
        check_id("task_queue_bytes", &schedule.task_queue, limits)?;
        self.check_annotations(command)?;
        let mut text = command.summary.len();
        if let Some(retry) = &schedule.retry {
            for kind in &retry.non_retryable_kinds {
                check_id("failure_kind_bytes", kind, limits)?;
                text += kind.len();
            }
            check_duration("retry_initial_interval_us", retry.initial_interval_us)?;
            check_duration("retry_max_interval_us", retry.max_interval_us)?;
            let factor = retry.backoff_coefficient;
            if factor != 0.0 && !(1.0..=1_000.0).contains(&factor) {
                return Err(limit("retry_backoff_coefficient_from_1", 1_000, factor as u64));
            }
        }
        if let Some(timeouts) = &schedule.timeouts {
            check_duration("start_to_close_us", timeouts.start_to_close_us)?;
            check_duration("schedule_to_start_us", timeouts.schedule_to_start_us)?;
            check_duration("schedule_to_close_us", timeouts.schedule_to_close_us)?;
            check_duration("heartbeat_us", timeouts.heartbeat_us)?;
        }
        check_payloads(&schedule.arguments, text, limits)?;
        let pending = (self.run.activities.len() + self.scheduled.len()) as u64;
        if pending >= limits.pending_activities {
            return Err(limit("pending_activities", limits.pending_activities, pending + 1));
        }
        Ok(())
    }

    /// Checks what stands beside a command for people.
    fn check_annotations(&self, command: &Command) -> Result<(), Limit> {
        check_text(&command.summary)?;
        match &command.call_site {
            Some(site) => check_id("call_site_bytes", &site.file, self.limits),
            None => Ok(()),
        }
    }

    fn harmless_site(&self, command: &Command) -> Option<v1::CallSite> {
        let site = command.call_site.as_ref()?;
        Some(v1::CallSite { file: harmless(&site.file, self.limits), ..*site })
    }

    fn cancel_activity(&mut self, number: u32) -> Result<Attributes, Malformed> {
        if self.cancelled.contains(&number) {
            return Err("it cancels an activity that is cancelled already");
        }
        self.cancelled.push(number);
        let event = Attributes::ActivityCancelRequested(ActivityCancelRequested { number });
        if self.scheduled.binary_search(&number).is_ok() {
            self.facts.push(record(self.now, cancelled(number, 0, None)));
            return Ok(event);
        }
        let Some(activity) = self.run.activity(number) else {
            let mut facts = self.run.inbox.iter();
            let closed =
                facts.any(|fact| closed_activity(fact).is_some_and(|(closed, _)| closed == number));
            // It has closed, and the code could not know or has just learnt: nothing to do.
            if closed || self.refused.binary_search(&number).is_ok() {
                return Ok(event);
            }
            return Err("it cancels an activity that is not pending");
        };
        if activity.cancel_requested {
            return Err("it cancels an activity that is cancelled already");
        }
        match &activity.attempt {
            Attempt::Running(running) => self.effects.push(Effect::CancelAttempt {
                token: running.token,
                session: running.session,
                reason: CancelReason::Requested,
            }),
            Attempt::Ready { .. } => self.effects.push(Effect::WithdrawActivity { number }),
            Attempt::BackingOff { .. } | Attempt::Unknown { .. } => {}
        }
        if activity.is_at_home() {
            self.facts.push(record(self.now, cancelled(number, activity.attempts(), None)));
            self.pending.push(number);
        }
        Ok(event)
    }

    fn start_timer(
        &mut self,
        command: &Command,
        start: StartTimer,
    ) -> Result<Attributes, Malformed> {
        if !self.numbers.take_call(command.number) {
            return Err("its number is not greater than those of the calls before");
        }
        let number = command.number;
        self.timers.push(number);
        let mut event = TimerStarted {
            number,
            duration_us: start.duration_us,
            fire_at_us: 0,
            call_site: None,
            summary: String::new(),
            refused: None,
        };
        if let Err(limit) = self.check_timer(command, start) {
            event.fire_at_us = self.event_time.as_micros();
            event.call_site = self.harmless_site(command);
            event.refused = Some(limit);
            self.facts.push(fired(self.now, number));
        } else {
            // Counted from the event's own time, so that it is never early by the run's clock.
            let fire_at = self
                .event_time
                .plus_micros(start.duration_us)
                .plus_micros(self.limits.clock_error_us);
            event.fire_at_us = fire_at.as_micros();
            event.call_site.clone_from(&command.call_site);
            event.summary.clone_from(&command.summary);
        }
        Ok(Attributes::TimerStarted(event))
    }

    fn check_timer(&self, command: &Command, start: StartTimer) -> Result<(), Limit> {
        check_duration("timer_duration_us", start.duration_us)?;
        self.check_annotations(command)?;
        check_payloads([], command.summary.len(), self.limits)?;
        let pending = (self.run.timers.len() + self.timers.len()) as u64;
        if pending > self.limits.pending_timers {
            return Err(limit("pending_timers", self.limits.pending_timers, pending));
        }
        Ok(())
    }

    fn cancel_timer(&mut self, number: u32) -> Result<Attributes, Malformed> {
        if self.cancelled_timers.contains(&number) {
            return Err("it cancels a timer that is cancelled already");
        }
        let firing = self.run.inbox.iter().position(|fact| is_firing_of(fact, number));
        if self.timers.binary_search(&number).is_ok() {
            // A refused timer was due at once; cancelled by the same task it never fires.
            self.facts.retain(|fact| !is_firing_of(fact, number));
        } else if let Some(place) = firing {
            self.taken_back += usize::from(place >= self.open.taken);
        } else if self.run.timer_place(number).is_none() {
            return Err("it cancels a timer that is not pending");
        }
        self.cancelled_timers.push(number);
        Ok(Attributes::TimerCancelled(TimerCancelled { number }))
    }

    fn record_marker(
        &mut self,
        command: &Command,
        marker: &RecordMarker,
    ) -> Result<Attributes, Malformed> {
        if command.number == 0 || !self.numbers.take(command.number) {
            return Err("its number is used already");
        }
        if !matches!(marker.kind(), MarkerKind::LocalActivity | MarkerKind::RecordedValue)
            || MarkerKind::try_from(marker.kind).is_err()
        {
            return Err("its kind of marker is unknown");
        }
        if LocalActivityFailureCause::try_from(marker.cause).is_err() {
            return Err("its cause of failure is unknown");
        }
        let mut event = MarkerRecorded {
            number: command.number,
            kind: marker.kind,
            name: String::new(),
            result: None,
            failure: None,
            cause: 0,
            attempts: marker.attempts,
            call_site: None,
            arguments_hash: command.arguments_hash,
            refused: None,
        };
        if let Err(limit) = self.check_marker(command, marker) {
            event.name = harmless(&marker.name, self.limits);
            event.call_site = self.harmless_site(command);
            event.refused = Some(limit);
        } else {
            event.name.clone_from(&marker.name);
            event.result.clone_from(&marker.result);
            event.failure.clone_from(&marker.failure);
            event.cause = marker.cause;
            event.call_site.clone_from(&command.call_site);
        }
        Ok(Attributes::MarkerRecorded(event))
    }

    fn check_marker(&self, command: &Command, marker: &RecordMarker) -> Result<(), Limit> {
        check_id("activity_type_bytes", &marker.name, self.limits)?;
        self.check_annotations(command)?;
        check_payloads(&marker.result, 0, self.limits)?;
        self.check_failure(marker.failure.as_ref())
    }

    /// Puts the decision together.
    fn finish(mut self, completion: &TaskCompletion) -> Decision {
        let command_events = (self.records.len() - 1) as u32;
        let untaken = self.run.inbox.len() - self.open.taken - self.taken_back;
        self.records[0] = record(
            self.now,
            Attributes::WorkflowTaskCompleted(WorkflowTaskCompleted {
                task_id: Some(self.open.task_id.to_wire()),
                handed_out_at_us: self.open.handed_out_at.as_micros(),
                facts_taken: self.open.taken as u32,
                command_events,
                more: completion.more && !self.closes,
                build_id: completion.worker.build_id.clone(),
                identity: completion.worker.identity.clone(),
                sdk_flags: completion.sdk_flags.clone(),
                untaken_facts: if self.closes { untaken as u32 } else { 0 },
            }),
        );
        let mut decision = Decision {
            leases: vec![LeaseChange::Sticky(completion.worker.session)],
            ..Decision::default()
        };
        if self.closes {
            // Nothing follows a closing event, so what was called here is never made.
            decision.records = self.records;
            self.run.let_go(&mut decision);
            return decision;
        }
        for number in self.pending {
            if let Some(activity) = self.run.activity(number) {
                remove_row(activity, &mut decision);
            }
        }
        decision.effects = self.effects;
        for number in self.scheduled {
            if !self.cancelled.contains(&number) {
                decision.effects.push(Effect::OfferActivity { number });
            }
        }
        if completion.more {
            decision.effects.push(Effect::OfferTaskWhenDurable);
        } else if untaken > 0 || !self.facts.is_empty() {
            decision.effects.push(Effect::OfferTask);
        }
        decision.records = self.records;
        decision.records.append(&mut self.facts);
        decision
    }
}

/// A close that broke a limit fails the run with that limit.
fn fail_workflow(limit: Limit, unread_signals: &[u64]) -> Attributes {
    Attributes::WorkflowExecutionFailed(WorkflowExecutionFailed {
        failure: Some(broken_limit(&limit)),
        unread_signals: unread_signals.to_vec(),
        refused: Some(limit),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::{
        ActivityFailureCause, RecordMarker, WorkflowTaskFailureCause as Cause, WorkflowTaskState,
        command::Kind, history_event::Attributes,
    };

    use super::super::{fixture::*, *};
    use super::Numbers;

    #[test]
    fn one_task_is_in_flight_at_most_and_it_takes_the_whole_inbox() {
        let story = history().signal("a").handed_out().signal("b").handed_out();
        assert_eq!(story.handed_out.len(), 1);
        assert_eq!(story.run.facts_waiting_since(), Some(story.now));
        story.completed([]).then_effects("offer-task").then_inbox("signal:b");
    }

    #[test]
    fn nothing_is_owed_without_news() {
        let story = history().task([timer(1, secs(5))]);
        assert_eq!(story.run.task_offer(story.now), None);
        let due = story.wake_in(secs(5));
        story.then_wakes(Wake::Cold(due)).handed_out().then_handed_out("started");
    }

    #[test]
    fn a_task_is_offered_once_however_many_facts_come() {
        given(history().task([]))
            .signal("a")
            .then_effects("offer-task")
            .signal("b")
            .then_effects("")
            .handed_out()
            .signal("c")
            .then_effects("");
    }

    #[test]
    fn more_owes_the_next_task_once_durable_also_after_a_load() {
        let story = history().handed_out();
        let completion = TaskCompletion { more: true, ..story.completion(vec![marker(1, "v")]) };
        let story = story.when(&Input::CompleteTask(completion));
        let story = story.then_effects("offer-task-when-durable").then_wakes(Wake::Hot(None));
        assert!(story.run.task_offer(story.now).unwrap().in_progress);
        let story = story.reload().then_wakes(Wake::Hot(None)).handed_out().then_handed_out("");
        story.completed([]).then_history("started task(0)+more marker1 task(0)");
    }

    #[test]
    fn the_session_that_ran_the_last_task_is_preferred_until_it_is_lost() {
        let story = history().task([]).signal("a");
        assert_eq!(story.run.task_offer(story.now).unwrap().sticky, Some(SessionId(1)));
        let story = story.session_lost(1);
        assert_eq!(story.run.task_offer(story.now).unwrap().sticky, None);
    }

    #[test]
    fn a_completion_counts_for_the_task_in_flight_only() {
        let story = history().task([call(1)]).handed_out().signal("a").handed_out();
        let first = TaskCompletion { task_id: story.handed_out[0].0, ..story.completion(vec![]) };
        let story = story.when(&Input::CompleteTask(first.clone()));
        let story = story.then_rejected(&Rejection::Recorded).completed([]);
        let story = story.when(&Input::CompleteTask(first)).then_rejected(&Rejection::Stale);
        // A completion of the recorded task stays recorded when the run has closed.
        let story = story.terminated().completed([]).then_rejected(&Rejection::Recorded);
        story.task_failed(Cause::Panic).then_rejected(&Rejection::Recorded);
    }

    #[test]
    fn a_task_of_an_earlier_load_is_stale() {
        let story = history().handed_out();
        let old = story.completion(vec![]);
        let story = story.reload().handed_out().when(&Input::CompleteTask(old));
        story.then_rejected(&Rejection::Stale).completed([]).then_history("started task(0)");
    }

    #[test]
    fn a_hand_out_is_never_before_that_of_the_last_completed_task() {
        let story = history().after(secs(5)).task([]).after(-secs(3)).signal("a").handed_out();
        let times: Vec<_> = story.handed_out.iter().map(|(_, task)| task.handed_out_at).collect();
        assert_eq!(times, [story.wake_in(secs(3)), story.wake_in(secs(3))]);
    }

    #[test]
    fn each_command_yields_one_event_and_refused_calls_close_in_the_same_step() {
        let limits = Limits { payload_bytes: 100, ..Limits::default() };
        let mut big = call(1);
        if let Some(Kind::ScheduleActivity(schedule)) = &mut big.kind {
            schedule.arguments = vec![payload(&"x".repeat(101))];
        }
        let story = given(history_of(&start_request(), limits))
            .task([big, call(2), timer(3, -1), marker(4, &"y".repeat(101))])
            .then_effects("offer2 offer-task")
            .then_history("started task(0) call1! call2 timer3! marker4!")
            .then_inbox("broke1#0:Refused fired3");
        let events = story.events();
        let Some(Attributes::ActivityScheduled(event)) = &events[2].attributes else { panic!() };
        assert!(event.arguments.is_empty());
        assert_eq!(event.activity_type, "charge");
        let limit = event.refused.as_ref().unwrap();
        assert_eq!((limit.name.as_str(), limit.limit), ("payload_bytes_per_command", 100));
        let Some(Attributes::ActivityFailed(fact)) = &story.run.inbox[0].attributes else {
            panic!()
        };
        assert_eq!(fact.refused.as_ref(), Some(limit));
        assert_eq!(fact.cause(), ActivityFailureCause::Refused);
        story.task([]).then_history(
            "started task(0) call1! call2 timer3! marker4! broke1#0:Refused fired3 task(2)",
        );
    }

    #[test]
    fn too_many_pending_activities_and_timers_are_refused() {
        let limits = Limits { pending_activities: 2, pending_timers: 1, ..Limits::default() };
        given(history_of(&start_request(), limits))
            .task([call(1), call(2), call(3), timer(4, 1), timer(5, 1)])
            .then_history("started task(0) call1 call2 call3! timer4 timer5!")
            .then_inbox("broke3#0:Refused fired5")
            .dispatched(1)
            .returned(1)
            .task([call(6), call(7)])
            .then_inbox("broke7#0:Refused");
    }

    #[test]
    fn a_text_with_nul_is_refused_and_not_stored() {
        let mut bad = call(1);
        if let Some(Kind::ScheduleActivity(schedule)) = &mut bad.kind {
            schedule.activity_type = "a\0b".into();
        }
        let mut noted = timer(2, 1);
        noted.summary = "\0".into();
        let story = history().task([bad, noted]).then_history("started task(0) call1! timer2!");
        let events = story.events();
        let Some(Attributes::ActivityScheduled(call)) = &events[2].attributes else { panic!() };
        let Some(Attributes::TimerStarted(timer)) = &events[3].attributes else { panic!() };
        assert_eq!((call.activity_type.as_str(), timer.summary.as_str()), ("a\u{fffd}b", ""));
        assert_eq!(call.refused.as_ref().unwrap().name, "nul_characters_in_text");
    }

    #[test]
    fn a_malformed_completion_fails_the_task() {
        let unknown = onward_proto::v1::Command { number: 9, ..Default::default() };
        let wrong_marker = |kind| {
            let marker = RecordMarker { kind, ..RecordMarker::default() };
            let kind = Some(Kind::RecordMarker(marker));
            onward_proto::v1::Command { number: 9, kind, ..Default::default() }
        };
        for commands in [
            vec![unknown],
            vec![call(0)],
            vec![call(1)],
            vec![call(3), call(3)],
            vec![call(4), timer(3, 1)],
            vec![marker(2, "v")],
            vec![cancel_call(7)],
            vec![cancel_call(2)],
            vec![cancel_call(1), cancel_call(1)],
            vec![cancel_timer(1)],
            vec![cancel_timer(2), cancel_timer(2)],
            vec![complete("a"), call(3)],
            vec![complete("a"), complete("b")],
            vec![wrong_marker(0)],
            vec![wrong_marker(77)],
            vec![call(u32::MAX), marker(u32::MAX, "v")],
        ] {
            let story = history().task([call(1), timer(2, secs(1))]).signal("a").handed_out();
            let completion = story.completion(commands);
            let said = format!("{:?}", completion.commands);
            let story = story.when(&Input::CompleteTask(completion));
            assert_eq!(
                tell(&story.events()),
                "started task(0) call1 timer2 task-failed:BadCommands",
                "{said}"
            );
            story.then_inbox("signal:a");
        }
    }

    #[test]
    fn numbers_are_used_once_and_markers_may_come_late() {
        given(history().task([call(3)]))
            .signal("a")
            .task([marker(2, "v"), timer(5, 1), marker(1, "v"), marker(4, "v")])
            .signal("b")
            .task([marker(4, "v")])
            .then_history(
                "started task(0) call3 signal:a task(1) marker2 timer5 marker1 marker4 \
                 task-failed:BadCommands",
            );
        let mut numbers = Numbers::default();
        assert!(numbers.take(u32::MAX) && numbers.take(7) && !numbers.take(7));
        assert!(!numbers.take_call(0) && numbers.take_call(6) && !numbers.take_call(5));
    }

    #[test]
    fn a_lost_workers_task_goes_out_again_at_once_and_then_backs_off() {
        let story = history().signal("a").handed_out().session_lost(1).then_effects("offer-task");
        let story = story.then_history("started task-failed:WorkerLost").handed_out_to(2);
        let story = story.then_handed_out("started task-failed:WorkerLost signal:a");
        let story = story.session_lost(2).then_effects("");
        let until = story.wake_in(secs(2));
        let story = story.then_wakes(Wake::Hot(Some(until))).handed_out();
        assert_eq!(story.handed_out.len(), 2, "it backs off");
        let story = story.passes(secs(2)).then_effects("offer-task").handed_out();
        assert_eq!(story.handed_out[2].1.attempt, 3);
        story.completed([]).then_history("started task-failed:WorkerLost signal:a task(1)");
    }

    #[test]
    fn each_distinct_cause_is_recorded_once_before_the_untaken_facts() {
        let mut story = history().signal("a");
        for cause in [Cause::Panic, Cause::Panic, Cause::NonDeterminism, Cause::Panic] {
            story = story.handed_out().task_failed(cause).passes(secs(100));
        }
        story = story.then_history("started task-failed:Panic task-failed:NonDeterminism");
        let task = story.run.describe(story.now, &|_| 1, &story.limits).task.unwrap();
        assert!(task.blocked);
        assert_eq!((task.attempt, task.last_cause()), (5, Cause::Panic));
        // The recorded causes survive a load, the counts do not; a completed task clears both.
        story = story.reload().handed_out().task_failed(Cause::Panic).passes(secs(100));
        assert!(!story.run.has_incident(&story.limits));
        story = story.task([]).signal("b").handed_out().task_failed(Cause::Panic);
        story.then_history(
            "started task-failed:Panic task-failed:NonDeterminism signal:a task(1) \
             task-failed:Panic",
        );
    }

    #[test]
    fn a_task_without_a_sign_of_life_fails_at_its_deadline() {
        let mut story = history().handed_out().after(secs(6));
        let task = story.newest_task();
        assert!(story.run.renew_task(story.now, task, &story.limits));
        let end = story.wake_in(secs(10));
        story = story.then_wakes(Wake::Hot(Some(end))).passes(secs(10) - 1).then_effects("");
        story = story.passes(1).then_effects("offer-task");
        assert!(!story.run.renew_task(story.now, task, &story.limits));
        story = story.completed([]).then_rejected(&Rejection::Stale);
        story.then_history("started task-failed:TimedOut");
    }

    #[test]
    fn a_task_that_backs_off_is_not_offered_for_new_facts() {
        let story = history().handed_out().task_failed(Cause::Panic).signal("a").then_effects("");
        let info = story.run.describe(story.now, &|_| 1, &story.limits).task.unwrap();
        assert_eq!(info.state(), WorkflowTaskState::BackingOff);
        story.passes(secs(1)).then_effects("offer-task").task([]);
    }

    #[test]
    fn a_full_history_fails_the_run_at_its_next_task() {
        let limits = Limits { history_events: 10, ..Limits::default() };
        let story = history_of(&start_request(), limits.clone());
        let story = story.task([timer(1, 1), timer(2, 1), timer(3, 1), timer(4, 1), timer(5, 1)]);
        // Seven events are there. A second signal would leave no room for an orderly end.
        let story = story.signal("a").signal("b");
        assert!(matches!(story.last, Err(Rejection::Limit(_))));
        let story = story.passes(1).then_inbox("signal:a fired1 fired2 fired3 fired4 fired5");
        story.handed_out().completed([]).then_effects("withdraw-task closed").then_history(
            "started task(0) timer1 timer2 timer3 timer4 timer5 signal:a fired1 fired2 fired3 \
                 fired4 fired5 FAILED!",
        );
        // A run that ends by itself may do so.
        let story = history_of(&start_request(), limits);
        let story = story.task([timer(1, 1), timer(2, 1), timer(3, 1), timer(4, 1), timer(5, 1)]);
        let story = story.passes(1).task([complete("done")]);
        assert_eq!(story.run.status(), onward_proto::v1::WorkflowStatus::Completed);
    }
}
