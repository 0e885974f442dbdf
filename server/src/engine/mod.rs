//! The rules of a run, as functions of their arguments.
//!
//! [`Run::decide`] works out what an input means and changes nothing; [`Run::apply`] folds a
//! decision in and may not refuse. Neither awaits, reads a clock, draws a random number or logs:
//! time comes in as an argument, and what has to be sent comes out as [`Effect`]s.
//!
//! A run is two things. Its *state* is the fold of its journal (and of its `pending` rows) and is
//! found again after a crash. Its *leases* (the workflow task in flight, the attempts that run)
//! live in memory only and die with the lane.
//!
//! What this module never does: I/O, encoding rows, talking to sessions.

mod activity;
mod close;
mod deadlines;
mod describe;
pub mod history;
mod input;
pub mod limits;
mod requests;
mod run;
mod signal;
mod start;
mod timer;
mod workflow_task;

pub use activity::ActivityOffer;
pub use history::{HistorySize, Unreadable};
pub use input::*;
pub use requests::{RequestKind, Requests};
pub use run::{Known, Run, RunIdentity, Stored, Work};
pub use start::{Existing, StartVerdict, decide_for_closed, decide_start};
pub use workflow_task::{FailedTask, OpenTask, TaskOffer};

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod properties;
