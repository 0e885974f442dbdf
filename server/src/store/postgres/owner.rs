//! Changes of ownership: takeover and resolve.
//!
//! Both run on a connection of their own. They lock the shard's row first and read with younger
//! snapshots afterwards, so they see every batch that landed; and they raise the epoch, so a batch
//! still on its way in a socket or a pooler can no longer land.

use onward_proto::Timestamp;
use sqlx::{Executor, PgConnection, Row, postgres::PgConnectOptions};

use super::{
    super::{
        CommitId, Error, NodeId, Resolve, Resolved, Result, ShardId, ShardRow, Take, Taken,
        row::{self, StoredRow},
    },
    connect::connect,
    error::{Sent, classify, sqlstate},
};

/// How often a lock is asked for, 2 s each time.
const LOCK_ATTEMPTS: u32 = 3;

/// A transaction that holds the shard's row.
struct Locked {
    connection: PgConnection,
    row: ShardRow,
}

/// What the batch rows of a locked shard say.
struct Batches {
    newest: u64,
    asked: Option<u64>,
    own: Option<u64>,
    now: Timestamp,
}

/// Where a shard goes with a change.
struct Change {
    node_id: Option<NodeId>,
    address: String,
    epoch: u64,
    lease_us: i64,
    commit_seq: u64,
    commit_id: CommitId,
}

pub(super) async fn take(options: &PgConnectOptions, take: &Take) -> Result<Taken> {
    let watched = &take.watched;
    let Some(mut locked) = lock(options, watched.shard_id).await? else {
        return Ok(Taken::Changed);
    };
    let epoch = watched.epoch + 1;
    let batches = locked.batches(take.commit_id, take.commit_id, epoch).await?;
    if locked.row != *watched {
        let own = locked.row.epoch == epoch && locked.row.node_id == Some(take.node_id);
        locked.roll_back().await;
        return Ok(match batches.own {
            Some(commit_seq) if own => Taken::Owned { epoch, commit_seq, now: batches.now },
            _ => Taken::Changed,
        });
    }
    let commit_seq = batches.newest + 1;
    let change = Change {
        node_id: Some(take.node_id),
        address: take.address.clone(),
        epoch,
        lease_us: take.lease_us,
        commit_seq,
        commit_id: take.commit_id,
    };
    let now = locked.commit(&change).await?;
    Ok(Taken::Owned { epoch, commit_seq, now })
}

pub(super) async fn resolve(options: &PgConnectOptions, resolve: &Resolve) -> Result<Resolved> {
    let Some(mut locked) = lock(options, resolve.shard_id).await? else {
        return Ok(Resolved::Fenced);
    };
    let epoch = resolve.epoch + 1;
    let batches = locked.batches(resolve.commit_id, resolve.resolve_id, epoch).await?;
    let landed = batches.asked.is_some();
    let own = locked.row.node_id == Some(resolve.node_id);
    if locked.row.epoch != resolve.epoch || !own {
        let own = own && locked.row.epoch == epoch;
        locked.roll_back().await;
        return Ok(match batches.own {
            Some(commit_seq) if own => {
                Resolved::Owned { epoch, commit_seq, landed, now: batches.now }
            }
            _ => Resolved::Fenced,
        });
    }
    let commit_seq = batches.newest + 1;
    let change = Change {
        node_id: Some(resolve.node_id),
        address: locked.row.address.clone(),
        epoch,
        lease_us: resolve.lease_us,
        commit_seq,
        commit_id: resolve.resolve_id,
    };
    let now = locked.commit(&change).await?;
    Ok(Resolved::Owned { epoch, commit_seq, landed, now })
}

