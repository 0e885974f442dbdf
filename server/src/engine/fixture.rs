//! The language in which the rules of a run are tested: a story is told in inputs, and what became
//! of it is read in words.
//!
//! After every step the story checks what must hold of any run: loading it from what was recorded
//! gives the same state, and the fold that pages use numbers the same events.
// Stories read better when commands are given away.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::collections::BTreeMap;

use bytes::Bytes;
use onward_proto::{
    DEFAULT_NAMESPACE, RequestId, RunId, Slot, Timestamp,
    v1::{
        ActivityTimeouts, CancelActivity, CancelTimer, CancelWorkflow, Command, CompleteWorkflow,
        FailWorkflow, Failure, HistoryEvent, IdConflictPolicy, IdReusePolicy, JournalRow,
        MarkerKind, Payload, PendingActivity, RecordMarker, RetryPolicy, ScheduleActivity,
        StartTimer, WorkflowTaskFailureCause, command::Kind, history_event::Attributes,
    },
};
use uuid::Uuid;

use super::{deadlines::Due, history::HistoryFold, *};

/// When every story begins.
pub(super) const BEGIN: i64 = 1_790_000_000_000_000;

pub(super) fn secs(secs: i64) -> i64 {
    secs * 1_000_000
}

/// A run and everything that was recorded of it.
pub(super) struct Story {
    pub(super) run: Run,
    pub(super) now: Timestamp,
    pub(super) limits: Limits,
    pub(super) journal: Vec<JournalRow>,
    pub(super) pending: BTreeMap<u32, PendingActivity>,
    pub(super) incarnation: u64,
    /// What the last step led to.
    pub(super) last: Result<Decision, Rejection>,
    /// What its row keeps of the window of requests.
    requests_column: Requests,
    counter: u64,
    requests: u128,
    /// The newest task that was handed out, and all that came before.
    pub(super) handed_out: Vec<(TaskId, HandOut)>,
    /// The newest token of each activity.
    pub(super) tokens: BTreeMap<u32, Token>,
}

/// Reads better in front of a story.
pub(super) fn given(story: Story) -> Story {
    story
}

pub(super) fn start_request() -> Start {
    Start {
        namespace_id: DEFAULT_NAMESPACE,
        workflow_id: "order-42".into(),
        workflow_type: "checkout".into(),
        task_queue: "default".into(),
        arguments: vec![payload("42")],
        request_id: request(0),
        identity: "test".into(),
        memo: BTreeMap::new(),
        execution_timeout_us: 0,
        run_timeout_us: 0,
        id_reuse_policy: IdReusePolicy::Allow,
        id_conflict_policy: IdConflictPolicy::Fail,
        signal: None,
    }
}

pub(super) fn run_id(n: u64) -> RunId {
    RunId::new(1_790_000_000_000, n, Slot::new(7))
}

pub(super) fn request(n: u128) -> RequestId {
    RequestId::from_uuid(Uuid::from_u128(n))
}

pub(super) fn payload(text: &str) -> Payload {
    Payload {
        content_type: "json".into(),
        data: Bytes::copy_from_slice(text.as_bytes()),
        metadata: BTreeMap::new(),
    }
}

pub(super) fn failure(kind: &str) -> Failure {
    Failure { kind: kind.into(), message: format!("it was {kind}"), ..Failure::default() }
}

pub(super) fn worker(n: u64) -> Worker {
    Worker { session: SessionId(n), identity: format!("w{n}"), build_id: "b1".into() }
}

/// A run that has started and done nothing yet.
pub(super) fn history() -> Story {
    history_of(&start_request(), Limits::default())
}

pub(super) fn history_of(start: &Start, limits: Limits) -> Story {
    let now = Timestamp::from_micros(BEGIN);
    let draw = Draw { run_id: run_id(1), seed: vec![7; 32].into() };
    let inherited = Requests::default();
    let (run, decision) = Run::start(now, start, draw, inherited.clone(), &limits);
    let mut story = Story {
        run,
        now,
        limits,
        journal: Vec::new(),
        pending: BTreeMap::new(),
        incarnation: 1,
        last: Ok(Decision::default()),
        requests_column: inherited,
        counter: 0,
        requests: 1_000,
        handed_out: Vec::new(),
        tokens: BTreeMap::new(),
    };
    story.stage(&decision);
    story.last = Ok(decision);
    story.check();
    story
}

