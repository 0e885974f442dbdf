//! Deadlines of an activity, and what it means when one has passed.

use onward_proto::{
    Timestamp,
    v1::{self, ActivityTimeoutKind},
};

use super::{
    super::{Decision, Limits, Run, limits::record},
    Activity, Attempt,
    attempt::{Ended, drop_attempt, end_attempt, make_ready},
    closing::{remove_row, timed_out},
};

/// What start-to-close is when nothing is set.
const DEFAULT_START_TO_CLOSE_US: i64 = 60_000_000;

/// What a deadline of an activity means.
enum Expired {
    /// The activity takes no more attempts.
    Closed(ActivityTimeoutKind),
    /// This attempt has ended.
    Attempt(ActivityTimeoutKind),
    /// Nobody claimed the attempt.
    Unclaimed,
    /// The next attempt may go out.
    BackoffOver,
}

impl Activity {
    pub(in crate::engine) fn start_to_close_us(&self) -> i64 {
        match self.timeout(|timeouts| timeouts.start_to_close_us) {
            Some(micros) => micros,
            None => DEFAULT_START_TO_CLOSE_US,
        }
    }

    pub(super) fn heartbeat_us(&self) -> Option<i64> {
        self.timeout(|timeouts| timeouts.heartbeat_us)
    }

    fn timeout(&self, which: impl Fn(&v1::ActivityTimeouts) -> i64) -> Option<i64> {
        self.scheduled.timeouts.as_ref().map(which).filter(|&micros| micros > 0)
    }

    /// When the activity as a whole has taken too long.
    pub(super) fn schedule_to_close(&self) -> Option<Timestamp> {
        let micros = self.timeout(|timeouts| timeouts.schedule_to_close_us)?;
        Some(self.scheduled_at.plus_micros(micros))
    }

    /// When the first attempt has waited too long for a worker.
    pub(in crate::engine) fn schedule_to_start(&self) -> Option<Timestamp> {
        let Attempt::Ready { since, may_be_out } = self.attempt else { return None };
        if self.attempts() > 0 {
            return None;
        }
        let micros = self.timeout(|timeouts| timeouts.schedule_to_start_us)?;
        // After a load the first attempt may have started long ago, so the wait counts anew.
        Some(if may_be_out { since } else { self.scheduled_at }.plus_micros(micros))
    }

    /// When an attempt that may run somewhere has certainly been dropped by its worker.
    fn dropped_by(&self, since: Timestamp) -> (Timestamp, ActivityTimeoutKind) {
        let start_to_close = since.plus_micros(self.start_to_close_us());
        match self.heartbeat_us().map(|micros| since.plus_micros(micros)) {
            Some(heartbeat) if heartbeat < start_to_close => {
                (heartbeat, ActivityTimeoutKind::Heartbeat)
            }
            Some(_) | None => (start_to_close, ActivityTimeoutKind::StartToClose),
        }
    }

    /// The next deadline, and what it means.
    fn next_expiry(&self) -> Option<(Timestamp, Expired)> {
        let mut next: Option<(Timestamp, Expired)> = None;
        let mut consider = |at: Timestamp, what: Expired| {
            if next.as_ref().is_none_or(|(earliest, _)| at < *earliest) {
                next = Some((at, what));
            }
        };
        if let Some(at) = self.schedule_to_close() {
            consider(at, Expired::Closed(ActivityTimeoutKind::ScheduleToClose));
        }
        if let Some(at) = self.schedule_to_start() {
            consider(at, Expired::Closed(ActivityTimeoutKind::ScheduleToStart));
        }
        match &self.attempt {
            Attempt::Ready { .. } => {}
            Attempt::BackingOff { until } => consider(*until, Expired::BackoffOver),
            Attempt::Running(running) => {
                let end = running.started_at.plus_micros(self.start_to_close_us());
                consider(end, Expired::Attempt(ActivityTimeoutKind::StartToClose));
                if let Some(micros) = self.heartbeat_us() {
                    let end = running.sign_at.plus_micros(micros);
                    consider(end, Expired::Attempt(ActivityTimeoutKind::Heartbeat));
                }
                // What was asked to stop is not given up at the grace: an undo could overtake it.
                if let (Some(until), false) = (running.claimable_until, self.cancel_requested) {
                    consider(until, Expired::Unclaimed);
                }
            }
            Attempt::Unknown { since, claimable_until } => {
                if self.cancel_requested {
                    let (end, kind) = self.dropped_by(*since);
                    consider(end, Expired::Attempt(kind));
                } else {
                    consider(*claimable_until, Expired::Unclaimed);
                }
            }
        }
        next
    }

