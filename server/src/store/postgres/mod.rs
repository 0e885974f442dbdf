//! The production store: Postgres 14 or newer.
//!
//! A batch is one statement, one round trip, on a connection that belongs to its shard. Takeover
//! and resolve use a connection of their own each time, the renewal of leases has one, and
//! everything else shares a pool. No call lasts without end, though packets may vanish in silence.
//!
//! What it never does: advisory locks, NOTIFY, temporary tables, SET on the way of a commit. So it
//! works through a transaction pooler and on databases that speak Postgres's protocol.

mod connect;
mod error;
mod owner;
mod pool;
mod url;

#[cfg(test)]
mod tests;

pub(super) use url::read_url;

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use onward_proto::{NamespaceId, RunId, Timestamp};
use sqlx::{
    Connection, Executor, PgConnection, Postgres,
    postgres::{PgArguments, PgConnectOptions, PgRow},
    query::Query,
};

use super::{
    Batch, BoxFuture, Committed, DueRun, Error, JournalPage, ListRuns, Loaded, NewestRun, NodeId,
    OpenError, OpenOptions, Renewal, Renewed, Resolve, Resolved, Result, RunRow, RunUpdate,
    ShardId, Shards, Store, Take, Taken, Verdict, even_shards, hot_after,
    row::{self, StoredRow},
    slot_column,
};
use connect::Backoff;
use error::{Sent, classify, sqlstate};
use owner::shard_row;
use pool::Pool;

/// The statement of a commit.
const COMMIT: &str = include_str!("commit.sql");
/// After so long without a reply a connection is given up. No statement lasts longer in Postgres.
const DEADLINE: Duration = Duration::from_secs(10);
/// The same for a renewal: there must be time for a second one before the lease runs out.
const RENEW_DEADLINE: Duration = Duration::from_millis(1_500);
/// How long it may take to bring the schema up to date, waits for other servers that do included.
const MIGRATE_DEADLINE: Duration = Duration::from_mins(2);
/// How long connections may take to end in order.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// A store in a Postgres database.
#[derive(Debug)]
pub struct PostgresStore {
    connect: PgConnectOptions,
    transaction_pooling: bool,
    pool: Pool,
    /// Apart from the pool: a lease does not wait behind reads.
    renewals: Pool,
    lanes: Mutex<BTreeMap<ShardId, Arc<tokio::sync::Mutex<Lane>>>>,
}

/// The connection of one shard's commits.
#[derive(Debug, Default)]
struct Lane {
    connection: Option<PgConnection>,
    backoff: Backoff,
}

impl PostgresStore {
    /// Connects to the database at `url`, checks that it keeps what it commits, and brings the
    /// schema up to date.
    pub async fn open(url: &str, options: OpenOptions) -> Result<Self, OpenError> {
        let begin = async {
            let (connect, mut connection) = connect::options(url, &options).await?;
            connect::guard(&mut connection, &options).await?;
            Ok((connect, connection))
        };
        let (connect, mut connection) = answered_within(DEADLINE, begin).await?;
        answered_within(MIGRATE_DEADLINE, connect::migrate(&mut connection, &options)).await?;
        // Behind a pooler the session may go back to others at any time; it has done its work.
        drop(tokio::time::timeout(CLOSE_DEADLINE, connection.close()).await);
        let in_transactions = options.pg_transaction_pooling;
        let pool = |size, deadline| Pool::new(connect.clone(), in_transactions, size, deadline);
        Ok(Self {
            pool: pool(options.pg_pool_size.max(1), DEADLINE),
            renewals: pool(1, RENEW_DEADLINE),
            transaction_pooling: in_transactions,
            lanes: Mutex::default(),
            connect,
        })
    }

