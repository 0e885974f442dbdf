//! What is durable, and the only way to make it so: whole fenced batches.
//!
//! Invariants that every [`Store`] keeps, checked by one conformance suite:
//!
//! - A batch is applied as a whole or not at all.
//! - A batch is applied only by the shard's owner (its epoch) and only behind the batch that the
//!   owner believes to be the newest ([`Batch::previous`]).
//! - A batch whose outcome is unknown can no longer land once [`Store::resolve`] has answered.
//!
//! What it never does: read a workflow's payloads, decide anything about a run, retry a write.

mod memory;
mod open;
mod postgres;
mod row;
mod sqlite;

pub use crate::engine::HistorySize;
pub use memory::{CallKind, DatabaseClock, Fault, Faults, MemoryStore, Ownership, Plan};
pub use open::{OpenError, OpenOptions, check_url, open};
pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;

use std::{fmt, ops::Range, pin::Pin, sync::Arc};

use bytes::Bytes;
use onward_proto::{NamespaceId, RunId, SLOTS, Slot, Timestamp, v1::WorkflowStatus};
use sqlx::migrate::{MigrateError, Migration};
use uuid::Uuid;

/// A boxed future, so that `dyn Store` works.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The number of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub i32);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Drawn at each process start, so that a restarted node is a thief like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub Uuid);

/// Names one batch, drawn by its writer. Two writers never name the same batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(pub Uuid);

/// Why a store call did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Certainly not applied, and worth asking again: a deadlock, no connection to be had, a
    /// database that is starting up or read-only.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The reply was lost. Only for writes; a lost batch must be resolved before anything else.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The database refuses the data itself (SQLSTATE classes 22, 23, 54). Certainly not applied.
    #[error("the database refuses the data: {0}")]
    Refused(String),
    /// The store's own data cannot be read.
    #[error("stored data is corrupt: {0}")]
    Corrupt(String),
}

impl Error {
    /// Whether asking again for the same gives the same: the data is at fault, not the way to it.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Corrupt(_) => true,
            Self::Unavailable(_) | Self::Unknown(_) => false,
        }
    }
}

/// The result of a store call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One row of table `shard`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRow {
    /// The shard.
    pub shard_id: ShardId,
    /// Its slots: from the first to the one before the last.
    pub slots: Range<u16>,
    /// Its owner; `None` before the first and after a release.
    pub node_id: Option<NodeId>,
    /// Where the owner answers other nodes; empty for a single node.
    pub address: String,
    /// Raised by every change of owner and every resolve.
    pub epoch: u64,
    /// When the owner's lease runs out, by the database's clock. `None` after a release.
    pub lease_until: Option<Timestamp>,
}

/// All shards, with the database's time at the reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shards {
    /// Ordered by `shard_id`.
    pub rows: Vec<ShardRow>,
    /// The database's clock.
    pub now: Timestamp,
}

/// A batch: all that one lane makes durable at once.
///
/// The rows of one run are merged: at most one of `new_runs` and one of `run_updates` name it, and
/// at most one of `journal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The lane's shard.
    pub shard_id: ShardId,
    /// The owner's epoch.
    pub epoch: u64,
    /// One more than the batch before.
    pub commit_seq: u64,
    /// This batch.
    pub commit_id: CommitId,
    /// The batch before, which must be the newest in the store.
    pub previous: CommitId,
    /// Renew the lease to `database now + this` in the same write, when set.
    pub renew_lease_us: Option<i64>,
    /// Runs to insert.
    pub new_runs: Vec<RunRow>,
    /// Runs to change. A run that closes here and a run of the same workflow id that starts here
    /// may stand in one batch: updates are applied before inserts.
    pub run_updates: Vec<RunUpdate>,
    /// Journal rows to insert.
    pub journal: Vec<JournalInsert>,
    /// Rows of `pending` to write or remove.
    pub pending: Vec<PendingWrite>,
}

impl Batch {
    /// Refuses what Postgres cannot hold, so that every store gives the same answer.
    fn check_text(&self) -> Result<()> {
        for run in &self.new_runs {
            if [&run.workflow_id, &run.workflow_type, &run.task_queue]
                .iter()
                .any(|text| text.contains('\0'))
            {
                return Err(Error::Refused(format!("a text of run {} holds U+0000", run.run_id)));
            }
        }
        Ok(())
    }
}

