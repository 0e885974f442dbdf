//! The wire and journal format of Onward, with the ids and times that both sides share.
//!
//! [`v1`] is generated from `proto/onward/v1/*.proto`; everything else here gives its bytes and
//! integers a type: [`RunId`], [`RequestId`], [`Slot`], [`Timestamp`].
#![deny(missing_docs)]

mod codec;
mod id;
#[cfg(feature = "json")]
pub mod json;
mod limits;
mod seeded_bug;
mod slot;
mod time;

pub use codec::{WireCodec, WireDecoder};
pub use id::{DEFAULT_NAMESPACE, InvalidId, NamespaceId, RequestId, RunId};
pub use limits::{FAILURE_DEPTH, MAX_DURATION_US};
pub use seeded_bug::{HAS_SEEDED_BUGS, SeededBug};
pub use slot::{SLOTS, Slot};
pub use time::Timestamp;

/// The number of the protocol that this build speaks. Client, worker and server must agree on it.
pub const PROTOCOL: u32 = 1;

/// The default port of the gRPC server.
pub const DEFAULT_PORT: u16 = 7450;

/// The descriptors of all services and messages, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/onward.bin"));

/// The messages and services of protocol 1, generated.
#[allow(clippy::pedantic, unreachable_pub, rust_2018_idioms)]
pub mod v1 {
    tonic::include_proto!("onward.v1");
}
