//! A thousand orders through stock, payment, carrier and mail, and a ledger that checks itself.
//!
//! - `orders worker` runs the order workflow and its activities.
//! - `orders submit [FILE]` starts one run for each line of an orders file and waits for all.
//! - `orders check [FILE]` compares the ledger with the file; exit code 1 if it finds a fault.
//! - `orders progress` prints how many orders have ended and how many are open, for scripts.
//!
//! What *completed*, *rejected* and *malformed* mean is defined in [`outcome`], what the check
//! demands in [`audit`]. All effects go to a SQLite file of the example's own, [`ledger`].

mod audit;
mod fulfilment;
mod ledger;
mod orders;
mod outcome;
mod submit;
mod summary;

use std::{
    io::IsTerminal as _,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand};
use onward::{Client, Worker, shutdown_signal};

use crate::{
    audit::Audit,
    fulfilment::{Shop, call_off, charge, confirm, order, refund, release, reserve, ship},
    ledger::Ledger,
    orders::OrdersFile,
    submit::Submission,
};

/// The task queue of worker and submitter.
const QUEUE: &str = "orders";

/// The thousand lines that come with the example.
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/orders.csv");

/// How long the submitter asks a server that is gone. Long enough to restart one by hand.
const PATIENCE: Duration = Duration::from_mins(10);

/// Orders as durable workflows, with a ledger that checks itself.
#[derive(Parser)]
#[command(name = "orders", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the order workflow and its activities until stopped.
    Worker {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        books: BooksArgs,
    },
    /// Start a run for each line of an orders file and wait for all of them.
    Submit {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        books: BooksArgs,
        /// The orders file.
        #[arg(default_value = SHIPPED, hide_default_value = true)]
        file: PathBuf,
        /// How many orders may be open at once.
        #[arg(long, value_name = "N", default_value = "150", value_parser = positive)]
        in_flight: usize,
    },
    /// Compare the ledger with the orders file.
    Check {
        #[command(flatten)]
        books: BooksArgs,
        /// The orders file.
        #[arg(default_value = SHIPPED, hide_default_value = true)]
        file: PathBuf,
    },
    /// Print how many orders have ended and how many are open.
    Progress {
        #[command(flatten)]
        books: BooksArgs,
    },
}

#[derive(Args)]
struct ServerArgs {
    /// Talk to the server at this address.
    #[arg(
        long,
        value_name = "URL",
        env = "ONWARD_ADDRESS",
        default_value = "http://127.0.0.1:7450"
    )]
    address: String,
}

#[derive(Args)]
struct BooksArgs {
    /// Keep the books of one orders file in this SQLite file; all commands need the same.
    #[arg(long, value_name = "FILE", env = "ORDERS_LEDGER", default_value = "orders-ledger.db")]
    ledger: PathBuf,
}

fn positive(text: &str) -> Result<usize, String> {
    let number = text.parse().map_err(|error| format!("{error}"))?;
    if number == 0 { Err("it must be at least 1".to_owned()) } else { Ok(number) }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("ONWARD_LOG")
                .unwrap_or_else(|_| "warn".into()),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        Command::Worker { server, books } => {
            let client = Client::connect(server.address).await?;
            let shop = Shop { ledger: Ledger::create(&books.ledger).await? };
            Worker::builder(client, QUEUE)
                .deps(shop)
                .workflows::<(order,)>()
                .activities::<(reserve, charge, ship, confirm, call_off, refund, release)>()
                .run_until(shutdown_signal())
                .await?;
        }
        Command::Submit { server, books, file, in_flight } => {
            let file = OrdersFile::read(&file)?;
            let client = Client::builder().address(server.address).retry_for(PATIENCE).build()?;
            let ledger = Ledger::create(&books.ledger).await?;
            let began = Instant::now();
            let submission = Submission { client, ledger: ledger.clone(), in_flight };
            let summary = submission.run(&file).await?;
            println!("{}", summary.text(ledger.retries().await?, began.elapsed()));
            if !summary.is_clean() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Check { books, file } => {
            let file = OrdersFile::read(&file)?;
            let audit = Audit::new(&file, &Ledger::open(&books.ledger).await?.books().await?);
            println!("{audit}");
            if !audit.passed() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Progress { books } => {
            let progress = Ledger::open(&books.ledger).await?.progress().await?;
            println!("{} terminal, {} open", progress.terminal, progress.open);
        }
    }
    Ok(ExitCode::SUCCESS)
}
