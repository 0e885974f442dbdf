//! The throw-away database of a measurement, and what it says about itself.
//!
//! The figures are read through a database of their own, so that reading them is not among them.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, anyhow};
use onward_test_postgres::{Cluster, ClusterOptions};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Row as _, SqliteConnection,
    sqlite::SqliteConnectOptions,
};
use tempfile::TempDir;

use crate::scenario::StoreKind;

/// Where a measurement's runs are kept.
pub(crate) enum Database {
    Postgres(Box<Postgres>),
    Sqlite(TempDir),
}

pub(crate) struct Postgres {
    cluster: Arc<Cluster>,
    url: String,
    name: String,
    /// To the cluster's own database.
    watch: PgConnection,
}

/// Counters, as they stand.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters {
    /// Where the log of Postgres ends.
    lsn: String,
    /// Size of database or files.
    bytes: i64,
    /// Committed transactions; they arrive late.
    commits: i64,
}

/// What was written between two looks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Written {
    pub(crate) bytes: i64,
    pub(crate) commits: Option<i64>,
    pub(crate) wal_bytes: Option<i64>,
}

/// What is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub(crate) runs: i64,
    pub(crate) open: i64,
    pub(crate) journal_rows: i64,
    pub(crate) batches: i64,
    /// Microseconds since the Unix epoch.
    pub(crate) last_closed_us: i64,
}

/// A cluster that loses nothing, with the modules that its figures come from.
pub(crate) async fn start_cluster() -> Result<Arc<Cluster>> {
    let started = tokio::task::spawn_blocking(|| {
        let options =
            ClusterOptions::durable().setting("shared_preload_libraries", "pg_stat_statements");
        let cluster = Cluster::start(options)?;
        cluster.try_psql("postgres", "CREATE EXTENSION pg_stat_statements")?;
        cluster.try_psql("postgres", "CREATE EXTENSION pg_walinspect")?;
        Ok::<_, String>(cluster)
    });
    Ok(Arc::new(started.await?.map_err(|error| anyhow!(error))?))
}

impl Database {
    /// An empty database, in `cluster` if there is one already.
    pub(crate) async fn start(kind: StoreKind, cluster: Option<Arc<Cluster>>) -> Result<Self> {
        if kind == StoreKind::Sqlite {
            return Ok(Self::Sqlite(tempfile::Builder::new().prefix("onward-bench-").tempdir()?));
        }
        let cluster = match cluster {
            Some(cluster) => cluster,
            None => start_cluster().await?,
        };
        let url = cluster.create_database();
        let watch = PgConnection::connect(&cluster.url("postgres")).await?;
        // Behind its name the url goes on with the socket's directory.
        let front = url.split_once('?').map_or(url.as_str(), |(front, _)| front);
        let name = front.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(Self::Postgres(Box::new(Postgres { cluster, url, name, watch })))
    }

