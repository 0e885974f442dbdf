//! One measurement from an empty database to its figures.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use onward_test_postgres::Cluster;
use tokio::time::sleep;

use crate::{
    database::{Counters, Database},
    procs::{self, Usage},
    replay,
    report::{Figures, Report},
    roles::driver::{Driven, DriverTask, Said, Work, Workload},
    scenario::{Cell, Form, Scenario},
    stack::{Driver, Stack},
    workloads::Lateness,
    yardstick,
};

/// How often the end of something without a waiter is looked for.
const POLL: Duration = Duration::from_millis(10);

/// So many submitters at the least where a large number of runs is only there to sleep.
const MANY_SUBMITTERS: usize = 128;

/// A sleep that does not end within any measurement.
const A_DAY_MS: u64 = 24 * 3_600 * 1_000;

/// Measures one cell, on `cluster` if there is one already.
pub(crate) async fn measure(cell: &Cell, cluster: Option<Arc<Cluster>>) -> Result<Report> {
    let mut figures = Figures::default();
    if cell.scenario == Scenario::Replay {
        replay::measure(cell, &mut figures).await?;
        return Ok(Report::new(cell, "no database".to_owned(), figures));
    }
    let mut database = Database::start(cell.store, cluster).await?;
    let version = database.version().await?;
    let time = Duration::from_secs_f64((cell.window_s / 10.0).clamp(0.05, 0.8));
    let yardstick = yardstick::measure(&database, time).await?;
    figures.set("commit_p50_ms", yardstick.commit_p50_ms);
    figures.set("yardstick_per_s", yardstick.batches_per_s);

    let stack = Stack::start(&database.url()).await?;
    let mut bench = Bench { cell, stack, database, figures };
    match cell.scenario {
        Scenario::W0 | Scenario::W1 | Scenario::W5 | Scenario::Signals => bench.callers().await?,
        Scenario::B1 | Scenario::B5 | Scenario::Timers => bench.backlog().await?,
        Scenario::Idle => bench.idle().await?,
        Scenario::Asleep => bench.asleep().await?,
        Scenario::Replay => bail!("a replay has no stack"),
    }
    let Bench { database, stack, mut figures, .. } = bench;
    stack.end().await?;
    let stored = database.stored().await?;
    let per_run = |count: i64| count as f64 / stored.runs as f64;
    figures.set("journal_rows_per_unit", per_run(stored.journal_rows));
    figures.set("batches_per_unit", per_run(stored.batches));
    Ok(Report::new(cell, version, figures))
}

/// A measurement that is under way.
struct Bench<'c> {
    cell: &'c Cell,
    // Ends before the database does.
    stack: Stack,
    database: Database,
    figures: Figures,
}

/// All counters at one time.
struct Snapshot {
    at: Instant,
    usage: Vec<(&'static str, Usage)>,
    counters: Counters,
}

impl Bench<'_> {
    /// Callers in a closed loop.
    async fn callers(&mut self) -> Result<()> {
        let workload = workload(self.cell);
        let (warm_up_s, window_s) = (self.cell.warm_up_s, self.cell.window_s);
        let work = Work::Loop { workload, warm_up_s, window_s };
        let mut driver = self.drive(work, self.cell.concurrency)?;
        let processes = self.processes(Some(&driver));
        expect(&mut driver, "begin").await?;
        let begin = self.snapshot(&processes).await?;
        expect(&mut driver, "end").await?;
        let end = self.snapshot(&processes).await?;
        self.memory(&processes);
        let driven = done(&mut driver).await?;

        if driven.units == 0 {
            bail!("no workflow ended in the window");
        }
        let units = driven.units as f64;
        self.figures.set("units", units);
        self.figures.set("per_s", units / driven.seconds);
        self.cost(&begin, &end, units).await?;
        if let Some(latency) = driven.latency {
            let prefix = if workload == Workload::Signal { "signal_" } else { "" };
            self.figures.set(format!("{prefix}p50_ms"), latency.p50);
            self.figures.set(format!("{prefix}p95_ms"), latency.p95);
            self.figures.set(format!("{prefix}p99_ms"), latency.p99);
            self.figures.set(format!("{prefix}max_ms"), latency.max);
        }
        Ok(())
    }

