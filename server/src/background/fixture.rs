//! A database in memory with one shard, and who owns it.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    engine::Limits,
    env::{Env, TokioBootClock},
    shard::{Node, NodeOptions},
    store::{
        Batch, CommitId, Committed, MemoryStore, NodeId, RunRow, ShardId, Store as _, Take, Taken,
    },
};
use onward_proto::Timestamp;

pub(super) struct Owner {
    pub(super) store: MemoryStore,
    pub(super) shard: ShardId,
    epoch: u64,
    commit_seq: u64,
    previous: CommitId,
}

impl Owner {
    pub(super) async fn new() -> Self {
        let store = MemoryStore::new(|| Timestamp::from_micros(1));
        let watched = store.shards(1).await.unwrap().rows.remove(0);
        let (shard, node_id) = (watched.shard_id, NodeId(Uuid::from_u128(1)));
        let previous = CommitId(Uuid::from_u128(2));
        let address = String::new();
        let take = Take { watched, node_id, address, commit_id: previous, lease_us: 1 };
        let Taken::Owned { epoch, commit_seq, .. } = store.take(take).await.unwrap() else {
            panic!("nobody else is there")
        };
        Self { store, shard, epoch, commit_seq, previous }
    }

    /// Commits a batch that starts these runs.
    pub(super) async fn commit(&mut self, new_runs: Vec<RunRow>) {
        self.commit_seq += 1;
        let commit_id = CommitId(Uuid::from_u64_pair(3, self.commit_seq));
        let batch = Batch {
            shard_id: self.shard,
            epoch: self.epoch,
            commit_seq: self.commit_seq,
            commit_id,
            previous: std::mem::replace(&mut self.previous, commit_id),
            renew_lease_us: None,
            new_runs,
            run_updates: Vec::new(),
            journal: Vec::new(),
            pending: Vec::new(),
        };
        let committed = self.store.commit(Arc::new(batch)).await.unwrap();
        assert!(matches!(committed, Committed::Committed { .. }));
    }

    /// A node with this database.
    pub(super) fn node(&self) -> Arc<Node> {
        Node::new(NodeOptions {
            env: Env::seeded(Arc::new(TokioBootClock::start()), 1),
            store: Arc::new(self.store.clone()),
            limits: Limits::default(),
            cache_bytes: 0,
            waiting_bytes: 0,
            shards: 1,
        })
    }
}
