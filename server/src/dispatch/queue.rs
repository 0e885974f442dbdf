//! One task queue: what waits, in order, and who serves it.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use onward_proto::{NamespaceId, RunId};

use super::{Kind, Session};
use crate::{engine::SessionId, store::ShardId};

/// A task that a lane has to give away.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The lane.
    pub shard: ShardId,
    /// The run.
    pub run_id: RunId,
    /// Its namespace.
    pub namespace_id: NamespaceId,
    /// The queue it goes to.
    pub task_queue: String,
    /// What the worker must have.
    pub type_name: String,
    /// What it is.
    pub kind: OfferKind,
    /// Its place in the queue.
    pub rank: Rank,
}

impl Offer {
    /// The run, and the activity unless it is a workflow task.
    pub(super) fn what(&self) -> (RunId, Option<u32>) {
        let activity = match self.kind {
            OfferKind::Task { .. } => None,
            OfferKind::Activity { number } => Some(number),
        };
        (self.run_id, activity)
    }
}

/// What is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferKind {
    /// A workflow task; the session that has the run in its cache is preferred.
    Task {
        /// That session.
        sticky: Option<SessionId>,
    },
    /// The next attempt of an activity.
    Activity {
        /// The activity.
        number: u32,
    },
}

/// The order of dispatch: priority, then runs in progress before new ones, then age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Higher goes first.
    pub priority: Reverse<i32>,
    /// False goes first: a run in progress is not new.
    pub new: bool,
    /// Given by the dispatch: first come, first served.
    pub age: u64,
}

impl Rank {
    /// A rank among offers of this priority.
    pub fn new(priority: i32, new: bool) -> Self {
        Self { priority: Reverse(priority), new, age: 0 }
    }
}

/// An offer and the session that takes it, the credit already counted.
#[derive(Debug)]
pub struct Match {
    /// The offer.
    pub offer: Offer,
    /// The session.
    pub session: Arc<Session>,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By type, each in order: a session that has few of the types finds its own at once.
    offers: BTreeMap<String, BTreeMap<Rank, Offer>>,
    /// The rank of what is offered: each thing waits in one place.
    ranks: BTreeMap<(RunId, Option<u32>), Rank>,
    sessions: Vec<Arc<Session>>,
    /// Where the search for a session with a credit begins, so that all get their share.
    turn: usize,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.offers.is_empty() && self.sessions.is_empty()
    }

    pub(super) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn serves(&self, session: SessionId) -> bool {
        self.sessions.iter().any(|known| known.id() == session)
    }

    pub(super) fn offers(&self) -> usize {
        self.offers.values().map(BTreeMap::len).sum()
    }

    /// Lets an offer wait. One of the same thing that waits already is replaced, in its place.
    pub(super) fn push(&mut self, mut offer: Offer) {
        offer.rank = *self.ranks.entry(offer.what()).or_insert(offer.rank);
        let name = offer.type_name.clone();
        self.offers.entry(name).or_default().insert(offer.rank, offer);
    }

    /// Takes an offer back, if it waits here.
    pub(super) fn withdraw(&mut self, what: (RunId, Option<u32>)) {
        let Some(rank) = self.ranks.remove(&what) else { return };
        self.offers.retain(|_, offers| {
            offers.remove(&rank);
            !offers.is_empty()
        });
    }

    pub(super) fn join(&mut self, session: Arc<Session>) {
        self.sessions.push(session);
    }

    pub(super) fn leave(&mut self, session: SessionId) {
        self.sessions.retain(|known| known.id() != session);
    }

    pub(super) fn drop_lane(&mut self, shard: ShardId) {
        let ranks = &mut self.ranks;
        self.offers.retain(|_, offers| {
            offers.retain(|_, offer| {
                if offer.shard == shard {
                    ranks.remove(&offer.what());
                }
                offer.shard != shard
            });
            !offers.is_empty()
        });
    }

    /// Finds a session with a credit for a new offer and counts the credit.
    ///
    /// The cached run's own session goes first. Otherwise a session that has the type; only when
    /// no session of the queue has it does any other get the task, to tell what it has instead.
    pub(super) fn take_session(&mut self, offer: &Offer) -> Option<Arc<Session>> {
        let kind = offer.kind.kind();
        if let OfferKind::Task { sticky: Some(sticky) } = offer.kind
            && let Some(session) = self.sessions.iter().find(|session| session.id() == sticky)
            && session.take(offer.shard, kind)
        {
            return Some(Arc::clone(session));
        }
        let known = self.is_known(kind, &offer.type_name);
        let count = self.sessions.len();
        for step in 0..count {
            let session = &self.sessions[(self.turn + step) % count];
            if (!known || session.knows(kind, &offer.type_name)) && session.take(offer.shard, kind)
            {
                self.turn = (self.turn + step + 1) % count;
                return Some(Arc::clone(session));
            }
        }
        None
    }

    /// The best offer that a session with a credit can take, the credit then counted.
    pub(super) fn pop_for(&mut self, session: &Session) -> Option<Offer> {
        let first = |(name, offers): (&'_ String, &BTreeMap<Rank, Offer>)| {
            let (rank, offer) = offers.first_key_value()?;
            let kind = offer.kind.kind();
            let takes = session.knows(kind, name) || !self.is_known(kind, name);
            takes.then_some((*rank, offer.shard, kind))
        };
        let best = self.offers.iter().filter_map(|entry| Some((first(entry)?, entry.0)));
        let ((rank, shard, kind), name) = best.min_by_key(|((rank, ..), _)| *rank)?;
        if !session.take(shard, kind) {
            return None;
        }
        let name = name.clone();
        let offers = self.offers.get_mut(&name)?;
        let offer = offers.remove(&rank)?;
        if offers.is_empty() {
            self.offers.remove(&name);
        }
        self.ranks.remove(&offer.what());
        Some(offer)
    }

    fn is_known(&self, kind: Kind, type_name: &str) -> bool {
        self.sessions.iter().any(|session| session.knows(kind, type_name))
    }
}
