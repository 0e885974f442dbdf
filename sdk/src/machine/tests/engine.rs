//! The server of the tests, and workflows written in a line.

use std::time::Duration;

use onward_proto::{
    RunId,
    v1::{self, HistoryEvent, command::Kind, history_event::Attributes},
};

use crate::{
    ActivityCtx, ActivityTarget, Error, RetryHint,
    definition::{Activity, Workflow, WorkflowEntry},
    failure,
    machine::{
        Completion, LocalActivityTask, LocalOutcome, Machine, MachineOptions, Progress, RunInfo,
        Task, TaskFailure, core::Phase,
    },
    payload::{self, Args, Codec},
    workflow::{Call, Ctx, LocalCall},
};

/// Defines a workflow of the tests.
macro_rules! workflow {
    ($name:ident($ctx:ident $(, $arg:ident: $type:ty)*) -> $output:ty $body:block) => {
        workflow!(@OnPanic::Retry $name($ctx $(, $arg: $type)*) -> $output $body);
    };
    (@OnPanic::$on_panic:ident $name:ident($ctx:ident $(, $arg:ident: $type:ty)*) -> $output:ty $body:block) => {
        struct $name;
        impl crate::definition::Workflow for $name {
            const NAME: &'static str = stringify!($name);
            const ON_PANIC: crate::OnPanic = crate::OnPanic::$on_panic;
            type Args = ($($type,)*);
            type Output = $output;
            type Error = crate::Error;

            #[allow(unused_variables)]
            async fn run(ctx: &crate::Ctx, ($($arg,)*): Self::Args) -> crate::Result<$output> {
                let $ctx = ctx;
                $body
            }
        }
    };
}
pub(super) use workflow;

/// An activity that the engine completes with what a test says.
pub(super) struct work;

impl Activity for work {
    const NAME: &'static str = "work";
    type Args = (u32,);
    type Deps = ();
    type Output = u32;
    type Error = Error;

    async fn run(_: &ActivityCtx<()>, (n,): (u32,)) -> Result<u32, Error> {
        Ok(n)
    }
}

#[track_caller]
pub(super) fn do_work(ctx: &Ctx, n: u32) -> Call<'_, work> {
    ActivityTarget::<work>::call(ctx, (n,), std::panic::Location::caller())
}

/// A local activity that makes a text.
pub(super) struct write;

impl Activity for write {
    const NAME: &'static str = "write";
    type Args = ();
    type Deps = ();
    type Output = String;
    type Error = Error;

    async fn run(_: &ActivityCtx<()>, (): ()) -> Result<String, Error> {
        Ok(String::new())
    }
}

#[track_caller]
pub(super) fn do_local_write(ctx: &Ctx) -> LocalCall<'_, write> {
    ActivityTarget::<write>::call(ctx.local(), (), std::panic::Location::caller())
}

#[track_caller]
pub(super) fn do_local(ctx: &Ctx, n: u32) -> LocalCall<'_, work> {
    ActivityTarget::<work>::call(ctx.local(), (n,), std::panic::Location::caller())
}

pub(super) const SECOND: Duration = Duration::from_secs(1);

// --- what happens, in words

pub(super) fn done(number: u32, value: u32) -> Attributes {
    Attributes::ActivityCompleted(v1::ActivityCompleted {
        number,
        result: Some(payload::encode(&value, Codec::Json).unwrap()),
        attempt: 1,
        identity: String::new(),
    })
}

pub(super) fn failed(number: u32, error: Error, cause: v1::ActivityFailureCause) -> Attributes {
    Attributes::ActivityFailed(v1::ActivityFailed {
        number,
        failure: Some(failure::to_wire(&error.with_retry(RetryHint::Never), Codec::Json)),
        cause: cause as i32,
        attempt: 3,
        ..Default::default()
    })
}

pub(super) fn fired(number: u32) -> Attributes {
    Attributes::TimerFired(v1::TimerFired { number })
}

pub(super) fn signal(
    name: &str,
    value: impl serde::Serialize + 'static + serde::de::DeserializeOwned,
) -> Attributes {
    Attributes::SignalReceived(v1::SignalReceived {
        signal_name: name.to_owned(),
        arguments: (value,).encode(Codec::Json).unwrap().payloads,
        ..Default::default()
    })
}

pub(super) fn cancel() -> Attributes {
    Attributes::WorkflowExecutionCancelRequested(v1::WorkflowExecutionCancelRequested::default())
}

