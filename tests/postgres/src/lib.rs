//! A throw-away Postgres: started for a test run or a benchmark, gone with the process that
//! started it, however that process ends.
//!
//! - Nothing is installed, configured or shared: the cluster lives in one temporary directory.
//! - No process and no directory outlives the owner: a watcher, which notices the owner's death by
//!   the end of a pipe, stops the server and deletes the directory.
//! - A missing Postgres is an error that says how to get one, never a test skipped in silence.
//!
//! Tests that only need a database call [`Cluster::shared`] and [`Cluster::create_database`]; tests
//! that stop the server start one of their own. A [`Pgbouncer`] stands in front of either.

mod pgbouncer;

use std::{
    env, fs,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub use pgbouncer::{Pgbouncer, PoolMode};

/// Names the base url of a server that [`Cluster::shared`] uses instead of starting one.
pub const SHARED_URL: &str = "ONWARD_TEST_POSTGRES";

/// Names the directory of the Postgres programs, when they are not where Debian has them.
pub const BIN_DIR: &str = "ONWARD_POSTGRES_BIN";

/// Not a time a test waits for: a server that takes longer will not come at all.
const START_LIMIT: Duration = Duration::from_mins(1);

const POLL: Duration = Duration::from_millis(5);

/// Waits for the owner's end of the pipe to close, then leaves nothing behind. The wait for the
/// server is bounded, because a dead process stays visible where nobody reaps it.
const WATCHER: &str = r#"
cat >/dev/null
if read -r pid <"$0/$1"; then
  kill "-$2" "$pid"
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    kill -0 "$pid" || break
    sleep 0.1
  done
fi
rm -rf "$0"
"#;

/// What a commit means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Commits do not wait for the disk: the quickest, for tests that never crash the server.
    #[default]
    None,
    /// As in production, with checkpoints far apart so that a benchmark measures commits.
    Durable,
}

/// How a cluster is started.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ClusterOptions {
    /// What a commit means.
    pub durability: Durability,
    /// Listen on a port of 127.0.0.1 as well as on the socket.
    pub tcp: bool,
    /// Where the cluster's directory is made; the system's temporary directory when unset.
    pub parent: Option<PathBuf>,
    /// Further settings, as `postgres -c name=value` takes them.
    pub settings: Vec<(String, String)>,
}

impl ClusterOptions {
    /// A cluster whose commits survive a crash.
    pub fn durable() -> ClusterOptions {
        Durability::Durable.into()
    }

    /// Listen on a port of 127.0.0.1 as well, for proxies and poolers.
    #[must_use]
    pub fn tcp(mut self) -> ClusterOptions {
        self.tcp = true;
        self
    }

    /// Adds one server setting.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> ClusterOptions {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

impl From<Durability> for ClusterOptions {
    fn from(durability: Durability) -> ClusterOptions {
        ClusterOptions { durability, ..ClusterOptions::default() }
    }
}

/// A Postgres server. Dropping it stops the server and deletes its data.
#[derive(Debug)]
pub struct Cluster {
    /// The url of its database `postgres`.
    base_url: String,
    psql: PathBuf,
    /// `None` for a server that someone else runs.
    server: Option<Server>,
}

/// The part of a cluster that we run ourselves.
#[derive(Debug)]
struct Server {
    bin: PathBuf,
    user: Option<(u32, u32)>,
    home: PathBuf,
    port: u16,
    options: ClusterOptions,
    postmaster: Mutex<Option<Child>>,
    watcher: Child,
}

impl Cluster {
    /// Makes a cluster and waits until it takes connections, a second or so.
    ///
    /// # Errors
    /// When Postgres is not installed, or does not start; the message holds its log.
    pub fn start(options: impl Into<ClusterOptions>) -> Result<Cluster, String> {
        let server = Server::create(options.into())?;
        server.start()?;
        let home = server.home.display();
        let base_url =
            format!("postgres://postgres@localhost:{}/postgres?host={home}", server.port);
        Ok(Cluster { base_url, psql: server.bin.join("psql"), server: Some(server) })
    }

