//! Many stories, and what they add up to.

use std::{
    collections::BTreeMap,
    fmt,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    sync::{
        Mutex, Once,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use onward_checker::{Report, Verdict};

use crate::{
    story::Story,
    world::{PANICS, Played, play},
};

/// What a seed decides, and what is played then.
pub trait Tale: Clone + fmt::Debug + Send + Sized {
    /// What the layer of such stories is called.
    const LAYER: &'static str;
    /// From so many of them on, all of [`SOMETIMES`](Self::SOMETIMES) has to be reached.
    const MANY: u64;
    /// What must have happened in that many, or the rest says little.
    const SOMETIMES: &'static [&'static str];
    /// One in so many seeds is played twice.
    const TWICE: u64;

    /// That of a seed.
    fn of(seed: u64) -> Self;

    /// Its seed.
    fn seed(&self) -> u64;

    /// Those in which a little less happens.
    fn simpler(&self) -> Vec<Self>;

    /// Plays it on this thread.
    fn play(&self) -> Played;

    /// Whether it is the same when it is played again.
    fn repeats(&self) -> bool {
        true
    }

    /// What many of them add up to, in one line of figures.
    fn sum_up(summary: &Summary<Self>) -> String;
}

/// How long a story that fails is made smaller.
const SHRINK: Duration = Duration::from_mins(1);

/// What must have happened in a suite of some size, or the rest says little.
pub(crate) const SOMETIMES: &[&str] = &[
    "BreakLink",
    "Commit ghost",
    "Commit refused",
    "Commit reply lost",
    "Commit request lost",
    "Commit stolen",
    "CrashHost",
    "CrashWorker",
    "CutHost",
    "CutWorker",
    "FreezeHost",
    "Outage",
    "PowerCut",
    "Read refused",
    "ReadOnly",
    "Renew refused",
    "Renew stolen",
    "Resolve ghost",
    "Resolve refused",
    "Resolve reply lost",
    "Resolve request lost",
    "Resolve stolen",
    "Rewind",
    "SlowStore",
    "StallLink",
    "StepClock",
    "Take reply lost",
    "Take stolen",
    "Unreadable",
    "asked again",
    "away",
    "event ActivityCancelRequested",
    "event ActivityCancelled",
    "event ActivityCompleted",
    "event ActivityFailed Application",
    "event ActivityFailed Exhausted",
    "event ActivityFailed OutcomeUnknown",
    "event ActivityScheduled",
    "event ActivityTimedOut ScheduleToClose",
    "event ActivityTimedOut ScheduleToStart",
    "event ActivityTimedOut StartToClose",
    "event MarkerRecorded LocalActivity",
    "event MarkerRecorded RecordedValue",
    "event SignalReceived",
    "event TimerCancelled",
    "event TimerFired",
    "event WorkflowExecutionCancelRequested",
    "event WorkflowTaskCompleted more",
    "event WorkflowTaskCompleted untaken",
    "event WorkflowTaskFailed WorkerLost",
    "local retry",
    "refused AlreadyExists",
    "refused Invalid",
    "refused NotOpen",
    "retry",
    "signal at the end",
    "run Cancelled",
    "run Completed",
    "run Failed",
    "run Terminated",
    "run TimedOut",
];

/// Which stories to play.
#[derive(Debug, Clone, Copy)]
pub struct Suite {
    /// The first seed.
    pub first: u64,
    /// How many.
    pub seeds: u64,
    /// No further one begins after this time.
    pub within: Option<Duration>,
    /// Worlds that are played beside each other.
    pub threads: usize,
    /// Whether a story that fails is made smaller.
    pub shrink: bool,
}

/// A story that failed.
#[derive(Debug)]
pub struct Failure<T = Story> {
    /// As small as it could be made.
    pub story: T,
    /// What is wrong with it.
    pub wrong: String,
    /// The end of its trace.
    pub last: Vec<String>,
}

impl<T: Tale> fmt::Display for Failure<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.last {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "{:#?}", self.story)?;
        write!(f, "FAIL seed={} {}", self.story.seed(), self.wrong)
    }
}

