//! `cargo xtask mutants`: changes the core line by line, and shows which changes no test notices.
//!
//! The work is cargo-mutants', an installed tool. It gets a copy of the commit that is checked out,
//! and for each part of the core only the tests that are that part's own: most changes cost a build
//! of one crate and a second of tests.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process};

use crate::processes::{cargo, commit};

/// Which changes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One share of all changes of each part, the first one is 0: `3/40`.
    #[arg(long, default_value = "0/1")]
    shard: String,
    /// One part only.
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Begin no further change after so many minutes.
    #[arg(long)]
    minutes: Option<f64>,
}

/// A part of the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The rules of a run, dedupe among them.
    Engine,
    /// What drives workflow code.
    Machine,
    /// One writer at a time: batches, leases and owners, on SQLite and in memory.
    Fence,
    /// The same, of Postgres.
    Postgres,
}

/// What is changed, and which tests must notice it.
struct Plan {
    package: &'static str,
    files: &'static [&'static str],
    targets: &'static [&'static str],
    /// For the test programs.
    tests: &'static [&'static str],
}

impl Part {
    fn plan(self) -> Plan {
        match self {
            Self::Engine => Plan {
                package: "onward-server",
                files: &["server/src/engine/**"],
                targets: &["--lib"],
                tests: &["engine::"],
            },
            Self::Machine => Plan {
                package: "onward",
                files: &["sdk/src/machine/**"],
                targets: &["--lib"],
                tests: &["machine::"],
            },
            Self::Fence => Plan {
                package: "onward-server",
                files: &[
                    "server/src/store/sqlite/writer.rs",
                    "server/src/shard/batch.rs",
                    "server/src/shard/lease.rs",
                    "server/src/shard/ownership.rs",
                    "server/src/shard/lane/commits.rs",
                    "server/src/shard/lane/reads.rs",
                ],
                targets: &["--lib", "--test=conformance", "--test=protocol"],
                tests: &["--", "--skip=postgres"],
            },
            Self::Postgres => Plan {
                package: "onward-server",
                files: &["server/src/store/postgres/owner.rs"],
                targets: &["--test=conformance"],
                tests: &["postgres::"],
            },
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Engine => "engine",
            Self::Machine => "machine",
            Self::Fence => "fence",
            Self::Postgres => "postgres",
        })
    }
}

/// Where missed changes are listed that change nothing.
const LISTED: &str = "docs/mutants.md";

pub(crate) fn run(args: &Args) -> ExitCode {
    let mut tool = cargo();
    tool.args(["mutants", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if !tool.status().is_ok_and(|status| status.success()) {
        println!("mutants: there is no cargo-mutants: `cargo install --locked cargo-mutants`");
        return ExitCode::FAILURE;
    }
    let parts = args.part.map_or_else(|| Part::value_variants().to_vec(), |part| vec![part]);
    let until =
        args.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    let commit = commit();
    // Changes are made to the commit, whatever differs from it.
    let commit = commit.trim_end_matches("+changes");
    match change(&parts, args, until) {
        Ok(seen) => {
            let parts: Vec<_> = parts.iter().map(ToString::to_string).collect();
            let (parts, shard) = (parts.join(","), &args.shard);
            println!("MUT commit={commit} parts={parts} shard={shard} {seen}");
            if seen.missed.is_empty() && seen.caught > 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            println!("mutants: {error}");
            ExitCode::FAILURE
        }
    }
}

fn change(parts: &[Part], args: &Args, until: Option<Instant>) -> io::Result<Seen> {
    let dir = std::path::absolute("target/mutants")?;
    let tree = dir.join("tree");
    copy_commit(&tree)?;
    let mut seen = Seen::default();
    for part in parts {
        let out = dir.join(part.to_string());
        if out.exists() {
            fs::remove_dir_all(&out)?;
        }
        fs::create_dir_all(&out)?;
        change_part(&part.plan(), &tree, &dir, &out, &args.shard, until)?;
        seen.add(&out.join("mutants.out"));
    }
    let listed = fs::read_to_string(LISTED).unwrap_or_default();
    seen.set_apart(&listed);
    Ok(seen)
}

/// Makes a copy of what is committed. Its files are new, so no change of an earlier run that was cut
/// short is taken for built.
fn copy_commit(tree: &Path) -> io::Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree)?;
    }
    fs::create_dir_all(tree)?;
    let mut archive =
        Command::new("git").args(["archive", "HEAD"]).stdout(Stdio::piped()).spawn()?;
    let packed = archive.stdout.take().expect("it is piped");
    let unpacked = Command::new("tar").args(["-xm", "-C"]).arg(tree).stdin(packed).status()?;
    let archived = archive.wait()?;
    let both = unpacked.success() && archived.success();
    both.then_some(()).ok_or_else(|| io::Error::other("cannot copy the commit"))
}

