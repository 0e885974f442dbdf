//! Finding a worker for the next attempt.
//!
//! A token is stored before dispatch when it is the last that the policy allows, and when it follows
//! an attempt that may have been out.

use onward_proto::{
    SeededBug, Timestamp,
    v1::{ActivityTask, PendingActivity},
};

use super::{
    super::{Decision, Effect, Incarnation, LeaseChange, Rejection, Run, Token, Worker},
    Activity, Attempt, Running,
};

/// An activity that waits for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivityOffer<'a> {
    /// The queue that it waits in.
    pub task_queue: &'a str,
    /// The registered name of the activity function.
    pub activity_type: &'a str,
    /// Higher goes first.
    pub priority: i32,
    /// Since when it waits.
    pub since: Timestamp,
}

impl Activity {
    /// Whether the next attempt may be given to a worker.
    pub(super) fn ready_since(&self) -> Option<Timestamp> {
        match self.attempt {
            Attempt::Ready { since, .. } => Some(since),
            Attempt::BackingOff { .. } | Attempt::Running(_) | Attempt::Unknown { .. } => None,
        }
    }
}

impl Run {
    /// An activity that waits for a worker.
    pub fn activity_offer(&self, number: u32) -> Option<ActivityOffer<'_>> {
        let activity = self.activity(number)?;
        let since = activity.ready_since()?;
        let scheduled = &activity.scheduled;
        Some(ActivityOffer {
            task_queue: &scheduled.task_queue,
            activity_type: &scheduled.activity_type,
            priority: scheduled.priority,
            since,
        })
    }

    /// The activities that wait for a worker, by number.
    pub fn ready_activities(&self) -> impl Iterator<Item = u32> {
        self.activities
            .iter()
            .filter(|activity| activity.ready_since().is_some())
            .map(|activity| activity.number())
    }

    /// What a worker gets for a running attempt. The caller fills in the namespace's name.
    pub fn activity_task(&self, token: Token) -> Option<ActivityTask> {
        let activity = self.activity(token.number)?;
        let Attempt::Running(running) = &activity.attempt else { return None };
        if running.token != token {
            return None;
        }
        let mut start_to_close_us = activity.start_to_close_us();
        if let Some(end) = activity.schedule_to_close() {
            // The worker drops the attempt no later than the activity times out as a whole.
            let left = end.since(running.started_at).as_micros() as i64;
            start_to_close_us = start_to_close_us.min(left);
        }
        Some(ActivityTask {
            token: Some(token.to_wire()),
            workflow_id: self.identity.workflow_id.clone(),
            workflow_type: self.identity.workflow_type.clone(),
            activity_type: activity.scheduled.activity_type.clone(),
            arguments: activity.scheduled.arguments.clone(),
            scheduled_at_us: activity.scheduled_at.as_micros(),
            start_to_close_us,
            heartbeat_us: activity.heartbeat_us().unwrap_or(0),
            heartbeat_details: activity.details().cloned(),
            namespace: String::new(),
        })
    }

    /// A worker has been found for the next attempt.
    pub(in crate::engine) fn decide_start_attempt(
        &self,
        now: Timestamp,
        number: u32,
        worker: &Worker,
        incarnation: Incarnation,
    ) -> Result<Decision, Rejection> {
        let activity = self.activity(number).ok_or(Rejection::Stale)?;
        activity.ready_since().ok_or(Rejection::Stale)?;
        let may_be_out = matches!(activity.attempt, Attempt::Ready { may_be_out: true, .. });
        // What may be out and was not claimed is written off by the dispatch that follows it.
        let ended = activity.attempts() + u32::from(may_be_out);
        let token = Token { run_id: self.identity.run_id, number, incarnation, attempt: ended + 1 };
        let running = Running {
            token,
            session: worker.session,
            identity: worker.identity.clone(),
            started_at: now,
            sign_at: now,
            claimable_until: None,
        };
        let mut decision = Decision {
            effects: vec![Effect::SendActivity { token, session: worker.session }],
            leases: vec![LeaseChange::Attempt {
                number,
                attempt: Attempt::Running(Box::new(running)),
            }],
            ..Decision::default()
        };
        let is_last = activity.is_last(token.attempt) && !SeededBug::LastAttemptUnwritten.is_on();
        if may_be_out || is_last {
            let row = PendingActivity {
                attempts: ended,
                written_token: Some(token.to_wire()),
                ..activity.current_row()
            };
            decision.pending.push((number, Some(row)));
        }
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::super::{fixture::*, *};

    #[test]
    fn scheduling_and_starting_an_attempt_write_nothing_but_the_event() {
        given(history().task([call(1)]))
            .then_effects("offer1")
            .dispatched(1)
            .then_effects("send1#1")
            .then_pending(1, None)
            .dispatched(1)
            .then_rejected(&Rejection::Stale)
            .returned(1)
            .then_effects("offer-task")
            .task([])
            .then_history("started task(0) call1 returned1#1 task(1)");
    }

    #[test]
    fn a_worker_gets_what_the_code_called() {
        let story = limited("heartbeat", secs(3), 0).dispatched(1);
        let task = story.run.activity_task(story.tokens[&1]).unwrap();
        assert_eq!(task.activity_type, "charge");
        assert_eq!(
            (task.workflow_id.as_str(), task.workflow_type.as_str()),
            ("order-42", "checkout")
        );
        assert_eq!((task.start_to_close_us, task.heartbeat_us), (secs(60), secs(3)));
        assert_eq!(task.arguments, [payload("1")]);
        // An attempt is told no more time than the activity as a whole has.
        let story = limited("schedule-to-close", secs(9), 0).after(secs(2)).dispatched(1);
        let task = story.run.activity_task(story.tokens[&1]).unwrap();
        assert_eq!(task.start_to_close_us, secs(7));
    }

    #[test]
    fn the_last_allowed_attempt_is_on_record_before_it_goes_out() {
        let story = history().task([call_times(1, 1)]).dispatched(1).then_pending(1, Some(0));
        let written = story.pending[&1].written_token.clone().unwrap();
        assert_eq!(Token::from_wire(&written).unwrap(), story.tokens[&1]);
        let story = history().task([call_times(1, 2)]).dispatched(1).then_pending(1, None);
        let story = story.broke(1, "Flaky").passes(secs(1));
        assert_eq!(story.pending[&1].written_token, None);
        let story = story.dispatched(1).then_pending(1, Some(1));
        assert_eq!(story.pending[&1].written_token.as_ref().unwrap().attempt, 2);
    }
}
