//! The end of a run.
//!
//! A closing event is always the last. It comes with the task whose code ended the run, or by
//! itself: terminated, timed out, or because the history is full. What runs is stopped, what waits
//! is taken back; no event tells of it.

use onward_proto::{
    Timestamp,
    v1::{
        CancelReason, Failure, Limit, WorkflowExecutionFailed, WorkflowExecutionTerminated,
        WorkflowExecutionTimedOut, WorkflowOutcome, WorkflowStatus, WorkflowTimeoutKind,
        history_event::Attributes,
    },
};

use super::{
    Decision, Effect, Limits, Rejection, RequestKind, Run, Stop, activity::Attempt,
    deadlines::Deadlines, limits::record, run::detached, signal::check_stop,
};

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Closed {
    pub(super) at: Timestamp,
    pub(super) outcome: WorkflowOutcome,
}

impl Run {
    /// Whether the run has ended.
    pub fn is_closed(&self) -> bool {
        self.status != WorkflowStatus::Running
    }

    pub(super) fn decide_terminate(
        &self,
        now: Timestamp,
        stop: &Stop,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let answer = self.check_request(now, RequestKind::Terminate, stop.request_id, limits)?;
        check_stop(stop, limits)?;
        let closing = Attributes::WorkflowExecutionTerminated(WorkflowExecutionTerminated {
            reason: stop.reason.clone(),
            identity: stop.identity.clone(),
            request_id: stop.request_id.to_wire(),
        });
        Ok(Decision { answer: Some(answer), ..self.decide_close(now, closing) })
    }

    /// Closes the run because of its run or execution timeout.
    pub(super) fn decide_timed_out(&self, now: Timestamp, kind: WorkflowTimeoutKind) -> Decision {
        let kind = kind.into();
        let closing = Attributes::WorkflowExecutionTimedOut(WorkflowExecutionTimedOut { kind });
        self.decide_close(now, closing)
    }

    /// Closes the run because its history is full.
    pub(super) fn decide_full(&self, now: Timestamp, limit: Limit) -> Decision {
        let closing = Attributes::WorkflowExecutionFailed(WorkflowExecutionFailed {
            failure: Some(broken_limit(&limit)),
            unread_signals: Vec::new(),
            refused: Some(limit),
        });
        self.decide_close(now, closing)
    }

    /// Closes the run without a task of its own.
    fn decide_close(&self, now: Timestamp, closing: Attributes) -> Decision {
        let mut decision = Decision { records: vec![record(now, closing)], ..Decision::default() };
        if self.owes_task() || self.task.open.is_some() {
            decision.effects.push(Effect::WithdrawTask);
        }
        self.let_go(&mut decision);
        decision
    }

    /// Stops what runs and takes back what waits, because the run closes.
    pub(super) fn let_go(&self, decision: &mut Decision) {
        for activity in &self.activities {
            let number = activity.number();
            match &activity.attempt {
                Attempt::Running(running) => decision.effects.push(Effect::CancelAttempt {
                    token: running.token,
                    session: running.session,
                    reason: CancelReason::Lost,
                }),
                Attempt::Ready { .. } => {
                    decision.effects.push(Effect::WithdrawActivity { number });
                }
                Attempt::BackingOff { .. } | Attempt::Unknown { .. } => {}
            }
            if activity.row.is_some() {
                decision.pending.push((number, None));
            }
        }
        decision.effects.push(Effect::Closed);
    }

    /// The earlier of the run's own timeouts, if it has any.
    pub(super) fn workflow_timeout(&self) -> Option<(Timestamp, WorkflowTimeoutKind)> {
        let run = self.started.run_timeout_us;
        let execution = self.started.execution_timeout_us;
        let (after, kind) = match (run, execution) {
            (..=0, ..=0) => return None,
            (run, ..=0) => (run, WorkflowTimeoutKind::Run),
            (..=0, execution) => (execution, WorkflowTimeoutKind::Execution),
            (run, execution) if run <= execution => (run, WorkflowTimeoutKind::Run),
            (_, execution) => (execution, WorkflowTimeoutKind::Execution),
        };
        Some((self.identity.started_at.plus_micros(after), kind))
    }

