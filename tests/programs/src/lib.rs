//! Random workflows as data: drawn from a seed, shrunk when one fails, run by one workflow that
//! interprets them, and each with a known set of outcomes.
//!
//! - [`Program`] is the data; [`Program::random`] draws one, [`Program::simpler`] shrinks it.
//! - [`interpret`] runs it with our own SDK, [`work`] is its activity.
//! - [`Program::judge`] says whether what came of a run may come of it.
//! - [`Customer`] starts programs, sends what they wait for, asks twice now and then, and takes down
//!   every answer for the checker.
//! - [`notes`] is what activities and workflow code leave behind outside of the system, and
//!   [`evidence`] reads what the system itself does.
//!
//! Simulation and chaos use all of it alike; only the world around it differs.
#![allow(clippy::unwrap_used)]

mod besides;
mod book;
mod contend;
mod customer;
pub mod evidence;
mod interpreter;
mod judge;
pub mod notes;
mod program;

pub use besides::{Besides, Cue};
pub use book::Book;
pub use customer::{Customer, Order, Pace};
pub use interpreter::{NEVER, ProgramError, Tools, WorkError, interpret, work};
pub use judge::{Ended, Seen, What};
pub use program::{Do, Fate, Finish, Program, Step, Work};
