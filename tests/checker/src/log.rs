//! What a checker reads.
//!
//! Times are microseconds on one monotonic clock for the whole log: that of the machine, or the
//! virtual one of a simulation. So `a.ended_us < b.began_us` means that `a` was over before `b`
//! began. Times inside of events are the database's and are never compared with these.

use onward_proto::v1::{HistoryEvent, WorkflowStatus};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// All that is known of one run of a system.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// What clients asked for, and what they were told.
    pub operations: Vec<Operation>,
    /// Attempts of activities that began, as the workers noted them outside of the system.
    pub executions: Vec<Execution>,
    /// Durable waits, as workflow code saw them.
    pub waits: Vec<Wait>,
    /// Pages of histories that readers got.
    pub reads: Vec<Read>,
    /// Looks at the open runs of the store, each in one snapshot.
    pub snapshots: Vec<Snapshot>,
    /// The store when all was over.
    pub runs: Vec<Run>,
    /// All runs by the server's own list, when all was over.
    pub listed: Vec<Listed>,
    /// What came of it when histories were put before the code that they are of.
    pub replays: Vec<Replay>,
    /// All batches of the store, by shard and number. They must not have been pruned.
    pub batches: Vec<Batch>,
    /// Runs whose programs say what should have come of them.
    pub endings: Vec<Ending>,
    /// When something broke that attempts hang on: a process, a connection, a batch. What was written
    /// off then waits for no backoff.
    pub disturbances: Vec<u64>,
    /// Whether the database's clock did not always go on as it should. Then waits are as long as it
    /// says, and no longer.
    pub clock_stepped: bool,
    /// When the database lost commits that it had acknowledged. Who was answered then may have been
    /// told what is no longer true; that is waived, and nothing else.
    pub lost: Vec<Window>,
    /// The newest batch that was left of each shard whenever that happened, in this order.
    pub left: Vec<Batch>,
    /// When each server process was well: it ran, and reached the database.
    pub well: Vec<Well>,
    /// When the database did not do at once what it was asked, or did it later.
    pub unwell: Vec<Window>,
    /// Who has owned the shards since when, in the order in which it became so.
    pub owners: Vec<Owner>,
    /// Until when that is known.
    pub ended_us: u64,
    /// When what a server had sent may not have got through for long.
    pub held: Vec<Window>,
    /// What cannot happen in this world, or is not known of it.
    pub lacks: Vec<Lack>,
}

/// What a log need not have, so that a rule about it is skipped instead of void.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Who owned the shards when, and which servers were well.
    Owners,
    /// Commits that a database lost.
    LostCommits,
    /// When what servers had sent was held up.
    Held,
}

/// A stretch of time in which a server process was well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Well {
    /// The process, as the store knows it.
    pub node: Uuid,
    /// From when on.
    pub from_us: u64,
    /// Until when; `None` if it still is. A process may be well again later.
    pub to_us: Option<u64>,
}

/// Since when a shard has had an owner, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Since when.
    pub at_us: u64,
    /// The shard.
    pub shard: i32,
    /// Its owner; `None` after it was given up.
    pub node: Option<Uuid>,
}

/// A stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its first moment.
    pub from_us: u64,
    /// Its last moment.
    pub to_us: u64,
}

/// One request of a client, over all its tries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Who asked. Requests of one process do not overlap, unless it says so by another name.
    pub process: String,
    /// About which workflow.
    pub workflow_id: String,
    /// The request's own id; `None` for a read.
    pub request_id: Option<Uuid>,
    /// What for.
    pub call: Call,
    /// When the first try was sent.
    pub began_us: u64,
    /// When the answer came, or was given up.
    pub ended_us: u64,
    /// The answer.
    pub outcome: Outcome,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Start a run.
    Start {
        /// When the last run has closed.
        reuse: Reuse,
        /// When a run is open.
        conflict: Conflict,
    },
    /// Send a signal; to the open run, or to a certain one.
    Signal {
        /// The run, if a certain one is named.
        run_id: Option<Uuid>,
    },
    /// Ask the code to stop.
    Cancel {
        /// The run, if a certain one is named.
        run_id: Option<Uuid>,
    },
    /// End the run.
    Terminate {
        /// The run, if a certain one is named.
        run_id: Option<Uuid>,
    },
    /// Look at the newest run.
    Describe,
}

/// May a workflow id be used again?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Yes.
    Allow,
    /// Unless the last run has completed.
    AllowFailedOnly,
    /// No.
    Reject,
}

/// What happens to a start while a run is open?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// It is refused.
    Fail,
    /// It answers with the open run.
    UseExisting,
    /// The open run is terminated.
    TerminateExisting,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied, and answered so.
    Ok(Reply),
    /// It was certainly not applied.
    Refused(Refusal),
    /// Nobody knows.
    Unknown,
}

/// The answer to a request that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The run that it reached.
    pub run_id: Uuid,
    /// For a start, whether it made that run.
    pub started: bool,
    /// For a look, what it showed.
    pub shown: Option<Shown>,
}