    /// Folds the closing event in.
    pub(super) fn close(&mut self, at: Timestamp, closing: &Attributes) {
        let (status, outcome) = match closing {
            Attributes::WorkflowExecutionCompleted(completed) => (
                WorkflowStatus::Completed,
                WorkflowOutcome {
                    result: completed.result.as_ref().map(detached),
                    ..Default::default()
                },
            ),
            Attributes::WorkflowExecutionFailed(failed) => (
                WorkflowStatus::Failed,
                WorkflowOutcome {
                    failure: failed.failure.clone(),
                    refused: failed.refused.clone(),
                    ..Default::default()
                },
            ),
            Attributes::WorkflowExecutionCancelled(cancelled) => (
                WorkflowStatus::Cancelled,
                WorkflowOutcome { failure: cancelled.failure.clone(), ..Default::default() },
            ),
            Attributes::WorkflowExecutionTimedOut(timed_out) => (
                WorkflowStatus::TimedOut,
                WorkflowOutcome { timeout_kind: timed_out.kind, ..Default::default() },
            ),
            Attributes::WorkflowExecutionTerminated(terminated) => {
                let message = terminated.reason.clone();
                let kind = "onward::Terminated".into();
                let failure = Failure { kind, message, ..Failure::default() };
                let failure = Some(failure);
                (WorkflowStatus::Terminated, WorkflowOutcome { failure, ..Default::default() })
            }
            Attributes::WorkflowExecutionStarted(_)
            | Attributes::WorkflowExecutionCancelRequested(_)
            | Attributes::WorkflowTaskCompleted(_)
            | Attributes::WorkflowTaskFailed(_)
            | Attributes::ActivityScheduled(_)
            | Attributes::ActivityCancelRequested(_)
            | Attributes::ActivityCompleted(_)
            | Attributes::ActivityFailed(_)
            | Attributes::ActivityTimedOut(_)
            | Attributes::ActivityCancelled(_)
            | Attributes::TimerStarted(_)
            | Attributes::TimerFired(_)
            | Attributes::TimerCancelled(_)
            | Attributes::SignalReceived(_)
            | Attributes::MarkerRecorded(_) => return,
        };
        self.status = status;
        let outcome = WorkflowOutcome { status: status.into(), ..outcome };
        self.closed = Some(Box::new(Closed { at, outcome }));
        self.inbox = Vec::new();
        self.inbox_bytes = 0;
        self.head = Vec::new();
        self.timers = Vec::new();
        self.activities = Vec::new();
        self.active = 0;
        self.deadlines = Deadlines::default();
        self.task.open = None;
        self.task.not_before = None;
        self.task.repeat = false;
    }
}

