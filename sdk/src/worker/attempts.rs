//! Running the code of an activity: polling it, bounding it, isolating its panics.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use onward_proto::{RunId, v1};
use tokio::time::{Instant, Sleep, sleep_until};

use super::outbox::{Item, bounded};
use crate::{
    activity::attempt::{Attempt, Stop},
    caught::caught,
    definition::{AttemptError, AttemptFuture},
};

/// Names one attempt, in an order that does not depend on chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AttemptKey {
    pub(crate) run: RunId,
    pub(crate) number: u32,
    pub(crate) incarnation: u64,
    pub(crate) attempt: u32,
}

impl AttemptKey {
    /// Reads a token; `None` if its run id is malformed.
    pub(crate) fn of(token: &v1::ActivityToken) -> Option<Self> {
        Some(Self {
            run: RunId::from_wire(&token.run_id).ok()?,
            number: token.number,
            incarnation: token.incarnation,
            attempt: token.attempt,
        })
    }

    pub(crate) fn token(self) -> v1::ActivityToken {
        v1::ActivityToken {
            run_id: self.run.to_wire(),
            number: self.number,
            incarnation: self.incarnation,
            attempt: self.attempt,
        }
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Its code returned.
    Returned(Result<v1::Payload, AttemptError>),
    /// It was dropped because the workflow asked it to stop.
    Cancelled,
    /// It was dropped because it does not count any more.
    Lost,
    /// It was dropped because its time was over. Nobody is told: the server counts the time itself,
    /// and its event is the one that the workflow sees.
    TimedOut,
}

impl End {
    /// What the server is told.
    pub(crate) fn into_item(self, attempt: &Attempt, max_frame: usize) -> Option<Item> {
        let token = Some(attempt.token());
        let kind = match self {
            Self::Returned(Ok(result)) => {
                let len = result.data.len();
                let completed =
                    v1::ActivityTaskCompleted { token: token.clone(), result: Some(result) };
                let item = Item::new(v1::worker_item::Kind::ActivityCompleted(completed));
                if item.framed_len() <= max_frame {
                    return Some(item);
                }
                v1::worker_item::Kind::ActivityFailed(v1::ActivityTaskFailed {
                    token,
                    failure: Some(failure(
                        "ResultTooLarge",
                        format!(
                            "the result of `{}` has {len} bytes; no message may have more than \
                             {max_frame}",
                            attempt.info.activity_type
                        ),
                        true,
                    )),
                })
            }
            Self::Returned(Err(error)) if error.cancelled && attempt.is_cancelled() => {
                v1::worker_item::Kind::ActivityCancelled(v1::ActivityTaskCancelled {
                    token,
                    failure: Some(bounded(error.failure, max_frame)),
                })
            }
            Self::Returned(Err(error)) => {
                v1::worker_item::Kind::ActivityFailed(v1::ActivityTaskFailed {
                    token,
                    failure: Some(bounded(error.failure, max_frame)),
                })
            }
            Self::Cancelled => {
                v1::worker_item::Kind::ActivityCancelled(v1::ActivityTaskCancelled {
                    token,
                    failure: None,
                })
            }
            Self::Lost | Self::TimedOut => return None,
        };
        Some(Item::new(kind))
    }
}

/// A failure that the worker itself makes.
pub(crate) fn failure(kind: &str, message: String, non_retryable: bool) -> v1::Failure {
    v1::Failure { kind: kind.to_owned(), message, non_retryable, ..Default::default() }
}

/// An attempt's code on its way to an end.
pub(crate) struct Execution {
    body: Option<AttemptFuture>,
    attempt: Arc<Attempt>,
    deadline: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
    span: tracing::Span,
}

impl Execution {
    pub(crate) fn new(body: AttemptFuture, attempt: Arc<Attempt>, deadline: Instant) -> Self {
        let info = &attempt.info;
        let span = tracing::info_span!(
            "activity",
            name = %info.activity_type,
            workflow_id = %info.workflow_id,
            run_id = %info.run_id,
            number = info.number,
            attempt = info.attempt,
        );
        Self { body: Some(body), attempt, deadline, sleep: None, span }
    }

    /// Polls once, without asking for a wake: a body that is ready at once costs no task.
    ///
    /// A body that is pending must be polled again soon, by a task that listens.
    pub(crate) fn first_poll(&mut self) -> Poll<End> {
        self.poll_body(&mut Context::from_waker(std::task::Waker::noop()))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let end = if let Some(stop) = self.attempt.must_stop(cx.waker()) {
            match stop {
                Stop::Requested => End::Cancelled,
                Stop::Lost => End::Lost,
            }
        } else if Instant::now() >= self.deadline {
            // The clock is asked before the body is polled: in a process that was frozen past the
            // attempt's time, its code must not take another step.
            End::TimedOut
        } else {
            let Some(body) = &mut self.body else { return Poll::Pending };
            let entered = self.span.enter();
            let poll = caught(|| body.as_mut().poll(cx));
            drop(entered);
            match poll {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(returned)) => End::Returned(returned),
                Err(panic) => End::Returned(Err(AttemptError {
                    failure: failure("Panic", panic.to_string(), false),
                    cancelled: false,
                })),
            }
        };
        self.drop_body();
        Poll::Ready(end)
    }

    /// Drops the body; a panic in a destructor is reported by the panic hook and ends there.
    fn drop_body(&mut self) {
        if let Some(body) = self.body.take() {
            let _ = caught(|| drop(body));
        }
    }
}

