//! Opens the store that a url names, or says in a sentence why not.

use std::{path::PathBuf, sync::Arc};

use super::{
    Store,
    postgres::{self, PostgresStore},
    sqlite::SqliteStore,
};

/// How to open a store.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Opens also what is not safe: a Postgres that forgets commits, a schema that is newer than
    /// this build.
    pub unsafe_allow: bool,
    /// Postgres stands behind a transaction pooler that does not track prepared statements.
    pub pg_transaction_pooling: bool,
    /// How many connections to Postgres serve reads. Each shard has one more for its commits.
    pub pg_pool_size: u32,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { unsafe_allow: false, pg_transaction_pooling: false, pg_pool_size: 8 }
    }
}

/// Why a store cannot be opened. The message names the setting and its value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The url names no store.
    #[error("a store url starts with sqlite:// or postgres://, this one is not such a url: {0}")]
    Url(String),
    /// The url of a Postgres database is none, or names no user.
    #[error("the postgres url cannot be read: {0}")]
    PostgresUrl(String),
    /// Another process has the file.
    #[error("{} is in use by process {pid}; stop it, or give this server a file of its own", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// The process, as it wrote itself down.
        pid: String,
    },
    /// A file cannot be used.
    #[error("cannot open {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The database does not keep what it commits, or is not what we need.
    #[error("{setting} is {value}: {why}; --unsafe-allow starts in spite of it")]
    Unsafe {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What goes wrong with it.
        why: &'static str,
    },
    /// The database was written by a newer build.
    #[error(
        "the schema has migration {found}, this build knows those up to {known}: run a newer \
         build; --unsafe-allow starts in spite of it"
    )]
    NewerSchema {
        /// The migration that this build does not know.
        found: i64,
        /// The newest one that it knows.
        known: i64,
    },
    /// The database is older than we support.
    #[error("server_version_num is {0}: Postgres 14 is the oldest that works")]
    Version(u32),
    /// The schema cannot be brought up to date.
    #[error("the schema cannot be brought up to date: {0}")]
    Migrate(String),
    /// The database does not answer.
    #[error("the database cannot be opened: {0}")]
    Database(String),
}

/// What a url names.
enum Place<'a> {
    Sqlite(&'a str),
    Postgres,
}

impl<'a> Place<'a> {
    fn of(url: &'a str) -> Result<Self, OpenError> {
        match url.split_once("://") {
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path)),
            Some(("sqlite", _)) => Err(OpenError::Url("sqlite:// names no file".into())),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres),
            // The rest of a url may hold a password.
            Some((scheme, _)) => Err(OpenError::Url(format!("{scheme}://…"))),
            None => Err(OpenError::Url("it has no scheme".into())),
        }
    }
}

/// Reads a url, and forgets it. For a fuzzer. Of all files it looks at `~/.pgpass` alone.
///
/// # Errors
/// What [`open`] would say of such a url.
#[doc(hidden)]
pub fn check_url(url: &str) -> Result<(), OpenError> {
    match Place::of(url)? {
        Place::Sqlite(_) => Ok(()),
        Place::Postgres => postgres::read_url(url).map(drop),
    }
}

/// Opens `sqlite://path` or `postgres://user@host/database`, and brings its schema up to date.
pub async fn open(url: &str, options: OpenOptions) -> Result<Arc<dyn Store>, OpenError> {
    match Place::of(url)? {
        Place::Sqlite(path) => Ok(Arc::new(SqliteStore::open(path.as_ref(), &options).await?)),
        Place::Postgres => Ok(Arc::new(PostgresStore::open(url, options).await?)),
    }
}
