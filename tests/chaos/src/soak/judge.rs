//! What a soak's samples say: whether anything grows that should not.
//!
//! Everything here is computed from the samples alone. A line through noisy points is the median of
//! the slopes between any two of them (Theil and Sen): a third of the points may be anywhere.

use std::{ops::Range, time::Duration};

/// What one process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Footprint {
    /// Bytes of memory of its own: pages of its files, which come as they are used, do not count.
    pub(super) memory: u64,
    /// Open descriptors.
    pub(super) fds: u64,
    /// Threads.
    pub(super) threads: u64,
}

/// What the database holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Footing {
    /// Bytes of all of it.
    pub(super) bytes: u64,
    /// Bytes of it that the server itself may keep in memory: pages of SQLite, up to a bound.
    pub(super) kept: u64,
    /// Bytes of what is rewritten all the time: tables `shard`, `batch` and `pending` with their
    /// indexes, or the write-ahead log of SQLite.
    pub(super) hot_bytes: u64,
    /// Rows of `batch` and `pending`.
    pub(super) hot_rows: u64,
    /// Dead rows of the same tables, or free pages of SQLite.
    pub(super) dead: u64,
    /// Sessions that have been idle within a transaction for longer than a moment.
    pub(super) idle_in_transaction: u64,
    /// How old the oldest transaction is.
    pub(super) oldest_transaction: Duration,
    /// Bytes of write-ahead log since the beginning; none of SQLite, which writes over its own.
    pub(super) wal: u64,
}

/// One look at everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sample {
    /// Since the beginning.
    pub(super) at: Duration,
    /// Programs that have ended.
    pub(super) ended: u64,
    /// Runs in the server's memory.
    pub(super) in_memory: u64,
    /// The server.
    pub(super) server: Footprint,
    /// The worker.
    pub(super) worker: Footprint,
    /// The database.
    pub(super) database: Footing,
}

/// What they say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing grows.
    Pass,
    /// These do.
    Fail(Vec<String>),
    /// Too little was seen to say so.
    Void(String),
}

/// Fewer samples say nothing,
const SAMPLES: usize = 20;
/// and so does less time: old batches go once a minute, and each half has to see that,
const TIME: Duration = Duration::from_secs(150);
/// and so do fewer programs.
const PROGRAMS: u64 = 300;
/// A share of all time at the beginning that is not looked at.
const WARM: f64 = 0.2;
/// Longest age of a transaction.
const OLD: Duration = Duration::from_secs(10);
/// The server's runs in memory have filled their room when so much is done,
const SETTLED: u64 = 200;
/// and of ten new runs no more than one makes them more.
const STAY: u64 = 10;

const MIB: f64 = 1_048_576.0;

/// Whether the runs that the server keeps have filled the room that they may take: what it holds
/// grows up to there by design.
pub(super) fn is_filled(samples: &[Sample]) -> bool {
    let Some(last) = samples.last() else { return false };
    let before = samples.iter().rev().find(|sample| sample.ended + SETTLED <= last.ended);
    before.is_some_and(|before| {
        last.in_memory <= before.in_memory + (last.ended - before.ended) / STAY
    })
}

/// The samples that count: behind the warm-up, and behind the moment at which the room was full.
/// `filled` is the number of that sample.
pub(super) fn counted(samples: &[Sample], filled: usize) -> Range<usize> {
    let lasted = samples.last().map_or(Duration::ZERO, |last| last.at);
    let warm = samples.iter().position(|sample| sample.at >= lasted.mul_f64(WARM));
    filled.max(warm.unwrap_or(samples.len())).min(samples.len())..samples.len()
}

/// Judges a whole soak; `filled` is the sample by which the server's room for runs was full.
pub(super) fn judge(samples: &[Sample], filled: Option<usize>) -> Verdict {
    let mut wrong = stuck(samples);
    let Some(filled) = filled else {
        let void = "the server's room for closed runs was not full in time".to_owned();
        return if wrong.is_empty() { Verdict::Void(void) } else { Verdict::Fail(wrong) };
    };
    let counted = &samples[counted(samples, filled)];
    let seen = Window::of(counted);
    if counted.len() < SAMPLES || seen.time < TIME || seen.programs < PROGRAMS {
        let void = format!(
            "{} samples of {:.0} s and {} programs say nothing",
            counted.len(),
            seen.time.as_secs_f64(),
            seen.programs
        );
        return if wrong.is_empty() { Verdict::Void(void) } else { Verdict::Fail(wrong) };
    }
    wrong.extend(flat(counted));
    wrong.extend(bounded(counted));
    wrong.extend(growing(counted));
    if wrong.is_empty() { Verdict::Pass } else { Verdict::Fail(wrong) }
}

/// What happened from the first of some samples to the last.
struct Window {
    time: Duration,
    programs: u64,
}

impl Window {
    fn of(samples: &[Sample]) -> Self {
        let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
            return Self { time: Duration::ZERO, programs: 0 };
        };
        Self { time: last.at.saturating_sub(first.at), programs: last.ended - first.ended }
    }
}

