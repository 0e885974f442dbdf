//! Where activities leave their effects: a SQLite file that Onward knows nothing of.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sqlx::{
    Row, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::within;

/// One effect of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Effect {
    /// The idempotency key: `{run id}-{number}`.
    pub key: String,
    /// The attempt.
    pub attempt: u32,
    /// The worker process.
    pub worker: String,
    /// When, in microseconds since the Unix epoch.
    pub time_us: i64,
}

/// How often a file that another process is switching to WAL is opened again, and how long after.
const OPEN_TRIES: u32 = 200;
const OPEN_PAUSE: Duration = Duration::from_millis(20);

/// An append-only table of effects, shared by all worker processes of a test.
#[derive(Debug, Clone)]
pub struct Ledger {
    pool: SqlitePool,
}

impl Ledger {
    /// Opens the file, and makes it if it is not there.
    ///
    /// A process that is killed loses nothing that it has handed to the kernel, so the ledger need
    /// not wait for the disk.
    ///
    /// Workers that start together all switch a new file to WAL; SQLite refuses all but one of them
    /// without waiting, so the others ask again.
    pub async fn open(path: &Path) -> sqlx::Result<Self> {
        let mut tries = 0;
        loop {
            match Self::open_once(path).await {
                Err(sqlx::Error::Database(error))
                    if error.message().contains("database is locked") && tries < OPEN_TRIES =>
                {
                    tries += 1;
                    tokio::time::sleep(OPEN_PAUSE).await;
                }
                opened => return opened,
            }
        }
    }

    async fn open_once(path: &Path) -> sqlx::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Off)
            .busy_timeout(Duration::from_secs(30));
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        // No unique index: a double effect is to be found by the check, not prevented.
        sqlx::query(
            "CREATE TABLE IF NOT EXISTS effect (
                 key TEXT NOT NULL, attempt INTEGER NOT NULL, worker TEXT NOT NULL,
                 time_us INTEGER NOT NULL
             ) STRICT",
        )
        .execute(&pool)
        .await?;
        Ok(Self { pool })
    }

    /// Notes an effect.
    pub async fn note(&self, key: &str, attempt: u32, worker: &str) -> sqlx::Result<()> {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        sqlx::query("INSERT INTO effect (key, attempt, worker, time_us) VALUES (?, ?, ?, ?)")
            .bind(key)
            .bind(attempt)
            .bind(worker)
            .bind(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Waits for the first effect: somebody is at work.
    pub async fn first_effect(&self) -> Effect {
        let seen = async {
            loop {
                if let Some(effect) = self.effects().await.unwrap().pop() {
                    return effect;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within(30, "the activity begins", seen).await
    }

    /// All effects, in the order of their keys.
    pub async fn effects(&self) -> sqlx::Result<Vec<Effect>> {
        let rows = sqlx::query(
            "SELECT key, attempt, worker, time_us FROM effect ORDER BY key, attempt, time_us",
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .iter()
            .map(|row| Effect {
                key: row.get(0),
                attempt: row.get(1),
                worker: row.get(2),
                time_us: row.get(3),
            })
            .collect())
    }
}
