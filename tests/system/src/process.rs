//! Processes of a test: started, killed, frozen, and gone with the test.

use std::{
    fs::{self, File},
    future::Future,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// Waits for something that must come. The limit is no measure of anything: it only turns a test
/// that would hang into one that fails and says where.
pub async fn within<T>(seconds: u64, what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(seconds), future).await;
    waited.unwrap_or_else(|_| panic!("gave up after {seconds} s: {what}"))
}

/// A port that is free, and that the system gives to nobody by itself: one from the range of
/// outgoing connections could be taken while its server is down.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = u16::try_from(std::process::id() % 15_000).unwrap_or(0);
    loop {
        let port = 12_000 + (base + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The path of a program under test. They stand beside the test's own.
pub fn program(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| {
            panic!("there is no {name} beside {}: `cargo build --workspace`", exe.display())
        })
}

/// A child that is killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: u32,
}

impl Process {
    /// Starts a program with nothing of Onward's in its environment; what it writes to stderr goes
    /// behind what is in `log` already.
    pub fn start(program: &Path, args: &[String], log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ONWARD_") {
                command.env_remove(name);
            }
        }
        command.env("ONWARD_LOG", "info").kill_on_drop(true);
        let child =
            command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let pid = child.id().expect("a child that was just started has an id");
        Self { child, pid }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its standard output, once.
    pub fn stdout(&mut self) -> tokio::process::ChildStdout {
        self.child.stdout.take().expect("stdout is taken once")
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().await.unwrap();
    }

    /// Stops it with SIGSTOP: it stays where it is.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to end, and waits until it has.
    pub async fn terminate(&mut self) -> std::process::ExitStatus {
        self.signal(Signal::TERM);
        within(30, "the process ends after SIGTERM", self.child.wait()).await.unwrap()
    }

    /// Sends what Ctrl-C sends.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        self.child.wait().await.unwrap()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

/// The lines of a log that no test expects.
pub(crate) fn panics_in(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().filter(|line| line.contains("panicked at")).map(str::to_owned).collect()
}
