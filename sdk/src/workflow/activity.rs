//! Calls of activities from workflow code.

use std::{
    marker::PhantomData,
    panic::Location,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::FusedFuture;
use onward_proto::v1::{self, WorkflowTaskFailureCause as Cause, history_event::Attributes};
use serde::de::DeserializeOwned;

use super::Ctx;
use crate::{
    definition::{Activity, ActivityTarget},
    error::{ActivityError, TimeoutKind},
    failure::{self, Failure, RemoteFailure},
    machine::{core::Core, task_failure},
    options::{ActivityOptions, Retry},
    payload::{self, Args, EncodedArgs, PayloadError},
};

/// How far a call has come.
enum Stage {
    Built(Result<EncodedArgs, PayloadError>),
    /// Nothing more is to be had: its arguments cannot be encoded, and the task fails.
    Broken,
    Issued(u32),
    Done,
}

impl Stage {
    /// Options have no effect on a call that is out.
    #[track_caller]
    fn assert_unissued(&self) {
        debug_assert!(matches!(self, Self::Built(_)), "options are set before a call is issued");
    }

    /// Takes the encoded arguments out of a call that is about to be issued.
    fn take_args<A: Activity>(&mut self, core: &Core) -> Option<EncodedArgs> {
        if !matches!(self, Self::Built(_)) || !core.is_active() {
            return None;
        }
        match std::mem::replace(self, Self::Broken) {
            Self::Built(Ok(args)) => Some(args),
            Self::Built(Err(error)) => {
                core.fail_payload(&format!("the arguments of {}", A::NAME), &error);
                None
            }
            Self::Broken | Self::Issued(_) | Self::Done => None,
        }
    }
}

/// The call of an activity: a future that is also a builder.
///
/// It is issued when it is first polled or started; dropping it unfinished asks the activity to
/// stop.
#[must_use = "an activity call does nothing until it is awaited or .start()ed"]
pub struct Call<'c, A: Activity> {
    ctx: &'c Ctx,
    stage: Stage,
    options: ActivityOptions,
    queue: Option<String>,
    summary: String,
    location: &'static Location<'static>,
    activity: PhantomData<fn() -> A>,
}

impl<A: Activity> Unpin for Call<'_, A> {}

impl<'c, A: Activity> ActivityTarget<A> for &'c Ctx {
    type Call = Call<'c, A>;

    fn call(self, args: A::Args, call_site: &'static Location<'static>) -> Call<'c, A> {
        Call {
            ctx: self,
            stage: Stage::Built(args.encode(self.core.options.codec)),
            options: ActivityOptions::new(),
            queue: None,
            summary: String::new(),
            location: call_site,
            activity: PhantomData,
        }
    }
}

impl<A: Activity> Call<'_, A> {
    /// One attempt may take so long (start-to-close).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.stage.assert_unissued();
        self.options = self.options.timeout(timeout);
        self
    }

    /// All attempts and the waits between them may take so long (schedule-to-close).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.stage.assert_unissued();
        self.options = self.options.deadline(deadline);
        self
    }

    /// A worker must take it within this time (schedule-to-start).
    pub fn queue_timeout(mut self, queue_timeout: Duration) -> Self {
        self.stage.assert_unissued();
        self.options = self.options.queue_timeout(queue_timeout);
        self
    }

    /// An attempt must give a sign of life so often.
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.stage.assert_unissued();
        self.options = self.options.heartbeat(heartbeat);
        self
    }

    /// How failed attempts are repeated; what it does not set stays as the attribute has it.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.stage.assert_unissued();
        self.options = self.options.retry(retry);
        self
    }

    /// The task queue; without it, the workflow's own.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.stage.assert_unissued();
        self.queue = Some(queue.into());
        self
    }

    /// Higher goes first; 0 unless set.
    pub fn priority(mut self, priority: i32) -> Self {
        self.stage.assert_unissued();
        self.options = self.options.priority(priority);
        self
    }

    /// A line for people.
    pub fn summary(mut self, summary: impl Into<String>) -> Self {
        self.stage.assert_unissued();
        self.summary = summary.into();
        self
    }

    /// Issues the call now. The handle can be awaited later; dropping it asks the activity to stop.
    #[must_use = "dropping a started call cancels it; .detach() lets it run on"]
    pub fn start(mut self) -> Self {
        self.issue();
        self
    }

    /// Issues the call and gives up its outcome: it runs on by itself.
    pub fn detach(mut self) {
        self.issue();
        if let Stage::Issued(number) = std::mem::replace(&mut self.stage, Stage::Done) {
            self.ctx.core.detach_leaf(number);
        }
    }

    fn issue(&mut self) {
        let Some(args) = self.stage.take_args::<A>(&self.ctx.core) else { return };
        let options = self.options.or(A::DEFAULTS).or(self.ctx.core.options.activity);
        let queue = self.queue.take().or_else(|| options.queue.map(str::to_owned));
        let command = v1::ScheduleActivity {
            activity_type: A::NAME.to_owned(),
            task_queue: queue.unwrap_or_default(),
            arguments: args.payloads,
            timeouts: Some(options.timeouts()),
            retry: Some(options.retry_policy().into()),
            priority: options.priority.unwrap_or(0),
        };
        let summary = std::mem::take(&mut self.summary);
        let number = self.ctx.core.schedule_activity(command, args.hash, summary, self.location);
        if let Some(number) = number {
            self.stage = Stage::Issued(number);
        }
    }
}