/// Transactions that somebody forgot.
fn stuck(samples: &[Sample]) -> Vec<String> {
    let mut wrong = Vec::new();
    let idle = samples.iter().filter(|sample| sample.database.idle_in_transaction > 0).count();
    if idle > 0 {
        wrong.push(format!("sessions were idle in a transaction, in {idle} samples"));
    }
    let oldest = samples.iter().map(|sample| sample.database.oldest_transaction).max();
    if let Some(oldest) = oldest.filter(|oldest| *oldest > OLD) {
        wrong.push(format!("a transaction lasted {:.1} s", oldest.as_secs_f64()));
    }
    wrong
}

/// One number of a sample.
type Of = fn(&Sample) -> f64;

/// A number that must not grow, and how much a line through it may rise all the same: at least so
/// much, or a share of what there is.
struct Flat {
    what: &'static str,
    of: Of,
    slack: f64,
    share: f64,
}

const FLAT: [Flat; 6] = [
    Flat { what: "server memory", of: own_memory, slack: 6.0 * MIB, share: 0.05 },
    Flat { what: "worker memory", of: worker_memory, slack: 6.0 * MIB, share: 0.05 },
    Flat { what: "server descriptors", of: server_fds, slack: 4.0, share: 0.0 },
    Flat { what: "worker descriptors", of: worker_fds, slack: 4.0, share: 0.0 },
    Flat { what: "server threads", of: |one| one.server.threads as f64, slack: 4.0, share: 0.0 },
    Flat { what: "worker threads", of: |one| one.worker.threads as f64, slack: 4.0, share: 0.0 },
];

/// Bytes of the server's memory.
pub(super) fn server_memory(sample: &Sample) -> f64 {
    sample.server.memory as f64
}

/// The same, without what it may keep of the database's file: it fills that room as the file grows.
fn own_memory(sample: &Sample) -> f64 {
    server_memory(sample) - sample.database.kept as f64
}

/// Bytes of the worker's memory.
pub(super) fn worker_memory(sample: &Sample) -> f64 {
    sample.worker.memory as f64
}

fn server_fds(sample: &Sample) -> f64 {
    sample.server.fds as f64
}

fn worker_fds(sample: &Sample) -> f64 {
    sample.worker.fds as f64
}

fn flat(samples: &[Sample]) -> Vec<String> {
    let hours = Window::of(samples).time.as_secs_f64() / 3_600.0;
    let grown = FLAT.iter().filter_map(|flat| {
        let rise = slope_per_hour(samples, flat.of) * hours;
        let allowed = flat.slack.max(flat.share * median(samples.iter().map(flat.of).collect()));
        (rise > allowed)
            .then(|| format!("{}: {rise:.0} more, up to {allowed:.0} is noise", flat.what))
    });
    grown.collect()
}

/// What fills and empties all the time (old batches go once a minute, dead rows when Postgres finds
/// the time): the most of the second half is no more than the most of the first, and something.
fn bounded(samples: &[Sample]) -> Vec<String> {
    let rules: [(&str, Of, f64); 3] = [
        ("bytes of the hot tables", |one| one.database.hot_bytes as f64, 4.0 * MIB),
        ("rows of the hot tables", |one| one.database.hot_rows as f64, 2_000.0),
        ("dead rows of the hot tables", |one| one.database.dead as f64, 4_000.0),
    ];
    let (first, second) = samples.split_at(samples.len() / 2);
    let most = |half: &[Sample], of: Of| half.iter().map(of).fold(0.0, f64::max);
    let grown = rules.into_iter().filter_map(|(what, of, slack)| {
        let (before, after) = (most(first, of), most(second, of));
        let allowed = before + slack.max(before / 4.0);
        (after > allowed).then(|| format!("{what}: {before:.0}, and {after:.0} in the second half"))
    });
    grown.collect()
}

/// What grows with each program by design grows by as much in the second half as in the first.
fn growing(samples: &[Sample]) -> Option<String> {
    let (first, second) = samples.split_at(samples.len() / 2);
    let before = bytes_per_program(first)?;
    let after = bytes_per_program(second)?;
    (after > before + (before / 3.0).max(2_048.0))
        .then(|| format!("a program takes {before:.0} bytes, and {after:.0} in the second half"))
}

/// Bytes by which the database grows with each program.
pub(super) fn bytes_per_program(samples: &[Sample]) -> Option<f64> {
    let programs = Window::of(samples).programs;
    let (first, last) = (samples.first()?, samples.last()?);
    (programs > 0)
        .then(|| last.database.bytes.saturating_sub(first.database.bytes) as f64 / programs as f64)
}

