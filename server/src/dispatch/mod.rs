//! Where workers meet work: task queues and sessions, in memory.
//!
//! A lane offers a task; if a session of that queue has a credit the lane gets the session at once
//! and builds the task, else the offer waits, and the lane hears of it when a credit comes free.
//! Offers are rebuilt from run state after a load; nobody polls tables for work.
//!
//! Invariants:
//! - A credit is taken before a lane hears of a match, and given back when the completion arrives.
//! - A thing is offered once: offered again it keeps its place.
//! - A stale match is harmless: the lane looks at the run again and gives the credit back.
//!
//! What this module never does: decide whether a task is owed, or send anything by itself.

#[cfg(test)]
pub(crate) mod fixture;
mod outbox;
mod queue;
mod session;

#[cfg(test)]
mod properties;

pub use outbox::Outbox;
pub use queue::{Match, Offer, OfferKind, Rank};
pub use session::{Session, SessionInfo};

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use onward_proto::{NamespaceId, RunId};
use queue::Queue;

use crate::{engine::SessionId, store::ShardId};

/// All task queues and sessions of a node.
#[derive(Debug, Default)]
pub struct Dispatch {
    inner: Mutex<Inner>,
}

/// Names a task queue of one kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct QueueKey {
    namespace_id: NamespaceId,
    kind: Kind,
    name: String,
}

/// Workflow and activity tasks are counted and queued apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Advance a run.
    Workflow,
    /// Call a function.
    Activity,
}

#[derive(Debug, Default)]
struct Inner {
    queues: BTreeMap<QueueKey, Queue>,
    sessions: BTreeMap<SessionId, Arc<Session>>,
    age: u64,
    /// The node drains: no session begins any more.
    is_closing: bool,
}

impl Dispatch {
    /// Offers a task. Gives the session that takes it, its credit already counted, or keeps the
    /// offer until [`Dispatch::release`] or a new session finds it a match.
    pub fn offer(&self, mut offer: Offer) -> Option<Arc<Session>> {
        let mut inner = self.lock();
        inner.age += 1;
        offer.rank.age = inner.age;
        let key = QueueKey {
            namespace_id: offer.namespace_id,
            kind: offer.kind.kind(),
            name: offer.task_queue.clone(),
        };
        let queue = inner.queues.entry(key).or_default();
        // Older offers wait for a credit: this one may not overtake them, unless its own session
        // has the run in its cache.
        if let Some(session) = queue.take_session(&offer) {
            queue.withdraw(offer.what());
            return Some(session);
        }
        queue.push(offer);
        None
    }

    /// Takes an offer back that waits for a session: a workflow task, or an activity by its number.
    pub fn withdraw(&self, run_id: RunId, activity: Option<u32>) {
        let kind = if activity.is_some() { Kind::Activity } else { Kind::Workflow };
        let mut inner = self.lock();
        for (key, queue) in &mut inner.queues {
            if key.kind == kind {
                queue.withdraw((run_id, activity));
            }
        }
        inner.queues.retain(|_, queue| !queue.is_empty());
    }

    /// Gives a credit back, and finds what the session does next.
    pub fn release(&self, session: &Session, shard: ShardId, kind: Kind) -> Option<Match> {
        session.give_back(shard, kind);
        self.next_for(session.id(), kind)
    }

    /// The best waiting offer for a session that has a credit, which is then counted.
    pub fn next_for(&self, session: SessionId, kind: Kind) -> Option<Match> {
        let mut inner = self.lock();
        let session = Arc::clone(inner.sessions.get(&session)?);
        let key = QueueKey {
            namespace_id: session.info().namespace_id,
            kind,
            name: session.info().task_queue.clone(),
        };
        let queue = inner.queues.get_mut(&key)?;
        // A session that has left the queue comes to its end with what it holds.
        let offer = queue.serves(session.id()).then(|| queue.pop_for(&session))??;
        Some(Match { offer, session })
    }

    /// Opens a session, unless the node drains.
    #[must_use]
    pub fn open(&self, session: Arc<Session>) -> bool {
        let mut inner = self.lock();
        if inner.is_closing {
            return false;
        }
        for kind in [Kind::Workflow, Kind::Activity] {
            let key = QueueKey {
                namespace_id: session.info().namespace_id,
                kind,
                name: session.info().task_queue.clone(),
            };
            inner.queues.entry(key).or_default().join(Arc::clone(&session));
        }
        inner.sessions.insert(session.id(), session);
        true
    }