impl Story {
    /// Puts an input to the run.
    pub(super) fn when(mut self, input: &Input) -> Self {
        self.put(input);
        self
    }

    pub(super) fn put(&mut self, input: &Input) {
        let before = self.durable(&self.run);
        self.last = self.run.decide(self.now, input, &self.limits);
        assert_eq!(self.durable(&self.run), before, "decide changes nothing");
        if let Ok(decision) = self.last.clone() {
            self.run.apply(self.now, &decision, &self.limits);
            self.stage(&decision);
            for effect in &decision.effects {
                if let Effect::SendActivity { token, .. } = effect {
                    assert!(self.run.activity_task(*token).is_some());
                    self.tokens.insert(token.number, *token);
                }
            }
        }
        self.check();
    }

    fn stage(&mut self, decision: &Decision) {
        if !decision.records.is_empty() || !decision.requests.is_empty() {
            for record in &decision.records {
                assert_eq!(
                    record.time_us,
                    self.now.as_micros(),
                    "records bear the decision's time"
                );
                assert_eq!(record.event_id, 0);
            }
            self.journal.push(JournalRow {
                epoch: 1,
                commit_seq: self.journal.len() as u64,
                records: decision.records.clone(),
                requests: decision.requests.clone(),
            });
        }
        if decision.effects.contains(&Effect::Closed) {
            self.requests_column = self.run.requests().clone();
        }
        for (number, row) in &decision.pending {
            match row {
                Some(row) => self.pending.insert(*number, row.clone()),
                None => self.pending.remove(number),
            };
        }
    }

    fn durable(&self, run: &Run) -> String {
        durable(run, self.now, &self.limits)
    }

    /// What must hold of any run at any time.
    fn check(&self) {
        let loaded = self.durable(&self.loaded());
        assert_eq!(loaded, self.durable(&self.run), "a loaded run is the same");
        let events = self.events();
        assert_eq!(events.len() as u64, self.run.history_size().events, "both folds count alike");
        let last = events.last().map(|event| event.time_us);
        assert_eq!(last, Some(self.run.last_time.as_micros()), "both folds tell the same time");
        let mut fold = self.fold();
        fold.drain();
        assert!(fold.inbox().eq(self.run.inbox.iter()), "both folds have the same inbox");
        let deadlines: Vec<_> = self.run.deadlines.iter().collect();
        assert_eq!(deadlines, scan_for_deadlines(&self.run), "the set has what a scan finds");
        let active = self.run.activities.iter().filter(|activity| activity.is_active()).count();
        assert_eq!(self.run.active as usize, active);
        if let Some(known) = self.run.can_leave() {
            let back = self.loaded_knowing(known);
            assert_eq!(back.failed_task(), self.run.failed_task(), "it goes on from there");
            // What is due but has not happened yet happens at the load.
            if self.run.deadlines.due(self.now).next().is_none() {
                assert_eq!(back.wake(), self.run.wake(), "a run that comes back waits as before");
                let ready = |run: &Run| run.ready_activities().collect::<Vec<_>>();
                assert_eq!(ready(&back), ready(&self.run), "and for the same workers");
            }
        }
        if self.run.is_closed() {
            assert_eq!(self.run.wake(), Wake::Never);
            assert!(self.pending.is_empty(), "a closed run has no rows of pending");
        }
    }

    pub(super) fn loaded(&self) -> Run {
        self.loaded_knowing(match self.run.wake() {
            Wake::Hot(_) => Work::MayBeInFlight.into(),
            Wake::Cold(_) | Wake::Never => Work::NoneInFlight.into(),
        })
    }

    fn loaded_knowing(&self, known: Known) -> Run {
        let pending: Vec<_> = self.pending.clone().into_iter().collect();
        let identity = self.run.identity();
        let requests = self.requests_column.clone();
        let stored = Stored { identity, journal: &self.journal, pending: &pending, requests };
        Run::load(self.now, self.now, stored, known, &self.limits).unwrap()
    }

