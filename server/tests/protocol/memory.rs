//! What leaves memory and comes back, and what must not come back.

use std::{collections::BTreeMap, time::Duration};

use onward_proto::v1::{
    self, IdConflictPolicy, PendingActivity, PendingActivityState, WorkflowStatus,
    client_service_client::ClientServiceClient,
};
use onward_server::store::{CallKind, ListRuns, Plan, Store as _};
use prost::Message as _;
use sqlx::{Connection as _, Executor as _, SqliteConnection};
use tokio::time::Instant;
use tonic::{Code, transport::Channel};

use crate::stage::{Stage, database};
use crate::world::{
    PATIENCE, RawWorker, World, call_activity, complete_workflow, describe, signal, start,
    start_timer, terminate,
};

/// Waits until the server has as few runs in memory as that.
async fn emptied(world: &World, most: f64) {
    let emptied = async {
        while world.metric("onward_runs_in_memory").await > most {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, emptied).await.expect("runs leave memory");
}

async fn completed(world: &World, workflow_id: String) {
    let request = v1::WaitWorkflowResultRequest { workflow_id, ..Default::default() };
    let result = world.client().await.wait_workflow_result(request).await.unwrap().into_inner();
    assert_eq!(result.outcome.unwrap().status(), WorkflowStatus::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_wait_for_a_worker_leave_memory_and_come_back_in_order() {
    let world = World::with_memory(0).await;
    let mut client = world.client().await;
    let ids: Vec<String> = (0..20).map(|n| format!("w{n}")).collect();
    for id in &ids {
        client.start_workflow(start(id)).await.unwrap();
    }
    emptied(&world, 0.0).await;
    // Asking about one brings it back for a moment, and does not offer its task a second time.
    client.signal_workflow(signal("w7")).await.unwrap();
    client.describe_workflow(describe("w7")).await.unwrap();

    let mut worker = RawWorker::connect(world.channel().await, 1, 0).await;
    for id in &ids {
        let task = worker.task().await;
        assert_eq!(&task.workflow_id, id, "first come, first served");
        assert_eq!(task.events.len(), if id == "w7" { 2 } else { 1 });
        worker.complete(&task, vec![call_activity(1)]).await;
    }
    emptied(&world, 0.0).await;
    let mut other = RawWorker::connect(world.channel().await, 0, 1).await;
    // These were offered as their lanes committed: in order within a lane only.
    let mut seen = Vec::new();
    for _ in &ids {
        let activity = other.activity().await;
        assert_eq!(activity.token.as_ref().unwrap().attempt, 1);
        other.complete_activity(&activity, "out").await;
        let task = worker.task().await;
        assert_eq!(task.workflow_id, activity.workflow_id);
        worker.complete(&task, vec![complete_workflow("bye")]).await;
        seen.push(task.workflow_id);
    }
    seen.sort_by_key(|id| ids.iter().position(|known| known == id));
    assert_eq!(seen, ids);
    for id in ids {
        completed(&world, id).await;
    }
    assert!(world.metric("onward_runs_loaded_total").await >= 40.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_stays_in_memory() {
    let world = World::with_memory(0).await;
    let mut worker = world.worker().await;
    world.client().await.start_workflow(start("one")).await.unwrap();
    let task = worker.task().await;
    worker.complete(&task, vec![call_activity(1)]).await;
    let activity = worker.activity().await;
    worker.acked(&task).await;
    assert!(world.metric("onward_runs_in_memory").await >= 1.0);
    worker.complete_activity(&activity, "out").await;
    let task = worker.task().await;
    worker.complete(&task, vec![start_timer(2, Duration::from_millis(400))]).await;
    emptied(&world, 0.0).await;
    // The timer brings it back, though nobody asks.
    let task = worker.task().await;
    worker.complete(&task, vec![complete_workflow("bye")]).await;
    completed(&world, "one".to_owned()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_the_database_refuses_is_told_and_its_neighbours_go_on() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = world.worker().await;
    client.start_workflow(start("neighbour")).await.unwrap();
    let task = worker.task().await;

    // A constraint, as a database administrator could have added one.
    let path = world.store.strip_prefix("sqlite://").unwrap();
    let mut database = SqliteConnection::connect(&format!("sqlite://{path}")).await.unwrap();
    let trigger = "CREATE TRIGGER no_poison BEFORE INSERT ON run WHEN NEW.workflow_id = 'poison'
                   BEGIN SELECT RAISE(ABORT, 'poison is forbidden here'); END";
    database.execute(trigger).await.unwrap();
    let refused = client.start_workflow(start("poison")).await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss, "{refused}");
    assert!(refused.message().contains("poison is forbidden here"), "{refused}");

    // Its lane has loaded again: the worker is asked anew.
    worker.complete(&task, vec![complete_workflow("bye")]).await;
    let mut client = world.client().await;
    client.start_workflow(start("later")).await.unwrap();
    let answers = tokio::spawn(async move {
        loop {
            let task = worker.task().await;
            worker.complete(&task, vec![complete_workflow("bye")]).await;
        }
    });
    for id in ["neighbour", "later"] {
        completed(&world, id.to_owned()).await;
    }
    answers.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_was_missed_while_the_server_was_down_waits_for_no_claim() {
    let mut world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = world.worker().await;
    client.start_workflow(start("one")).await.unwrap();
    let task = worker.task().await;
    worker.complete(&task, vec![call_activity(1)]).await;
    let activity = worker.activity().await;
    worker.fail_activity(&activity, Duration::from_hours(1)).await;
    let state = async |client: &mut ClientServiceClient<Channel>| {
        let description = client.describe_workflow(describe("one")).await.unwrap().into_inner();
        description.pending_activities[0].state()
    };
    while state(&mut client).await != PendingActivityState::BackingOff {}
    drop((client, worker));
    world.stop().await;

    // As if the hour had passed meanwhile.
    let mut database = SqliteConnection::connect(&world.store).await.unwrap();
    let data: Vec<u8> =
        sqlx::query_scalar("SELECT data FROM pending").fetch_one(&mut database).await.unwrap();
    let row = PendingActivity::decode(data.as_slice()).unwrap();
    let row = PendingActivity { next_attempt_at_us: 1, ..row };
    sqlx::query("UPDATE pending SET data = ?")
        .bind(row.encode_to_vec())
        .execute(&mut database)
        .await
        .unwrap();
    sqlx::query("UPDATE run SET wake_at = 1").execute(&mut database).await.unwrap();
    database.close().await.unwrap();

    // An attempt that may run somewhere would be `Claimed`, until the time to claim it is over.
    world.start().await;
    let mut client = world.client().await;
    assert_eq!(state(&mut client).await, PendingActivityState::Queued);
    let activity = world.worker().await.activity().await;
    assert_eq!(activity.token.unwrap().attempt, 2);
}

/// A run that has left memory, asleep for an hour, and a database that takes its time to read.
async fn asleep_behind_slow_reads() -> Stage {
    let stage = Stage::with_memory(database(), 0);
    let mut client = stage.client().await;
    let mut worker = stage.worker().await;
    client.start_workflow(start("one")).await.unwrap();
    let task = worker.task().await;
    worker.complete(&task, vec![start_timer(1, Duration::from_hours(1))]).await;
    worker.acked(&task).await;
    drop(worker);
    stage.emptied(0.0).await;
    stage.store.faults().set_planner(|kind| {
        let before =
            if kind == CallKind::Read { Duration::from_millis(200) } else { Duration::ZERO };
        Plan { before, ..Plan::default() }
    });
    stage
}

fn in_place_of_another(workflow_id: &str) -> v1::StartWorkflowRequest {
    v1::StartWorkflowRequest {
        id_conflict_policy: IdConflictPolicy::TerminateExisting.into(),
        ..start(workflow_id)
    }
}

async fn statuses(stage: &Stage) -> Vec<WorkflowStatus> {
    let namespace_id = onward_proto::DEFAULT_NAMESPACE;
    let list = ListRuns { namespace_id, status: None, before: None, limit: 100 };
    let runs = stage.store.connect().list_runs(list).await.unwrap();
    runs.into_iter().map(|run| run.status).collect()
}

#[tokio::test(start_paused = true)]
async fn starts_that_waited_for_a_load_together_take_the_place_of_one_another() {
    use WorkflowStatus::{Running, Terminated};
    let stage = asleep_behind_slow_reads().await;
    let client = stage.client().await;
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let mut client = client.clone();
        starts.spawn(async move { client.start_workflow(in_place_of_another("one")).await });
    }
    for answer in starts.join_all().await {
        assert!(answer.unwrap().into_inner().started);
    }
    assert_eq!(statuses(&stage).await, [Running, Terminated, Terminated]);
    assert!(stage.metric("onward_parked_runs_total") == 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_came_twice_while_its_id_was_loaded_starts_once() {
    use WorkflowStatus::{Running, Terminated};
    let stage = asleep_behind_slow_reads().await;
    let client = stage.client().await;
    let request = in_place_of_another("one");
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (mut client, request) = (client.clone(), request.clone());
        starts.spawn(async move { client.start_workflow(request).await.unwrap().into_inner() });
    }
    let answers = starts.join_all().await;
    assert_eq!(answers[0], answers[1]);
    assert_eq!(statuses(&stage).await, [Running, Terminated]);
}

#[tokio::test(start_paused = true)]
async fn a_signal_behind_a_start_reaches_the_run_that_it_started() {
    let stage = asleep_behind_slow_reads().await;
    let mut client = stage.client().await;
    let begun = tokio::spawn({
        let mut client = client.clone();
        async move { client.start_workflow(in_place_of_another("one")).await.unwrap().into_inner() }
    });
    // Behind the start, while its workflow id is looked for; then both wait for the run.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let reached = client.signal_workflow(signal("one")).await.unwrap().into_inner();
    assert_eq!(reached.run_id, begun.await.unwrap().run_id);
}

/// How many runs the metric counts that somebody should look at, and a list shows.
async fn incidents(stage: &Stage, client: &mut ClientServiceClient<Channel>) -> u32 {
    let listed = client.list_workflows(v1::ListWorkflowsRequest::default()).await.unwrap();
    let listed = listed.into_inner().workflows.iter().filter(|run| run.incident).count();
    assert_eq!(stage.metric("onward_runs_with_incident") as usize, listed);
    listed as u32
}

#[tokio::test(start_paused = true)]
async fn an_activity_that_fails_often_is_an_incident_after_a_load_too_until_its_run_ends() {
    let stage = Stage::with_memory(database(), 0);
    let mut client = stage.client().await;
    let mut worker = stage.worker().await;
    client.start_workflow(start("one")).await.unwrap();
    let task = worker.task().await;
    worker.complete(&task, vec![call_activity(1)]).await;
    for attempt in 1..=10 {
        assert_eq!(incidents(&stage, &mut client).await, 0, "before attempt {attempt} failed");
        let activity = worker.activity().await;
        assert_eq!(activity.token.as_ref().unwrap().attempt, attempt);
        worker.fail_activity(&activity, Duration::from_secs(1)).await;
    }
    // What is in flight when the process ends is known to the next one as soon as it has loaded.
    worker.activity().await;
    assert_eq!(incidents(&stage, &mut client).await, 1);
    let stage = stage.crash();
    let mut client = stage.client().await;
    let loaded = async {
        while incidents(&stage, &mut client).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, loaded).await.expect("the run is loaded");
    client.terminate_workflow(terminate("one")).await.unwrap();
    assert_eq!(incidents(&stage, &mut client).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_lost_takes_its_incidents_along() {
    let stage = Stage::begin();
    let mut client = stage.client().await;
    let mut bad = stage.worker().await;
    client.start_workflow(start("one")).await.unwrap();
    for _ in 0..3 {
        let task = bad.task().await;
        bad.fail(&task).await;
    }
    while incidents(&stage, &mut client).await == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stage.cut_off();
    let lost = async {
        while stage.metric("onward_runs_with_incident") > 0.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let other = Stage::with_memory(stage.store.connect(), 1 << 20);
    drop(other.client().await);
    stage.store.faults().clear();
    tokio::time::timeout(PATIENCE, lost).await.expect("the lane hears that it has lost the shard");
}

#[tokio::test(start_paused = true)]
async fn runs_whose_task_fails_leave_memory_and_go_on_as_if_they_had_stayed() {
    const RUNS: u32 = 50;
    let stage = Stage::with_memory(database(), 0);
    let mut client = stage.client().await;
    let mut bad = RawWorker::connect(stage.channel().await, RUNS, 0).await;
    for n in 0..RUNS {
        client.start_workflow(start(&format!("w{n}"))).await.unwrap();
    }
    let mut last: BTreeMap<String, Instant> = BTreeMap::new();
    for attempt in 1..=4 {
        for _ in 0..RUNS {
            let task = bad.task().await;
            assert_eq!(task.attempt, attempt);
            if let Some(last) = last.insert(task.workflow_id.clone(), Instant::now()) {
                let waited = last.elapsed().as_secs_f64();
                let backoff = f64::from(1 << (attempt - 2));
                assert!((backoff..backoff + 0.5).contains(&waited), "{waited} after {backoff}");
            }
            bad.fail(&task).await;
        }
        stage.emptied(0.0).await;
    }
    let described = client.describe_workflow(describe("w7")).await.unwrap().into_inner();
    let task = described.task.unwrap();
    assert!(task.blocked && described.info.unwrap().incident);
    assert_eq!(incidents(&stage, &mut client).await, RUNS);
    assert_eq!(task.last_failure.unwrap().message, "bang");
    drop(bad);

    let mut good = stage.worker().await;
    for _ in 0..RUNS {
        let task = good.task().await;
        assert_eq!(task.attempt, 5);
        assert!(last[&task.workflow_id].elapsed() >= Duration::from_secs(8));
        good.complete(&task, vec![complete_workflow("bye")]).await;
    }
    while statuses(&stage).await.contains(&WorkflowStatus::Running) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(incidents(&stage, &mut client).await, 0);
}
