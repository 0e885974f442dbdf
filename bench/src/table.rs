//! All workloads, some times over, as the table of `docs/benchmarks.md`.

use std::{fmt::Write as _, fs, sync::Arc, thread, time::Instant};

use anyhow::Result;
use onward_test_postgres::Cluster;

use crate::{
    database,
    measure::measure,
    report::{COMMIT, PROFILE, Report},
    scenario::{
        Cell,
        Form::{self, Call, Inline},
        Scenario,
        StoreKind::{self, Postgres, Sqlite},
    },
};

/// Measures all cells `runs` times and prints the table. Each round goes through all of them, so
/// that a slow minute of the machine hits every cell once and not one cell always.
pub(crate) async fn all(runs: usize, smoke: bool) -> Result<()> {
    let began = Instant::now();
    let (cells, runs) = if smoke { (smoke_cells(), 1) } else { (full_cells(), runs.max(1)) };
    let cluster = if smoke { Some(database::start_cluster().await?) } else { None };
    let mut rows: Vec<Row> =
        cells.into_iter().map(|cell| Row { cell, reports: Vec::new() }).collect();
    for round in 1..=runs {
        for row in &mut rows {
            let report = measure(&row.cell, cluster.clone()).await?;
            eprintln!("{round}/{runs} {}: {}", row.cell, headline(&report));
            row.reports.push(report);
        }
    }
    print!("{}", render(&rows, runs, smoke));
    eprintln!("took {:.0} s", began.elapsed().as_secs_f64());
    stop(cluster).await;
    Ok(())
}

/// Stopping the cluster blocks.
async fn stop(cluster: Option<Arc<Cluster>>) {
    // The only thing that can go wrong is that the runtime ends first, and then it is dropped too.
    let _ = tokio::task::spawn_blocking(move || drop(cluster)).await;
}

/// A cell and what it gave each time.
struct Row {
    cell: Cell,
    reports: Vec<Report>,
}

fn cell(scenario: Scenario, form: Form, store: StoreKind, concurrency: usize) -> Cell {
    Cell {
        scenario,
        form,
        store,
        concurrency,
        runs: scenario.default_runs(),
        timer_ms: 5_000,
        warm_up_s: 2.0,
        window_s: scenario.default_seconds(),
    }
}

fn full_cells() -> Vec<Cell> {
    use Scenario::{Asleep, B1, B5, Idle, Replay, Signals, Timers, W0, W1, W5};
    let mut cells = vec![
        cell(W1, Call, Postgres, 1),
        cell(W1, Call, Postgres, 16),
        cell(W1, Call, Postgres, 128),
        cell(W1, Call, Postgres, 512),
        cell(W5, Call, Postgres, 1),
        cell(W5, Call, Postgres, 512),
        cell(W0, Call, Postgres, 512),
        cell(W1, Inline, Postgres, 1),
        cell(W1, Inline, Postgres, 512),
        cell(W5, Inline, Postgres, 512),
        cell(B1, Call, Postgres, 32),
        cell(B5, Call, Postgres, 32),
        cell(W1, Call, Sqlite, 1),
        cell(W1, Call, Sqlite, 512),
        cell(W5, Call, Sqlite, 512),
        cell(W1, Inline, Sqlite, 512),
        cell(B1, Call, Sqlite, 32),
        cell(Signals, Call, Postgres, 1),
        cell(Signals, Call, Sqlite, 1),
        cell(Timers, Call, Postgres, 32),
        cell(Timers, Call, Sqlite, 32),
        cell(Idle, Call, Postgres, 1),
        cell(Asleep, Call, Postgres, 128),
        cell(Replay, Call, Sqlite, 1),
    ];
    cells.push(Cell { timer_ms: 30_000, ..cell(Timers, Call, Postgres, 32) });
    cells
}

