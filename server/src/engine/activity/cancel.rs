//! Asking an activity to stop.
//!
//! No further attempt is made. What never left the server closes at once; what may run closes when
//! its attempt has ended or its timeouts have passed, so that an undo cannot overtake what it undoes.

use onward_proto::{Timestamp, v1::Failure};

use super::{
    super::{Decision, Limits, Rejection, Run, Token},
    Activity, Attempt,
    closing::cancelled,
};

impl Activity {
    /// Whether no attempt is out, so that a cancel closes the activity at once.
    pub(in crate::engine) fn is_at_home(&self) -> bool {
        match self.attempt {
            Attempt::Ready { may_be_out, .. } => !may_be_out,
            Attempt::BackingOff { .. } => true,
            Attempt::Running(_) | Attempt::Unknown { .. } => false,
        }
    }
}

impl Run {
    /// Folds a request to stop in. An activity that has closed stays closed.
    pub(in crate::engine) fn cancel_activity(&mut self, number: u32) {
        if let Some(place) = self.activity_place(number) {
            self.change_activity(place, |activity| {
                activity.cancel_requested = true;
                if let Attempt::Ready { since, may_be_out: true } = activity.attempt {
                    activity.attempt = Attempt::Unknown { since, claimable_until: since };
                }
            });
        }
    }

    pub(in crate::engine) fn decide_cancelled_activity(
        &self,
        now: Timestamp,
        token: Token,
        failure: Option<&Failure>,
        identity: &str,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let activity = self.counting(token)?;
        if activity.cancel_requested {
            let failure = failure.map(|failure| failure.clone().fit(limits.payload_bytes));
            let closing = cancelled(activity.number(), token.attempt, failure);
            return Ok(self.close_activity(now, activity, closing));
        }
        // Nobody asked: it is an attempt that failed, whatever the worker calls it.
        let unasked = Failure {
            kind: "onward::Cancelled".into(),
            message: "the attempt stopped without being asked to".into(),
            ..Failure::default()
        };
        let mut failure = failure.cloned().unwrap_or(unasked);
        failure.non_retryable = false;
        self.decide_fail_activity(now, token, &failure, identity, limits)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::{ActivityTimeouts, Failure, RetryPolicy};

    use super::super::super::{fixture::*, *};

    #[test]
    fn cancelling_closes_at_once_only_what_never_left_the_server() {
        let waiting = || history().task([call(1)]).signal("a").handed_out();
        given(waiting().completed([cancel_call(1)]))
            .then_effects("withdraw1 offer-task")
            .then_inbox("cancelled1#0");
        given(history().task([call(1), cancel_call(1)]))
            .then_effects("offer-task")
            .then_history("started task(0) call1 cancel-call1")
            .then_inbox("cancelled1#0");
        let backing_off = history().task([call(1)]).dispatched(1).broke(1, "Flaky").signal("a");
        given(backing_off.task([cancel_call(1)])).then_inbox("cancelled1#1").then_pending(1, None);
        given(waiting().dispatched(1).completed([cancel_call(1)]))
            .then_effects("cancel1#1:Requested")
            .then_inbox("");
    }

    /// A running attempt that was asked to stop.
    fn asked_to_stop() -> Story {
        let retry = RetryPolicy::default();
        let command = call_with(1, timeouts("heartbeat", secs(5)), retry);
        history().task([command]).dispatched(1).signal("a").task([cancel_call(1)])
    }

    #[test]
    fn what_was_asked_to_stop_closes_when_its_attempt_ends() {
        asked_to_stop().returned(1).then_inbox("returned1#1");
        asked_to_stop().broke(1, "Flaky").then_inbox("cancelled1#1").then_pending(1, None);
        let fatal = Failure { non_retryable: true, ..failure("Declined") };
        asked_to_stop().broke_with(1, fatal).then_inbox("broke1#1:Application");
        let story = asked_to_stop();
        let token = story.tokens[&1];
        let stopped = Input::CancelledActivity { token, failure: None, identity: "w".into() };
        story.when(&stopped).then_inbox("cancelled1#1");
        // Not asked, it is a failed attempt.
        let story = history().task([call(1)]).dispatched(1).when(&stopped);
        story.then_inbox("").then_pending(1, Some(1));
    }

    #[test]
    fn what_was_asked_to_stop_outlives_the_grace_but_not_its_timeouts() {
        let lost = asked_to_stop().session_lost(1);
        lost.passes(secs(5) - 1).then_inbox("").passes(1).then_inbox("timed-out1#1:Heartbeat");
        let retry = RetryPolicy { max_attempts: 1, ..RetryPolicy::default() };
        let command = call_with(1, ActivityTimeouts::default(), retry);
        for reload in [false, true] {
            let story = history().task([command.clone()]).dispatched(1).signal("a");
            let story = story.task([cancel_call(1)]);
            let story = if reload { story.reload() } else { story.session_lost(1) };
            let story = story.passes(secs(59)).then_inbox("").passes(secs(1));
            story.then_inbox("timed-out1#1:StartToClose");
        }
    }

    #[test]
    fn a_claimed_attempt_is_told_again_that_it_was_asked_to_stop() {
        asked_to_stop().session_lost(1).claimed(1, 2).then_effects("cancel1#1:Requested");
        asked_to_stop().reload().claimed(1, 2).then_effects("cancel1#1:Requested");
    }

    #[test]
    fn what_may_be_out_is_not_dispatched_again_once_it_was_asked_to_stop() {
        let story = history().task([call(1)]).dispatched(1).reload().passes(secs(10));
        let story = story.signal("a").task([cancel_call(1)]).then_effects("withdraw1");
        let story = story.dispatched(1).then_rejected(&Rejection::Stale);
        story.passes(secs(60)).then_inbox("timed-out1#1:StartToClose");
    }

    #[test]
    fn cancelling_what_has_closed_changes_nothing() {
        given(history().task([call(1)]).dispatched(1).signal("a").handed_out().returned(1))
            .completed([cancel_call(1)])
            .then_history("started task(0) call1 signal:a task(1) cancel-call1")
            .then_inbox("returned1#1");
        given(history().task([call(1)]).dispatched(1).returned(1).task([cancel_call(1)]))
            .then_history("started task(0) call1 returned1#1 task(1) cancel-call1");
    }
}
