//! What fuzzers do with each decoder and parser of ours, and storms of random calls of a whole
//! server.
//!
//! - [`TARGETS`] are functions that take any bytes and must neither panic nor hang. `fuzz/` has one
//!   coverage-guided fuzzer for each; the tests here feed them its corpus and what [`mutate()`] makes
//!   of that.
//! - [`seeds`] are inputs made of real messages, from which a corpus begins.
//! - [`Storm`] calls all methods of all services with nearly valid messages, beside customers who
//!   must not feel it.
#![allow(clippy::unwrap_used)]

mod mutate;
mod panics;
mod rpcs;
pub mod seeds;
mod server;
mod targets;

pub use mutate::mutate;
pub use rpcs::{Storm, Summary};
pub use targets::{TARGETS, Target, target};