    /// The one server of this process, or of the whole test run when [`SHARED_URL`] names it. Its
    /// commits do not wait for the disk and nobody may stop it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| match env::var(SHARED_URL) {
            Ok(base_url) if !base_url.is_empty() => {
                let psql = bin_dir().map_or_else(|_| "psql".into(), |bin| bin.join("psql"));
                Cluster { base_url, psql, server: None }
            }
            _ => Cluster::start(Durability::None).unwrap_or_else(|error| panic!("{error}")),
        })
    }

    /// The url of database `db`, through the Unix socket.
    pub fn url(&self, db: &str) -> String {
        with_database(&self.base_url, db)
    }

    /// The url of database `db` through TCP.
    ///
    /// # Panics
    /// When the cluster was started without [`ClusterOptions::tcp`].
    pub fn tcp_url(&self, db: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{db}", self.tcp_port())
    }

    /// Its port on 127.0.0.1.
    ///
    /// # Panics
    /// When the cluster was started without [`ClusterOptions::tcp`].
    pub fn tcp_port(&self) -> u16 {
        assert!(self.server().options.tcp, "this cluster was started without a TCP port");
        self.server().port
    }

    /// Makes an empty database that nobody else uses and returns its url.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn create_database(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!(
            "t_{:x}_{}_{}",
            since_epoch.as_micros(),
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        // template0 takes no connections, so nothing can be in the way.
        self.psql("postgres", &format!("CREATE DATABASE {name} TEMPLATE template0"));
        self.url(&name)
    }

    /// Runs `sql` in database `db` (a name, or a url of this server) and returns the rows, fields
    /// parted by `|`.
    ///
    /// # Panics
    /// When the server refuses; [`Cluster::try_psql`] returns the message instead.
    pub fn psql(&self, db: &str, sql: &str) -> String {
        self.try_psql(db, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Runs `sql` in database `db` (a name, or a url of this server) and returns the rows.
    ///
    /// # Errors
    /// What psql says.
    pub fn try_psql(&self, db: &str, sql: &str) -> Result<String, String> {
        let url = if db.contains("://") { db.to_owned() } else { self.url(db) };
        let mut psql = Command::new(&self.psql);
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c", sql]);
        run(psql.stdin(Stdio::null()))
    }

    /// Stops the server as a crash does: no checkpoint, all connections cut.
    ///
    /// # Errors
    /// When it is not running or cannot be told.
    pub fn stop_immediate(&self) -> Result<(), String> {
        self.server().stop("immediate")
    }

    /// Starts the server on its old data, at its old address, and waits until it takes connections.
    ///
    /// # Errors
    /// When it is running or does not start.
    pub fn start_again(&self) -> Result<(), String> {
        self.server().start()
    }

    /// Stops the server in order (running transactions are rolled back) and starts it again.
    ///
    /// # Errors
    /// When it is not running or does not start.
    pub fn restart(&self) -> Result<(), String> {
        self.server().stop("fast")?;
        self.start_again()
    }

    /// The directory of its data.
    pub fn data_dir(&self) -> PathBuf {
        self.server().data_dir()
    }

    /// The process id of the postmaster.
    ///
    /// # Panics
    /// When the server is stopped.
    pub fn pid(&self) -> u32 {
        self.server().postmaster().as_ref().map(Child::id).expect("the server is stopped")
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("the server of the whole test run belongs to nobody's test")
    }
}

impl Server {
    /// Everything up to the first start. From the watcher on, each way out cleans up by `Drop`.
    fn create(options: ClusterOptions) -> Result<Server, String> {
        let bin = bin_dir()?;
        let parent = options.parent.clone().unwrap_or_else(env::temp_dir);
        let home = tempfile::Builder::new()
            .prefix("onward-pg-")
            .tempdir_in(&parent)
            .map_err(|error| format!("cannot make a directory in {}: {error}", parent.display()))?
            .keep();
        let watcher = watch(&home, "data/postmaster.pid", "QUIT")?;
        let server = Server {
            bin,
            user: unprivileged_user()?,
            home,
            port: if options.tcp { free_port()? } else { 5432 },
            options,
            postmaster: Mutex::new(None),
            watcher,
        };
        let home = &server.home;
        if home.as_os_str().len() > 85 {
            return Err(format!("{} is too long for the path of a socket", home.display()));
        }
        if let Some((uid, gid)) = server.user {
            chown(home, Some(uid), Some(gid))
                .map_err(|error| format!("cannot give {} away: {error}", home.display()))?;
        }
        let mut initdb = server.command("initdb");
        initdb.args(["-U", "postgres", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8"]);
        run(initdb.arg("-D").arg(server.data_dir()))?;
        Ok(server)
    }

    fn start(&self) -> Result<(), String> {
        let mut postmaster = self.postmaster();
        if let Some(running) = postmaster.as_mut()
            && running.try_wait().map_err(|error| error.to_string())?.is_none()
        {
            return Err("the server is running".to_owned());
        }
        let log = || fs::File::options().create(true).append(true).open(self.log_path());
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data_dir()).arg("-k").arg(&self.home);
        command.args(["-p", &self.port.to_string()]);
        for (name, value) in self.settings() {
            command.args(["-c", &format!("{name}={value}")]);
        }
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log().map_err(|error| error.to_string())?)
            .stderr(log().map_err(|error| error.to_string())?)
            .spawn()
            .map_err(|error| format!("cannot start postgres: {error}"))?;
        let result = self.await_ready(&mut child);
        *postmaster = Some(child);
        result
    }

    fn settings(&self) -> Vec<(String, String)> {
        let mut settings = vec![
            ("listen_addresses", if self.options.tcp { "127.0.0.1" } else { "" }),
            ("max_connections", "400"),
        ];
        settings.extend(match self.options.durability {
            Durability::None => {
                [("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off")]
            }
            Durability::Durable => {
                [("fsync", "on"), ("checkpoint_timeout", "30min"), ("max_wal_size", "8GB")]
            }
        });
        let settings = settings.into_iter().map(|(name, value)| (name.into(), value.into()));
        settings.chain(self.options.settings.iter().cloned()).collect()
    }

    /// Postgres itself says in its lock file when it takes connections. A crash leaves an old file
    /// there, hence the look at the process id.
    fn await_ready(&self, child: &mut Child) -> Result<(), String> {
        let lock_file = self.data_dir().join("postmaster.pid");
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let lock = fs::read_to_string(&lock_file).unwrap_or_default();
            let mut lines = lock.lines();
            if lines.next() == Some(&child.id().to_string())
                && lines.nth(6).is_some_and(|status| status.trim() == "ready")
            {
                return Ok(());
            }
            let ended = child.try_wait().map_err(|error| error.to_string())?.is_some();
            if ended || Instant::now() > deadline {
                let log = fs::read_to_string(self.log_path()).unwrap_or_default();
                return Err(format!("postgres does not start:\n{log}"));
            }
            thread::sleep(POLL);
        }
    }

    fn stop(&self, mode: &str) -> Result<(), String> {
        let mut postmaster = self.postmaster();
        let Some(mut child) = postmaster.take() else {
            return Err("the server is stopped already".to_owned());
        };
        if child.try_wait().map_err(|error| error.to_string())?.is_none() {
            let mut pg_ctl = self.command("pg_ctl");
            run(pg_ctl.args(["stop", "-W", "-m", mode, "-D"]).arg(self.data_dir()))?;
            child.wait().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// A Postgres program, run as a user whom Postgres accepts and with nothing of our environment.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.env_clear().current_dir(&self.home).stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.home.join("log")
    }

    fn postmaster(&self) -> MutexGuard<'_, Option<Child>> {
        self.postmaster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop("immediate"); // stopped already is fine, and the watcher tries again
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// Starts the process that cleans `home` up when we are gone: it sends `signal` to the process whose
/// id is in `pid_file` and deletes the directory.
fn watch(home: &Path, pid_file: &str, signal: &str) -> Result<Child, String> {
    Command::new("sh")
        .args(["-c", WATCHER])
        .arg(home)
        .args([pid_file, signal])
        .process_group(0) // Ctrl-C is for the tests; the watcher has work to do after it
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start sh: {error}"))
}

/// Runs a command to its end and returns what it printed, or what it complained about.
fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    } else {
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program} failed ({}): {}", output.status, complaint.trim_end()))
    }
}

