//! How a call reaches the server: what may be asked again, and what the caller learns if it fails.

use std::{error::Error as _, io, time::Duration};

use tokio::time::Instant;
use tonic::{Code, Status};

use crate::error::RpcError;

/// Reads a reply's status.
pub(crate) fn rpc_error(address: &str, status: &Status) -> RpcError {
    match connect_failure(status) {
        Some(reason) => RpcError::new(
            Code::Unavailable,
            format!(
                "cannot reach {address}: {reason}; start one with 'onward dev' or set ONWARD_ADDRESS"
            ),
        ),
        None => RpcError::new(status.code(), status.message()),
    }
}

/// Whether a reply with this code leaves open what the request did. Such a request is asked again
/// under the same request id. Every other code says that it certainly changed nothing, but for
/// `DATA_LOSS`: what became of the request is then not known, and asking again would not tell.
pub(crate) fn may_have_happened(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Unknown
            | Code::Cancelled
    )
}

/// Why no connection could be made, if that is what the status says.
pub(crate) fn connect_failure(status: &Status) -> Option<String> {
    let mut connecting = false;
    let mut cause = status.source();
    let mut innermost = None;
    while let Some(error) = cause {
        connecting |= error.is::<tonic::ConnectError>();
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            return Some("connection refused".to_owned());
        }
        innermost = Some(error.to_string());
        cause = error.source();
    }
    if connecting { innermost } else { None }
}

/// Waits between tries: exponential with jitter, so that many clients of a restarted server do
/// not all come back in the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    rng: fastrand::Rng,
    next: Duration,
    max: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);

    pub(crate) fn new(rng: fastrand::Rng, max: Duration) -> Self {
        Self { rng, next: Self::FIRST, max }
    }

    /// How long to wait now.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (self.next * 2).min(self.max);
        delay.mul_f64(0.5 + self.rng.f64() / 2.0)
    }

    /// Begins again after a success.
    pub(crate) fn reset(&mut self) {
        self.next = Self::FIRST;
    }
}

/// Whether there is time for one more try.
#[derive(Debug)]
pub(crate) struct Patience {
    limit: Duration,
    since: Option<Instant>,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, since: None }
    }

    /// Counts from the first failure, not from the first try: a long wait that was answered late
    /// has not used anything up.
    pub(crate) fn allows(&mut self, delay: Duration) -> bool {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        now + delay <= since + self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_that_leave_the_outcome_open_are_asked_again() {
        for code in [
            Code::InvalidArgument,
            Code::NotFound,
            Code::AlreadyExists,
            Code::FailedPrecondition,
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::ResourceExhausted,
            Code::Unimplemented,
            Code::DataLoss,
        ] {
            assert!(!may_have_happened(code), "{code}");
        }
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Aborted,
            Code::Internal,
            Code::Cancelled,
            Code::Unknown,
        ] {
            assert!(may_have_happened(code), "{code}");
        }
    }

    #[test]
    fn backoff_grows_to_its_maximum() {
        let mut backoff = Backoff::new(fastrand::Rng::with_seed(1), Duration::from_secs(2));
        let delays: Vec<_> = (0..10).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] <= Duration::from_millis(50));
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(2)));
        assert!(delays[9] >= Duration::from_secs(1));
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(50));
    }
}
