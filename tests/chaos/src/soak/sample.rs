//! Looking at the server, the worker and the database from outside.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use sqlx::{
    Connection as _, PgConnection, Row as _, SqliteConnection, sqlite::SqliteConnectOptions,
};

use super::judge::{Footing, Footprint, Sample};
use crate::scene::{Database, Scene};

/// Looks at them again and again.
pub(super) struct Sampler {
    began: Instant,
    database: Way,
    /// Where the write-ahead log stood at the first look.
    first_wal: Option<u64>,
}

/// How it looks at the database.
enum Way {
    Sqlite(PathBuf),
    Postgres(PgConnection),
}

impl Sampler {
    pub(super) async fn new(scene: &Scene) -> Self {
        let database = match &*scene.database.lock().await {
            Database::Sqlite(dir) => Way::Sqlite(dir.join("onward.db")),
            Database::Postgres(postgres) => {
                Way::Postgres(PgConnection::connect(&postgres.url).await.unwrap())
            }
        };
        Self { began: Instant::now(), database, first_wal: None }
    }

    /// Looks once; so many programs have ended.
    pub(super) async fn look(&mut self, scene: &Scene, ended: u64) -> Sample {
        let (server, in_memory) = {
            let server = scene.server.lock().await;
            let in_memory = server.metric("onward_runs_in_memory").await;
            (footprint(server.process().pid()), in_memory.expect("the server serves its metrics"))
        };
        let worker = footprint(scene.workers[0].lock().await.process().pid());
        let mut database = match &mut self.database {
            Way::Sqlite(path) => sqlite(path).await,
            Way::Postgres(connection) => postgres(connection).await,
        };
        database.wal -= *self.first_wal.get_or_insert(database.wal);
        Sample { at: self.began.elapsed(), ended, in_memory, server, worker, database }
    }
}

/// What a process holds, as the system says.
fn footprint(pid: u32) -> Footprint {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs").count();
    Footprint {
        memory: (field("RssAnon:") + field("RssShmem:")) * 1_024,
        fds: fds as u64,
        threads: field("Threads:"),
    }
}

/// All sessions but this one, and nothing of Postgres' own.
const POSTGRES: &str = "
    WITH session AS (
        SELECT * FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
          AND backend_type = 'client backend'
    )
    SELECT
        pg_database_size(current_database()),
        (SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
         WHERE relkind = 'r' AND relname IN ('shard', 'batch', 'pending')),
        (SELECT count(*) FROM batch) + (SELECT count(*) FROM pending),
        (SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables
         WHERE relname IN ('shard', 'batch', 'pending')),
        (SELECT count(*) FROM session
         WHERE state LIKE 'idle in transaction%'
           AND clock_timestamp() - state_change > interval '1 s'),
        (SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)) * 1000000, 0)::bigint
         FROM session),
        pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint";

async fn postgres(connection: &mut PgConnection) -> Footing {
    let row = sqlx::query(POSTGRES).fetch_one(connection).await.unwrap();
    let number = |at: usize| u64::try_from(row.get::<i64, _>(at)).unwrap_or(0);
    Footing {
        bytes: number(0),
        kept: 0,
        hot_bytes: number(1),
        hot_rows: number(2),
        dead: number(3),
        idle_in_transaction: number(4),
        oldest_transaction: Duration::from_micros(number(5)),
        wal: number(6),
    }
}

const SQLITE: &str = "
    SELECT page_count * page_size, freelist_count,
           (SELECT count(*) FROM batch) + (SELECT count(*) FROM pending)
    FROM pragma_page_count, pragma_page_size, pragma_freelist_count";

/// What the writer and the readers of a server keep of the file's pages, at most.
const SQLITE_CACHES: u64 = 5 * (64 << 20);

/// By a connection that is there for this alone: one that stays could hold back the log's end.
async fn sqlite(path: &std::path::Path) -> Footing {
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let row = sqlx::query(SQLITE).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let number = |at: usize| u64::try_from(row.get::<i64, _>(at)).unwrap_or(0);
    let log = fs::metadata(path.with_extension("db-wal")).map_or(0, |log| log.len());
    Footing {
        bytes: number(0),
        kept: number(0).min(SQLITE_CACHES),
        hot_bytes: log,
        hot_rows: number(2),
        dead: number(1),
        ..Footing::default()
    }
}