/// The failure of a run that broke a limit.
pub(super) fn broken_limit(limit: &Limit) -> Failure {
    Failure {
        kind: "onward::Limit".into(),
        message: format!("{} is limited to {}, got {}", limit.name, limit.limit, limit.value),
        non_retryable: true,
        ..Failure::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::{
        ActivityTimeouts, RetryPolicy, WorkflowStatus as Status, WorkflowTaskFailureCause,
        WorkflowTimeoutKind as Kind,
    };

    use super::super::{fixture::*, *};

    #[test]
    fn an_untaken_signal_refuses_a_close_and_the_repeated_task_sees_it_first() {
        for close in [complete("done"), fail("Broken"), cancel()] {
            let story = history().task([call(1)]).dispatched(1).returned(1).handed_out();
            let story = story.signal("a").completed([marker(2, "v"), close.clone()]);
            let story = story.then_effects("void offer-task").then_history("started task(0) call1");
            assert!(!story.run.holds_signals(), "not before the hand-out");
            let story = story.signal("b").handed_out();
            assert!(story.run.holds_signals());
            let story = story.then_handed_out("signal:a signal:b returned1#1");
            let void =
                TaskCompletion { task_id: story.handed_out[1].0, ..story.completion(vec![]) };
            let story = story.when(&Input::CompleteTask(void)).then_rejected(&Rejection::Stale);
            let story = story.cancel_asked().completed([close]);
            assert!(!story.run.holds_signals());
            assert!(story.run.is_closed());
            assert!(
                tell(&story.events())
                    .contains("call1 signal:a signal:b returned1#1 cancel-asked task(3-1)")
            );
        }
    }

    #[test]
    fn signals_are_held_until_the_repeated_task_ends_in_any_way() {
        let repeated =
            || history().handed_out().signal("a").completed([complete("done")]).handed_out();
        assert!(repeated().run.holds_signals());
        for story in [
            repeated().completed([]),
            repeated().task_failed(WorkflowTaskFailureCause::Panic),
            repeated().session_lost(1),
            repeated().passes(secs(10)),
            repeated().terminated(),
            repeated().reload(),
        ] {
            assert!(!story.run.holds_signals());
            let story = story.passes(secs(200)).handed_out();
            assert!(!story.run.holds_signals(), "and the task after it holds none");
        }
    }

    #[test]
    fn other_facts_do_not_refuse_a_close() {
        given(history().task([call(1)]).signal("a").dispatched(1).handed_out())
            .returned(1)
            .cancel_asked()
            .completed([complete("done")])
            .then_history(
                "started task(0) call1 signal:a returned1#1 cancel-asked task(1-2) COMPLETED",
            );
    }

    #[test]
    fn a_close_stops_what_runs_and_takes_back_what_waits() {
        given(history().task([call(1), call(2), call(3), timer(4, 1)]))
            .dispatched(1)
            .dispatched(2)
            .broke(2, "Flaky")
            .then_pending(2, Some(1))
            .signal("a")
            .task([call(5), complete("done")])
            .then_effects("cancel1#1:Lost withdraw3 closed")
            .then_pending(2, None)
            .then_wakes(Wake::Never)
            .returned(1)
            .then_rejected(&Rejection::Stale)
            .signal("b")
            .then_rejected(&Rejection::Closed {
                workflow_id: "order-42".into(),
                status: onward_proto::v1::WorkflowStatus::Completed,
            });
    }

    #[test]
    fn a_close_that_breaks_a_limit_fails_the_run_with_it() {
        let limits = Limits { payload_bytes: 100, ..Limits::default() };
        let big = "x".repeat(101);
        for close in [complete(&big), fail(&big)] {
            let story = history_of(&start_request(), limits.clone()).task([close]);
            let story = story.then_history("started task(0) FAILED!");
            let outcome = story.run.outcome().unwrap();
            assert_eq!(outcome.refused.unwrap().name, "payload_bytes_per_command");
            let failure = outcome.failure.unwrap();
            assert!(
                failure.message.starts_with("payload_bytes_per_command is limited to 100, got")
            );
            assert_eq!((&*failure.kind, failure.non_retryable), ("onward::Limit", true));
        }
    }

    #[test]
    fn the_outcome_says_how_a_run_ended_and_with_what() {
        let outcome = |story: Story| story.run.outcome().unwrap();
        let done = outcome(history().task([complete("done")]));
        assert_eq!((done.status(), done.result), (Status::Completed, Some(payload("done"))));
        let failed = outcome(history().task([fail("Broken")]));
        assert_eq!((failed.status(), failed.failure), (Status::Failed, Some(failure("Broken"))));
        let cancelled = outcome(history().cancel_asked().task([cancel()]));
        assert_eq!(
            (cancelled.status(), cancelled.failure),
            (Status::Cancelled, Some(failure("Stopped")))
        );
        let terminated = outcome(history().terminated());
        let reason = terminated.failure.clone().unwrap();
        assert_eq!(terminated.status(), Status::Terminated);
        assert_eq!((&*reason.kind, &*reason.message), ("onward::Terminated", "enough"));
        let start = Start { execution_timeout_us: secs(1), ..start_request() };
        let late = outcome(history_of(&start, Limits::default()).passes(secs(1)));
        assert_eq!((late.status(), late.timeout_kind()), (Status::TimedOut, Kind::Execution));
    }

    #[test]
    fn a_run_closes_at_the_time_of_its_last_event() {
        let story = history().after(secs(5)).task([]);
        assert_eq!(story.run.closed_at(), None);
        let story = story.after(secs(5)).terminated().after(secs(5));
        assert_eq!(story.run.closed_at().unwrap().as_micros(), BEGIN + secs(10));
        assert_eq!(story.events().last().unwrap().time_us, BEGIN + secs(10));
    }

    #[test]
    fn the_earlier_of_run_and_execution_timeout_closes_the_run() {
        for (run, execution, word, after) in
            [(5, 9, "Run", 5), (9, 5, "Execution", 5), (5, 0, "Run", 5), (0, 9, "Execution", 9)]
        {
            let start = Start {
                run_timeout_us: secs(run),
                execution_timeout_us: secs(execution),
                ..start_request()
            };
            let policy = RetryPolicy::default();
            let story = history_of(&start, Limits::default());
            let story = story.task([call_with(1, ActivityTimeouts::default(), policy)]);
            let end = story.wake_in(secs(after));
            story
                .then_wakes(Wake::Hot(Some(end)))
                .passes(secs(after))
                .then_effects("withdraw1 closed")
                .then_history(&format!("started task(0) call1 TIMED-OUT:{word}"));
        }
    }
}
