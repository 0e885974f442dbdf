//! What the database by itself can do, so that figures of two machines can be compared.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use onward_proto::{DEFAULT_NAMESPACE, RunId, Slot, Timestamp, v1::WorkflowStatus};
use onward_server::store::{
    self, Batch, CommitId, Committed, HistorySize, JournalInsert, NodeId, OpenOptions, RunRow,
    Take, Taken, WakeAt,
};
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use uuid::Uuid;

use crate::database::Database;

/// The records of a W1 run take about so many bytes in the journal.
const RECORD_BYTES: usize = 500;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Yardstick {
    /// p50 of a durable commit of one row by one client.
    pub(crate) commit_p50_ms: f64,
    /// Batches of one run row and one journal row behind the fence, one after the other.
    pub(crate) batches_per_s: f64,
}

/// Measures for `time` each, while nobody else uses the database.
pub(crate) async fn measure(database: &Database, time: Duration) -> Result<Yardstick> {
    let url = database.sibling_url();
    // The store first: the file of SQLite is its own.
    let batches_per_s = batches(&url, time).await?;
    let commit_p50_ms = commits(&url, time).await?;
    Ok(Yardstick { commit_p50_ms, batches_per_s })
}

async fn commits(url: &str, time: Duration) -> Result<f64> {
    let mut took = Histogram::<u64>::new(3)?;
    let (create, insert) = (
        "CREATE TABLE yardstick (number bigint PRIMARY KEY)",
        "INSERT INTO yardstick (number) VALUES ($1)",
    );
    let from = Instant::now();
    if let Some(path) = url.strip_prefix("sqlite://") {
        let mut connection = SqliteConnectOptions::new()
            .filename(Path::new(path).with_extension("commits"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .connect()
            .await?;
        sqlx::query(create).execute(&mut connection).await?;
        for number in 0_i64.. {
            let begun = Instant::now();
            sqlx::query(insert).bind(number).execute(&mut connection).await?;
            took.record(begun.elapsed().as_micros() as u64)?;
            if from.elapsed() > time {
                break;
            }
        }
        connection.close().await?;
    } else {
        let mut connection = PgConnection::connect(url).await?;
        sqlx::query(create).execute(&mut connection).await?;
        for number in 0_i64.. {
            let begun = Instant::now();
            sqlx::query(insert).bind(number).execute(&mut connection).await?;
            took.record(begun.elapsed().as_micros() as u64)?;
            if from.elapsed() > time {
                break;
            }
        }
        connection.close().await?;
    }
    Ok(took.value_at_quantile(0.5) as f64 / 1_000.0)
}

async fn batches(url: &str, time: Duration) -> Result<f64> {
    let store = store::open(url, OpenOptions::default()).await?;
    let Some(watched) = store.shards(1).await?.rows.into_iter().next() else {
        bail!("a new store has no shard")
    };
    let shard_id = watched.shard_id;
    let commit_id = CommitId(Uuid::new_v4());
    let node_id = NodeId(Uuid::new_v4());
    let take =
        Take { watched, node_id, address: String::new(), commit_id, lease_us: 3_600_000_000 };
    let Taken::Owned { epoch, mut commit_seq, .. } = store.take(take).await? else {
        bail!("a new store has an owner")
    };
    let mut previous = commit_id;
    let mut count = 0_u32;
    let from = Instant::now();
    while from.elapsed() < time {
        commit_seq += 1;
        let commit_id = CommitId(Uuid::new_v4());
        let run = new_run(commit_seq);
        let records = Bytes::from(vec![b'x'; RECORD_BYTES]);
        let journal = vec![JournalInsert { run_id: run.run_id, seq: 0, records }];
        let batch = Batch {
            shard_id,
            epoch,
            commit_seq,
            commit_id,
            previous,
            renew_lease_us: None,
            new_runs: vec![run],
            run_updates: Vec::new(),
            journal,
            pending: Vec::new(),
        };
        match store.commit(batch.into()).await? {
            Committed::Committed { .. } => count += 1,
            Committed::Fenced => bail!("nobody else can have taken the shard"),
        }
        previous = commit_id;
    }
    let seconds = from.elapsed().as_secs_f64();
    store.close().await;
    Ok(f64::from(count) / seconds)
}

/// A run that started and completed at once.
fn new_run(number: u64) -> RunRow {
    let now = jiff::Timestamp::now();
    let at = Timestamp::from_micros(now.as_microsecond());
    let slot = Slot::new((number % 1_024) as u16);
    let run_id = RunId::new(now.as_millisecond() as u64, Uuid::new_v4().as_u128() as u64, slot);
    RunRow {
        run_id,
        namespace_id: DEFAULT_NAMESPACE,
        workflow_id: run_id.to_string(),
        workflow_type: "w1".to_owned(),
        task_queue: "bench".to_owned(),
        status: WorkflowStatus::Completed,
        started_at: at,
        closed_at: Some(at),
        wake_at: WakeAt::Never,
        history: HistorySize { events: 6, bytes: RECORD_BYTES as u64 },
        memo: Bytes::new(),
        requests: Bytes::from(vec![b'x'; 40]),
    }
}