/// One run and its server.
pub(super) struct Run {
    entry: WorkflowEntry,
    pub(super) history: Vec<HistoryEvent>,
    inbox: Vec<Attributes>,
    machine: Option<Machine>,
    /// Whether the machine is thrown away before every task.
    pub(super) is_cold: bool,
    tasks: u64,
    /// The commands of each task, in words.
    pub(super) trace: Vec<String>,
    /// Local activities that run.
    pub(super) running: Vec<LocalActivityTask>,
    pub(super) is_open: bool,
    pub(super) is_closed: bool,
    taken: Vec<HistoryEvent>,
    handed_out_at_us: i64,
    owed: bool,
    is_unchecked: bool,
    /// The largest payload that the server takes, and what the worker believes it to be.
    server_limit: u64,
    worker_limit: u64,
    brings_own_events: bool,
}

impl Run {
    pub(super) fn new<W: Workflow>(args: &W::Args) -> Self {
        let started = Attributes::WorkflowExecutionStarted(v1::WorkflowExecutionStarted {
            workflow_type: W::NAME.to_owned(),
            task_queue: "orders".to_owned(),
            arguments: args.encode(Codec::Json).unwrap().payloads,
            attempt: 2,
            seed: bytes::Bytes::from_static(&[7; 32]),
            workflow_id: "order-42".to_owned(),
            ..Default::default()
        });
        Self {
            entry: WorkflowEntry::of::<W>(),
            history: Vec::new(),
            inbox: vec![started],
            machine: None,
            is_cold: false,
            tasks: 0,
            trace: Vec::new(),
            running: Vec::new(),
            is_open: false,
            is_closed: false,
            taken: Vec::new(),
            handed_out_at_us: 0,
            owed: true,
            is_unchecked: false,
            server_limit: 1_000,
            worker_limit: 1_000,
            brings_own_events: false,
        }
    }

    /// With a worker that believes another limit than the server's.
    pub(super) fn believing(mut self, worker_limit: u64) -> Self {
        self.worker_limit = worker_limit;
        self
    }

    /// Without the replay after every task.
    pub(super) fn unchecked(mut self) -> Self {
        self.is_unchecked = true;
        self
    }

    pub(super) fn cold(mut self) -> Self {
        self.is_cold = true;
        self
    }

    fn new_machine(&self) -> Machine {
        let run = RunInfo {
            namespace: "default".into(),
            workflow_id: "order-42".into(),
            run_id: RunId::from_uuid(uuid::Uuid::nil()),
            workflow_type: self.entry.name.into(),
        };
        let options = MachineOptions {
            build_id: "1.5.0".into(),
            strict_arguments: true,
            max_payload_bytes: self.worker_limit,
            ..MachineOptions::default()
        };
        Machine::new(&self.entry, options, run)
    }

    /// Something happens; no task takes it yet.
    pub(super) fn happens(&mut self, fact: Attributes) -> &mut Self {
        assert!(!self.is_closed, "the run is closed");
        self.inbox.push(fact);
        self.owed = true;
        self
    }

    /// Something happens, and a task takes the whole inbox. Returns the task's commands.
    pub(super) fn on(&mut self, facts: impl IntoIterator<Item = Attributes>) -> String {
        for fact in facts {
            self.happens(fact);
        }
        self.task().unwrap()
    }

    /// A task that brings the worker the events of its own last completion too.
    pub(super) fn with_own_events(
        &mut self,
        facts: impl IntoIterator<Item = Attributes>,
    ) -> Result<String, TaskFailure> {
        self.brings_own_events = true;
        for fact in facts {
            self.happens(fact);
        }
        self.task()
    }

    /// A worker restarts: everything it kept is lost.
    pub(super) fn crash(&mut self) {
        self.machine = None;
        self.running.clear();
        if std::mem::take(&mut self.is_open) {
            let taken = std::mem::take(&mut self.taken);
            let taken = taken.into_iter().filter_map(|event| event.attributes);
            self.inbox.splice(0..0, taken);
            self.owed = true;
        }
    }

