//! The one task that writes the file.
//!
//! It keeps each shard's epoch and newest batch in memory, read at the start and again whenever the
//! outcome of a transaction is not known. A batch is checked against them, then all batches that
//! passed go into one transaction; the memory moves when that is committed.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use onward_proto::Timestamp;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, SqlSafeStr, SqliteConnection,
    sqlite::{SqliteArguments, SqliteConnectOptions},
};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{
    super::{
        Batch, CommitId, Committed, Error, NodeId, Renewal, Renewed, Resolve, Resolved, Result,
        ShardId, ShardRow, Shards, Take, Taken, Verdict, even_shards,
        row::{self, StoredRow},
    },
    arguments, error, statements,
    statements::Texts,
};

type Reply<T> = oneshot::Sender<Result<T>>;

/// A write and where its answer goes.
pub(super) enum Job {
    Shards(u16, Reply<Shards>),
    Take(Take, Reply<Taken>),
    Commit(Arc<Batch>, Reply<Committed>),
    Resolve(Resolve, Reply<Resolved>),
    Renew(Vec<Renewal>, i64, Reply<Renewed>),
    Release(ShardId, NodeId, u64, Reply<()>),
    Prune(ShardId, u32, u32, Reply<u64>),
    Close(Reply<()>),
}

/// How many batches one transaction merges.
const MERGED_BATCHES: usize = 64;

/// What the writer knows of a shard.
#[derive(Debug, Clone)]
struct Known {
    row: ShardRow,
    commit_seq: u64,
    commit_id: CommitId,
}

pub(super) struct Writer {
    options: SqliteConnectOptions,
    /// None after a transaction whose outcome is not known.
    open: Option<Open>,
    texts: Texts,
    newest_time: Timestamp,
}

struct Open {
    connection: SqliteConnection,
    /// None until it has been read.
    known: Option<BTreeMap<ShardId, Known>>,
}

type Waiting = (Arc<Batch>, Reply<Committed>);

impl Writer {
    pub(super) fn new(options: SqliteConnectOptions, connection: SqliteConnection) -> Self {
        let open = Some(Open { connection, known: None });
        Self { options, open, texts: Texts::default(), newest_time: Timestamp::MIN }
    }

