//! Tasks that failed: when the next goes out, and what is recorded.

use onward_proto::{
    Timestamp,
    v1::{
        Failure, HistoryEvent, WorkflowTaskFailed, WorkflowTaskFailureCause,
        history_event::Attributes,
    },
};
use prost::Message as _;

use super::{
    super::{Decision, Effect, LeaseChange, Rejection, Run, TaskId, limits::record},
    Open, TaskLease,
};

/// The wait after a failed task; it doubles with each further one.
const FIRST_BACKOFF_US: i64 = 1_000_000;

/// The longest wait after a failed task.
const MAX_BACKOFF_US: i64 = 100_000_000;

/// The longest wait while no worker knows the workflow: the one that does is soon deployed, and then
/// the run should not sleep on.
const MAX_UNKNOWN_TYPE_BACKOFF_US: i64 = 10_000_000;

/// Bytes of a task's failure that are kept.
const FAILURE_BYTES: u64 = 64 << 10;

/// How the last task failed.
#[derive(Debug)]
pub(in crate::engine) struct LastFailure {
    pub(in crate::engine) cause: WorkflowTaskFailureCause,
    pub(in crate::engine) failure: Option<Box<Failure>>,
    pub(in crate::engine) identity: String,
}

impl LastFailure {
    pub(super) fn heap_bytes(&self) -> usize {
        let failure = self.failure.as_ref();
        let failure = failure.map_or(0, |failure| size_of::<Failure>() + failure.encoded_len());
        size_of::<Self>() + self.identity.len() + failure
    }
}

/// What no record tells of a workflow task that has failed. The report of each distinct cause is on
/// record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedTask {
    failures: u32,
    not_before: Option<Timestamp>,
    cause: WorkflowTaskFailureCause,
}

impl Run {
    /// Where a task stands that has failed and is not in flight.
    pub(in crate::engine) fn failed_task(&self) -> Option<FailedTask> {
        let TaskLease { failures, not_before, last_failure, .. } = &self.task;
        let cause = last_failure.as_ref()?.cause;
        Some(FailedTask { failures: *failures, not_before: *not_before, cause })
    }

    /// After a load: the task goes on from where it stood. The report is that of the first failure
    /// by its cause.
    pub(in crate::engine) fn restore_failed_task(&mut self, failed: FailedTask) {
        let FailedTask { failures, not_before, cause } = failed;
        let report = self.head.iter().find_map(|event| match &event.attributes {
            Some(Attributes::WorkflowTaskFailed(report)) if report.cause() == cause => Some(report),
            Some(_) | None => None,
        });
        let last_failure = LastFailure {
            cause,
            failure: report.and_then(|report| report.failure.clone()).map(Box::new),
            identity: report.map(|report| report.identity.clone()).unwrap_or_default(),
        };
        self.change_task(|task| {
            task.failures = failures;
            task.not_before = not_before;
            task.last_failure = Some(Box::new(last_failure));
        });
    }

    pub(in crate::engine) fn decide_fail_task(
        &self,
        now: Timestamp,
        task_id: TaskId,
        cause: WorkflowTaskFailureCause,
        failure: Option<&Failure>,
    ) -> Result<Decision, Rejection> {
        let open = self.the_open_task(task_id)?;
        Ok(self.fail_task(now, open, cause, failure.cloned()))
    }

    /// The open task has failed: it goes out again, the first time at once if its worker vanished,
    /// else after a wait that doubles. Each distinct cause is recorded once.
    pub(in crate::engine) fn fail_task(
        &self,
        now: Timestamp,
        open: &Open,
        cause: WorkflowTaskFailureCause,
        failure: Option<Failure>,
    ) -> Decision {
        let mut decision = Decision::default();
        let failure = failure.map(|failure| failure.fit(FAILURE_BYTES));
        if !self.head.iter().any(|event| is_failure_by(event, cause)) {
            decision.records.push(record(
                now,
                Attributes::WorkflowTaskFailed(WorkflowTaskFailed {
                    task_id: Some(open.task_id.to_wire()),
                    cause: cause.into(),
                    failure: failure.clone(),
                    build_id: open.worker.build_id.clone(),
                    identity: open.worker.identity.clone(),
                }),
            ));
        }
        let vanished = matches!(
            cause,
            WorkflowTaskFailureCause::WorkerLost | WorkflowTaskFailureCause::TimedOut
        );
        let not_before = if vanished && self.task.failures == 0 {
            decision.effects.push(Effect::OfferTask);
            None
        } else {
            let doublings = self.task.failures.min(20);
            let most = if cause == WorkflowTaskFailureCause::UnknownType {
                MAX_UNKNOWN_TYPE_BACKOFF_US
            } else {
                MAX_BACKOFF_US
            };
            let wait = FIRST_BACKOFF_US.saturating_mul(1 << doublings).min(most);
            Some(now.plus_micros(wait))
        };
        decision.leases.push(LeaseChange::TaskFailed {
            cause,
            failure: failure.map(Box::new),
            not_before,
            identity: open.worker.identity.clone(),
        });
        decision
    }