impl Future for Execution {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        if let Poll::Ready(end) = self.poll_body(cx) {
            return Poll::Ready(end);
        }
        let deadline = self.deadline;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        match sleep.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                self.drop_body();
                Poll::Ready(End::TimedOut)
            }
        }
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        self.drop_body();
    }
}

/// When an attempt that was received now must be over.
///
/// The server counts from the hand-out, which is earlier by the time the task was on its way. So
/// the worker stops a little before its own count says so: otherwise what undoes an activity could
/// start while the activity still runs.
pub(crate) fn deadline(received: Instant, timeout: Duration, silence_limit: Duration) -> Instant {
    let slack = silence_limit.min(timeout / 10);
    after(received, timeout.saturating_sub(slack))
}

/// `delay` from `now` on, which may be as long as a duration can say.
pub(crate) fn after(now: Instant, delay: Duration) -> Instant {
    now + delay.min(MAX_TIMEOUT)
}

/// No timer is set for longer.
const MAX_TIMEOUT: Duration = Duration::from_hours(365 * 24);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn execution(attempt: &Arc<Attempt>, body: AttemptFuture) -> Execution {
        Execution::new(body, Arc::clone(attempt), Instant::now() + Duration::from_mins(1))
    }

    fn payload() -> v1::Payload {
        v1::Payload { content_type: "json".to_owned(), data: "1".into(), ..Default::default() }
    }

    #[test]
    fn a_body_that_is_ready_at_once_ends_in_its_first_poll() {
        let attempt = Arc::new(Attempt::test());
        let end = execution(&attempt, Box::pin(async { Ok(payload()) })).first_poll();
        assert!(matches!(end, Poll::Ready(End::Returned(Ok(_)))));
    }

    #[tokio::test]
    async fn a_panic_is_a_retryable_failure_with_the_panics_words_and_place() {
        let attempt = Arc::new(Attempt::test());
        let body = async {
            tokio::task::yield_now().await;
            panic!("no more paper")
        };
        let line = line!() - 2;
        let End::Returned(Err(error)) = execution(&attempt, Box::pin(body)).await else { panic!() };
        let message = error.failure.message;
        assert!(message.starts_with("panicked at "), "{message}");
        assert!(message.contains(&format!("attempts.rs:{line}:")), "{message}");
        assert!(message.ends_with(": no more paper"), "{message}");
        assert!(!error.failure.non_retryable);
    }

    #[tokio::test]
    async fn a_body_is_dropped_when_its_time_is_over() {
        let attempt = Arc::new(Attempt::test());
        let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
        let body = async move {
            let _alive = alive;
            std::future::pending().await
        };
        let soon = Instant::now() + Duration::from_millis(20);
        let end = Execution::new(Box::pin(body), Arc::clone(&attempt), soon).await;
        assert!(matches!(end, End::TimedOut));
        assert!(dropped.await.is_err());
        assert!(end.into_item(&attempt, 1 << 20).is_none());
    }

    #[tokio::test]
    async fn a_cancel_request_drops_a_body_that_did_not_ask_for_it() {
        let attempt = Arc::new(Attempt::test());
        let running = tokio::spawn(execution(&attempt, Box::pin(std::future::pending())));
        tokio::task::yield_now().await;
        attempt.stop(Stop::Requested);
        assert!(matches!(running.await.unwrap(), End::Cancelled));
    }

    #[tokio::test]
    async fn a_body_that_asked_for_the_cancel_request_cleans_up_and_answers() {
        let attempt = Arc::new(Attempt::test());
        attempt.want_cancel();
        let body = {
            let attempt = Arc::clone(&attempt);
            async move {
                attempt.cancelled().await;
                tokio::task::yield_now().await;
                Ok(payload())
            }
        };
        let running = tokio::spawn(execution(&attempt, Box::pin(body)));
        tokio::task::yield_now().await;
        attempt.stop(Stop::Requested);
        assert!(matches!(running.await.unwrap(), End::Returned(Ok(_))));
    }

    #[tokio::test]
    async fn a_lost_attempt_is_dropped_whatever_it_asked_for() {
        let attempt = Arc::new(Attempt::test());
        attempt.want_cancel();
        let running = tokio::spawn(execution(&attempt, Box::pin(std::future::pending())));
        tokio::task::yield_now().await;
        attempt.stop(Stop::Lost);
        let end = running.await.unwrap();
        assert!(matches!(end, End::Lost));
        assert!(end.into_item(&attempt, 1 << 20).is_none());
    }

    #[test]
    fn a_result_that_fits_into_no_frame_is_a_final_failure_that_names_the_sizes() {
        let attempt = Attempt::test();
        let large = v1::Payload { data: vec![0; 5000].into(), ..Default::default() };
        let item = End::Returned(Ok(large)).into_item(&attempt, 4096).unwrap();
        let text = format!("{item:?}");
        assert!(text.contains("has 5000 bytes; no message may have more than 4096"), "{text}");
        assert!(text.contains("non_retryable: true"), "{text}");
    }

    #[test]
    fn a_short_timeout_keeps_most_of_its_time() {
        let now = Instant::now();
        let silence = Duration::from_secs(10);
        let long = deadline(now, Duration::from_hours(1), silence);
        assert_eq!(long - now, Duration::from_secs(3590));
        let short = deadline(now, Duration::from_secs(1), silence);
        assert_eq!(short - now, Duration::from_millis(900));
    }
}
