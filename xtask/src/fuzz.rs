//! `cargo xtask fuzz`: coverage-guided fuzzers, and storms of calls.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, Write as _},
    num::NonZero,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use onward_fuzzing::{Storm, TARGETS, seeds};
use twox_hash::XxHash3_64;

/// What makes the compiler count which code is reached, as libFuzzer reads it.
const COUNTING: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1";
/// Calls of one storm; more are several storms.
const STORM: u64 = 20_000;
/// Files of a target that are kept beside those that were sown, and the most bytes of one.
const FILES: usize = 32;
const BYTES: usize = 8 << 10;

/// What to fuzz.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long each target is fuzzed.
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// One target only.
    #[arg(long)]
    target: Option<String>,
    /// Keep some of what reaches new code in the corpus.
    #[arg(long)]
    keep: bool,
    /// Write the corpus that fuzzing begins with anew, from real messages.
    #[arg(long)]
    sow: bool,
    /// Call a whole server so often instead.
    #[arg(long)]
    rpcs: Option<u64>,
    /// The seed of the first storm of calls.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    if let Some(rpcs) = args.rpcs {
        return storms(args.seed, rpcs);
    }
    let done = if args.sow { sow() } else { fuzz(args) };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("fuzz: {error}");
            ExitCode::FAILURE
        }
    }
}

fn storms(first: u64, rpcs: u64) -> ExitCode {
    let began = Instant::now();
    let storms = rpcs.div_ceil(STORM);
    let next = AtomicU64::new(0);
    let total = Mutex::new((0, 0, 0, 0));
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= storms {
                        return;
                    }
                    let seed = first + n;
                    let summary = Storm { seed, rpcs: STORM.min(rpcs - n * STORM) }.rage();
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    for what in &summary.wrong {
                        println!("FAIL {what}");
                    }
                    println!("seed={seed} {summary}");
                    total.0 += summary.rpcs;
                    total.1 += summary.runs;
                    total.2 += summary.customers;
                    total.3 += summary.wrong.len();
                }
            });
        }
    });
    let (rpcs, runs, customers, wrong) = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = began.elapsed().as_secs();
    println!("RPCS rpcs={rpcs} runs={runs} customers={customers} wrong={wrong} wall={seconds}s");
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn corpus(target: &str) -> PathBuf {
    root().join("fuzz/corpus").join(target)
}

/// Whether a file is one that was made of real messages: fuzzers give longer names.
fn is_sown(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.len() == 16)
}

fn sow() -> io::Result<bool> {
    for (target, seeds) in seeds::all() {
        let dir = corpus(target);
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if is_sown(&path) {
                fs::remove_file(path)?;
            }
        }
        for seed in seeds {
            fs::write(dir.join(format!("{:016x}", XxHash3_64::oneshot(&seed))), seed)?;
        }
        println!("{target}: {} files", fs::read_dir(&dir)?.count());
    }
    Ok(true)
}

fn fuzz(args: &Args) -> io::Result<bool> {
    let began = Instant::now();
    let workshop =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let workshop = workshop.join("fuzzing");
    let binaries = build(&workshop)?;
    let (mut targets, mut execs, mut crashes) = (0, 0, 0);
    for target in TARGETS {
        if args.target.as_deref().is_some_and(|only| only != target.name) {
            continue;
        }
        let fuzzer = Fuzzer {
            name: target.name,
            binary: binaries.join(target.name),
            dir: workshop.join("found").join(target.name),
        };
        let told = fuzzer.fuzz(args.seconds)?;
        targets += 1;
        execs += told.execs;
        crashes += u32::from(told.crashed);
        if args.keep && !told.crashed {
            fuzzer.keep()?;
        }
    }
    let seconds = began.elapsed().as_secs();
    println!("FUZZ targets={targets} execs={execs} crashes={crashes} wall={seconds}s");
    Ok(targets > 0 && crashes == 0)
}

