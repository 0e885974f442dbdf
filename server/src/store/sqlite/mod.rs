//! The embedded store: one file, and one task that writes it.
//!
//! The writer merges the waiting batches of all lanes into one transaction. The file is locked
//! for as long as the store is open, which is the lease: at opening every shard counts as released,
//! because whoever owned one is gone. As nobody else writes, the writer checks fences in memory.
//!
//! What it never does: run on less than `synchronous=FULL` in WAL mode.

mod statements;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    fs::{File, Permissions},
    io::{Read, Seek, Write as _},
    ops::Range,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use onward_proto::{NamespaceId, RunId, Timestamp};
use rustix::fs::FlockOperation;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Row, SqlSafeStr, SqliteConnection, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{
        SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow,
        SqliteSynchronous,
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    Batch, BoxFuture, Committed, DueRun, Error, JournalPage, ListRuns, Loaded, NewestRun, NodeId,
    OpenError, OpenOptions, Renewal, Renewed, Resolve, Resolved, Result, RunRow, ShardId, Shards,
    Store, Take, Taken, hot_after,
    row::{self, StoredRow},
};
use writer::{Job, Writer};

/// How many writes wait for the writer before callers wait for a place.
const WAITING_WRITES: usize = 256;
/// How many connections serve reads.
const READERS: u32 = 4;
/// How long a connection waits for a lock of the file.
const BUSY: Duration = Duration::from_secs(5);

/// A store in one file.
#[derive(Debug)]
pub struct SqliteStore {
    jobs: mpsc::Sender<Job>,
    writer: Mutex<Option<JoinHandle<()>>>,
    readers: SqlitePool,
    /// Holds the lock until the store is dropped.
    _lock: File,
}

impl SqliteStore {
    /// Opens or makes the file at `path`.
    pub async fn open(path: &Path, options: &OpenOptions) -> Result<Self, OpenError> {
        let lock = lock(path)?;
        restrict(path).map_err(|source| OpenError::File { path: path.into(), source })?;
        let connect = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY)
            .pragma("cache_size", "-65536")
            .disable_statement_logging();
        let mut connection = connect.connect().await.map_err(|error| database(&error))?;
        assert_settings(&mut connection).await?;
        migrate(&mut connection, options.unsafe_allow).await?;
        sqlx::query(
            "UPDATE shard SET node_id = NULL, address = '', lease_until = NULL
             WHERE node_id IS NOT NULL OR lease_until IS NOT NULL",
        )
        .execute(&mut connection)
        .await
        .map_err(|error| database(&error))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(BUSY)
            .test_before_acquire(false)
            .connect_lazy_with(connect.clone().read_only(true).create_if_missing(false));
        let (jobs, waiting) = mpsc::channel(WAITING_WRITES);
        let writer = tokio::spawn(Writer::new(connect, connection).run(waiting));
        Ok(Self { jobs, writer: Mutex::new(Some(writer)), readers, _lock: lock })
    }

    /// Hands a write to the writer, which finishes it even if the caller goes away.
    async fn write<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::Unavailable("the store is closed".into());
        self.jobs.send(job(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| Error::Unknown("the writer ended".into()))?
    }

    async fn rows(
        &self,
        text: impl SqlSafeStr,
        arguments: SqliteArguments,
    ) -> Result<Vec<SqliteRow>> {
        sqlx::query_with(text, arguments)
            .fetch_all(&self.readers)
            .await
            .map_err(|failed| error(&failed))
    }
}

/// Binds values in order.
macro_rules! arguments {
    ($($value:expr),* $(,)?) => {{
        let mut arguments = SqliteArguments::default();
        $(sqlx::Arguments::add(&mut arguments, $value)
            .map_err(|error| Error::Refused(error.to_string()))?;)*
        arguments
    }};
}
use arguments;

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Locks `<path>.lock` until the file is closed, by the process's end at the latest, and writes the
/// process's id into it.
fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = lock_path(path);
    let fail = |source| OpenError::File { path: lock_path.clone(), source };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(fail)?;
    if let Err(errno) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if errno != rustix::io::Errno::WOULDBLOCK {
            return Err(fail(errno.into()));
        }
        let mut pid = String::new();
        file.read_to_string(&mut pid).map_err(fail)?;
        return Err(OpenError::Locked { path: path.into(), pid: pid.trim().into() });
    }
    file.set_len(0).map_err(fail)?;
    file.rewind().map_err(fail)?;
    writeln!(file, "{}", std::process::id()).map_err(fail)?;
    Ok(file)
}