/// How much a number grows in an hour.
pub(super) fn slope_per_hour(samples: &[Sample], of: Of) -> f64 {
    let mut slopes = Vec::new();
    for (place, from) in samples.iter().enumerate() {
        for to in &samples[place + 1..] {
            let hours = (to.at.saturating_sub(from.at)).as_secs_f64() / 3_600.0;
            if hours > 0.0 {
                slopes.push((of(to) - of(from)) / hours);
            }
        }
    }
    median(slopes)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    /// A quarter of an hour in which nothing grows but what should, with noise on everything.
    fn good() -> Vec<Sample> {
        let mut rng = fastrand::Rng::with_seed(1);
        let sample = |n: u64| {
            let mut noise = |most: u64| rng.u64(0..most);
            Sample {
                at: Duration::from_secs(5 * n),
                ended: 100 * n,
                in_memory: (100 * n).min(1_500) + noise(5),
                server: Footprint {
                    memory: 80 * MB + n.min(20) * MB + noise(8 * MB),
                    fds: 60 + noise(6),
                    threads: 7,
                },
                worker: Footprint { memory: 40 * MB + noise(3 * MB), fds: 20, threads: 12 },
                database: Footing {
                    bytes: 20 * MB + n * 100 * 9_000,
                    kept: 0,
                    hot_bytes: 2 * MB,
                    // Old ones go once a minute.
                    hot_rows: 2_000 + n % 12 * 150 + noise(50),
                    dead: n % 13 * 400,
                    idle_in_transaction: 0,
                    oldest_transaction: Duration::from_millis(noise(40)),
                    wal: n * MB,
                },
            }
        };
        (0..180).map(sample).collect()
    }

    /// Judges as a soak does.
    fn judged(samples: &[Sample]) -> Verdict {
        judge(samples, (1..=samples.len()).find(|n| is_filled(&samples[..*n])))
    }

    fn spoilt(spoil: impl Fn(u64, &mut Sample)) -> Verdict {
        let mut samples = good();
        for (n, sample) in (0..).zip(&mut samples) {
            spoil(n, sample);
        }
        judged(&samples)
    }

    type Spoil = fn(u64, &mut Sample);

    #[test]
    fn noise_and_what_grows_by_design_pass() {
        assert_eq!(judged(&good()), Verdict::Pass);
        // A burst here and there is no leak.
        let bursts = spoilt(|n, sample| sample.server.memory += u64::from(n % 9 == 0) * 50 * MB);
        assert_eq!(bursts, Verdict::Pass);
        // Pages of SQLite's file are kept, and are the server's memory.
        let pages = spoilt(|n, sample| {
            sample.database.kept = (20 + n) * MB;
            sample.server.memory += sample.database.kept;
        });
        assert_eq!(pages, Verdict::Pass);
    }

    #[test]
    fn each_leak_is_found_and_named() {
        let leaks: [(&str, Spoil); 13] = [
            // A kilobyte for each program.
            ("server memory", |_, one| one.server.memory += one.ended * 1_024),
            ("worker memory", |_, one| one.worker.memory += one.ended * 1_024),
            ("server descriptors", |n, one| one.server.fds += n / 12),
            ("worker descriptors", |n, one| one.worker.fds += n / 12),
            ("server threads", |n, one| one.server.threads += n / 12),
            ("worker threads", |n, one| one.worker.threads += n / 12),
            ("bytes of the hot tables", |n, one| one.database.hot_bytes += n * 100_000),
            ("rows of the hot tables", |n, one| one.database.hot_rows += n * 50),
            ("dead rows of the hot tables", |n, one| one.database.dead += n * 120),
            ("a program takes", |n, one| one.database.bytes += n * n * 4_000),
            ("idle in a transaction", |n, one| {
                one.database.idle_in_transaction = u64::from(n == 2);
            }),
            ("a transaction lasted", |n, one| {
                one.database.oldest_transaction += Duration::from_secs(if n > 170 { n } else { 0 });
            }),
            // It grows at the beginning alone, and that is behind the warm-up.
            ("server memory", |n, one| one.server.memory += n.saturating_sub(36).min(90) * MB / 4),
        ];
        for (what, leak) in leaks {
            let verdict = spoilt(leak);
            let named = |wrong: &String| wrong.contains(what);
            let found =
                matches!(&verdict, Verdict::Fail(wrong) if wrong.len() == 1 && named(&wrong[0]));
            assert!(found, "{what}: {verdict:?}");
        }
    }

    #[test]
    fn too_little_is_no_pass() {
        assert!(matches!(judged(&[]), Verdict::Void(_)));
        assert!(matches!(judged(&good()[..30]), Verdict::Void(_)));
        let idle = spoilt(|n, sample| sample.ended = 1_600 + n);
        assert!(matches!(idle, Verdict::Void(_)), "{idle:?}");
        let never_full = spoilt(|_, sample| sample.in_memory = sample.ended);
        assert!(matches!(never_full, Verdict::Void(_)), "{never_full:?}");
    }

    #[test]
    fn the_room_is_full_when_new_runs_take_the_place_of_old_ones() {
        let samples = good();
        let filled = (1..=samples.len()).find(|n| is_filled(&samples[..*n])).unwrap();
        assert!((16..=18).contains(&filled), "{filled}");
        assert!(!is_filled(&samples[..1]));
    }
}
