//! `cargo xtask sim` and `cargo xtask net`: stories, each from its seed.

use std::{num::NonZero, process::ExitCode, thread, time::Duration};

use onward_simulation::{Suite, Tale};

use crate::processes::commit;

/// Which stories.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many seeds; without it, `--seed` alone plays one.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Begin no further one after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Worlds that are played beside each other; one for each core by default.
    #[arg(long)]
    threads: Option<usize>,
    /// How often each rule of the checker was looked at, and what was reached.
    #[arg(long)]
    verbose: bool,
}

pub(crate) fn run<T: Tale>(args: &Args) -> ExitCode {
    let suite = Suite {
        first: args.seed,
        seeds: args.seeds.unwrap_or(1),
        within: args.seconds.map(Duration::from_secs),
        threads: args.threads.unwrap_or_else(cores),
        shrink: true,
    };
    println!("{}: seeds {}..={}", T::LAYER, suite.first, suite.first + suite.seeds - 1);
    let summary = suite.run::<T>();
    if let Some(failure) = &summary.failure {
        println!("{failure}");
    }
    if args.verbose {
        println!("looked: {:?}", summary.looked());
        println!("skipped: {:?}", summary.report.skipped());
        println!("counts: {:#?}", summary.counts());
    }
    // A few seeds need not reach everything.
    let wrong = summary.wrong().filter(|_| summary.failure.is_some() || summary.seeds >= T::MANY);
    if let Some(wrong) = &wrong {
        println!("{}: {wrong}", T::LAYER);
    }
    println!("{} commit={} {summary}", T::LAYER.to_uppercase(), commit());
    if wrong.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// How many worlds can be played at once.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}
