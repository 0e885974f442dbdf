//! `cargo xtask page`: writes `docs/proof.md` from what `scripts/prove` has noted.
//!
//! For each layer there is a folder, in the order in which they ran. It holds `command`, `log`, and
//! when the layer has ended `status` (an exit code) and `seconds`; or `skip`, the reason why it did
//! not run. The page shows every one of them, whatever became of it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// What to write.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the layers were noted.
    #[arg(long)]
    state: PathBuf,
    /// The page; what stands behind its mark stays.
    #[arg(long, default_value = "docs/proof.md")]
    page: PathBuf,
}

/// Behind it stands what people write.
const MARK: &str = "<!-- What follows is written by hand; scripts/prove leaves it as it is. -->";

pub(crate) fn run(args: &Args) -> ExitCode {
    let written = || -> io::Result<Vec<Layer>> {
        let layers = Layer::all(&args.state.join("layers"))?;
        let facts = fs::read_to_string(args.state.join("facts"))?;
        let old = fs::read_to_string(&args.page).unwrap_or_default();
        fs::write(&args.page, page(&facts, &layers, &old))?;
        Ok(layers)
    };
    match written() {
        Ok(layers) if layers.iter().all(|layer| layer.verdict.is_good()) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("page: {error}");
            ExitCode::from(2)
        }
    }
}

/// What became of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Pass,
    Fail,
    /// Too little happened.
    Void,
    /// It did not run.
    Skip(String),
    /// It began, or was to begin.
    Unended,
}

impl Verdict {
    fn name(&self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Void => "VOID",
            Self::Skip(_) => "SKIP",
            Self::Unended => "NOT ENDED",
        }
    }

    /// Whether it stands in no proof's way. What was left out is shown, and is for people to judge.
    fn is_good(&self) -> bool {
        matches!(self, Self::Pass | Self::Skip(_))
    }
}

/// One layer.
#[derive(Debug)]
struct Layer {
    name: String,
    command: String,
    seconds: String,
    verdict: Verdict,
    /// What it says of itself.
    line: String,
    /// What it left out.
    skips: Vec<String>,
}

impl Layer {
    fn all(dir: &Path) -> io::Result<Vec<Self>> {
        let entries: io::Result<Vec<_>> =
            fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut dirs = entries?;
        dirs.sort();
        Ok(dirs.iter().map(|dir| Self::read(dir)).collect())
    }

