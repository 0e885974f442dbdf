//! Soak: the same scene with nothing going wrong, for long, to see that nothing grows.
//!
//! It begins in haste: the server keeps closed runs in memory up to a budget, and until that is used
//! its memory grows by design. Then clients order at their own pace. Every few seconds server, worker
//! and database are looked at from outside, and `judge.rs` says whether anything grows that should
//! not. What the programs left is put before the checker as well.

mod judge;
mod sample;

use std::{
    fmt::{self, Write as _},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use onward_checker::{
    Log,
    log::{Call, Outcome},
};
use onward_programs::Book;
use tokio::time::{MissedTickBehavior, interval};

use self::{
    judge::{
        Sample, Verdict, bytes_per_program, counted, is_filled, judge, server_memory,
        slope_per_hour, worker_memory,
    },
    sample::Sampler,
};
use crate::{
    Store,
    crowd::Crowd,
    evidence, now_us,
    run::conclude,
    scene::{Mood, Scene},
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(3);

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct SoakOptions {
    /// Where chance comes from.
    pub seed: u64,
    /// Where the server keeps its runs.
    pub store: Store,
    /// How long it is looked at.
    pub lasts: Duration,
}

/// What was seen.
#[derive(Debug)]
pub struct Soaked {
    options: SoakOptions,
    samples: Vec<Sample>,
    /// The first sample behind the haste of the beginning.
    filled: Option<usize>,
    verdict: Verdict,
    log: Log,
    /// What is wrong with the programs, or with what was logged.
    wrong: Vec<String>,
    /// Logs and data, which stay if something is wrong.
    dir: PathBuf,
    wall: Duration,
}

/// Does it, and judges what was seen.
///
/// # Panics
/// If a process does not start, or ends by itself.
pub async fn soak(options: SoakOptions) -> Soaked {
    let began = Instant::now();
    let dir = tempfile::Builder::new().prefix("onward-soak-").tempdir().unwrap().keep();
    let soaked = act(options, &dir, began).await;
    if soaked.wrong().is_none() {
        fs::remove_dir_all(&dir).unwrap();
    }
    soaked
}

async fn act(options: SoakOptions, dir: &Path, began: Instant) -> Soaked {
    let mut rng = fastrand::Rng::with_seed(options.seed);
    let scene = Scene::set(options.store, Mood::Calm, dir).await;
    let book = Book::new(now_us);
    let mut hasty = Crowd::rush(&scene, &mut rng, book.clone());
    let mut crowd = Crowd::gather(&scene, &mut rng, book.clone());
    let mut sampler = Sampler::new(&scene).await;
    let (mut samples, mut filled) = (Vec::new(), None);
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let until = Instant::now() + options.lasts;
    while Instant::now() < until {
        ticks.tick().await;
        let sample = sampler.look(&scene, crowd.ended() + hasty.ended()).await;
        samples.push(sample);
        if !hasty.is_closed() && is_filled(&samples) {
            hasty.close();
        }
        if filled.is_none() && hasty.is_closed() && hasty.open().is_empty() {
            filled = Some(samples.len());
        }
    }
    drop(sampler);
    hasty.close();
    let (log, mut wrong) = conclude(&scene, [&mut crowd, &mut hasty], &book).await;
    wrong.extend(evidence::said_in_peace(&scene.logs()));
    let report = onward_checker::check(&log);
    // Old batches are gone, as they should be, and no journal row finds its own.
    let broken = report.violations().iter().filter(|violation| violation.rule != "H4");
    wrong.extend(broken.map(ToString::to_string));
    let verdict = judge(&samples, filled);
    Soaked {
        options,
        samples,
        filled,
        verdict,
        log,
        wrong,
        dir: dir.to_owned(),
        wall: began.elapsed(),
    }
}

impl Soaked {
    /// What is wrong, for people: something that grows, a broken rule, or too little to say so.
    pub fn wrong(&self) -> Option<String> {
        let mut wrong = self.wrong.clone();
        if let Verdict::Fail(grown) = &self.verdict {
            wrong.extend(grown.iter().cloned());
        }
        wrong.truncate(20);
        if !wrong.is_empty() {
            let wrong = wrong.join("\n");
            return Some(format!("{wrong}\nlogs and data are in {}", self.dir.display()));
        }
        match &self.verdict {
            Verdict::Void(why) => Some(format!("VOID: {why}")),
            Verdict::Pass | Verdict::Fail(_) => None,
        }
    }

    /// Every sample as a line of a table, for who wants to draw it.
    pub fn table(&self) -> String {
        let mut table = "seconds,programs,in_memory,server_bytes,server_fds,server_threads,\
            worker_bytes,worker_fds,worker_threads,database_bytes,hot_bytes,hot_rows,dead,\
            idle_in_transaction,oldest_transaction_ms,wal_bytes\n"
            .to_owned();
        for one in &self.samples {
            let (server, worker, database) = (one.server, one.worker, one.database);
            let _ = writeln!(
                table,
                "{:.1},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
                one.at.as_secs_f64(),
                one.ended,
                one.in_memory,
                server.memory,
                server.fds,
                server.threads,
                worker.memory,
                worker.fds,
                worker.threads,
                database.bytes,
                database.hot_bytes,
                database.hot_rows,
                database.dead,
                database.idle_in_transaction,
                database.oldest_transaction.as_millis(),
                database.wal,
            );
        }
        table
    }
}

impl fmt::Display for Soaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = &self.samples;
        let counted = &all[counted(all, self.filled.unwrap_or(all.len()))];
        let last = all.last().copied().unwrap_or_default();
        let changes = self.log.operations.iter().filter(|one| one.call != Call::Describe);
        let acked = changes.filter(|one| matches!(one.outcome, Outcome::Ok(_))).count();
        let most = |of: fn(&Sample) -> u64| all.iter().map(of).max().unwrap_or(0);
        let grown = match &self.verdict {
            Verdict::Fail(grown) => grown.len(),
            Verdict::Pass | Verdict::Void(_) => 0,
        };
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        write!(
            f,
            "seed={} store={} minutes={:.0} samples={}/{} programs={} runs={} acked={acked} \
             rss={:.0}MiB rss_slope={:+.1}MiB/h worker_rss={:.0}MiB worker_rss_slope={:+.1}MiB/h \
             in_memory={} fds={}/{} threads={}/{} bytes_per_program={:.0} hot_bytes_max={:.1}MiB \
             hot_rows_max={} dead_tuples_max={} wal={:.0}MiB idle_in_transaction={} \
             oldest_transaction={:.2}s violations={} wall={:.0}s",
            self.options.seed,
            self.options.store,
            self.options.lasts.as_secs_f64() / 60.0,
            counted.len(),
            all.len(),
            last.ended,
            self.log.runs.len(),
            mib(server_memory(&last)),
            mib(slope_per_hour(counted, server_memory)),
            mib(worker_memory(&last)),
            mib(slope_per_hour(counted, worker_memory)),
            last.in_memory,
            last.server.fds,
            last.worker.fds,
            last.server.threads,
            last.worker.threads,
            bytes_per_program(counted).unwrap_or(0.0),
            mib(most(|one| one.database.hot_bytes) as f64),
            most(|one| one.database.hot_rows),
            most(|one| one.database.dead),
            mib(last.database.wal as f64),
            most(|one| one.database.idle_in_transaction),
            most(|one| one.database.oldest_transaction.as_millis() as u64) as f64 / 1_000.0,
            self.wrong.len() + grown,
            self.wall.as_secs_f64()
        )
    }
}
