//! Whole nodes, workers and clients in one thread, on a virtual clock and from one seed.
//!
//! The lanes, the engine, dispatch, the sessions and the machine are the real ones; only the
//! database, the network and the clock are not. A seed is a [`Story`]: which programs are run and
//! what may go wrong. [`play`] plays it: faults first, then time to heal, then everything that
//! clients were told, workers did and the database holds goes before the checker.
//!
//! The same story is the same trace, event by event; [`Suite`] plays many, twice for some, and makes
//! one that fails as small as it can.
#![allow(clippy::unwrap_used)]

mod crowd;
mod diary;
pub mod evidence;
mod fate;
mod host;
mod net;
pub mod notebook;
mod stage;
mod story;
mod suite;
mod weather;
mod world;

pub use diary::{Diary, Trace, chance};
pub use story::{Story, Trouble};
pub use suite::{Failure, Suite, Summary, Tale, take_panics};
pub use world::{Played, play};
