//! The rules of the machine, each by a workflow that would show when it is broken.
//!
//! A small engine plays the server: it turns commands into events. After every task, what has been
//! recorded so far must replay; each scenario also runs with a cold machine at every task and must
//! leave the same history.
#![allow(clippy::unwrap_used, non_camel_case_types)]

mod engine;
mod random;
mod rules;
