//! What holds of dispatch in whatever order lanes offer and sessions come, work and go. A list and
//! a table of numbers say beside it what should be.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use onward_proto::{DEFAULT_NAMESPACE, RunId, Slot};
use proptest::prelude::*;

use super::*;
use crate::engine::Worker;

const TYPES: [&str; 3] = ["a", "b", "c"];
const KINDS: [Kind; 2] = [Kind::Workflow, Kind::Activity];

/// Something that may happen. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Op {
    Offer { thing: u8, new: bool, sticky: u8 },
    Withdraw(u8),
    Open(u8),
    Credits(u8, u32, u32),
    Finish(u8),
    Claim(u8, u8),
    Retire(u8),
    Close(u8),
    DropLane(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u8>();
    prop_oneof![
        20 => (n, any::<bool>(), n).prop_map(|(thing, new, sticky)| Op::Offer { thing, new, sticky }),
        2 => n.prop_map(Op::Withdraw),
        3 => n.prop_map(Op::Open),
        6 => (n, 0..4_u32, 0..4_u32).prop_map(|(s, tasks, attempts)| Op::Credits(s, tasks, attempts)),
        12 => n.prop_map(Op::Finish),
        1 => (n, n).prop_map(|(session, thing)| Op::Claim(session, thing)),
        1 => n.prop_map(Op::Retire),
        1 => n.prop_map(Op::Close),
        1 => n.prop_map(Op::DropLane),
    ]
}

/// The thing with this number: its lane, type and priority are its own for good.
fn offer(thing: u8, new: bool, sticky: Option<SessionId>) -> Offer {
    let n = thing % 24;
    let kind = if n.is_multiple_of(2) {
        OfferKind::Task { sticky }
    } else {
        OfferKind::Activity { number: 1 }
    };
    Offer {
        shard: ShardId(i32::from(n % 4) / 2),
        run_id: RunId::new(1, u64::from(n), Slot::new(0)),
        namespace_id: DEFAULT_NAMESPACE,
        task_queue: "q".to_owned(),
        type_name: TYPES[usize::from(n) % 3].to_owned(),
        kind,
        rank: Rank::new(i32::from(n.is_multiple_of(5)), new),
    }
}

/// A session as it should be.
struct Known {
    session: Arc<Session>,
    serves: bool,
    ceiling: BTreeMap<Kind, usize>,
    held: Vec<(ShardId, Kind)>,
}

impl Known {
    fn has_credit(&self, kind: Kind) -> bool {
        let held = self.held.iter().filter(|(_, of)| *of == kind).count();
        held < self.ceiling.get(&kind).copied().unwrap_or(0)
    }
}

#[derive(Default)]
struct World {
    dispatch: Dispatch,
    sessions: BTreeMap<SessionId, Known>,
    /// What waits, in the order of dispatch.
    waiting: BTreeMap<Rank, Offer>,
    /// What is with a session.
    out: Vec<(SessionId, Offer)>,
    age: u64,
    next_session: u64,
    handed_out: usize,
}

impl World {
    fn play(&mut self, op: &Op) {
        match *op {
            Op::Offer { thing, new, sticky } => {
                let sticky = self.pick(sticky);
                self.offer(offer(thing, new, sticky));
            }
            Op::Withdraw(thing) => {
                let (run_id, activity) = offer(thing, false, None).what();
                self.dispatch.withdraw(run_id, activity);
                self.waiting.retain(|_, waiting| waiting.what() != (run_id, activity));
            }
            Op::Open(types) => self.open(types),
            Op::Credits(n, tasks, attempts) => {
                let Some(id) = self.pick(n) else { return };
                let known = self.sessions.get_mut(&id).unwrap();
                known.session.set_credits(tasks, attempts);
                let ceiling =
                    [(Kind::Workflow, tasks as usize), (Kind::Activity, attempts as usize)];
                known.ceiling = ceiling.into();
                for kind in KINDS {
                    while let Some(found) = self.dispatch.next_for(id, kind) {
                        self.taken_from_queue(found);
                    }
                }
            }
            Op::Finish(n) => {
                if self.out.is_empty() {
                    return;
                }
                let (id, offer) = self.out.remove(usize::from(n) % self.out.len());
                let kind = offer.kind.kind();
                let Some(known) = self.sessions.get_mut(&id) else { return };
                let place = known.held.iter().position(|held| *held == (offer.shard, kind));
                known.held.remove(place.unwrap());
                let session = Arc::clone(&known.session);
                if let Some(found) = self.dispatch.release(&session, offer.shard, kind) {
                    self.taken_from_queue(found);
                }
            }
            Op::Claim(n, thing) => {
                let Some(id) = self.pick(n) else { return };
                let offer =
                    Offer { kind: OfferKind::Activity { number: 2 }, ..offer(thing, false, None) };
                let known = self.sessions.get_mut(&id).unwrap();
                known.session.hold(offer.shard, Kind::Activity);
                known.held.push((offer.shard, Kind::Activity));
                self.out.push((id, offer));
            }
            Op::Retire(n) => {
                let Some(id) = self.pick(n) else { return };
                self.dispatch.retire(id);
                self.sessions.get_mut(&id).unwrap().serves = false;
            }
            Op::Close(n) => {
                let Some(id) = self.pick(n) else { return };
                self.dispatch.close(id);
                self.sessions.remove(&id);
                self.out.retain(|(holder, _)| *holder != id);
            }
            Op::DropLane(n) => {
                let shard = ShardId(i32::from(n % 2));
                self.waiting.retain(|_, offer| offer.shard != shard);
                self.out.retain(|(_, offer)| offer.shard != shard);
                for known in self.sessions.values_mut() {
                    known.held.retain(|(of, _)| *of != shard);
                }
                for found in self.dispatch.drop_lane(shard) {
                    self.taken_from_queue(found);
                }
            }
        }
    }

