//! The errors that users meet: [`Error`] for those who do not care, [`ActivityError`] and
//! [`WorkflowError`] around their own types on the calling side.

use std::{error::Error as StdError, fmt, ops::Deref};

use onward_proto::v1;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::failure::{Failure, RemoteFailure, RetryHint};

/// Any error, with what the retry policy should know about it.
///
/// It takes every [`std::error::Error`] by `?` and crosses the wire as message and causes. `?`
/// keeps message and causes; [`FailureExt::failure`] keeps the retry hint and kind as well.
///
/// ```
/// use onward::prelude::*;
///
/// fn parse(amount: &str) -> onward::Result<u64> {
///     Ok(amount.parse().terminal()?) // the same text never parses
/// }
/// assert_eq!(parse("x").unwrap_err().retry(), onward::RetryHint::Never);
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    source: Box<dyn StdError + Send + Sync>,
    kind: String,
    retry: RetryHint,
    cancelled: bool,
}

/// A result whose error is [`Error`] unless said otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

const DEFAULT_KIND: &str = "Error";

impl Error {
    /// An error with this message.
    pub fn msg(message: impl fmt::Display) -> Self {
        Self::from(Link { message: message.to_string(), source: None })
    }

    /// Takes over a typed failure with its retry hint and kind.
    #[allow(clippy::needless_pass_by_value)] // it stands for the failure from here on
    pub fn from_failure<E: Failure>(failure: E) -> Self {
        let mut source = None;
        for message in failure.causes().into_iter().rev() {
            source = Some(Box::new(Link { message, source }));
        }
        Self(Box::new(Inner {
            kind: failure.kind().to_owned(),
            retry: failure.retry(),
            cancelled: failure.is_cancelled(),
            source: Box::new(Link { message: failure.to_string(), source }),
        }))
    }

    /// The same error with another hint.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryHint) -> Self {
        self.0.retry = retry;
        self
    }

    fn chain(&self) -> Vec<String> {
        let mut chain = Vec::new();
        let mut next: Option<&dyn StdError> = Some(&*self.0.source);
        while let Some(error) = next {
            chain.push(error.to_string());
            next = error.source();
        }
        chain
    }

    fn from_chain(chain: Vec<String>, kind: String, retry: RetryHint, cancelled: bool) -> Self {
        let mut link = None;
        for message in chain.into_iter().rev() {
            link = Some(Box::new(Link { message, source: link }));
        }
        let link = link
            .unwrap_or_else(|| Box::new(Link { message: "unknown error".into(), source: None }));
        Self(Box::new(Inner { source: link, kind, retry, cancelled }))
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let cancelled = (&error as &dyn std::any::Any).is::<Cancelled>();
        let kind = if cancelled { "Cancelled" } else { DEFAULT_KIND }.to_owned();
        Self(Box::new(Inner { source: Box::new(error), kind, retry: RetryHint::Retry, cancelled }))
    }
}

impl Deref for Error {
    type Target = dyn StdError + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0.source
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.source, f)?;
        if f.alternate() {
            self.chain().iter().skip(1).try_for_each(|cause| write!(f, ": {cause}"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            return fmt::Debug::fmt(&self.0.source, f);
        }
        let chain = self.chain();
        f.write_str(&chain[0])?;
        if chain.len() > 1 {
            f.write_str("\n\nCaused by:")?;
            chain.iter().skip(1).try_for_each(|cause| write!(f, "\n    {cause}"))?;
        }
        Ok(())
    }
}

/// What crosses the wire. Every field is always there: bincode tells fields apart by position.
#[derive(Serialize, Deserialize)]
#[serde(rename = "Error")]
struct Wire {
    chain: Vec<String>,
    kind: String,
    retry: RetryHint,
    cancelled: bool,
}

impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Inner { kind, retry, cancelled, .. } = &*self.0;
        Wire { chain: self.chain(), kind: kind.clone(), retry: *retry, cancelled: *cancelled }
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Error {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire { chain, kind, retry, cancelled } = Wire::deserialize(deserializer)?;
        Ok(Self::from_chain(chain, kind, retry, cancelled))
    }
}

impl Failure for Error {
    fn retry(&self) -> RetryHint {
        self.0.retry
    }

    fn kind(&self) -> &str {
        &self.0.kind
    }