    /// Serves jobs until the store closes or is dropped.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut waiting = Vec::new();
        while jobs.recv_many(&mut waiting, MERGED_BATCHES).await > 0 {
            let mut batches: Vec<Waiting> = Vec::new();
            for job in waiting.drain(..) {
                // A transaction holds one batch of a shard, so the rows of a run stay in order.
                let in_order = match &job {
                    Job::Commit(batch, _) => {
                        batches.iter().any(|(other, _)| other.shard_id == batch.shard_id)
                    }
                    _ => true,
                };
                if in_order {
                    self.commit_merged(std::mem::take(&mut batches)).await;
                }
                match job {
                    Job::Commit(batch, reply) => batches.push((batch, reply)),
                    Job::Close(reply) => {
                        self.close().await;
                        let _ = reply.send(Ok(()));
                        return;
                    }
                    other => self.serve(other).await,
                }
            }
            self.commit_merged(batches).await;
        }
        self.close().await;
    }

    /// An answer nobody waits for is dropped.
    async fn serve(&mut self, job: Job) {
        match job {
            Job::Shards(count, reply) => drop(reply.send(self.shards(count).await)),
            Job::Take(take, reply) => drop(reply.send(self.take(&take).await)),
            Job::Resolve(resolve, reply) => drop(reply.send(self.resolve(&resolve).await)),
            Job::Renew(renewals, lease_us, reply) => {
                drop(reply.send(self.renew(&renewals, lease_us).await));
            }
            Job::Release(shard_id, node_id, epoch, reply) => {
                drop(reply.send(self.release(shard_id, node_id, epoch).await));
            }
            Job::Prune(shard_id, keep, limit, reply) => {
                drop(reply.send(self.prune(shard_id, keep, limit).await));
            }
            Job::Commit(..) | Job::Close(_) => unreachable!("run handles these itself"),
        }
    }

    async fn close(&mut self) {
        if let Some(open) = self.open.take() {
            let _ = open.connection.close().await;
        }
    }

    /// The database's clock: the system's, but it never runs back.
    fn now(&mut self) -> Timestamp {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        self.newest_time = self.newest_time.max(Timestamp::from_micros(0) + since);
        self.newest_time
    }

    /// The connection, and what is known of the shards.
    async fn open(&mut self) -> Result<(&mut SqliteConnection, &mut BTreeMap<ShardId, Known>)> {
        if self.open.is_none() {
            let connection = self.options.connect().await.map_err(|failed| error(&failed))?;
            self.open = Some(Open { connection, known: None });
        }
        let open = self.open.as_mut().expect("opened above");
        if open.known.is_none() {
            open.known = Some(read_known(&mut open.connection).await?);
        }
        let known = open.known.as_mut().expect("read above");
        Ok((&mut open.connection, known))
    }

    /// Commits the batches that are not fenced in one transaction. When the data of one is refused,
    /// each is committed alone, so that it spoils no other.
    async fn commit_merged(&mut self, batches: Vec<Waiting>) {
        if batches.is_empty() {
            return;
        }
        let mut passed = Vec::new();
        match self.open().await {
            Ok((_, known)) => {
                for (batch, reply) in batches {
                    if known.get(&batch.shard_id).is_some_and(|known| known.admits(&batch)) {
                        passed.push((batch, reply));
                    } else {
                        let _ = reply.send(Ok(Committed::Fenced));
                    }
                }
            }
            Err(error) => {
                for (_, reply) in batches {
                    let _ = reply.send(Err(again(&error)));
                }
                return;
            }
        }
        if passed.is_empty() {
            return;
        }
        let merged: Vec<&Batch> = passed.iter().map(|(batch, _)| &**batch).collect();
        let outcome = self.commit(&merged).await;
        if matches!(outcome, Err(Error::Refused(_))) && passed.len() > 1 {
            for (batch, reply) in passed {
                let _ = reply.send(self.commit(&[&*batch]).await);
            }
            return;
        }
        for (_, reply) in passed {
            let _ = reply.send(match &outcome {
                Ok(committed) => Ok(committed.clone()),
                Err(error) => Err(again(error)),
            });
        }
    }

    async fn commit(&mut self, batches: &[&Batch]) -> Result<Committed> {
        let now = self.now();
        let mut work = Vec::new();
        let mut all = statements::of_batches(batches)?.into_iter().peekable();
        let leases: Vec<_> = batches
            .iter()
            .filter_map(|batch| Some((batch.shard_id, now.plus_micros(batch.renew_lease_us?))))
            .collect();
        while let Some(statement) = all.next() {
            let last = all.peek().is_none() && leases.is_empty();
            let (text, arguments) = self.texts.join(statement, last);
            work.push((AssertSqlSafe(text).into_sql_str(), arguments));
        }
        for (n, (shard_id, lease_until)) in leases.iter().enumerate() {
            let text = if n + 1 == leases.len() {
                "UPDATE shard SET lease_until = ? WHERE shard_id = ?; COMMIT"
            } else {
                "UPDATE shard SET lease_until = ? WHERE shard_id = ?"
            };
            let arguments = arguments![lease_until.as_micros(), i64::from(shard_id.0)];
            work.push((text.into_sql_str(), arguments));
        }
        self.transact(work).await?;
        let (_, known) = self.open().await?;
        for batch in batches {
            if let Some(known) = known.get_mut(&batch.shard_id) {
                known.commit_seq = batch.commit_seq;
                known.commit_id = batch.commit_id;
                if let Some(lease_us) = batch.renew_lease_us {
                    known.row.lease_until = Some(now.plus_micros(lease_us));
                }
            }
        }
        Ok(Committed::Committed { now })
    }

    /// Runs a transaction whose first statement begins it and whose last one commits it.
    ///
    /// After an error it is rolled back. When there is nothing to roll back, it has either done
    /// so itself or committed: the outcome is unknown, and what is in the file is read again.
    async fn transact(&mut self, work: Vec<(sqlx::SqlStr, SqliteArguments)>) -> Result<()> {
        let (connection, _) = self.open().await?;
        for (text, arguments) in work {
            let Err(failed) = sqlx::query_with(text, arguments).execute(&mut *connection).await
            else {
                continue;
            };
            let began = !is_busy(&failed);
            let rolled_back = sqlx::query("ROLLBACK").execute(&mut *connection).await;
            if rolled_back.is_err() && began {
                self.close().await;
                return Err(Error::Unknown(failed.to_string()));
            }
            return Err(error(&failed));
        }
        Ok(())
    }

    async fn shards(&mut self, default_count: u16) -> Result<Shards> {
        let now = self.now();
        let (_, known) = self.open().await?;
        if known.is_empty() {
            let mut work = vec![("BEGIN IMMEDIATE".into_sql_str(), SqliteArguments::default())];
            for row in even_shards(default_count) {
                let (from, to) = (i64::from(row.slots.start), i64::from(row.slots.end));
                work.push((
                    "INSERT INTO shard (shard_id, slot_from, slot_to, node_id, address, epoch,
                         lease_until)
                     VALUES (?, ?, ?, NULL, '', 0, NULL)"
                        .into_sql_str(),
                    arguments![i64::from(row.shard_id.0), from, to],
                ));
                work.push(insert_batch(row.shard_id, 0, CommitId(Uuid::nil()), 0)?);
            }
            work.push(("COMMIT".into_sql_str(), SqliteArguments::default()));
            self.transact(work).await?;
            self.forget();
        }
        let (_, known) = self.open().await?;
        Ok(Shards { rows: known.values().map(|known| known.row.clone()).collect(), now })
    }

    async fn take(&mut self, take: &Take) -> Result<Taken> {
        let now = self.now();
        let shard_id = take.watched.shard_id;
        let epoch = take.watched.epoch + 1;
        let (connection, known) = self.open().await?;
        let Some(shard) = known.get(&shard_id).cloned() else { return Ok(Taken::Changed) };
        if shard.row != take.watched {
            let own = shard.row.epoch == epoch && shard.row.node_id == Some(take.node_id);
            return Ok(
                match find_batch(connection, shard_id, take.commit_id, Some(epoch)).await? {
                    Some(commit_seq) if own => Taken::Owned { epoch, commit_seq, now },
                    _ => Taken::Changed,
                },
            );
        }
        let commit_seq = shard.commit_seq + 1;
        let row = ShardRow {
            node_id: Some(take.node_id),
            address: take.address.clone(),
            epoch,
            lease_until: Some(now.plus_micros(take.lease_us)),
            ..shard.row
        };
        self.change_owner(row, commit_seq, take.commit_id).await?;
        Ok(Taken::Owned { epoch, commit_seq, now })
    }

    async fn resolve(&mut self, resolve: &Resolve) -> Result<Resolved> {
        let now = self.now();
        let shard_id = resolve.shard_id;
        let epoch = resolve.epoch + 1;
        let (connection, known) = self.open().await?;
        let Some(shard) = known.get(&shard_id).cloned() else { return Ok(Resolved::Fenced) };
        let landed = find_batch(connection, shard_id, resolve.commit_id, None).await?.is_some();
        let own = shard.row.node_id == Some(resolve.node_id);
        if shard.row.epoch == resolve.epoch && own {
            let commit_seq = shard.commit_seq + 1;
            let lease_until = Some(now.plus_micros(resolve.lease_us));
            let row = ShardRow { epoch, lease_until, ..shard.row };
            self.change_owner(row, commit_seq, resolve.resolve_id).await?;
            return Ok(Resolved::Owned { epoch, commit_seq, landed, now });
        }
        let own = own && shard.row.epoch == epoch;
        Ok(match find_batch(connection, shard_id, resolve.resolve_id, Some(epoch)).await? {
            Some(commit_seq) if own => Resolved::Owned { epoch, commit_seq, landed, now },
            _ => Resolved::Fenced,
        })
    }

    /// Writes a shard row of a new epoch and the batch row that belongs to the change.
    async fn change_owner(
        &mut self,
        row: ShardRow,
        commit_seq: u64,
        commit_id: CommitId,
    ) -> Result<()> {
        let work = vec![
            ("BEGIN IMMEDIATE".into_sql_str(), SqliteArguments::default()),
            insert_batch(row.shard_id, commit_seq, commit_id, row.epoch)?,
            update_shard(&row)?,
            ("COMMIT".into_sql_str(), SqliteArguments::default()),
        ];
        self.transact(work).await?;
        let (_, known) = self.open().await?;
        known.insert(row.shard_id, Known { row, commit_seq, commit_id });
        Ok(())
    }

    async fn renew(&mut self, renewals: &[Renewal], lease_us: i64) -> Result<Renewed> {
        let now = self.now();
        let lease_until = Some(now.plus_micros(lease_us));
        let mut verdicts = Vec::new();
        let mut renewed = Vec::new();
        let (connection, known) = self.open().await?;
        for renewal in renewals {
            let shard_id = renewal.shard_id;
            let Some(shard) = known.get(&shard_id) else { continue };
            let is_there = (shard.commit_seq, shard.commit_id)
                == (renewal.commit_seq, renewal.commit_id)
                || find_batch(connection, shard_id, renewal.commit_id, None).await?
                    == Some(renewal.commit_seq);
            let verdict = match () {
                () if shard.row.epoch != renewal.epoch => Verdict::Fenced,
                () if !is_there => Verdict::Rewound,
                () => Verdict::Kept,
            };
            verdicts.push((shard_id, verdict));
            if verdict == Verdict::Kept {
                renewed.push(ShardRow { lease_until, ..shard.row.clone() });
            }
        }
        self.update_shards(renewed).await?;
        Ok(Renewed { now, verdicts })
    }

    async fn release(&mut self, shard_id: ShardId, node_id: NodeId, epoch: u64) -> Result<()> {
        let (_, known) = self.open().await?;
        let is_ours = |row: &ShardRow| row.epoch == epoch && row.node_id == Some(node_id);
        let Some(shard) = known.get(&shard_id).filter(|shard| is_ours(&shard.row)) else {
            return Ok(());
        };
        let row = ShardRow {
            node_id: None,
            address: String::new(),
            lease_until: None,
            ..shard.row.clone()
        };
        self.update_shards(vec![row]).await
    }

    async fn update_shards(&mut self, rows: Vec<ShardRow>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut work = vec![("BEGIN IMMEDIATE".into_sql_str(), SqliteArguments::default())];
        for row in &rows {
            work.push(update_shard(row)?);
        }
        work.push(("COMMIT".into_sql_str(), SqliteArguments::default()));
        self.transact(work).await?;
        let (_, known) = self.open().await?;
        for row in rows {
            if let Some(known) = known.get_mut(&row.shard_id) {
                known.row = row;
            }
        }
        Ok(())
    }

    async fn prune(&mut self, shard_id: ShardId, keep: u32, limit: u32) -> Result<u64> {
        let (connection, known) = self.open().await?;
        let newest = known.get(&shard_id).map_or(0, |shard| shard.commit_seq);
        let Some(last) = newest.checked_sub(u64::from(keep)) else { return Ok(0) };
        let arguments = arguments![i64::from(shard_id.0), last as i64, i64::from(limit)];
        // The primary key of batch: the oldest rows are its first.
        let done = sqlx::query_with(
            "DELETE FROM batch WHERE shard_id = $1 AND commit_seq IN (
                 SELECT commit_seq FROM batch WHERE shard_id = $1 AND commit_seq <= $2
                 ORDER BY commit_seq LIMIT $3)",
            arguments,
        )
        .execute(connection)
        .await
        .map_err(|failed| error(&failed))?;
        Ok(done.rows_affected())
    }

    fn forget(&mut self) {
        if let Some(open) = &mut self.open {
            open.known = None;
        }
    }
}

