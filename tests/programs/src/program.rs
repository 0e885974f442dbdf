//! Programs: what they are made of, how one is drawn, and how it is made simpler.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the attempt behind the first one waits; each further one waits twice as long.
pub(crate) const BACKOFF: Duration = Duration::from_millis(200);
/// How long an attempt may take that takes too long.
pub(crate) const TOO_LONG: Duration = Duration::from_secs(3);
/// How long all attempts of one that always fails may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(8);
/// How long one that no worker takes waits.
pub(crate) const UNSERVED: Duration = Duration::from_secs(5);
/// Most commands of one program.
const COMMANDS: u32 = 20;
/// Deepest nesting.
const LEVELS: u32 = 3;
/// What nobody waits for may sleep that long.
const LONGEST_MS: u64 = 90 * 24 * 3_600_000;

/// What one run is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// One after the other.
    pub steps: Vec<Step>,
    /// Then.
    pub finish: Finish,
    /// Signals that are sent and that no code reads.
    pub unread: u32,
}

/// A part of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its number within the program; the values it makes are made of it.
    pub id: u32,
    /// What it does.
    pub what: Do,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Do {
    /// An activity.
    Work(Work),
    /// An activity inside of the workflow's own worker.
    Local(Work),
    /// An activity whose outcome nobody waits for.
    Detached(Work),
    /// A durable timer.
    Sleep { ms: u64 },
    /// A time limit on something that never comes.
    TimeOut { ms: u64 },
    /// The next signal.
    Receive,
    /// A recorded value.
    Record,
    /// A condition that another branch makes true, behind an activity.
    Until(Work),
    /// All of these branches.
    All(Vec<Vec<Step>>),
    /// The first of several branches; only `winner` can come to an end. It is polled behind `place`
    /// of the losers.
    First { winner: Vec<Step>, losers: Vec<Loser>, place: usize },
    /// Waits for a cancel request, in a section of its own. At most one in a program.
    Section,
    /// Steps that a cancel request does not reach.
    Shield(Vec<Step>),
}

/// A branch that never comes to an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loser {
    /// A timer that is far off.
    Sleep { ms: u64 },
    /// An activity that runs until it is asked to stop.
    Work { id: u32, heartbeat_ms: u64 },
    /// A signal that nobody sends.
    Receive,
}

/// An activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// So many attempts fail first.
    pub fails: u32,
    /// How long an attempt takes.
    pub takes_ms: u64,
    /// How often it must give a sign of life, if at all.
    pub heartbeat_ms: Option<u64>,
    /// What becomes of it.
    pub fate: Fate,
}

/// What becomes of an activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It returns a value in the end.
    Value,
    /// It has only so many attempts.
    Limited { attempts: u32 },
    /// It fails in a way that no further attempt can help.
    Terminal,
    /// Every attempt takes longer than it may, and there are two.
    TooSlow,
    /// It fails until its deadline for all attempts.
    Deadline,
    /// No worker polls its queue.
    Unserved,
    /// It runs until it is asked to stop.
    Endless,
}

/// How a program comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// It returns what it has seen.
    Return,
    /// It returns an error.
    Fail,
    /// It waits for ever, until it is asked to stop.
    UntilCancelled,
    /// It waits for ever, until somebody ends it.
    UntilTerminated,
    /// It waits for ever, until its time is up.
    UntilTimedOut { ms: u64 },
}

/// How many commands are left, and the next step's number.
struct Budget {
    commands: u32,
    next: u32,
    section: bool,
}

impl Program {
    /// Draws a program.
    pub fn random(rng: &mut fastrand::Rng) -> Self {
        let commands = rng.u32(1..=COMMANDS);
        let mut budget = Budget { commands, next: 1, section: rng.u8(..) < 40 };
        let steps = budget.steps(rng, 1);
        let finish = match rng.u8(0..20) {
            0 => Finish::Fail,
            // A run is asked to stop once.
            1 | 2 if steps.iter().all(|step| step.what != Do::Section) => Finish::UntilCancelled,
            3 => Finish::UntilTerminated,
            4 => Finish::UntilTimedOut { ms: rng.u64(1..600_000) },
            _ => Finish::Return,
        };
        let unread = if rng.u8(0..4) == 0 { rng.u32(1..4) } else { 0 };
        Self { steps, finish, unread }
    }

