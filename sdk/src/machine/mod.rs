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
//!
//! Tasks come in by `task`; `replay` goes through those that are completed, `drain` feeds facts to
//! the code. `core` is what the code's own leaves share, with a file for each kind of them: `leaf`
//! for calls and timers, `marker`, `signal`, `section`.

use std::{rc::Rc, task::Waker};

use onward_proto::v1::{
    self, WorkflowTaskFailureCause as Cause, command::Kind, history_event::Attributes,
};

pub use crate::definition::WorkflowEntry;
use crate::{
    caught::{Caught, caught},
    definition::RunFuture,
};

pub(crate) mod core;
mod drain;
mod leaf;
pub(crate) mod marker;
mod replay;
mod report;
mod rng;
pub(crate) mod section;
mod signal;
mod task;
#[cfg(test)]
mod tests;
mod wake;

pub(crate) use wake::{is_making, is_replaying, making};

pub(crate) use self::report::{describe, task_failure};
pub use self::task::{
    Completion, LocalActivityTask, LocalOutcome, MachineOptions, Progress, RunInfo, Task,
    TaskFailure,
};
use self::{
    core::{Core, Phase},
    leaf::LeafKind,
    marker::{LocalCall, LocalStage},
    report::Side,
};

/// Behaviours of this machine that shape histories, by number. A history that names another one
/// was written by a newer SDK.
const SDK_FLAGS: &[u32] = &[FIRST_RULES];
/// The rules of the first version, written by the first task of every run.
const FIRST_RULES: u32 = 1;

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

    /// What people should hear about the run and no event says: skipped signals, changed
    /// arguments.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.core.state.borrow_mut().notes)
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

    /// Issues the last command, with the signals that no code has read.
    fn issue_close(&mut self) {
        let Code::Ended(close) = std::mem::replace(&mut self.code, Code::Closed) else { return };
        let unread = self.core.unread_signals();
        self.core.emit(close.into_command(unread));
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
                if self.core.finish_record(number) {
                    self.drain()?;
                }
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
        let (mut is_issued, mut is_running, mut is_awaited) = (false, false, false);
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
            if let Phase::Live { commands } = &state.phase {
                let is_marker =
                    |command: &v1::Command| matches!(command.kind, Some(Kind::RecordMarker(_)));
                is_awaited = !commands.iter().all(is_marker);
            }
        }
        // Markers can wait for the activities that run; what the server is to do cannot.
        if is_running && !is_issued && !is_awaited {
            return Ok(Progress::Waiting);
        }
        Ok(self.complete(is_issued || is_running))
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

/// Drops the run's code, which cannot emit anything any more. A panic of it ends here.
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

fn unsupported(message: String) -> TaskFailure {
    task_failure(Cause::Unsupported, message)
}

pub(crate) fn panicked(panic: &Caught) -> TaskFailure {
    task_failure(Cause::Panic, format!("the workflow {panic}"))
}