impl<A: Activity> Future for Call<'_, A> {
    type Output = Result<A::Output, ActivityError<A::Error>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.issue();
        let core = &self.ctx.core;
        let Stage::Issued(number) = self.stage else { return Poll::Pending };
        let Poll::Ready(close) = core.poll_leaf(number, cx) else { return Poll::Pending };
        let outcome = outcome_of_activity::<A>(core, number, close);
        self.stage = Stage::Done;
        outcome.map_or(Poll::Pending, Poll::Ready)
    }
}

impl<A: Activity> FusedFuture for Call<'_, A> {
    fn is_terminated(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }
}

impl<A: Activity> Drop for Call<'_, A> {
    fn drop(&mut self) {
        if let Stage::Issued(number) = self.stage {
            self.ctx.core.drop_leaf(number);
        }
    }
}

/// What the closing event of an activity means to its caller; nothing if it cannot be read, which
/// fails the task.
fn outcome_of_activity<A: Activity>(
    core: &Core,
    number: u32,
    close: Attributes,
) -> Option<Result<A::Output, ActivityError<A::Error>>> {
    use v1::ActivityFailureCause as Failed;
    Some(match close {
        Attributes::ActivityCompleted(event) => {
            Ok(decode_result(core, A::NAME, number, event.result.as_ref())?)
        }
        Attributes::ActivityFailed(event) => {
            let attempts = event.attempt;
            Err(match Failed::try_from(event.cause) {
                Ok(Failed::OutcomeUnknown) => ActivityError::OutcomeUnknown { attempt: attempts },
                Ok(Failed::Refused) => {
                    ActivityError::Refused(event.refused.unwrap_or_default().into())
                }
                Ok(Failed::Exhausted) => failed(event.failure.as_ref(), |last| {
                    ActivityError::Exhausted { last, attempts }
                }),
                Ok(Failed::Application | Failed::Unspecified) | Err(_) => {
                    failed(event.failure.as_ref(), ActivityError::Failed)
                }
            })
        }
        Attributes::ActivityTimedOut(event) => {
            use v1::ActivityTimeoutKind as Wire;
            let kind = match Wire::try_from(event.kind) {
                Ok(Wire::ScheduleToStart) => TimeoutKind::ScheduleToStart,
                Ok(Wire::ScheduleToClose) => TimeoutKind::ScheduleToClose,
                Ok(Wire::Heartbeat) => TimeoutKind::Heartbeat,
                Ok(Wire::StartToClose | Wire::Unspecified) | Err(_) => TimeoutKind::StartToClose,
            };
            Err(timed_out(kind, event.last_failure.as_ref()))
        }
        Attributes::ActivityCancelled(_) => Err(ActivityError::Cancelled),
        // These are no closes of activities: the machine gives none of them to a call.
        Attributes::WorkflowExecutionStarted(_)
        | Attributes::WorkflowExecutionCompleted(_)
        | Attributes::WorkflowExecutionFailed(_)
        | Attributes::WorkflowExecutionCancelled(_)
        | Attributes::WorkflowExecutionTimedOut(_)
        | Attributes::WorkflowExecutionTerminated(_)
        | Attributes::WorkflowExecutionCancelRequested(_)
        | Attributes::WorkflowTaskCompleted(_)
        | Attributes::WorkflowTaskFailed(_)
        | Attributes::ActivityScheduled(_)
        | Attributes::ActivityCancelRequested(_)
        | Attributes::TimerStarted(_)
        | Attributes::TimerFired(_)
        | Attributes::TimerCancelled(_)
        | Attributes::SignalReceived(_)
        | Attributes::MarkerRecorded(_) => return None,
    })
}

fn decode_result<T: DeserializeOwned>(
    core: &Core,
    name: &str,
    number: u32,
    result: Option<&v1::Payload>,
) -> Option<T> {
    let error = match result.map(payload::decode::<T>) {
        Some(Ok(value)) => return Some(value),
        Some(Err(error)) => error.to_string(),
        None => "nothing was recorded".to_owned(),
    };
    core.fail_payload(&format!("the result of {name}(#{number})"), &error);
    None
}

fn failed<E: Failure>(
    failure: Option<&v1::Failure>,
    wrap: impl FnOnce(E) -> ActivityError<E>,
) -> ActivityError<E> {
    let Some(failure) = failure else {
        let nothing = failure::plain_failure("", "no failure was recorded");
        return ActivityError::Lost(Box::new(RemoteFailure::from(&nothing)));
    };
    match failure::from_wire(failure) {
        Ok(error) => wrap(error),
        Err(remote) => ActivityError::Lost(remote),
    }
}

