//! What an activity or workflow can fail with, and how a failure crosses the wire.

use std::{fmt, time::Duration};

use onward_proto::v1;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    limits::without_nul,
    payload::{self, Codec},
};

/// What the failing code says about another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RetryHint {
    /// As the retry policy says.
    #[default]
    Retry,
    /// Another attempt cannot help.
    Never,
    /// Not before this time has passed, whatever the policy's backoff.
    After(Duration),
}

/// An error that can be recorded, decided upon by the retry policy, and given to the caller as the
/// same type again.
///
/// Derive it. It does not ask for [`std::error::Error`], so that [`Error`](crate::Error) can
/// be one and still take any error by `?`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the error of an activity or workflow",
    note = "derive it: `#[derive(Debug, thiserror::Error, Serialize, Deserialize, onward::Failure)]`"
)]
pub trait Failure:
    fmt::Debug + fmt::Display + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// Whether another attempt may help.
    fn retry(&self) -> RetryHint;

    /// Its variant path, for example `PaymentError::Declined`: what `Retry::never_on` names and
    /// tools show.
    fn kind(&self) -> &str;

    /// True for [`Cancelled`](crate::Cancelled) and what wraps it: a run that ends with such an
    /// error closes as cancelled.
    fn is_cancelled(&self) -> bool {
        false
    }

    /// Messages of what caused it, nearest first.
    #[doc(hidden)]
    fn causes(&self) -> Vec<String> {
        Vec::new()
    }

    /// What caused it, if that is known as more than a message.
    #[doc(hidden)]
    fn nearest_cause(&self) -> Option<&(dyn std::error::Error + 'static)> {
        None
    }

    /// Stands in for a failure that carries no value of this type, for example a panic.
    #[doc(hidden)]
    fn from_remote(_: &RemoteFailure) -> Option<Self> {
        None
    }
}

/// A failure as it was recorded, for when its value is not known or no longer decodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RemoteFailure {
    /// Its variant path.
    pub kind: String,
    /// For people.
    pub message: String,
    /// Messages of what caused it, nearest first.
    pub causes: Vec<String>,
    /// Whether another attempt was ruled out.
    pub non_retryable: bool,
}

impl fmt::Display for RemoteFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl std::error::Error for RemoteFailure {}

impl From<&v1::Failure> for RemoteFailure {
    fn from(failure: &v1::Failure) -> Self {
        let mut causes = Vec::new();
        let mut next = failure.cause.as_deref();
        while let Some(cause) = next {
            causes.push(cause.message.clone());
            next = cause.cause.as_deref();
        }
        Self {
            kind: failure.kind.clone(),
            message: failure.message.clone(),
            causes,
            non_retryable: failure.non_retryable,
        }
    }
}

/// A failure without a typed value.
pub(crate) fn plain_failure(kind: &str, message: impl Into<String>) -> v1::Failure {
    let message = without_nul(message.into());
    v1::Failure { kind: kind.to_owned(), message, ..Default::default() }
}

/// How deep a recorded chain of causes may be.
const MAX_CAUSES: usize = 16;

/// Writes a failure for the wire, with texts that the server takes.
pub(crate) fn to_wire<E: Failure>(error: &E, codec: Codec) -> v1::Failure {
    let hint = error.retry();
    let mut cause = None;
    for message in error.causes().into_iter().take(MAX_CAUSES).rev() {
        let message = without_nul(message);
        cause = Some(Box::new(v1::Failure { message, cause, ..Default::default() }));
    }
    v1::Failure {
        kind: without_nul(error.kind().to_owned()),
        message: without_nul(error.to_string()),
        non_retryable: hint == RetryHint::Never,
        next_delay_us: match hint {
            RetryHint::After(delay) => Some(i64::try_from(delay.as_micros()).unwrap_or(i64::MAX)),
            RetryHint::Retry | RetryHint::Never => None,
        },
        // A value that does not encode still has its message; the caller gets it as lost.
        details: payload::encode(error, codec).into_iter().collect(),
        cause,
        stack: String::new(),
    }
}

/// Reads a failure back as the type that it was.
///
/// # Errors
/// The recorded text when there is no value of that type in it.
pub(crate) fn from_wire<E: Failure>(failure: &v1::Failure) -> Result<E, Box<RemoteFailure>> {
    if let Some(Ok(error)) = failure.details.first().map(payload::decode::<E>) {
        return Ok(error);
    }
    let remote = RemoteFailure::from(failure);
    E::from_remote(&remote).ok_or_else(|| Box::new(remote))
}
