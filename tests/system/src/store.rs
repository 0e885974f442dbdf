//! What the store says of its writers.

use std::path::Path;

use sqlx::{Connection as _, PgConnection, Row, SqliteConnection, sqlite::SqliteConnectOptions};

/// One batch that was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Batch {
    /// The shard.
    pub shard_id: i64,
    /// Its place.
    pub commit_seq: i64,
    /// The owner's epoch.
    pub epoch: i64,
}

const BATCHES: &str = "SELECT CAST(shard_id AS bigint), commit_seq, epoch FROM batch
    ORDER BY shard_id, commit_seq";

/// The batches of a data directory that no server has open, after a look at the file as a whole.
pub async fn sqlite_batches(data_dir: &Path) -> Vec<Batch> {
    let options = SqliteConnectOptions::new().filename(data_dir.join("onward.db"));
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let whole: String =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut connection).await.unwrap();
    assert_eq!(whole, "ok");
    let rows = sqlx::query(BATCHES).fetch_all(&mut connection).await.unwrap();
    rows.iter()
        .map(|row| Batch { shard_id: row.get(0), commit_seq: row.get(1), epoch: row.get(2) })
        .collect()
}

/// The batches of a Postgres database.
pub async fn postgres_batches(url: &str) -> Vec<Batch> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let rows = sqlx::query(BATCHES).fetch_all(&mut connection).await.unwrap();
    rows.iter()
        .map(|row| Batch { shard_id: row.get(0), commit_seq: row.get(1), epoch: row.get(2) })
        .collect()
}

/// One owner at a time: along the batches of a shard there is no gap, and the epoch never falls.
/// Gives how many epochs there were.
pub fn assert_single_writer(batches: &[Batch]) -> usize {
    assert!(batches.len() > 10, "that is no load: {batches:?}");
    for pair in batches.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        if before.shard_id == after.shard_id {
            assert_eq!(before.commit_seq + 1, after.commit_seq, "a gap behind {before:?}");
            assert!(before.epoch <= after.epoch, "{before:?}, then {after:?}");
        }
    }
    let mut epochs: Vec<_> = batches.iter().map(|batch| (batch.shard_id, batch.epoch)).collect();
    epochs.dedup();
    epochs.len()
}
