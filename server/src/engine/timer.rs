//! Timers.
//!
//! ```text
//! TimerStarted ──▶ waiting ── deadline ──▶ TimerFired (a fact)
//!                     └── CancelTimer ──▶ TimerCancelled
//! ```
//!
//! A timer that was cancelled when its firing had not been taken yet has never fired: the firing
//! leaves the inbox. When the task that took the firing cancels it, both events stand and nothing
//! else happens.

use onward_proto::{
    Timestamp,
    v1::{HistoryEvent, TimerFired, TimerStarted, history_event::Attributes},
};

use super::{Run, deadlines::Due, limits::record};

/// A timer that has neither fired nor been cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Timer {
    pub(super) number: u32,
    pub(super) started_at: Timestamp,
    pub(super) fire_at: Timestamp,
    pub(super) summary: Box<str>,
}

/// The firing of a timer.
pub(super) fn fired(now: Timestamp, number: u32) -> HistoryEvent {
    record(now, Attributes::TimerFired(TimerFired { number }))
}

impl Run {
    /// Where the timer stands in the list.
    pub(super) fn timer_place(&self, number: u32) -> Option<usize> {
        self.timers.binary_search_by_key(&number, |timer| timer.number).ok()
    }

    /// Folds a started timer in. Its event has just been numbered.
    pub(super) fn start_timer(&mut self, timer: &TimerStarted) {
        let fire_at = Timestamp::from_micros(timer.fire_at_us);
        self.deadlines.change(Due::Timer(timer.number), None, Some(fire_at));
        if self.timers.is_empty() {
            // Most runs that sleep do so on one.
            self.timers.reserve_exact(1);
        }
        self.timers.push(Timer {
            number: timer.number,
            started_at: self.last_time,
            fire_at,
            summary: timer.summary.as_str().into(),
        });
    }

    /// Folds the end of a timer in; one that has ended already stays so.
    pub(super) fn end_timer(&mut self, number: u32) {
        if let Some(place) = self.timer_place(number) {
            let timer = self.timers.remove(place);
            self.deadlines.change(Due::Timer(number), Some(timer.fire_at), None);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::{fixture::*, *};

    #[test]
    fn a_timer_fires_once_at_its_deadline_and_never_before() {
        let story = history().task([timer(1, secs(5))]);
        let due = story.wake_in(secs(5));
        given(story)
            .then_wakes(Wake::Cold(due))
            .passes(secs(5) - 1)
            .then_inbox("")
            .passes(1)
            .then_effects("offer-task")
            .then_inbox("fired1")
            .passes(secs(5))
            .then_inbox("fired1")
            .task([])
            .then_wakes(Wake::Never);
    }

    #[test]
    fn timers_that_are_due_together_fire_in_the_order_of_deadline_and_number() {
        given(history().task([timer(1, 30), timer(2, 10), timer(3, 10), timer(4, 99)]))
            .passes(50)
            .then_inbox("fired2 fired3 fired1");
    }

    #[test]
    fn cancelling_a_timer_takes_back_its_untaken_firing() {
        given(history().task([timer(1, 10)]).signal("a").handed_out())
            .passes(10)
            .then_inbox("signal:a fired1")
            .completed([cancel_timer(1)])
            .then_effects("")
            .then_history("started task(0) timer1 signal:a task(1) cancel-timer1")
            .then_inbox("");
    }

    #[test]
    fn a_firing_that_nobody_takes_back_waits_for_the_next_task() {
        given(history().task([timer(1, 10), timer(2, 10), timer(3, 10)]).signal("a").handed_out())
            .passes(10)
            .then_inbox("signal:a fired1 fired2 fired3")
            .completed([cancel_timer(2)])
            .then_effects("offer-task")
            .then_inbox("fired1 fired3")
            .task([])
            .then_history(
                "started task(0) timer1 timer2 timer3 signal:a task(1) cancel-timer2 \
                 fired1 fired3 task(2)",
            );
    }

    #[test]
    fn a_task_that_closes_the_run_takes_back_the_firing_as_well() {
        given(history().task([timer(1, 10)]).signal("a").handed_out().passes(10).cancel_asked())
            .completed([cancel_timer(1), complete("done")])
            .then_history(
                "started task(0) timer1 signal:a cancel-asked task(1-1) cancel-timer1 COMPLETED",
            );
    }

    #[test]
    fn cancelling_a_timer_whose_firing_the_task_took_changes_nothing() {
        given(history().task([timer(1, 10)]).passes(10).task([cancel_timer(1)]))
            .then_history("started task(0) timer1 fired1 task(1) cancel-timer1")
            .then_wakes(Wake::Never)
            .signal("a")
            .task([cancel_timer(1)])
            .then_history(
                "started task(0) timer1 fired1 task(1) cancel-timer1 task-failed:BadCommands",
            );
    }

    #[test]
    fn a_cancelled_timer_never_fires() {
        given(history().task([timer(1, 10), timer(2, 20)]).signal("a").task([cancel_timer(1)]))
            .passes(50)
            .then_inbox("fired2");
        given(history().task([timer(1, 10), cancel_timer(1)])).passes(50).then_inbox("");
    }
}