    fn fold(&self) -> HistoryFold {
        let mut fold = HistoryFold::new();
        for (seq, row) in self.journal.iter().enumerate() {
            fold.push_row(seq as u32, row).unwrap();
        }
        fold
    }

    /// The journal with so many decisions in a row, as a batch writes them.
    pub(super) fn in_batches(&self, decisions: usize) -> Vec<JournalRow> {
        let batch = |rows: &[JournalRow]| JournalRow {
            records: rows.iter().flat_map(|row| row.records.clone()).collect(),
            requests: rows.iter().flat_map(|row| row.requests.clone()).collect(),
            ..rows[0].clone()
        };
        self.journal.chunks(decisions).map(batch).collect()
    }

    /// The numbered events.
    pub(super) fn events(&self) -> Vec<HistoryEvent> {
        self.fold().drain()
    }

    /// The lane is lost, and all leases with it.
    pub(super) fn reload(mut self) -> Self {
        self.run = self.loaded();
        self.incarnation += 1;
        self.counter = 0;
        self
    }

    /// It leaves memory and comes back; it must be one that can.
    pub(super) fn comes_back(mut self) -> Self {
        let known = self.run.can_leave().expect("nothing of it is in flight");
        self.run = self.loaded_knowing(known);
        self
    }

    pub(super) fn after(mut self, micros: i64) -> Self {
        self.now = self.now.plus_micros(micros);
        self
    }

    /// Time passes, and what is due happens.
    pub(super) fn passes(self, micros: i64) -> Self {
        let story = self.after(micros);
        let due = story.now;
        story.when(&Input::Deadline { due })
    }

    pub(super) fn request(&mut self) -> RequestId {
        self.requests += 1;
        request(self.requests)
    }

    pub(super) fn signal(mut self, name: &str) -> Self {
        let request_id = self.request();
        self.when(&signal(name, request_id))
    }

    pub(super) fn cancel_asked(mut self) -> Self {
        let request_id = self.request();
        self.when(&Input::RequestCancel(stop(request_id)))
    }

    pub(super) fn terminated(mut self) -> Self {
        let request_id = self.request();
        self.when(&Input::Terminate(stop(request_id)))
    }

    /// Hands the workflow task out to worker 1, if one is owed.
    pub(super) fn handed_out(self) -> Self {
        self.handed_out_to(1)
    }

    pub(super) fn handed_out_to(mut self, n: u64) -> Self {
        self.counter += 1;
        let task_id = TaskId { incarnation: Incarnation(self.incarnation), counter: self.counter };
        if let Some(handed_out) = self.run.hand_out(self.now, task_id, &worker(n), &self.limits) {
            let open = self.run.open_task().unwrap();
            assert_eq!(open.events(), handed_out.events, "the open task has the same events");
            assert_eq!(open.next_event_id(), handed_out.next_event_id);
            assert_eq!(open.follows(), handed_out.follows);
            assert_eq!(open.handed_out_at, handed_out.handed_out_at);
            assert_eq!(open.attempt, handed_out.attempt);
            assert_eq!(handed_out.follows, self.last_completed_task());
            self.handed_out.push((task_id, handed_out));
        }
        self.check();
        self
    }

    fn last_completed_task(&self) -> Option<TaskId> {
        let mut newest = self.journal.iter().rev().flat_map(|row| row.records.iter().rev());
        newest.find_map(|record| match &record.attributes {
            Some(Attributes::WorkflowTaskCompleted(completed)) => {
                completed.task_id.as_ref().map(TaskId::from_wire)
            }
            _ => None,
        })
    }

    pub(super) fn newest_task(&self) -> TaskId {
        self.handed_out.last().unwrap().0
    }

    /// The newest task completes with these commands.
    pub(super) fn completed<const N: usize>(self, commands: [Command; N]) -> Self {
        let completion = self.completion(commands.to_vec());
        self.when(&Input::CompleteTask(completion))
    }