/// A change of a row of `run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunUpdate {
    /// The run.
    pub run_id: RunId,
    /// When it must be in memory from now on.
    pub wake_at: WakeAt,
    /// Length and size of its history.
    pub history: HistorySize,
    /// Set when the run closes.
    pub close: Option<Close>,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// How it ended.
    pub status: WorkflowStatus,
    /// When.
    pub closed_at: Timestamp,
    /// The encoded `RequestLog` with all ids inside the window.
    pub requests: Bytes,
}

/// When a run must be in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WakeAt {
    /// Always: work is in flight. Stored as the smallest value.
    Hot,
    /// At this time. Stored as it is.
    At(Timestamp),
    /// Only when something comes from outside, or never more. Stored as null.
    Never,
}

impl WakeAt {
    /// The value of the column: microseconds since the Unix epoch, `i64::MIN` while hot.
    pub fn to_column(self) -> Option<i64> {
        match self {
            Self::Hot => Some(i64::MIN),
            Self::At(at) => Some(at.as_micros().max(i64::MIN + 1)),
            Self::Never => None,
        }
    }

    /// As the store gives it back: a time that collides with the mark of a hot run moves by one.
    #[must_use]
    pub fn stored(self) -> Self {
        Self::from_column(self.to_column())
    }

    /// Reads the column.
    pub fn from_column(column: Option<i64>) -> Self {
        match column {
            Some(i64::MIN) => Self::Hot,
            Some(micros) => Self::At(Timestamp::from_micros(micros)),
            None => Self::Never,
        }
    }
}

/// A row of `journal` to insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalInsert {
    /// The run.
    pub run_id: RunId,
    /// The row's place in the run's journal, from 0.
    pub seq: u32,
    /// An encoded `JournalRow`.
    pub records: Bytes,
}

/// A row of `pending` to write or remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingWrite {
    /// The run.
    pub run_id: RunId,
    /// The activity's number.
    pub number: u32,
    /// An encoded `PendingActivity`, or `None` to remove the row.
    pub data: Option<Bytes>,
}

/// How a commit ended when the database gave an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// It is durable. The database's time at the commit stands beside it.
    Committed {
        /// The database's clock when the batch was applied.
        now: Timestamp,
    },
    /// The shard has another owner, or another batch is the newest. Nothing was applied.
    Fenced,
}

/// Asks what became of a batch whose reply was lost.
///
/// After a failover that lost a takeover its epoch may come a second time, with another owner: so
/// it counts together with the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolve {
    /// The shard.
    pub shard_id: ShardId,
    /// The owner that lost the reply.
    pub node_id: NodeId,
    /// Its epoch.
    pub epoch: u64,
    /// The batch in question.
    pub commit_id: CommitId,
    /// The batch that the resolve itself writes. Asking again with the same one is safe.
    pub resolve_id: CommitId,
    /// How long the renewed lease lasts. Microseconds.
    pub lease_us: i64,
}

/// What became of a batch whose reply was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// The shard now has the next epoch, and its newest batch is the resolve's own.
    Owned {
        /// The new epoch.
        epoch: u64,
        /// The number of the resolve's own batch row.
        commit_seq: u64,
        /// Whether the batch in question is in.
        landed: bool,
        /// The database's clock.
        now: Timestamp,
    },
    /// The shard has another owner.
    Fenced,
}

/// Takes a shard over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Take {
    /// The row as the taker has watched it; it is taken only if it still looks exactly so.
    pub watched: ShardRow,
    /// The taker.
    pub node_id: NodeId,
    /// Where the taker answers other nodes.
    pub address: String,
    /// The batch row that the takeover writes. Asking again with the same one is safe.
    pub commit_id: CommitId,
    /// How long the lease lasts. Microseconds.
    pub lease_us: i64,
}

/// How a takeover ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// The shard is ours.
    Owned {
        /// The new epoch.
        epoch: u64,
        /// The number of the takeover's own batch row.
        commit_seq: u64,
        /// The database's clock.
        now: Timestamp,
    },
    /// The row has changed since it was watched.
    Changed,
}

