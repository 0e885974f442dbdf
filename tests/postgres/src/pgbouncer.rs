//! A pooler in front of a cluster, as throw-away as the cluster itself.

use std::{
    env, fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixStream,
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Instant,
};

use super::{Cluster, POLL, START_LIMIT, unprivileged_user, watch};

/// The port in the name of its socket; it listens on no other.
const PORT: u16 = 6432;

/// For how long a client keeps the session that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// Until it disconnects.
    Session,
    /// Until its transaction ends; the next one may run in any session of the pool.
    Transaction,
}

/// A pgbouncer. Dropping it stops it and deletes its directory.
#[derive(Debug)]
pub struct Pgbouncer {
    program: PathBuf,
    user: Option<(u32, u32)>,
    home: PathBuf,
    process: Mutex<Option<Child>>,
    watcher: Child,
}

impl Pgbouncer {
    /// Starts a pooler of all databases of `cluster`, and waits until it takes connections.
    ///
    /// # Errors
    /// When pgbouncer is not installed, or does not start; the message holds its log.
    pub fn start(cluster: &Cluster, mode: PoolMode) -> Result<Pgbouncer, String> {
        let program = program()?;
        let config = config(&cluster.base_url, mode)?;
        let home = tempfile::Builder::new()
            .prefix("onward-pgb-")
            .tempdir()
            .map_err(|error| format!("cannot make a directory: {error}"))?
            .keep();
        let watcher = watch(&home, "pid", "TERM")?;
        let user = unprivileged_user()?;
        let pooler = Pgbouncer { program, user, home, process: Mutex::new(None), watcher };
        pooler.write_config(&config)?;
        pooler.start_again()?;
        Ok(pooler)
    }

