//! Connections to Postgres: their settings, what we refuse to run on, the schema.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, Executor, PgConnection, Row, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType},
    postgres::PgConnectOptions,
};

use super::{
    super::{OpenError, OpenOptions, migrate_error},
    error::sqlstate,
    url::read_url,
};

/// How long a connection may take to come up.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The longest pause before a connection is opened again.
const MOST_BACKOFF: Duration = Duration::from_secs(1);

/// How often several servers that make the same tables at once try again.
const MIGRATE_ATTEMPTS: u32 = 20;
/// What Postgres says to the slower of two that make the same table at once. It depends on how far
/// the faster one is: its row type or its table is there, or a catalogue's row was just changed.
const MADE_MEANWHILE: [&str; 4] = ["23505", "42710", "42P07", "XX000"];

/// Settings of every session, given when it starts.
///
/// Hot statements look rows up by key, many at once; a plan made while tables were small must not
/// read them whole later, so the planner is left no other choice. The rest bounds how long a dead
/// client holds a lock, all shorter than a lease.
const SESSION: [(&str, &str); 13] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
    ("default_transaction_isolation", "read committed"),
    ("statement_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "2500ms"),
    ("tcp_user_timeout", "2500ms"),
    ("tcp_keepalives_idle", "1"),
    ("tcp_keepalives_interval", "1"),
    ("tcp_keepalives_count", "2"),
];

/// Reads the url, and finds out whether the way to the database takes session settings: an older
/// pooler does not.
pub(super) async fn options(
    url: &str,
    open: &OpenOptions,
) -> Result<(PgConnectOptions, PgConnection), OpenError> {
    let mut plain = read_url(url)?
        .application_name("onward")
        .extra_float_digits(None)
        .disable_statement_logging();
    if open.pg_transaction_pooling {
        plain = plain.statement_cache_capacity(0);
        let connection = connect(&plain).await.map_err(|error| database(&error))?;
        return Ok((plain, connection));
    }
    let set = plain.clone().options(SESSION);
    match connect(&set).await {
        Ok(connection) => Ok((set, connection)),
        Err(error) if sqlstate(&error).as_deref() == Some("08P01") => {
            tracing::warn!(%error, "the database takes no session settings; going on without");
            let connection = connect(&plain).await.map_err(|error| database(&error))?;
            Ok((plain, connection))
        }
        Err(error) => Err(database(&error)),
    }
}

/// Opens one connection.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    tokio::time::timeout(CONNECT_DEADLINE, options.connect())
        .await
        .unwrap_or_else(|_| Err(timed_out()))
}

/// The error of a connection that gave no answer in time.
pub(super) fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

/// How many connections could not be opened since the last one that could.
#[derive(Debug, Default)]
pub(super) struct Backoff(AtomicU32);

impl Backoff {
    /// Opens a connection, the later the more often that has failed.
    pub(super) async fn open<T>(
        &self,
        open: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let failures = self.0.load(Ordering::Relaxed);
        if failures > 0 {
            let backoff = Duration::from_millis(10) * (1 << failures.min(7));
            tokio::time::sleep(backoff.min(MOST_BACKOFF)).await;
        }
        let opened =
            tokio::time::timeout(CONNECT_DEADLINE, open).await.unwrap_or_else(|_| Err(timed_out()));
        match opened {
            Ok(_) => self.0.store(0, Ordering::Relaxed),
            Err(_) => drop(self.0.fetch_add(1, Ordering::Relaxed)),
        }
        opened
    }
}

fn database(error: &sqlx::Error) -> OpenError {
    OpenError::Database(error.to_string())
}

/// Refuses a server that forgets commits, cannot be written, or is too old.
pub(super) async fn guard(
    connection: &mut PgConnection,
    options: &OpenOptions,
) -> Result<(), OpenError> {
    let version = connection.server_version_num().unwrap_or(0);
    if version < 140_000 {
        return Err(OpenError::Version(version));
    }
    if options.unsafe_allow {
        return Ok(());
    }
    let row = connection
        .fetch_one(
            "SELECT current_setting('fsync'), current_setting('full_page_writes'),
                    current_setting('synchronous_commit'),
                    CASE WHEN pg_is_in_recovery() THEN 'on' ELSE 'off' END,
                    current_setting('default_transaction_read_only')",
        )
        .await
        .map_err(|error| database(&error))?;
    let rules = [
        ("fsync", "off", "a crash of its machine loses or corrupts what was committed"),
        ("full_page_writes", "off", "a crash of its machine can corrupt what was committed"),
        ("synchronous_commit", "off", "a crash loses what was committed last"),
        ("in_recovery", "on", "this is a read-only standby"),
        ("default_transaction_read_only", "on", "nothing can be written"),
    ];
    for (column, (setting, refused, why)) in rules.into_iter().enumerate() {
        let value: String = row.try_get(column).map_err(|error| database(&error))?;
        if value == refused {
            return Err(OpenError::Unsafe { setting, value, why });
        }
    }
    Ok(())
}