    fn is_cancelled(&self) -> bool {
        self.0.cancelled
    }

    fn causes(&self) -> Vec<String> {
        self.chain().split_off(1)
    }

    fn nearest_cause(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.source()
    }

    fn from_remote(remote: &RemoteFailure) -> Option<Self> {
        let chain = std::iter::once(&remote.message).chain(&remote.causes).cloned().collect();
        let retry = if remote.non_retryable { RetryHint::Never } else { RetryHint::Retry };
        Some(Self::from_chain(chain, remote.kind.clone(), retry, false))
    }
}

/// One message of a chain that came over the wire.
#[derive(Debug)]
struct Link {
    message: String,
    source: Option<Box<Link>>,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Link {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|link| link as _)
    }
}

/// Says on any result whether the retry policy should try again.
pub trait ResultExt<T> {
    /// The error may pass: the policy decides.
    ///
    /// # Errors
    /// The error, as [`Error`].
    fn retryable(self) -> Result<T>;

    /// Another attempt cannot help.
    ///
    /// # Errors
    /// The error, as [`Error`].
    fn terminal(self) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for Result<T, E> {
    fn retryable(self) -> Result<T> {
        self.map_err(|error| error.into().with_retry(RetryHint::Retry))
    }

    fn terminal(self) -> Result<T> {
        self.map_err(|error| error.into().with_retry(RetryHint::Never))
    }
}

/// Turns a typed failure into [`Error`] without losing its retry hint and kind.
pub trait FailureExt<T> {
    /// Keeps message, causes, retry hint and kind.
    ///
    /// # Errors
    /// The failure, as [`Error`].
    fn failure(self) -> Result<T>;
}

impl<T, E: Failure> FailureExt<T> for Result<T, E> {
    fn failure(self) -> Result<T> {
        self.map_err(Error::from_failure)
    }
}

/// A cancel request reached this section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

impl Failure for Cancelled {
    fn retry(&self) -> RetryHint {
        RetryHint::Never
    }

    fn kind(&self) -> &'static str {
        "Cancelled"
    }

    fn is_cancelled(&self) -> bool {
        true
    }
}

/// The time was up first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, thiserror::Error)]
#[error("time is up")]
pub struct Elapsed;

impl Failure for Elapsed {
    fn retry(&self) -> RetryHint {
        RetryHint::Retry
    }

    fn kind(&self) -> &'static str {
        "Elapsed"
    }
}

/// A limit of the server that a command broke.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Limit {
    /// Its name, for example `payload_bytes_per_command`.
    pub name: String,
    /// The greatest allowed value.
    pub limit: u64,
    /// The offending value.
    pub value: u64,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, the limit is {}", self.name, self.value, self.limit)
    }
}

impl From<v1::Limit> for Limit {
    fn from(v1::Limit { name, limit, value }: v1::Limit) -> Self {
        Self { name, limit, value }
    }
}

/// Which of an activity's timeouts passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TimeoutKind {
    /// One attempt took too long (`timeout`).
    StartToClose,
    /// No worker took it in time (`queue_timeout`).
    ScheduleToStart,
    /// All attempts together took too long (`deadline`).
    ScheduleToClose,
    /// An attempt gave no sign of life (`heartbeat`).
    Heartbeat,
}

impl fmt::Display for TimeoutKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StartToClose => "start-to-close",
            Self::ScheduleToStart => "schedule-to-start",
            Self::ScheduleToClose => "schedule-to-close",
            Self::Heartbeat => "heartbeat",
        })
    }
}

/// Why the call of an activity gave no result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound = "E: Failure")]
#[non_exhaustive]
pub enum ActivityError<E = Error> {
    /// It failed, and said that another attempt cannot help.
    Failed(E),
    /// All allowed attempts failed.
    Exhausted {
        /// How the last one failed.
        last: E,
        /// How many there were.
        attempts: u32,
    },
    /// One of its timeouts passed for good.
    TimedOut {
        /// Which.
        kind: TimeoutKind,
        /// How the attempt before failed, if one did.
        last: Option<E>,
    },
    /// Somebody else closed it.
    Cancelled,
    /// The worker of the last allowed attempt vanished: it may have happened.
    OutcomeUnknown {
        /// That attempt.
        attempt: u32,
    },
    /// The call broke a limit and was never made.
    Refused(Limit),
    /// It failed with something that is no `E`, or no longer.
    Lost(Box<RemoteFailure>),
}

