//! What must compile as users write it, under strict lints, and what it becomes.

// It is written as in crates of its own.
#![allow(dead_code, unreachable_pub, clippy::unused_async)]

mod definitions;
mod hello;
mod order;