    pub(super) fn completion(&self, commands: Vec<Command>) -> TaskCompletion {
        TaskCompletion {
            task_id: self.newest_task(),
            commands,
            more: false,
            sdk_flags: vec![1],
            worker: worker(1),
        }
    }

    /// A task is handed out and completes.
    pub(super) fn task<const N: usize>(self, commands: [Command; N]) -> Self {
        self.handed_out().completed(commands)
    }

    pub(super) fn task_failed(self, cause: WorkflowTaskFailureCause) -> Self {
        let task_id = self.newest_task();
        let failure = Some(failure("Bad"));
        self.when(&Input::FailTask { task_id, cause, failure })
    }

    /// A worker is found for the next attempt.
    pub(super) fn dispatched(self, number: u32) -> Self {
        self.dispatched_to(number, 1)
    }

    pub(super) fn dispatched_to(self, number: u32, n: u64) -> Self {
        let incarnation = Incarnation(self.incarnation);
        self.when(&Input::StartAttempt { number, worker: worker(n), incarnation })
    }

    pub(super) fn returned(self, number: u32) -> Self {
        let token = self.tokens[&number];
        self.returned_by(token)
    }

    pub(super) fn returned_by(self, token: Token) -> Self {
        let result = Some(payload("ok"));
        self.when(&Input::CompleteActivity { token, result, identity: "w1".into() })
    }

    pub(super) fn broke(self, number: u32, kind: &str) -> Self {
        self.broke_with(number, failure(kind))
    }

    pub(super) fn broke_with(self, number: u32, failure: Failure) -> Self {
        let token = self.tokens[&number];
        self.when(&Input::FailActivity { token, failure, identity: "w1".into() })
    }

    pub(super) fn session_lost(self, n: u64) -> Self {
        self.when(&Input::SessionLost { session: SessionId(n) })
    }

    pub(super) fn claimed(self, number: u32, n: u64) -> Self {
        let token = self.tokens[&number];
        self.when(&Input::ClaimAttempt { token, worker: worker(n) })
    }

    pub(super) fn heartbeat(self, number: u32, details: Option<&str>) -> Self {
        let token = self.tokens[&number];
        self.when(&Input::Heartbeat { token, details: details.map(payload) })
    }

    #[track_caller]
    pub(super) fn then_history(self, words: &str) -> Self {
        assert_eq!(tell(&self.events()), words);
        self
    }

    #[track_caller]
    pub(super) fn then_inbox(self, words: &str) -> Self {
        assert_eq!(tell(&self.run.inbox), words);
        self
    }

    /// What the newest task was handed out with.
    #[track_caller]
    pub(super) fn then_handed_out(self, words: &str) -> Self {
        assert_eq!(tell(&self.handed_out.last().unwrap().1.events), words);
        self
    }

    #[track_caller]
    pub(super) fn then_effects(self, effects: &str) -> Self {
        let decision = self.last.as_ref().expect("the input was refused");
        let told: Vec<String> = decision.effects.iter().map(tell_effect).collect();
        assert_eq!(told.join(" "), effects);
        self
    }

    #[track_caller]
    pub(super) fn then_rejected(self, rejection: &Rejection) -> Self {
        assert_eq!(self.last.as_ref(), Err(rejection));
        self
    }

    #[track_caller]
    pub(super) fn then_pending(self, number: u32, attempts: Option<u32>) -> Self {
        assert_eq!(self.pending.get(&number).map(|row| row.attempts), attempts);
        self
    }

    #[track_caller]
    pub(super) fn then_wakes(self, wake: Wake) -> Self {
        assert_eq!(self.run.wake(), wake);
        self
    }

    pub(super) fn wake_in(&self, micros: i64) -> Timestamp {
        self.now.plus_micros(micros)
    }

    pub(super) fn with_pollers(&self, pollers: usize) -> Vec<String> {
        self.run.describe(self.now, &|_| pollers, &self.limits).waits_for
    }
}

