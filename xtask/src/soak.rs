//! `cargo xtask soak`: real processes under steady work, to see that nothing grows.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use onward_chaos::SoakOptions;

use crate::processes::{StoreName, block_on, build, commit};

/// What happens.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long it is looked at; less than 6 says nothing.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Decides who does what.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the server keeps its runs.
    #[arg(long, value_enum, default_value_t = StoreName::Postgres)]
    store: StoreName,
    /// Writes all samples to this file, as a table.
    #[arg(long)]
    samples: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    if !build() {
        return ExitCode::FAILURE;
    }
    let options = SoakOptions {
        seed: args.seed,
        store: args.store.into(),
        lasts: Duration::from_secs_f64(args.minutes * 60.0),
    };
    println!("soak: seed {}, {} minutes on {}", options.seed, args.minutes, options.store);
    let commit = commit();
    let Some(soaked) = block_on(onward_chaos::soak(options)) else { return ExitCode::FAILURE };
    if let Some(path) = &args.samples
        && let Err(error) = fs::write(path, soaked.table())
    {
        eprintln!("xtask: {}: {error}", path.display());
    }
    let wrong = soaked.wrong();
    if let Some(wrong) = &wrong {
        println!("soak: {wrong}");
    }
    println!("SOAK commit={commit} {soaked}");
    if wrong.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
