//! Chaos: real servers, workers, clients and databases, with a proxy on every way between them, and
//! everything happens to them that can.
//!
//! - `scene` holds the processes and the ways between them.
//! - [`Trouble`] is what can happen; each kind is one function that does it, waits, and takes it
//!   back again.
//! - `crowd` is who uses the system meanwhile: random programs with a known outcome each, ordered by
//!   customers who take down every answer, and others who contend for the same ids.
//! - `evidence` gathers what all of them left, for the checker to judge; what a log must not say is
//!   looked for as well.
//! - `soak` is the same scene with nothing going wrong, to see that nothing grows.
//!
//! One seed decides who does what and what happens when, but not how long it takes: a run here is
//! not played again the same way, unlike a simulation's.
#![allow(clippy::unwrap_used)]

mod crowd;
mod evidence;
mod notes_file;
mod run;
mod scene;
mod soak;
mod summary;
mod trouble;

pub use notes_file::NotesFile;
pub use run::{Options, Store, run};
pub use soak::{SoakOptions, Soaked, soak};
pub use summary::Summary;
pub use trouble::Trouble;

/// The task queue of all programs.
pub const QUEUE: &str = "chaos";

/// Microseconds on the clock that all processes of this machine share.
pub fn now_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
}
