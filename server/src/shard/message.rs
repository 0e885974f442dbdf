//! What a lane can be told, and what it answers.

use std::sync::Arc;

use onward_proto::{
    NamespaceId, RunId,
    v1::{DescribeWorkflowResponse, HistoryEvent, JournalRow, WorkflowOutcome},
};
use tokio::sync::oneshot;

use crate::{
    dispatch::{Match, Session},
    engine::{Answer, Input, Rejection, SessionId, Start, TaskId, Token},
};

/// Where an answer goes. The lane lets go of it only when all that it rests on is durable.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The rules say no. Certainly not applied.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// There is no such run.
    #[error("no workflow {workflow_id} in namespace {namespace}")]
    NotFound {
        /// The namespace's name.
        namespace: String,
        /// The caller's key, or the run id that was asked for.
        workflow_id: String,
    },
    /// Too much waits already. Certainly not applied.
    #[error("the shard is busy: {limit} wait already; ask again later")]
    Busy {
        /// How much may wait.
        limit: String,
    },
    /// The shard is being loaded or has moved. Ask again with the same request id.
    #[error("the shard is not available: {0}")]
    Unavailable(String),
    /// The run's stored records cannot be read, or the database refuses them.
    #[error("run {run_id} is parked: {reason}")]
    Parked {
        /// The run.
        run_id: RunId,
        /// Why.
        reason: String,
    },
    /// Which run is the newest of a workflow id cannot be read.
    #[error("the newest run of workflow {workflow_id} cannot be read: {reason}")]
    Unreadable {
        /// The caller's key.
        workflow_id: String,
        /// Why.
        reason: String,
    },
}

/// The run that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The namespace.
    pub namespace_id: NamespaceId,
    /// Its name, for answers.
    pub namespace: String,
    /// The caller's key.
    pub workflow_id: String,
    /// One run of it; `None` means the newest.
    pub run_id: Option<RunId>,
}

/// Where a run's journal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// The run.
    pub run_id: RunId,
    /// Durable rows of its journal.
    pub rows: u32,
    /// Whether it has closed, durably.
    pub closed: bool,
}

/// What an outsider asks of a lane.
#[derive(Debug)]
pub enum Request {
    /// Start a run.
    Start {
        /// The start.
        start: Box<Start>,
        /// Told once the start is durable. Without `outcome` somebody waits for it alone, and the
        /// batch commits at once.
        answer: Reply<Answer>,
        /// Told once the run has closed.
        outcome: Option<Reply<WorkflowOutcome>>,
    },
    /// Signal, cancel or terminate a run.
    Change {
        /// The run.
        target: Target,
        /// What to do.
        input: Input,
        /// Told once it is durable.
        answer: Reply<Answer>,
    },
    /// Tell all about a run.
    Describe {
        /// The run.
        target: Target,
        /// The description.
        answer: Reply<Box<DescribeWorkflowResponse>>,
    },
    /// Wait until a run has closed.
    AwaitResult {
        /// The run.
        target: Target,
        /// Told at once which run it is.
        located: Reply<Located>,
        /// Told once it has closed.
        outcome: Reply<WorkflowOutcome>,
    },
    /// Tell where a run's journal stands, when it has more than `beyond` rows or has closed.
    Locate {
        /// The run.
        target: Target,
        /// Rows that the caller has read; `None` answers at once.
        beyond: Option<u32>,
        /// The place.
        answer: Reply<Located>,
    },
    /// Tell what of a task's history is not in the journal's durable rows.
    TaskTail {
        /// The run.
        run_id: RunId,
        /// The task, which must be in flight.
        task_id: TaskId,
        /// Rows that the caller has read.
        rows: u32,
        /// The rest.
        answer: Reply<TaskTail>,
    },
}

/// The end of a task's history.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskTail {
    /// Durable rows of the journal when this was put together. If the caller has read fewer, it
    /// reads on first.
    pub rows: u32,
    /// Rows behind those, with their numbers.
    pub staged: Vec<(u32, JournalRow)>,
    /// The facts that the task took, numbered.
    pub facts: Vec<HistoryEvent>,
}

/// What a worker's session tells a lane.
#[derive(Debug)]
pub enum FromWorker {
    /// Something about one run.
    Run {
        /// The run.
        run_id: RunId,
        /// The session.
        session: Arc<Session>,
        /// What.
        input: Input,
    },
    /// A task came without the history it needs.
    NeedHistory {
        /// The run.
        run_id: RunId,
        /// The task.
        task_id: TaskId,
        /// The session.
        session: Arc<Session>,
    },
    /// A workflow task makes progress.
    TaskHeartbeat {
        /// The run.
        run_id: RunId,
        /// The task.
        task_id: TaskId,
    },
    /// A cached run has left the worker.
    Evicted {
        /// The run.
        run_id: RunId,
        /// The session.
        session: SessionId,
    },
    /// Attempts that still run on the worker.
    InFlight {
        /// The attempts.
        tokens: Vec<Token>,
        /// The session.
        session: Arc<Session>,
    },
    /// The session is gone.
    Lost(SessionId),
}

/// Everything that reaches a lane's mailbox.
#[derive(Debug)]
pub enum Mail {
    /// From a client.
    Request(Request),
    /// From a worker.
    Worker(FromWorker),
    /// A session has a credit for an offer of this lane.
    Matched(Match),
    /// The lease was renewed or lost by the node's common statement.
    Lease(LeaseNews),
    /// End: commit what is staged, answer, stop.
    Drain,
}

impl Mail {
    /// Bytes of what it carries, if it is a client's.
    pub(crate) fn request_bytes(&self) -> usize {
        match self {
            Self::Request(request) => request.bytes(),
            Self::Worker(_) | Self::Matched(_) | Self::Lease(_) | Self::Drain => 0,
        }
    }
}

/// What the node's common renewal found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseNews {
    /// Renewed; effects that waited for it may go.
    Renewed,
    /// Another owner has the shard, or the database lost commits that memory rests on.
    Lost,
}
