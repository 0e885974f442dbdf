//! Options of an activity, in three layers: the call wins over the attribute, the attribute over
//! the worker.

use std::time::Duration;

use onward_proto::v1;

/// How failed attempts of an activity are repeated. What is not set keeps the next layer's value;
/// at the end: first wait 1 s, doubling up to 100 s, without limit.
///
/// ```
/// use onward::Retry;
/// use std::time::Duration;
///
/// const CAREFUL: Retry = Retry::attempts(5).initial(Duration::from_millis(200)).never_on(&["PaymentError::Declined"]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Retry {
    #[doc(hidden)]
    pub max_attempts: Option<u32>,
    #[doc(hidden)]
    pub initial: Option<Duration>,
    #[doc(hidden)]
    pub backoff: Option<f64>,
    #[doc(hidden)]
    pub max_interval: Option<Duration>,
    #[doc(hidden)]
    pub never_on: Option<&'static [&'static str]>,
}

impl Retry {
    #[doc(hidden)]
    pub const NONE: Self = Self::new();

    /// Nothing set.
    pub const fn new() -> Self {
        Self {
            max_attempts: None,
            initial: None,
            backoff: None,
            max_interval: None,
            never_on: None,
        }
    }

    /// At most so many attempts. One means at most once: an attempt whose worker vanishes is not
    /// repeated either.
    pub const fn attempts(max_attempts: u32) -> Self {
        Self::new().max_attempts(max_attempts)
    }

    /// As often as it takes.
    pub const fn forever() -> Self {
        Self::new().max_attempts(0)
    }

    /// At most so many attempts; 0 means without limit.
    #[must_use]
    pub const fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.max_attempts = Some(max_attempts);
        self
    }

    /// The wait before the second attempt.
    #[must_use]
    pub const fn initial(mut self, initial: Duration) -> Self {
        self.initial = Some(initial);
        self
    }

    /// The factor between waits.
    #[must_use]
    pub const fn backoff(mut self, factor: f64) -> Self {
        self.backoff = Some(factor);
        self
    }

    /// The longest wait.
    #[must_use]
    pub const fn max_interval(mut self, max_interval: Duration) -> Self {
        self.max_interval = Some(max_interval);
        self
    }

    /// Kinds of failure that are never retried, for example `PaymentError::Declined`.
    #[must_use]
    pub const fn never_on(mut self, kinds: &'static [&'static str]) -> Self {
        self.never_on = Some(kinds);
        self
    }

    /// This, with what it does not set taken from `base`.
    #[must_use]
    pub fn or(self, base: Self) -> Self {
        Self {
            max_attempts: self.max_attempts.or(base.max_attempts),
            initial: self.initial.or(base.initial),
            backoff: self.backoff.or(base.backoff),
            max_interval: self.max_interval.or(base.max_interval),
            never_on: self.never_on.or(base.never_on),
        }
    }

    /// How many attempts are allowed; 0 means without limit.
    pub fn allowed_attempts(&self) -> u32 {
        self.max_attempts.unwrap_or(0)
    }

    /// Whether a failure of this kind is never retried.
    pub fn rules_out(&self, kind: &str) -> bool {
        self.never_on.is_some_and(|kinds| kinds.contains(&kind))
    }

    /// The wait after the failed attempt of this number (from 1).
    pub fn delay_after(&self, attempt: u32) -> Duration {
        let initial = self.initial.unwrap_or(Duration::from_secs(1));
        let longest = self.max_interval.unwrap_or(Duration::from_secs(100));
        let factor =
            self.backoff.unwrap_or(2.0).max(1.0).powi(attempt.saturating_sub(1).min(1_000) as i32);
        let seconds = (initial.as_secs_f64() * factor).min(longest.as_secs_f64());
        Duration::try_from_secs_f64(seconds).unwrap_or(longest)
    }
}

impl From<Retry> for v1::RetryPolicy {
    fn from(retry: Retry) -> Self {
        Self {
            initial_interval_us: micros(retry.initial),
            backoff_coefficient: retry.backoff.unwrap_or(0.0),
            max_interval_us: micros(retry.max_interval),
            max_attempts: retry.allowed_attempts(),
            non_retryable_kinds: retry
                .never_on
                .unwrap_or_default()
                .iter()
                .map(ToString::to_string)
                .collect(),
        }
    }
}