fn smoke_cells() -> Vec<Cell> {
    use Scenario::{Asleep, B1, Idle, Replay, Signals, Timers, W0, W1, W5};
    let few = [
        (cell(W0, Call, Sqlite, 16), 0),
        (cell(W1, Call, Postgres, 16), 0),
        (cell(W1, Call, Sqlite, 16), 0),
        (cell(W5, Call, Postgres, 16), 0),
        (cell(W1, Inline, Postgres, 16), 0),
        (cell(B1, Call, Postgres, 16), 100),
        (cell(Signals, Call, Postgres, 1), 0),
        (cell(Timers, Call, Postgres, 16), 100),
        (cell(Idle, Call, Postgres, 1), 0),
        (cell(Asleep, Call, Sqlite, 16), 200),
        (cell(Replay, Call, Sqlite, 1), 300),
    ];
    few.into_iter()
        .map(|(cell, runs)| Cell { runs, timer_ms: 200, warm_up_s: 0.2, window_s: 0.4, ..cell })
        .collect()
}

/// The figures that tell most, by scenario: their name, and what the table calls them.
fn notable(scenario: Scenario) -> &'static [(&'static str, &'static str)] {
    match scenario {
        Scenario::W0 | Scenario::W1 | Scenario::W5 => {
            &[("per_s", "per s"), ("p50_ms", "p50 ms"), ("p99_ms", "p99 ms")]
        }
        Scenario::B1 | Scenario::B5 => {
            &[("per_s", "per s"), ("submitted_per_s", "submitted per s")]
        }
        Scenario::Timers => &[
            ("late_p50_ms", "late p50 ms"),
            ("late_p95_ms", "late p95 ms"),
            ("late_p99_ms", "late p99 ms"),
            ("late_max_ms", "late at most ms"),
            ("late_min_ms", "late at least ms"),
            ("most_asleep", "asleep at once"),
            ("timers_s", "first sleep to last end s"),
        ],
        Scenario::Signals => {
            &[("signal_p50_ms", "signal p50 ms"), ("signal_p99_ms", "signal p99 ms")]
        }
        Scenario::Idle => &[
            ("statements", "statements"),
            ("server_core_percent", "server, % of a core"),
            ("worker_core_percent", "worker, % of a core"),
            ("pg_core_percent", "Postgres, % of a core"),
        ],
        Scenario::Asleep => &[
            ("server_above_base_mib", "server above base MiB"),
            ("server_bytes_per_unit", "server bytes a run"),
            ("worker_mib", "worker MiB"),
            ("submitted_per_s", "submitted per s"),
        ],
        Scenario::Replay => &[
            ("events_per_s", "machine, events per s"),
            ("replayer_events_per_s", "replayer, events per s"),
        ],
    }
}

fn headline(report: &Report) -> String {
    let mut line = String::new();
    for (name, title) in notable(report.scenario) {
        if let Some(value) = report.figures.get(name) {
            let comma = if line.is_empty() { "" } else { ", " };
            let _ = write!(line, "{comma}{title} {}", number(value));
        }
    }
    line
}

fn is_throughput(scenario: Scenario) -> bool {
    matches!(scenario, Scenario::W0 | Scenario::W1 | Scenario::W5 | Scenario::B1 | Scenario::B5)
}

