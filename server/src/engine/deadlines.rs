//! The deadlines of a run: one ordered set that answers what comes next and what is due.
//!
//! The set says nothing of its own: each deadline follows from what stands elsewhere in the run, and
//! is changed together with it. A test holds the set against what a scan of the run finds.

use std::collections::VecDeque;

use onward_proto::Timestamp;

/// What a deadline is about. Of those that fall together, the first here comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// The run has taken too long.
    Workflow,
    /// The open workflow task has given no sign of life.
    Task,
    /// The workflow task may go out again.
    TaskBackoff,
    /// A timer, by number.
    Timer(u32),
    /// An activity, by number; what its deadline means is the activity's own rule.
    Activity(u32),
}

/// Deadlines, soonest first.
///
/// A sorted list, not a tree: runs sleep by the million with one deadline or none, and the limits
/// keep the longest list at a few thousand entries of 16 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Deadlines(VecDeque<(Timestamp, Due)>);

impl Deadlines {
    /// Moves the deadline of something; `None` is none.
    pub(super) fn change(
        &mut self,
        what: Due,
        before: Option<Timestamp>,
        after: Option<Timestamp>,
    ) {
        if before == after {
            return;
        }
        if let Some(at) = before {
            self.remove((at, what));
        }
        if let Some(at) = after {
            self.insert((at, what));
        }
    }

    fn insert(&mut self, deadline: (Timestamp, Due)) {
        if let Err(place) = self.0.binary_search(&deadline) {
            if self.0.is_empty() {
                // Most runs have no second one, and no room for it.
                self.0.reserve_exact(1);
            }
            self.0.insert(place, deadline);
        }
    }

    fn remove(&mut self, deadline: (Timestamp, Due)) {
        if let Ok(place) = self.0.binary_search(&deadline) {
            self.0.remove(place);
            if self.0.is_empty() {
                self.0 = VecDeque::new();
            }
        }
    }

    /// The next one.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.0.front().map(|(at, _)| *at)
    }

    /// What is due, soonest first.
    pub(super) fn due(&self, now: Timestamp) -> impl Iterator<Item = Due> {
        self.0.iter().take_while(move |(at, _)| *at <= now).map(|(_, what)| *what)
    }

    /// Bytes of memory on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<(Timestamp, Due)>()
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (Timestamp, Due)> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soonest_comes_first_and_what_moves_leaves_nothing_behind() {
        let at = |micros| Some(Timestamp::from_micros(micros));
        let mut deadlines = Deadlines::default();
        for (number, micros) in [(1, 30), (2, 10), (3, 10), (4, 99)] {
            deadlines.change(Due::Timer(number), None, at(micros));
        }
        deadlines.change(Due::Workflow, None, at(10));
        assert_eq!(deadlines.next(), at(10));
        let due = |deadlines: &Deadlines, micros| {
            deadlines.due(Timestamp::from_micros(micros)).collect::<Vec<_>>()
        };
        assert_eq!(due(&deadlines, 9), []);
        assert_eq!(
            due(&deadlines, 30),
            [Due::Workflow, Due::Timer(2), Due::Timer(3), Due::Timer(1)]
        );
        deadlines.change(Due::Timer(2), at(10), at(50));
        deadlines.change(Due::Workflow, at(10), None);
        assert_eq!(due(&deadlines, 50), [Due::Timer(3), Due::Timer(1), Due::Timer(2)]);
        for (number, micros) in [(1, 30), (2, 50), (3, 10), (4, 99)] {
            deadlines.change(Due::Timer(number), at(micros), None);
        }
        assert_eq!((deadlines.next(), deadlines.heap_bytes()), (None, 0));
    }
}
