//! What the commands share that start real processes.

use std::{
    env,
    process::{Command, ExitStatus, Stdio},
};

use clap::ValueEnum;
use onward_chaos::Store;

/// Where the server keeps its runs.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum StoreName {
    Postgres,
    Sqlite,
}

impl From<StoreName> for Store {
    fn from(name: StoreName) -> Self {
        match name {
            StoreName::Postgres => Self::Postgres,
            StoreName::Sqlite => Self::Sqlite,
        }
    }
}

/// Builds the programs that are started, as all tests do: nothing is built a second time.
pub(crate) fn build() -> bool {
    let mut build = cargo();
    build.args(["build", "--locked", "--quiet", "--workspace", "--all-targets"]);
    build.status().is_ok_and(|status| status.success())
}

/// The cargo that runs us, or any.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Waits for something that needs all threads.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> Option<T> {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => Some(runtime.block_on(future)),
        Err(error) => {
            eprintln!("xtask: no runtime: {error}");
            None
        }
    }
}

/// The commit that is checked out, and whether anything differs from it.
pub(crate) fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).stderr(Stdio::null()).output();
        let output = output.ok().filter(|output| ExitStatus::success(&output.status))?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let is_clean = git(&["status", "--porcelain"]).is_some_and(|changes| changes.is_empty());
    if is_clean { head } else { format!("{head}+changes") }
}