/// What a suite adds up to.
#[derive(Debug)]
pub struct Summary<T = Story> {
    /// Stories that were played.
    pub seeds: u64,
    /// What the checker says of all of them.
    pub report: Report,
    counts: BTreeMap<String, u64>,
    /// How many were played twice, and were the same.
    pub twice: u64,
    /// How long they took there.
    pub virtual_time: Duration,
    /// How long they took here.
    pub wall: Duration,
    /// The first story that failed.
    pub failure: Option<Failure<T>>,
}

impl<T> Default for Summary<T> {
    fn default() -> Self {
        Self {
            seeds: 0,
            report: Report::default(),
            counts: BTreeMap::new(),
            twice: 0,
            virtual_time: Duration::ZERO,
            wall: Duration::ZERO,
            failure: None,
        }
    }
}

impl Suite {
    /// Plays its stories until one fails or all are done.
    pub fn run<T: Tale>(&self) -> Summary<T> {
        note_panics();
        let began = Instant::now();
        let next = AtomicU64::new(self.first);
        let summary = Mutex::new(Summary::default());
        let failed: Mutex<Option<(T, String)>> = Mutex::default();
        thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let late = self.within.is_some_and(|within| began.elapsed() > within);
                        if seed >= self.first + self.seeds
                            || late
                            || failed.lock().unwrap().is_some()
                        {
                            return;
                        }
                        let story = T::of(seed);
                        let played = match try_play(&story) {
                            Ok(played) => played,
                            Err(wrong) => {
                                failed.lock().unwrap().get_or_insert((story, wrong));
                                return;
                            }
                        };
                        let twice = seed.is_multiple_of(T::TWICE) || self.seeds == 1;
                        let twice = twice && story.repeats();
                        let mut wrong = first_wrong(&played);
                        if twice && wrong.is_none() {
                            wrong = try_play(&story)
                                .map_or_else(Some, |again| differs(&played, &again));
                        }
                        summary.lock().unwrap().add(played, twice);
                        if let Some(wrong) = wrong {
                            failed.lock().unwrap().get_or_insert((story, wrong));
                        }
                    }
                });
            }
        });
        let mut summary = summary.into_inner().unwrap();
        summary.failure = failed.into_inner().unwrap().map(|(story, wrong)| {
            if self.shrink {
                return shrink(story, wrong);
            }
            Failure { story, wrong, last: Vec::new() }
        });
        summary.wall = began.elapsed();
        summary
    }
}

/// Plays a story. One that cannot even be told to its end is as wrong as one that breaks a rule.
fn try_play<T: Tale>(story: &T) -> Result<Played, String> {
    // A story leaves nothing behind that the next one could meet.
    panic::catch_unwind(AssertUnwindSafe(|| story.play()))
        .map_err(|_| take_panics().into_iter().next().unwrap_or_else(|| PANIC.to_owned()))
}

/// A panic anywhere in a story is a violation, although its task alone dies of it.
fn first_wrong(played: &Played) -> Option<String> {
    let panic = played.panics.first().cloned();
    panic.or_else(|| played.report.violations().first().map(ToString::to_string))
}

/// What the description of a panic begins with.
const PANIC: &str = "panic";

/// Where and why something panicked, the reason's first line.
fn describe(info: &PanicHookInfo<'_>) -> String {
    let text = info.payload_as_str().unwrap_or("without a text");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    format!("{PANIC} at {place}: {}", text.lines().next().unwrap_or_default())
}

/// What two failures have in common that are one: the rule that is broken, or the panic.
fn rule(wrong: &str) -> &str {
    if wrong.starts_with(PANIC) { wrong } else { wrong.split(' ').next().unwrap_or_default() }
}

fn differs(one: &Played, other: &Played) -> Option<String> {
    if one.trace == other.trace {
        return None;
    }
    let lines = one.trace.last.iter().zip(&other.trace.last);
    let first = lines.clone().find(|(one, other)| one != other);
    Some(format!(
        "determinism: {} lines and {} lines, the first of the last that differ: {first:?}",
        one.trace.count, other.trace.count
    ))
}

