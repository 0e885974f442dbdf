//! Local activities: run in the workflow's own worker, with their own retries.
//!
//! Their attempts are counted here alone. If the worker dies, they begin again elsewhere.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use onward_proto::{Timestamp, v1, v1::LocalActivityFailureCause as Cause};
use tokio::{sync::Notify, time::Instant};

use super::{
    attempts::{End, Execution, after},
    registry::RegisteredActivity,
};
use crate::{
    activity::attempt::{ActivityInfo, Attempt, Stop},
    machine::{LocalActivityTask, LocalOutcome, RunInfo},
};

/// How a local activity is told to stop, between its attempts as well as in one.
#[derive(Debug, Default)]
pub(crate) struct LocalControl {
    state: Mutex<ControlState>,
    stopped: Notify,
}

#[derive(Debug, Default)]
struct ControlState {
    stop: Option<Stop>,
    attempt: Option<Arc<Attempt>>,
}

impl LocalControl {
    pub(crate) fn stop(&self, why: Stop) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stop != Some(Stop::Lost) {
            state.stop = Some(why);
        }
        if let Some(attempt) = &state.attempt {
            attempt.stop(why);
        }
        drop(state);
        self.stopped.notify_waiters();
    }

    /// Begins an attempt, unless it was told to stop.
    fn begin(&self, attempt: &Arc<Attempt>) -> Result<(), Stop> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stop) = state.stop {
            return Err(stop);
        }
        state.attempt = Some(Arc::clone(attempt));
        Ok(())
    }

    /// Waits before the next attempt, or until it is told to stop.
    async fn pause(&self, delay: Duration) {
        let stopped = self.stopped.notified();
        tokio::pin!(stopped);
        // Enabled before the look: a stop between look and wait would be missed otherwise.
        stopped.as_mut().enable();
        let is_stopped = self.state.lock().unwrap_or_else(PoisonError::into_inner).stop.is_some();
        if !is_stopped {
            let _ = tokio::time::timeout(delay, stopped).await;
        }
    }
}

/// A local activity on its way to its outcome.
pub(crate) struct LocalRun {
    task: LocalActivityTask,
    workflow: Arc<RunInfo>,
    activity: Arc<RegisteredActivity>,
    control: Arc<LocalControl>,
}

impl LocalRun {
    pub(crate) fn new(
        task: LocalActivityTask,
        workflow: Arc<RunInfo>,
        activity: Arc<RegisteredActivity>,
    ) -> Self {
        Self { task, workflow, activity, control: Arc::default() }
    }

    pub(crate) fn control(&self) -> Arc<LocalControl> {
        Arc::clone(&self.control)
    }

    /// Runs attempts until one settles it; `None` if nobody wants to know any more.
    pub(crate) async fn run(self) -> Option<LocalOutcome> {
        let options = &self.task.options;
        let retry = options.retry_policy();
        let until = options.schedule_to_close().map(|limit| after(Instant::now(), limit));
        let mut last_heartbeat = None;
        let mut last = None;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let attempt = Arc::new(self.attempt(attempts, last_heartbeat.take()));
            let end = match self.control.begin(&attempt) {
                Ok(()) => self.execute(&attempt, until).await,
                Err(Stop::Requested) => End::Cancelled,
                Err(Stop::Lost) => End::Lost,
            };
            last_heartbeat = attempt.saved();
            let failed = |failure, cause| Some(LocalOutcome::Failed { failure, cause, attempts });
            let failure = match end {
                End::Returned(Ok(result)) => {
                    return Some(LocalOutcome::Completed { result, attempts });
                }
                End::Returned(Err(error)) if error.cancelled && attempt.is_cancelled() => {
                    return failed(Some(error.failure), Cause::Cancelled);
                }
                End::Returned(Err(error)) => Some(error.failure),
                End::Cancelled => return failed(None, Cause::Cancelled),
                End::Lost => return None,
                End::TimedOut => None,
            };
            let is_due = |at: Instant| until.is_some_and(|until| at >= until);
            let mut delay = retry.delay_after(attempts);
            let allowed = retry.allowed_attempts();
            let is_last = allowed != 0 && attempts >= allowed;
            match failure {
                Some(failure) if failure.non_retryable || retry.rules_out(&failure.kind) => {
                    return failed(Some(failure), Cause::Application);
                }
                Some(failure) if is_last => return failed(Some(failure), Cause::Exhausted),
                Some(failure) => {
                    if let Some(micros) = failure.next_delay_us {
                        delay = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
                    }
                    last = Some(failure);
                }
                None if is_due(Instant::now()) => return failed(last, Cause::DeadlinePassed),
                None if is_last => return failed(last, Cause::TimedOut),
                None => {}
            }
            if is_due(after(Instant::now(), delay)) {
                return failed(last, Cause::DeadlinePassed);
            }
            self.control.pause(delay).await;
        }
    }

    fn attempt(&self, attempt: u32, last_heartbeat: Option<v1::Payload>) -> Attempt {
        let info = ActivityInfo {
            namespace: self.workflow.namespace.clone(),
            workflow_id: self.workflow.workflow_id.clone(),
            run_id: self.workflow.run_id.uuid(),
            workflow_type: self.workflow.workflow_type.clone(),
            activity_type: self.task.activity_type.to_owned(),
            number: self.task.number,
            attempt,
            scheduled_at: Timestamp::from_micros(0),
            timeout: self.task.options.start_to_close(),
            heartbeat: None,
            local: true,
        };
        Attempt::new(info, 0, last_heartbeat, None)
    }

    async fn execute(&self, attempt: &Arc<Attempt>, until: Option<Instant>) -> End {
        let body = (self.activity.start)(Arc::clone(attempt), self.task.arguments.clone());
        let end = after(Instant::now(), attempt.info.timeout);
        let deadline = until.map_or(end, |until| end.min(until));
        Execution::new(body, Arc::clone(attempt), deadline).await
    }
}
