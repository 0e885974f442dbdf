//! Takeover, resolve, leases.

use std::sync::Arc;

use onward_server::store::*;
use uuid::Uuid;

use crate::world::*;

on_every_store! {
    async fn new_shards_share_the_slots_evenly(world: World) {
        let shard = world.shard().await;
        assert_eq!((shard.shard_id, shard.slots.clone()), (SHARD, 0..1024));
        // The count matters only for a store without shards.
        assert_eq!(world.store.shards(5).await.unwrap().rows.len(), 1);
    }

    async fn a_taken_shard_tells_its_owner_and_lease(world: World) {
        let shard = world.shard().await;
        assert_eq!(shard.node_id, Some(world.node_id));
        assert_eq!((shard.epoch, shard.address.as_str()), (1, "here:7450"));
        let shards = world.store.shards(1).await.unwrap();
        let lease_until = shard.lease_until.unwrap();
        assert!(lease_until > shards.now.plus_micros(-LEASE));
        assert!(lease_until <= shards.now.plus_micros(LEASE));
    }

    async fn a_takeover_fences_the_owner_before(world: World) {
        let old = world.batch();
        world.own().await;
        assert_eq!(world.commit(old).await.unwrap(), Committed::Fenced);
        world.write(|_| {}).await;
    }

    async fn a_takeover_goes_on_behind_the_newest_batch(world: World) {
        world.write(|_| {}).await;
        let seq = world.commit_seq;
        world.own().await;
        assert_eq!((world.epoch, world.commit_seq), (2, seq + 1));
    }

    async fn a_shard_that_changed_while_watched_is_not_taken(world: World) {
        let watched = world.shard().await;
        world.write(|batch| batch.renew_lease_us = Some(LEASE)).await;
        world.write(|batch| batch.renew_lease_us = Some(2 * LEASE)).await;
        let take = world.take_of(watched);
        assert_eq!(world.store.take(take).await.unwrap(), Taken::Changed);
        world.write(|_| {}).await;
    }

    async fn every_watched_column_counts(world: World) {
        let row = world.shard().await;
        let lease_until = row.lease_until.map(|until| until.plus_micros(1));
        for watched in [
            ShardRow { epoch: row.epoch - 1, ..row.clone() },
            ShardRow { epoch: row.epoch + 1, ..row.clone() },
            ShardRow { node_id: None, ..row.clone() },
            ShardRow { node_id: Some(NodeId(fresh_uuid())), ..row.clone() },
            ShardRow { address: "there".into(), ..row.clone() },
            ShardRow { lease_until, ..row.clone() },
            ShardRow { lease_until: None, ..row.clone() },
            ShardRow { slots: 0..512, ..row.clone() },
            ShardRow { shard_id: ShardId(9), ..row.clone() },
        ] {
            let take = world.take_of(watched);
            assert_eq!(world.store.take(take).await.unwrap(), Taken::Changed);
        }
        assert_eq!(world.shard().await, row);
    }

    async fn the_same_takeover_twice_gives_the_same_answer(world: World) {
        let take = world.take_of(world.shard().await);
        let Taken::Owned { epoch, commit_seq, .. } = world.store.take(take.clone()).await.unwrap()
        else { panic!("changed") };
        let Taken::Owned { epoch: again, commit_seq: seq, .. } = world.store.take(take).await.unwrap()
        else { panic!("changed") };
        assert_eq!((again, seq), (epoch, commit_seq));
        assert_eq!(world.shard().await.epoch, epoch);
    }

    async fn of_two_takers_one_wins(world: World) {
        let watched = world.shard().await;
        let one = Take { node_id: NodeId(fresh_uuid()), ..world.take_of(watched.clone()) };
        let two = Take { node_id: NodeId(fresh_uuid()), ..world.take_of(watched) };
        let (one, two) = tokio::join!(world.store.take(one), world.store.take(two));
        let won = [one.unwrap(), two.unwrap()]
            .iter()
            .filter(|taken| matches!(taken, Taken::Owned { .. }))
            .count();
        assert_eq!(won, 1);
    }

    async fn a_released_shard_has_no_owner(world: World) {
        world.store.release(SHARD, world.node_id, world.epoch).await.unwrap();
        let shard = world.shard().await;
        assert_eq!((shard.node_id, shard.lease_until, shard.epoch), (None, None, 1));
        assert_eq!(shard.address, "");
        world.own().await;
        world.write(|_| {}).await;
    }

    async fn a_release_under_another_epoch_does_nothing(world: World) {
        let before = world.shard().await;
        world.store.release(SHARD, world.node_id, world.epoch - 1).await.unwrap();
        world.store.release(SHARD, world.node_id, world.epoch + 1).await.unwrap();
        world.store.release(ShardId(77), world.node_id, 0).await.unwrap();
        assert_eq!(world.shard().await, before);
    }

    async fn a_release_by_another_node_does_nothing(world: World) {
        let before = world.shard().await;
        world.store.release(SHARD, NodeId(fresh_uuid()), world.epoch).await.unwrap();
        assert_eq!(world.shard().await, before);
    }

    async fn resolving_tells_that_a_batch_landed(world: World) {
        world.write(|_| {}).await;
        let resolve = world.resolve_of(world.tip);
        let seq = world.commit_seq;
        assert!(world.resolve(resolve).await);
        assert_eq!((world.epoch, world.commit_seq), (2, seq + 1));
        world.write(|_| {}).await;
    }

    async fn resolving_tells_that_a_batch_did_not_land(world: World) {
        let lost = world.batch();
        let resolve = world.resolve_of(lost.commit_id);
        assert!(!world.resolve(resolve).await);
        world.write(|_| {}).await;
    }

    async fn a_batch_cannot_land_after_its_resolve(world: World) {
        let mut lost = world.batch();
        lost.new_runs.push(new_run(1, 7, "order-1"));
        let resolve = world.resolve_of(lost.commit_id);
        assert!(!world.resolve(resolve).await);
        assert_eq!(world.store.commit(Arc::new(lost)).await.unwrap(), Committed::Fenced);
        assert_eq!(world.row(run_id(1, 7)).await, None);
    }

    async fn a_resolve_keeps_the_owner_and_renews_the_lease(world: World) {
        let before = world.shard().await;
        let resolve = Resolve { lease_us: 60_000_000, ..world.resolve_of(commit_id()) };
        world.resolve(resolve).await;
        let after = world.shard().await;
        assert_eq!((after.node_id, &after.address), (before.node_id, &before.address));
        assert!(after.lease_until.unwrap() > before.lease_until.unwrap().plus_micros(50_000_000));
    }

    async fn a_resolve_asked_twice_gives_the_same_answer(world: World) {
        world.write(|_| {}).await;
        for commit_id in [world.tip, commit_id()] {
            let landed = commit_id == world.tip;
            let resolve = world.resolve_of(commit_id);
            let first = world.store.resolve(resolve.clone()).await.unwrap();
            assert_eq!(world.resolve(resolve).await, landed);
            let Resolved::Owned { epoch, commit_seq, landed: was, .. } = first else { panic!() };
            assert_eq!((epoch, commit_seq, was), (world.epoch, world.commit_seq, landed));
        }
    }

    async fn a_resolve_of_another_resolve_is_fenced(world: World) {
        let (one, two) = (world.resolve_of(commit_id()), world.resolve_of(commit_id()));
        world.store.resolve(one).await.unwrap();
        assert_eq!(world.store.resolve(two).await.unwrap(), Resolved::Fenced);
    }

    async fn a_resolve_after_a_takeover_is_fenced(world: World) {
        let resolve = world.resolve_of(world.tip);
        world.node_id = NodeId(fresh_uuid());
        world.own().await;
        assert_eq!(world.store.resolve(resolve).await.unwrap(), Resolved::Fenced);
        world.write(|_| {}).await;
    }

    /// After a failover that lost a takeover, its epoch comes a second time.
    async fn a_resolve_by_another_node_is_fenced(world: World) {
        let before = world.shard().await;
        let resolve = Resolve { node_id: NodeId(fresh_uuid()), ..world.resolve_of(world.tip) };
        assert_eq!(world.store.resolve(resolve).await.unwrap(), Resolved::Fenced);
        assert_eq!(world.shard().await, before);
        world.write(|_| {}).await;
    }

    async fn a_resolve_of_an_unknown_shard_is_fenced(world: World) {
        let resolve = Resolve { shard_id: ShardId(8), ..world.resolve_of(world.tip) };
        assert_eq!(world.store.resolve(resolve).await.unwrap(), Resolved::Fenced);
    }

    async fn renewing_keeps_the_shard(world: World) {
        world.write(|_| {}).await;
        let renewed = world.store.renew(vec![world.renewal()], 60_000_000).await.unwrap();
        assert_eq!(renewed.verdicts, [(SHARD, Verdict::Kept)]);
        let lease_until = world.shard().await.lease_until.unwrap();
        assert!(lease_until >= renewed.now.plus_micros(59_000_000));
    }

    async fn renewing_after_a_takeover_is_fenced(world: World) {
        let renewal = world.renewal();
        world.own().await;
        let before = world.shard().await;
        assert_eq!(world.verdict(renewal).await, Some(Verdict::Fenced));
        assert_eq!(world.shard().await, before);
    }

    async fn renewing_finds_that_commits_are_gone(world: World) {
        let before = world.shard().await;
        let ahead = Renewal { commit_seq: world.commit_seq + 1, ..world.renewal() };
        assert_eq!(world.verdict(ahead).await, Some(Verdict::Rewound));
        let other = Renewal { commit_id: commit_id(), ..world.renewal() };
        assert_eq!(world.verdict(other).await, Some(Verdict::Rewound));
        assert_eq!(world.shard().await, before);
    }

    async fn renewing_nothing_tells_the_time(world: World) {
        let renewed = world.store.renew(vec![], LEASE).await.unwrap();
        assert!(renewed.now > at(1_700_000_000_000_000));
        assert_eq!(renewed.verdicts, []);
    }

    async fn an_unknown_shard_has_no_verdict(world: World) {
        let unknown = Renewal { shard_id: ShardId(6), ..world.renewal() };
        assert_eq!(world.verdict(unknown).await, None);
    }

    async fn pruning_removes_the_oldest_batches_only(world: World) {
        for _ in 0..30 {
            world.write(|_| {}).await;
        }
        // Rows 0 to 31: the newest 10 stay.
        assert_eq!(world.store.prune_batches(SHARD, 10, 5).await.unwrap(), 5);
        assert_eq!(world.store.prune_batches(SHARD, 10, 100).await.unwrap(), 17);
        assert_eq!(world.store.prune_batches(SHARD, 10, 100).await.unwrap(), 0);
        assert_eq!(world.verdict(world.renewal()).await, Some(Verdict::Kept));
        world.write(|_| {}).await;
        let resolve = world.resolve_of(world.tip);
        assert!(world.resolve(resolve).await);
    }

    async fn pruning_a_young_shard_removes_nothing(world: World) {
        assert_eq!(world.store.prune_batches(SHARD, 1_000, 100).await.unwrap(), 0);
        assert_eq!(world.store.prune_batches(ShardId(5), 0, 100).await.unwrap(), 0);
    }

    async fn row_zero_of_a_shard_has_the_nil_id(world: World) {
        let renewal = Renewal { commit_seq: 0, commit_id: CommitId(Uuid::nil()), ..world.renewal() };
        assert_eq!(world.verdict(renewal).await, Some(Verdict::Kept));
    }
}

#[tokio::test]
async fn slots_are_shared_without_a_gap_for_any_count() {
    for count in [0, 1, 2, 3, 7, 100, 1_023, 1_024, u16::MAX] {
        let store = MemoryStore::new(|| at(0));
        let rows = store.shards(count).await.unwrap().rows;
        assert_eq!(rows.len(), usize::from(count.clamp(1, 1_024)));
        let mut next = 0;
        for row in rows {
            assert_eq!(row.slots.start, next);
            assert!(row.slots.end > next);
            next = row.slots.end;
        }
        assert_eq!(next, 1_024);
    }
}