    /// A number of runs that nobody waits for: steps or sleeps.
    async fn backlog(&mut self) -> Result<()> {
        let runs = self.cell.runs;
        let work = Work::Submit { workload: workload(self.cell), runs };
        let mut driver = self.drive(work, self.cell.concurrency)?;
        let processes = self.processes(Some(&driver));
        expect(&mut driver, "begin").await?;
        let begin = self.snapshot(&processes).await?;
        expect(&mut driver, "end").await?;
        // From here on the driver costs nothing, but it must be there to be looked at.
        self.wait_for(runs, |progress| progress.finished as usize).await?;
        let stored = loop {
            let stored = self.database.stored().await?;
            if stored.open == 0 {
                break stored;
            }
            sleep(POLL).await;
        };
        let end = self.snapshot(&processes).await?;
        self.memory(&processes);
        let driven = done(&mut driver).await?;

        let seconds = (stored.last_closed_us - driven.began_us) as f64 / 1e6;
        self.figures.set("units", runs as f64);
        self.figures.set("per_s", runs as f64 / seconds);
        self.figures.set("submitted_per_s", runs as f64 / driven.seconds);
        self.cost(&begin, &end, runs as f64).await?;
        if self.cell.scenario == Scenario::Timers {
            let lateness = self.stack.lateness().await?;
            self.lateness(&lateness);
        }
        Ok(())
    }

