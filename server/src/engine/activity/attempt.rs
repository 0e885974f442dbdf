//! The end of an attempt: the activity closes, or another attempt follows after a wait.

use onward_proto::{
    MAX_DURATION_US, SeededBug, Timestamp,
    v1::{
        ActivityCompleted, ActivityFailed, ActivityFailureCause, ActivityTimeoutKind, CancelReason,
        Failure, Payload, PendingActivity, history_event::Attributes,
    },
};

use super::{
    super::{
        Decision, Effect, LeaseChange, Limits, Rejection, Run, Token,
        limits::{check_payloads, record},
    },
    Activity, Attempt,
    closing::{cancelled, failed, remove_row, timed_out},
};

/// The wait before the second attempt when nothing is set.
const DEFAULT_INITIAL_INTERVAL_US: i64 = 1_000_000;

/// The longest wait between attempts when nothing is set.
const DEFAULT_MAX_INTERVAL_US: i64 = 100_000_000;

/// Why an attempt ended without success.
pub(super) enum Ended<'a> {
    Failed(&'a Failure),
    TimedOut(ActivityTimeoutKind),
    Lost,
}

impl Activity {
    /// The wait before the attempt after this one.
    fn backoff_us(&self, attempt: u32) -> i64 {
        if SeededBug::RetryAtOnce.is_on() {
            return 0;
        }
        let retry = self.scheduled.retry.as_ref();
        let or = |micros: Option<i64>, default| micros.filter(|&m| m > 0).unwrap_or(default);
        let initial = or(retry.map(|r| r.initial_interval_us), DEFAULT_INITIAL_INTERVAL_US);
        let max = or(retry.map(|r| r.max_interval_us), DEFAULT_MAX_INTERVAL_US);
        let factor = retry.map(|r| r.backoff_coefficient).filter(|&f| f >= 1.0).unwrap_or(2.0);
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        // A float that is too large becomes the largest integer.
        let wait = (initial as f64 * factor.powi(exponent)) as i64;
        wait.clamp(0, max)
    }

    fn is_retryable(&self, failure: &Failure) -> bool {
        let policy = self.scheduled.retry.as_ref();
        !failure.non_retryable
            && !policy.is_some_and(|retry| retry.non_retryable_kinds.contains(&failure.kind))
    }
}

impl Run {
    pub(in crate::engine) fn decide_complete_activity(
        &self,
        now: Timestamp,
        token: Token,
        result: Option<&Payload>,
        identity: &str,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let activity = self.counting(token)?;
        let Token { number, attempt, .. } = token;
        let closing = match check_payloads(result, 0, limits) {
            Ok(()) => Attributes::ActivityCompleted(ActivityCompleted {
                number,
                result: result.cloned(),
                attempt,
                identity: identity.to_owned(),
            }),
            // The worker cannot make it smaller, so there is no use in another attempt.
            Err(limit) => failed(activity, attempt, None, identity, Some(limit)),
        };
        let mut decision = self.close_activity(now, activity, closing);
        if SeededBug::CloseTwice.is_on() {
            let again = timed_out(activity, ActivityTimeoutKind::StartToClose, attempt);
            decision.records.push(record(now, again));
        }
        Ok(decision)
    }

    pub(in crate::engine) fn decide_fail_activity(
        &self,
        now: Timestamp,
        token: Token,
        failure: &Failure,
        identity: &str,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let activity = self.counting(token)?;
        let attempt = token.attempt;
        let failure = failure.clone().fit(limits.payload_bytes);
        if !activity.is_retryable(&failure) {
            let closing = failed(activity, attempt, Some(failure), identity, None);
            return Ok(self.close_activity(now, activity, closing));
        }
        let mut decision = Decision::default();
        end_attempt(
            now,
            activity,
            attempt,
            &Ended::Failed(&failure),
            identity,
            limits,
            &mut decision,
        );
        if !decision.records.is_empty() {
            self.offer_task_for_facts(&mut decision);
        }
        Ok(decision)
    }

    /// Records the end of an activity.
    pub(super) fn close_activity(
        &self,
        now: Timestamp,
        activity: &Activity,
        closing: Attributes,
    ) -> Decision {
        let mut decision = Decision { records: vec![record(now, closing)], ..Decision::default() };
        if matches!(activity.attempt, Attempt::Ready { .. }) {
            decision.effects.push(Effect::WithdrawActivity { number: activity.number() });
        }
        remove_row(activity, &mut decision);
        self.offer_task_for_facts(&mut decision);
        decision
    }
}

