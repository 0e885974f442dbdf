//! `cargo xtask histories`: the replay corpus.

use std::{path::PathBuf, process::ExitCode};

use onward_corpus::{Difference, STORIES, record_all, root};

/// Where to, and over what.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder that gets one for this version; `tests/histories` unless given.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Write over histories that say something else. Those of a released version never change.
    #[arg(long)]
    replace: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let out = args.out.clone().unwrap_or_else(root);
    let differences = match record_all(&out, args.replace) {
        Ok(differences) => differences,
        Err(error) => {
            println!("histories: {}: {error}", out.display());
            return ExitCode::FAILURE;
        }
    };
    for (name, difference) in &differences {
        println!("{name}: {difference}");
    }
    println!("histories: {} stories, {} not as they were", STORIES.len(), differences.len());
    let kept = differences.iter().any(|(_, difference)| *difference == Difference::Kept);
    if kept { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