    fn lateness(&mut self, lateness: &Lateness) {
        let late_us = &lateness.late_us;
        let at = |quantile: f64| {
            let place = (late_us.len() as f64 * quantile) as usize;
            late_us.get(place.min(late_us.len().saturating_sub(1))).map(|us| *us as f64 / 1_000.0)
        };
        for (name, quantile) in
            [("min", 0.0), ("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)]
        {
            self.figures.set(format!("late_{name}_ms"), at(quantile).unwrap_or(f64::NAN));
        }
        self.figures.set("most_asleep", lateness.most_asleep as f64);
        self.figures.set("timers_s", lateness.seconds);
    }

    /// A server and a worker that had work and have none now.
    async fn idle(&mut self) -> Result<()> {
        self.warm_up().await?;
        sleep(Duration::from_secs_f64(self.cell.warm_up_s)).await;
        let processes = self.processes(None);
        let statements = self.database.statements().await?;
        let begin = self.snapshot(&processes).await?;
        sleep(Duration::from_secs_f64(self.cell.window_s)).await;
        let end = self.snapshot(&processes).await?;
        if let (Some(before), Some(after)) = (statements, self.database.statements().await?) {
            self.figures.set("statements", (after - before) as f64);
        }
        let seconds = end.at.duration_since(begin.at).as_secs_f64();
        self.figures.set("seconds", seconds);
        for ((name, before), (_, after)) in begin.usage.iter().zip(&end.usage) {
            let used = *after - *before;
            self.figures.set(format!("{name}_core_percent"), 100.0 * used.cpu_s / seconds);
            self.figures.set(format!("{name}_switches_per_s"), used.switches as f64 / seconds);
        }
        let written = self.database.written(&begin.counters, &end.counters).await?;
        if let Some(wal_bytes) = written.wal_bytes {
            self.figures.set("wal_bytes_per_s", wal_bytes as f64 / seconds);
        }
        self.memory(&processes);
        Ok(())
    }

    /// Runs that sleep for longer than anybody looks.
    async fn asleep(&mut self) -> Result<()> {
        let runs = self.cell.runs;
        self.warm_up().await?;
        self.wait_for_quiet().await;
        let server = self.stack.server.pid();
        let (base_pss, base_rss) = procs::memory_mib(server);
        let work = Work::Submit { workload: Workload::Sleep(A_DAY_MS), runs };
        let mut driver = self.drive(work, self.cell.concurrency.max(MANY_SUBMITTERS))?;
        expect(&mut driver, "begin").await?;
        expect(&mut driver, "end").await?;
        let driven = done(&mut driver).await?;
        self.wait_for(runs, |progress| progress.asked).await?;
        self.wait_for_quiet().await;

        let (pss, rss) = procs::memory_mib(server);
        self.figures.set("units", runs as f64);
        self.figures.set("submitted_per_s", runs as f64 / driven.seconds);
        self.figures.set("server_base_mib", base_pss);
        self.figures.set("server_above_base_mib", pss - base_pss);
        self.figures.set("server_above_base_rss_mib", rss - base_rss);
        self.figures
            .set("server_bytes_per_unit", (pss - base_pss) * f64::from(1 << 20) / runs as f64);
        self.memory(&self.processes(None));
        Ok(())
    }

    /// Has everything loaded and connected that work needs.
    async fn warm_up(&mut self) -> Result<()> {
        let warm_up_s = self.cell.warm_up_s / 4.0;
        let work = Work::Loop { workload: Workload::W1, warm_up_s, window_s: warm_up_s };
        let mut driver = self.drive(work, 16)?;
        expect(&mut driver, "begin").await?;
        expect(&mut driver, "end").await?;
        done(&mut driver).await.map(drop)
    }

    /// Waits until the server hardly does anything any more, or for a minute.
    async fn wait_for_quiet(&self) {
        let server = self.stack.server.pid();
        for _ in 0..60 {
            let before = procs::usage(server).cpu_s;
            sleep(Duration::from_secs(1)).await;
            if procs::usage(server).cpu_s - before < 0.03 {
                return;
            }
        }
    }

    /// Waits until the worker has come so far.
    async fn wait_for(
        &mut self,
        count: usize,
        of: impl Fn(crate::workloads::Progress) -> usize,
    ) -> Result<()> {
        while of(self.stack.progress().await?) < count {
            sleep(POLL).await;
        }
        Ok(())
    }

    fn drive(&self, work: Work, concurrency: usize) -> Result<Driver> {
        Driver::start(&DriverTask { address: self.stack.address.clone(), work, concurrency })
    }

    /// Names and ids of what runs.
    fn processes(&self, driver: Option<&Driver>) -> Vec<(&'static str, u32)> {
        let mut processes =
            vec![("server", self.stack.server.pid()), ("worker", self.stack.worker.pid())];
        processes.extend(driver.map(|driver| ("driver", driver.pid())));
        processes.extend(self.database.pid().map(|pid| ("pg", pid)));
        processes
    }

    async fn snapshot(&mut self, processes: &[(&'static str, u32)]) -> Result<Snapshot> {
        let usage = processes.iter().map(|(name, pid)| (*name, procs::usage(*pid))).collect();
        let counters = self.database.counters().await?;
        Ok(Snapshot { at: Instant::now(), usage, counters })
    }

    fn memory(&mut self, processes: &[(&'static str, u32)]) {
        for (name, pid) in processes {
            self.figures.set(format!("{name}_mib"), procs::memory_mib(*pid).0);
        }
    }

    /// What each of `units` workflows cost between two snapshots.
    async fn cost(&mut self, begin: &Snapshot, end: &Snapshot, units: f64) -> Result<()> {
        let mut cpu_s = 0.0;
        for ((name, before), (_, after)) in begin.usage.iter().zip(&end.usage) {
            let used = *after - *before;
            cpu_s += used.cpu_s;
            self.figures.set(format!("{name}_cpu_s_per_1000"), used.cpu_s * 1_000.0 / units);
            self.figures.set(format!("{name}_switches_per_unit"), used.switches as f64 / units);
        }
        self.figures.set("cpu_s_per_1000", cpu_s * 1_000.0 / units);
        let seconds = end.at.duration_since(begin.at).as_secs_f64();
        self.figures.set("cores", cpu_s / seconds);
        let written = self.database.written(&begin.counters, &end.counters).await?;
        self.figures.set("db_bytes_per_unit", written.bytes as f64 / units);
        if let Some(wal_bytes) = written.wal_bytes {
            self.figures.set("wal_bytes_per_unit", wal_bytes as f64 / units);
        }
        if let Some(commits) = written.commits {
            self.figures.set("pg_commits_per_unit", commits as f64 / units);
        }
        Ok(())
    }
}

/// What the driver calls.
fn workload(cell: &Cell) -> Workload {
    match (cell.scenario, cell.form) {
        (Scenario::W0, _) => Workload::W0,
        (Scenario::W5 | Scenario::B5, Form::Call) => Workload::W5,
        (Scenario::W5 | Scenario::B5, Form::Inline) => Workload::W5Inline,
        (Scenario::Timers, _) => Workload::Sleep(cell.timer_ms),
        (Scenario::Asleep, _) => Workload::Sleep(A_DAY_MS),
        (Scenario::Signals, _) => Workload::Signal,
        (Scenario::W1 | Scenario::B1, Form::Inline) => Workload::W1Inline,
        (Scenario::W1 | Scenario::B1 | Scenario::Idle | Scenario::Replay, _) => Workload::W1,
    }
}

async fn expect(driver: &mut Driver, what: &str) -> Result<()> {
    match (driver.hear().await?, what) {
        (Said::Begin, "begin") | (Said::End, "end") => Ok(()),
        (said, _) => bail!("the driver said {said:?} in place of {what}"),
    }
}

async fn done(driver: &mut Driver) -> Result<Driven> {
    match driver.hear().await? {
        Said::Done(driven) => Ok(driven),
        said => bail!("the driver said {said:?} in place of its figures"),
    }
}
