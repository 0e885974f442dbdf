//! One run's code, driven by its history: events in, commands out.
//!
//! It is pure: no clock, no runtime, no network, no order that depends on chance. The worker and
//! the [`Replayer`](crate::Replayer) drive the same machine.
//!
//! - One fact, one drain: the messages of a task go in together and are drained once, then each
//!   other fact wakes its leaf and is drained by itself, then recorded values and local activities
//!   follow at their marker's place. Live and replayed tasks take the same path, so the code is
//!   polled equally often.
//! - The code never learns of a mismatch, an unreadable value or a lost task: the drive ends and
//!   its future is dropped.
//! - What the code does outside a drive, while it panics, or while it is dropped by an eviction
//!   has no effect.

use std::{
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use onward_proto::{
    RunId,
    v1::{self, WorkflowTaskFailureCause as Cause, command::Kind, history_event::Attributes},
};

pub use crate::definition::WorkflowEntry;
use crate::{
    caught::{Caught, caught},
    definition::{RunError, RunFuture},
    error::Limit,
    limits,
    options::ActivityOptions,
    payload::Codec,
    workflow::Ctx,
};

pub(crate) mod core;
mod report;
mod rng;
#[cfg(test)]
mod tests;
mod wake;

pub(crate) use wake::is_replaying;

pub(crate) use self::report::{describe, task_failure};
use self::{
    core::{CancelRequest, Core, Delivery, LeafKind, LocalCall, LocalStage, Phase},
    report::Side,
};

/// What a machine is told about its worker.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    /// The format of new payloads.
    pub codec: Codec,
    /// The build of the worker's code, for reports.
    pub build_id: String,
    /// What the worker sets for the activities that its workflows call.
    pub activity: ActivityOptions,
    /// Whether changed arguments of a replayed call are a mismatch.
    pub strict_arguments: bool,
    /// The largest payload that the server takes in one command, 2 MiB by default.
    pub max_payload_bytes: u64,
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self {
            codec: Codec::default(),
            build_id: String::new(),
            activity: ActivityOptions::new(),
            strict_arguments: false,
            max_payload_bytes: limits::PAYLOAD_BYTES,
        }
    }
}

/// Which run it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// The isolation boundary.
    pub namespace: String,
    /// The caller's key.
    pub workflow_id: String,
    /// One attempt under it.
    pub run_id: RunId,
    /// The registered name of the workflow function.
    pub workflow_type: String,
}

/// A workflow task as the machine takes it.
#[derive(Debug, Clone)]
pub struct Task {
    /// This hand-out.
    pub task_id: v1::TaskId,
    /// What `ctx.now()` returns, in microseconds since the Unix epoch.
    pub handed_out_at_us: i64,
    /// In replay order: from event 1, or what follows the last completed task.
    pub events: Vec<v1::HistoryEvent>,
}

/// Where a task stands.
#[derive(Debug)]
pub enum Progress {
    /// The task is done.
    Completed(Completion),
    /// Local activities that run are outstanding; nothing else is to do.
    Waiting,
}

/// What a task came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The task.
    pub task_id: v1::TaskId,
    /// What the code asked for, in order; a close is last.
    pub commands: Vec<v1::Command>,
    /// Local activities wait for this task's commit.
    pub more: bool,
    /// Numbered behaviours of the machine that shaped this task.
    pub sdk_flags: Vec<u32>,
    /// Whether the run is closed by it.
    pub closed: bool,
}

/// Why a task failed. The machine is unusable afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskFailure {
    /// The cause.
    pub cause: v1::WorkflowTaskFailureCause,
    /// The report.
    pub failure: Box<v1::Failure>,
}

/// A local activity to run.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalActivityTask {
    /// Its number in the run's own sequence.
    pub number: u32,
    /// The registered name of the activity function.
    pub activity_type: &'static str,
    /// One entry for each parameter.
    pub arguments: Vec<v1::Payload>,
    /// Timeouts and retry policy.
    pub options: ActivityOptions,
}

