//! Measures Onward as a whole: a database, a server, a worker and a driver, each a process of its
//! own, and prints what they did.
//!
//! `run` measures one workload, `all` prints the table of `docs/benchmarks.md`. The binary starts
//! itself again for each role. It measures and never judges: no time makes it fail.

mod database;
mod measure;
mod procs;
mod replay;
mod report;
mod roles;
mod scenario;
mod stack;
mod table;
mod workloads;
mod yardstick;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    roles::{Role, driver::DriverTask},
    scenario::{Cell, Form, Scenario, StoreKind},
};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load generator and benchmark scenarios.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures one workload.
    Run(RunArgs),
    /// Measures all of them and prints a table.
    All(AllArgs),
    /// What the binary starts itself as.
    #[command(hide = true)]
    Role {
        #[command(subcommand)]
        role: RoleArgs,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    scenario: Scenario,
    /// How a step is done: by a call through a task queue, or inline as a local activity.
    #[arg(long, default_value = "call")]
    form: Form,
    #[arg(long, default_value = "postgres")]
    store: StoreKind,
    /// Callers at once.
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// The window's length; 8, and 60 for `idle`, unless said.
    #[arg(long)]
    seconds: Option<f64>,
    /// Workflows of b1, b5, timers and asleep, events of replay.
    #[arg(long)]
    runs: Option<usize>,
    /// How long a workflow of `timers` sleeps.
    #[arg(long, default_value_t = 5_000)]
    ms: u64,
    /// Prints one JSON line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct AllArgs {
    /// How often each workload is measured.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Shows within 30 s that everything works; its figures mean nothing.
    #[arg(long)]
    smoke: bool,
}

#[derive(Debug, Subcommand)]
enum RoleArgs {
    Server { store: String },
    Worker { address: String },
    Driver { task: String },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Role { role } => role_of(role).and_then(Role::run),
        Command::Run(args) => on_runtime(run(args)),
        Command::All(args) => on_runtime(table::all(args.runs, args.smoke)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("onward-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn role_of(role: RoleArgs) -> Result<Role> {
    Ok(match role {
        RoleArgs::Server { store } => Role::Server { store },
        RoleArgs::Worker { address } => Role::Worker { address },
        RoleArgs::Driver { task } => {
            Role::Driver { task: serde_json::from_str::<DriverTask>(&task)? }
        }
    })
}

/// Runs to the end, or to the first Ctrl-C; dropping the work ends all processes.
fn on_runtime(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = work => done,
            _ = interrupt.recv() => anyhow::bail!("interrupted"),
            _ = terminate.recv() => anyhow::bail!("terminated"),
        }
    })
}

async fn run(args: RunArgs) -> Result<()> {
    let cell = Cell {
        scenario: args.scenario,
        form: args.form,
        store: args.store,
        concurrency: args.concurrency.max(1),
        runs: args.runs.unwrap_or_else(|| args.scenario.default_runs()),
        timer_ms: args.ms,
        warm_up_s: 2.0,
        window_s: args.seconds.unwrap_or_else(|| args.scenario.default_seconds()),
    };
    let report = measure::measure(&cell, None).await?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