impl<E: Failure> fmt::Display for ActivityError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "{error}"),
            Self::Exhausted { last, attempts: 1 } => write!(f, "{last} (no further attempt)"),
            Self::Exhausted { last, attempts } => write!(f, "{last} (after {attempts} attempts)"),
            Self::TimedOut { kind, last: None } => write!(f, "{kind} timeout passed"),
            Self::TimedOut { kind, last: Some(last) } => {
                write!(f, "{kind} timeout passed; before that: {last}")
            }
            Self::Cancelled => f.write_str("the activity was cancelled"),
            Self::OutcomeUnknown { attempt } => {
                write!(f, "the worker of attempt {attempt} vanished: it may have happened")
            }
            Self::Refused(limit) => write!(f, "the call was refused: {limit}"),
            Self::Lost(remote) => write!(f, "{remote}"),
        }
    }
}

/// The failure itself is in the message already, so the chain goes on with what caused that.
impl<E: Failure> StdError for ActivityError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Failed(error) | Self::Exhausted { last: error, .. } => error.nearest_cause(),
            Self::TimedOut { last, .. } => last.as_ref()?.nearest_cause(),
            Self::Cancelled | Self::OutcomeUnknown { .. } | Self::Refused(_) | Self::Lost(_) => {
                None
            }
        }
    }
}

impl<E: Failure> Failure for ActivityError<E> {
    fn retry(&self) -> RetryHint {
        match self {
            Self::Failed(error) => error.retry(),
            Self::OutcomeUnknown { .. } | Self::Refused(_) => RetryHint::Never,
            Self::Lost(remote) if remote.non_retryable => RetryHint::Never,
            Self::Exhausted { .. } | Self::TimedOut { .. } | Self::Cancelled | Self::Lost(_) => {
                RetryHint::Retry
            }
        }
    }

    fn kind(&self) -> &str {
        match self {
            Self::Failed(error) => error.kind(),
            Self::Exhausted { .. } => "ActivityError::Exhausted",
            Self::TimedOut { .. } => "ActivityError::TimedOut",
            Self::Cancelled => "ActivityError::Cancelled",
            Self::OutcomeUnknown { .. } => "ActivityError::OutcomeUnknown",
            Self::Refused(_) => "ActivityError::Refused",
            Self::Lost(_) => "ActivityError::Lost",
        }
    }

    fn is_cancelled(&self) -> bool {
        match self {
            Self::Failed(error) | Self::Exhausted { last: error, .. } => error.is_cancelled(),
            Self::TimedOut { .. }
            | Self::Cancelled
            | Self::OutcomeUnknown { .. }
            | Self::Refused(_)
            | Self::Lost(_) => false,
        }
    }

    fn causes(&self) -> Vec<String> {
        match self {
            Self::Failed(error) | Self::Exhausted { last: error, .. } => error.causes(),
            Self::Lost(remote) => remote.causes.clone(),
            Self::TimedOut { last, .. } => last.as_ref().map_or_else(Vec::new, E::causes),
            Self::Cancelled | Self::OutcomeUnknown { .. } | Self::Refused(_) => Vec::new(),
        }
    }
}

/// A call to the server that failed, with its gRPC code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcError {
    code: i32,
    message: String,
}

impl RpcError {
    /// An error with this code and message.
    pub fn new(code: tonic::Code, message: impl Into<String>) -> Self {
        Self { code: code as i32, message: message.into() }
    }

    /// The gRPC code.
    pub fn code(&self) -> tonic::Code {
        tonic::Code::from_i32(self.code)
    }

