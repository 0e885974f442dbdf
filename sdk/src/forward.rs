//! What `#[derive(Failure)]` asks of a type that may or may not be a [`std::error::Error`], as
//! [`Forward`] asks one that may or may not be a failure.

use std::error::Error as StdError;

use crate::definition::Forward;

/// The type is an error.
pub trait ForwardCauses {
    /// Messages of its sources, nearest first.
    fn forward_causes(&self) -> Vec<String>;
}

impl<T: StdError> ForwardCauses for Forward<'_, T> {
    fn forward_causes(&self) -> Vec<String> {
        std::iter::successors(self.0.source(), |&cause| cause.source())
            .map(ToString::to_string)
            .collect()
    }
}

/// The type is no error.
pub trait ForwardNoCauses {
    /// None.
    fn forward_causes(&self) -> Vec<String>;
}

impl<T: ?Sized> ForwardNoCauses for &Forward<'_, T> {
    fn forward_causes(&self) -> Vec<String> {
        Vec::new()
    }
}
