//! What happens in a story, line by line: hashed whole, remembered at its end.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex},
    time::Duration,
};

use onward_checker::log::{Well, Window};
use tokio::time::Instant;
use uuid::Uuid;

/// How many lines are kept.
const LINES: usize = 200;

/// What became of a story, line by line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Stands for all lines.
    pub hash: u64,
    /// How many there were.
    pub count: u64,
    /// The last of them.
    pub last: Vec<String>,
}

/// The diary of a story that is being played.
#[derive(Clone)]
pub struct Diary {
    clock: Arc<dyn Fn() -> Duration + Send + Sync>,
    pages: Arc<Mutex<Pages>>,
}

struct Pages {
    hasher: DefaultHasher,
    count: u64,
    last: VecDeque<String>,
    counts: BTreeMap<String, u64>,
    disturbances: Vec<u64>,
    well: Vec<Well>,
    unwell: Vec<Window>,
    held: Vec<Window>,
}

impl fmt::Debug for Diary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Diary").finish_non_exhaustive()
    }
}

impl Diary {
    /// An empty diary, on Tokio's clock from now on.
    pub(crate) fn begin() -> Self {
        let dawn = Instant::now();
        Self::on(move || dawn.elapsed())
    }

    /// An empty diary on a clock that says how old the story is.
    pub fn on(clock: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        let pages = Pages {
            hasher: DefaultHasher::new(),
            count: 0,
            last: VecDeque::new(),
            counts: BTreeMap::new(),
            disturbances: Vec::new(),
            well: Vec::new(),
            unwell: Vec::new(),
            held: Vec::new(),
        };
        Self { clock: Arc::new(clock), pages: Arc::new(Mutex::new(pages)) }
    }

    /// Virtual time since the story began, in microseconds.
    pub fn now_us(&self) -> u64 {
        (self.clock)().as_micros() as u64
    }

    /// Something happens.
    pub fn write(&self, line: impl fmt::Display) {
        let line = format!("{:>12.6} {line}", (self.clock)().as_secs_f64());
        let mut pages = self.pages.lock().unwrap();
        line.hash(&mut pages.hasher);
        pages.count += 1;
        if pages.last.len() == LINES {
            pages.last.pop_front();
        }
        pages.last.push_back(line);
    }

    /// Something that a suite must have seen at least once.
    pub fn reached(&self, what: impl Into<String>) {
        *self.pages.lock().unwrap().counts.entry(what.into()).or_default() += 1;
    }

    /// Something broke that sessions, attempts or owners hang on.
    pub fn disturbed(&self) {
        let now = self.now_us();
        self.pages.lock().unwrap().disturbances.push(now);
    }

    /// When that was, in microseconds.
    pub fn disturbances(&self) -> Vec<u64> {
        self.pages.lock().unwrap().disturbances.clone()
    }

    /// These server processes are well from now on, and no others.
    pub(crate) fn are_well(&self, nodes: &[Uuid]) {
        let now_us = self.now_us();
        let mut pages = self.pages.lock().unwrap();
        let mut new = nodes.to_vec();
        for well in pages.well.iter_mut().filter(|well| well.to_us.is_none()) {
            match new.iter().position(|node| *node == well.node) {
                Some(at) => drop(new.swap_remove(at)),
                None => well.to_us = Some(now_us),
            }
        }
        pages.well.extend(new.into_iter().map(|node| Well { node, from_us: now_us, to_us: None }));
    }

    /// For so long from now on, the database does not do at once what it is asked.
    pub(crate) fn is_unwell(&self, lasts: Duration) {
        let window = self.lasting(lasts);
        self.pages.lock().unwrap().unwell.push(window);
    }

    /// For so long from now on, what a server sends may not get through.
    pub(crate) fn is_held(&self, lasts: Duration) {
        let window = self.lasting(lasts);
        self.pages.lock().unwrap().held.push(window);
    }

    fn lasting(&self, lasts: Duration) -> Window {
        let now_us = self.now_us();
        Window { from_us: now_us, to_us: now_us + lasts.as_micros() as u64 }
    }

    /// When servers and database were well or not, and what was sent was held up.
    pub(crate) fn health(&self) -> (Vec<Well>, Vec<Window>, Vec<Window>) {
        let pages = self.pages.lock().unwrap();
        (pages.well.clone(), pages.unwell.clone(), pages.held.clone())
    }

    /// How often what was reached.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.pages.lock().unwrap().counts.clone()
    }

    /// All that was written.
    pub fn trace(&self) -> Trace {
        let pages = self.pages.lock().unwrap();
        Trace {
            hash: pages.hasher.finish(),
            count: pages.count,
            last: pages.last.iter().cloned().collect(),
        }
    }
}

/// A source of chance for each part of a world: how often one is asked does not shift another.
pub fn chance(seed: u64, part: impl fmt::Display) -> fastrand::Rng {
    let mut hasher = DefaultHasher::new();
    (seed, part.to_string()).hash(&mut hasher);
    fastrand::Rng::with_seed(hasher.finish())
}
