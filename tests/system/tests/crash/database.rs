//! Postgres goes away, in whole or in part, while runs go through.

use std::time::{Duration, Instant};

use onward_system_tests::{
    Faults, Load, Runs, Server, StoreUrl, assert_single_writer, postgres_batches,
    proxy::{BatchFault, PostgresProxy},
    within,
};
use onward_test_postgres::Cluster;

use crate::{Scene, crashing_postgres};

#[tokio::test(flavor = "multi_thread")]
async fn postgres_stops_at_once_10_times() {
    let (scene, cluster) = (Scene::new(), crashing_postgres());
    let url = cluster.create_database();
    let mut server = Server::start(StoreUrl::Postgres(url.clone()), scene.dir()).await;
    let _workers = scene.workers(&server, 2);
    let mut load = Load::start(server.client(), 80);
    let mut crashes = Faults::asked("crashes of Postgres", 10);
    let mut slowest = Duration::ZERO;
    while crashes.more() {
        load.more_completions(20).await;
        crashes.strikes(load.open());
        cluster.stop_immediate().unwrap();
        cluster.start_again().unwrap();
        let back = Instant::now();
        load.more_completions(1).await;
        slowest = slowest.max(back.elapsed());
    }
    load.finish_and_check(&crashes, scene.dir()).await;
    println!("the slowest first completion came {slowest:?} after the database");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    server.assert_no_panics();
    server.stop().await;
    assert_single_writer(&postgres_batches(&url, Runs::AllClosed).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn random_postgres_backends_end() {
    let scene = Scene::new();
    let url = Cluster::shared().create_database();
    let mut server = Server::start(StoreUrl::Postgres(url.clone()), scene.dir()).await;
    let _workers = scene.workers(&server, 2);
    let mut load = Load::start(server.client(), 80);
    let mut ends = Faults::asked("ended backends", 20);
    while ends.more() {
        load.more_completions(10).await;
        ends.strikes(load.open());
        let ended = Cluster::shared().psql(
            &url,
            "SELECT count(pg_terminate_backend(pid)) FROM (
                 SELECT pid FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid()
                 ORDER BY random() LIMIT 2) AS victim",
        );
        assert_ne!(ended.trim(), "0", "there was no backend to end");
    }
    load.finish_and_check(&ends, scene.dir()).await;
    server.assert_no_panics();
    server.stop().await;
    assert_single_writer(&postgres_batches(&url, Runs::AllClosed).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_to_postgres_breaks_around_a_batch() {
    let (scene, cluster) = (Scene::new(), crashing_postgres());
    let url = cluster.create_database();
    let database = url.split(['/', '?']).nth(3).unwrap().to_owned();
    let proxy = PostgresProxy::start(cluster.tcp_port()).await;
    let mut server = Server::start(StoreUrl::Postgres(proxy.url(&database)), scene.dir()).await;
    let _workers = scene.workers(&server, 2);
    let mut load = Load::start(server.client(), 80);
    let epochs =
        || -> u64 { cluster.psql(&url, "SELECT sum(epoch) FROM shard").trim().parse().unwrap() };
    let mut faults = Faults::asked("broken connections", 20);
    let kinds =
        [BatchFault::CutBefore, BatchFault::CutAfter, BatchFault::Hold, BatchFault::HoldSync];
    for fault in kinds.into_iter().cycle() {
        if !faults.more() {
            break;
        }
        load.more_completions(10).await;
        faults.strikes(load.open());
        let before = epochs();
        proxy.strike(fault).await;
        let resolved = async {
            while epochs() == before {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(30, "the server resolves the batch whose outcome it does not know", resolved).await;
        if matches!(fault, BatchFault::Hold | BatchFault::HoldSync) {
            let answer = proxy.release().await;
            // A statement that lands late finds the epoch raised, or its session ended.
            let refused = answer.contains("C:SELECT 0")
                || answer.contains("E:")
                || answer == "EOF"
                || answer.contains("roken pipe")
                || answer.contains("reset");
            assert!(refused, "{fault:?}: Postgres answered the ghost with {answer}");
        }
    }
    load.finish_and_check(&faults, scene.dir()).await;
    server.assert_no_panics();
    server.stop().await;
    assert_single_writer(&postgres_batches(&url, Runs::AllClosed).await);
}
