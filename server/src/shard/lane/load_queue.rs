//! Which run is read back next: first those that somebody waits for, each in the order they came.

use std::collections::BTreeMap;

use onward_proto::RunId;

/// Why a run is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// Somebody waits for it.
    Wanted,
    /// Its deadline is near, or it has work in flight.
    Due,
}

type Place = (Urgency, i64);

/// The runs that wait to be read.
#[derive(Debug, Default)]
pub(super) struct LoadQueue {
    order: BTreeMap<Place, RunId>,
    places: BTreeMap<RunId, Place>,
    front: i64,
    back: i64,
}

impl LoadQueue {
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Lets a run wait behind all of its urgency.
    pub(super) fn push(&mut self, run_id: RunId, urgency: Urgency) {
        self.back += 1;
        self.place(run_id, (urgency, self.back));
    }

    /// Lets a run wait before all of its urgency: its read was begun and has not reached it.
    pub(super) fn put_back(&mut self, run_id: RunId, urgency: Urgency) {
        self.front -= 1;
        self.place(run_id, (urgency, self.front));
    }

    /// Somebody waits for a run now. One that is being read, or is wanted already, keeps its place.
    pub(super) fn hurry(&mut self, run_id: RunId) {
        if let Some((Urgency::Due, _)) = self.places.get(&run_id) {
            self.push(run_id, Urgency::Wanted);
        }
    }

    /// Takes the next ones, in order.
    pub(super) fn take(&mut self, most: usize) -> Vec<RunId> {
        let taken: Vec<RunId> =
            std::iter::from_fn(|| self.order.pop_first()).take(most).map(|(_, id)| id).collect();
        for run_id in &taken {
            self.places.remove(run_id);
        }
        taken
    }

    fn place(&mut self, run_id: RunId, place: Place) {
        if let Some(old) = self.places.insert(run_id, place) {
            self.order.remove(&old);
        }
        self.order.insert(place, run_id);
    }
}

#[cfg(test)]
mod tests {
    use onward_proto::Slot;
    use proptest::prelude::*;

    use super::*;

    fn run(n: u64) -> RunId {
        RunId::new(1, n, Slot::new(0))
    }

    #[test]
    fn those_that_somebody_waits_for_go_first_and_all_in_the_order_they_came() {
        let mut queue = LoadQueue::default();
        for (n, urgency) in [(1, Urgency::Due), (2, Urgency::Wanted), (3, Urgency::Due)] {
            queue.push(run(n), urgency);
        }
        queue.push(run(4), Urgency::Wanted);
        assert_eq!(queue.take(3), [2, 4, 1].map(run));
        assert_eq!(queue.take(3), [3].map(run));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_run_that_waits_already_is_hurried_once() {
        let mut queue = LoadQueue::default();
        for n in 1..4 {
            queue.push(run(n), Urgency::Due);
        }
        queue.hurry(run(3));
        queue.hurry(run(2));
        queue.hurry(run(3));
        assert_eq!(queue.len(), 3);
        assert_eq!(queue.take(9), [3, 2, 1].map(run));
        queue.hurry(run(3));
        assert!(queue.is_empty(), "it is being read");
    }

    #[test]
    fn what_a_read_did_not_reach_goes_first_again() {
        let mut queue = LoadQueue::default();
        for n in 1..5 {
            queue.push(run(n), Urgency::Wanted);
        }
        let taken = queue.take(3);
        for run_id in taken[1..].iter().rev() {
            queue.put_back(*run_id, Urgency::Wanted);
        }
        assert_eq!(queue.take(9), [2, 3, 4].map(run));
    }

    /// Something that a lane may do. Numbers are taken modulo what there is.
    #[derive(Debug, Clone)]
    enum Op {
        Push(u64, bool),
        Hurry(u64),
        /// Takes so many, and does not get as far as the last ones.
        Take(usize, usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0..12_u64, any::<bool>()).prop_map(|(n, wanted)| Op::Push(n, wanted)),
            3 => (0..12_u64).prop_map(Op::Hurry),
            2 => (0..5_usize, 0..5_usize).prop_map(|(most, left)| Op::Take(most, left)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn each_run_waits_in_one_place_and_none_is_lost(ops in prop::collection::vec(op(), 1..100)) {
            let mut queue = LoadQueue::default();
            // Wanted ones, then due ones.
            let mut expected: [Vec<u64>; 2] = Default::default();
            for op in &ops {
                match *op {
                    // A run that waits already is not pushed; see `Lane::load`.
                    Op::Push(n, _) if expected.iter().flatten().any(|waits| *waits == n) => {}
                    Op::Push(n, wanted) => {
                        queue.push(run(n), if wanted { Urgency::Wanted } else { Urgency::Due });
                        expected[usize::from(!wanted)].push(n);
                    }
                    Op::Hurry(n) => {
                        queue.hurry(run(n));
                        if let Some(place) = expected[1].iter().position(|waits| *waits == n) {
                            expected[1].remove(place);
                            expected[0].push(n);
                        }
                    }
                    Op::Take(most, left) => {
                        let all = expected.concat();
                        let count = most.min(all.len());
                        let taken = queue.take(most);
                        prop_assert_eq!(&taken, &all[..count].iter().map(|n| run(*n)).collect::<Vec<_>>());
                        let reached = count.saturating_sub(left);
                        for n in all[reached..count].iter().rev() {
                            queue.put_back(run(*n), Urgency::Wanted);
                        }
                        for n in &all[..count] {
                            for runs in &mut expected {
                                runs.retain(|waits| waits != n);
                            }
                        }
                        expected[0].splice(0..0, all[reached..count].iter().copied());
                    }
                }
                prop_assert_eq!(queue.len(), expected.concat().len());
            }
            let rest = expected.concat().into_iter().map(run).collect::<Vec<_>>();
            prop_assert_eq!(queue.take(usize::MAX), rest);
        }
    }
}