    fn read(dir: &Path) -> Self {
        let file = |name: &str| fs::read_to_string(dir.join(name)).ok();
        let word = |name: &str| file(name).unwrap_or_default().trim().to_owned();
        // A log may hold what no text does.
        let log = fs::read(dir.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let verdict = match (file("skip"), file("status")) {
            (Some(reason), _) => Verdict::Skip(reason.trim().to_owned()),
            (None, None) => Verdict::Unended,
            (None, Some(status)) if status.trim() == "0" => Verdict::Pass,
            (None, Some(_)) => {
                let is_void = lines.iter().any(|line| line.contains(": VOID: "));
                if is_void { Verdict::Void } else { Verdict::Fail }
            }
        };
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        Self {
            // Behind the number that gives the order.
            name: name.split_once('-').map_or(&*name, |(_, name)| name).to_owned(),
            command: word("command"),
            seconds: word("seconds"),
            verdict,
            line: lines
                .iter()
                .rev()
                .find(|line| is_sum(line))
                .copied()
                .unwrap_or_default()
                .to_owned(),
            skips: lines
                .iter()
                .filter_map(|line| line.strip_prefix("SKIP "))
                .map(Into::into)
                .collect(),
        }
    }

    /// The numbers of its line.
    fn figures(&self) -> BTreeMap<&str, u64> {
        let pairs = self.line.split_whitespace().filter_map(|word| word.split_once('='));
        pairs.filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect()
    }

    fn sum(&self, names: &[&str]) -> u64 {
        self.figures().iter().filter(|(name, _)| names.contains(name)).map(|(_, value)| value).sum()
    }

    /// Crashes are made on purpose everywhere but here.
    fn is_fuzzing(&self) -> bool {
        self.line.starts_with("FUZZ ")
    }

    fn faults(&self) -> u64 {
        if self.is_fuzzing() { 0 } else { self.sum(FAULTS) }
    }

    fn violations(&self) -> u64 {
        let crashes = if self.is_fuzzing() { self.sum(&["crashes"]) } else { 0 };
        crashes + self.sum(&["violations", "wrong", "failed"])
    }
}

/// A layer's last words: its name in capitals, and figures.
fn is_sum(line: &str) -> bool {
    let Some((name, figures)) = line.split_once(' ') else { return false };
    name.len() > 2
        && name.bytes().all(|byte| byte.is_ascii_uppercase())
        && !["SKIP", "FAIL"].contains(&name)
        && figures.split(' ').next().is_some_and(|first| first.contains('='))
}

/// What the layers count that went wrong on purpose.
const FAULTS: &[&str] = &[
    "clock",
    "crashes",
    "cut_batches",
    "database",
    "db_kills",
    "db_sessions",
    "freezes",
    "full_disks",
    "holds",
    "links",
    "locks",
    "losses",
    "net",
    "oneway",
    "partitions",
    "pauses",
    "power_cuts",
    "read_only",
    "resets",
    "rewinds",
    "rivals",
    "server_kills",
    "server_stops",
    "stops",
    "store_err",
    "worker_kills",
];

fn page(facts: &str, layers: &[Layer], old: &str) -> String {
    let sum = |of: fn(&Layer) -> u64| -> u64 { layers.iter().map(of).sum() };
    let count =
        |verdict: &str| layers.iter().filter(|layer| layer.verdict.name() == verdict).count();
    let mut page = "# What was run to prove it\n\n\
        `scripts/prove` ran every layer on one clean commit and wrote this page; only the page is newer\n\
        than what it tells of. Each line is what the layer said of itself, and the command beneath says\n\
        how to run it alone. VOID means that too little happened to mean anything, SKIP that it did not\n\
        run; neither counts as passed. What the layers are is told in [architecture.md](architecture.md),\n\
        section 11.\n\n| | |\n|---|---|\n"
        .to_owned();
    for (name, value) in facts.lines().filter_map(|line| line.split_once('=')) {
        let _ = writeln!(page, "| {name} | {value} |");
    }
    let _ = writeln!(page, "| faults injected | {} |", sum(Layer::faults));
    let _ = writeln!(page, "| runs | {} |", sum(|layer| layer.sum(&["runs"])));
    let _ = writeln!(
        page,
        "| acknowledged operations | {} |",
        sum(|layer| layer.sum(&["acks", "acked"]))
    );
    let _ = writeln!(page, "| violations | {} |", sum(Layer::violations));
    let _ = writeln!(
        page,
        "| layers | {} passed, {} failed, {} void, {} skipped, {} not ended |",
        count("PASS"),
        count("FAIL"),
        count("VOID"),
        count("SKIP"),
        count("NOT ENDED"),
    );
    page.push_str("\n```text\n");
    for layer in layers {
        let verdict = layer.verdict.name();
        match &layer.verdict {
            Verdict::Skip(reason) => {
                let _ = writeln!(page, "{verdict} {}: {reason}", layer.name);
            }
            _ if layer.line.is_empty() => {
                let _ = writeln!(page, "{verdict} {}: it says nothing of itself", layer.name);
            }
            _ => {
                let _ = writeln!(page, "{verdict} {}", layer.line);
            }
        }
        for skip in &layer.skips {
            let _ = writeln!(page, "SKIP within {}: {skip}", layer.name);
        }
    }
    page.push_str("```\n\n| layer | | seconds | command |\n|---|---|---|---|\n");
    for Layer { name, command, seconds, verdict, .. } in layers {
        let _ = writeln!(page, "| {name} | {} | {seconds} | `{command}` |", verdict.name());
    }
    let by_hand = old.split_once(MARK).map_or("\n", |(_, by_hand)| by_hand);
    let _ = write!(page, "\n{MARK}{by_hand}");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state as the script leaves it.
    struct State(tempfile::TempDir);

    impl State {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("there is a directory for temporary ones"))
        }

