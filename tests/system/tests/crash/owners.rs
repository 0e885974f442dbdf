//! Two servers on one database by mistake.

use std::time::Duration;

use onward::Client;
use onward_system_tests::{
    Faults, Load, Process, QUEUE, Runs, Server, StoreUrl, WorkerProcess, assert_single_writer,
    client_of, postgres_batches, program, proxy::Proxy, within, workflows::five_steps,
};
use onward_test_postgres::Cluster;

use crate::Scene;

/// The second server waits; when the first one freezes it takes over, and when that one wakes up
/// it finds itself fenced. Then the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_postgres() {
    let scene = Scene::new();
    let url = Cluster::shared().create_database();
    let first = Server::start(StoreUrl::Postgres(url.clone()), scene.dir()).await;
    let front = Proxy::start(first.port()).await;
    let client = client_of(&front.address());
    let _workers = scene.workers(&first, 2);
    let mut load = Load::start(client, 80);
    load.more_completions(15).await;

    let second = Server::start(StoreUrl::Postgres(url.clone()), scene.dir()).await;
    let _others: Vec<_> = (0..2)
        .map(|n| {
            let name = format!("other-w{n}");
            WorkerProcess::start(&second.address(), scene.dir(), &name)
        })
        .collect();
    // A second server changes nothing, and says so to those who ask it.
    load.more_completions(15).await;
    let impatient = Client::builder()
        .address(second.address())
        .retry_for(Duration::ZERO)
        .build()
        .unwrap()
        .handle::<five_steps>("five-steps-1");
    let refused = within(10, "the second server answers", impatient.describe()).await;
    let error = refused.unwrap_err();
    assert_eq!(error.code(), onward::Code::Unavailable, "{error}");

    let mut servers = [first, second];
    let mut faults = Faults::asked("frozen owners", 4);
    let mut owner = 0;
    while faults.more() {
        load.more_completions(15).await;
        faults.strikes(load.open());
        let other = 1 - owner;
        servers[owner].process().freeze();
        front.lead_to(servers[other].port());
        load.more_completions(15).await; // the other one serves
        servers[owner].process().thaw();
        load.more_completions(15).await; // and goes on doing so beside one that was fenced
        owner = other;
    }
    load.finish_and_check(&faults, scene.dir()).await;
    for server in &mut servers {
        server.assert_no_panics();
        server.stop().await;
    }
    let epochs = assert_single_writer(&postgres_batches(&url, Runs::AllClosed).await);
    assert!(epochs >= 5, "{epochs} epochs are too few for four takeovers");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_sqlite_file() {
    let scene = Scene::new();
    let mut first = Server::start(scene.sqlite(), scene.dir()).await;
    let args: Vec<String> = [
        "dev",
        "--data-dir",
        &scene.dir().join("data").display().to_string(),
        "--listen",
        "127.0.0.1:0",
        "--http-listen",
        "off",
    ]
    .map(str::to_owned)
    .into();
    let log = scene.dir().join("second.log");
    let mut second = Process::start(&program("onward"), &args, &log);
    let status = within(30, "the second server gives up", second.ended()).await;
    let said = std::fs::read_to_string(&log).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    let names = format!("is in use by process {}", first.process().pid());
    assert!(said.contains(&names), "{names:?} is not in {said:?}");

    // The file is the first one's still, and free when that one is killed.
    let _worker = scene.workers(&first, 1);
    let client = first.client();
    assert_eq!(five_steps(&client, 1).queue(QUEUE).await.unwrap(), 112_345);
    first.kill().await;
    first.start_again().await;
    first.stop().await;
}
