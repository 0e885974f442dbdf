//! A store with one shard in hand, and words for what is done to it.

use std::{
    process,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, Ordering},
    },
};

use bytes::Bytes;
use onward_proto::{DEFAULT_NAMESPACE, RunId, Slot, Timestamp, v1::WorkflowStatus};
use onward_server::store::*;
pub(crate) use onward_test_postgres::PoolMode;
use onward_test_postgres::{Cluster, Pgbouncer};
use sqlx::{Connection as _, PgConnection};
use tokio::sync::OnceCell;
use uuid::Uuid;

pub(crate) const LEASE: i64 = 3_000_000;

/// The database's clock of a memory store: it moves by a millisecond at each look.
fn ticking() -> impl Fn() -> Timestamp + Send + Sync + 'static {
    let micros = AtomicI64::new(1_790_000_000_000_000);
    move || Timestamp::from_micros(micros.fetch_add(1_000, Ordering::Relaxed))
}

/// Makes ids that were never used.
pub(crate) fn fresh_uuid() -> Uuid {
    static COUNT: AtomicI64 = AtomicI64::new(1);
    Uuid::from_u128(0xfeed << 64 | COUNT.fetch_add(1, Ordering::Relaxed) as u128)
}

pub(crate) fn commit_id() -> CommitId {
    CommitId(fresh_uuid())
}

/// A run id of slot `slot` that sorts by `n`.
pub(crate) fn run_id(n: u64, slot: u16) -> RunId {
    RunId::new(1_790_000_000_000 + n, n, Slot::new(slot))
}

pub(crate) fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

/// An open, hot run of workflow id `workflow_id`, started at `n`.
pub(crate) fn new_run(n: u64, slot: u16, workflow_id: &str) -> RunRow {
    RunRow {
        run_id: run_id(n, slot),
        namespace_id: DEFAULT_NAMESPACE,
        workflow_id: workflow_id.into(),
        workflow_type: "checkout".into(),
        task_queue: "orders".into(),
        status: WorkflowStatus::Running,
        started_at: at(n as i64),
        closed_at: None,
        wake_at: WakeAt::Hot,
        history: HistorySize { events: 2, bytes: 200 },
        memo: Bytes::new(),
        requests: Bytes::from_static(b"start"),
    }
}

pub(crate) fn update(run_id: RunId, wake_at: WakeAt) -> RunUpdate {
    RunUpdate { run_id, wake_at, history: HistorySize { events: 5, bytes: 500 }, close: None }
}

pub(crate) fn close(run_id: RunId, status: WorkflowStatus) -> RunUpdate {
    let close = Close { status, closed_at: at(9_000), requests: Bytes::from_static(b"all") };
    RunUpdate { close: Some(close), ..update(run_id, WakeAt::Never) }
}

pub(crate) fn journal(run_id: RunId, seq: u32, records: impl Into<Bytes>) -> JournalInsert {
    JournalInsert { run_id, seq, records: records.into() }
}

pub(crate) fn pending(run_id: RunId, number: u32, data: Option<&'static [u8]>) -> PendingWrite {
    PendingWrite { run_id, number, data: data.map(Bytes::from_static) }
}

/// One owner of shard 0, which has all even shares of the slots that one shard has: all of them.
pub(crate) struct World {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) node_id: NodeId,
    pub(crate) epoch: u64,
    pub(crate) commit_seq: u64,
    pub(crate) tip: CommitId,
    /// The url, for stores that have one; of Postgres without a pooler.
    pub(crate) url: Option<String>,
    /// How the store was opened.
    pub(crate) opened: (String, OpenOptions),
    pub(crate) memory: Option<MemoryStore>,
    pub(crate) dir: Option<tempfile::TempDir>,
}

pub(crate) const SHARD: ShardId = ShardId(0);

pub(crate) fn unsafe_options() -> OpenOptions {
    OpenOptions { unsafe_allow: true, ..OpenOptions::default() }
}