/// Finds the directory that holds all programs we need. Debian keeps the server's out of `PATH`.
fn bin_dir() -> Result<PathBuf, String> {
    let is_complete =
        |dir: &Path| ["initdb", "pg_ctl", "postgres", "psql"].iter().all(|p| dir.join(p).exists());
    if let Some(dir) = env::var_os(BIN_DIR).map(PathBuf::from) {
        return if is_complete(&dir) {
            Ok(dir)
        } else {
            Err(format!("{BIN_DIR}={}: no Postgres server there", dir.display()))
        };
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let pg_config = run(Command::new("pg_config").arg("--bindir")).ok().map(PathBuf::from);
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    debian.sort();
    env::split_paths(&path)
        .chain(pg_config)
        .chain(debian.into_iter().rev().map(|(_, dir)| dir))
        .find(|dir| is_complete(dir))
        .ok_or_else(|| {
            format!(
                "these tests need a Postgres server and there is none: \
                 apt-get install postgresql (or set {BIN_DIR} to its bin directory)"
            )
        })
}

/// Postgres refuses to run as root; for root this is whom to run it as.
fn unprivileged_user() -> Result<Option<(u32, u32)>, String> {
    let ids = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective_uid = ids.lines().find_map(|line| line.strip_prefix("Uid:"));
    if effective_uid.and_then(|uids| uids.split_whitespace().nth(1)) != Some("0") {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").map_err(|error| error.to_string())?;
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| {
            let entry = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut ids = entry.split(':').skip(2).map(str::parse);
            Some((ids.next()?.ok()?, ids.next()?.ok()?))
        })
        .map(Some)
        .ok_or_else(|| "neither postgres nor nobody is a user of this machine".to_owned())
}

/// A port below those that the system hands out to connections, so that it is still free when a
/// stopped server starts again.
fn free_port() -> Result<u16, String> {
    // Two clusters of one process must not find the same port free before either has it.
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let from = std::process::id() + 64 * ASKED.fetch_add(1, Ordering::Relaxed);
    (0..8_000)
        .filter_map(|n| u16::try_from(20_000 + (from % 8_000 + n) % 8_000).ok())
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or_else(|| "no free port".to_owned())
}

/// `base_url` with another database.
fn with_database(base_url: &str, db: &str) -> String {
    let (address, query) = base_url.split_once('?').unwrap_or((base_url, ""));
    let authority = address.find("://").map_or(0, |at| at + 3);
    let server = address[authority..].find('/').map_or(address, |at| &address[..authority + at]);
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{server}/{db}{mark}{query}")
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn a_url_keeps_all_but_its_database() {
        let replaced = [
            ("postgres://u:p@h:1/postgres?host=/tmp/x", "postgres://u:p@h:1/t?host=/tmp/x"),
            ("postgres://h/postgres", "postgres://h/t"),
            ("postgres://h", "postgres://h/t"),
        ];
        for (base_url, expected) in replaced {
            assert_eq!(with_database(base_url, "t"), expected);
        }
    }
}