pub(super) fn make_ready(now: Timestamp, number: u32, may_be_out: bool, decision: &mut Decision) {
    let attempt = Attempt::Ready { since: now, may_be_out };
    decision.leases.push(LeaseChange::Attempt { number, attempt });
    decision.effects.push(Effect::OfferActivity { number });
}

/// Tells the worker that its attempt no longer counts, or takes the offer back.
pub(super) fn drop_attempt(activity: &Activity, decision: &mut Decision) {
    match &activity.attempt {
        Attempt::Running(running) => decision.effects.push(Effect::CancelAttempt {
            token: running.token,
            session: running.session,
            reason: CancelReason::Lost,
        }),
        Attempt::Ready { .. } => {
            decision.effects.push(Effect::WithdrawActivity { number: activity.number() });
        }
        Attempt::BackingOff { .. } | Attempt::Unknown { .. } => {}
    }
}

/// An attempt has ended without success: another one follows, or the activity closes.
#[allow(clippy::too_many_arguments)] // one place for one rule, called with what each caller knows
pub(super) fn end_attempt(
    now: Timestamp,
    activity: &Activity,
    attempt: u32,
    ended: &Ended<'_>,
    identity: &str,
    limits: &Limits,
    decision: &mut Decision,
) {
    let number = activity.number();
    if activity.cancel_requested || activity.is_last(attempt) {
        let closing = match ended {
            Ended::TimedOut(kind) => timed_out(activity, *kind, attempt),
            Ended::Failed(failure) if activity.cancel_requested => {
                cancelled(number, attempt, Some((*failure).clone()))
            }
            Ended::Failed(failure) => Attributes::ActivityFailed(ActivityFailed {
                number,
                failure: Some((*failure).clone()),
                cause: ActivityFailureCause::Exhausted.into(),
                attempt,
                identity: identity.to_owned(),
                refused: None,
            }),
            Ended::Lost => Attributes::ActivityFailed(ActivityFailed {
                number,
                failure: None,
                cause: ActivityFailureCause::OutcomeUnknown.into(),
                attempt,
                identity: identity.to_owned(),
                refused: None,
            }),
        };
        decision.records.push(record(now, closing));
        remove_row(activity, decision);
        return;
    }

    let mut row = PendingActivity {
        attempts: attempt,
        written_token: None,
        last_timeout: 0,
        ..activity.current_row()
    };
    let mut wait = activity.backoff_us(attempt);
    match ended {
        Ended::Failed(failure) => {
            row.last_failure = Some((*failure).clone().fit(limits.last_failure_bytes));
            if let Some(micros) = failure.next_delay_us {
                wait = micros.clamp(0, MAX_DURATION_US);
            }
        }
        Ended::TimedOut(kind) => row.last_timeout = (*kind).into(),
        Ended::Lost => {
            row.last_failure = Some(Failure {
                kind: "onward::WorkerLost".into(),
                message: format!("the worker {identity} vanished"),
                ..Failure::default()
            });
        }
    }
    let until = now.plus_micros(wait);
    row.next_attempt_at_us = until.as_micros();
    decision.pending.push((number, Some(row)));
    if until <= now {
        make_ready(now, number, false, decision);
    } else {
        let attempt = Attempt::BackingOff { until };
        decision.leases.push(LeaseChange::Attempt { number, attempt });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::{
        ActivityTimeoutKind, ActivityTimeouts, Failure, RetryPolicy, history_event::Attributes,
    };
    use prost::Message as _;

    use super::super::super::{fixture::*, *};

    #[test]
    fn a_failed_attempt_is_repeated_after_a_wait_that_doubles_up_to_its_maximum() {
        let mut story = history().task([call(1)]);
        for (attempt, wait) in (1..).zip([1, 2, 4, 8, 16, 32, 64, 100, 100]) {
            story = story.dispatched(1).broke(1, "Flaky").then_effects("");
            let due = story.wake_in(secs(wait));
            story = story.then_pending(1, Some(attempt)).then_wakes(Wake::Cold(due));
            story = story.passes(secs(wait) - 1).then_effects("");
            assert_eq!(story.run.activity_offer(1), None);
            story = story.passes(1).then_effects("offer1");
            assert_eq!(story.run.has_incident(&story.limits), attempt >= 10);
        }
        story = story.dispatched(1).then_effects("send1#10").then_pending(1, Some(9));
        story = story.broke(1, "Flaky");
        assert!(story.run.has_incident(&story.limits));
        let story = story.passes(secs(100)).dispatched(1).returned(1).then_pending(1, None);
        assert!(!story.run.has_incident(&story.limits));
        story.then_inbox("returned1#11");
    }

    #[test]
    fn what_is_not_retryable_closes_the_activity() {
        let failures = [Failure { non_retryable: true, ..failure("Declined") }, failure("Fatal")];
        for failure in failures {
            let retry =
                RetryPolicy { non_retryable_kinds: vec!["Fatal".into()], ..RetryPolicy::default() };
            given(history().task([call_with(1, ActivityTimeouts::default(), retry)]))
                .dispatched(1)
                .broke_with(1, failure)
                .then_effects("offer-task")
                .then_inbox("broke1#1:Application");
        }
    }

    #[test]
    fn a_failure_may_name_the_wait_itself() {
        let retry_at_once = Failure { next_delay_us: Some(0), ..failure("Busy") };
        let later = Failure { next_delay_us: Some(secs(7)), ..failure("Busy") };
        let story = history().task([call(1)]).dispatched(1).broke_with(1, retry_at_once);
        let story = story.then_effects("offer1").dispatched(1).broke_with(1, later);
        let due = story.wake_in(secs(7));
        story.then_wakes(Wake::Cold(due));
    }

    #[test]
    fn the_last_failure_is_kept_short_beside_the_history_and_whole_in_it() {
        let long = Failure { message: "x".repeat(10_000), ..failure("Flaky") };
        let story = history().task([call_times(1, 2)]).dispatched(1).broke_with(1, long.clone());
        assert!(story.pending[&1].last_failure.as_ref().unwrap().encoded_len() <= 4_096);
        let story = story.passes(secs(1)).dispatched(1).broke_with(1, long.clone());
        let story = story.then_effects("offer-task").then_inbox("broke1#2:Exhausted");
        let story = story.then_pending(1, None);
        let Some(Attributes::ActivityFailed(failed)) = &story.run.inbox[0].attributes else {
            panic!()
        };
        assert_eq!(failed.failure.as_ref(), Some(&long));
    }

    #[test]
    fn a_completion_that_came_before_says_recorded_or_stale() {
        let story = history().task([call(1)]).dispatched(1).returned(1).returned(1);
        let story = story.then_rejected(&Rejection::Recorded);
        let later = Token { attempt: 2, ..story.tokens[&1] };
        let story = story.returned_by(later).then_rejected(&Rejection::Stale);
        story.task([]).returned(1).then_rejected(&Rejection::Stale);
    }

    #[test]
    fn a_result_that_is_too_large_closes_the_activity_as_refused() {
        let limits = Limits { payload_bytes: 100, ..Limits::default() };
        let story = history_of(&start_request(), limits).task([call(1)]).dispatched(1);
        let token = story.tokens[&1];
        let result = Some(payload(&"x".repeat(101)));
        let input = Input::CompleteActivity { token, result, identity: "w".into() };
        story.when(&input).then_inbox("broke1#1:Refused");
    }

    #[test]
    fn the_row_tells_how_the_last_attempt_ended_and_keeps_nothing_of_those_before() {
        let row = |story: &Story| story.pending[&1].clone();
        let told = |story: &Story| {
            let failure = row(story).last_failure.unwrap();
            format!("{}: {}", failure.kind, failure.message)
        };
        let story = limited("start-to-close", secs(5), 0).dispatched(1).passes(secs(5));
        assert_eq!(row(&story).last_timeout(), ActivityTimeoutKind::StartToClose);
        let story = story.passes(secs(1)).dispatched(1).broke(1, "Flaky");
        assert_eq!((row(&story).last_timeout, told(&story)), (0, "Flaky: it was Flaky".into()));
        let running = || history().task([call(1)]).dispatched(1);
        let lost = running().session_lost(1).passes(secs(10));
        assert_eq!(told(&lost), "onward::WorkerLost: the worker w1 vanished");
        let story = running();
        let token = story.tokens[&1];
        let stopped = Input::CancelledActivity { token, failure: None, identity: "w1".into() };
        let story = story.when(&stopped);
        assert_eq!(told(&story), "onward::Cancelled: the attempt stopped without being asked to");
        let story = running().reload().passes(secs(10)).dispatched(1);
        assert!(row(&story).written_token.is_some());
        assert_eq!(row(&story.broke(1, "Flaky")).written_token, None);
    }
}
