//! The server's protocol, spoken word by word: no SDK, so each message is seen.
#![allow(clippy::unwrap_used)]

mod damage;
mod faults;
mod histories;
mod life;
mod memory;
mod stage;
mod world;
