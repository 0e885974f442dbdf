//! A database in memory for simulation and tests, nastier than a real one.
//!
//! Each [`MemoryStore`] is one node's connection, with its own [`Faults`]; connections made by
//! [`MemoryStore::connect`] share the data, so that a restarted node, or a second one, finds what
//! is durable. The clock is given from outside and is the database's clock. Nothing here is random
//! and nothing is spawned: the same calls in the same order give the same answers.

mod data;
mod faults;

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use onward_proto::{NamespaceId, RunId, Timestamp};

use super::{
    Batch, BoxFuture, Committed, DueRun, Error, JournalPage, ListRuns, Loaded, NewestRun, NodeId,
    Renewal, Renewed, Resolve, Resolved, Result, RunRow, ShardId, Shards, Store, Take, Taken,
};
pub use data::Ownership;
use data::{Answer, Data, Write};
pub use faults::{CallKind, Fault, Faults, Plan};

/// The clock of a database in memory.
pub type DatabaseClock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

struct Database {
    clock: DatabaseClock,
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    data: Data,
    /// Statements still on their way, in the order they were sent.
    ghosts: Vec<Ghost>,
}

struct Ghost {
    write: Write,
    due: Option<Timestamp>,
}

/// One connection to a database in memory.
#[derive(Clone)]
pub struct MemoryStore {
    database: Arc<Database>,
    faults: Faults,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryStore")
    }
}

impl MemoryStore {
    /// An empty database whose clock is `clock`.
    pub fn new(clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let database = Database { clock: Arc::new(clock), tables: Mutex::default() };
        Self { database: Arc::new(database), faults: Faults::default() }
    }

    /// Another connection to the same database, without faults.
    #[must_use]
    pub fn connect(&self) -> Self {
        Self { database: self.database.clone(), faults: Faults::default() }
    }

    /// The faults of this connection.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// The database's time.
    pub fn now(&self) -> Timestamp {
        (self.database.clock)()
    }

    /// All statements still on their way arrive now; tells how many there were.
    pub fn land_ghosts(&self) -> usize {
        let mut tables = self.tables();
        let ghosts = std::mem::take(&mut tables.ghosts);
        let count = ghosts.len();
        for ghost in ghosts {
            tables.land(&ghost.write, self.now());
        }
        count
    }

    /// The database loses its newest `count` transactions and all statements still on their way,
    /// like a failover to a replica that lagged; tells when the oldest of them was applied.
    pub fn rewind(&self, count: usize) -> Option<Timestamp> {
        let now = self.now();
        let mut tables = self.tables();
        tables.ghosts.clear();
        tables.data.rewind(count, now)
    }

    /// Shard, number and epoch of every batch that has not been pruned, in order.
    pub fn batches(&self) -> Vec<(ShardId, u64, u64)> {
        self.tables().data.batches()
    }

    /// Who has owned the shards since when, in the order in which it became so.
    pub fn owners(&self) -> Vec<Ownership> {
        self.tables().data.owners()
    }

    /// Another node takes the shard and gives it up again.
    pub fn steal(&self, shard_id: ShardId) {
        let now = self.now();
        self.tables().data.steal(shard_id, now);
    }

    /// A page of the run is damaged: every statement that has to read it fails as a whole.
    pub fn damage(&self, run_id: RunId) {
        self.tables().data.damaged.insert(run_id);
    }

    /// While it is read-only, the database refuses every write as unavailable.
    pub fn set_read_only(&self, read_only: bool) {
        self.tables().data.read_only = read_only;
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.database.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self, kind: CallKind, write: Write) -> Result<Answer> {
        let plan = self.faults.plan(kind);
        travel(plan.before).await;
        let answer = self.arrive(plan.fault, write);
        travel(plan.after).await;
        answer
    }

    fn arrive(&self, fault: Option<Fault>, write: Write) -> Result<Answer> {
        let now = self.now();
        let mut tables = self.tables();
        tables.land_due(now);
        match fault {
            Some(Fault::Refuse) => return Err(Error::Unavailable("refused by the script".into())),
            Some(Fault::LoseRequest) => return Err(Error::Unknown("request lost".into())),
            Some(Fault::Ghost(delay)) => {
                tables.ghosts.push(Ghost { write, due: delay.map(|delay| now + delay) });
                return Err(Error::Unknown("request delayed".into()));
            }
            Some(Fault::Steal) => {
                if let Some(shard_id) = write.shard_id() {
                    tables.data.steal(shard_id, now);
                }
            }
            Some(Fault::Rewind(count)) => drop(tables.data.rewind(count, now)),
            Some(Fault::LoseReply) | None => {}
        }
        if tables.data.read_only {
            return Err(Error::Unavailable("the database is read-only".into()));
        }
        let answer = tables.data.apply(&write, now);
        if fault == Some(Fault::LoseReply) {
            return Err(Error::Unknown("reply lost".into()));
        }
        answer
    }