/// Makes a story that fails smaller for as long as it still breaks the same rule.
fn shrink<T: Tale>(mut story: T, mut wrong: String) -> Failure<T> {
    let began = Instant::now();
    let broken = rule(&wrong).to_owned();
    'smaller: while began.elapsed() < SHRINK && !broken.starts_with("determinism") {
        for simpler in story.simpler() {
            if began.elapsed() >= SHRINK {
                break 'smaller;
            }
            let found = try_play(&simpler).map_or_else(Some, |played| first_wrong(&played));
            let found = found.filter(|wrong| rule(wrong) == broken);
            if let Some(found) = found {
                (story, wrong) = (simpler, found);
                continue 'smaller;
            }
        }
        break;
    }
    let last = try_play(&story).map_or_else(|_| Vec::new(), |played| played.trace.last);
    Failure { story, wrong, last }
}

impl<T: Tale> Summary<T> {
    fn add(&mut self, played: Played, twice: bool) {
        self.seeds += 1;
        self.twice += u64::from(twice);
        self.report.absorb(played.report);
        for (what, count) in played.counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.virtual_time += played.virtual_time;
    }

    /// How often such things happened.
    pub fn count(&self, what: impl Fn(&str) -> bool) -> u64 {
        self.counts.iter().filter(|(name, _)| what(name)).map(|(_, count)| count).sum()
    }

    /// What was never reached although it should have been.
    pub fn missed(&self) -> Vec<&'static str> {
        T::SOMETIMES.iter().copied().filter(|name| !self.counts.contains_key(*name)).collect()
    }

    /// What is wrong with the suite as a whole: a broken rule, or one that had nothing to look at.
    pub fn wrong(&self) -> Option<String> {
        if let Some(failure) = &self.failure {
            return Some(failure.wrong.clone());
        }
        match self.report.verdict() {
            Verdict::Fail => Some("a rule is broken".to_owned()),
            Verdict::Void(idle) => Some(format!("VOID: nothing to look at for {idle:?}")),
            Verdict::Pass => {
                let missed = self.missed();
                (!missed.is_empty()).then(|| format!("VOID: never reached {missed:?}"))
            }
        }
    }

    /// Runs that should have ended and did not.
    pub fn stuck(&self) -> usize {
        self.report.violations().iter().filter(|one| one.text.contains("not ended")).count()
    }

    /// How often what happened.
    pub fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }

    /// How many things each rule has looked at.
    pub fn looked(&self) -> &BTreeMap<&'static str, u64> {
        self.report.looked()
    }
}

impl<T: Tale> fmt::Display for Summary<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&T::sum_up(self))
    }
}

impl Tale for Story {
    const LAYER: &'static str = "sim";
    const MANY: u64 = 200;
    const SOMETIMES: &'static [&'static str] = SOMETIMES;
    const TWICE: u64 = 50;

    fn of(seed: u64) -> Self {
        Self::of(seed)
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn simpler(&self) -> Vec<Self> {
        self.simpler()
    }

    fn play(&self) -> Played {
        play(self)
    }

    fn sum_up(summary: &Summary) -> String {
        let days = summary.virtual_time.as_secs_f64() / 86_400.0;
        let ratio = summary.virtual_time.as_secs_f64() / summary.wall.as_secs_f64().max(0.001);
        let store = |name: &str| {
            ["refused", "lost", "ghost", "stolen"].iter().any(|end| name.ends_with(end))
        };
        format!(
            "seeds={} vtime={days:.2}d ratio={ratio:.0}x runs={} events={} acks={} unknown={} \
             crashes={} freezes={} links={} store_err={} clock={} rewinds={} sometimes={}/{} \
             determinism={}/{} violations={} stuck={} wall={:.0}s",
            summary.seeds,
            summary.count(|name| name.starts_with("run ")),
            summary.count(|name| name == "record"),
            summary.count(|name| name == "ack"),
            summary.count(|name| name == "unknown"),
            summary.count(|name| name.starts_with("Crash")),
            summary.count(|name| name == "FreezeHost"),
            summary.count(|name| name.ends_with("Link")),
            summary.count(store),
            summary.count(|name| name == "StepClock"),
            summary.count(|name| name == "Rewind"),
            SOMETIMES.len() - summary.missed().len(),
            SOMETIMES.len(),
            summary.twice,
            summary.twice,
            summary.report.violations().len(),
            summary.stuck(),
            summary.wall.as_secs_f64()
        )
    }
}

/// Where and why something panicked on this thread since this was asked last: when a story began.
pub fn take_panics() -> Vec<String> {
    PANICS.take()
}

/// Takes down every panic, also those of which a task alone dies.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(describe(info)));
            before(info);
        }));
    });
}