    /// How many signals it reads.
    pub fn receives(&self) -> u32 {
        let mut count = 0;
        each(&self.steps, &mut |step| count += u32::from(step.what == Do::Receive));
        count
    }

    /// The step at which it waits for a cancel request, if it does: a section, or 0 for its end.
    pub fn waits_for_cancel(&self) -> Option<u32> {
        let section = self.steps.iter().find(|step| step.what == Do::Section);
        let at_end = self.finish == Finish::UntilCancelled;
        section.map(|step| step.id).or(at_end.then_some(0))
    }

    /// Whether it comes to its end without a word from anybody.
    pub fn needs_nobody(&self) -> bool {
        self.receives() == 0
            && self.waits_for_cancel().is_none()
            && self.finish != Finish::UntilTerminated
    }

    /// How long it takes if all goes well, roughly.
    pub fn lasts_ms(&self) -> u64 {
        fn of(steps: &[Step]) -> u64 {
            let one = |step: &Step| match &step.what {
                Do::Sleep { ms } | Do::TimeOut { ms } => *ms,
                Do::Work(work) | Do::Local(work) | Do::Until(work) => work.lasts_ms(),
                other => other.branches().iter().map(|one| of(one)).max().unwrap_or(0),
            };
            steps.iter().map(one).sum()
        }
        let waits_ms = match self.finish {
            Finish::UntilTimedOut { ms } => ms,
            Finish::Return | Finish::Fail | Finish::UntilCancelled | Finish::UntilTerminated => 0,
        };
        of(&self.steps) + waits_ms
    }

    /// The same program with timers that are so many times shorter, but for those that nobody
    /// waits for.
    #[must_use]
    pub fn hastened(mut self, times: u64) -> Self {
        fn hasten(steps: &mut [Step], times: u64) {
            for step in steps {
                match &mut step.what {
                    Do::Sleep { ms } | Do::TimeOut { ms } => *ms /= times,
                    other => {
                        other.branches_mut().iter_mut().for_each(|branch| hasten(branch, times));
                    }
                }
            }
        }
        hasten(&mut self.steps, times);
        if let Finish::UntilTimedOut { ms } = &mut self.finish {
            *ms = (*ms / times).max(1);
        }
        self
    }

    /// Programs that do a little less.
    pub fn simpler(&self) -> Vec<Self> {
        let mut all = Vec::new();
        for steps in simpler_steps(&self.steps) {
            all.push(Self { steps, ..self.clone() });
        }
        if self.finish != Finish::Return {
            all.push(Self { finish: Finish::Return, ..self.clone() });
        }
        if self.unread > 0 {
            all.push(Self { unread: 0, ..self.clone() });
        }
        all
    }
}

impl Do {
    /// The branches that stand within it.
    fn branches(&self) -> &[Vec<Step>] {
        match self {
            Self::All(branches) => branches,
            Self::First { winner: steps, .. } | Self::Shield(steps) => std::slice::from_ref(steps),
            Self::Work(_)
            | Self::Local(_)
            | Self::Detached(_)
            | Self::Sleep { .. }
            | Self::TimeOut { .. }
            | Self::Receive
            | Self::Record
            | Self::Until(_)
            | Self::Section => &[],
        }
    }

    fn branches_mut(&mut self) -> &mut [Vec<Step>] {
        match self {
            Self::All(branches) => branches,
            Self::First { winner: steps, .. } | Self::Shield(steps) => std::slice::from_mut(steps),
            Self::Work(_)
            | Self::Local(_)
            | Self::Detached(_)
            | Self::Sleep { .. }
            | Self::TimeOut { .. }
            | Self::Receive
            | Self::Record
            | Self::Until(_)
            | Self::Section => &mut [],
        }
    }
}

impl Work {
    /// How long all attempts take that it needs, roughly.
    fn lasts_ms(&self) -> u64 {
        let ms = |time: Duration| time.as_millis() as u64;
        match self.fate {
            Fate::Value | Fate::Limited { .. } | Fate::Terminal | Fate::Endless => {
                let waits = (0..self.fails).map(|failed| ms(BACKOFF) << failed).sum::<u64>();
                self.takes_ms * u64::from(self.fails + 1) + waits
            }
            Fate::TooSlow => ms(2 * TOO_LONG + BACKOFF),
            Fate::Deadline => ms(DEADLINE),
            Fate::Unserved => ms(UNSERVED),
        }
    }
}