/// Nobody but the owner may read payloads. The side files get the mode of the main one.
fn restrict(path: &Path) -> std::io::Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))
}

fn database(error: &sqlx::Error) -> OpenError {
    OpenError::Database(error.to_string())
}

async fn assert_settings(connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let journal_mode: String = sqlx::query("PRAGMA journal_mode")
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|error| database(&error))?;
    if journal_mode != "wal" {
        return Err(OpenError::Database(format!("journal_mode is {journal_mode}, not wal")));
    }
    let synchronous: i64 = sqlx::query("PRAGMA synchronous")
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|error| database(&error))?;
    if synchronous != 2 {
        return Err(OpenError::Database(format!("synchronous is {synchronous}, not 2 (full)")));
    }
    Ok(())
}

/// The migrations, in order.
fn migrations() -> Vec<Migration> {
    vec![Migration::new(
        1,
        "tables".into(),
        MigrationType::Simple,
        include_str!("schema_1.sql").into_sql_str(),
        false,
    )]
}

async fn migrate(connection: &mut SqliteConnection, newer: bool) -> Result<(), OpenError> {
    let mut migrator = Migrator::with_migrations(migrations());
    migrator.set_locking(false).set_ignore_missing(newer);
    migrator
        .run(&mut *connection)
        .await
        .map_err(|error| super::migrate_error(&error, &migrations()))?;
    sqlx::query(
        "INSERT INTO namespace (namespace_id, name) VALUES ($1, 'default') ON CONFLICT DO NOTHING",
    )
    .bind(onward_proto::DEFAULT_NAMESPACE.uuid())
    .execute(connection)
    .await
    .map_err(|error| database(&error))?;
    Ok(())
}

/// What an error of a statement means. The transaction around it is not committed.
fn error(error: &sqlx::Error) -> Error {
    let message = error.to_string();
    let code = match error {
        sqlx::Error::Database(error) => error.code().and_then(|code| code.parse::<i32>().ok()),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            return Error::Corrupt(message);
        }
        sqlx::Error::Encode(_) => return Error::Refused(message),
        _ => None,
    };
    // The low byte is the primary code: 11 corrupt, 26 not a database; 18 too big, 19 constraint,
    // 20 mismatch.
    match code.map(|code| code & 0xff) {
        Some(11 | 26) => Error::Corrupt(message),
        Some(18..=20) => Error::Refused(message),
        _ => Error::Unavailable(message),
    }
}