    fn lane(&self, shard_id: ShardId) -> Arc<tokio::sync::Mutex<Lane>> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.entry(shard_id).or_default().clone()
    }

    async fn commit_batch(&self, batch: &Batch) -> Result<Committed> {
        let lane = self.lane(batch.shard_id);
        let mut lane = lane.lock().await;
        let mut connection = match lane.connection.take() {
            Some(connection) => connection,
            None => self.connect_lane(&lane).await?,
        };
        // The connection is out of the lane while it is used: a call that is dropped half-way
        // leaves none that is in the middle of something.
        let work = async {
            if self.transaction_pooling {
                commit_in_transaction(&mut connection, batch).await
            } else {
                let rows = commit_query(batch, true).fetch_all(&mut connection).await;
                outcome(rows, Sent::Perhaps)
            }
        };
        let outcome = within_deadline(work).await;
        // After any other error the session may be in a state that we do not know.
        if matches!(outcome, Ok(_) | Err(Error::Refused(_))) {
            lane.connection = Some(connection);
        }
        outcome
    }

    /// Opens a shard's connection and prepares the statement, so that what fails later was sent.
    async fn connect_lane(&self, lane: &Lane) -> Result<PgConnection> {
        let open = async {
            let mut connection = connect::connect(&self.connect).await?;
            if !self.transaction_pooling {
                connection.prepare(sqlx::SqlSafeStr::into_sql_str(COMMIT)).await?;
            }
            Ok(connection)
        };
        lane.backoff.open(open).await.map_err(|error| classify(&error, Sent::No))
    }

    /// Sends a read.
    async fn rows<'q>(
        &self,
        query: impl Fn() -> Query<'q, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>> {
        let (rows, _) = self.pool.ask(query).await.map_err(|error| classify(&error, Sent::No))?;
        Ok(rows)
    }

    /// Sends a write that commits by itself and changes nothing the second time; tells how many
    /// rows it changed.
    async fn write<'q>(&self, query: impl Fn() -> Query<'q, Postgres, PgArguments>) -> Result<u64> {
        let asked = self.pool.ask(query).await;
        let (_, changed) = asked.map_err(|error| classify(&error, Sent::Perhaps))?;
        Ok(changed)
    }
}

/// Gives up to open a database that gives no reply.
async fn answered_within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, OpenError>>,
) -> Result<T, OpenError> {
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| {
        Err(OpenError::Database(format!("it gives no answer within {} s", deadline.as_secs())))
    })
}

/// Gives a write up that gets no reply; its connection ends with it.
async fn within_deadline<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| {
        Err(Error::Unknown(format!("no reply within {} s", DEADLINE.as_secs())))
    })
}

/// For a pooler that does not track prepared statements: each transaction has one session. The
/// driver sends a statement in two messages, so by itself even an unnamed one could find another
/// client's in its place.
async fn commit_in_transaction(connection: &mut PgConnection, batch: &Batch) -> Result<Committed> {
    let begun = connection.execute(sqlx::raw_sql("BEGIN")).await;
    begun.map_err(|error| classify(&error, Sent::No))?;
    let rows = commit_query(batch, false).fetch_all(&mut *connection).await;
    match outcome(rows, Sent::No) {
        Ok(committed) => {
            let done = connection.execute(sqlx::raw_sql("COMMIT")).await;
            done.map_err(|error| classify(&error, Sent::Perhaps))?;
            Ok(committed)
        }
        Err(error) => {
            // If this fails the session ends with its connection, and the transaction with it.
            let rolled_back = connection.execute(sqlx::raw_sql("ROLLBACK")).await;
            match (error, rolled_back) {
                (Error::Refused(message), Err(_)) => Err(Error::Unavailable(message)),
                (error, _) => Err(error),
            }
        }
    }
}

/// Reads the answer to a commit.
fn outcome(rows: Result<Vec<PgRow>, sqlx::Error>, sent: Sent) -> Result<Committed> {
    match rows {
        Ok(rows) => match rows.first() {
            Some(row) => Ok(Committed::Committed { now: Timestamp::from_micros(row.int(0)?) }),
            None => Ok(Committed::Fenced),
        },
        Err(error) => {
            let is_duplicate = sqlstate(&error).as_deref() == Some("23505")
                && error.as_database_error().and_then(|error| error.table()) == Some("batch");
            if is_duplicate { Ok(Committed::Fenced) } else { Err(classify(&error, sent)) }
        }
    }
}

/// Binds the columns of a batch in the order of `commit.sql`.
fn commit_query(batch: &Batch, persistent: bool) -> Query<'_, Postgres, PgArguments> {
    fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
        rows.iter().map(value).collect()
    }
    let updates = &batch.run_updates;
    let close = |update: &RunUpdate| update.close.as_ref().map(|close| close.status as i16);
    let closed_at =
        |update: &RunUpdate| update.close.as_ref().map(|close| close.closed_at.as_micros());
    let runs = &batch.new_runs;
    let (written, removed): (Vec<_>, Vec<_>) =
        batch.pending.iter().partition(|pending| pending.data.is_some());
    sqlx::query(COMMIT)
        .persistent(persistent)
        .bind(batch.shard_id.0)
        .bind(batch.epoch as i64)
        .bind(batch.commit_seq as i64)
        .bind(batch.commit_id.0)
        .bind(batch.previous.0)
        .bind(batch.renew_lease_us)
        .bind(column(updates, |update| update.run_id.uuid()))
        .bind(column(updates, |update| update.wake_at.to_column()))
        .bind(column(updates, |update| update.history.events as i64))
        .bind(column(updates, |update| update.history.bytes as i64))
        .bind(column(updates, close))
        .bind(column(updates, closed_at))
        .bind(column(updates, |update| update.close.as_ref().map(|close| &*close.requests)))
        .bind(column(runs, |run| run.run_id.uuid()))
        .bind(column(runs, |run| slot_column(run.run_id)))
        .bind(column(runs, |run| run.namespace_id.uuid()))
        .bind(column(runs, |run| run.workflow_id.as_str()))
        .bind(column(runs, |run| run.workflow_type.as_str()))
        .bind(column(runs, |run| run.task_queue.as_str()))
        .bind(column(runs, |run: &RunRow| run.status as i16))
        .bind(column(runs, |run| run.started_at.as_micros()))
        .bind(column(runs, |run| run.closed_at.map(Timestamp::as_micros)))
        .bind(column(runs, |run| run.wake_at.to_column()))
        .bind(column(runs, |run| run.history.events as i64))
        .bind(column(runs, |run| run.history.bytes as i64))
        .bind(column(runs, |run| &*run.memo))
        .bind(column(runs, |run| &*run.requests))
        .bind(column(&batch.journal, |row| row.run_id.uuid()))
        .bind(column(&batch.journal, |row| row.seq as i32))
        .bind(column(&batch.journal, |row| &*row.records))
        .bind(column(&written, |pending| pending.run_id.uuid()))
        .bind(column(&written, |pending| pending.number as i32))
        .bind(column(&written, |pending| pending.data.as_deref()))
        .bind(column(&removed, |pending| pending.run_id.uuid()))
        .bind(column(&removed, |pending| pending.number as i32))
}

