//! What only the store in memory can be told to do.

use std::{sync::Arc, time::Duration};

use onward_server::store::*;

use crate::world::*;

async fn world() -> (World, MemoryStore, Faults) {
    let world = World::memory().await;
    let memory = world.memory.clone().unwrap();
    let faults = memory.faults();
    (world, memory, faults)
}

#[tokio::test]
async fn a_refused_call_is_not_applied() {
    let (mut world, _, faults) = world().await;
    faults.push(CallKind::Commit, Fault::Refuse);
    let batch = world.batch();
    assert!(matches!(world.commit(batch.clone()).await, Err(Error::Unavailable(_))));
    assert!(matches!(world.commit(batch).await, Ok(Committed::Committed { .. })));
}

#[tokio::test]
async fn a_lost_request_is_not_applied_and_a_lost_reply_is() {
    for (fault, applied) in [(Fault::LoseRequest, false), (Fault::LoseReply, true)] {
        let (mut world, _, faults) = world().await;
        faults.push(CallKind::Commit, fault);
        let batch = world.batch();
        let resolve = world.resolve_of(batch.commit_id);
        assert!(matches!(world.commit(batch).await, Err(Error::Unknown(_))));
        assert_eq!(world.resolve(resolve).await, applied);
    }
}

#[tokio::test]
async fn a_ghost_lands_unless_it_was_resolved() {
    for resolved in [false, true] {
        let (mut world, memory, faults) = world().await;
        faults.push(CallKind::Commit, Fault::Ghost(None));
        let mut batch = world.batch();
        batch.new_runs.push(new_run(1, 7, "order-1"));
        let resolve = world.resolve_of(batch.commit_id);
        assert!(matches!(world.commit(batch).await, Err(Error::Unknown(_))));
        if resolved {
            assert!(!world.resolve(resolve).await);
        }
        assert_eq!(memory.land_ghosts(), 1);
        assert_eq!(world.row(run_id(1, 7)).await.is_some(), !resolved);
    }
}

#[tokio::test]
async fn a_ghost_lands_by_itself_when_its_time_has_come() {
    let (mut world, _, faults) = world().await;
    faults.push(CallKind::Commit, Fault::Ghost(Some(Duration::from_millis(5))));
    let mut batch = world.batch();
    batch.new_runs.push(new_run(1, 7, "order-1"));
    assert!(matches!(world.commit(batch).await, Err(Error::Unknown(_))));
    let mut reads = 0;
    while world.row(run_id(1, 7)).await.is_none() {
        reads += 1;
        assert!(reads < 20);
    }
    assert!(reads >= 3);
}

#[tokio::test]
async fn a_resolve_whose_reply_was_lost_is_asked_again() {
    let (mut world, _, faults) = world().await;
    faults.push(CallKind::Commit, Fault::LoseReply);
    faults.push(CallKind::Resolve, Fault::LoseReply);
    let batch = world.batch();
    let resolve = world.resolve_of(batch.commit_id);
    assert!(matches!(world.commit(batch).await, Err(Error::Unknown(_))));
    let first = world.store.resolve(resolve.clone()).await;
    assert!(matches!(first, Err(Error::Unknown(_))));
    assert!(world.resolve(resolve).await);
    world.write(|_| {}).await;
}

#[tokio::test]
async fn a_thief_fences_the_owner() {
    let (mut world, memory, faults) = world().await;
    faults.push(CallKind::Commit, Fault::Steal);
    let batch = world.batch();
    assert_eq!(world.commit(batch).await.unwrap(), Committed::Fenced);
    world.own().await;
    memory.steal(SHARD);
    assert_eq!(world.verdict(world.renewal()).await, Some(Verdict::Fenced));
}

#[tokio::test]
async fn a_rewound_database_forgets_whole_batches() {
    let (mut world, memory, _) = world().await;
    let (kept, lost) = (new_run(1, 7, "kept"), new_run(2, 7, "lost"));
    world.start(std::slice::from_ref(&kept)).await;
    world
        .write(|batch| {
            batch.new_runs.push(lost.clone());
            batch.journal.push(journal(kept.run_id, 0, "x"));
            batch.run_updates.push(update(kept.run_id, WakeAt::At(at(5))));
            batch.pending.push(pending(kept.run_id, 1, Some(b"x")));
        })
        .await;
    world.write(|batch| batch.pending.push(pending(kept.run_id, 1, None))).await;
    memory.rewind(2);
    let loaded = world.load(kept.run_id).await;
    assert_eq!(loaded, LoadedRun { row: kept.clone(), journal: vec![], pending: vec![] });
    assert_eq!(world.row(lost.run_id).await, None);
    assert_eq!(world.store.hot_runs(0..1024, None, 9).await.unwrap(), [kept.run_id]);
    assert_eq!(world.verdict(world.renewal()).await, Some(Verdict::Rewound));
    let batch = world.batch();
    assert_eq!(world.commit(batch).await.unwrap(), Committed::Fenced);
}

#[tokio::test]
async fn a_read_only_database_reads() {
    let (mut world, memory, _) = world().await;
    world.start(&[new_run(1, 7, "order-1")]).await;
    memory.set_read_only(true);
    let batch = world.batch();
    assert!(matches!(world.commit(batch).await, Err(Error::Unavailable(_))));
    assert!(world.row(run_id(1, 7)).await.is_some());
    memory.set_read_only(false);
    world.write(|_| {}).await;
}

#[tokio::test]
async fn another_connection_sees_the_same_data_without_the_faults() {
    let (mut world, memory, faults) = world().await;
    world.start(&[new_run(1, 7, "order-1")]).await;
    faults.set_planner(|_| Plan::fault(Fault::Refuse));
    assert!(world.store.read_run(run_id(1, 7)).await.is_err());
    world.store = Arc::new(memory.connect());
    assert!(world.row(run_id(1, 7)).await.is_some());
    faults.clear();
    assert!(memory.read_run(run_id(1, 7)).await.unwrap().is_some());
}

#[tokio::test]
async fn latency_is_slept_through_on_both_ways() {
    let (mut world, _, faults) = world().await;
    let (before, after) = (Duration::from_millis(5), Duration::from_millis(7));
    faults.script(CallKind::Commit, Plan { before, after, fault: None });
    let start = tokio::time::Instant::now();
    world.write(|_| {}).await;
    assert!(start.elapsed() >= before + after);
}
