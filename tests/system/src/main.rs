//! A worker to be killed: it runs the workflows of these tests until then.

use std::path::PathBuf;

use clap::Parser;
use onward::{Client, Worker, shutdown_signal};
use onward_system_tests::{
    Ledger, log_to_stderr,
    workflows::{
        World, calls_many, calls_stray, five_steps, gets_too_much, grow_new, grow_old, make_heavy,
        nap, naps, noted, overflows, panics, returns_too_much, sends_too_much, spins, stray, weigh,
    },
};

#[derive(Parser)]
struct Args {
    #[arg(long)]
    address: String,
    #[arg(long)]
    ledger: PathBuf,
    #[arg(long)]
    name: String,
    #[arg(long, overrides_with = "queue")]
    queue: String,
    /// Run the newer code of the workflow that changes.
    #[arg(long)]
    new_code: bool,
    /// Have the activity that no other worker has.
    #[arg(long)]
    with_stray: bool,
    /// Run no workflows.
    #[arg(long)]
    activities_only: bool,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    log_to_stderr();
    let args = Args::parse();
    let client = Client::connect(args.address).await?;
    let world = World {
        ledger: Ledger::open(&args.ledger).await?,
        worker: format!("{}@{}", args.name, std::process::id()),
    };
    let mut worker = Worker::builder(client, args.queue)
        .deps(world)
        .identity(args.name)
        .build_id(if args.new_code { "new" } else { "old" })
        .activities::<(noted, nap, weigh, make_heavy)>();
    if !args.activities_only {
        worker = worker
            .workflows::<(five_steps, naps, calls_many, calls_stray)>()
            .workflows::<(sends_too_much, gets_too_much, returns_too_much)>()
            .workflows::<(panics, spins, overflows)>();
        worker = if args.new_code {
            worker.workflows::<(grow_new,)>()
        } else {
            worker.workflows::<(grow_old,)>()
        };
    }
    if args.with_stray {
        worker = worker.activities::<(stray,)>();
    }
    worker.run_until(shutdown_signal()).await?;
    Ok(())
}
