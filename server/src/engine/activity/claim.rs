//! Attempts that may run somewhere: which of them counts, and who may claim it.
//!
//! After a load nobody knows which attempts are out, and after the loss of a session nobody knows
//! whether its attempts will be heard of again. A worker that still runs one says so. What nobody
//! claims within the grace goes out as the next attempt, or closes if it was the last.

use onward_proto::{SeededBug, Timestamp, v1::CancelReason};

use super::{
    super::{
        Decision, Effect, LeaseChange, Limits, Rejection, Run, SessionId, Token, Work, Worker,
    },
    Activity, Attempt, Running,
    closing::closes_attempt,
};

impl Activity {
    /// Whether the token names the attempt that counts: the running one, or one that may be out.
    fn counts(&self, token: Token) -> bool {
        if SeededBug::LateAttempt.is_on() {
            return true;
        }
        match &self.attempt {
            Attempt::Running(running) => running.token == token,
            Attempt::Unknown { .. } | Attempt::Ready { may_be_out: true, .. } => {
                match self.written_token() {
                    Some(written) => Token::from_wire(written).is_ok_and(|known| known == token),
                    None => token.attempt == self.attempts().saturating_add(1),
                }
            }
            Attempt::Ready { may_be_out: false, .. } | Attempt::BackingOff { .. } => false,
        }
    }

    /// The attempt that runs or may run.
    pub(super) fn attempt_out(&self) -> u32 {
        match &self.attempt {
            Attempt::Running(running) => running.token.attempt,
            Attempt::Unknown { .. } | Attempt::Ready { may_be_out: true, .. } => {
                self.attempts().saturating_add(1)
            }
            Attempt::Ready { may_be_out: false, .. } | Attempt::BackingOff { .. } => {
                self.attempts()
            }
        }
    }

    /// Where it stands after a load.
    fn after_load(&self, now: Timestamp, due: Timestamp, work: Work, limits: &Limits) -> Attempt {
        let claimable_until = now.plus_micros(limits.reconnect_grace_us);
        let unknown = Attempt::Unknown { since: now, claimable_until };
        if self.cancel_requested {
            // It would have closed if no attempt had been out.
            return unknown;
        }
        let never_out = self.written_token().is_none() && self.is_last(self.attempts() + 1);
        let next = self.row.as_ref().map_or(0, |row| row.next_attempt_at_us);
        let next = Timestamp::from_micros(next);
        if self.written_token().is_none() && next > due {
            return Attempt::BackingOff { until: next };
        }
        match work {
            Work::MayBeInFlight if !never_out => unknown,
            Work::Unclaimed if !never_out => Attempt::Ready { since: now, may_be_out: true },
            Work::MayBeInFlight | Work::Unclaimed | Work::NoneInFlight => {
                Attempt::Ready { since: now, may_be_out: false }
            }
        }
    }

    /// What a load has to know to bring the activity back as it is; `None` if it cannot.
    pub(in crate::engine) fn can_leave(&self) -> Option<Work> {
        match self.attempt {
            Attempt::BackingOff { .. } | Attempt::Ready { may_be_out: false, .. } => {
                Some(Work::NoneInFlight)
            }
            Attempt::Ready { may_be_out: true, .. } => Some(Work::Unclaimed),
            Attempt::Running(_) | Attempt::Unknown { .. } => None,
        }
    }
}

impl Run {
    /// After a load: what may be out becomes claimable.
    pub(in crate::engine) fn load_attempts(
        &mut self,
        now: Timestamp,
        due: Timestamp,
        work: Work,
        limits: &Limits,
    ) {
        for place in 0..self.activities.len() {
            self.change_activity(place, |activity| {
                activity.attempt = activity.after_load(now, due, work, limits);
            });
        }
    }

    /// The attempts of a lost session become claimable.
    pub(in crate::engine) fn lose_attempts(&mut self, session: SessionId, until: Timestamp) {
        for place in 0..self.activities.len() {
            self.change_activity(place, |activity| {
                if let Attempt::Running(running) = &mut activity.attempt
                    && running.session == session
                {
                    running.claimable_until = Some(until);
                }
            });
        }
    }

    /// The activity whose attempt the token names, if that attempt counts.
    ///
    /// Refusals speak of the run's newest state: like every answer they leave the server only when
    /// that is durable.
    pub(super) fn counting(&self, token: Token) -> Result<&Activity, Rejection> {
        if token.run_id != self.identity.run_id {
            return Err(Rejection::Stale);
        }
        match self.activity(token.number) {
            Some(activity) if activity.counts(token) => Ok(activity),
            None if self.inbox.iter().any(|fact| closes_attempt(fact, token)) => {
                Err(Rejection::Recorded)
            }
            Some(_) | None => Err(Rejection::Stale),
        }
    }