    fn pick(&self, n: u8) -> Option<SessionId> {
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[usize::from(n) % ids.len()])
    }

    fn is_full(&self) -> bool {
        self.sessions.len() == 4
    }

    fn open(&mut self, types: u8) {
        if self.is_full() {
            return;
        }
        self.next_session += 1;
        let id = SessionId(self.next_session);
        let types = TYPES.iter().enumerate().filter(|(n, _)| types >> n & 1 == 1);
        let types: std::collections::BTreeSet<String> =
            types.map(|(_, name)| (*name).to_owned()).collect();
        let session = Arc::new(Session::new(SessionInfo {
            namespace_id: DEFAULT_NAMESPACE,
            namespace: "default".to_owned(),
            task_queue: "q".to_owned(),
            workflow_types: types.clone(),
            activity_types: types,
            worker: Worker { session: id, identity: String::new(), build_id: String::new() },
        }));
        assert!(self.dispatch.open(Arc::clone(&session)));
        let known = Known { session, serves: true, ceiling: BTreeMap::new(), held: Vec::new() };
        self.sessions.insert(id, known);
    }

    fn offer(&mut self, mut offer: Offer) {
        self.age += 1;
        offer.rank.age = self.age;
        let before = self.waiting.iter().find(|(_, waiting)| waiting.what() == offer.what());
        let before = before.map(|(rank, _)| *rank);
        let (kind, may) = (offer.kind.kind(), self.may_take(&offer));
        if let Some(session) = self.dispatch.offer(offer.clone()) {
            // The session with the run in its cache is preferred, whatever types it says it has.
            let sticky = match offer.kind {
                OfferKind::Task { sticky } => sticky,
                OfferKind::Activity { .. } => None,
            };
            let sticky = sticky
                .filter(|id| self.sessions.get(id).is_some_and(|s| s.serves && s.has_credit(kind)));
            match sticky {
                Some(sticky) => assert_eq!(session.id(), sticky),
                None => assert!(may.contains(&session.id()), "{offer:?} went to {session:?}"),
            }
            self.waiting.retain(|_, waiting| waiting.what() != offer.what());
            self.goes_out(session.id(), offer);
        } else {
            assert_eq!(may, [], "{offer:?} waits for nothing");
            offer.rank = before.unwrap_or(offer.rank);
            self.waiting.insert(offer.rank, offer);
        }
    }

    /// Who may take an offer: of those that serve the queue and have a credit those that have its
    /// type, or all if nobody has.
    fn may_take(&self, offer: &Offer) -> Vec<SessionId> {
        let kind = offer.kind.kind();
        let known = self.is_known(offer);
        let takes = |known_session: &Known| {
            known_session.serves
                && known_session.has_credit(kind)
                && (!known || known_session.session.knows(kind, &offer.type_name))
        };
        self.sessions.iter().filter(|(_, session)| takes(session)).map(|(id, _)| *id).collect()
    }

    fn is_known(&self, offer: &Offer) -> bool {
        let knows = |s: &Known| s.serves && s.session.knows(offer.kind.kind(), &offer.type_name);
        self.sessions.values().any(knows)
    }

    /// A session took what waited: the first of all that it may take.
    fn taken_from_queue(&mut self, found: Match) {
        let (id, kind) = (found.session.id(), found.offer.kind.kind());
        let first = self
            .waiting
            .iter()
            .find(|(_, offer)| offer.kind.kind() == kind && self.may_take(offer).contains(&id));
        let first = first.map(|(rank, offer)| (*rank, offer.what()));
        assert_eq!(first, Some((found.offer.rank, found.offer.what())), "{found:?}");
        self.waiting.remove(&found.offer.rank);
        self.goes_out(id, found.offer);
    }

    fn goes_out(&mut self, id: SessionId, offer: Offer) {
        let known = self.sessions.get_mut(&id).unwrap();
        known.held.push((offer.shard, offer.kind.kind()));
        self.out.push((id, offer));
        self.handed_out += 1;
    }

    fn check(&self) {
        let count = |kind| self.waiting.values().filter(|o| o.kind.kind() == kind).count();
        assert_eq!(self.dispatch.backlog(), (count(Kind::Workflow), count(Kind::Activity)));
        for offer in self.waiting.values().filter(|offer| self.is_known(offer)) {
            assert_eq!(self.may_take(offer), [], "{offer:?} waits for nothing");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn each_offer_goes_to_one_session_with_a_credit_in_order_or_waits_for_one(
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let mut world = World::default();
        for op in &ops {
            world.play(op);
            world.check();
        }
        // All that waits is found by one worker that has everything.
        if !world.is_full() {
            world.open(7);
            let id = SessionId(world.next_session);
            let waiting = world.waiting.len();
            let before = world.handed_out;
            let mine = world.sessions.keys().position(|known| *known == id).unwrap() as u8;
            world.play(&Op::Credits(mine, 1_000, 1_000));
            prop_assert_eq!(world.handed_out - before, waiting);
        }
    }
}