fn change_part(
    plan: &Plan,
    tree: &Path,
    dir: &Path,
    out: &Path,
    shard: &str,
    until: Option<Instant>,
) -> io::Result<()> {
    let mut mutants = cargo();
    mutants.args(["mutants", "--in-place", "--no-shuffle", "--sharding=round-robin"]);
    mutants.args(["--package", plan.package, "--shard", shard, "--cargo-arg=--locked"]);
    mutants.args(plan.files.iter().flat_map(|file| ["--file", *file]));
    mutants.args(plan.targets.iter().map(|target| format!("--cargo-arg={target}")));
    mutants.arg("--dir").arg(tree).arg("--output").arg(out);
    mutants.arg("--").args(plan.tests);
    // Apart from everything else, and built as quickly as can be: there is one build a change.
    mutants.env("CARGO_TARGET_DIR", dir.join("target"));
    mutants.envs([("CARGO_PROFILE_DEV_OPT_LEVEL", "0"), ("CARGO_PROFILE_DEV_DEBUG", "0")]);
    mutants.env("CARGO_INCREMENTAL", "1");
    // What random stories show, a quarter of them shows as well, nearly always.
    mutants.env("PROPTEST_CASES", "64");
    let mut running = mutants.spawn()?;
    // Its exit code says whether something was missed, which its files say as well.
    while running.try_wait()?.is_none() {
        if until.is_some_and(|until| until <= Instant::now()) {
            let pid = i32::try_from(running.id()).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid {
                kill_process(pid, Signal::INT)?;
            }
            running.wait()?;
            break;
        }
        thread::sleep(Duration::from_millis(200));
    }
    let tested = out.join("mutants.out/caught.txt").exists();
    tested.then_some(()).ok_or_else(|| io::Error::other("cargo-mutants tested nothing"))
}

/// What became of all changes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// A test failed, or did not end any more.
    caught: usize,
    /// Those of them that a test did not end with.
    timeouts: usize,
    /// Do not compile.
    unviable: usize,
    /// No test noticed them.
    missed: Vec<String>,
    /// The same, and the document says that they change nothing.
    equivalent: usize,
    /// There was no time for them.
    left: usize,
}

impl Seen {
    /// Adds what the tool wrote.
    fn add(&mut self, dir: &Path) {
        let lines = |name: &str| -> Vec<String> {
            let path: PathBuf = dir.join(name);
            let text = fs::read_to_string(path).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        };
        let timeouts = lines("timeout.txt").len();
        let (caught, missed) = (lines("caught.txt").len() + timeouts, lines("missed.txt"));
        let unviable = lines("unviable.txt").len();
        let all: Vec<serde_json::Value> =
            serde_json::from_str(&lines("mutants.json").join("\n")).unwrap_or_default();
        self.left += all.len().saturating_sub(caught + missed.len() + unviable);
        self.timeouts += timeouts;
        self.caught += caught;
        self.unviable += unviable;
        self.missed.extend(missed);
    }

    /// Sets those apart that a document lists.
    fn set_apart(&mut self, document: &str) {
        let listed: BTreeSet<&str> = document.split('`').skip(1).step_by(2).collect();
        let before = self.missed.len();
        self.missed.retain(|missed| !listed.contains(without_place(missed).as_str()));
        self.equivalent += before - self.missed.len();
    }
}

/// The name of a change without its line and column, which move.
fn without_place(name: &str) -> String {
    let is_place = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.splitn(4, ':').filter(|part| !is_place(part)).collect::<Vec<_>>().join(":")
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.caught + self.equivalent + self.missed.len();
        let judged = (self.caught + self.missed.len()).max(1);
        write!(
            f,
            "mutants={all} caught={:.1}% timeouts={} equivalent={} unviable={} left={} \
             missed=[{}]",
            self.caught as f64 * 100.0 / judged as f64,
            self.timeouts,
            self.equivalent,
            self.unviable,
            self.left,
            self.missed.join("; ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_change_counts_unless_the_document_lists_it() {
        let dir = tempfile::tempdir().expect("there is a directory for temporary ones");
        let write = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).expect("the directory is ours");
        };
        write("caught.txt", "a.rs:1:2: replace f -> bool with true\n");
        write("timeout.txt", "a.rs:9:2: replace += with -= in g\n");
        write("missed.txt", "a.rs:3:4: replace < with <= in Run::h\na.rs:5:6: delete ! in i\n");
        write("mutants.json", "[{}, {}, {}, {}, {}]");
        let mut seen = Seen::default();
        seen.add(dir.path());
        seen.set_apart("- `a.rs: delete ! in i`: both sides are equal there.\n");
        let missed = vec!["a.rs:3:4: replace < with <= in Run::h".to_owned()];
        let expected = Seen { caught: 2, timeouts: 1, missed, equivalent: 1, left: 1, unviable: 0 };
        assert_eq!(seen, expected);
        assert_eq!(
            seen.to_string(),
            "mutants=4 caught=66.7% timeouts=1 equivalent=1 unviable=0 left=1 \
             missed=[a.rs:3:4: replace < with <= in Run::h]"
        );
    }
}
