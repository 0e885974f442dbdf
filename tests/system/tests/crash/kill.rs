//! kill -9 of the server, and of workers.

use onward_system_tests::{
    Faults, Load, Runs, Server, StoreUrl, assert_single_writer, postgres_batches, sqlite_batches,
};
use onward_test_postgres::Cluster;

use crate::Scene;

const KILLS: u32 = 20;

async fn kill_the_server(scene: &Scene, store: StoreUrl, open: u32) {
    let mut server = Server::start(store, scene.dir()).await;
    let _workers = scene.workers(&server, 2);
    let mut load = Load::start(server.client(), open);
    let mut kills = Faults::asked("kills of the server", KILLS);
    while kills.more() {
        load.more_completions(15).await;
        kills.strikes(load.open());
        server.kill().await;
        server.start_again().await;
    }
    load.finish_and_check(&kills, scene.dir()).await;
    server.assert_no_panics();
    server.stop().await;
}

async fn kill_workers(scene: &Scene, store: StoreUrl, open: u32) {
    let mut server = Server::start(store, scene.dir()).await;
    let mut workers = scene.workers(&server, 4);
    let mut load = Load::start(server.client(), open);
    let mut kills = Faults::asked("kills of workers", KILLS);
    let mut next = 0;
    while kills.more() {
        load.more_completions(15).await;
        kills.strikes(load.open());
        workers[next].kill().await;
        workers[next].start_again();
        next = (next + 1) % workers.len();
    }
    let report = load.finish_and_check(&kills, scene.dir()).await;
    assert!(report.repeated > 0, "no kill hit an activity between its effect and its answer");
    server.assert_no_panics();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_20_times_on_sqlite() {
    let scene = Scene::new();
    kill_the_server(&scene, scene.sqlite(), 80).await;
    let batches = sqlite_batches(&scene.dir().join("data"), Runs::AllClosed).await;
    assert!(assert_single_writer(&batches) >= KILLS as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_20_times_on_postgres() {
    let (scene, url) = (Scene::new(), Cluster::shared().create_database());
    kill_the_server(&scene, StoreUrl::Postgres(url.clone()), 80).await;
    assert!(assert_single_writer(&postgres_batches(&url, Runs::AllClosed).await) >= KILLS as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_20_times_on_sqlite() {
    let scene = Scene::new();
    kill_workers(&scene, scene.sqlite(), 120).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_20_times_on_postgres() {
    let scene = Scene::new();
    let url = Cluster::shared().create_database();
    kill_workers(&scene, StoreUrl::Postgres(url), 120).await;
}
