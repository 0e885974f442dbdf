//! What `#[derive(Failure)]` asks of a type that may or may not be a [`std::error::Error`], as
//! [`Forward`] asks one that may or may not be a failure.

use std::error::Error as StdError;

use crate::definition::Forward;

/// The type is an error.
pub trait ForwardCauses<'a> {
    /// Messages of its sources, nearest first.
    fn forward_causes(&self) -> Vec<String>;
    /// Its source.
    fn forward_nearest(&self) -> Option<&'a (dyn StdError + 'static)>;
}

impl<'a, T: StdError> ForwardCauses<'a> for Forward<'a, T> {
    fn forward_nearest(&self) -> Option<&'a (dyn StdError + 'static)> {
        self.0.source()
    }

    fn forward_causes(&self) -> Vec<String> {
        std::iter::successors(self.0.source(), |&cause| cause.source())
            .map(ToString::to_string)
            .collect()
    }
}

/// The type is no error.
pub trait ForwardNoCauses<'a> {
    /// None.
    fn forward_causes(&self) -> Vec<String>;
    /// None.
    fn forward_nearest(&self) -> Option<&'a (dyn StdError + 'static)>;
}

impl<'a, T: ?Sized> ForwardNoCauses<'a> for &Forward<'a, T> {
    fn forward_nearest(&self) -> Option<&'a (dyn StdError + 'static)> {
        None
    }

    fn forward_causes(&self) -> Vec<String> {
        Vec::new()
    }
}
