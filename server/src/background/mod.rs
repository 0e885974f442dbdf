//! What a node does besides serving: small statements, seldom.
//!
//! The deadlines of sleeping runs are read by the lanes themselves (`shard::lane::loads`), because
//! the horizon of that read is theirs.

mod prune;
mod renew;

pub(crate) use prune::prune_batches;
pub(crate) use renew::renew_leases;