impl Known {
    fn admits(&self, batch: &Batch) -> bool {
        self.row.epoch == batch.epoch
            && self.commit_seq + 1 == batch.commit_seq
            && self.commit_id == batch.previous
    }
}

/// The same error for each of several that it concerns.
fn again(error: &Error) -> Error {
    match error {
        Error::Unavailable(message) => Error::Unavailable(message.clone()),
        Error::Unknown(message) => Error::Unknown(message.clone()),
        Error::Refused(message) => Error::Refused(message.clone()),
        Error::Corrupt(message) => Error::Corrupt(message.clone()),
    }
}

/// Busy means that the transaction has not even begun.
fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
    code.is_some_and(|code| code & 0xff == 5)
}

fn insert_batch(
    shard_id: ShardId,
    commit_seq: u64,
    commit_id: CommitId,
    epoch: u64,
) -> Result<(sqlx::SqlStr, SqliteArguments)> {
    let text = "INSERT INTO batch (shard_id, commit_seq, commit_id, epoch) VALUES (?, ?, ?, ?)";
    let arguments = arguments![i64::from(shard_id.0), commit_seq as i64, commit_id.0, epoch as i64];
    Ok((text.into_sql_str(), arguments))
}

fn update_shard(row: &ShardRow) -> Result<(sqlx::SqlStr, SqliteArguments)> {
    let text = "UPDATE shard SET node_id = ?, address = ?, epoch = ?, lease_until = ?
                WHERE shard_id = ?";
    let arguments = arguments![
        row.node_id.map(|node_id| node_id.0),
        row.address.clone(),
        row.epoch as i64,
        row.lease_until.map(Timestamp::as_micros),
        i64::from(row.shard_id.0),
    ];
    Ok((text.into_sql_str(), arguments))
}