    async fn read<T>(&self, read: impl FnOnce(&Data) -> T) -> Result<T> {
        let plan = self.faults.plan(CallKind::Read);
        travel(plan.before).await;
        let answer = {
            let now = self.now();
            let mut tables = self.tables();
            tables.land_due(now);
            match plan.fault {
                Some(Fault::Rewind(count)) => {
                    tables.data.rewind(count, now);
                    Ok(read(&tables.data))
                }
                Some(_) => Err(Error::Unavailable("connection lost".into())),
                None => Ok(read(&tables.data)),
            }
        };
        travel(plan.after).await;
        answer
    }
}

impl Tables {
    fn land_due(&mut self, now: Timestamp) {
        let (due, later) = std::mem::take(&mut self.ghosts)
            .into_iter()
            .partition(|ghost| ghost.due.is_some_and(|due| due <= now));
        self.ghosts = later;
        for ghost in due {
            let Ghost { write, .. } = ghost;
            self.land(&write, now);
        }
    }

    /// Nobody waits for the answer of a ghost.
    fn land(&mut self, write: &Write, now: Timestamp) {
        if !self.data.read_only {
            let _ = self.data.apply(write, now);
        }
    }
}

async fn travel(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// The answer to a write of one kind is of the same kind.
macro_rules! answer {
    ($answer:expr, $variant:ident) => {
        match $answer {
            Answer::$variant(answer) => Ok(answer),
            other => unreachable!("asked for {}, answered {other:?}", stringify!($variant)),
        }
    };
}

impl Store for MemoryStore {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn shards(&self, default_count: u16) -> BoxFuture<'_, Result<Shards>> {
        Box::pin(async move {
            answer!(self.write(CallKind::Shards, Write::Shards(default_count)).await?, Shards)
        })
    }

    fn take(&self, take: Take) -> BoxFuture<'_, Result<Taken>> {
        Box::pin(
            async move { answer!(self.write(CallKind::Take, Write::Take(take)).await?, Taken) },
        )
    }

    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Committed>> {
        Box::pin(async move {
            answer!(self.write(CallKind::Commit, Write::Commit(batch)).await?, Committed)
        })
    }

    fn resolve(&self, resolve: Resolve) -> BoxFuture<'_, Result<Resolved>> {
        Box::pin(async move {
            answer!(self.write(CallKind::Resolve, Write::Resolve(resolve)).await?, Resolved)
        })
    }

    fn renew(&self, renewals: Vec<Renewal>, lease_us: i64) -> BoxFuture<'_, Result<Renewed>> {
        Box::pin(async move {
            answer!(self.write(CallKind::Renew, Write::Renew(renewals, lease_us)).await?, Renewed)
        })
    }

    fn release(&self, shard_id: ShardId, node_id: NodeId, epoch: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let release = Write::Release(shard_id, node_id, epoch);
            self.write(CallKind::Release, release).await.map(|_| ())
        })
    }

    fn find_newest_runs(
        &self,
        ids: Vec<(NamespaceId, String)>,
    ) -> BoxFuture<'_, Result<Vec<Option<NewestRun>>>> {
        Box::pin(async move { self.read(move |data| data.find_newest_runs(&ids)).await? })
    }

    fn load_runs(
        &self,
        run_ids: Vec<RunId>,
        most_bytes: u32,
    ) -> BoxFuture<'_, Result<Vec<Loaded>>> {
        Box::pin(async move { self.read(move |data| data.load_runs(&run_ids, most_bytes)).await? })
    }

    fn read_run(&self, run_id: RunId) -> BoxFuture<'_, Result<Option<RunRow>>> {
        Box::pin(self.read(move |data| data.read_run(run_id)))
    }

    fn read_journal(
        &self,
        run_id: RunId,
        from_seq: u32,
        max_bytes: u32,
    ) -> BoxFuture<'_, Result<JournalPage>> {
        Box::pin(async move {
            self.read(move |data| data.read_journal(run_id, from_seq, max_bytes)).await?
        })
    }

    fn hot_runs(
        &self,
        slots: Range<u16>,
        after: Option<RunId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<RunId>>> {
        Box::pin(self.read(move |data| {
            let mut hot = data.hot_runs(slots, after);
            hot.truncate(limit as usize);
            hot
        }))
    }

    fn due_runs(
        &self,
        slots: Range<u16>,
        after: DueRun,
        horizon: Timestamp,
        limit_per_slot: u32,
    ) -> BoxFuture<'_, Result<Vec<DueRun>>> {
        Box::pin(self.read(move |data| data.due_runs(slots, after, horizon, limit_per_slot)))
    }

    fn list_runs(&self, list: ListRuns) -> BoxFuture<'_, Result<Vec<RunRow>>> {
        Box::pin(self.read(move |data| data.list_runs(&list)))
    }

    fn prune_batches(
        &self,
        shard_id: ShardId,
        keep: u32,
        limit: u32,
    ) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            answer!(self.write(CallKind::Prune, Write::Prune(shard_id, keep, limit)).await?, Pruned)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
