//! Which gRPC code each refusal gets: the codes are part of the contract.
//!
//! *Certainly not applied*: INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION,
//! RESOURCE_EXHAUSTED. *Unknown, ask again with the same request id*: UNAVAILABLE, ABORTED,
//! INTERNAL. *Unknown, and asking again is of no use until somebody has looked*: DATA_LOSS, for a
//! run that cannot be read.

use tonic::Status;

use crate::{engine::Rejection, shard::message::Refusal, store};

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Rejected(rejection) => of_rejection(&rejection, text),
            Refusal::NotFound { .. } => Self::not_found(text),
            Refusal::Busy { .. } => Self::resource_exhausted(text),
            Refusal::Unavailable(_) => Self::unavailable(text),
            Refusal::Parked { .. } | Refusal::Unreadable { .. } => Self::data_loss(text),
        }
    }
}

fn of_rejection(rejection: &Rejection, text: String) -> Status {
    match rejection {
        Rejection::Closed { .. } => Status::failed_precondition(text),
        Rejection::AlreadyRunning { .. } | Rejection::Reused { .. } => Status::already_exists(text),
        Rejection::Limit(_) => Status::resource_exhausted(text),
        // A repeated request is answered as the first one was, before it comes to a status.
        Rejection::Repeated(_) | Rejection::Stale | Rejection::Recorded => Status::aborted(text),
    }
}

/// A failed read. Nothing was changed by it.
pub(super) fn of_store(error: &store::Error) -> Status {
    match error {
        store::Error::Unavailable(_) | store::Error::Unknown(_) => {
            Status::unavailable(error.to_string())
        }
        store::Error::Refused(_) => Status::internal(error.to_string()),
        store::Error::Corrupt(_) => Status::data_loss(error.to_string()),
    }
}
