//! Commands for those who work on Onward: each layer of its proof by itself.

mod fuzz;
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
    /// Feeds every decoder and parser what it does not expect, or a server random calls.
    Fuzz(fuzz::Args),
    /// Plays stories of whole nodes, workers and clients in virtual time, each from its seed.
    Sim(sim::Args),
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Sim(args) => sim::run(&args),
    }
}
