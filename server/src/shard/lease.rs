//! How fresh a lane's claim on its shard is, and whether it has stood without a gap.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::lane::{LEASE, Owned};
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
    tenure: Tenure,
    committing: bool,
}

/// A stretch of time in which the lease has stood without a gap: nobody else owned the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tenure(u64);

impl Inner {
    fn is_over(&self, boot: Duration) -> bool {
        boot.saturating_sub(self.renewed) >= LEASE
    }

    /// Hears at `boot` of a renewal that was sent at `sent`. One that comes too late begins anew:
    /// nobody knows whose the shard was before it was carried out.
    fn renew(&mut self, sent: Duration, boot: Duration) {
        if self.is_over(boot) {
            self.tenure.0 += 1;
        }
        self.renewed = self.renewed.max(sent);
    }
}

impl Lease {
    /// A lease that was renewed by the write sent at `renewed`.
    pub(crate) fn new(shard: ShardId, owned: Owned, renewed: Duration) -> Self {
        let inner = Inner { owned, renewed, tenure: Tenure(0), committing: false };
        Self { shard, inner: Mutex::new(inner) }
    }

    /// The stretch of time that this moment belongs to; none while the lease has run out.
    pub(crate) fn tenure(&self, boot: Duration) -> Option<Tenure> {
        let inner = self.lock();
        (!inner.is_over(boot)).then_some(inner.tenure)
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

    /// A batch is durable, as is heard at `boot`; it renewed the lease if `renewed` says when it was
    /// sent.
    pub(crate) fn committed(&self, owned: Owned, renewed: Option<Duration>, boot: Duration) {
        let mut inner = self.lock();
        inner.owned = owned;
        inner.committing = false;
        if let Some(sent) = renewed {
            inner.renew(sent, boot);
        }
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

    /// The common renewal reached the shard, as is heard at `boot`; it was sent at `sent`.
    pub(crate) fn renewed(&self, sent: Duration, boot: Duration) {
        self.lock().renew(sent, boot);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::CommitId;

    const SECOND: Duration = Duration::from_secs(1);

    fn just_before(at: Duration) -> Duration {
        at.saturating_sub(Duration::from_nanos(1))
    }

    fn owned(epoch: u64, commit_seq: u64) -> Owned {
        Owned { epoch, commit_seq, commit_id: CommitId(uuid::Uuid::nil()) }
    }

    fn lease() -> Lease {
        Lease::new(ShardId(0), owned(1, 1), Duration::ZERO)
    }

    #[test]
    fn a_lease_that_is_renewed_in_time_has_no_gap() {
        let lease = lease();
        let begun = lease.tenure(Duration::ZERO);
        lease.renewed(2 * SECOND, 2 * SECOND);
        assert_eq!(lease.tenure(4 * SECOND), begun);
        assert!(begun.is_some());
    }

    #[test]
    fn a_lease_that_has_run_out_is_none() {
        let lease = lease();
        assert!(lease.tenure(2 * SECOND).is_some());
        assert_eq!(lease.tenure(LEASE), None);
    }

    #[test]
    fn a_renewal_that_is_heard_of_too_late_leaves_a_gap() {
        let lease = lease();
        let begun = lease.tenure(Duration::ZERO);
        // Sent in time, but nobody knows when it was carried out.
        lease.renewed(2 * SECOND, 4 * SECOND);
        let anew = lease.tenure(4 * SECOND);
        assert!(anew.is_some());
        assert_ne!(anew, begun);
        lease.committed(owned(2, 2), Some(9 * SECOND), 9 * SECOND);
        assert_ne!(lease.tenure(9 * SECOND), anew);
    }

    #[test]
    fn a_lease_counts_from_when_its_newest_renewal_was_sent() {
        let lease = lease();
        lease.renewed(SECOND, 2 * SECOND);
        assert!(lease.tenure(just_before(4 * SECOND)).is_some());
        assert_eq!(lease.tenure(4 * SECOND), None);
        lease.renewed(3 * SECOND, 4 * SECOND);
        // One that was sent before is heard of only now.
        lease.renewed(2 * SECOND, 5 * SECOND);
        assert_eq!((lease.age(5 * SECOND), lease.last_renewed()), (2 * SECOND, 3 * SECOND));
    }

    #[test]
    fn the_common_renewal_is_for_shards_that_no_batch_renews() {
        let lease = lease();
        assert!(lease.to_renew(just_before(SECOND), SECOND).is_none());
        let renewal = lease.to_renew(SECOND, SECOND).unwrap();
        assert_eq!((renewal.epoch, renewal.commit_seq), (1, 1));
        lease.committing(true);
        assert!(lease.to_renew(2 * SECOND, SECOND).is_none());
        lease.committed(owned(1, 2), None, 2 * SECOND);
        assert_eq!(lease.to_renew(2 * SECOND, SECOND).unwrap().commit_seq, 2);
    }

    #[test]
    fn a_verdict_counts_until_something_is_committed() {
        let lease = lease();
        let renewal = lease.to_renew(SECOND, SECOND).unwrap();
        assert!(lease.is_at(&renewal));
        lease.committing(true);
        assert!(!lease.is_at(&renewal));
        for owned in [owned(1, 2), owned(2, 1)] {
            lease.committed(owned, None, SECOND);
            assert!(!lease.is_at(&renewal), "{owned:?}");
        }
    }

    #[test]
    fn of_attempts_the_first_that_may_have_been_carried_out_counts() {
        let mut attempts = Attempts::default();
        attempts.failed(SECOND, &store::Error::Unavailable(String::new()));
        assert_eq!(attempts.first(2 * SECOND), 2 * SECOND);
        for sent in [2, 3] {
            attempts.failed(sent * SECOND, &store::Error::Unknown(String::new()));
        }
        assert_eq!(attempts.first(4 * SECOND), 2 * SECOND);
    }

    #[test]
    fn a_batch_that_renews_nothing_changes_nothing() {
        let lease = lease();
        lease.committed(owned(1, 2), None, 4 * SECOND);
        assert_eq!(lease.tenure(4 * SECOND), None);
    }
}
