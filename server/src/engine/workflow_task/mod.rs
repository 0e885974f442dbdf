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

mod commands;
mod completion;
mod failure;
mod hand_out;
mod numbers;

pub use failure::FailedTask;
pub use hand_out::{OpenTask, TaskOffer};
pub(super) use numbers::Numbers;

use failure::LastFailure;

use onward_proto::Timestamp;

use super::{Run, SessionId, TaskId, Worker, deadlines::Due};

/// Where a run's workflow task stands. All of it is a lease.
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
}

impl Run {
    /// Changes where the task stands, and its deadlines with it.
    pub(super) fn change_task(&mut self, change: impl FnOnce(&mut TaskLease)) {
        let before = (self.task.open_until(), self.task.not_before);
        change(&mut self.task);
        self.deadlines.change(Due::Task, before.0, self.task.open_until());
        self.deadlines.change(Due::TaskBackoff, before.1, self.task.not_before);
    }
}

impl TaskLease {
    /// When the task in flight fails.
    pub(super) fn open_until(&self) -> Option<Timestamp> {
        self.open.as_ref().map(|open| open.deadline)
    }

    /// Bytes of memory on the heap, roughly.
    pub(super) fn heap_bytes(&self) -> usize {
        self.last_failure.as_ref().map_or(0, |last| last.heap_bytes())
    }
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

/// The last completed task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LastTask {
    pub(super) task_id: TaskId,
    pub(super) handed_out_at: Timestamp,
    pub(super) more: bool,
}
