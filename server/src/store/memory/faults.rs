//! What befalls a call to the in-memory store, decided from outside.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Which kind of call is about to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallKind {
    /// `shards`.
    Shards,
    /// `take`.
    Take,
    /// `commit`.
    Commit,
    /// `resolve`.
    Resolve,
    /// `renew`.
    Renew,
    /// `release`.
    Release,
    /// `prune_batches`.
    Prune,
    /// Any of the plain reads.
    Read,
}

impl CallKind {
    /// Whether the call may change the database.
    pub fn is_write(self) -> bool {
        !matches!(self, Self::Read)
    }
}

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered `Unavailable`; not applied.
    Refuse,
    /// The connection breaks before the request arrives: `Unknown`, not applied.
    LoseRequest,
    /// The connection breaks before the reply arrives: `Unknown`, applied.
    LoseReply,
    /// `Unknown` now, while the statement is still on its way. It arrives once this much time has
    /// passed by the database's clock, or with [`super::MemoryStore::land_ghosts`] at the latest.
    Ghost(Option<Duration>),
    /// Just before the call another node takes the shard and gives it up again.
    Steal,
    /// Just before the call the database loses its newest so many transactions.
    Rewind(usize),
}

/// How one call goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    /// How long the request travels.
    pub before: Duration,
    /// How long the reply travels.
    pub after: Duration,
    /// What goes wrong. A fault that only a write can meet refuses a read.
    pub fault: Option<Fault>,
}

impl Plan {
    /// A quick call that meets `fault`.
    pub fn fault(fault: Fault) -> Self {
        Self { fault: Some(fault), ..Self::default() }
    }
}

type Planner = Box<dyn FnMut(CallKind) -> Plan + Send>;

#[derive(Default)]
struct State {
    planner: Option<Planner>,
    scripted: VecDeque<(CallKind, Plan)>,
    calls: u64,
}

/// The hand on the faults of one [`super::MemoryStore`].
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faults")
    }
}

impl Faults {
    /// Asks `planner` about every call that no script names, for example with a seeded generator
    /// inside.
    pub fn set_planner(&self, planner: impl FnMut(CallKind) -> Plan + Send + 'static) {
        self.lock().planner = Some(Box::new(planner));
    }

    /// Ends all faults, scripted ones too.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.planner = None;
        state.scripted.clear();
    }

    /// The next call of this kind that has no script yet goes by `plan`.
    pub fn script(&self, kind: CallKind, plan: Plan) {
        self.lock().scripted.push_back((kind, plan));
    }

    /// The next call of this kind that has no script yet meets `fault`.
    pub fn push(&self, kind: CallKind, fault: Fault) {
        self.script(kind, Plan::fault(fault));
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    pub(super) fn plan(&self, kind: CallKind) -> Plan {
        let mut state = self.lock();
        state.calls += 1;
        if let Some(at) = state.scripted.iter().position(|(scripted, _)| *scripted == kind) {
            return state.scripted.remove(at).map_or_else(Plan::default, |(_, plan)| plan);
        }
        state.planner.as_mut().map_or_else(Plan::default, |planner| planner(kind))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