fn render(rows: &[Row], runs: usize, smoke: bool) -> String {
    let mut out = String::new();
    let date = jiff::Timestamp::now().to_string();
    let date = date.split('T').next().unwrap_or_default();
    let warning = if cfg!(debug_assertions) {
        ", DEBUG BUILD: these figures mean nothing"
    } else if smoke {
        ", SMOKE TEST: these figures mean nothing"
    } else {
        ""
    };
    let _ = writeln!(out, "## {date}, profile `{PROFILE}`, commit `{COMMIT}`{warning}\n");
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let _ = writeln!(out, "`onward-bench {command}` on {}.\n", machine());
    for store in [Postgres, Sqlite] {
        let of = |name: &str| -> Vec<f64> {
            let reports = rows.iter().flat_map(|row| &row.reports);
            let reports = reports.filter(|report| report.store == store);
            reports.filter_map(|report| report.figures.get(name)).collect()
        };
        let version = rows
            .iter()
            .flat_map(|row| &row.reports)
            .find(|report| report.store == store && report.figures.get("commit_p50_ms").is_some())
            .map(|report| report.database.clone());
        if let Some(version) = version {
            let _ = writeln!(
                out,
                "Yardstick of {version}: a durable commit of one row by one client takes {} ms \
                 (p50); {} W1-shaped batches of one run a second.\n",
                spread(of("commit_p50_ms")),
                spread(of("yardstick_per_s")),
            );
        }
    }
    let _ = writeln!(
        out,
        "Median of {runs}, lowest to highest in brackets. CPU in seconds for 1,000 workflows.\n"
    );
    out.push_str(
        "| workload | store | callers | per s | p50 ms | p95 ms | p99 ms | CPU | server | worker \
         | driver | Postgres | WAL bytes | journal rows | commits |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows.iter().filter(|row| is_throughput(row.cell.scenario)) {
        let name = match row.cell.scenario {
            Scenario::W0 => "w0".to_owned(),
            scenario => format!("{scenario} {}", row.cell.form),
        };
        let _ = write!(out, "| {name} | {} | {} ", row.cell.store, row.cell.concurrency);
        let _ = write!(out, "| {} ", spread(row.values("per_s")));
        for figure in [
            "p50_ms",
            "p95_ms",
            "p99_ms",
            "cpu_s_per_1000",
            "server_cpu_s_per_1000",
            "worker_cpu_s_per_1000",
            "driver_cpu_s_per_1000",
            "pg_cpu_s_per_1000",
            "wal_bytes_per_unit",
            "journal_rows_per_unit",
            "pg_commits_per_unit",
        ] {
            let median = median(row.values(figure)).map_or(String::new(), number);
            let _ = write!(out, "| {median} ");
        }
        out.push_str("|\n");
    }
    out.push_str("\n| workload | figure | median | lowest..highest |\n|---|---|---|---|\n");
    for row in rows.iter().filter(|row| !is_throughput(row.cell.scenario)) {
        for (figure, title) in notable(row.cell.scenario) {
            let values = row.values(figure);
            let Some(middle) = median(values.clone()) else { continue };
            let _ = writeln!(
                out,
                "| {} | {title} | {} | {} |",
                row.cell,
                number(middle),
                range(&values)
            );
        }
    }
    out
}

impl Row {
    fn values(&self, figure: &str) -> Vec<f64> {
        self.reports.iter().filter_map(|report| report.figures.get(figure)).collect()
    }
}

/// `median (lowest..highest)`, or only the value if there is but one.
fn spread(values: Vec<f64>) -> String {
    let range = range(&values);
    let is_one = values.len() == 1;
    match median(values) {
        None => String::new(),
        Some(middle) if is_one => number(middle),
        Some(middle) => format!("{} ({range})", number(middle)),
    }
}

fn range(values: &[f64]) -> String {
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{}..{}", number(lowest), number(highest))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get((values.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// Three digits that count, and commas between thousands.
fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        let digits = if value.abs() < 1.0 { 3 } else { 2 };
        return format!("{value:.digits$}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

/// Cores, memory and kernel of this machine.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| -> Option<String> {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = after(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown CPU".into());
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kib: f64 = after(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0.0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores ({model}), {:.0} GiB, Linux {}", kib / 1_048_576.0, kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let written = [0.264_2, 7.125, 99.999, 1_234.4, 1_234_567.0, -250.0].map(number);
        assert_eq!(written, ["0.264", "7.12", "100.00", "1,234", "1,234,567", "-250"]);
    }

    #[test]
    fn a_median_of_an_even_number_is_the_middle_of_two() {
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(median(vec![9.0, 1.0, 4.0]), Some(4.0));
        assert_eq!(median(Vec::new()), None);
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), "2.00 (1.00..3.00)");
    }
}