    /// What is due. The end of the whole activity comes before all that is smaller.
    fn expired(&self, due: Timestamp) -> Option<Expired> {
        if self.schedule_to_close().is_some_and(|at| at <= due) {
            return Some(Expired::Closed(ActivityTimeoutKind::ScheduleToClose));
        }
        self.next_expiry().filter(|(at, _)| *at <= due).map(|(_, expired)| expired)
    }

    /// When the activity needs attention.
    pub(in crate::engine) fn deadline(&self) -> Option<Timestamp> {
        self.next_expiry().map(|(at, _)| at)
    }
}

impl Run {
    /// What the deadline of an activity means, now that it has passed.
    pub(in crate::engine) fn expire_activity(
        &self,
        now: Timestamp,
        due: Timestamp,
        number: u32,
        limits: &Limits,
        decision: &mut Decision,
    ) {
        let Some(activity) = self.activity(number) else { return };
        let Some(expired) = activity.expired(due) else { return };
        match expired {
            Expired::Closed(kind) => {
                let attempt = activity.attempt_out();
                drop_attempt(activity, decision);
                let closing = timed_out(activity, kind, attempt);
                decision.records.push(record(now, closing));
                remove_row(activity, decision);
            }
            Expired::Attempt(kind) => {
                drop_attempt(activity, decision);
                let attempt = activity.attempt_out();
                let ended = Ended::TimedOut(kind);
                end_attempt(now, activity, attempt, &ended, "", limits, decision);
            }
            Expired::Unclaimed => match &activity.attempt {
                Attempt::Running(running) => {
                    drop_attempt(activity, decision);
                    let attempt = running.token.attempt;
                    let identity = &running.identity;
                    end_attempt(now, activity, attempt, &Ended::Lost, identity, limits, decision);
                }
                Attempt::Ready { .. } | Attempt::BackingOff { .. } | Attempt::Unknown { .. } => {
                    let attempt = activity.attempt_out();
                    if activity.is_last(attempt) {
                        let ended = Ended::Lost;
                        end_attempt(now, activity, attempt, &ended, "", limits, decision);
                    } else {
                        make_ready(now, number, true, decision);
                    }
                }
            },
            Expired::BackoffOver => make_ready(now, number, false, decision),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::RetryPolicy;

    use super::super::super::{fixture::*, *};

    #[test]
    fn start_to_close_ends_one_attempt() {
        let story = limited("start-to-close", secs(5), 2).after(secs(2)).dispatched(1);
        let story = story.passes(secs(5) - 1).then_effects("").passes(1);
        let story = story.then_effects("cancel1#1:Lost").then_pending(1, Some(1));
        let story = story.passes(secs(1)).dispatched(1).passes(secs(5));
        story.then_inbox("timed-out1#2:StartToClose").then_pending(1, None);
    }

    #[test]
    fn start_to_close_is_a_minute_when_nothing_is_set() {
        let story = history().task([call(1)]).dispatched(1);
        let end = story.wake_in(secs(60));
        story.then_wakes(Wake::Hot(Some(end))).passes(secs(60)).then_pending(1, Some(1));
    }

    #[test]
    fn schedule_to_start_closes_what_no_worker_took() {
        given(limited("schedule-to-start", secs(5), 0))
            .passes(secs(5))
            .then_effects("withdraw1 offer-task")
            .then_inbox("timed-out1#0:ScheduleToStart");
        given(limited("schedule-to-start", secs(5), 0).dispatched(1).passes(secs(6)))
            .then_inbox("")
            .broke(1, "Flaky")
            .passes(secs(20))
            .then_inbox("");
    }

    #[test]
    fn what_is_due_together_happens_in_the_order_of_the_deadlines() {
        let call = |number, micros| {
            let timeouts = timeouts("schedule-to-close", micros);
            call_with(number, timeouts, RetryPolicy::default())
        };
        given(history().task([call(1, 30), timer(2, 20), call(3, 10), timer(4, 30)]))
            .passes(50)
            .then_inbox("timed-out3#0:ScheduleToClose fired2 fired4 timed-out1#0:ScheduleToClose");
    }

    #[test]
    fn schedule_to_close_ends_all_attempts_and_the_waits_between() {
        let running = limited("schedule-to-close", secs(5), 0).dispatched(1).passes(secs(5));
        running
            .then_effects("cancel1#1:Lost offer-task")
            .then_inbox("timed-out1#1:ScheduleToClose");
        let waiting = limited("schedule-to-close", secs(5), 0).dispatched(1).broke(1, "Flaky");
        let waiting = waiting.passes(secs(1)).dispatched(1).broke(1, "Flaky").passes(secs(4));
        waiting.then_inbox("timed-out1#2:ScheduleToClose").then_pending(1, None);
    }
}