/// The number of the batch `commit_id`, if it is among the newest and of `epoch` when one is given.
async fn find_batch(
    connection: &mut SqliteConnection,
    shard_id: ShardId,
    commit_id: CommitId,
    epoch: Option<u64>,
) -> Result<Option<u64>> {
    let text = "SELECT commit_seq FROM (
                    SELECT commit_seq, commit_id, epoch FROM batch WHERE shard_id = $1
                    ORDER BY commit_seq DESC LIMIT 1000)
                WHERE commit_id = $2 AND ($3 IS NULL OR epoch = $3)";
    let epoch = epoch.map(|epoch| epoch as i64);
    let arguments = arguments![i64::from(shard_id.0), commit_id.0, epoch];
    let row = sqlx::query_with(text, arguments)
        .fetch_optional(connection)
        .await
        .map_err(|failed| error(&failed))?;
    row.map(|row| row.int(0).map(|seq| seq as u64)).transpose()
}

async fn read_known(connection: &mut SqliteConnection) -> Result<BTreeMap<ShardId, Known>> {
    let rows = sqlx::query(
        "SELECT shard_id, slot_from, slot_to, node_id, address, shard.epoch, lease_until,
                newest.commit_seq, newest.commit_id
         FROM shard JOIN batch AS newest USING (shard_id)
         WHERE newest.commit_seq = (
             SELECT max(batch.commit_seq) FROM batch WHERE batch.shard_id = shard.shard_id)",
    )
    .fetch_all(connection)
    .await
    .map_err(|failed| error(&failed))?;
    let read = |row: &sqlx::sqlite::SqliteRow| {
        let known = Known {
            row: row::shard_row(row)?,
            commit_seq: row.int(7)? as u64,
            commit_id: CommitId(row.uuid(8)?),
        };
        Ok((known.row.shard_id, known))
    };
    rows.iter().map(read).collect()
}