impl Store for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn shards(&self, default_count: u16) -> BoxFuture<'_, Result<Shards>> {
        Box::pin(async move {
            let read = || sqlx::query(include_str!("read_shards.sql"));
            let mut rows = self.rows(read).await?;
            if rows.is_empty() {
                let wanted = even_shards(default_count);
                let insert = || {
                    sqlx::query(include_str!("insert_shards.sql"))
                        .bind(wanted.iter().map(|row| row.shard_id.0).collect::<Vec<_>>())
                        .bind(wanted.iter().map(|row| row.slots.start as i16).collect::<Vec<_>>())
                        .bind(wanted.iter().map(|row| row.slots.end as i16).collect::<Vec<_>>())
                };
                self.write(insert).await?;
                rows = self.rows(read).await?;
            }
            let now = rows.first().map_or(Ok(0), |row| row.int(7))?;
            let rows = rows.iter().map(shard_row).collect::<Result<_>>()?;
            Ok(Shards { rows, now: Timestamp::from_micros(now) })
        })
    }

    fn take(&self, take: Take) -> BoxFuture<'_, Result<Taken>> {
        Box::pin(async move { within_deadline(owner::take(&self.connect, &take)).await })
    }

    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Committed>> {
        Box::pin(async move { self.commit_batch(&batch).await })
    }

    fn resolve(&self, resolve: Resolve) -> BoxFuture<'_, Result<Resolved>> {
        Box::pin(async move { within_deadline(owner::resolve(&self.connect, &resolve)).await })
    }

    fn renew(&self, renewals: Vec<Renewal>, lease_us: i64) -> BoxFuture<'_, Result<Renewed>> {
        Box::pin(async move {
            fn column<T>(renewals: &[Renewal], value: impl Fn(&Renewal) -> T) -> Vec<T> {
                renewals.iter().map(value).collect()
            }
            let query = || {
                sqlx::query(include_str!("renew.sql"))
                    .bind(column(&renewals, |renewal| renewal.shard_id.0))
                    .bind(column(&renewals, |renewal| renewal.epoch as i64))
                    .bind(column(&renewals, |renewal| renewal.commit_seq as i64))
                    .bind(column(&renewals, |renewal| renewal.commit_id.0))
                    .bind(lease_us)
            };
            // Asked again, it renews the same leases by the time of then.
            let asked = self.renewals.ask(query).await;
            let (rows, _) = asked.map_err(|error| classify(&error, Sent::Perhaps))?;
            let mut renewed = Renewed { now: Timestamp::MIN, verdicts: Vec::new() };
            for row in &rows {
                renewed.now = Timestamp::from_micros(row.int(0)?);
                let Some(shard_id) = row.maybe_int(1)? else { continue };
                let verdict = match (row.flag(2)?, row.flag(3)?) {
                    (false, _) => Verdict::Fenced,
                    (true, false) => Verdict::Rewound,
                    (true, true) => Verdict::Kept,
                };
                renewed.verdicts.push((ShardId(shard_id as i32), verdict));
            }
            Ok(renewed)
        })
    }

    fn release(&self, shard_id: ShardId, node_id: NodeId, epoch: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let query = || {
                sqlx::query(
                    "UPDATE shard SET node_id = NULL, address = '', lease_until = NULL
                     WHERE shard_id = $1 AND node_id = $2 AND epoch = $3",
                )
                .bind(shard_id.0)
                .bind(node_id.0)
                .bind(epoch as i64)
            };
            self.write(query).await?;
            Ok(())
        })
    }

    fn find_newest_runs(
        &self,
        ids: Vec<(NamespaceId, String)>,
    ) -> BoxFuture<'_, Result<Vec<Option<NewestRun>>>> {
        Box::pin(async move {
            let namespaces: Vec<_> = ids.iter().map(|(namespace, _)| namespace.uuid()).collect();
            let workflow_ids: Vec<_> = ids.iter().map(|(_, id)| id.as_str()).collect();
            let query = || {
                sqlx::query(include_str!("find_newest_runs.sql"))
                    .bind(&namespaces)
                    .bind(&workflow_ids)
            };
            let mut found = vec![None; ids.len()];
            for row in self.rows(query).await? {
                found[row.int(0)? as usize - 1] = Some(row::newest_run(&row)?);
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
            let run_ids: Vec<_> = run_ids.into_iter().map(RunId::uuid).collect();
            let query = || {
                sqlx::query(include_str!("load_runs.sql"))
                    .bind(&run_ids)
                    .bind(i64::from(most_bytes))
            };
            row::loaded_runs(&self.rows(query).await?)
        })
    }

    fn read_run(&self, run_id: RunId) -> BoxFuture<'_, Result<Option<RunRow>>> {
        Box::pin(async move {
            let query = || sqlx::query(include_str!("../sql/read_run.sql")).bind(run_id.uuid());
            self.rows(query).await?.first().map(|row| row::run_row(row, 0)).transpose()
        })
    }

    fn read_journal(
        &self,
        run_id: RunId,
        from_seq: u32,
        max_bytes: u32,
    ) -> BoxFuture<'_, Result<JournalPage>> {
        Box::pin(async move {
            let from = i64::from(from_seq);
            let sizes = || {
                sqlx::query(include_str!("../sql/read_journal_sizes.sql"))
                    .bind(run_id.uuid())
                    .bind(from)
                    .bind(row::JOURNAL_PAGE_ROWS + 1)
            };
            let Some((to, more)) = row::page_end(&self.rows(sizes).await?, max_bytes)? else {
                return Ok(JournalPage { rows: Vec::new(), more: false });
            };
            let query = || {
                sqlx::query(include_str!("../sql/read_journal.sql"))
                    .bind(run_id.uuid())
                    .bind(from)
                    .bind(to)
            };
            Ok(JournalPage { rows: row::journal_rows(&self.rows(query).await?)?, more })
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
            let query = || {
                sqlx::query(include_str!("hot_runs.sql"))
                    .bind(slot as i16)
                    .bind(run_id)
                    .bind(slots.end as i16)
                    .bind(i64::from(limit))
            };
            let rows = self.rows(query).await?;
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
            let query = || {
                sqlx::query(include_str!("due_runs.sql"))
                    .bind(i32::from(slots.start))
                    .bind(i32::from(slots.end))
                    .bind(after.wake_at.as_micros())
                    .bind(after.run_id.uuid())
                    .bind(horizon.as_micros())
                    .bind(i64::from(limit_per_slot))
            };
            self.rows(query).await?.iter().map(row::due_run).collect()
        })
    }

    fn list_runs(&self, list: ListRuns) -> BoxFuture<'_, Result<Vec<RunRow>>> {
        Box::pin(async move {
            let (started_at, run_id) = row::list_before(&list);
            let statuses: Vec<i16> =
                list.status.map_or_else(|| (1..=6).collect(), |status| vec![status as i16]);
            let query = || {
                sqlx::query(include_str!("list_runs.sql"))
                    .bind(list.namespace_id.uuid())
                    .bind(&statuses)
                    .bind(started_at)
                    .bind(run_id)
                    .bind(i64::from(list.limit))
            };
            self.rows(query).await?.iter().map(|row| row::run_row(row, 0)).collect()
        })
    }

    fn prune_batches(
        &self,
        shard_id: ShardId,
        keep: u32,
        limit: u32,
    ) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let query = || {
                sqlx::query(include_str!("prune_batches.sql"))
                    .bind(shard_id.0)
                    .bind(i64::from(keep))
                    .bind(i64::from(limit))
            };
            self.write(query).await
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let all = async move {
            let lanes =
                std::mem::take(&mut *self.lanes.lock().unwrap_or_else(PoisonError::into_inner));
            for lane in lanes.into_values() {
                if let Some(connection) = lane.lock().await.connection.take() {
                    let _ = connection.close().await;
                }
            }
            self.renewals.close().await;
            self.pool.close().await;
        };
        Box::pin(async move {
            // What does not end in order by then ends with the process.
            let _ = tokio::time::timeout(CLOSE_DEADLINE, all).await;
        })
    }
}
