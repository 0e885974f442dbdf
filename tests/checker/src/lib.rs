//! Judges what happened: reads the logs of clients and workers, the effects they left, and the
//! store, and says which of the promises was broken.
//!
//! - [`log`] is what a checker reads. Whoever runs a system writes one: the simulation from memory,
//!   the chaos runner from files and a database.
//! - [`RULES`] are the invariants, one function each, under the names that `docs/proof.md` uses.
//! - [`Report`] adds them up over many logs: a rule that was broken fails, and one that never had
//!   anything to look at is void, which is no pass.
//!
//! Every rule has a test that plants a violation into a good log. A checker that cannot fail proves
//! nothing.
//!
//! What it never does: ask the system anything, wait, or share code with the engine.

#[cfg(test)]
mod fixture;
mod judge;
pub mod log;
mod rules;

pub use judge::{Judge, Report, Rule, Verdict, Violation};
pub use log::Log;
pub use rules::RULES;

/// Checks a log against all rules.
pub fn check(log: &Log) -> Report {
    Report::of(log, RULES)
}
