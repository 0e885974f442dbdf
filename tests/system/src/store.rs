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

/// Whether runs may be open still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// They may.
    SomeOpen,
    /// They may not.
    AllClosed,
}

/// What must not be in a store, however often its server was killed.
const UNSOUND: [(Runs, &str, &str); 4] = [
    (Runs::AllClosed, "open runs", "SELECT count(*) FROM run WHERE closed_at IS NULL"),
    (
        Runs::AllClosed,
        "closed runs with a deadline",
        "SELECT count(*) FROM run WHERE wake_at IS NOT NULL",
    ),
    (
        Runs::SomeOpen,
        "runs with a gap in their journal",
        "SELECT count(*) FROM (
             SELECT run_id FROM journal GROUP BY run_id
             HAVING min(seq) <> 0 OR max(seq) <> count(*) - 1
         ) AS gap",
    ),
    (
        Runs::SomeOpen,
        "journals without a run, or runs without a journal",
        "SELECT count(*) FROM (SELECT DISTINCT run_id FROM journal) AS written
         FULL JOIN run ON run.run_id = written.run_id
         WHERE run.run_id IS NULL OR written.run_id IS NULL",
    ),
];

fn unsound(runs: Runs) -> impl Iterator<Item = (&'static str, &'static str)> {
    let applies = move |of| of == Runs::SomeOpen || runs == Runs::AllClosed;
    UNSOUND.into_iter().filter(move |(of, ..)| applies(*of)).map(|(_, what, count)| (what, count))
}

/// The batches of a data directory that no server has open, after a look at the file as a whole.
pub async fn sqlite_batches(data_dir: &Path, runs: Runs) -> Vec<Batch> {
    let options = SqliteConnectOptions::new().filename(data_dir.join("onward.db"));
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let whole: String =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut connection).await.unwrap();
    assert_eq!(whole, "ok");
    for (what, count) in unsound(runs) {
        let found: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
        assert_eq!(found, 0, "{what}");
    }
    let rows = sqlx::query(BATCHES).fetch_all(&mut connection).await.unwrap();
    rows.iter()
        .map(|row| Batch { shard_id: row.get(0), commit_seq: row.get(1), epoch: row.get(2) })
        .collect()
}

/// The batches of a Postgres database, after the same look.
pub async fn postgres_batches(url: &str, runs: Runs) -> Vec<Batch> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    for (what, count) in unsound(runs) {
        let found: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
        assert_eq!(found, 0, "{what}");
    }
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
