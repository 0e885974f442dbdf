//! What the lanes of one process share, and how a request finds its lane.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use super::{
    clock::DatabaseClock,
    incidents::Incidents,
    lease::{Lease, Tenure},
    mailbox::{Mailbox, NotPut},
    message::{Mail, Refusal, Request, Target},
};
use crate::{
    dispatch::{Dispatch, Match},
    engine::{Incarnation, Limits},
    env::Env,
    metrics::Metrics,
    store::{NodeId, ShardId, Store},
};
use onward_proto::{NamespaceId, RunId, Slot, Timestamp};

/// What a node is made from.
#[derive(Clone)]
pub struct NodeOptions {
    /// Clock, randomness, spawning.
    pub env: Env,
    /// Where runs are kept.
    pub store: Arc<dyn Store>,
    /// How much of everything a run may have.
    pub limits: Limits,
    /// Bytes of idle runs that each lane keeps in memory.
    pub cache_bytes: usize,
    /// Bytes of runs that wait for workers that each lane keeps in memory.
    pub waiting_bytes: usize,
    /// How many shards to make in an empty store.
    pub shards: u16,
}

/// One process's part of the server: its lanes, its queues, its clock.
pub struct Node {
    pub(crate) env: Env,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) limits: Limits,
    pub(crate) cache_bytes: usize,
    pub(crate) waiting_bytes: usize,
    pub(crate) shards: u16,
    pub(crate) dispatch: Dispatch,
    pub(crate) metrics: Metrics,
    pub(crate) incidents: Incidents,
    /// This process.
    pub(crate) id: NodeId,
    clock: Mutex<Option<DatabaseClock>>,
    lanes: RwLock<BTreeMap<ShardId, LaneAddress>>,
    leases: Mutex<Leases>,
    /// What survives a load of a lane: parked runs, and whether to find one.
    troubles: Mutex<BTreeMap<ShardId, Trouble>>,
}

/// The leases of the lanes that run, and where news of them goes.
pub(crate) type Leases = BTreeMap<ShardId, (Arc<Lease>, Mailbox)>;

/// How to reach a lane that serves.
#[derive(Debug, Clone)]
pub(crate) struct LaneAddress {
    pub(crate) slots: Range<u16>,
    pub(crate) incarnation: Incarnation,
    pub(crate) mail: Mailbox,
}

/// A stretch of time in which one lane has served a slot under an unbroken lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hold {
    incarnation: Incarnation,
    tenure: Tenure,
}

/// A run that is kept out of memory, because its records cannot be read or stored.
#[derive(Debug, Clone)]
pub(crate) struct Parked {
    /// Whose run it is; not known if its row cannot be read.
    pub(crate) workflow: Option<(NamespaceId, String)>,
    /// Why.
    pub(crate) reason: String,
}

impl Parked {
    /// Whether it is certainly not a run of the workflow that a request names.
    pub(crate) fn is_of_another(&self, target: &Target) -> bool {
        self.workflow.as_ref().is_some_and(|(namespace_id, workflow_id)| {
            *namespace_id != target.namespace_id || *workflow_id != target.workflow_id
        })
    }
}

#[derive(Debug, Default)]
struct Trouble {
    parked: BTreeMap<RunId, Parked>,
    careful: bool,
}

impl Node {
    /// A node without lanes; see `ownership` for how it comes to them.
    pub fn new(options: NodeOptions) -> Arc<Self> {
        let id = NodeId(options.env.random_uuid());
        Arc::new(Self {
            env: options.env,
            store: options.store,
            limits: options.limits,
            cache_bytes: options.cache_bytes,
            waiting_bytes: options.waiting_bytes,
            shards: options.shards,
            dispatch: Dispatch::default(),
            metrics: Metrics::new(),
            incidents: Incidents::default(),
            id,
            clock: Mutex::new(None),
            lanes: RwLock::new(BTreeMap::new()),
            leases: Mutex::default(),
            troubles: Mutex::new(BTreeMap::new()),
        })
    }