    pub(in crate::engine) fn decide_claim(
        &self,
        now: Timestamp,
        token: Token,
        worker: &Worker,
    ) -> Result<Decision, Rejection> {
        let activity = self.counting(token)?;
        let mut running = match &activity.attempt {
            Attempt::Running(running) => (**running).clone(),
            // When it started is not known, only that it was before now.
            Attempt::Ready { .. } | Attempt::BackingOff { .. } | Attempt::Unknown { .. } => {
                Running {
                    token,
                    session: worker.session,
                    identity: String::new(),
                    started_at: now,
                    sign_at: now,
                    claimable_until: None,
                }
            }
        };
        running.session = worker.session;
        running.identity.clone_from(&worker.identity);
        running.claimable_until = None;
        running.sign_at = running.sign_at.max(now);

        let mut decision = Decision::default();
        if matches!(activity.attempt, Attempt::Ready { .. }) {
            decision.effects.push(Effect::WithdrawActivity { number: token.number });
        }
        if activity.cancel_requested {
            // The session that was told before is gone.
            let reason = CancelReason::Requested;
            decision.effects.push(Effect::CancelAttempt { token, session: worker.session, reason });
        }
        decision.leases.push(LeaseChange::Attempt {
            number: token.number,
            attempt: Attempt::Running(Box::new(running)),
        });
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::{PendingActivityState, RetryPolicy};

    use super::super::super::{fixture::*, *};

    #[test]
    fn an_unclaimed_last_attempt_is_never_repeated() {
        given(history().task([call_times(1, 1)]).dispatched(1).reload())
            .passes(secs(10) - 1)
            .then_inbox("")
            .passes(1)
            .then_effects("offer-task")
            .then_inbox("broke1#1:OutcomeUnknown")
            .then_pending(1, None);
        // The same when its session is lost.
        given(history().task([call_times(1, 1)]).dispatched(1).session_lost(1))
            .passes(secs(10))
            .then_inbox("broke1#1:OutcomeUnknown");
    }

    #[test]
    fn a_last_attempt_without_a_written_token_was_never_out() {
        let story = history().task([call_times(1, 1)]).reload();
        assert_eq!(story.run.ready_activities().collect::<Vec<_>>(), [1]);
        story.dispatched(1).then_effects("send1#1").returned(1).then_inbox("returned1#1");
    }

    #[test]
    fn after_a_load_what_may_be_out_can_be_claimed_or_answered() {
        for max_attempts in [0, 1, 3] {
            let story = history().task([call_times(1, max_attempts)]).dispatched(1).reload();
            assert_eq!(story.run.ready_activities().count(), 0);
            let story = story.after(secs(5)).claimed(1, 2).then_effects("").passes(secs(20));
            let info = &story.run.describe(story.now, &|_| 1, &story.limits).pending_activities;
            assert_eq!(info[0].state(), PendingActivityState::Running);
            story.returned(1).then_inbox("returned1#1");
            let story = history().task([call_times(1, max_attempts)]).dispatched(1).reload();
            story.returned(1).then_inbox("returned1#1").then_pending(1, None);
        }
    }

    #[test]
    fn what_nobody_claims_goes_out_as_the_next_attempt_with_its_token_on_record() {
        let story = history().task([call(1)]).dispatched(1).reload().passes(secs(10));
        let story = story.then_effects("offer1").then_pending(1, None);
        let first = story.tokens[&1];
        let story = story.dispatched_to(1, 2).then_effects("send1#2").then_pending(1, Some(1));
        assert_eq!(story.pending[&1].written_token.as_ref().unwrap().attempt, 2);
        // The first attempt comes too late now, whatever it says.
        let worker = worker(1);
        let story = story.when(&Input::ClaimAttempt { token: first, worker });
        let story = story.then_rejected(&Rejection::Stale);
        let story = story.returned_by(first).then_rejected(&Rejection::Stale);
        // The written token is found again after another load, and only that one.
        let story = story.reload().returned_by(first).then_rejected(&Rejection::Stale);
        let other = Token { incarnation: Incarnation(99), ..story.tokens[&1] };
        let story = story.returned_by(other).then_rejected(&Rejection::Stale);
        story.returned(1).then_inbox("returned1#2").then_pending(1, None);
    }

    #[test]
    fn a_claim_counts_after_the_grace_as_long_as_nothing_was_dispatched() {
        given(history().task([call(1)]).dispatched(1).reload().passes(secs(10)))
            .claimed(1, 2)
            .then_effects("withdraw1")
            .dispatched(1)
            .then_rejected(&Rejection::Stale)
            .returned(1)
            .then_inbox("returned1#1");
    }

    #[test]
    fn the_first_claim_wins() {
        let story = history().task([call(1)]).dispatched(1).reload().claimed(1, 2);
        let token = Token { incarnation: Incarnation(99), ..story.tokens[&1] };
        let worker = worker(3);
        story.when(&Input::ClaimAttempt { token, worker }).then_rejected(&Rejection::Stale);
    }

    #[test]
    fn a_run_whose_activity_waits_for_a_worker_comes_back_as_it_left() {
        let story = history().task([call(1)]).comes_back();
        assert_eq!(story.run.ready_activities().collect::<Vec<_>>(), [1]);
        story.dispatched(1).then_effects("send1#1").returned(1).then_inbox("returned1#1");
        // What nobody claimed may still be out: coming back does not ask for claims again.
        let story = history().task([call(1)]).dispatched(1).reload().passes(secs(10));
        let (first, story) = (story.tokens[&1], story.comes_back());
        assert_eq!(story.run.ready_activities().collect::<Vec<_>>(), [1]);
        story.returned_by(first).then_inbox("returned1#1");
    }

    #[test]
    fn a_run_with_something_in_flight_cannot_leave() {
        let leaves = |story: Story| story.run.can_leave().is_some();
        assert!(leaves(history().task([call(1)])));
        assert!(!leaves(history().task([call(1)]).dispatched(1)), "an attempt runs");
        assert!(!leaves(history().task([call(1)]).dispatched(1).reload()), "it may be claimed");
        assert!(leaves(history().task([call(1)]).dispatched(1).broke(1, "Flaky")), "it backs off");
        assert!(leaves(history()), "a task waits for a worker");
        assert!(!leaves(history().handed_out()), "a task is in flight");
        assert!(leaves(history().handed_out().session_lost(1)), "a task that failed waits");
        let void = history().handed_out().signal("a").completed([complete("done")]);
        assert!(!leaves(void), "a task is to be repeated");
    }

    #[test]
    fn a_run_stays_if_a_wait_for_a_worker_would_count_anew() {
        let leaves = |story: Story| story.run.can_leave().is_some();
        let waits = |number| {
            call_with(number, timeouts("schedule-to-start", secs(60)), RetryPolicy::default())
        };
        let unclaimed = |command| history().task([command]).dispatched(1).reload().passes(secs(10));
        assert!(leaves(history().task([waits(1)])));
        assert!(leaves(unclaimed(call(1))));
        assert!(!leaves(unclaimed(waits(1))));
        // The load that brings it back would take the second for one that may be out as well.
        assert!(!leaves(unclaimed(call(1)).signal("s").task([waits(2)])));
        assert!(leaves(unclaimed(call(1)).signal("s").task([call(2)])));
    }

    #[test]
    fn a_retry_that_was_missed_asleep_starts_at_once() {
        let story = history().task([call(1)]).dispatched(1).broke(1, "Flaky");
        let story = story.after(secs(60)).comes_back();
        assert_eq!(story.run.ready_activities().collect::<Vec<_>>(), [1]);
        story.dispatched(1).then_effects("send1#2");
    }

    #[test]
    fn after_a_load_a_wait_between_attempts_goes_on() {
        let story = history().task([call(1)]).dispatched(1).broke(1, "Flaky");
        let due = story.wake_in(secs(1));
        let story = story.after(400_000).reload().then_wakes(Wake::Cold(due));
        story.passes(600_000).dispatched(1).then_effects("send1#2").then_pending(1, Some(1));
    }

    #[test]
    fn a_lost_sessions_attempt_may_be_claimed_for_a_while_and_is_then_written_off() {
        let story = history().task([call(1)]).dispatched(1).session_lost(1);
        let story = story.passes(secs(5)).then_effects("").claimed(1, 2).passes(secs(20));
        let story = story.then_pending(1, None).session_lost(2).passes(secs(10));
        let story = story.then_effects("cancel1#1:Lost").then_pending(1, Some(1));
        let story = story.claimed(1, 3).then_rejected(&Rejection::Stale);
        let story = story.returned(1).then_rejected(&Rejection::Stale);
        story.passes(secs(1)).dispatched(1).then_effects("send1#2");
    }
}