/// What a node knows about one of its idle shards when it renews its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The shard.
    pub shard_id: ShardId,
    /// The owner's epoch.
    pub epoch: u64,
    /// The newest batch that the node knows to be committed.
    pub commit_seq: u64,
    /// Its id.
    pub commit_id: CommitId,
}

/// What the database says to a renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// The database's clock.
    pub now: Timestamp,
    /// One verdict for each shard that the statement reached. A shard whose row was locked by
    /// somebody else has none.
    pub verdicts: Vec<(ShardId, Verdict)>,
}

/// Whether a shard is still ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The lease is renewed and the newest known batch is where it was.
    Kept,
    /// Another owner has it.
    Fenced,
    /// The epoch is ours but the newest known batch is gone: the database lost commits.
    Rewound,
}

/// The newest run of a workflow id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewestRun {
    /// The run.
    pub run_id: RunId,
    /// Its status; `None` if it is none that this build knows. A load of the run tells more.
    pub status: Option<WorkflowStatus>,
    /// The encoded `RequestLog`.
    pub requests: Bytes,
}

/// A row of `run`: what a batch inserts, and what is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRow {
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
    /// Its status.
    pub status: WorkflowStatus,
    /// When it started.
    pub started_at: Timestamp,
    /// When it closed.
    pub closed_at: Option<Timestamp>,
    /// When it must be in memory.
    pub wake_at: WakeAt,
    /// Length and size of its history.
    pub history: HistorySize,
    /// The encoded memo map (`WorkflowExecutionStarted` with only `memo` set); empty without one.
    pub memo: Bytes,
    /// The encoded `RequestLog`.
    pub requests: Bytes,
}

/// What became of a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// The run.
    Run(Box<LoadedRun>),
    /// There is no such run.
    Missing,
    /// Its rows cannot be what was written.
    Corrupt {
        /// Its row, if that can be read.
        row: Option<Box<RunRow>>,
        /// What is wrong with them.
        reason: String,
    },
}

/// A run as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedRun {
    /// Its row.
    pub row: RunRow,
    /// Its journal rows, from seq 0, encoded.
    pub journal: Vec<Bytes>,
    /// Its rows of `pending`, encoded, by activity number.
    pub pending: Vec<(u32, Bytes)>,
}

/// A page of a run's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalPage {
    /// `(seq, encoded JournalRow)`, in order.
    pub rows: Vec<(u32, Bytes)>,
    /// Whether rows follow.
    pub more: bool,
}

/// A cold run that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DueRun {
    /// When.
    pub wake_at: Timestamp,
    /// The run.
    pub run_id: RunId,
}

impl DueRun {
    /// The place before all runs that are due at this time or later.
    pub fn from(at: Timestamp) -> Self {
        Self { wake_at: at, run_id: RunId::from_uuid(Uuid::nil()) }
    }
}

/// Which runs to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListRuns {
    /// Of this namespace.
    pub namespace_id: NamespaceId,
    /// With this status; `None` means all.
    pub status: Option<WorkflowStatus>,
    /// Older than this run, newest first; `None` means from the newest.
    pub before: Option<(Timestamp, RunId)>,
    /// At most so many.
    pub limit: u32,
}

