//! `cargo xtask seeded`: turns on one bug after the other, and shows what finds it.

use std::process::ExitCode;

/// Which bugs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One of them, by its code (`B08`) or its name (`LateAttempt`); all without it.
    #[arg(long)]
    bug: Option<String>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stories to play before a bug counts as not found.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// Play no further one after so many seconds for one bug.
    #[arg(long, default_value_t = 240)]
    seconds: u64,
    /// Has the stories on a simulated network find them, in place of the simulation's.
    #[arg(long)]
    network: bool,
    /// Worlds that are played beside each other; one for each core by default.
    #[arg(long)]
    threads: Option<usize>,
}

/// Goes on in a build that has the bugs.
#[cfg(not(feature = "seeded-bugs"))]
pub(crate) fn run(args: &Args) -> ExitCode {
    use std::{env, process::Command};

    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut again = Command::new(cargo);
    again.args(["run", "--locked", "--quiet", "--package", "xtask"]);
    // Apart from everything else: no other build may find these.
    again.args(["--features", "seeded-bugs", "--target-dir", "target/seeded-bugs", "--", "seeded"]);
    again.args(["--seed", &args.seed.to_string()]);
    again.args(["--seeds", &args.seeds.to_string(), "--seconds", &args.seconds.to_string()]);
    again.args(args.network.then_some("--network"));
    again.args(args.threads.iter().flat_map(|n| ["--threads".to_owned(), n.to_string()]));
    again.args(args.bug.iter().flat_map(|bug| ["--bug", bug]));
    match again.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: cannot run cargo: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(feature = "seeded-bugs")]
pub(crate) fn run(args: &Args) -> ExitCode {
    use onward_proto::SeededBug;

    let is_asked = |bug: &SeededBug| {
        let name = format!("{bug:?}");
        args.bug.as_ref().is_none_or(|asked| *asked == name || *asked == bug.code())
    };
    let bugs: Vec<_> = SeededBug::ALL.into_iter().filter(is_asked).collect();
    if bugs.is_empty() {
        eprintln!("xtask: there is no such bug; there are {:?}", SeededBug::ALL);
        return ExitCode::from(2);
    }
    let (layer, hunt): (_, fn(SeededBug, &Args) -> Option<(u64, String)>) = if args.network {
        ("network", hunt::<onward_network::Story>)
    } else {
        ("simulation", hunt::<onward_simulation::Story>)
    };
    let mut seeds = Vec::new();
    for bug in &bugs {
        match hunt(*bug, args) {
            Some((seed, wrong)) => {
                println!("{} {bug:?}: found by the {layer} at seed {seed}: {wrong}", bug.code());
                seeds.push(seed - args.seed + 1);
            }
            None => println!("{} {bug:?}: NOT FOUND", bug.code()),
        }
    }
    seeds.sort_unstable();
    let median = seeds.get(seeds.len() / 2).copied().unwrap_or(0);
    println!("SEEDED caught={}/{} median_seeds={median}", seeds.len(), bugs.len());
    if seeds.len() == bugs.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays stories with a bug until one fails. Gives the seed, and what is wrong.
#[cfg(feature = "seeded-bugs")]
fn hunt<T: onward_simulation::Tale>(
    bug: onward_proto::SeededBug,
    args: &Args,
) -> Option<(u64, String)> {
    use std::time::Duration;

    use onward_proto::SeededBug;
    use onward_simulation::Suite;

    SeededBug::turn_on(Some(bug));
    let suite = Suite {
        first: args.seed,
        seeds: args.seeds,
        within: Some(Duration::from_secs(args.seconds)),
        threads: args.threads.unwrap_or_else(crate::stories::cores),
        shrink: false,
    };
    let failure = suite.run::<T>().failure;
    SeededBug::turn_on(None);
    failure.map(|failure| {
        let wrong = failure.wrong.lines().next().unwrap_or_default();
        let wrong: String = wrong.chars().take(WRONG).collect();
        (failure.story.seed(), wrong)
    })
}

/// So much of what is wrong is shown.
#[cfg(feature = "seeded-bugs")]
const WRONG: usize = 160;
