//! What a machine is told about its run and its tasks, and what it says to them.

use onward_proto::{RunId, v1};

use crate::{limits, options::ActivityOptions, payload::Codec};

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
    /// Local activities that run are outstanding; nothing else is to do, for the server neither.
    Waiting,
}

/// What a task came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The task.
    pub task_id: v1::TaskId,
    /// What the code asked for, in order; a close is last.
    pub commands: Vec<v1::Command>,
    /// Local activities wait for this task's commit, or run: the next task is owed at once.
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
        /// The last attempt's failure; if it took too long, that of the one before.
        failure: Option<v1::Failure>,
        /// Why there is no further attempt.
        cause: v1::LocalActivityFailureCause,
        /// How many attempts there were.
        attempts: u32,
    },
}