/// How a local activity ended.
#[derive(Debug, Clone, PartialEq)]
pub enum LocalOutcome {
    /// It returned this.
    Completed {
        /// The value.
        result: v1::Payload,
        /// How many attempts there were.
        attempts: u32,
    },
    /// It failed for good.
    Failed {
        /// The last attempt's failure.
        failure: v1::Failure,
        /// Why there is no further attempt.
        cause: v1::LocalActivityFailureCause,
        /// How many attempts there were.
        attempts: u32,
    },
}

/// Behaviours of this machine that shape histories, by number. A history that names another one
/// was written by a newer SDK.
const SDK_FLAGS: &[u32] = &[FIRST_RULES];
/// The rules of the first version, written by the first task of every run.
const FIRST_RULES: u32 = 1;

/// How often the code may be polled in one drain before it counts as a loop.
const MAX_POLLS: u32 = 1_000_000;

/// One run in a worker: its future, and what the protocol knows of it.
///
/// It stays on one thread.
pub struct Machine {
    core: Rc<Core>,
    waker: Waker,
    entry: WorkflowEntry,
    code: Code,
    /// Whether the first drain has been.
    is_drained: bool,
    open: Option<OpenTask>,
    last_completed: Option<v1::TaskId>,
}

/// The run's own code.
enum Code {
    /// No event has come yet.
    New,
    Running(RunFuture),
    /// It came to its end in this drive; the command is not issued yet.
    Ended(Box<Close>),
    /// Its last command is issued, or it failed.
    Closed,
}

/// How the code came to its end.
enum Close {
    Completed(v1::Payload),
    Failed(v1::Failure),
    /// With what it said when it stopped, if it was not dropped.
    Cancelled(Option<v1::Failure>),
}

impl Close {
    /// The last command, with the signals that no code has read.
    fn into_command(self, unread_signals: Vec<u64>) -> v1::Command {
        let kind = match self {
            Self::Completed(result) => {
                let result = Some(result);
                Kind::CompleteWorkflow(v1::CompleteWorkflow { result, unread_signals })
            }
            Self::Failed(failure) => {
                let failure = Some(failure);
                Kind::FailWorkflow(v1::FailWorkflow { failure, unread_signals })
            }
            Self::Cancelled(failure) => {
                Kind::CancelWorkflow(v1::CancelWorkflow { failure, unread_signals })
            }
        };
        v1::Command { kind: Some(kind), ..Default::default() }
    }
}

struct OpenTask {
    task_id: v1::TaskId,
    is_first: bool,
}

impl Machine {
    /// A run that has seen nothing yet.
    pub fn new(entry: &WorkflowEntry, options: MachineOptions, run: RunInfo) -> Self {
        let core = Core::new(options, run);
        Self {
            waker: Waker::from(core.wake.clone()),
            core,
            entry: *entry,
            code: Code::New,
            is_drained: false,
            open: None,
            last_completed: None,
        }
    }

    /// Feeds a task. Completed tasks in it are replayed, the newest is driven live.
    ///
    /// # Errors
    /// If the task cannot be done; the machine is unusable then.
    pub fn run_task(&mut self, task: Task) -> Result<Progress, TaskFailure> {
        let Task { task_id, handed_out_at_us, events } = task;
        if self.open.is_some() {
            return Err(unsupported("a task of this run is open already".into()));
        }
        self.drive(|machine| {
            let is_first = machine.last_completed.is_none();
            let facts = machine.replay_completed(events)?;
            let is_first = is_first && machine.last_completed.is_none();
            machine.open = Some(OpenTask { task_id, is_first });
            machine.core.state.borrow_mut().phase = Phase::Live { commands: Vec::new() };
            wake::set_replaying(false);
            machine.take_facts(facts, handed_out_at_us)?;
            machine.settle()
        })
    }

    /// Replays the completed tasks of a history and does nothing new. Facts that no completed task
    /// took are left alone.
    ///
    /// # Errors
    /// If the code does not do what the history says; the machine is unusable then.
    pub fn replay(&mut self, events: Vec<v1::HistoryEvent>) -> Result<(), TaskFailure> {
        self.drive(|machine| machine.replay_completed(events).map(drop))
    }