/// The deadlines of a run, soonest first, read from where each follows from.
fn scan_for_deadlines(run: &Run) -> Vec<(Timestamp, Due)> {
    if run.is_closed() {
        return Vec::new();
    }
    let own = [
        (run.workflow_timeout().map(|(at, _)| at), Due::Workflow),
        (run.task.open.as_ref().map(|open| open.deadline), Due::Task),
        (run.task.not_before, Due::TaskBackoff),
    ];
    let timers = run.timers.iter().map(|timer| (Some(timer.fire_at), Due::Timer(timer.number)));
    let activities = run
        .activities
        .iter()
        .map(|activity| (activity.deadline(), Due::Activity(activity.number())));
    let all = own.into_iter().chain(timers).chain(activities);
    let mut deadlines: Vec<_> = all.filter_map(|(at, what)| Some((at?, what))).collect();
    deadlines.sort_unstable();
    deadlines
}

/// All of a run that is found again after a crash.
fn durable(run: &Run, now: Timestamp, limits: &Limits) -> String {
    let activities: Vec<_> = run
        .activities
        .iter()
        .map(|a| (&a.scheduled, a.scheduled_at, a.cancel_requested, &a.row))
        .collect();
    format!(
        "{:?}",
        (
            (&run.identity, &run.started, run.status, &run.closed, run.next_event_id),
            (
                run.last_time,
                run.bytes,
                run.request_bytes,
                run.inbox_bytes,
                &run.inbox,
                &run.head,
                run.last_task
            ),
            (&run.numbers, &run.timers, activities, run.signals, run.cancel_requested),
            run.requests.pruned(now, limits),
        )
    )
}

pub(super) fn signal(name: &str, request_id: RequestId) -> Input {
    Input::Signal(Signal {
        name: name.into(),
        arguments: vec![payload(name)],
        request_id,
        identity: "test".into(),
    })
}

pub(super) fn stop(request_id: RequestId) -> Stop {
    Stop { reason: "enough".into(), request_id, identity: "test".into() }
}

fn command(number: u32, kind: Kind) -> Command {
    Command { number, kind: Some(kind), ..Command::default() }
}

pub(super) fn call(number: u32) -> Command {
    call_with(number, ActivityTimeouts::default(), RetryPolicy::default())
}

pub(super) fn call_with(number: u32, timeouts: ActivityTimeouts, retry: RetryPolicy) -> Command {
    command(
        number,
        Kind::ScheduleActivity(ScheduleActivity {
            activity_type: "charge".into(),
            task_queue: String::new(),
            arguments: vec![payload("1")],
            timeouts: Some(timeouts),
            retry: Some(retry),
            priority: 0,
        }),
    )
}

/// A call that is tried so many times.
pub(super) fn call_times(number: u32, max_attempts: u32) -> Command {
    let retry = RetryPolicy { max_attempts, ..RetryPolicy::default() };
    call_with(number, ActivityTimeouts::default(), retry)
}

pub(super) fn cancel_call(number: u32) -> Command {
    command(number, Kind::CancelActivity(CancelActivity {}))
}

pub(super) fn timer(number: u32, duration_us: i64) -> Command {
    command(number, Kind::StartTimer(StartTimer { duration_us }))
}

pub(super) fn cancel_timer(number: u32) -> Command {
    command(number, Kind::CancelTimer(CancelTimer {}))
}

pub(super) fn marker(number: u32, value: &str) -> Command {
    command(
        number,
        Kind::RecordMarker(RecordMarker {
            kind: MarkerKind::RecordedValue.into(),
            result: Some(payload(value)),
            ..RecordMarker::default()
        }),
    )
}

pub(super) fn complete(value: &str) -> Command {
    let result = Some(payload(value));
    command(0, Kind::CompleteWorkflow(CompleteWorkflow { result, unread_signals: Vec::new() }))
}

pub(super) fn fail(kind: &str) -> Command {
    let failure = Some(failure(kind));
    command(0, Kind::FailWorkflow(FailWorkflow { failure, unread_signals: Vec::new() }))
}

pub(super) fn cancel() -> Command {
    let failure = Some(failure("Stopped"));
    command(0, Kind::CancelWorkflow(CancelWorkflow { failure, unread_signals: Vec::new() }))
}

