//! How fresh a lane's claim on its shard is.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::lane::Owned;
use crate::store::{self, Renewal, ShardId};

/// When a write that may be asked for again, and renews the lease, was sent.
///
/// Of attempts whose replies were lost the first one may have done it, and the last one only says
/// so: the lease counts from the first, and the clock in the reply from the last.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Attempts {
    lost: Option<Duration>,
}

impl Attempts {
    /// The attempt that was sent at `sent` has failed.
    pub(crate) fn failed(&mut self, sent: Duration, error: &store::Error) {
        // One that was certainly not applied renewed nothing.
        if !matches!(error, store::Error::Unavailable(_)) {
            self.lost.get_or_insert(sent);
        }
    }

    /// Since when the lease counts, now that the attempt that was sent at `sent` has succeeded.
    pub(crate) fn first(self, sent: Duration) -> Duration {
        self.lost.unwrap_or(sent)
    }
}

/// What a lane and the node's common renewal both know about the lane's lease.
#[derive(Debug)]
pub(crate) struct Lease {
    shard: ShardId,
    inner: Mutex<Inner>,
}

#[derive(Debug, Clone, Copy)]
struct Inner {
    owned: Owned,
    /// When the last renewal was sent, by the node's own clock.
    renewed: Duration,
    committing: bool,
}

impl Lease {
    /// A lease that was renewed by the write sent at `renewed`.
    pub(crate) fn new(shard: ShardId, owned: Owned, renewed: Duration) -> Self {
        Self { shard, inner: Mutex::new(Inner { owned, renewed, committing: false }) }
    }

    /// Time since the last renewal was sent.
    pub(crate) fn age(&self, boot: Duration) -> Duration {
        boot.saturating_sub(self.lock().renewed)
    }

    /// When the last renewal was sent, by the node's own clock.
    pub(crate) fn last_renewed(&self) -> Duration {
        self.lock().renewed
    }

    /// A shard with a commit or resolve under way is left out of the common renewal.
    pub(crate) fn committing(&self, committing: bool) {
        self.lock().committing = committing;
    }

    /// A batch is durable; it renewed the lease if `renewed` says when it was sent.
    pub(crate) fn committed(&self, owned: Owned, renewed: Option<Duration>) {
        let mut inner = self.lock();
        inner.owned = owned;
        inner.committing = false;
        inner.renewed = renewed.map_or(inner.renewed, |renewed| inner.renewed.max(renewed));
    }

    /// What to ask the database, unless a batch is under way or renewed it just now.
    pub(crate) fn to_renew(&self, boot: Duration, after: Duration) -> Option<Renewal> {
        let inner = self.lock();
        if inner.committing || boot.saturating_sub(inner.renewed) < after {
            return None;
        }
        Some(Renewal {
            shard_id: self.shard,
            epoch: inner.owned.epoch,
            commit_seq: inner.owned.commit_seq,
            commit_id: inner.owned.commit_id,
        })
    }

    /// The common renewal reached the shard; it was sent at `sent`.
    pub(crate) fn renewed(&self, sent: Duration) {
        let mut inner = self.lock();
        inner.renewed = inner.renewed.max(sent);
    }

    /// Whether nothing has been committed since the renewal was put together: only then does a bad
    /// verdict count.
    pub(crate) fn is_at(&self, renewal: &Renewal) -> bool {
        let inner = self.lock();
        !inner.committing
            && inner.owned.epoch == renewal.epoch
            && inner.owned.commit_seq == renewal.commit_seq
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