fn timed_out<E: Failure>(kind: TimeoutKind, last: Option<&v1::Failure>) -> ActivityError<E> {
    ActivityError::TimedOut { kind, last: last.and_then(|last| failure::from_wire(last).ok()) }
}

/// The context of calls that run inside the workflow's own worker. See [`Ctx::local`].
#[derive(Debug, Clone, Copy)]
pub struct LocalCtx<'c>(pub(crate) &'c Ctx);

/// The call of an activity that runs inside the workflow's own worker, at least once and without
/// the server's queue.
#[must_use = "an activity call does nothing until it is awaited or .start()ed"]
pub struct LocalCall<'c, A: Activity> {
    ctx: &'c Ctx,
    stage: Stage,
    options: ActivityOptions,
    location: &'static Location<'static>,
    activity: PhantomData<fn() -> A>,
}

impl<A: Activity> Unpin for LocalCall<'_, A> {}

impl<'c, A: Activity> ActivityTarget<A> for LocalCtx<'c> {
    type Call = LocalCall<'c, A>;

    fn call(self, args: A::Args, call_site: &'static Location<'static>) -> LocalCall<'c, A> {
        LocalCall {
            ctx: self.0,
            stage: Stage::Built(args.encode(self.0.core.options.codec)),
            options: ActivityOptions::new(),
            location: call_site,
            activity: PhantomData,
        }
    }
}

impl<A: Activity> LocalCall<'_, A> {
    /// One attempt may take so long.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.stage.assert_unissued();
        self.options = self.options.timeout(timeout);
        self
    }

    /// All attempts and the waits between them may take so long.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.stage.assert_unissued();
        self.options = self.options.deadline(deadline);
        self
    }

    /// How failed attempts are repeated; what it does not set stays as the attribute has it.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.stage.assert_unissued();
        self.options = self.options.retry(retry);
        self
    }

    /// Issues the call now. The handle can be awaited later; dropping it stops the activity.
    #[must_use = "dropping a started call cancels it"]
    pub fn start(mut self) -> Self {
        self.issue();
        self
    }

    fn issue(&mut self) {
        let core = &self.ctx.core;
        let Some(args) = self.stage.take_args::<A>(core) else { return };
        let options = self.options.or(A::DEFAULTS).or(core.options.activity);
        if options.retry_policy().allowed_attempts() == 1 {
            // Its attempts die with the worker, so that nobody could keep the promise.
            core.fail(task_failure(
                Cause::BadCommands,
                format!("{} allows one attempt: it cannot be a local activity", A::NAME),
            ));
            return;
        }
        if let Some(number) = core.issue_local(A::NAME, args, options, self.location) {
            self.stage = Stage::Issued(number);
        }
    }
}

impl<A: Activity> Future for LocalCall<'_, A> {
    type Output = Result<A::Output, ActivityError<A::Error>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.issue();
        let core = &self.ctx.core;
        let Stage::Issued(number) = self.stage else { return Poll::Pending };
        let Poll::Ready(close) = core.poll_leaf(number, cx) else { return Poll::Pending };
        let outcome = if let Attributes::MarkerRecorded(marker) = close {
            outcome_of_local::<A>(core, marker)
        } else {
            None
        };
        self.stage = Stage::Done;
        outcome.map_or(Poll::Pending, Poll::Ready)
    }
}

impl<A: Activity> FusedFuture for LocalCall<'_, A> {
    fn is_terminated(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }
}

impl<A: Activity> Drop for LocalCall<'_, A> {
    fn drop(&mut self) {
        if let Stage::Issued(number) = self.stage {
            self.ctx.core.drop_leaf(number);
        }
    }
}

fn outcome_of_local<A: Activity>(
    core: &Core,
    marker: v1::MarkerRecorded,
) -> Option<Result<A::Output, ActivityError<A::Error>>> {
    use v1::LocalActivityFailureCause as Failed;
    if let Some(limit) = marker.refused {
        return Some(Err(ActivityError::Refused(limit.into())));
    }
    let failure = marker.failure.as_ref();
    let attempts = marker.attempts;
    Some(match Failed::try_from(marker.cause) {
        Ok(Failed::Exhausted) => {
            Err(failed(failure, |last| ActivityError::Exhausted { last, attempts }))
        }
        Ok(Failed::TimedOut) => Err(timed_out(TimeoutKind::StartToClose, failure)),
        Ok(Failed::DeadlinePassed) => Err(timed_out(TimeoutKind::ScheduleToClose, failure)),
        Ok(Failed::Cancelled) => Err(ActivityError::Cancelled),
        Ok(Failed::Unspecified) if failure.is_none() => {
            Ok(decode_result(core, A::NAME, marker.number, marker.result.as_ref())?)
        }
        Ok(Failed::Application | Failed::Unspecified) | Err(_) => {
            Err(failed(failure, ActivityError::Failed))
        }
    })
}
