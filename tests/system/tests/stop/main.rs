//! Stopping what does not want to stop: the first Ctrl-C drains, the second ends at once.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use onward_system_tests::{
    Ledger, QUEUE, Server, StoreUrl, WorkerProcess, within, workflows::naps,
};
use onward_test_postgres::Cluster;
use sqlx::{Connection as _, PgConnection};

/// What the shell is told after a second Ctrl-C. A drain that ends by itself says 0.
const INTERRUPTED: Option<i32> = Some(130);

/// Asks the database until it says yes.
async fn until(connection: &mut PgConnection, what: &str, question: &'static str) {
    let yes = async {
        while !sqlx::query_scalar::<_, bool>(question).fetch_one(&mut *connection).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(30, what, yes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_ends_a_server_whose_drain_waits_for_postgres() {
    let dir = tempfile::tempdir().unwrap();
    let url = Cluster::shared().create_database();
    let mut server = Server::start(StoreUrl::Postgres(url.clone()), dir.path()).await;
    let mut postgres = PgConnection::connect(&url).await.unwrap();
    until(
        &mut postgres,
        "every shard is served",
        "SELECT count(*) > 0 AND bool_and(node_id IS NOT NULL) FROM shard",
    )
    .await;
    // Nobody can give a lease back while this is held.
    let mut holder = PgConnection::connect(&url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::query("LOCK TABLE shard").execute(&mut *held).await.unwrap();

    server.process().interrupt();
    until(
        &mut postgres,
        "the drain waits for the lock",
        "SELECT EXISTS (SELECT FROM pg_stat_activity
                        WHERE datname = current_database() AND wait_event_type = 'Lock'
                          AND query LIKE 'UPDATE shard SET node_id = NULL%')",
    )
    .await;
    server.process().interrupt();
    let status = within(30, "the server ends", server.ended()).await;
    assert_eq!(status.code(), INTERRUPTED, "{}", server.log());
    held.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_ends_a_worker_whose_drain_waits_for_an_activity() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = Server::start(StoreUrl::Sqlite(data), dir.path()).await;
    let mut worker = WorkerProcess::start(&server.address(), dir.path(), "busy");
    let client = server.client();
    let _napping = naps(&client, 60_000, 120_000).queue(QUEUE).start().await.unwrap();
    Ledger::open(&dir.path().join("ledger.db")).await.unwrap().first_effect().await;

    worker.process().interrupt();
    // What is started now it may still take, until it has told the server that it drains.
    let seen = async {
        loop {
            let run = naps(&client, 1, 1_000).queue(QUEUE).start().await.unwrap();
            let waits_for = run.describe().await.unwrap().waits_for;
            if waits_for.iter().any(|what| what.starts_with("no worker polls queue")) {
                break;
            }
        }
    };
    within(30, "the worker takes nothing more", seen).await;
    assert!(worker.process().is_running(), "it waits for the activity:\n{}", worker.log());
    worker.process().interrupt();
    let status = within(30, "the worker ends", worker.process().ended()).await;
    assert_eq!(status.code(), INTERRUPTED, "{}", worker.log());
    server.assert_no_panics();
    server.stop().await;
}