    /// The one pooler of this process in front of [`Cluster::shared`]. Nobody may stop it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn shared(mode: PoolMode) -> &'static Pgbouncer {
        static SESSION: OnceLock<Pgbouncer> = OnceLock::new();
        static TRANSACTION: OnceLock<Pgbouncer> = OnceLock::new();
        let shared = match mode {
            PoolMode::Session => &SESSION,
            PoolMode::Transaction => &TRANSACTION,
        };
        shared.get_or_init(|| {
            Pgbouncer::start(Cluster::shared(), mode).unwrap_or_else(|error| panic!("{error}"))
        })
    }

    /// The url of database `db` (a name, or a url of the cluster) through the pooler.
    ///
    /// # Panics
    /// When `db` is a url that names no database.
    pub fn url(&self, db: &str) -> String {
        let name = if db.contains("://") {
            database_of(db).unwrap_or_else(|| panic!("{db} names no database"))
        } else {
            db
        };
        format!("postgres://postgres@localhost:{PORT}/{name}?host={}", self.home.display())
    }

    /// Kills it with SIGKILL: clients and the database see their connections end.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&self) -> Result<(), String> {
        let mut process = self.process();
        let mut child = process.take().ok_or("pgbouncer is stopped already")?;
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Err(format!("pgbouncer has ended ({status}):\n{}", self.log()));
        }
        child.kill().map_err(|error| error.to_string())?;
        child.wait().map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Starts it where it was, and waits until it takes connections.
    ///
    /// # Errors
    /// When it is running or does not start.
    pub fn start_again(&self) -> Result<(), String> {
        let mut process = self.process();
        if let Some(running) = process.as_mut()
            && running.try_wait().map_err(|error| error.to_string())?.is_none()
        {
            return Err("pgbouncer is running".to_owned());
        }
        let mut command = Command::new(&self.program);
        command.env_clear().current_dir(&self.home).arg(self.home.join("ini"));
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        // It writes its log to stderr as well as to the file.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| format!("cannot start pgbouncer: {error}"))?;
        let child = process.insert(child);
        self.await_ready(child)
    }

    /// The process id.
    ///
    /// # Panics
    /// When it is stopped.
    pub fn pid(&self) -> u32 {
        self.process().as_ref().map(Child::id).expect("pgbouncer is stopped")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    /// Its directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    fn write_config(&self, config: &str) -> Result<(), String> {
        let home = self.home.display();
        let path = self.home.join("ini");
        let own = format!(
            "{config}unix_socket_dir = {home}\nlogfile = {home}/log\npidfile = {home}/pid\n"
        );
        let write = || {
            fs::write(&path, own)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            let Some((uid, gid)) = self.user else { return Ok(()) };
            chown(&path, Some(uid), Some(gid))?;
            chown(&self.home, Some(uid), Some(gid))
        };
        write().map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    /// It listens before it writes its process id, which the watcher needs. One that was killed
    /// leaves both files behind: a socket that takes no connection, and another process's id.
    fn await_ready(&self, child: &mut Child) -> Result<(), String> {
        let socket = self.home.join(format!(".s.PGSQL.{PORT}"));
        let pid_file = self.home.join("pid");
        let own_id = child.id().to_string();
        let is_ready = || {
            let id = fs::read_to_string(&pid_file).unwrap_or_default();
            id.trim_end() == own_id && UnixStream::connect(&socket).is_ok()
        };
        let deadline = Instant::now() + START_LIMIT;
        while !is_ready() {
            let ended = child.try_wait().map_err(|error| error.to_string())?.is_some();
            if ended || Instant::now() > deadline {
                return Err(format!("pgbouncer does not start:\n{}", self.log()));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pgbouncer {
    fn drop(&mut self) {
        let _ = self.kill(); // stopped already is fine
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// Debian keeps it where only root's `PATH` goes.
fn program() -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|dir| dir.join("pgbouncer"))
        .find(|program| program.exists())
        .ok_or_else(|| {
            "these tests need pgbouncer and there is none: apt-get install pgbouncer".to_owned()
        })
}

/// All settings that do not name its directory.
///
/// The sessions of a transaction pool are handed out in turn, so that whoever leaves something in
/// one, or expects to find it there, is caught. Idle ones go soon: each test has a database of its
/// own, and they all share what the cluster allows.
fn config(base_url: &str, mode: PoolMode) -> Result<String, String> {
    let mode = match mode {
        PoolMode::Session => "session",
        PoolMode::Transaction => "transaction",
    };
    let server = server_of(base_url).ok_or_else(|| format!("no pooler goes before {base_url}"))?;
    Ok(format!(
        "[databases]\n\
         * = {server}\n\
         [pgbouncer]\n\
         pool_mode = {mode}\n\
         auth_type = any\n\
         listen_port = {PORT}\n\
         max_client_conn = 1000\n\
         default_pool_size = 40\n\
         server_round_robin = 1\n\
         server_idle_timeout = 1\n\
         server_login_retry = 0.1\n\
         client_login_timeout = 5\n"
    ))
}

/// Where `base_url` leads, in the words of the pooler's settings.
fn server_of(base_url: &str) -> Option<String> {
    let (_, rest) = base_url.split_once("://")?;
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = address.split('/').next()?;
    let (user, server) = authority.split_once('@')?;
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let (host, port) = server.split_once(':').unwrap_or((server, "5432"));
    let host = query.split('&').find_map(|pair| pair.strip_prefix("host=")).unwrap_or(host);
    let password =
        if password.is_empty() { String::new() } else { format!(" password={password}") };
    Some(format!("host={host} port={port} user={user}{password}"))
}

fn database_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let name = rest.split_once('/')?.1.split('?').next()?;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::{database_of, server_of};

    #[test]
    fn a_url_tells_server_and_database() {
        let local = "postgres://postgres@localhost:5432/postgres?host=/tmp/x";
        assert_eq!(server_of(local).as_deref(), Some("host=/tmp/x port=5432 user=postgres"));
        assert_eq!(database_of(local), Some("postgres"));
        let remote = "postgres://me:secret@db/t";
        assert_eq!(server_of(remote).as_deref(), Some("host=db port=5432 user=me password=secret"));
        assert_eq!(database_of("postgres://me@db"), None);
    }
}