    /// What the server or the connection says.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl From<tonic::Status> for RpcError {
    fn from(status: tonic::Status) -> Self {
        Self::new(status.code(), status.message())
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for RpcError {}

/// Why a workflow gave no result, as its client sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound = "E: Failure")]
#[non_exhaustive]
pub enum WorkflowError<E = Error> {
    /// It returned an error.
    Failed(E),
    /// It honoured a cancel request, with the error it returned if it ran on.
    Cancelled(Option<E>),
    /// It was ended from outside, for this reason.
    Terminated(String),
    /// Its run or execution timeout passed.
    TimedOut,
    /// The server closed it because it broke a limit: with its result or error, with a timer, or
    /// with the length of its history.
    Refused(Limit),
    /// It failed with something that is no `E`, or no longer.
    Lost(Box<RemoteFailure>),
    /// The server did not answer, or refused.
    Rpc(RpcError),
}

impl<E: Failure> fmt::Display for WorkflowError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "{error}"),
            Self::Cancelled(None) => f.write_str("the workflow was cancelled"),
            Self::Cancelled(Some(error)) => write!(f, "the workflow was cancelled: {error}"),
            Self::Terminated(reason) if reason.is_empty() => {
                f.write_str("the workflow was terminated")
            }
            Self::Terminated(reason) => write!(f, "the workflow was terminated: {reason}"),
            Self::TimedOut => f.write_str("the workflow took too long"),
            Self::Refused(limit) => write!(f, "the workflow broke a limit: {limit}"),
            Self::Lost(remote) => write!(f, "{remote}"),
            Self::Rpc(error) => write!(f, "{error}"),
        }
    }
}

/// As for [`ActivityError`].
impl<E: Failure> StdError for WorkflowError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Failed(error) => error.nearest_cause(),
            Self::Cancelled(error) => error.as_ref()?.nearest_cause(),
            Self::Terminated(_)
            | Self::TimedOut
            | Self::Refused(_)
            | Self::Lost(_)
            | Self::Rpc(_) => None,
        }
    }
}

impl<E: Failure> Failure for WorkflowError<E> {
    fn retry(&self) -> RetryHint {
        match self {
            Self::Failed(error) => error.retry(),
            Self::Cancelled(_)
            | Self::Terminated(_)
            | Self::TimedOut
            | Self::Refused(_)
            | Self::Lost(_)
            | Self::Rpc(_) => RetryHint::Retry,
        }
    }

    fn kind(&self) -> &str {
        match self {
            Self::Failed(error) => error.kind(),
            Self::Cancelled(_) => "WorkflowError::Cancelled",
            Self::Terminated(_) => "WorkflowError::Terminated",
            Self::TimedOut => "WorkflowError::TimedOut",
            Self::Refused(_) => "WorkflowError::Refused",
            Self::Lost(_) => "WorkflowError::Lost",
            Self::Rpc(_) => "WorkflowError::Rpc",
        }
    }

    fn is_cancelled(&self) -> bool {
        matches!(self, Self::Failed(error) if error.is_cancelled())
    }
}

impl<E> From<RpcError> for WorkflowError<E> {
    fn from(error: RpcError) -> Self {
        Self::Rpc(error)
    }
}

