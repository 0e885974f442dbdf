#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;

use sqlx::{AssertSqlSafe, Executor};
use uuid::Uuid;

use super::{super::WakeAt, *};

async fn store(dir: &tempfile::TempDir) -> SqliteStore {
    SqliteStore::open(&dir.path().join("onward.db"), &OpenOptions::default()).await.unwrap()
}

#[tokio::test]
async fn a_second_opener_is_told_who_has_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(&dir).await;
    let path = dir.path().join("onward.db");
    let error = SqliteStore::open(&path, &OpenOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains(&format!("in use by process {}", std::process::id())));
    first.close().await;
    drop(first);
    store(&dir).await;
}

#[tokio::test]
async fn only_the_owner_may_read_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    store.shards(2).await.unwrap();
    for name in ["onward.db", "onward.db-wal", "onward.db-shm", "onward.db.lock"] {
        assert_eq!(dir.path().join(name).metadata().unwrap().mode() & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(&dir).await;
    first.close().await;
    drop(first);
    let path = dir.path().join("onward.db");
    let mut connection = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    connection
        .execute("INSERT INTO _sqlx_migrations VALUES (999, 'later', 0, 1, x'00', 0)")
        .await
        .unwrap();
    drop(connection);
    let error = SqliteStore::open(&path, &OpenOptions::default()).await.unwrap_err();
    assert!(matches!(error, OpenError::NewerSchema { found: 999, known: 1 }), "{error}");
    let options = OpenOptions { unsafe_allow: true, ..OpenOptions::default() };
    SqliteStore::open(&path, &options).await.unwrap();
}

#[tokio::test]
async fn a_restart_finds_every_shard_released() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(&dir).await;
    let watched = first.shards(1).await.unwrap().rows.remove(0);
    let node_id = super::super::NodeId(Uuid::from_u128(1));
    let commit_id = super::super::CommitId(Uuid::from_u128(2));
    let take = Take { watched, node_id, address: "here".into(), commit_id, lease_us: 3_000_000 };
    assert!(matches!(first.take(take).await.unwrap(), Taken::Owned { epoch: 1, .. }));
    first.close().await;
    drop(first);
    let row = store(&dir).await.shards(1).await.unwrap().rows.remove(0);
    assert_eq!((row.epoch, row.node_id, row.lease_until), (1, None, None));
}

#[tokio::test]
async fn a_write_that_waits_in_vain_for_the_file_was_certainly_not_applied() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let watched = store.shards(1).await.unwrap().rows.remove(0);
    let path = dir.path().join("onward.db");
    let mut other = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let node_id = super::super::NodeId(Uuid::from_u128(1));
    let commit_id = super::super::CommitId(Uuid::from_u128(2));
    let take = Take { watched, node_id, address: "here".into(), commit_id, lease_us: 3_000_000 };
    let error = store.take(take.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    other.execute("ROLLBACK").await.unwrap();
    assert!(matches!(store.take(take).await.unwrap(), Taken::Owned { epoch: 1, .. }));
}

/// Every text is prepared, and none reads a table from end to end.
#[tokio::test]
async fn every_statement_walks_an_index() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let mut texts: Vec<String> = [
        include_str!("../sql/read_run.sql"),
        include_str!("../sql/read_journal_sizes.sql"),
        include_str!("../sql/read_journal.sql"),
        include_str!("hot_runs.sql"),
        include_str!("due_runs.sql"),
        include_str!("list_runs.sql"),
    ]
    .map(String::from)
    .to_vec();
    for kind in statements::Kind::ALL {
        texts.extend(statements::row_counts().map(|rows| kind.text(rows)));
    }
    for text in texts {
        let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}"));
        let rows = sqlx::query(explain).fetch_all(&store.readers).await.unwrap();
        for row in rows {
            let step: String = row.get("detail");
            let scanned = ["run", "journal", "pending", "batch", "open", "closed", "due", "newest"];
            let is_scan = step
                .strip_prefix("SCAN ")
                .is_some_and(|rest| scanned.contains(&rest.split(' ').next().unwrap()));
            assert!(!is_scan, "{step}\n{text}");
        }
    }
    assert_eq!(WakeAt::Hot.to_column(), Some(-9_223_372_036_854_775_808));
}
