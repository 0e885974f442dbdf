//! What a node does besides serving: small statements, seldom.

mod due;
#[cfg(test)]
mod fixture;
mod prune;
mod renew;
mod shards;

pub(crate) use due::{DueAsk, read_due_runs};
pub(crate) use prune::prune_batches;
pub(crate) use renew::renew_leases;
pub(crate) use shards::{ShardsAsk, read_shards, watch_shards};