    /// Hands out a task and carries it as far as it goes without local activities ending.
    pub(super) fn task(&mut self) -> Result<String, TaskFailure> {
        assert!(!self.is_open && !self.is_closed);
        if self.is_cold && self.running.is_empty() {
            self.machine = None;
        }
        self.owed = false;
        self.tasks += 1;
        let (messages, others): (Vec<_>, Vec<_>) = self.inbox.drain(..).partition(|fact| {
            matches!(
                fact,
                Attributes::WorkflowExecutionStarted(_)
                    | Attributes::SignalReceived(_)
                    | Attributes::WorkflowExecutionCancelRequested(_)
            )
        });
        let first_id = self.history.len() as u64 + 1;
        self.taken = (first_id..)
            .zip(messages.into_iter().chain(others))
            .map(|(event_id, attributes)| HistoryEvent {
                event_id,
                attributes: Some(attributes),
                ..Default::default()
            })
            .collect();
        self.handed_out_at_us = self.tasks as i64 * 1_000_000;
        let mut events = Vec::new();
        if self.machine.is_none() {
            self.machine = Some(self.new_machine());
            events.clone_from(&self.history);
        } else if std::mem::take(&mut self.brings_own_events) {
            let is_completion = |event: &HistoryEvent| {
                matches!(event.attributes, Some(Attributes::WorkflowTaskCompleted(_)))
            };
            let last = self.history.iter().rposition(is_completion).unwrap();
            events.extend_from_slice(&self.history[last..]);
        }
        events.extend(self.taken.iter().cloned());
        let task = Task {
            task_id: v1::TaskId { incarnation: 1, counter: self.tasks },
            handed_out_at_us: self.handed_out_at_us,
            events,
        };
        self.is_open = true;
        let progress = self.machine.as_mut().unwrap().run_task(task);
        self.after(progress)
    }

    /// A running local activity ends.
    pub(super) fn local_done(&mut self, number: u32, outcome: LocalOutcome) -> String {
        self.running.retain(|task| task.number != number);
        let progress = self.machine.as_mut().unwrap().local_activity_done(number, outcome);
        if self.is_open {
            self.after(progress).unwrap()
        } else {
            assert!(matches!(progress, Ok(Progress::Waiting)));
            String::new()
        }
    }

    pub(super) fn yields(&mut self) -> String {
        let progress = self.machine.as_mut().unwrap().yield_task();
        self.after(progress).unwrap()
    }

    fn after(&mut self, progress: Result<Progress, TaskFailure>) -> Result<String, TaskFailure> {
        let progress = match progress {
            Ok(progress) => progress,
            Err(failure) => {
                self.crash();
                return Err(failure);
            }
        };
        let machine = self.machine.as_mut().unwrap();
        for number in machine.take_local_cancels() {
            self.running.retain(|task| task.number != number);
        }
        let started = machine.take_local_activities();
        self.running.extend(started);
        match progress {
            Progress::Waiting => {
                self.check_held_back();
                Ok("waiting".to_owned())
            }
            Progress::Completed(completion) => {
                self.is_open = false;
                Ok(self.record(completion))
            }
        }
    }

    /// A task that waits for local activities holds nothing back that the server could act on.
    fn check_held_back(&self) {
        let state = self.machine.as_ref().unwrap().core.state.borrow();
        if let Phase::Live { commands } = &state.phase {
            let held = commands.iter().map(in_words);
            let held: Vec<_> = held
                .filter(|words| !words.starts_with("record#") && !words.starts_with("local "))
                .collect();
            assert!(held.is_empty(), "{held:?} wait for a local activity");
        }
    }

    pub(super) fn is_owed_a_task(&self) -> bool {
        !self.is_open && !self.is_closed && self.owed
    }

    fn record(&mut self, completion: Completion) -> String {
        assert_eq!(
            completion.sdk_flags,
            if self.tasks_completed() == 0 { vec![1] } else { vec![] }
        );
        let mut words: Vec<String> = completion.commands.iter().map(in_words).collect();
        if completion.more {
            words.push("more".to_owned());
            self.owed = true;
        }
        let words = words.join(", ");
        self.trace.push(words.clone());
        self.history.append(&mut self.taken);
        let completed = Attributes::WorkflowTaskCompleted(v1::WorkflowTaskCompleted {
            task_id: Some(completion.task_id),
            handed_out_at_us: self.handed_out_at_us,
            command_events: completion.commands.len() as u32,
            more: completion.more,
            build_id: "1.4.0".to_owned(),
            sdk_flags: completion.sdk_flags,
            ..Default::default()
        });
        self.is_closed = completion.closed;
        let limit = self.server_limit;
        let events: Vec<Attributes> = completion
            .commands
            .into_iter()
            .map(|command| refuse_marker(event_of(command), limit))
            .collect();
        for cancelled in &events {
            if let Attributes::TimerCancelled(event) = cancelled {
                // A timer that fired untaken is forgotten.
                self.inbox.retain(|fact| *fact != fired(event.number));
            }
        }
        for attributes in std::iter::once(completed).chain(events) {
            let event_id = self.history.len() as u64 + 1;
            self.history.push(HistoryEvent {
                event_id,
                attributes: Some(attributes),
                ..Default::default()
            });
        }
        if !self.is_unchecked {
            self.replay().unwrap();
        }
        words
    }

    fn tasks_completed(&self) -> usize {
        let is_completed = |event: &&HistoryEvent| {
            matches!(event.attributes, Some(Attributes::WorkflowTaskCompleted(_)))
        };
        self.history.iter().filter(is_completed).count()
    }

