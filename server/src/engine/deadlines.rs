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
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::{RetryPolicy, WorkflowTaskFailureCause};

    use super::super::{fixture::*, *};
    use super::*;

    /// Stories that wait for one deadline each.
    fn waiting() -> Vec<(&'static str, Story)> {
        let first = |command| history().task([command]);
        let of_first =
            |which| first(call_with(1, timeouts(which, secs(5)), RetryPolicy::default()));
        let started = |run_timeout_us, execution_timeout_us| {
            let start = Start { execution_timeout_us, run_timeout_us, ..start_request() };
            history_of(&start, Limits::default()).task([])
        };
        vec![
            ("a timer", first(timer(1, secs(5)))),
            ("schedule-to-start", of_first("schedule-to-start")),
            ("schedule-to-close", of_first("schedule-to-close")),
            ("start-to-close", of_first("start-to-close").dispatched(1)),
            ("a heartbeat", of_first("heartbeat").dispatched(1)),
            ("a heartbeat after another", of_first("heartbeat").dispatched(1).heartbeat(1, None)),
            ("a backoff", first(call(1)).dispatched(1).broke(1, "Flaky")),
            ("the grace of a lost session", first(call(1)).dispatched(1).session_lost(1)),
            ("the grace after a load", first(call(1)).dispatched(1).reload()),
            ("the run timeout", started(secs(5), 0)),
            ("the execution timeout", started(0, secs(5))),
            ("the task's deadline", history().handed_out()),
            (
                "the task's backoff",
                history().handed_out().task_failed(WorkflowTaskFailureCause::Panic),
            ),
        ]
    }

    fn next(story: &Story) -> Timestamp {
        match story.run.wake() {
            Wake::Hot(Some(at)) | Wake::Cold(at) => at,
            Wake::Hot(None) | Wake::Never => panic!("it waits for nothing"),
        }
    }

    /// True time lies between the two ends of the clock. Every deadline was set from the late end,
    /// so that it is never early when the early end has reached it.
    #[test]
    fn no_deadline_is_due_before_the_early_end_of_the_clock_has_reached_it() {
        for (what, mut story) in waiting() {
            let deadline = next(&story);
            story = story.after(secs(1_000));
            let due = deadline.plus_micros(-1);
            story.put(&Input::Deadline { due });
            assert_eq!(story.last, Ok(Decision::default()), "{what} is early");
            story.put(&Input::Deadline { due: deadline });
            assert_ne!(story.last, Ok(Decision::default()), "{what} is not due at its time");
        }
    }

    #[test]
    fn what_a_deadline_leads_to_counts_from_the_late_end_of_the_clock() {
        let retry = RetryPolicy::default();
        let story = history().task([call_with(1, timeouts("start-to-close", secs(5)), retry)]);
        let story = story.dispatched(1);
        let due = next(&story);
        let story = story.after(secs(7)).when(&Input::Deadline { due });
        let again = story.wake_in(secs(1));
        story.then_wakes(Wake::Cold(again));
    }

    #[test]
    fn calls_and_timers_count_from_the_time_of_their_events() {
        for command in [
            timer(1, secs(5)),
            call_with(1, timeouts("schedule-to-start", secs(5)), RetryPolicy::default()),
            call_with(1, timeouts("schedule-to-close", secs(5)), RetryPolicy::default()),
        ] {
            // Another node's clock was ahead: the history does not run back, nor do the deadlines.
            let story = history().after(secs(9)).task([]).after(-secs(9)).signal("a");
            let story = story.task([command]);
            assert_eq!(story.events().last().unwrap().time_us, BEGIN + secs(9));
            assert_eq!(next(&story), Timestamp::from_micros(BEGIN + secs(9 + 5)));
        }
    }

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
