//! Whole-system tests: the parts from which they are made.
//!
//! - [`Server`] and [`WorkerProcess`] are the real programs, killed by their process ids.
//! - [`Load`] keeps a number of runs open and counts those that end; faults come by that count.
//! - [`Ledger`] is where activities leave their effects, outside of Onward.
//! - [`check`] reads histories and ledger afterwards and says what is wrong with them.
//! - [`proxy`] stands between any two of them and breaks connections.
#![allow(clippy::unwrap_used)]

pub mod check;
mod ledger;
mod load;
mod process;
pub mod proxy;
mod server;
mod store;
mod worker;
pub mod workflows;

pub use ledger::{Effect, Ledger};
pub use load::{Ended, Faults, Load};
pub use process::{Process, free_port, program, within};
pub use server::{Server, StoreUrl, client_of};
pub use store::{Batch, Runs, assert_single_writer, postgres_batches, sqlite_batches};
pub use worker::{WorkerProcess, log_to_stderr};

/// The task queue of all tests but those that need another.
pub const QUEUE: &str = "crash";