impl Store for SqliteStore {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn shards(&self, default_count: u16) -> BoxFuture<'_, Result<Shards>> {
        Box::pin(self.write(move |reply| Job::Shards(default_count, reply)))
    }

    fn take(&self, take: Take) -> BoxFuture<'_, Result<Taken>> {
        Box::pin(self.write(move |reply| Job::Take(take, reply)))
    }

    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Committed>> {
        Box::pin(async move {
            batch.check_text()?;
            self.write(move |reply| Job::Commit(batch, reply)).await
        })
    }

    fn resolve(&self, resolve: Resolve) -> BoxFuture<'_, Result<Resolved>> {
        Box::pin(self.write(move |reply| Job::Resolve(resolve, reply)))
    }

    fn renew(&self, renewals: Vec<Renewal>, lease_us: i64) -> BoxFuture<'_, Result<Renewed>> {
        Box::pin(self.write(move |reply| Job::Renew(renewals, lease_us, reply)))
    }

    fn release(&self, shard_id: ShardId, node_id: NodeId, epoch: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.write(move |reply| Job::Release(shard_id, node_id, epoch, reply)))
    }

    fn find_newest_runs(
        &self,
        ids: Vec<(NamespaceId, String)>,
    ) -> BoxFuture<'_, Result<Vec<Option<NewestRun>>>> {
        Box::pin(async move {
            let mut found = vec![None; ids.len()];
            for statement in statements::of_ids(&ids)? {
                let (text, arguments) = statement.alone();
                for row in self.rows(AssertSqlSafe(text), arguments).await? {
                    found[row.int(0)? as usize] = Some(row::newest_run(&row)?);
                }
            }
            Ok(found)
        })
    }

    fn load_runs(
        &self,
        run_ids: Vec<RunId>,
        most_bytes: u32,
    ) -> BoxFuture<'_, Result<Vec<Loaded>>> {
        Box::pin(async move {
            let Some(statement) = statements::of_runs(&run_ids, most_bytes)? else {
                return Ok(Vec::new());
            };
            let (text, arguments) = statement.alone();
            row::loaded_runs(&self.rows(AssertSqlSafe(text), arguments).await?)
        })
    }

    fn read_run(&self, run_id: RunId) -> BoxFuture<'_, Result<Option<RunRow>>> {
        Box::pin(async move {
            let text = include_str!("../sql/read_run.sql");
            let rows = self.rows(text, arguments![run_id.uuid()]).await?;
            rows.first().map(|row| row::run_row(row, 0)).transpose()
        })
    }

    fn read_journal(
        &self,
        run_id: RunId,
        from_seq: u32,
        max_bytes: u32,
    ) -> BoxFuture<'_, Result<JournalPage>> {
        Box::pin(async move {
            let text = include_str!("../sql/read_journal_sizes.sql");
            let from = i64::from(from_seq);
            let sizes = arguments![run_id.uuid(), from, row::JOURNAL_PAGE_ROWS + 1];
            let Some((to, more)) = row::page_end(&self.rows(text, sizes).await?, max_bytes)? else {
                return Ok(JournalPage { rows: Vec::new(), more: false });
            };
            let text = include_str!("../sql/read_journal.sql");
            let rows = self.rows(text, arguments![run_id.uuid(), from, to]).await?;
            Ok(JournalPage { rows: row::journal_rows(&rows)?, more })
        })
    }

    fn hot_runs(
        &self,
        slots: Range<u16>,
        after: Option<RunId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<RunId>>> {
        Box::pin(async move {
            let (slot, run_id) = hot_after(&slots, after);
            let (slot, end) = (i64::from(slot), i64::from(slots.end));
            let arguments = arguments![slot, run_id, end, i64::from(limit)];
            let rows = self.rows(include_str!("hot_runs.sql"), arguments).await?;
            rows.iter().map(|row| row.uuid(0).map(RunId::from_uuid)).collect()
        })
    }

    fn due_runs(
        &self,
        slots: Range<u16>,
        after: DueRun,
        horizon: Timestamp,
        limit_per_slot: u32,
    ) -> BoxFuture<'_, Result<Vec<DueRun>>> {
        Box::pin(async move {
            let (first, end) = (i64::from(slots.start), i64::from(slots.end));
            let (wake_at, run_id) = (after.wake_at.as_micros(), after.run_id.uuid());
            let limit = i64::from(limit_per_slot);
            let arguments = arguments![first, end, wake_at, run_id, horizon.as_micros(), limit];
            let rows = self.rows(include_str!("due_runs.sql"), arguments).await?;
            rows.iter().map(row::due_run).collect()
        })
    }

    fn list_runs(&self, list: ListRuns) -> BoxFuture<'_, Result<Vec<RunRow>>> {
        Box::pin(async move {
            let (started_at, run_id) = row::list_before(&list);
            let status = list.status.map(|status| status as i64);
            let namespace_id = list.namespace_id.uuid();
            let limit = i64::from(list.limit);
            let arguments = arguments![namespace_id, status, started_at, run_id, limit];
            let rows = self.rows(include_str!("list_runs.sql"), arguments).await?;
            rows.iter().map(|row| row::run_row(row, 0)).collect()
        })
    }

    fn prune_batches(
        &self,
        shard_id: ShardId,
        keep: u32,
        limit: u32,
    ) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.write(move |reply| Job::Prune(shard_id, keep, limit, reply)))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let _ = self.write(Job::Close).await;
            self.readers.close().await;
            let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(writer) = writer {
                let _ = writer.await;
            }
        })
    }
}
