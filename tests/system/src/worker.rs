//! A worker process, `crash-worker` or another.

use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;

use crate::{Process, QUEUE, process::program};

/// A worker that can be killed, frozen and started again.
#[derive(Debug)]
pub struct WorkerProcess {
    program: &'static str,
    args: Vec<String>,
    log: PathBuf,
    process: Process,
}

impl WorkerProcess {
    /// Starts a worker named `name` whose activities write to `ledger.db` in `dir`.
    pub fn start(address: &str, dir: &Path, name: &str) -> Self {
        Self::start_with(address, dir, name, &[])
    }

    /// The same, with further arguments of `crash-worker`; the last of two wins.
    pub fn start_with(address: &str, dir: &Path, name: &str, args: &[&str]) -> Self {
        let ledger = dir.join("ledger.db").display().to_string();
        let mut all = vec!["--address", address, "--ledger", &ledger, "--name", name];
        all.extend(["--queue", QUEUE]);
        all.extend(args);
        let args = all.into_iter().map(str::to_owned).collect();
        Self::of("crash-worker", args, dir.join(format!("worker-{name}.log")))
    }

    /// Starts a worker of another program, which logs to this file.
    pub fn of(name: &'static str, args: Vec<String>, log: PathBuf) -> Self {
        let process = Process::start(&program(name), &args, &log);
        Self { program: name, args, log, process }
    }

    /// Ends it with SIGKILL.
    pub async fn kill(&mut self) {
        assert!(self.process.is_running(), "the worker has ended by itself:\n{}", self.log());
        self.process.kill().await;
    }

    /// Starts it again, as a new process of the same name.
    pub fn start_again(&mut self) {
        self.process = Process::start(&program(self.program), &self.args, &self.log);
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(&mut self) {
        let status = self.process.terminate().await;
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// What the worker itself does with its log: lines without colours on stderr.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("ONWARD_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
}