/// What an activity's attribute or a worker sets for its calls. Made in constants by the macro.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ActivityOptions {
    #[doc(hidden)]
    pub timeout: Option<Duration>,
    #[doc(hidden)]
    pub deadline: Option<Duration>,
    #[doc(hidden)]
    pub queue_timeout: Option<Duration>,
    #[doc(hidden)]
    pub heartbeat: Option<Duration>,
    #[doc(hidden)]
    pub retry: Option<Retry>,
    #[doc(hidden)]
    pub queue: Option<&'static str>,
    #[doc(hidden)]
    pub priority: Option<i32>,
}

impl ActivityOptions {
    #[doc(hidden)]
    pub const NONE: Self = Self::new();

    /// Nothing set.
    pub const fn new() -> Self {
        Self {
            timeout: None,
            deadline: None,
            queue_timeout: None,
            heartbeat: None,
            retry: None,
            queue: None,
            priority: None,
        }
    }

    /// One attempt may take so long (start-to-close).
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// All attempts and the waits between them may take so long (schedule-to-close).
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// A worker must take it within this time (schedule-to-start).
    #[must_use]
    pub const fn queue_timeout(mut self, queue_timeout: Duration) -> Self {
        self.queue_timeout = Some(queue_timeout);
        self
    }

    /// An attempt must give a sign of life so often.
    #[must_use]
    pub const fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = Some(heartbeat);
        self
    }

    /// How failed attempts are repeated.
    #[must_use]
    pub const fn retry(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// The task queue; without it, the workflow's own.
    #[must_use]
    pub const fn queue(mut self, queue: &'static str) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Higher goes first; 0 unless set.
    #[must_use]
    pub const fn priority(mut self, priority: i32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// This, with what it does not set taken from `base`.
    #[must_use]
    pub fn or(self, base: Self) -> Self {
        Self {
            timeout: self.timeout.or(base.timeout),
            deadline: self.deadline.or(base.deadline),
            queue_timeout: self.queue_timeout.or(base.queue_timeout),
            heartbeat: self.heartbeat.or(base.heartbeat),
            retry: match (self.retry, base.retry) {
                (Some(call), Some(base)) => Some(call.or(base)),
                (call, base) => call.or(base),
            },
            queue: self.queue.or(base.queue),
            priority: self.priority.or(base.priority),
        }
    }

    /// How long one attempt may take.
    pub fn start_to_close(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_mins(1))
    }

    /// How long all attempts may take.
    pub fn schedule_to_close(&self) -> Option<Duration> {
        self.deadline
    }

    /// How failed attempts are repeated.
    pub fn retry_policy(&self) -> Retry {
        self.retry.unwrap_or_default()
    }

    pub(crate) fn timeouts(&self) -> v1::ActivityTimeouts {
        v1::ActivityTimeouts {
            start_to_close_us: micros(self.timeout),
            schedule_to_start_us: micros(self.queue_timeout),
            schedule_to_close_us: micros(self.deadline),
            heartbeat_us: micros(self.heartbeat),
        }
    }
}

/// A duration for the wire, where 0 means that none is set: a set one is at least 1 µs.
fn micros(duration: Option<Duration>) -> i64 {
    duration.map_or(0, |duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_wins_over_the_attribute_field_by_field() {
        const ATTRIBUTE: ActivityOptions = ActivityOptions::new()
            .timeout(Duration::from_secs(30))
            .retry(Retry::attempts(5).initial(Duration::from_millis(200)));
        let merged = ActivityOptions::new().retry(Retry::attempts(3)).or(ATTRIBUTE);
        assert_eq!(merged.start_to_close(), Duration::from_secs(30));
        assert_eq!(merged.retry_policy().allowed_attempts(), 3);
        assert_eq!(merged.retry_policy().delay_after(2), Duration::from_millis(400));
    }

    #[test]
    fn backoff_stops_at_the_longest_wait() {
        assert_eq!(Retry::new().delay_after(1), Duration::from_secs(1));
        assert_eq!(Retry::new().delay_after(8), Duration::from_secs(100));
        assert_eq!(Retry::new().delay_after(u32::MAX), Duration::from_secs(100));
    }
}