    /// Opens no further session from now on. Nobody would end one that began behind the drain, and
    /// its connection would keep the server from ending.
    pub fn refuse_sessions(&self) {
        self.lock().is_closing = true;
    }

    /// Takes a session out of its queues: nothing more is matched to it.
    pub fn retire(&self, session: SessionId) {
        let mut inner = self.lock();
        for queue in inner.queues.values_mut() {
            queue.leave(session);
        }
        inner.queues.retain(|_, queue| !queue.is_empty());
    }

    /// Forgets a session.
    pub fn close(&self, session: SessionId) {
        self.retire(session);
        self.lock().sessions.remove(&session);
    }

    /// A session that is open.
    pub fn session(&self, session: SessionId) -> Option<Arc<Session>> {
        self.lock().sessions.get(&session).cloned()
    }

    /// All open sessions.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().sessions.values().cloned().collect()
    }

    /// How many sessions serve a task queue.
    pub fn pollers(&self, namespace_id: NamespaceId, task_queue: &str) -> usize {
        let key = QueueKey { namespace_id, kind: Kind::Workflow, name: task_queue.to_owned() };
        self.lock().queues.get(&key).map_or(0, Queue::sessions)
    }

    /// Forgets all offers of a lane that has died, and what its sessions held of it. Gives what they
    /// do next with the credits that come back.
    #[must_use]
    pub fn drop_lane(&self, shard: ShardId) -> Vec<Match> {
        let mut inner = self.lock();
        for queue in inner.queues.values_mut() {
            queue.drop_lane(shard);
        }
        inner.queues.retain(|_, queue| !queue.is_empty());
        let sessions: Vec<_> = inner.sessions.values().cloned().collect();
        drop(inner);
        let mut found = Vec::new();
        for session in sessions {
            session.forget_lane(shard);
            for kind in [Kind::Workflow, Kind::Activity] {
                found.extend(std::iter::from_fn(|| self.next_for(session.id(), kind)));
            }
        }
        found
    }

    /// Offers that wait, for metrics: workflow tasks and activity tasks.
    pub fn backlog(&self) -> (usize, usize) {
        let inner = self.lock();
        let count = |kind| {
            inner.queues.iter().filter(|(key, _)| key.kind == kind).map(|(_, q)| q.offers()).sum()
        };
        (count(Kind::Workflow), count(Kind::Activity))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OfferKind {
    /// Which credit it takes.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Task { .. } => Kind::Workflow,
            Self::Activity { .. } => Kind::Activity,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{
        fixture::{SHARD, offer, session},
        *,
    };

    #[test]
    fn a_session_finds_its_own_offer_behind_any_number_of_others() {
        let dispatch = Dispatch::default();
        let (busy, free) = (session(1, "a", 0), session(2, "b", 1));
        assert!(dispatch.open(Arc::clone(&busy)) && dispatch.open(Arc::clone(&free)));
        assert_eq!(dispatch.offer(offer(0, "b")).unwrap().id(), free.id());
        for n in 1..1_000 {
            assert!(dispatch.offer(offer(n, "a")).is_none());
        }
        assert!(dispatch.offer(offer(1_000, "b")).is_none());
        assert!(dispatch.offer(offer(1_001, "b")).is_none());
        let found = dispatch.release(&free, SHARD, Kind::Activity).unwrap();
        assert_eq!(found.offer.run_id, offer(1_000, "b").run_id);
        let found = dispatch.release(&free, SHARD, Kind::Activity).unwrap();
        assert_eq!(found.offer.run_id, offer(1_001, "b").run_id);
        assert!(dispatch.release(&free, SHARD, Kind::Activity).is_none());
        assert_eq!(dispatch.backlog(), (0, 999));
        assert!(dispatch.drop_lane(SHARD).is_empty());
        assert_eq!(dispatch.backlog(), (0, 0));
    }

    #[test]
    fn credits_that_a_dead_lane_held_go_to_what_waits_of_others() {
        let dispatch = Dispatch::default();
        let session = session(1, "a", 2);
        assert!(dispatch.open(Arc::clone(&session)));
        for n in [1, 2] {
            assert!(dispatch.offer(offer(n, "a")).is_some());
        }
        let other = ShardId(1);
        for n in [3, 4, 5] {
            assert!(dispatch.offer(Offer { shard: other, ..offer(n, "a") }).is_none());
        }
        let found = dispatch.drop_lane(SHARD);
        let found: Vec<_> = found.iter().map(|found| found.offer.run_id).collect();
        assert_eq!(found, [3, 4].map(|n| offer(n, "a").run_id));
        assert_eq!(dispatch.backlog(), (0, 1));
    }

    #[test]
    fn a_session_that_has_retired_gets_nothing_when_it_ends_what_it_holds() {
        let dispatch = Dispatch::default();
        let session = session(1, "a", 1);
        assert!(dispatch.open(Arc::clone(&session)));
        assert!(dispatch.offer(offer(1, "a")).is_some());
        assert!(dispatch.offer(offer(2, "a")).is_none());
        dispatch.retire(session.id());
        assert!(dispatch.release(&session, SHARD, Kind::Activity).is_none());
    }

    #[test]
    fn a_thing_that_is_offered_again_keeps_its_place() {
        let dispatch = Dispatch::default();
        let session = session(1, "a", 0);
        assert!(dispatch.open(Arc::clone(&session)));
        for n in [1, 2, 1] {
            assert!(dispatch.offer(offer(n, "a")).is_none());
        }
        assert_eq!(dispatch.backlog(), (0, 2));
        session.set_credits(0, 3);
        let next = || dispatch.next_for(session.id(), Kind::Activity);
        assert_eq!(next().unwrap().offer.run_id, offer(1, "a").run_id);
        assert_eq!(next().unwrap().offer.run_id, offer(2, "a").run_id);
        assert!(next().is_none());
    }

    #[test]
    fn a_higher_priority_goes_first_then_a_run_in_progress_then_the_oldest() {
        let dispatch = Dispatch::default();
        let session = session(1, "a", 0);
        assert!(dispatch.open(Arc::clone(&session)));
        let ranks = [(0, true), (0, false), (-1, false), (1, true), (0, false)];
        for (n, (priority, new)) in (1..).zip(ranks) {
            let rank = Rank::new(priority, new);
            assert!(dispatch.offer(Offer { rank, ..offer(n, "a") }).is_none());
        }
        session.set_credits(0, 5);
        for n in [4, 2, 5, 1, 3] {
            let found = dispatch.next_for(session.id(), Kind::Activity).unwrap();
            assert_eq!(found.offer.run_id, offer(n, "a").run_id);
        }
    }

    #[test]
    fn sessions_with_credits_take_turns() {
        let dispatch = Dispatch::default();
        for id in [1, 2, 3] {
            assert!(dispatch.open(session(id, "a", 2)));
        }
        let takers = (0..6).map(|n| dispatch.offer(offer(n, "a")).unwrap().id().0);
        assert_eq!(takers.collect::<Vec<_>>(), [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn a_credit_comes_back_once() {
        let dispatch = Dispatch::default();
        let session = session(1, "a", 2);
        assert!(dispatch.open(Arc::clone(&session)));
        for shard in [SHARD, ShardId(1)] {
            assert!(dispatch.offer(Offer { shard, ..offer(1, "a") }).is_some());
        }
        // The completion comes a second time.
        for _ in 0..2 {
            assert!(dispatch.release(&session, SHARD, Kind::Activity).is_none());
        }
        assert!(dispatch.offer(offer(2, "a")).is_some());
        assert!(dispatch.offer(offer(3, "a")).is_none());
    }

    #[test]
    fn an_offer_that_was_taken_back_or_taken_at_once_waits_no_more() {
        let dispatch = Dispatch::default();
        let session = session(1, "a", 0);
        assert!(dispatch.open(Arc::clone(&session)));
        assert!(dispatch.offer(offer(1, "a")).is_none());
        assert!(dispatch.offer(offer(2, "a")).is_none());
        dispatch.withdraw(offer(1, "a").run_id, None);
        assert_eq!(dispatch.backlog(), (0, 2), "its workflow task is another thing");
        dispatch.withdraw(offer(1, "a").run_id, Some(1));
        assert_eq!(dispatch.backlog(), (0, 1));
        session.set_credits(0, 2);
        assert!(dispatch.offer(offer(2, "a")).is_some());
        assert_eq!(dispatch.backlog(), (0, 0));
    }

    #[test]
    fn no_session_begins_while_the_node_drains() {
        let dispatch = Dispatch::default();
        let (before, behind) = (session(1, "a", 1), session(2, "a", 1));
        assert!(dispatch.open(Arc::clone(&before)));
        dispatch.refuse_sessions();
        assert!(!dispatch.open(behind));
        let open: Vec<_> = dispatch.sessions().iter().map(|session| session.id()).collect();
        assert_eq!(open, [before.id()]);
        assert_eq!(dispatch.offer(offer(1, "a")).unwrap().id(), before.id());
    }
}