impl<E> From<tonic::Status> for WorkflowError<E> {
    fn from(status: tonic::Status) -> Self {
        Self::Rpc(status.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;
    use crate::payload::{self, Codec};

    #[derive(Debug, thiserror::Error, Serialize, Deserialize)]
    enum PaymentError {
        #[error("card declined: {reason}")]
        Declined { reason: String },
        #[error(transparent)]
        Other(#[from] Error),
    }

    impl Failure for PaymentError {
        fn retry(&self) -> RetryHint {
            match self {
                Self::Declined { .. } => RetryHint::Never,
                Self::Other(error) => error.retry(),
            }
        }

        fn kind(&self) -> &str {
            match self {
                Self::Declined { .. } => "PaymentError::Declined",
                Self::Other(error) => error.kind(),
            }
        }

        fn nearest_cause(&self) -> Option<&(dyn StdError + 'static)> {
            self.source()
        }
    }

    #[derive(Debug, thiserror::Error, Serialize, Deserialize)]
    enum OrderError {
        #[error(transparent)]
        Payment(#[from] ActivityError<PaymentError>),
        #[error(transparent)]
        Step(#[from] ActivityError),
    }

    fn round_trips<T: Serialize + serde::de::DeserializeOwned>(value: &T) -> [T; 2] {
        [Codec::Json, Codec::Bincode]
            .map(|codec| payload::decode(&payload::encode(value, codec).unwrap()).unwrap())
    }

    #[test]
    fn what_a_call_failed_with_keeps_its_causes_when_it_becomes_any_error() {
        let full = || Some(Box::new(Link { message: "disk full".into(), source: None }));
        let disk = || Error::from(Link { message: "write".into(), source: full() });
        let told = |error: Error| format!("{error:#}");
        let failed = ActivityError::Failed(disk());
        assert_eq!(told(failed.into()), "write: disk full");
        let exhausted = ActivityError::Exhausted { last: disk(), attempts: 3 };
        assert_eq!(told(exhausted.into()), "write (after 3 attempts): disk full");
        let timed_out =
            ActivityError::TimedOut { kind: TimeoutKind::StartToClose, last: Some(disk()) };
        assert_eq!(timed_out.causes(), ["disk full"]);
        let expected = "start-to-close timeout passed; before that: write: disk full";
        assert_eq!(told(timed_out.into()), expected);
        assert_eq!(told(WorkflowError::Failed(disk()).into()), "write: disk full");
        let typed = ActivityError::Failed(PaymentError::Other(disk()));
        assert_eq!(told(typed.into()), "write: disk full");
    }

    #[test]
    fn nested_errors_survive_both_codecs() {
        let inner = Error::from(std::io::Error::other("disk"))
            .with_retry(RetryHint::After(Duration::from_secs(3)));
        let error = OrderError::from(ActivityError::Exhausted {
            last: PaymentError::Other(inner),
            attempts: 3,
        });
        for back in round_trips(&error) {
            let OrderError::Payment(ActivityError::Exhausted {
                last: PaymentError::Other(inner),
                attempts: 3,
            }) = back
            else {
                panic!("{back:?}");
            };
            assert_eq!(inner.to_string(), "disk");
            assert_eq!(inner.retry(), RetryHint::After(Duration::from_secs(3)));
        }
        let step =
            OrderError::Step(ActivityError::TimedOut { kind: TimeoutKind::Heartbeat, last: None });
        for back in round_trips(&step) {
            assert_eq!(back.to_string(), "heartbeat timeout passed");
        }
        for back in round_trips(&WorkflowError::<Error>::Rpc(RpcError::new(
            tonic::Code::Unavailable,
            "gone",
        ))) {
            assert!(
                matches!(back, WorkflowError::Rpc(rpc) if rpc.code() == tonic::Code::Unavailable)
            );
        }
        assert_eq!(round_trips(&Cancelled), [Cancelled, Cancelled]);
        assert_eq!(round_trips(&Elapsed), [Elapsed, Elapsed]);
    }

    #[test]
    fn the_chain_of_causes_survives() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot charge")]
        struct Outer(#[source] std::io::Error);

        let error = Error::from(Outer(std::io::Error::other("connection reset")));
        assert_eq!(format!("{error:#}"), "cannot charge: connection reset");
        for back in round_trips(&error) {
            assert_eq!(format!("{back:#}"), "cannot charge: connection reset");
            assert_eq!(back.source().unwrap().to_string(), "connection reset");
        }
        let wire = crate::failure::to_wire(&error, Codec::Json);
        assert_eq!((wire.kind.as_str(), wire.message.as_str()), ("Error", "cannot charge"));
        assert_eq!(wire.cause.unwrap().message, "connection reset");
    }

    #[test]
    fn question_mark_keeps_the_message_and_failure_keeps_the_hint() {
        let declined = || Err::<(), _>(PaymentError::Declined { reason: "empty".into() });
        let by_question_mark = (|| -> Result<()> { Ok(declined()?) })().unwrap_err();
        assert_eq!(
            (by_question_mark.retry(), by_question_mark.kind()),
            (RetryHint::Retry, "Error")
        );
        let by_failure = declined().failure().unwrap_err();
        assert_eq!(
            (by_failure.retry(), by_failure.kind()),
            (RetryHint::Never, "PaymentError::Declined")
        );
        assert_eq!(by_failure.to_string(), "card declined: empty");
    }

    #[test]
    fn cancelled_stays_cancelled_through_a_question_mark() {
        let error = (|| -> Result<()> { Err(Cancelled)? })().unwrap_err();
        assert!(error.is_cancelled());
        assert!(round_trips(&error).iter().all(Failure::is_cancelled));
    }

    #[test]
    fn a_failure_without_its_value_is_lost_unless_the_type_is_open() {
        let panic = crate::failure::plain_failure("Panic", "index out of bounds");
        assert_eq!(crate::failure::from_wire::<PaymentError>(&panic).unwrap_err().kind, "Panic");
        assert_eq!(
            crate::failure::from_wire::<Error>(&panic).unwrap().to_string(),
            "index out of bounds"
        );
    }
}