    /// Local activities to start now: those whose issuing task is committed.
    pub fn take_local_activities(&mut self) -> Vec<LocalActivityTask> {
        let mut tasks = Vec::new();
        if matches!(self.code, Code::Closed) {
            return tasks;
        }
        for (number, leaf) in &mut self.core.state.borrow_mut().leaves {
            if let LeafKind::Local { stage, .. } = &mut leaf.kind
                && matches!(stage, LocalStage::Startable(_))
                && let LocalStage::Startable(call) = std::mem::replace(stage, LocalStage::Running)
            {
                let LocalCall { activity_type, arguments, options } = call;
                tasks.push(LocalActivityTask {
                    number: *number,
                    activity_type,
                    arguments,
                    options,
                });
            }
        }
        tasks
    }

    /// Running local activities that the code has dropped.
    pub fn take_local_cancels(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.core.state.borrow_mut().local_cancels)
    }

    /// Feeds the outcome of a local activity. Between tasks it waits for the next one.
    ///
    /// # Errors
    /// If the open task cannot go on; the machine is unusable then.
    pub fn local_activity_done(
        &mut self,
        number: u32,
        outcome: LocalOutcome,
    ) -> Result<Progress, TaskFailure> {
        self.core.state.borrow_mut().local_done.push_back((number, outcome));
        if self.open.is_none() {
            return Ok(Progress::Waiting);
        }
        self.drive(Self::settle)
    }

    /// Completes the open task although local activities are outstanding, because facts wait
    /// behind it.
    ///
    /// # Errors
    /// None: the code is not polled.
    pub fn yield_task(&mut self) -> Result<Progress, TaskFailure> {
        if self.open.is_none() {
            return Ok(Progress::Waiting);
        }
        Ok(self.complete(true))
    }

    /// The last completion of this machine, replayed ones included.
    pub fn last_completed(&self) -> Option<v1::TaskId> {
        self.last_completed
    }

    /// What people should hear about the run and no event says: skipped signals, changed
    /// arguments.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.core.state.borrow_mut().notes)
    }

    /// Drops the run. Its code cannot emit anything any more.
    pub fn evict(self) {
        drop(self);
    }

    /// Runs one step with this thread marked as driving the run, and ends the run if it fails.
    fn drive<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, TaskFailure>,
    ) -> Result<T, TaskFailure> {
        let core = self.core.clone();
        let _driving = core.wake.enter();
        core.set_driving(true);
        let result = step(self);
        core.set_driving(false);
        if let Err(failure) = &result {
            // The drive is over, so nothing that its code does when it is dropped has an effect.
            core.fail(failure.clone());
            self.open = None;
            // The first cause stands.
            let _ = self.discard_code();
        }
        result
    }

    /// Drops the code, whose destructors are the user's and may panic.
    fn discard_code(&mut self) -> Result<(), TaskFailure> {
        let code = std::mem::replace(&mut self.code, Code::Closed);
        caught(|| drop(code)).map_err(|panic| panicked(&panic))
    }

    /// Replays completed tasks and returns the facts behind the last of them.
    fn replay_completed(
        &mut self,
        events: Vec<v1::HistoryEvent>,
    ) -> Result<Vec<v1::HistoryEvent>, TaskFailure> {
        let mut facts = Vec::new();
        let mut events = events.into_iter();
        while let Some(mut event) = events.next() {
            match event.attributes.take() {
                None => {
                    return Err(unsupported(format!(
                        "event {} is of an unknown kind",
                        event.event_id
                    )));
                }
                Some(Attributes::WorkflowExecutionStarted(started)) => self.begin(started)?,
                Some(Attributes::WorkflowTaskCompleted(done)) => {
                    let recorded: VecDeque<_> =
                        events.by_ref().take(done.command_events as usize).collect();
                    if recorded.len() < done.command_events as usize {
                        return Err(unsupported("the history ends inside a completed task".into()));
                    }
                    if done.task_id.is_some() && done.task_id == self.last_completed {
                        check_taken(&recorded)?;
                        continue;
                    }
                    facts.truncate(facts.len().saturating_sub(done.untaken_facts as usize));
                    self.replay_task(std::mem::take(&mut facts), done, recorded)?;
                }
                Some(Attributes::WorkflowTaskFailed(_)) => {}
                Some(
                    Attributes::WorkflowExecutionCompleted(_)
                    | Attributes::WorkflowExecutionFailed(_)
                    | Attributes::WorkflowExecutionCancelled(_)
                    | Attributes::WorkflowExecutionTimedOut(_)
                    | Attributes::WorkflowExecutionTerminated(_),
                ) => facts.clear(),
                Some(
                    fact @ (Attributes::WorkflowExecutionCancelRequested(_)
                    | Attributes::ActivityCompleted(_)
                    | Attributes::ActivityFailed(_)
                    | Attributes::ActivityTimedOut(_)
                    | Attributes::ActivityCancelled(_)
                    | Attributes::TimerFired(_)
                    | Attributes::SignalReceived(_)),
                ) => {
                    event.attributes = Some(fact);
                    facts.push(event);
                }
                Some(
                    command @ (Attributes::ActivityScheduled(_)
                    | Attributes::ActivityCancelRequested(_)
                    | Attributes::TimerStarted(_)
                    | Attributes::TimerCancelled(_)
                    | Attributes::MarkerRecorded(_)),
                ) => return Err(out_of_place(event.event_id, &command)),
            }
        }
        if matches!(self.code, Code::New) {
            return Err(unsupported("the history does not begin with event 1".into()));
        }
        Ok(facts)
    }

    fn begin(&mut self, started: v1::WorkflowExecutionStarted) -> Result<(), TaskFailure> {
        if !matches!(self.code, Code::New) {
            return Err(unsupported("the history begins a second time".into()));
        }
        {
            let mut state = self.core.state.borrow_mut();
            state.started.task_queue = started.task_queue;
            state.started.attempt = started.attempt;
            state.started.seed = started.seed;
        }
        let ctx = Ctx::new(self.core.clone());
        let (make, codec) = (self.entry.make, self.core.options.codec);
        match caught(|| make(ctx, &started.arguments, codec)) {
            Ok(Ok(code)) => {
                self.code = Code::Running(code);
                Ok(())
            }
            Ok(Err(error)) => {
                Err(task_failure(Cause::Payload, format!("the workflow's arguments: {error}")))
            }
            Err(panic) => Err(panicked(&panic)),
        }
    }

    fn replay_task(
        &mut self,
        facts: Vec<v1::HistoryEvent>,
        done: v1::WorkflowTaskCompleted,
        recorded: VecDeque<v1::HistoryEvent>,
    ) -> Result<(), TaskFailure> {
        if let Some(flag) = done.sdk_flags.iter().find(|flag| !SDK_FLAGS.contains(flag)) {
            return Err(unsupported(format!("behaviour {flag} is not known to this SDK")));
        }
        wake::set_replaying(true);
        let build_id = done.build_id;
        self.core.state.borrow_mut().phase = Phase::Replay { recorded, build_id };
        self.take_facts(facts, done.handed_out_at_us)?;
        loop {
            if let Code::Ended(_) = self.code {
                self.issue_close();
                self.check()?;
                break;
            }
            if !self.replay_marker()? {
                break;
            }
        }
        self.check_all_issued()?;
        self.last_completed = done.task_id;
        Ok(())
    }

    /// Applies the marker that is next among the events of the task's commands, if one is.
    fn replay_marker(&mut self) -> Result<bool, TaskFailure> {
        let next = match &self.core.state.borrow().phase {
            Phase::Replay { recorded, .. } => recorded.front().cloned(),
            Phase::Idle | Phase::Live { .. } => None,
        };
        let Some(v1::HistoryEvent {
            event_id,
            attributes: Some(Attributes::MarkerRecorded(marker)),
            ..
        }) = next
        else {
            return Ok(false);
        };
        if !matches!(
            v1::MarkerKind::try_from(marker.kind),
            Ok(v1::MarkerKind::LocalActivity | v1::MarkerKind::RecordedValue)
        ) {
            return Err(unsupported(format!(
                "the marker at event {event_id} is of an unknown kind"
            )));
        }
        let Some(command) = self.core.expects_marker(&marker) else { return Ok(false) };
        self.core.issue_command(command);
        self.check()?;
        self.core.resolve(event_id, marker.number, Attributes::MarkerRecorded(marker));
        self.drain()?;
        Ok(true)
    }

    /// A completed task has the events of its commands, neither more nor fewer.
    fn check_all_issued(&self) -> Result<(), TaskFailure> {
        let mut state = self.core.state.borrow_mut();
        let unresolved = state.records.front().copied();
        let Phase::Replay { recorded, build_id } = std::mem::take(&mut state.phase) else {
            return Ok(());
        };
        let (event_id, history, code) = match (recorded.front(), unresolved) {
            (Some(event), _) => {
                let what =
                    event.attributes.as_ref().map_or_else(|| Side::none("unknown"), Side::of_event);
                (event.event_id, what, Side::none("nothing"))
            }
            (None, Some(number)) => (
                0,
                Side::none("the task ended here"),
                Side::none(&format!("MarkerRecorded value(#{number})")),
            ),
            (None, None) => return Ok(()),
        };
        let Core { run, options, .. } = &*self.core;
        Err(report::non_determinism(run, options, event_id, &build_id, &history, &code))
    }

    /// The facts of one task: its messages together, then the others one by one.
    fn take_facts(
        &mut self,
        facts: Vec<v1::HistoryEvent>,
        handed_out_at_us: i64,
    ) -> Result<(), TaskFailure> {
        {
            let mut state = self.core.state.borrow_mut();
            state.now_us = state.now_us.max(handed_out_at_us);
            // The task that issued these is committed: this one follows it.
            for leaf in state.leaves.values_mut() {
                if let LeafKind::Local { stage, .. } = &mut leaf.kind {
                    *stage = match std::mem::replace(stage, LocalStage::Running) {
                        LocalStage::Issued(call) => LocalStage::Startable(call),
                        stage @ (LocalStage::Startable(_) | LocalStage::Running) => stage,
                    };
                }
            }
        }
        let mut others = Vec::with_capacity(facts.len());
        let mut has_messages = false;
        let mut is_cancel_requested = false;
        for event in facts {
            match event.attributes {
                Some(Attributes::SignalReceived(signal)) => {
                    has_messages = true;
                    self.core.deliver_signal(event.event_id, signal);
                }
                Some(Attributes::WorkflowExecutionCancelRequested(_)) => {
                    has_messages = true;
                    is_cancel_requested = true;
                }
                Some(attributes) => others.push((event.event_id, attributes)),
                None => {}
            }
        }
        if is_cancel_requested && self.core.state.borrow().cancel == CancelRequest::None {
            self.deliver_cancel()?;
        }
        if !self.is_drained {
            self.is_drained = true;
            self.waker.wake_by_ref();
            self.drain()?;
        } else if has_messages {
            self.drain()?;
        }
        for (event_id, fact) in others {
            if !matches!(self.code, Code::Running(_)) {
                break;
            }
            let number = match &fact {
                Attributes::ActivityCompleted(event) => event.number,
                Attributes::ActivityFailed(event) => event.number,
                Attributes::ActivityTimedOut(event) => event.number,
                Attributes::ActivityCancelled(event) => event.number,
                Attributes::TimerFired(event) => event.number,
                Attributes::WorkflowExecutionStarted(_)
                | Attributes::WorkflowExecutionCompleted(_)
                | Attributes::WorkflowExecutionFailed(_)
                | Attributes::WorkflowExecutionCancelled(_)
                | Attributes::WorkflowExecutionTimedOut(_)
                | Attributes::WorkflowExecutionTerminated(_)
                | Attributes::WorkflowExecutionCancelRequested(_)
                | Attributes::WorkflowTaskCompleted(_)
                | Attributes::WorkflowTaskFailed(_)
                | Attributes::ActivityScheduled(_)
                | Attributes::ActivityCancelRequested(_)
                | Attributes::TimerStarted(_)
                | Attributes::TimerCancelled(_)
                | Attributes::SignalReceived(_)
                | Attributes::MarkerRecorded(_) => return Err(out_of_place(event_id, &fact)),
            };
            self.core.resolve(event_id, number, fact);
            self.drain()?;
        }
        Ok(())
    }

    /// Polls until quiet, then asks the conditions, then emits what the code dropped.
    fn drain(&mut self) -> Result<(), TaskFailure> {
        let mut polls = 0;
        self.poll_until_quiet(&mut polls)?;
        let mut last = 0;
        loop {
            let next = {
                let state = self.core.state.borrow();
                state.conditions.range(last + 1..).next().map(|(id, waker)| (*id, waker.clone()))
            };
            let Some((id, waker)) = next else { break };
            let met = self.core.state.borrow().conditions_met;
            waker.wake();
            self.poll_until_quiet(&mut polls)?;
            // What has come true, this one or another, may make an older one true.
            last = if self.core.state.borrow().conditions_met == met { id } else { 0 };
        }
        self.core.flush_cancels();
        self.check()
    }

    fn poll_until_quiet(&mut self, polls: &mut u32) -> Result<(), TaskFailure> {
        while let Code::Running(code) = &mut self.code {
            if !self.core.wake.take() {
                break;
            }
            *polls += 1;
            if *polls > MAX_POLLS {
                let text = format!("the code was polled {MAX_POLLS} times without coming to rest");
                return Err(task_failure(Cause::Stuck, text));
            }
            let mut cx = Context::from_waker(&self.waker);
            match caught(|| code.as_mut().poll(&mut cx)) {
                Ok(Poll::Pending) => self.check()?,
                Ok(Poll::Ready(outcome)) => {
                    self.check()?;
                    self.end(outcome)?;
                }
                Err(panic) => return Err(panicked(&panic)),
            }
            if self.core.is_cancel_due() {
                self.deliver_cancel()?;
            }
        }
        Ok(())
    }

    fn deliver_cancel(&mut self) -> Result<(), TaskFailure> {
        match self.core.deliver_cancel() {
            Delivery::Held => {}
            Delivery::Sections(wakers) => wakers.iter().for_each(Waker::wake_by_ref),
            Delivery::Run => {
                if let Code::Running(_) = self.code {
                    // Dropped while it is driven: its calls are cancelled.
                    self.discard_code()?;
                    self.code = Code::Ended(Box::new(Close::Cancelled(None)));
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, outcome: Result<v1::Payload, RunError>) -> Result<(), TaskFailure> {
        self.discard_code()?;
        let is_cancel_requested = self.core.is_cancel_requested();
        let close = match outcome {
            Ok(result) => Close::Completed(result),
            Err(RunError::Failed { failure, cancelled: true }) if is_cancel_requested => {
                Close::Cancelled(Some(failure))
            }
            Err(RunError::Failed { failure, .. }) => Close::Failed(failure),
            Err(RunError::Payload(error)) => {
                return Err(task_failure(
                    Cause::Payload,
                    format!("the workflow's result: {error}"),
                ));
            }
        };
        self.code = Code::Ended(Box::new(close));
        Ok(())
    }

    /// Issues the last command, with the signals that no code has read.
    fn issue_close(&mut self) {
        let Code::Ended(close) = std::mem::replace(&mut self.code, Code::Closed) else { return };
        let unread = self.core.unread_signals();
        self.core.issue_command(close.into_command(unread));
    }

    /// Brings the open task as far as it goes: recorded values, then local activities that are
    /// done, one drain each.
    fn settle(&mut self) -> Result<Progress, TaskFailure> {
        loop {
            if let Code::Ended(_) = self.code {
                self.issue_close();
                self.check()?;
                return Ok(self.complete(false));
            }
            let record = self.core.state.borrow_mut().records.pop_front();
            if let Some(number) = record {
                self.core.begin_recording(number);
                self.drain()?;
                self.core.end_recording();
                self.check()?;
                continue;
            }
            let done = self.core.state.borrow_mut().local_done.pop_front();
            if let Some((number, outcome)) = done {
                if self.core.finish_local(number, outcome) {
                    self.drain()?;
                }
                continue;
            }
            break;
        }
        let (mut is_issued, mut is_running) = (false, false);
        {
            let state = self.core.state.borrow();
            if !state.waits_for_something() {
                return Err(self.stuck());
            }
            for leaf in state.leaves.values() {
                if let LeafKind::Local { stage, .. } = &leaf.kind
                    && leaf.outcome.is_none()
                {
                    match stage {
                        LocalStage::Issued(_) => is_issued = true,
                        LocalStage::Startable(_) | LocalStage::Running => is_running = true,
                    }
                }
            }
        }
        if is_running && !is_issued {
            return Ok(Progress::Waiting);
        }
        Ok(self.complete(is_issued))
    }

    fn complete(&mut self, more: bool) -> Progress {
        let open = self.open.take().expect("only an open task is completed");
        let phase = std::mem::take(&mut self.core.state.borrow_mut().phase);
        let commands = match phase {
            Phase::Live { commands } => commands,
            Phase::Idle | Phase::Replay { .. } => Vec::new(),
        };
        self.last_completed = Some(open.task_id);
        Progress::Completed(Completion {
            task_id: open.task_id,
            commands,
            more,
            sdk_flags: if open.is_first { vec![FIRST_RULES] } else { Vec::new() },
            closed: matches!(self.code, Code::Closed),
        })
    }

    fn stuck(&self) -> TaskFailure {
        if self.core.wake.is_foreign() {
            return foreign_wake();
        }
        let text = "the workflow waits for something that the server cannot deliver: \
                    no activity, timer, signal or condition is outstanding";
        task_failure(Cause::Stuck, text)
    }

    /// What went wrong while the code was polled.
    fn check(&self) -> Result<(), TaskFailure> {
        if let Some(failure) = &self.core.state.borrow().failure {
            return Err(failure.clone());
        }
        if self.core.wake.is_foreign() { Err(foreign_wake()) } else { Ok(()) }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.core.set_driving(false);
        // Nobody is left to hear of a panic.
        let _ = self.discard_code();
    }
}

fn foreign_wake() -> TaskFailure {
    task_failure(
        Cause::ForeignWake,
        "the workflow was woken by another thread or runtime: workflow code may wait for \
         activities, timers, signals and conditions only",
    )
}

fn out_of_place(event_id: u64, event: &Attributes) -> TaskFailure {
    let what = Side::of_event(event);
    unsupported(format!("event {event_id} is out of place: {what}"))
}

/// The server records what it is given, or the limit that forbids it. A refused call is closed by a
/// fact; but with a refused value the code has gone on already, which no replay will.
fn check_taken(recorded: &VecDeque<v1::HistoryEvent>) -> Result<(), TaskFailure> {
    let markers = recorded.iter().filter_map(|event| match &event.attributes {
        Some(Attributes::MarkerRecorded(marker)) => Some((event.event_id, marker)),
        Some(_) | None => None,
    });
    for (event_id, marker) in markers {
        if let Some(limit) = marker.refused.clone().map(Limit::from) {
            let what = Side::of_event(&Attributes::MarkerRecorded(marker.clone()));
            let text = format!("event {event_id}, {what}, was refused: {limit}");
            return Err(task_failure(Cause::Payload, text));
        }
    }
    Ok(())
}

fn unsupported(message: String) -> TaskFailure {
    task_failure(Cause::Unsupported, message)
}

fn panicked(panic: &Caught) -> TaskFailure {
    task_failure(Cause::Panic, format!("the workflow {panic}"))
}