/// Calls `f` with each step, those within others too.
pub(crate) fn each(steps: &[Step], f: &mut impl FnMut(&Step)) {
    for step in steps {
        f(step);
        step.what.branches().iter().for_each(|branch| each(branch, f));
    }
}

fn simpler_steps(steps: &[Step]) -> Vec<Vec<Step>> {
    let mut all = Vec::new();
    if steps.len() > 3 {
        all.push(steps[..steps.len() / 2].to_vec());
        all.push(steps[steps.len() / 2..].to_vec());
    }
    for at in 0..steps.len() {
        let mut without = steps.to_vec();
        let step = without.remove(at);
        all.push(without.clone());
        for what in simpler_step(&step.what) {
            let mut with = without.clone();
            with.insert(at, Step { what, ..step });
            all.push(with);
        }
        // What stands within it, in its place.
        for inner in step.what.branches() {
            let mut with = without.clone();
            with.splice(at..at, inner.iter().cloned());
            all.push(with);
        }
    }
    all
}

fn simpler_step(what: &Do) -> Vec<Do> {
    let plain = Work { fails: 0, takes_ms: 0, heartbeat_ms: None, fate: Fate::Value };
    match what {
        Do::Work(work) if *work != plain => vec![Do::Work(plain)],
        Do::Local(work) if *work != plain => vec![Do::Local(plain)],
        Do::Until(work) if *work != plain => vec![Do::Until(plain)],
        Do::Sleep { ms } if *ms > 1 => vec![Do::Sleep { ms: ms / 2 }],
        Do::All(branches) => {
            let mut all = Vec::new();
            for at in 0..branches.len() {
                for branch in simpler_steps(&branches[at]) {
                    let mut with = branches.clone();
                    with[at] = branch;
                    all.push(Do::All(with));
                }
            }
            all
        }
        Do::First { winner, losers, place } => {
            let mut all = Vec::new();
            for winner in simpler_steps(winner) {
                all.push(Do::First { winner, losers: losers.clone(), place: *place });
            }
            all
        }
        Do::Shield(steps) => simpler_steps(steps).into_iter().map(Do::Shield).collect(),
        Do::Work(_)
        | Do::Local(_)
        | Do::Detached(_)
        | Do::Sleep { .. }
        | Do::TimeOut { .. }
        | Do::Receive
        | Do::Record
        | Do::Until(_)
        | Do::Section => Vec::new(),
    }
}

impl Budget {
    fn spend(&mut self, commands: u32) -> bool {
        let enough = self.commands >= commands;
        if enough {
            self.commands -= commands;
        }
        enough
    }