/// Locks the shard's row on a new connection. A session that has held it for 2 s is ended: it is a
/// batch of an owner that is gone, or that waits for this very resolve.
async fn lock(options: &PgConnectOptions, shard_id: ShardId) -> Result<Option<Locked>> {
    let before = |error: &sqlx::Error| classify(error, Sent::No);
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut connection = connect(options).await.map_err(|error| before(&error))?;
        // As one simple query, so that a pooler gives both the same session.
        connection
            .execute(sqlx::raw_sql(
                "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '2s'",
            ))
            .await
            .map_err(|error| before(&error))?;
        let locked = sqlx::query(
            "SELECT shard_id::bigint, slot_from::bigint, slot_to::bigint, node_id, address, epoch,
                    lease_until
             FROM shard WHERE shard_id = $1 FOR NO KEY UPDATE",
        )
        .persistent(false)
        .bind(shard_id.0)
        .fetch_all(&mut connection)
        .await;
        match locked {
            Ok(rows) => {
                let row = rows.first().map(super::shard_row).transpose()?;
                return Ok(row.map(|row| Locked { connection, row }));
            }
            Err(error)
                if sqlstate(&error).as_deref() == Some("55P03") && attempts < LOCK_ATTEMPTS =>
            {
                end_holder(connection, shard_id).await.map_err(|error| before(&error))?;
            }
            Err(error) => return Err(before(&error)),
        }
    }
}

/// Ends the session that holds the shard's row. The row itself names the transaction.
async fn end_holder(mut connection: PgConnection, shard_id: ShardId) -> Result<(), sqlx::Error> {
    // Through a pooler only a transaction keeps its session, and a statement is two messages.
    connection.execute(sqlx::raw_sql("ROLLBACK; BEGIN")).await?;
    let ended = sqlx::query(
        "SELECT activity.pid, pg_terminate_backend(activity.pid)
         FROM shard JOIN pg_stat_activity AS activity ON activity.backend_xid = shard.xmax
         WHERE shard.shard_id = $1 AND activity.pid <> pg_backend_pid()",
    )
    .persistent(false)
    .bind(shard_id.0)
    .fetch_all(&mut connection)
    .await?;
    for row in ended {
        let pid: i32 = row.try_get(0)?;
        tracing::warn!(%shard_id, pid, "ended a session that held the shard's row for 2 s");
    }
    connection.execute(sqlx::raw_sql("COMMIT")).await?;
    Ok(())
}

impl Locked {
    /// Reads where the newest batch is, where `asked` is, and where `own` of epoch `epoch` is.
    async fn batches(&mut self, asked: CommitId, own: CommitId, epoch: u64) -> Result<Batches> {
        let row = sqlx::query(include_str!("read_batches.sql"))
            .persistent(false)
            .bind(self.row.shard_id.0)
            .bind(asked.0)
            .bind(own.0)
            .bind(epoch as i64)
            .fetch_one(&mut self.connection)
            .await
            .map_err(|error| classify(&error, Sent::No))?;
        let seq = |column| Ok::<_, Error>(row.maybe_int(column)?.map(|seq| seq as u64));
        let newest = seq(0)?;
        let newest = newest.ok_or_else(|| {
            Error::Corrupt(format!("shard {} has no batch row", self.row.shard_id))
        })?;
        let now = Timestamp::from_micros(row.int(3)?);
        Ok(Batches { newest, asked: seq(1)?, own: seq(2)?, now })
    }

    /// Writes the change and commits. Its answer counts only once this has returned.
    async fn commit(mut self, change: &Change) -> Result<Timestamp> {
        let row = sqlx::query(include_str!("change_owner.sql"))
            .persistent(false)
            .bind(self.row.shard_id.0)
            .bind(change.node_id.map(|node_id| node_id.0))
            .bind(&change.address)
            .bind(change.epoch as i64)
            .bind(change.lease_us)
            .bind(change.commit_seq as i64)
            .bind(change.commit_id.0)
            .fetch_one(&mut self.connection)
            .await
            .map_err(|error| classify(&error, Sent::No))?;
        let now = Timestamp::from_micros(row.int(0)?);
        self.connection
            .execute(sqlx::raw_sql("COMMIT"))
            .await
            .map_err(|error| classify(&error, Sent::Perhaps))?;
        Ok(now)
    }

    /// Nothing was written, so it does not matter how this ends.
    async fn roll_back(mut self) {
        let _ = self.connection.execute(sqlx::raw_sql("ROLLBACK")).await;
    }
}

/// Reads a row of `shard`; see [`row::shard_row`] for the columns.
pub(super) fn shard_row(row: &sqlx::postgres::PgRow) -> Result<ShardRow> {
    row::shard_row(row)
}