    /// Folds what no record tells about the task in.
    pub(in crate::engine) fn task_failed(
        &mut self,
        cause: WorkflowTaskFailureCause,
        failure: Option<Box<Failure>>,
        not_before: Option<Timestamp>,
        identity: String,
    ) {
        self.change_task(|task| {
            task.open = None;
            task.failures = task.failures.saturating_add(1);
            task.not_before = not_before;
            task.last_failure = Some(Box::new(LastFailure { cause, failure, identity }));
            // The failure evicted the run from that worker's cache.
            task.sticky = None;
        });
    }
}

fn is_failure_by(event: &HistoryEvent, cause: WorkflowTaskFailureCause) -> bool {
    matches!(&event.attributes, Some(Attributes::WorkflowTaskFailed(failed)) if failed.cause() == cause)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::{WorkflowTaskFailureCause as Cause, WorkflowTaskState};

    use super::super::super::{fixture::*, *};

    #[test]
    fn a_lost_workers_task_goes_out_again_at_once_and_then_backs_off() {
        let story = history().signal("a").handed_out().session_lost(1).then_effects("offer-task");
        let story = story.then_history("started task-failed:WorkerLost").handed_out_to(2);
        let story = story.then_handed_out("started task-failed:WorkerLost signal:a");
        let story = story.session_lost(2).then_effects("");
        let until = story.wake_in(secs(2));
        let story = story.then_wakes(Wake::Hot(Some(until))).handed_out();
        assert_eq!(story.handed_out.len(), 2, "it backs off");
        let story = story.passes(secs(2)).then_effects("offer-task").handed_out();
        assert_eq!(story.handed_out[2].1.attempt, 3);
        story.completed([]).then_history("started task-failed:WorkerLost signal:a task(1)");
    }

    #[test]
    fn each_distinct_cause_is_recorded_once_before_the_untaken_facts() {
        let mut story = history().signal("a");
        for cause in [Cause::Panic, Cause::Panic, Cause::NonDeterminism, Cause::Panic] {
            story = story.handed_out().task_failed(cause).passes(secs(100));
        }
        story = story.then_history("started task-failed:Panic task-failed:NonDeterminism");
        let task = story.run.describe(story.now, &|_| 1, &story.limits).task.unwrap();
        assert!(task.blocked);
        assert_eq!((task.attempt, task.last_cause()), (5, Cause::Panic));
        // The recorded causes survive a load, the counts do not; a completed task clears both.
        story = story.reload().handed_out().task_failed(Cause::Panic).passes(secs(100));
        assert!(!story.run.has_incident(&story.limits));
        story = story.task([]).signal("b").handed_out().task_failed(Cause::Panic);
        story.then_history(
            "started task-failed:Panic task-failed:NonDeterminism signal:a task(1) \
             task-failed:Panic",
        );
    }

    #[test]
    fn a_task_without_a_sign_of_life_fails_at_its_deadline() {
        let mut story = history().handed_out().after(secs(6));
        let task = story.newest_task();
        assert!(story.run.renew_task(story.now, task, &story.limits));
        let end = story.wake_in(secs(10));
        story = story.then_wakes(Wake::Hot(Some(end))).passes(secs(10) - 1).then_effects("");
        story = story.passes(1).then_effects("offer-task");
        assert!(!story.run.renew_task(story.now, task, &story.limits));
        story = story.completed([]).then_rejected(&Rejection::Stale);
        story.then_history("started task-failed:TimedOut");
    }

    #[test]
    fn a_run_whose_task_has_failed_comes_back_as_it_left() {
        let stands = |story: &Story| {
            let described = story.run.describe(story.now, &|_| 1, &story.limits);
            (described.task, described.waits_for)
        };
        let story = history().signal("a").handed_out().session_lost(1).handed_out_to(2);
        let story = story.task_failed(Cause::Panic);
        let before = stands(&story);
        let story = story.comes_back();
        assert_eq!(stands(&story), before);
        let story = story.passes(secs(2)).then_effects("offer-task").comes_back().handed_out();
        assert_eq!(story.handed_out[2].1.attempt, 3);
        // The wait goes on doubling, and the cause is not recorded again.
        let story = story.task_failed(Cause::Panic).comes_back();
        story
            .passes(secs(4) - 1)
            .then_effects("")
            .passes(1)
            .then_effects("offer-task")
            .then_history("started task-failed:WorkerLost task-failed:Panic");
    }

    #[test]
    fn a_run_of_an_unknown_type_is_offered_often_enough_for_a_worker_that_comes_later() {
        let waits = |cause| {
            let mut story = history();
            for _ in 0..12 {
                story = story.handed_out().task_failed(cause).passes(secs(200));
            }
            let story = story.handed_out().task_failed(cause);
            let Wake::Hot(Some(until)) = story.run.wake() else { panic!() };
            until.since(story.now)
        };
        assert_eq!(waits(Cause::UnknownType).as_secs(), 10);
        assert_eq!(waits(Cause::Panic).as_secs(), 100);
    }

    #[test]
    fn a_task_that_backs_off_is_not_offered_for_new_facts() {
        let story = history().handed_out().task_failed(Cause::Panic).signal("a").then_effects("");
        let info = story.run.describe(story.now, &|_| 1, &story.limits).task.unwrap();
        assert_eq!(info.state(), WorkflowTaskState::BackingOff);
        story.passes(secs(1)).then_effects("offer-task").task([]);
    }
}
