//! Commands for those who work on Onward: each layer of its proof by itself.

mod chaos;
mod fuzz;
mod histories;
mod mutants;
mod page;
mod processes;
mod seeded;
mod soak;
mod stories;

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
    Sim(stories::Args),
    /// Plays stories of servers, workers and clients on a simulated network, each from its seed.
    Net(stories::Args),
    /// Turns on bugs one by one, and shows that the simulation finds each.
    Seeded(seeded::Args),
    /// Lets everything happen to real servers, workers and databases while programs go through.
    Chaos(chaos::Args),
    /// Keeps a server and a worker at steady work, and shows that nothing grows.
    Soak(soak::Args),
    /// Changes the core line by line, and shows which changes its tests do not notice.
    Mutants(mutants::Args),
    /// Writes `docs/proof.md` from what `scripts/prove` has noted.
    Page(page::Args),
    /// Records the replay corpus: plays its stories in virtual time and saves their histories.
    Histories(histories::Args),
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Sim(args) => stories::run::<onward_simulation::Story>(&args),
        Command::Net(args) => stories::run::<onward_network::Story>(&args),
        Command::Seeded(args) => seeded::run(&args),
        Command::Chaos(args) => chaos::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Mutants(args) => mutants::run(&args),
        Command::Page(args) => page::run(&args),
        Command::Histories(args) => histories::run(&args),
    }
}
