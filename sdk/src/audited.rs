//! The way around the body lint of `#[workflow]`.

/// Lets an expression through that `#[workflow]` would refuse by its spelling: because it only
/// looks like what it refuses, or because its value is the same on every replay.
///
/// ```
/// # mod rand { pub fn random() -> u8 { 4 } }
/// # use onward::prelude::*;
/// #[workflow]
/// async fn order(_: &Ctx) -> onward::Result<u8> {
///     Ok(onward::audited!(rand::random())) // a module of our own, not the crate
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! audited {
    ($expression:expr) => {
        $expression
    };
}