    /// The node's queues and sessions.
    pub fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }

    /// The node's metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// This process, as the store knows it.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Whether every shard is served here.
    pub fn is_ready(&self) -> bool {
        let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
        let served: usize = lanes.values().map(|lane| lane.slots.len()).sum();
        served == usize::from(onward_proto::SLOTS)
    }

    /// The database's clock as this node knows it.
    pub(crate) fn clock(&self) -> DatabaseClock {
        self.clock_slot().expect("a lane serves only after its takeover has told the time")
    }

    /// Takes the database's time from a reply to something sent at `sent`.
    pub(crate) fn sync_clock(&self, now: Timestamp, sent: Duration) {
        let received = self.env.boot();
        let mut clock = self.clock_slot();
        match clock.as_mut() {
            Some(clock) => clock.sync(now, sent, received),
            None => *clock = Some(DatabaseClock::new(now, sent, received)),
        }
    }

    fn clock_slot(&self) -> MutexGuard<'_, Option<DatabaseClock>> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lane serves from now on.
    pub(crate) fn open_lane(&self, shard: ShardId, address: LaneAddress) {
        self.lanes.write().unwrap_or_else(PoisonError::into_inner).insert(shard, address);
    }

    /// A lane has ended.
    pub(crate) fn close_lane(&self, shard: ShardId) {
        self.lanes.write().unwrap_or_else(PoisonError::into_inner).remove(&shard);
    }

    /// The leases of the lanes that run.
    pub(crate) fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All lanes that serve.
    pub(crate) fn lanes(&self) -> Vec<(ShardId, LaneAddress)> {
        let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
        lanes.iter().map(|(shard, address)| (*shard, address.clone())).collect()
    }

    /// The lane of a slot.
    pub(crate) fn lane_of(&self, slot: Slot) -> Option<Mailbox> {
        let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
        lanes.values().find(|lane| lane.slots.contains(&slot.get())).map(|lane| lane.mail.clone())
    }

    /// The hold on a slot that this moment belongs to; none while nobody here may answer for it.
    /// What is read beside a lane is the lane's own if its hold was the same before and after.
    pub(crate) fn hold(&self, slot: Slot) -> Option<Hold> {
        let (shard, incarnation) = {
            let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
            let (shard, lane) = lanes.iter().find(|(_, lane)| lane.slots.contains(&slot.get()))?;
            (*shard, lane.incarnation)
        };
        let tenure = self.leases().get(&shard)?.0.tenure(self.env.boot())?;
        Some(Hold { incarnation, tenure })
    }

    /// Puts a client's request into the mailbox of its lane.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] when no lane serves the slot, [`Refusal::Busy`] when its mailbox
    /// is full.
    pub fn ask(&self, slot: Slot, request: Request) -> Result<(), Refusal> {
        let lane = self
            .lane_of(slot)
            .ok_or_else(|| Refusal::Unavailable(format!("slot {slot} is not served here yet")))?;
        lane.try_put(Mail::Request(request)).map_err(|error| match error {
            NotPut::Full(_, limit) => Refusal::Busy { limit },
            NotPut::Closed => Refusal::Unavailable("the shard is being loaded".to_owned()),
        })
    }

    /// Tells another lane that a session has taken its offer. A lane that is gone offers again after
    /// its load; the session goes on with what else waits.
    pub(crate) fn deliver_match(self: &Arc<Self>, found: Match) {
        let mut next = Some(found);
        while let Some(found) = next.take() {
            let lane = {
                let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
                lanes.get(&found.offer.shard).map(|lane| lane.mail.clone())
            };
            let (session, shard, kind) =
                (Arc::clone(&found.session), found.offer.shard, found.offer.kind.kind());
            let Some(lane) = lane else {
                next = self.dispatch.release(&session, shard, kind);
                continue;
            };
            match lane.try_put(Mail::Matched(found)) {
                Ok(()) => {}
                Err(NotPut::Closed) => next = self.dispatch.release(&session, shard, kind),
                Err(NotPut::Full(letter, _)) => {
                    // Lanes do not wait for each other, and a match that is let go of is found by
                    // nobody again: the session may have nothing else to end.
                    let node = Arc::clone(self);
                    self.env.spawn(async move {
                        if !lane.put(*letter).await
                            && let Some(next) = node.dispatch.release(&session, shard, kind)
                        {
                            node.deliver_match(next);
                        }
                    });
                }
            }
        }
    }

    /// Forgets what a lane that has ended offered, and what sessions held of it. They go on with
    /// what other lanes offer.
    pub(crate) fn forget_offers(self: &Arc<Self>, shard: ShardId) {
        for found in self.dispatch.drop_lane(shard) {
            self.deliver_match(found);
        }
    }

    /// A run that the database refuses: kept out of memory until the process ends.
    pub(crate) fn park(&self, shard: ShardId, run_id: RunId, parked: Parked) {
        self.trouble(|troubles| {
            let trouble = troubles.entry(shard).or_default();
            trouble.parked.insert(run_id, parked);
            trouble.careful = false;
        });
    }

    /// The next load of the lane commits one run at a time.
    pub(crate) fn be_careful(&self, shard: ShardId) {
        self.trouble(|troubles| troubles.entry(shard).or_default().careful = true);
    }

    /// Later loads of the lane commit as usual.
    pub(crate) fn end_care(&self, shard: ShardId) {
        self.trouble(|troubles| troubles.entry(shard).or_default().careful = false);
    }

    pub(crate) fn is_careful(&self, shard: ShardId) -> bool {
        self.trouble(|troubles| troubles.get(&shard).is_some_and(|trouble| trouble.careful))
    }

    pub(crate) fn parked(&self, shard: ShardId) -> BTreeMap<RunId, Parked> {
        self.trouble(|troubles| {
            troubles.get(&shard).map(|trouble| trouble.parked.clone()).unwrap_or_default()
        })
    }

    fn trouble<T>(&self, f: impl FnOnce(&mut BTreeMap<ShardId, Trouble>) -> T) -> T {
        f(&mut self.troubles.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        dispatch::{
            Offer,
            fixture::{offer, session},
        },
        env::TokioBootClock,
        store::MemoryStore,
    };

    fn node() -> Arc<Node> {
        Node::new(NodeOptions {
            env: Env::seeded(Arc::new(TokioBootClock::start()), 1),
            store: Arc::new(MemoryStore::new(|| Timestamp::from_micros(1))),
            limits: Limits::default(),
            cache_bytes: 0,
            waiting_bytes: 0,
            shards: 2,
        })
    }

    #[tokio::test]
    async fn a_match_that_does_not_reach_its_lane_hands_its_credit_on() {
        let node = node();
        let other = ShardId(1);
        let (mail, mut mailbox) = Mailbox::new();
        let address = LaneAddress { slots: 512..1024, incarnation: Incarnation(1), mail };
        node.open_lane(other, address);
        let worker = session(1, "a", 1);
        assert!(node.dispatch.open(Arc::clone(&worker)));
        let taken =
            Match { session: node.dispatch.offer(offer(1, "a")).unwrap(), offer: offer(1, "a") };
        // One more of the lane that is gone, and one of a lane that serves.
        assert!(node.dispatch.offer(offer(2, "a")).is_none());
        let waits = Offer { shard: other, ..offer(3, "a") };
        assert!(node.dispatch.offer(waits.clone()).is_none());
        node.deliver_match(taken);
        let Mail::Matched(found) = mailbox.recv().await.unwrap().mail else { panic!() };
        assert_eq!(found.offer.run_id, waits.run_id);
        assert_eq!(node.dispatch.backlog(), (0, 0));

        // A lane that ends just now has closed its mailbox.
        drop(mailbox);
        assert!(node.dispatch.offer(waits.clone()).is_none());
        node.deliver_match(found);
        assert_eq!(node.dispatch.backlog(), (0, 0));
    }
}