    fn id(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    fn steps(&mut self, rng: &mut fastrand::Rng, level: u32) -> Vec<Step> {
        let mut steps = Vec::new();
        let most = if level == 1 { COMMANDS } else { rng.u32(1..4) };
        for _ in 0..most {
            match self.step(rng, level) {
                Some(step) => steps.push(step),
                None => break,
            }
        }
        steps
    }

    fn step(&mut self, rng: &mut fastrand::Rng, level: u32) -> Option<Step> {
        if !self.spend(1) {
            return None;
        }
        let id = self.id();
        let kinds = if level < LEVELS { 16 } else { 11 };
        let what = match rng.u8(0..kinds) {
            0..3 => Do::Work(work(rng)),
            3 | 4 => Do::Local(local_work(rng)),
            5 => Do::Sleep { ms: sleep_ms(rng) },
            6 => Do::TimeOut { ms: rng.u64(1..20_000) },
            7 => Do::Receive,
            8 => Do::Record,
            9 => Do::Until(Work { fate: Fate::Value, ..work(rng) }),
            10 => Do::Detached(Work { fate: Fate::Value, ..work(rng) }),
            11 | 12 => {
                let branches = rng.usize(2..4);
                Do::All((0..branches).map(|_| self.steps(rng, level + 1)).collect())
            }
            13 | 14 => {
                let losers: Vec<_> = (0..rng.usize(1..3)).filter_map(|_| self.loser(rng)).collect();
                let winner = self.steps(rng, level + 1);
                let place = rng.usize(0..=losers.len());
                Do::First { winner, losers, place }
            }
            _ if level == 1 && self.section && self.spend(1) => {
                self.section = false;
                Do::Section
            }
            _ => Do::Shield(self.steps(rng, level + 1)),
        };
        Some(Step { id, what })
    }

    fn loser(&mut self, rng: &mut fastrand::Rng) -> Option<Loser> {
        if !self.spend(1) {
            return None;
        }
        Some(match rng.u8(0..3) {
            0 => Loser::Sleep { ms: rng.u64(LONGEST_MS / 2..=LONGEST_MS) },
            1 => Loser::Work { id: self.id(), heartbeat_ms: rng.u64(2_000..10_000) },
            _ => Loser::Receive,
        })
    }
}

fn sleep_ms(rng: &mut fastrand::Rng) -> u64 {
    match rng.u8(0..20) {
        0 => 0,
        1..8 => rng.u64(1..1_000),
        8..17 => rng.u64(1_000..30_000),
        17 | 18 => rng.u64(30_000..300_000),
        _ => rng.u64(300_000..1_800_000),
    }
}

fn work(rng: &mut fastrand::Rng) -> Work {
    let fate = match rng.u8(0..20) {
        0 | 1 => Fate::Limited { attempts: rng.u32(1..4) },
        2 => Fate::Terminal,
        3 => Fate::TooSlow,
        4 => Fate::Deadline,
        5 => Fate::Unserved,
        _ => Fate::Value,
    };
    Work {
        fails: rng.u32(0..6).saturating_sub(3),
        takes_ms: if rng.bool() { 0 } else { rng.u64(1..4_000) },
        heartbeat_ms: (rng.u8(0..4) == 0).then(|| rng.u64(2_000..10_000)),
        fate,
    }
}

fn local_work(rng: &mut fastrand::Rng) -> Work {
    let fate = match rng.u8(0..8) {
        // One attempt cannot be promised inside of a worker.
        0 => Fate::Limited { attempts: rng.u32(2..4) },
        1 => Fate::Terminal,
        _ => Fate::Value,
    };
    // A task that is open for long has time to be given to another worker.
    let takes_ms = if rng.bool() { rng.u64(1..4_000) } else { 0 };
    Work { fails: rng.u32(0..5).saturating_sub(3), takes_ms, heartbeat_ms: None, fate }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> impl Iterator<Item = Program> {
        (0..500).map(|seed| Program::random(&mut fastrand::Rng::with_seed(seed)))
    }

    fn levels(steps: &[Step]) -> u32 {
        let inner =
            |step: &Step| step.what.branches().iter().map(|one| levels(one)).max().unwrap_or(0);
        1 + steps.iter().map(inner).max().unwrap_or(0)
    }

    #[test]
    fn programs_keep_to_their_bounds_and_numbers_are_given_once() {
        for program in programs() {
            let mut ids = std::collections::BTreeSet::new();
            each(&program.steps, &mut |step| assert!(ids.insert(step.id), "{program:#?}"));
            assert!(ids.len() <= COMMANDS as usize, "{program:#?}");
            assert!(levels(&program.steps) <= LEVELS, "{program:#?}");
        }
    }

    #[test]
    fn every_kind_of_step_is_drawn() {
        let mut kinds = std::collections::BTreeSet::new();
        for program in programs() {
            each(&program.steps, &mut |step| {
                let text = format!("{:?}", step.what);
                kinds.insert(text.split([' ', '(', '{']).next().unwrap().to_owned());
            });
        }
        assert_eq!(kinds.len(), 12, "{kinds:?}");
    }

    #[test]
    fn haste_changes_nothing_but_the_time() {
        let slow: Vec<_> = programs().collect();
        let quick: Vec<_> = programs().map(|program| program.hastened(60)).collect();
        let lasts = |all: &[Program]| all.iter().map(Program::lasts_ms).sum::<u64>();
        assert!(lasts(&quick) < lasts(&slow) / 4, "{} of {}", lasts(&quick), lasts(&slow));
        for (slow, quick) in slow.iter().zip(&quick) {
            assert_eq!(slow.receives(), quick.receives());
            assert_eq!(slow.waits_for_cancel(), quick.waits_for_cancel());
        }
    }

    #[test]
    fn shrinking_ends() {
        for program in programs().take(50) {
            let mut smallest = program;
            let mut rounds = 0;
            while let Some(simpler) = smallest.simpler().into_iter().next() {
                smallest = simpler;
                rounds += 1;
                assert!(rounds < 1_000, "{smallest:#?}");
            }
            assert_eq!(smallest, Program { steps: vec![], finish: Finish::Return, unread: 0 });
        }
    }
}