/// A database with the schema in it, copied for every case.
async fn template() -> &'static str {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    TEMPLATE
        .get_or_init(|| async {
            let url = Cluster::shared().create_database();
            let store = PostgresStore::open(&url, unsafe_options()).await.unwrap();
            store.close().await;
            url.split(['/', '?']).find(|part| part.starts_with("t_")).unwrap().to_owned()
        })
        .await
}

/// A new database with the schema in it.
pub(crate) async fn postgres_url() -> String {
    static COUNT: AtomicI64 = AtomicI64::new(0);
    static SERIAL: LazyLock<tokio::sync::Mutex<()>> = LazyLock::new(tokio::sync::Mutex::default);
    let template = template().await;
    // Two copies of one template at once refuse each other.
    let _serial = SERIAL.lock().await;
    let name = format!("{template}_{}_{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
    Cluster::shared().psql("postgres", &create);
    Cluster::shared().url(&name)
}

/// A session of somebody else.
pub(crate) async fn session(world: &World) -> PgConnection {
    PgConnection::connect(world.url.as_deref().unwrap()).await.unwrap()
}

/// Waits until some session of the database waits for a lock.
pub(crate) async fn until_blocked(session: &mut PgConnection) {
    for _ in 0..2_000 {
        let blocked: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&mut *session)
        .await
        .unwrap();
        if blocked > 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("no session waits for a lock");
}

impl World {
    pub(crate) async fn memory() -> Self {
        let memory = MemoryStore::new(ticking());
        let mut world = Self::with(Arc::new(memory.clone()), Default::default()).await;
        world.memory = Some(memory);
        world
    }

    pub(crate) async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("onward.db").display());
        let mut world = Self::open(&url, OpenOptions::default()).await;
        world.dir = Some(dir);
        world.url = Some(url);
        world
    }

    pub(crate) async fn postgres() -> Self {
        let url = postgres_url().await;
        let mut world = Self::open(&url, unsafe_options()).await;
        world.url = Some(url);
        world
    }

    /// Postgres behind a pooler.
    pub(crate) async fn pooled(mode: PoolMode) -> Self {
        let url = postgres_url().await;
        let options = OpenOptions {
            pg_transaction_pooling: mode == PoolMode::Transaction,
            ..unsafe_options()
        };
        let mut world = Self::open(&Pgbouncer::shared(mode).url(&url), options).await;
        world.url = Some(url);
        world
    }

    /// Postgres in each way it is reached.
    pub(crate) async fn every_postgres() -> [Self; 3] {
        let (session, transaction) = (PoolMode::Session, PoolMode::Transaction);
        [Self::postgres().await, Self::pooled(session).await, Self::pooled(transaction).await]
    }

    async fn open(url: &str, options: OpenOptions) -> Self {
        let store = open(url, options.clone()).await.unwrap();
        Self::with(store, (url.to_owned(), options)).await
    }

    /// Another store on the same data, as another server has.
    pub(crate) async fn open_again(&self) -> Arc<dyn Store> {
        let (url, options) = &self.opened;
        open(url, options.clone()).await.unwrap()
    }

    /// Owns the only shard of a new store.
    async fn with(store: Arc<dyn Store>, opened: (String, OpenOptions)) -> Self {
        let mut world = Self {
            store,
            opened,
            node_id: NodeId(fresh_uuid()),
            epoch: 0,
            commit_seq: 0,
            tip: CommitId(Uuid::nil()),
            url: None,
            memory: None,
            dir: None,
        };
        world.store.shards(1).await.unwrap();
        world.own().await;
        world
    }

    /// Takes the shard as it stands.
    pub(crate) async fn own(&mut self) {
        let take = self.take_of(self.shard().await);
        let tip = take.commit_id;
        let Taken::Owned { epoch, commit_seq, .. } = self.store.take(take).await.unwrap() else {
            panic!("shard changed");
        };
        (self.epoch, self.commit_seq, self.tip) = (epoch, commit_seq, tip);
    }

    pub(crate) fn take_of(&self, watched: ShardRow) -> Take {
        let (node_id, address) = (self.node_id, "here:7450".into());
        Take { watched, node_id, address, commit_id: commit_id(), lease_us: LEASE }
    }

    pub(crate) async fn shard(&self) -> ShardRow {
        self.store.shards(1).await.unwrap().rows.remove(0)
    }

    /// The next batch, empty.
    pub(crate) fn batch(&self) -> Batch {
        Batch {
            shard_id: SHARD,
            epoch: self.epoch,
            commit_seq: self.commit_seq + 1,
            commit_id: commit_id(),
            previous: self.tip,
            renew_lease_us: None,
            new_runs: vec![],
            run_updates: vec![],
            journal: vec![],
            pending: vec![],
        }
    }

    /// Commits and moves on if it is committed.
    pub(crate) async fn commit(&mut self, batch: Batch) -> Result<Committed> {
        let (commit_seq, tip) = (batch.commit_seq, batch.commit_id);
        let committed = self.store.commit(Arc::new(batch)).await;
        if matches!(committed, Ok(Committed::Committed { .. })) {
            (self.commit_seq, self.tip) = (commit_seq, tip);
        }
        committed
    }

    /// Commits a batch made by `fill`, which must go through.
    pub(crate) async fn write(&mut self, fill: impl FnOnce(&mut Batch)) -> Timestamp {
        let mut batch = self.batch();
        fill(&mut batch);
        match self.commit(batch).await.unwrap() {
            Committed::Committed { now } => now,
            Committed::Fenced => panic!("fenced"),
        }
    }

    /// Commits a batch made by `fill`, which must be refused for its data.
    pub(crate) async fn refused(&mut self, fill: impl FnOnce(&mut Batch)) {
        let mut batch = self.batch();
        fill(&mut batch);
        let outcome = self.commit(batch).await;
        assert!(matches!(outcome, Err(Error::Refused(_))), "{outcome:?}");
    }

    pub(crate) async fn start(&mut self, runs: &[RunRow]) {
        self.write(|batch| batch.new_runs.extend_from_slice(runs)).await;
    }

    pub(crate) async fn row(&self, run_id: RunId) -> Option<RunRow> {
        self.store.read_run(run_id).await.unwrap()
    }

    pub(crate) async fn load(&self, run_id: RunId) -> LoadedRun {
        match self.store.load_runs(vec![run_id], 0).await.unwrap().remove(0) {
            Loaded::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn newest(&self, workflow_id: &str) -> Option<NewestRun> {
        let ids = vec![(DEFAULT_NAMESPACE, workflow_id.to_owned())];
        self.store.find_newest_runs(ids).await.unwrap().remove(0)
    }

    /// What a resolve of `commit_id` asks.
    pub(crate) fn resolve_of(&self, commit_id: CommitId) -> Resolve {
        Resolve {
            shard_id: SHARD,
            node_id: self.node_id,
            epoch: self.epoch,
            commit_id,
            resolve_id: self::commit_id(),
            lease_us: LEASE,
        }
    }

    /// Resolves and goes on under the new epoch; tells whether the batch had landed.
    pub(crate) async fn resolve(&mut self, resolve: Resolve) -> bool {
        let tip = resolve.resolve_id;
        let resolved = self.store.resolve(resolve).await.unwrap();
        let Resolved::Owned { epoch, commit_seq, landed, .. } = resolved else {
            panic!("fenced");
        };
        (self.epoch, self.commit_seq, self.tip) = (epoch, commit_seq, tip);
        landed
    }

    pub(crate) fn renewal(&self) -> Renewal {
        Renewal {
            shard_id: SHARD,
            epoch: self.epoch,
            commit_seq: self.commit_seq,
            commit_id: self.tip,
        }
    }

    pub(crate) async fn verdict(&self, renewal: Renewal) -> Option<Verdict> {
        let renewed = self.store.renew(vec![renewal], LEASE).await.unwrap();
        renewed.verdicts.first().map(|(_, verdict)| *verdict)
    }
}