/// What a look showed of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Its status.
    pub status: WorkflowStatus,
    /// The length of its history.
    pub events: u64,
    /// When it closed, by the database's clock; 0 while it is open.
    pub closed_at_us: i64,
}

/// Why a request was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A run is open, or its id may not be used again.
    AlreadyExists,
    /// There is no such run, or it has closed.
    NotOpen,
    /// The request is malformed.
    Invalid,
    /// There is no room at this moment.
    Busy,
}

/// One attempt of an activity that began on a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// The idempotency key that the attempt was given.
    pub key: String,
    /// The run that called it.
    pub run_id: Uuid,
    /// The call's number in that run.
    pub number: u32,
    /// The attempt, from 1.
    pub attempt: u32,
    /// Whether it ran inside of the workflow's own worker.
    pub local: bool,
    /// The worker.
    pub worker: String,
    /// When its code began.
    pub began_us: u64,
    /// When and how its code ended; `None` if the worker was gone before, or dropped it.
    pub ended: Option<(u64, End)>,
}

/// How the code of an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It returned a value.
    Value,
    /// It returned an error that may be tried again.
    Failed,
    /// It returned an error that may not.
    Terminal,
    /// It stopped because it was asked to.
    Cancelled,
}

/// A durable timer as the workflow's code saw it, on its worker's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The run.
    pub run_id: Uuid,
    /// Which of the run's waits.
    pub place: u32,
    /// How long it was to be.
    pub lasts_us: u64,
    /// When the code asked for it first.
    pub asked_us: u64,
    /// When the code behind it ran first.
    pub woke_us: u64,
}

/// Events of a history as a reader got them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The run.
    pub run_id: Uuid,
    /// When the first page was asked for.
    pub began_us: u64,
    /// When the last one came.
    pub ended_us: u64,
    /// A fingerprint of each event, from event 1.
    pub events: Vec<u64>,
    /// Whether the reader followed the run to its end.
    pub followed: bool,
}

/// The open runs of the store at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// When.
    pub at_us: u64,
    /// Workflow id and run id of each.
    pub open: Vec<(String, Uuid)>,
}

/// A run in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The run.
    pub run_id: Uuid,
    /// Its workflow.
    pub workflow_id: String,
    /// Its status by its row.
    pub status: WorkflowStatus,
    /// What its row says of it otherwise.
    pub row: Row,
    /// Its shard.
    pub shard: i32,
    /// When it must be in memory, by its row.
    pub wake: Wake,
    /// How many rows beside the journal tell of activities that have not closed.
    pub pending: usize,
    /// Its journal, in order.
    pub journal: Vec<JournalRow>,
    /// Its history, as a reader got it when all was over.
    pub history: Vec<HistoryEvent>,
}

/// What the row of a run repeats of its journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Its workflow type.
    pub workflow_type: String,
    /// Its task queue.
    pub task_queue: String,
    /// When it started. Microseconds since the Unix epoch, as in the journal.
    pub started_at_us: i64,
    /// When it closed.
    pub closed_at_us: Option<i64>,
}

/// When a run must be in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Always.
    Hot,
    /// At this time. Microseconds since the Unix epoch.
    At(i64),
    /// When something comes from outside, or never more.
    Never,
}

/// A row of a journal.
#[derive(Debug, Clone, PartialEq)]
pub struct JournalRow {
    /// Epoch of the batch that wrote it, by its own header.
    pub epoch: u64,
    /// Number of that batch, by its own header.
    pub commit_seq: u64,
    /// What it records.
    pub records: Vec<HistoryEvent>,
}

/// A run as the server lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// The run.
    pub run_id: Uuid,
    /// Its status.
    pub status: WorkflowStatus,
    /// The length of its history.
    pub events: u64,
}

/// A history, or a part of one, that was put before the code that it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// The run.
    pub run_id: Uuid,
    /// How many of its first events, up to the end of a task; `None` if it was all of them.
    pub part: Option<usize>,
    /// What the code does that the history does not say.
    pub wrong: Option<String>,
}

/// A batch in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Its shard.
    pub shard: i32,
    /// Its number.
    pub commit_seq: u64,
    /// The epoch of its writer.
    pub epoch: u64,
}

/// What became of a run whose program is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The workflow.
    pub workflow_id: String,
    /// What its program allows and what came, if those differ; or that it never ended.
    pub wrong: Option<String>,
}

/// A number that stands for an event: equal events have equal ones.
pub fn fingerprint(event: &HistoryEvent) -> u64 {
    twox_hash::XxHash3_64::oneshot(&event.encode_to_vec())
}

impl Log {
    /// Whether somebody who was answered in this time may have been told what was lost later.
    pub(crate) fn is_waived(&self, began_us: u64, ended_us: u64) -> bool {
        self.lost.iter().any(|lost| began_us <= lost.to_us && lost.from_us <= ended_us)
    }

    /// Whether the database has lost nothing that it acknowledged.
    pub(crate) fn kept_all(&self) -> bool {
        self.lost.is_empty()
    }

    pub(crate) fn run(&self, run_id: Uuid) -> Option<&Run> {
        self.runs.iter().find(|run| run.run_id == run_id)
    }
}
