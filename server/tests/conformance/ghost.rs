//! Batches that are still on their way to Postgres, and sessions that hang.

use std::sync::Arc;

use onward_server::store::*;
use sqlx::Executor;

use crate::world::*;

on_every_way_to_postgres! {
    /// A second store is a second server: its commit has other connections than the first one's.
    async fn a_batch_that_waits_for_the_resolve_does_not_land(world: World) {
        let mut other = session(&world).await;
        let mut watcher = session(&world).await;
        other.execute("BEGIN; SELECT FROM shard WHERE shard_id = 0 FOR NO KEY UPDATE").await.unwrap();
        let mut lost = world.batch();
        lost.new_runs.push(new_run(1, 7, "order-1"));
        let resolve = world.resolve_of(lost.commit_id);
        let store = world.store.clone();
        let ghost = tokio::spawn(async move { store.commit(Arc::new(lost)).await });
        until_blocked(&mut watcher).await;
        // The ghost waits for the row. What the other session does now is what a resolve does.
        other
            .execute(
                "INSERT INTO batch VALUES (0, 2, '00000000-0000-0000-0000-00000000abcd', 2);
                 UPDATE shard SET epoch = 2 WHERE shard_id = 0; COMMIT",
            )
            .await
            .unwrap();
        assert_eq!(ghost.await.unwrap().unwrap(), Committed::Fenced);
        assert_eq!(world.store.resolve(resolve).await.unwrap(), Resolved::Fenced);
        assert_eq!(world.row(run_id(1, 7)).await, None);
        world.own().await;
        world.write(|_| {}).await;
    }

    async fn a_session_that_holds_the_row_is_ended_by_a_resolve(world: World) {
        let mut holder = session(&world).await;
        holder.execute("BEGIN; SELECT FROM shard WHERE shard_id = 0 FOR NO KEY UPDATE").await.unwrap();
        let resolve = world.resolve_of(world.tip);
        assert!(world.resolve(resolve).await);
        assert!(holder.execute("SELECT 1").await.is_err());
    }

    async fn a_locked_row_has_no_verdict(world: World) {
        let mut holder = session(&world).await;
        holder.execute("BEGIN; SELECT FROM shard WHERE shard_id = 0 FOR NO KEY UPDATE").await.unwrap();
        assert_eq!(world.verdict(world.renewal()).await, None);
        holder.execute("ROLLBACK").await.unwrap();
        assert_eq!(world.verdict(world.renewal()).await, Some(Verdict::Kept));
    }

    async fn a_commit_whose_session_is_ended_is_unknown_and_can_be_resolved(world: World) {
        world.write(|_| {}).await;
        let mut holder = session(&world).await;
        holder.execute("BEGIN; SELECT FROM shard WHERE shard_id = 0 FOR NO KEY UPDATE").await.unwrap();
        let mut watcher = session(&world).await;
        let batch = world.batch();
        let resolve = world.resolve_of(batch.commit_id);
        let store = world.store.clone();
        let commit = tokio::spawn(async move { store.commit(Arc::new(batch)).await });
        until_blocked(&mut watcher).await;
        watcher
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            .await
            .unwrap();
        let outcome = commit.await.unwrap();
        if world.opened.1.pg_transaction_pooling {
            // It had not said COMMIT yet.
            assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
        } else {
            assert!(matches!(outcome, Err(Error::Unknown(_))), "{outcome:?}");
        }
        holder.execute("ROLLBACK").await.unwrap();
        assert!(!world.resolve(resolve).await);
        world.write(|_| {}).await;
    }

    async fn reads_go_on_when_their_sessions_were_ended(world: World) {
        world.start(&[new_run(1, 7, "order-1")]).await;
        assert!(world.row(run_id(1, 7)).await.is_some());
        let mut watcher = session(&world).await;
        watcher
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            .await
            .unwrap();
        assert!(world.row(run_id(1, 7)).await.is_some());
    }
}

/// A pooler may have sessions from before.
#[tokio::test]
async fn a_postgres_that_takes_no_writes_is_unavailable() {
    let mut world = World::postgres().await;
    let mut other = session(&world).await;
    other
        .execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on',
             current_database()); END $$",
        )
        .await
        .unwrap();
    // The shard has no connection yet; the one that this opens is read-only.
    let batch = world.batch();
    let committed = world.commit(batch).await;
    assert!(matches!(committed, Err(Error::Unavailable(_))), "{committed:?}");
}