        fn layer(&self, name: &str, files: &[(&str, &str)]) -> &Self {
            let dir = self.0.path().join(name);
            fs::create_dir(&dir).expect("the directory is ours");
            for (name, text) in files {
                fs::write(dir.join(name), text).expect("the directory is ours");
            }
            self
        }

        fn read(&self) -> Vec<Layer> {
            Layer::all(self.0.path()).expect("the directory is ours")
        }
    }

    fn state() -> State {
        let state = State::new();
        let sim = "sim: seeds 1..=9\nSIM seeds=9 runs=70 acks=500 crashes=3 violations=0 wall=4s\n";
        state.layer("01-sim", &[("command", "xtask sim\n"), ("status", "0\n"), ("log", sim)]);
        let chaos = "SKIP a full disk: none\nCHAOS seed=1 runs=7 acked=5 net=2 violations=0\n";
        state.layer("02-chaos", &[("command", "xtask chaos\n"), ("status", "0"), ("log", chaos)]);
        state.layer("03-net", &[("skip", "there is no such command\n")]);
        state
    }

    #[test]
    fn every_layer_has_its_line_and_all_add_up() {
        let layers = state().read();
        let page = page("commit=`abc`\n", &layers, "");
        for part in [
            "| commit | `abc` |\n",
            "| faults injected | 5 |\n| runs | 77 |\n| acknowledged operations | 505 |\n",
            "PASS SIM seeds=9 runs=70 ",
            "PASS CHAOS seed=1 ",
            "SKIP within chaos: a full disk: none\n",
            "SKIP net: there is no such command\n",
            "| layers | 2 passed, 0 failed, 0 void, 1 skipped, 0 not ended |\n",
            "| sim | PASS |  | `xtask sim` |\n",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(layers.iter().all(|layer| layer.verdict.is_good()));
    }

    #[test]
    fn what_failed_was_void_or_did_not_end_is_no_pass() {
        let state = state();
        state.layer("04-soak", &[("status", "1"), ("log", "soak: VOID: too short\nSOAK seed=1\n")]);
        state.layer("05-fuzz", &[("status", "1"), ("log", "FUZZ targets=1 crashes=1\n")]);
        state.layer("06-mutants", &[("log", "MUT caught=1\n")]);
        state.layer("07-models", &[("status", "101"), ("log", "error: no such test\n")]);
        let layers = state.read();
        let verdicts: Vec<_> = layers[3..].iter().map(|layer| layer.verdict.clone()).collect();
        let expected = [Verdict::Void, Verdict::Fail, Verdict::Unended, Verdict::Fail];
        assert_eq!(verdicts, expected);
        assert!(verdicts.iter().all(|verdict| !verdict.is_good()));
        let page = page("", &layers, "");
        assert!(page.contains("| faults injected | 5 |"), "a crash that was found is none: {page}");
        assert!(page.contains("| violations | 1 |"), "{page}");
        assert!(page.contains("VOID SOAK seed=1\n"), "{page}");
        assert!(page.contains("FAIL models: it says nothing of itself\n"), "{page}");
        assert!(page.contains("2 passed, 2 failed, 1 void, 1 skipped, 1 not ended"), "{page}");
    }

    #[test]
    fn what_people_wrote_stays() {
        let by_hand = "\n\n## Bugs\n\n- one\n";
        let first = page("", &[], &format!("old figures\n{MARK}{by_hand}"));
        let second = page("", &[], &first);
        assert!(first.ends_with(by_hand), "{first}");
        assert_eq!(first, second);
        assert!(!first.contains("old figures"));
    }
}