/// The migrations, in order.
pub(super) fn migrations() -> Vec<Migration> {
    vec![Migration::new(
        1,
        "tables".into(),
        MigrationType::Simple,
        include_str!("schema_1.sql").into_sql_str(),
        false,
    )]
}

/// Brings the schema up to date. Servers that start at once wait for each other.
pub(super) async fn migrate(
    connection: &mut PgConnection,
    options: &OpenOptions,
) -> Result<(), OpenError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match lock_schema(connection).await {
            Ok(mut transaction) => {
                apply_migrations(&mut transaction, options.unsafe_allow)
                    .await
                    .map_err(|error| migrate_error(&error, &migrations()))?;
                sqlx::query(
                    "INSERT INTO namespace (namespace_id, name) VALUES ($1, 'default')
                     ON CONFLICT DO NOTHING",
                )
                .persistent(false)
                .bind(onward_proto::DEFAULT_NAMESPACE.uuid())
                .execute(&mut *transaction)
                .await
                .map_err(|error| database(&error))?;
                return transaction.commit().await.map_err(|error| database(&error));
            }
            // Two servers made the lock's own table at the same moment: it is there now.
            Err(error)
                if attempts < MIGRATE_ATTEMPTS
                    && sqlstate(&error).is_some_and(|code| MADE_MEANWHILE.contains(&&*code)) => {}
            Err(error) => return Err(database(&error)),
        }
    }
}

/// What the driver's own migrator does, with its table, but without named statements: through a
/// transaction pooler they would stay in a session that others get, who name theirs alike.
async fn apply_migrations(
    connection: &mut PgConnection,
    ignore_newer: bool,
) -> Result<(), MigrateError> {
    connection
        .execute(
            "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
                 version bigint PRIMARY KEY,
                 description text NOT NULL,
                 installed_on timestamptz NOT NULL DEFAULT now(),
                 success boolean NOT NULL,
                 checksum bytea NOT NULL,
                 execution_time bigint NOT NULL
             )",
        )
        .await?;
    let known = migrations();
    let applied = sqlx::query("SELECT version, checksum FROM _sqlx_migrations ORDER BY version")
        .persistent(false)
        .fetch_all(&mut *connection)
        .await?;
    let mut done = Vec::new();
    for row in applied {
        let (version, checksum): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        match known.iter().find(|migration| migration.version == version) {
            Some(migration) if *migration.checksum != *checksum => {
                return Err(MigrateError::VersionMismatch(version));
            }
            None if !ignore_newer => return Err(MigrateError::VersionMissing(version)),
            _ => done.push(version),
        }
    }
    for migration in known.iter().filter(|migration| !done.contains(&migration.version)) {
        connection
            .execute(sqlx::raw_sql(migration.sql.clone()))
            .await
            .map_err(|error| MigrateError::ExecuteMigration(error, migration.version))?;
        sqlx::query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ($1, $2, true, $3, -1)",
        )
        .persistent(false)
        .bind(migration.version)
        .bind(&*migration.description)
        .bind(&*migration.checksum)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// A row lock and no advisory lock, because a transaction pooler would break that.
async fn lock_schema(
    connection: &mut PgConnection,
) -> Result<sqlx::Transaction<'_, sqlx::Postgres>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction
        .execute(
            "CREATE TABLE IF NOT EXISTS migration_lock (
                 only_row boolean PRIMARY KEY CHECK (only_row)
             );
             INSERT INTO migration_lock VALUES (true) ON CONFLICT DO NOTHING;
             SELECT FROM migration_lock FOR UPDATE",
        )
        .await?;
    Ok(transaction)
}