    /// What the server is told.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Postgres(postgres) => postgres.url.clone(),
            Self::Sqlite(dir) => format!("sqlite://{}", dir.path().join("onward.db").display()),
        }
    }

    /// Another empty database in the same place.
    pub(crate) fn sibling_url(&self) -> String {
        match self {
            Self::Postgres(postgres) => postgres.cluster.create_database(),
            Self::Sqlite(dir) => format!("sqlite://{}", dir.path().join("yardstick.db").display()),
        }
    }

    /// The process that stands for all of the database's.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self {
            Self::Postgres(postgres) => Some(postgres.cluster.pid()),
            Self::Sqlite(_) => None,
        }
    }

    /// For people.
    pub(crate) async fn version(&mut self) -> Result<String> {
        match self {
            Self::Postgres(postgres) => {
                let row = sqlx::query("SELECT current_setting('server_version')")
                    .fetch_one(&mut postgres.watch)
                    .await?;
                let version: String = row.try_get(0)?;
                let number = version.split_whitespace().next().unwrap_or_default();
                Ok(format!("Postgres {number}"))
            }
            Self::Sqlite(_) => Ok("SQLite".to_owned()),
        }
    }

    pub(crate) async fn counters(&mut self) -> Result<Counters> {
        match self {
            Self::Postgres(postgres) => {
                let row = sqlx::query(
                    "SELECT pg_current_wal_insert_lsn()::text, pg_database_size($1),
                            (SELECT xact_commit FROM pg_stat_database WHERE datname = $1)",
                )
                .bind(&postgres.name)
                .fetch_one(&mut postgres.watch)
                .await?;
                Ok(Counters {
                    lsn: row.try_get(0)?,
                    bytes: row.try_get(1)?,
                    commits: row.try_get(2)?,
                })
            }
            Self::Sqlite(dir) => {
                let path = dir.path().join("onward.db");
                let mut bytes = 0;
                for file in [path.clone(), with_suffix(path, "-wal")] {
                    bytes += file.metadata().map_or(0, |metadata| metadata.len() as i64);
                }
                Ok(Counters { bytes, ..Counters::default() })
            }
        }
    }

    /// The difference between two looks. The log's records are counted one by one, without the
    /// images of whole pages that follow a checkpoint.
    pub(crate) async fn written(&mut self, from: &Counters, to: &Counters) -> Result<Written> {
        let bytes = to.bytes - from.bytes;
        let Self::Postgres(postgres) = self else {
            return Ok(Written { bytes, ..Written::default() });
        };
        let row = sqlx::query(
            // Where nothing was written, the first look is at the log's end, which is refused.
            "SELECT CASE WHEN $1::pg_lsn < pg_current_wal_flush_lsn() THEN (
                 SELECT coalesce(sum(record_size), 0)::bigint
                 FROM pg_get_wal_stats($1::pg_lsn, least($2::pg_lsn, pg_current_wal_flush_lsn()))
             ) ELSE 0 END",
        )
        .bind(&from.lsn)
        .bind(&to.lsn)
        .fetch_one(&mut postgres.watch)
        .await
        .context("the log cannot be read")?;
        Ok(Written {
            bytes,
            commits: Some(to.commits - from.commits),
            wal_bytes: Some(row.try_get(0)?),
        })
    }

    /// How many statements the database has run so far; nobody counts those of `SQLite`.
    pub(crate) async fn statements(&mut self) -> Result<Option<i64>> {
        let Self::Postgres(postgres) = self else { return Ok(None) };
        let row = sqlx::query(
            "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
             WHERE dbid = (SELECT oid FROM pg_database WHERE datname = $1)",
        )
        .bind(&postgres.name)
        .fetch_one(&mut postgres.watch)
        .await?;
        Ok(Some(row.try_get(0)?))
    }

    /// Looks into the server's own tables.
    pub(crate) async fn stored(&self) -> Result<Stored> {
        let text = "SELECT (SELECT count(*) FROM run),
                           (SELECT count(*) FROM run WHERE closed_at IS NULL),
                           (SELECT count(*) FROM journal),
                           (SELECT coalesce(CAST(sum(newest) AS bigint), 0)
                            FROM (SELECT max(commit_seq) AS newest FROM batch GROUP BY shard_id) t),
                           (SELECT coalesce(max(closed_at), 0) FROM run)";
        let columns: [i64; 5] = match self {
            Self::Postgres(postgres) => {
                let mut connection = PgConnection::connect(&postgres.url).await?;
                let row = sqlx::query(AssertSqlSafe(text)).fetch_one(&mut connection).await?;
                connection.close().await?;
                [
                    row.try_get(0)?,
                    row.try_get(1)?,
                    row.try_get(2)?,
                    row.try_get(3)?,
                    row.try_get(4)?,
                ]
            }
            Self::Sqlite(dir) => {
                let mut connection: SqliteConnection = SqliteConnectOptions::new()
                    .filename(dir.path().join("onward.db"))
                    .read_only(true)
                    .connect()
                    .await?;
                let row = sqlx::query(AssertSqlSafe(text)).fetch_one(&mut connection).await?;
                connection.close().await?;
                [
                    row.try_get(0)?,
                    row.try_get(1)?,
                    row.try_get(2)?,
                    row.try_get(3)?,
                    row.try_get(4)?,
                ]
            }
        };
        let [runs, open, journal_rows, batches, last_closed_us] = columns;
        Ok(Stored { runs, open, journal_rows, batches, last_closed_us })
    }
}

fn with_suffix(path: PathBuf, suffix: &str) -> PathBuf {
    let mut path = path.into_os_string();
    path.push(suffix);
    path.into()
}
