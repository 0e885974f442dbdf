//! Whole servers, workers and clients, each on a host of its own with a name and an address, on a
//! simulated network and from one seed.
//!
//! The real gRPC server listens on a port, and the real SDK connects to it by name. Between them is
//! turmoil's TCP: messages take their time and overtake each other; they are held, or lost for good,
//! in one direction or both; connections are refused, reset and half-open; hosts crash and come back.
//! Only the database is not on the network: the ways of the servers to it are faults of their own.
//!
//! A seed is a [`Story`], played like those of the simulation of nodes and judged by the same
//! checker.
#![allow(clippy::unwrap_used)]

mod database;
mod fate;
mod hosts;
mod story;
mod tcp;
mod world;

pub use story::{Story, Trouble};
