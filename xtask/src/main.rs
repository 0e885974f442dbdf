//! Commands for those who work on Onward: each layer of its proof by itself.

mod sim;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Plays stories of whole nodes, workers and clients in virtual time, each from its seed.
    Sim(sim::Args),
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Sim(args) => sim::run(&args),
    }
}
