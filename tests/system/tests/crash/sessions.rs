//! Workers that lose their way to the server, or stand still.

use std::time::Duration;

use onward::WorkflowHandle;
use onward_system_tests::{
    Ledger, QUEUE, Server, StoreUrl, WorkerProcess, check, proxy::Proxy, within, workflows::naps,
};
use onward_test_postgres::Cluster;

use crate::Scene;

async fn assert_formed(handle: &WorkflowHandle<naps>) {
    let mut faults = Vec::new();
    check::form(&handle.history().await.unwrap(), &mut |fault| faults.push(fault));
    assert_eq!(faults, [""; 0]);
}

/// A stream that is gone for 5 s while an activity takes 10 s: the attempt goes on.
async fn lost_stream(scene: &Scene, store: StoreUrl) {
    let mut server = Server::start(store, scene.dir()).await;
    let way = Proxy::start(server.port()).await;
    let _worker = WorkerProcess::start(&way.address(), scene.dir(), "cut-off");
    let client = server.client();
    let handle = naps(&client, 10_000, 60_000).queue(QUEUE).start().await.unwrap();
    let ledger = Ledger::open(&scene.dir().join("ledger.db")).await.unwrap();
    let effect = ledger.first_effect().await;
    way.cut();
    tokio::time::sleep(Duration::from_secs(5)).await;
    way.lead_to(server.port());
    let slept = within(60, "the nap ends", handle.result()).await.unwrap();
    assert_eq!(slept, format!("{} 1", effect.worker));
    assert_eq!(ledger.effects().await.unwrap(), [effect], "no other attempt has begun");
    assert_formed(&handle).await;
    server.assert_no_panics();
    server.stop().await;
}

/// A worker that is frozen past its activity's timeout wakes up, and what it says counts for
/// nothing.
async fn frozen(scene: &Scene, store: StoreUrl) {
    let mut server = Server::start(store, scene.dir()).await;
    let mut workers = scene.workers(&server, 1);
    let client = server.client();
    let handle = naps(&client, 1_000, 3_000).queue(QUEUE).start().await.unwrap();
    let ledger = Ledger::open(&scene.dir().join("ledger.db")).await.unwrap();
    let effect = ledger.first_effect().await;
    workers[0].process().freeze();
    let mut other = WorkerProcess::start(&server.address(), scene.dir(), "awake");
    let slept = within(90, "another worker takes over", handle.result()).await.unwrap();
    let (worker, attempt) = slept.split_once(' ').unwrap();
    assert!(worker.starts_with("awake@") && attempt != "1", "{slept}");
    let history = handle.history().await.unwrap();

    workers[0].process().thaw();
    other.stop().await;
    // Whatever the worker had to say about the old attempt it has said before it takes new work.
    let again = naps(&client, 1, 3_000).queue(QUEUE).start().await.unwrap();
    let slept = within(60, "the thawed worker works on", again.result()).await.unwrap();
    assert!(slept.starts_with(&effect.worker), "{slept}");
    assert_eq!(handle.history().await.unwrap(), history);
    assert_formed(&handle).await;
    assert_formed(&again).await;
    server.assert_no_panics();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_loses_its_stream_on_sqlite() {
    let scene = Scene::new();
    lost_stream(&scene, scene.sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_loses_its_stream_on_postgres() {
    let url = Cluster::shared().create_database();
    lost_stream(&Scene::new(), StoreUrl::Postgres(url)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_stands_still_on_sqlite() {
    let scene = Scene::new();
    frozen(&scene, scene.sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_stands_still_on_postgres() {
    let url = Cluster::shared().create_database();
    frozen(&Scene::new(), StoreUrl::Postgres(url)).await;
}
