//! `cargo xtask chaos`: real processes, to which everything happens that can.

use std::{process::ExitCode, time::Duration};

use onward_chaos::Options;

use crate::processes::{StoreName, block_on, build};

/// From so many minutes on the longest trouble lasts a minute.
const LONG: f64 = 10.0;

/// What happens.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long things go wrong; what was begun then may take some minutes more.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Decides who does what, and what goes wrong when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the server keeps its runs.
    #[arg(long, value_enum, default_value_t = StoreName::Postgres)]
    store: StoreName,
    /// How often each trouble came, and how often each rule of the checker was looked at.
    #[arg(long)]
    verbose: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    if !build() {
        return ExitCode::FAILURE;
    }
    let options = Options {
        seed: args.seed,
        store: args.store.into(),
        lasts: Duration::from_secs_f64(args.minutes * 60.0),
        longest: Duration::from_secs(if args.minutes < LONG { 9 } else { 60 }),
    };
    println!("chaos: seed {}, {} minutes", options.seed, args.minutes);
    let Some(summary) = block_on(onward_chaos::run(options)) else { return ExitCode::FAILURE };
    if args.verbose {
        println!("looked: {:?}", summary.looked());
        println!("rules skipped: {:?}", summary.rules_skipped());
        println!("troubles: {:#?}", summary.troubles());
    }
    if let Some(skipped) = summary.skipped() {
        println!("SKIP {skipped}");
    }
    let wrong = summary.wrong();
    if let Some(wrong) = &wrong {
        println!("chaos: {wrong}");
    }
    println!("{summary}");
    if wrong.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