/// Builds all fuzzers; tells where they are.
fn build(workshop: &Path) -> io::Result<PathBuf> {
    let rustc = Command::new("rustc").arg("-vV").output()?;
    let text = String::from_utf8_lossy(&rustc.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or_else(|| io::Error::other("rustc does not say what it compiles for"))?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // With a target named, the flags are not those of build scripts and macros.
    let built = Command::new(cargo)
        .args(["build", "--locked", "--target", host, "--manifest-path"])
        .arg(root().join("fuzz/Cargo.toml"))
        .arg("--target-dir")
        .arg(workshop)
        .env("RUSTFLAGS", COUNTING)
        .status()?;
    if !built.success() {
        return Err(io::Error::other("the fuzzers do not build"));
    }
    Ok(workshop.join(host).join("debug"))
}

/// A fuzzer that is built.
struct Fuzzer {
    name: &'static str,
    binary: PathBuf,
    /// Where it puts what it finds.
    dir: PathBuf,
}

struct Told {
    execs: u64,
    crashed: bool,
}

impl Fuzzer {
    fn fuzz(&self, seconds: u32) -> io::Result<Told> {
        let found = self.dir.join("corpus");
        fs::create_dir_all(&found)?;
        let output = Command::new(&self.binary)
            .arg(format!("-max_total_time={seconds}"))
            .args(["-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"])
            .arg(format!("-artifact_prefix={}/", self.dir.display()))
            .args([&found, &corpus(self.name)])
            .output()?;
        let log = String::from_utf8_lossy(&output.stderr);
        let after = |line: &str, word: &str| {
            line.split_once(word)?.1.split_whitespace().next()?.parse::<u64>().ok()
        };
        let execs = log.lines().find_map(|line| after(line, "stat::number_of_executed_units:"));
        let reached = log.lines().rev().find_map(|line| after(line, " cov: "));
        let crashed = !output.status.success();
        println!(
            "{}: execs={} reached={} {}",
            self.name,
            execs.unwrap_or(0),
            reached.unwrap_or(0),
            if crashed { "CRASHED" } else { "ok" }
        );
        if crashed {
            self.show(&output)?;
        }
        Ok(Told { execs: execs.unwrap_or(0), crashed })
    }

    /// The end of what a fuzzer that crashed has said: the panic, and where the input is.
    fn show(&self, output: &Output) -> io::Result<()> {
        let path = self.dir.join("log");
        fs::write(&path, &output.stderr)?;
        let log = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = log.lines().collect();
        let mut out = io::stdout().lock();
        for line in &lines[lines.len().saturating_sub(60)..] {
            writeln!(out, "  {line}")?;
        }
        writeln!(out, "  all of it: {}", path.display())
    }

    /// Adds to what was sown: of all that was found, few files that reach much.
    fn keep(&self) -> io::Result<()> {
        let (merged, own) = (self.dir.join("merged"), corpus(self.name));
        if merged.exists() {
            fs::remove_dir_all(&merged)?;
        }
        fs::create_dir_all(&merged)?;
        let status = Command::new(&self.binary)
            .args(["-set_cover_merge=1", "-rss_limit_mb=2048"])
            .args([&merged, &self.dir.join("corpus"), &own])
            .output()?
            .status;
        if !status.success() {
            return Err(io::Error::other(format!("{} cannot merge its corpus", self.name)));
        }
        let mut sown = BTreeSet::new();
        for entry in fs::read_dir(&own)? {
            let path = entry?.path();
            if is_sown(&path) {
                sown.insert(fs::read(path)?);
            } else {
                fs::remove_file(path)?;
            }
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(&merged)? {
            let path = entry?.path();
            let input = fs::read(&path)?;
            if input.len() <= BYTES && !sown.contains(&input) {
                files.push((input.len(), path));
            }
        }
        // Of all sizes: the smallest alone would not go deep.
        files.sort();
        let step = files.len().div_ceil(FILES).max(1);
        let files: Vec<_> = files.into_iter().step_by(step).collect();
        for (_, path) in &files {
            fs::copy(path, own.join(path.file_name().unwrap_or_default()))?;
        }
        println!("{}: {} found files are kept", self.name, files.len());
        Ok(())
    }
}
