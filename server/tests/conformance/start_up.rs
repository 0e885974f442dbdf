//! Opening a store, and being told why not.

use onward_server::store::*;
use onward_test_postgres::{Cluster, Pgbouncer};
use sqlx::Executor;

use crate::world::*;

async fn refusal(url: &str, options: OpenOptions) -> String {
    match open(url, options).await {
        Ok(store) => panic!("opened {}", store.kind()),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_url_that_names_no_store_is_refused_without_its_password() {
    for url in ["mysql://me:secret@host/db", "onward.db", "sqlite://", "me:secret@host"] {
        let message = refusal(url, OpenOptions::default()).await;
        assert!(message.contains("sqlite:// or postgres://"), "{message}");
        assert!(!message.contains("secret"), "{message}");
    }
}

#[tokio::test]
async fn a_postgres_that_forgets_commits_is_refused_by_name() {
    let url = postgres_url().await;
    let message = refusal(&url, OpenOptions::default()).await;
    assert!(message.starts_with("fsync is off:"), "{message}");
}

#[tokio::test]
async fn a_newer_schema_of_postgres_is_refused_by_name() {
    let url = postgres_url().await;
    let newer = "INSERT INTO _sqlx_migrations VALUES (999, 'later', now(), true, '\\x00', 0)";
    Cluster::shared().psql(&url, newer);
    // The test server forgets commits, which is refused first.
    let message = refusal(&url, OpenOptions::default()).await;
    assert!(message.contains("--unsafe-allow"), "{message}");
    open(&url, unsafe_options()).await.unwrap();
}

#[tokio::test]
async fn a_user_must_be_named() {
    let message = refusal("postgres://localhost/onward", unsafe_options()).await;
    assert!(message.contains("url cannot be read: it names no user"), "{message}");
}

#[tokio::test]
async fn a_postgres_database_that_is_not_there_is_an_error() {
    let url = Cluster::shared().url("no_such_database");
    let message = refusal(&url, unsafe_options()).await;
    assert!(message.contains("no_such_database"), "{message}");
}

#[tokio::test]
async fn several_servers_start_at_once_on_an_empty_postgres_database() {
    let (session, transaction) = (PoolMode::Session, PoolMode::Transaction);
    for pool_mode in [None, Some(session), Some(transaction)] {
        let url = Cluster::shared().create_database();
        let through = pool_mode.map_or(url.clone(), |mode| Pgbouncer::shared(mode).url(&url));
        let options = OpenOptions {
            pg_transaction_pooling: pool_mode == Some(transaction),
            ..unsafe_options()
        };
        let starts = (0..6).map(|_| async {
            let store = open(&through, options.clone()).await.unwrap();
            store.shards(4).await.unwrap().rows.len()
        });
        let counts = futures_util::future::join_all(starts).await;
        assert_eq!(counts, [4; 6], "{pool_mode:?}");
        assert_eq!(Cluster::shared().psql(&url, "SELECT count(*) FROM batch").trim(), "4");
        let names = Cluster::shared().psql(&url, "SELECT name, namespace_id FROM namespace");
        assert_eq!(names.trim(), "default|6f6e7761-7264-4000-8000-64656661756c");
    }
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart_on_postgres_too() {
    let [direct, session, transaction] = World::every_postgres().await;
    for mut world in [World::sqlite().await, direct, session, transaction] {
        world.start(&[new_run(1, 7, "order-1")]).await;
        world.store.close().await;
        let old =
            std::mem::replace(&mut world.store, std::sync::Arc::new(MemoryStore::new(|| at(0))));
        drop(old);
        world.store = world.open_again().await;
        assert!(world.row(run_id(1, 7)).await.is_some());
        let seq = world.commit_seq;
        world.own().await;
        assert_eq!((world.epoch, world.commit_seq), (2, seq + 1));
    }
}

#[tokio::test]
async fn of_two_first_starts_with_different_shards_the_first_decides() {
    let world = World::postgres().await;
    Cluster::shared().psql(world.url.as_deref().unwrap(), "TRUNCATE shard, batch");
    let mut first = session(&world).await;
    let mut watcher = session(&world).await;
    first
        .execute(
            "BEGIN;
             INSERT INTO shard SELECT n, n * 256, (n + 1) * 256, NULL, '', 0, NULL
             FROM generate_series(0, 3) AS n",
        )
        .await
        .unwrap();
    let store = world.store.clone();
    let second = tokio::spawn(async move { store.shards(8).await });
    until_blocked(&mut watcher).await;
    first.execute("COMMIT").await.unwrap();
    let slots: Vec<_> =
        second.await.unwrap().unwrap().rows.into_iter().map(|row| row.slots).collect();
    assert_eq!(slots, [0..256, 256..512, 512..768, 768..1024]);
}