    /// Replays what is recorded so far on a new machine.
    pub(super) fn replay(&self) -> Result<(), TaskFailure> {
        self.new_machine().replay(self.history.clone())
    }

    /// Replays what is recorded with another workflow's code.
    pub(super) fn replay_as<W: Workflow>(&mut self) -> TaskFailure {
        self.entry = WorkflowEntry::of::<W>();
        self.replay().unwrap_err()
    }

    pub(super) fn result<T: serde::de::DeserializeOwned>(&self) -> T {
        match self.history.last().unwrap().attributes.as_ref().unwrap() {
            Attributes::WorkflowExecutionCompleted(event) => {
                payload::decode(event.result.as_ref().unwrap()).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn in_words(command: &v1::Command) -> String {
    let number = command.number;
    match command.kind.as_ref().unwrap() {
        Kind::ScheduleActivity(call) => format!("{}#{number}", call.activity_type),
        Kind::CancelActivity(_) => format!("cancel work#{number}"),
        Kind::StartTimer(timer) => format!("timer#{number} {}s", timer.duration_us / 1_000_000),
        Kind::CancelTimer(_) => format!("cancel timer#{number}"),
        Kind::RecordMarker(marker) if marker.name.is_empty() => format!("record#{number}"),
        Kind::RecordMarker(marker) => format!("local {}#{number}", marker.name),
        Kind::CompleteWorkflow(close) => format!("complete{}", unread(&close.unread_signals)),
        Kind::FailWorkflow(close) => format!("fail{}", unread(&close.unread_signals)),
        Kind::CancelWorkflow(close) => format!("cancelled{}", unread(&close.unread_signals)),
    }
}

fn unread(signals: &[u64]) -> String {
    if signals.is_empty() { String::new() } else { format!(" unread {signals:?}") }
}

fn event_of(command: v1::Command) -> Attributes {
    let v1::Command { number, call_site, arguments_hash, summary, kind, refused } = command;
    assert_eq!(refused, None, "the machine knows nothing of messages");
    match kind.unwrap() {
        Kind::ScheduleActivity(call) => Attributes::ActivityScheduled(v1::ActivityScheduled {
            number,
            activity_type: call.activity_type,
            arguments: call.arguments,
            call_site,
            arguments_hash,
            summary,
            ..Default::default()
        }),
        Kind::CancelActivity(_) => {
            Attributes::ActivityCancelRequested(v1::ActivityCancelRequested { number })
        }
        Kind::StartTimer(timer) => Attributes::TimerStarted(v1::TimerStarted {
            number,
            duration_us: timer.duration_us,
            call_site,
            summary,
            ..Default::default()
        }),
        Kind::CancelTimer(_) => Attributes::TimerCancelled(v1::TimerCancelled { number }),
        Kind::RecordMarker(marker) => Attributes::MarkerRecorded(v1::MarkerRecorded {
            number,
            kind: marker.kind,
            name: marker.name,
            result: marker.result,
            failure: marker.failure,
            cause: marker.cause,
            attempts: marker.attempts,
            call_site,
            arguments_hash,
            refused: None,
        }),
        Kind::CompleteWorkflow(close) => {
            Attributes::WorkflowExecutionCompleted(v1::WorkflowExecutionCompleted {
                result: close.result,
                unread_signals: close.unread_signals,
            })
        }
        Kind::FailWorkflow(close) => {
            Attributes::WorkflowExecutionFailed(v1::WorkflowExecutionFailed {
                failure: close.failure,
                unread_signals: close.unread_signals,
                refused: None,
            })
        }
        Kind::CancelWorkflow(close) => {
            Attributes::WorkflowExecutionCancelled(v1::WorkflowExecutionCancelled {
                failure: close.failure,
                unread_signals: close.unread_signals,
            })
        }
    }
}

/// What the server makes of a marker that is too large.
fn refuse_marker(event: Attributes, limit: u64) -> Attributes {
    let Attributes::MarkerRecorded(mut marker) = event else { return event };
    let value = marker.result.as_ref().map_or(0, |result| result.data.len() as u64);
    if value > limit {
        marker.result = None;
        let name = "payload_bytes_per_command".to_owned();
        marker.refused = Some(v1::Limit { name, limit, value });
    }
    Attributes::MarkerRecorded(marker)
}

pub(super) fn local_text(text: &str) -> LocalOutcome {
    LocalOutcome::Completed { result: payload::encode(text, Codec::Json).unwrap(), attempts: 1 }
}

pub(super) fn local_value(value: u32) -> LocalOutcome {
    LocalOutcome::Completed { result: payload::encode(&value, Codec::Json).unwrap(), attempts: 1 }
}