/// Durable storage in whole fenced batches.
///
/// Writes are never dropped half-way by callers: the shard layer awaits each call in a task of
/// its own.
pub trait Store: Send + Sync + 'static {
    /// `postgres`, `sqlite` or `memory`: for people.
    fn kind(&self) -> &'static str;

    /// Whether this process alone can have the store open, so that no other owner can be alive.
    fn is_exclusive(&self) -> bool {
        false
    }

    /// Reads all shards; makes `default_count` even ones first if there are none. A new shard has
    /// a batch row 0 whose `commit_id` is the nil UUID.
    fn shards(&self, default_count: u16) -> BoxFuture<'_, Result<Shards>>;

    /// Takes a shard over: raises its epoch, sets owner and lease, inserts the next batch row.
    fn take(&self, take: Take) -> BoxFuture<'_, Result<Taken>>;

    /// Applies a batch. [`Error::Unknown`] must be followed by [`Store::resolve`].
    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Committed>>;

    /// Finds out what became of a batch, and makes sure that it can no longer land.
    fn resolve(&self, resolve: Resolve) -> BoxFuture<'_, Result<Resolved>>;

    /// Renews the leases of a node's idle shards in one statement.
    fn renew(&self, renewals: Vec<Renewal>, lease_us: i64) -> BoxFuture<'_, Result<Renewed>>;

    /// Gives a shard up, so that the next owner need not wait for its lease. Does nothing if the
    /// shard is no longer ours.
    fn release(&self, shard_id: ShardId, node_id: NodeId, epoch: u64) -> BoxFuture<'_, Result<()>>;

    /// Reads the newest run of each workflow id, in the order asked.
    fn find_newest_runs(
        &self,
        ids: Vec<(NamespaceId, String)>,
    ) -> BoxFuture<'_, Result<Vec<Option<NewestRun>>>>;

    /// Reads runs whole, each in one snapshot: row, journal and pending. Answers for the ids in
    /// front: for the first one at least, then until `most_bytes` of journal are reached or one
    /// statement is full.
    fn load_runs(&self, run_ids: Vec<RunId>, most_bytes: u32)
    -> BoxFuture<'_, Result<Vec<Loaded>>>;

    /// Reads the row of one run.
    fn read_run(&self, run_id: RunId) -> BoxFuture<'_, Result<Option<RunRow>>>;

    /// Reads journal rows from `from_seq` on, about `max_bytes` of them but at least one.
    fn read_journal(
        &self,
        run_id: RunId,
        from_seq: u32,
        max_bytes: u32,
    ) -> BoxFuture<'_, Result<JournalPage>>;

    /// Lists runs that are hot, by slot and run id, behind `after`.
    fn hot_runs(
        &self,
        slots: Range<u16>,
        after: Option<RunId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<RunId>>>;

    /// Lists cold runs that come behind `after` and are due at `horizon` or before, soonest first
    /// within each slot, at most `limit_per_slot` for each slot.
    fn due_runs(
        &self,
        slots: Range<u16>,
        after: DueRun,
        horizon: Timestamp,
        limit_per_slot: u32,
    ) -> BoxFuture<'_, Result<Vec<DueRun>>>;

    /// Lists runs, newest first.
    fn list_runs(&self, list: ListRuns) -> BoxFuture<'_, Result<Vec<RunRow>>>;

    /// Removes batch rows of a shard older than its newest `keep`, at most `limit`; tells how many.
    fn prune_batches(&self, shard_id: ShardId, keep: u32, limit: u32)
    -> BoxFuture<'_, Result<u64>>;

    /// Lets connections end in order. No call may follow.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// The slot column of a run.
pub fn slot_column(run_id: RunId) -> i16 {
    Slot::get(run_id.slot()) as i16
}

/// Where a list of hot runs goes on: behind this slot and run.
fn hot_after(slots: &Range<u16>, after: Option<RunId>) -> (u16, Uuid) {
    let first = (slots.start, Uuid::nil());
    after.map_or(first, |after| first.max((after.slot().get(), after.uuid())))
}

/// `count` shards without an owner that share the slots as evenly as whole numbers allow.
fn even_shards(count: u16) -> Vec<ShardRow> {
    let count = u32::from(count.clamp(1, SLOTS));
    let bound = |n: u32| (n * u32::from(SLOTS) / count) as u16;
    (0..count)
        .map(|n| ShardRow {
            shard_id: ShardId(n as i32),
            slots: bound(n)..bound(n + 1),
            node_id: None,
            address: String::new(),
            epoch: 0,
            lease_until: None,
        })
        .collect()
}

/// Cuts rows to a page: at least one, then as many as fit into `max_bytes`.
fn journal_page(rows: impl IntoIterator<Item = (u32, Bytes)>, max_bytes: u32) -> JournalPage {
    let mut page = JournalPage { rows: Vec::new(), more: false };
    let mut bytes = 0;
    for (seq, records) in rows {
        bytes += records.len();
        if !page.rows.is_empty() && bytes > max_bytes as usize {
            page.more = true;
            break;
        }
        page.rows.push((seq, records));
    }
    page
}

/// What a failed migration means to the one who starts the server.
fn migrate_error(error: &MigrateError, known: &[Migration]) -> OpenError {
    let known = known.iter().map(|migration| migration.version).max().unwrap_or(0);
    match error {
        MigrateError::VersionMissing(found) => OpenError::NewerSchema { found: *found, known },
        error => OpenError::Migrate(error.to_string()),
    }
}
