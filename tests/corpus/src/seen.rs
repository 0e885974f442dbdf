//! What workflows tell of an outcome, in words that do not change when those of an error do.

use onward::{ActivityError, Failure, TimeoutKind};
use serde::{Deserialize, Serialize};

/// The outcome of a call. Each variant has the name of the error's.
#[derive(Debug, Serialize, Deserialize)]
pub enum Seen {
    /// It returned this.
    Value(u32),
    /// It failed with an error of this kind.
    Failed(String),
    /// The last attempt failed like that, after so many.
    Exhausted(String, u32),
    /// It took too long, and the attempt before had failed like that.
    TimedOut(TimeoutKind, Option<String>),
    /// It was cancelled.
    Cancelled,
    /// This attempt may have done it.
    OutcomeUnknown(u32),
    /// It broke this limit.
    Refused(String),
    /// It failed with no error of its own.
    Lost(String),
}

/// What there is to tell.
pub(crate) fn seen<E: Failure>(outcome: &Result<u32, ActivityError<E>>) -> Seen {
    let kind = |error: &E| error.kind().to_owned();
    match outcome {
        Ok(value) => Seen::Value(*value),
        Err(ActivityError::Failed(error)) => Seen::Failed(kind(error)),
        Err(ActivityError::Exhausted { last, attempts }) => Seen::Exhausted(kind(last), *attempts),
        Err(ActivityError::TimedOut { kind: which, last }) => {
            Seen::TimedOut(*which, last.as_ref().map(kind))
        }
        Err(ActivityError::Cancelled) => Seen::Cancelled,
        Err(ActivityError::OutcomeUnknown { attempt }) => Seen::OutcomeUnknown(*attempt),
        Err(ActivityError::Refused(limit)) => Seen::Refused(limit.name.clone()),
        Err(ActivityError::Lost(remote)) => Seen::Lost(remote.kind.clone()),
        Err(other) => panic!("{other} has no word here yet"),
    }
}