/// Events in words.
pub(super) fn tell(events: &[HistoryEvent]) -> String {
    events.iter().map(tell_event).collect::<Vec<_>>().join(" ")
}

fn tell_event(event: &HistoryEvent) -> String {
    let refused = |refused: bool| if refused { "!" } else { "" };
    match event.attributes.as_ref().unwrap() {
        Attributes::WorkflowExecutionStarted(_) => "started".into(),
        Attributes::WorkflowExecutionCompleted(_) => "COMPLETED".into(),
        Attributes::WorkflowExecutionFailed(e) => format!("FAILED{}", refused(e.refused.is_some())),
        Attributes::WorkflowExecutionCancelled(_) => "CANCELLED".into(),
        Attributes::WorkflowExecutionTimedOut(e) => format!("TIMED-OUT:{:?}", e.kind()),
        Attributes::WorkflowExecutionTerminated(_) => "TERMINATED".into(),
        Attributes::WorkflowExecutionCancelRequested(_) => "cancel-asked".into(),
        Attributes::WorkflowTaskCompleted(e) => {
            let more = if e.more { "+more" } else { "" };
            let untaken = match e.untaken_facts {
                0 => String::new(),
                untaken => format!("-{untaken}"),
            };
            format!("task({}{untaken}){more}", e.facts_taken)
        }
        Attributes::WorkflowTaskFailed(e) => format!("task-failed:{:?}", e.cause()),
        Attributes::ActivityScheduled(e) => {
            format!("call{}{}", e.number, refused(e.refused.is_some()))
        }
        Attributes::ActivityCancelRequested(e) => format!("cancel-call{}", e.number),
        Attributes::ActivityCompleted(e) => format!("returned{}#{}", e.number, e.attempt),
        Attributes::ActivityFailed(e) => format!("broke{}#{}:{:?}", e.number, e.attempt, e.cause()),
        Attributes::ActivityTimedOut(e) => {
            format!("timed-out{}#{}:{:?}", e.number, e.attempt, e.kind())
        }
        Attributes::ActivityCancelled(e) => format!("cancelled{}#{}", e.number, e.attempt),
        Attributes::TimerStarted(e) => format!("timer{}{}", e.number, refused(e.refused.is_some())),
        Attributes::TimerFired(e) => format!("fired{}", e.number),
        Attributes::TimerCancelled(e) => format!("cancel-timer{}", e.number),
        Attributes::SignalReceived(e) => format!("signal:{}", e.signal_name),
        Attributes::MarkerRecorded(e) => {
            format!("marker{}{}", e.number, refused(e.refused.is_some()))
        }
    }
}

fn tell_effect(effect: &Effect) -> String {
    match effect {
        Effect::OfferTask => "offer-task".into(),
        Effect::OfferTaskWhenDurable => "offer-task-when-durable".into(),
        Effect::OfferActivity { number } => format!("offer{number}"),
        Effect::SendActivity { token, .. } => format!("send{}#{}", token.number, token.attempt),
        Effect::CancelAttempt { token, reason, .. } => {
            format!("cancel{}#{}:{reason:?}", token.number, token.attempt)
        }
        Effect::WithdrawActivity { number } => format!("withdraw{number}"),
        Effect::WithdrawTask => "withdraw-task".into(),
        Effect::TaskVoid { .. } => "void".into(),
        Effect::Closed => "closed".into(),
    }
}

/// One timeout.
pub(super) fn timeouts(which: &str, micros: i64) -> ActivityTimeouts {
    let mut timeouts = ActivityTimeouts::default();
    *match which {
        "start-to-close" => &mut timeouts.start_to_close_us,
        "schedule-to-start" => &mut timeouts.schedule_to_start_us,
        "schedule-to-close" => &mut timeouts.schedule_to_close_us,
        "heartbeat" => &mut timeouts.heartbeat_us,
        _ => panic!(),
    } = micros;
    timeouts
}

/// One call with this timeout.
pub(super) fn limited(which: &str, micros: i64, max_attempts: u32) -> Story {
    let retry = RetryPolicy { max_attempts, ..RetryPolicy::default() };
    history().task([call_with(1, timeouts(which, micros), retry)])
}
