//! What clients and workers see when the database is slow, loses replies, or has another owner.
//!
//! Time is virtual here: it passes when everybody waits.

use std::time::Duration;

use onward_proto::v1::{self, WorkflowStatus};
use onward_server::store::{CallKind, Fault, ListRuns, Plan, ShardId, Store as _};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Code;

use crate::{
    stage::{Stage, database},
    world::{
        RawWorker, complete_workflow, describe, history, kinds, payload, signal, start,
        start_timer, task_history_of, terminate,
    },
};

const SECOND: Duration = Duration::from_secs(1);

/// A commit that arrives after this time.
fn slow(before: Duration) -> Plan {
    Plan { before, ..Plan::default() }
}

async fn stored_runs(stage: &Stage) -> usize {
    let namespace_id = onward_proto::DEFAULT_NAMESPACE;
    let list = ListRuns { namespace_id, status: None, before: None, limit: 10_000 };
    stage.store.connect().list_runs(list).await.unwrap().len()
}

#[tokio::test(start_paused = true)]
async fn every_answer_waits_for_the_commit_that_it_rests_on() {
    let stage = Stage::begin();
    let mut client = stage.client().await;
    stage.store.faults().script(CallKind::Commit, slow(SECOND));
    let begun = Instant::now();
    let starts = tokio::spawn({
        let mut client = client.clone();
        async move { client.start_workflow(start("one")).await }
    });
    sleep(SECOND / 10).await;
    // A read of the run, while the batch that begins it is on its way.
    let description = client.describe_workflow(describe("one")).await.unwrap().into_inner();
    assert!(begun.elapsed() >= SECOND, "{:?}", begun.elapsed());
    assert_eq!(stored_runs(&stage).await, 1);
    let run = starts.await.unwrap().unwrap().into_inner();
    assert_eq!(description.info.unwrap().run_id, run.run_id);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_never_arrived_is_no_answer_and_leaves_nothing() {
    let stage = Stage::begin();
    let mut client = stage.client().await;
    stage.store.faults().push(CallKind::Commit, Fault::LoseRequest);
    let request = start("one");
    let unknown = client.start_workflow(request.clone()).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable, "{unknown}");
    assert_eq!(stored_runs(&stage).await, 0);
    let mut client = stage.client().await;
    let absent = client.describe_workflow(describe("one")).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound, "{absent}");
    let again = client.start_workflow(request).await.unwrap().into_inner();
    assert!(again.started);
    assert_eq!(kinds(&history(&mut client, "one").await), ["started"]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_reply_was_lost_is_found_and_answered_once() {
    for fault in [Fault::LoseReply, Fault::Ghost(None)] {
        let stage = Stage::begin();
        let mut client = stage.client().await;
        stage.store.faults().push(CallKind::Commit, fault);
        let request = start("one");
        let first = client.start_workflow(request.clone()).await;
        // A statement that was still on its way when its outcome was asked for can land no more.
        assert_eq!(first.is_ok(), fault == Fault::LoseReply, "{first:?}");
        stage.store.land_ghosts();
        assert_eq!(stored_runs(&stage).await, usize::from(first.is_ok()));
        let mut client = stage.client().await;
        let again = client.start_workflow(request).await.unwrap().into_inner();
        if let Ok(first) = first {
            assert_eq!(again.run_id, first.into_inner().run_id);
        }
        assert_eq!(stored_runs(&stage).await, 1);
        assert_eq!(kinds(&history(&mut client, "one").await), ["started"]);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_answered_while_the_lease_has_run_out() {
    let stage = Stage::begin();
    let mut client = stage.client().await;
    client.start_workflow(start("one")).await.unwrap();
    stage.store.set_read_only(true);
    sleep(4 * SECOND).await;
    let waits = timeout(10 * SECOND, client.describe_workflow(describe("one"))).await;
    assert!(waits.is_err(), "{waits:?}");
    stage.store.set_read_only(false);
    client.describe_workflow(describe("one")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_thief_takes_a_shard_only_when_its_owner_has_let_the_lease_run_out() {
    let owner = Stage::begin();
    let mut client = owner.client().await;
    let thief = Stage::with_memory(owner.store.connect(), 1 << 20);
    sleep(20 * SECOND).await;
    client.start_workflow(start("one")).await.unwrap();
    let mut refused = v1::client_service_client::ClientServiceClient::new(thief.channel().await);
    let refused = refused.describe_workflow(describe("one")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");

    let cut = Instant::now();
    owner.cut_off();
    let mut client = thief.client().await;
    assert!(cut.elapsed() > 2 * SECOND, "the lease was renewed a second ago at most");
    assert!(cut.elapsed() < 5 * SECOND, "{:?}", cut.elapsed());
    client.describe_workflow(describe("one")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_all_hot_runs_come_back_though_nobody_asks() {
    // More than one page of them.
    const RUNS: usize = 1_100;
    let stage = Stage::begin();
    let client = stage.client().await;
    let mut starts = tokio::task::JoinSet::new();
    for n in 0..RUNS {
        let mut client = client.clone();
        starts.spawn(async move { client.start_workflow(start(&format!("w{n}"))).await.unwrap() });
    }
    assert_eq!(starts.join_all().await.len(), RUNS);
    let stage = stage.crash();
    let mut worker = RawWorker::connect(stage.channel().await, 2_000, 0).await;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < RUNS {
        seen.insert(worker.task().await.workflow_id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_woken_is_hot_after_a_crash_as_well() {
    let stage = Stage::begin();
    let mut client = stage.client().await;
    let mut worker = stage.worker().await;
    client.start_workflow(start("one")).await.unwrap();
    let task = worker.task().await;
    worker.complete(&task, vec![start_timer(1, Duration::from_hours(1))]).await;
    worker.acked(&task).await;
    drop(worker);
    sleep(SECOND).await;
    client.signal_workflow(signal("one")).await.unwrap();
    let stage = stage.crash();
    let begun = Instant::now();
    let task = stage.worker().await.task().await;
    assert_eq!(kinds(&task.events), ["started", "task", "timer", "signal"]);
    assert!(begun.elapsed() < 10 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_timer_is_on_time_though_its_run_has_left_memory() {
    let stage = Stage::with_memory(database(), 0);
    let mut client = stage.client().await;
    // Around the moments at which deadlines are read ahead, and how far.
    for seconds in [1, 4, 6, 9, 14, 16, 31] {
        let (id, lasts) = (format!("w{seconds}"), seconds * SECOND);
        client.start_workflow(start(&id)).await.unwrap();
        let mut worker = stage.worker().await;
        let task = worker.task().await;
        let asked = Instant::now();
        worker.complete(&task, vec![start_timer(1, lasts)]).await;
        worker.acked(&task).await;
        drop(worker);
        sleep((asked + lasts - SECOND / 10).duration_since(Instant::now())).await;
        let mut worker = stage.worker().await;
        let task = worker.task().await;
        let late = asked.elapsed().checked_sub(lasts).expect("never early");
        assert!(late < SECOND / 10, "{late:?} late after {lasts:?}");
        worker.complete(&task, vec![complete_workflow("bye")]).await;
        worker.acked(&task).await;
    }
    assert!(stage.metric("onward_runs_loaded_total") >= 7.0, "none was out of memory");
}

#[tokio::test(start_paused = true)]
async fn a_signal_to_a_run_that_is_about_to_close_waits_and_is_told_the_end() {
    let stage = Stage::begin();
    let mut client = stage.client().await;
    let mut worker = stage.worker().await;
    client.start_workflow(start("one")).await.unwrap();
    let task = worker.task().await;
    client.signal_workflow(signal("one")).await.unwrap();
    worker.complete(&task, vec![complete_workflow("too early")]).await;
    let task = worker.task().await;
    assert!(kinds(&task.events).contains(&"signal"), "the close was refused for its sake");
    // A stream of signals cannot keep the run open: the next one is not accepted yet.
    let waits = tokio::spawn({
        let mut client = client.clone();
        async move { client.signal_workflow(signal("one")).await }
    });
    sleep(SECOND).await;
    assert!(!waits.is_finished());
    worker.complete(&task, vec![complete_workflow("bye")]).await;
    let refused = waits.await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let description = client.describe_workflow(describe("one")).await.unwrap().into_inner();
    assert_eq!(description.info.unwrap().status(), WorkflowStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_is_held_when_its_run_is_ended_is_told_at_once() {
    let stage = Stage::with_memory(database(), 0);
    let mut client = stage.client().await;
    for replaced in [false, true] {
        let mut worker = stage.worker().await;
        client.start_workflow(start("one")).await.unwrap();
        let task = worker.task().await;
        client.signal_workflow(signal("one")).await.unwrap();
        worker.complete(&task, vec![complete_workflow("too early")]).await;
        worker.task().await;
        let held = tokio::spawn({
            let mut client = client.clone();
            async move { client.signal_workflow(signal("one")).await }
        });
        sleep(SECOND).await;
        assert!(!held.is_finished());
        if replaced {
            let id_conflict_policy = v1::IdConflictPolicy::TerminateExisting.into();
            let request = v1::StartWorkflowRequest { id_conflict_policy, ..start("one") };
            let started = client.start_workflow(request).await.unwrap().into_inner();
            // As if it came now: to the run that is open.
            let reached = timeout(SECOND, held).await.unwrap().unwrap().unwrap().into_inner();
            assert_eq!(reached.run_id, started.run_id);
        } else {
            client.terminate_workflow(terminate("one")).await.unwrap();
            let refused = timeout(SECOND, held).await.unwrap().unwrap().unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            timeout(SECOND, stage.emptied(0.0)).await.expect("the closed run leaves memory");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_database_that_is_away_is_bounded_by_its_bytes() {
    const STARTS: usize = 60;
    let stage = Stage::begin();
    let client = stage.client().await;
    stage.store.faults().set_planner(|_| Plan::fault(Fault::Refuse));
    let mut starts = tokio::task::JoinSet::new();
    for n in 0..STARTS {
        let mut client = client.clone();
        let large = vec![payload(&"x".repeat((2 << 20) - 100))];
        let request = v1::StartWorkflowRequest { arguments: large, ..start(&format!("w{n}")) };
        starts.spawn(async move { client.start_workflow(request).await });
    }
    let mut refused = 0;
    while let Ok(Some(answer)) = timeout(SECOND, starts.join_next()).await {
        let refusal = answer.unwrap().unwrap_err();
        assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal}");
        refused += 1;
    }
    // 64 MiB wait in the lane.
    assert!((STARTS - 34..STARTS - 30).contains(&refused), "{refused}");
    // Those who wait are answered when it is back.
    stage.store.faults().clear();
    while let Some(answer) = starts.join_next().await {
        answer.unwrap().unwrap();
    }
    assert_eq!(stored_runs(&stage).await, STARTS - refused);
}

#[tokio::test(start_paused = true)]
async fn a_history_that_cannot_be_located_is_not_an_empty_one() {
    let stage = Stage::with_memory(database(), 0);
    let mut client = stage.client().await;
    client.start_workflow(start("one")).await.unwrap();
    let whole = v1::GetWorkflowHistoryRequest {
        workflow_id: "one".to_owned(),
        ..v1::GetWorkflowHistoryRequest::default()
    };
    let page = client.get_workflow_history(whole.clone()).await.unwrap().into_inner();
    assert!(page.at_end && kinds(&page.events) == ["started"], "{page:?}");
    // One who follows from the end gets an empty page, and asks again from the same place.
    let follow = v1::GetWorkflowHistoryRequest {
        page_token: page.next_page_token.clone(),
        follow: true,
        ..whole.clone()
    };
    let empty = client.get_workflow_history(follow.clone()).await.unwrap().into_inner();
    assert!(empty.at_end && empty.events.is_empty(), "{empty:?}");
    assert_eq!(empty.next_page_token, page.next_page_token);

    stage.store.faults().set_planner(|_| Plan::fault(Fault::Refuse));
    for request in [whole, follow] {
        let unknown = client.get_workflow_history(request).await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unavailable, "{unknown}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_counts_from_the_first_attempt_whose_reply_was_lost() {
    let owner = Stage::begin();
    let mut client = owner.client().await;
    let thief = Stage::with_memory(owner.store.connect(), 1 << 20);
    sleep(10 * SECOND).await;
    let faults = owner.store.faults();
    faults.push(CallKind::Commit, Fault::LoseReply);
    faults.push(CallKind::Resolve, Fault::LoseReply);
    // So it is told only 2 s later that the first attempt was its success.
    for _ in 0..20 {
        faults.push(CallKind::Resolve, Fault::Refuse);
    }
    let begun = Instant::now();
    client.start_workflow(start("one")).await.unwrap();
    assert!(begun.elapsed() >= 2 * SECOND, "{:?}", begun.elapsed());
    owner.cut_off();
    drop(thief.client().await);
    assert!(begun.elapsed() < 5 * SECOND, "the thief waits for one lease: {:?}", begun.elapsed());
    let told = timeout(10 * SECOND, client.describe_workflow(describe("one"))).await;
    assert!(!matches!(told, Ok(Ok(_))), "two owners answer: {told:?}");
}

/// An owner's lease runs out while a read of its own is on its way, and comes back to it.
struct Gap {
    begun: Instant,
    /// Batches that were there before.
    batches: Vec<(ShardId, u64, u64)>,
}

impl Gap {
    /// From now on the owner reads while a successor may own the shard, and hears of it when the lease is
    /// its own again.
    fn begin(owner: &Stage) -> Self {
        let travels = Plan { before: 6 * SECOND, after: 3 * SECOND, fault: None };
        owner.store.faults().set_planner(move |kind| match kind {
            CallKind::Read => travels,
            _ => Plan::fault(Fault::Refuse),
        });
        Self { begun: Instant::now(), batches: owner.store.batches() }
    }

    /// The read has seen what the successor did, which a failover loses.
    async fn end(self, owner: &Stage, successor: &Stage) {
        assert!(self.begun.elapsed() < 6 * SECOND, "{:?}", self.begun.elapsed());
        sleep_until(self.begun + 7 * SECOND).await;
        successor.cut_off();
        while owner.store.batches() != self.batches {
            owner.store.rewind(1).unwrap();
        }
        owner.store.faults().clear();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_read_over_a_gap_of_the_lease_does_not_count() {
    let owner = Stage::begin();
    let mut client = owner.client().await;
    let thief = Stage::with_memory(owner.store.connect(), 1 << 20);
    sleep(10 * SECOND).await;
    let gap = Gap::begin(&owner);
    let reject = v1::StartWorkflowRequest {
        id_reuse_policy: v1::IdReusePolicy::Reject.into(),
        ..start("one")
    };
    let starts = tokio::spawn(async move { client.start_workflow(reject).await });
    let mut successor = thief.client().await;
    successor.start_workflow(start("one")).await.unwrap();
    successor.terminate_workflow(terminate("one")).await.unwrap();
    gap.end(&owner, &thief).await;
    let started = starts.await.unwrap().unwrap().into_inner();
    assert!(started.started, "a run that was never there: {started:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_history_that_is_read_over_a_gap_of_the_lease_does_not_count() {
    let owner = Stage::begin();
    let mut client = owner.client().await;
    let thief = Stage::with_memory(owner.store.connect(), 1 << 20);
    sleep(10 * SECOND).await;
    let mut worker = owner.worker().await;
    client.start_workflow(start("one")).await.unwrap();
    let task = worker.task().await;
    let gap = Gap::begin(&owner);
    let (mut calls, request) = (worker.calls.clone(), task_history_of(&task));
    let page = tokio::spawn(async move { calls.task_history(request).await });
    thief.client().await.signal_workflow(signal("one")).await.unwrap();
    gap.end(&owner, &thief).await;
    let page = page.await.unwrap();
    let refused = page.map(|page| kinds(&page.get_ref().events)).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(kinds(&worker.task_history(&task).await), ["started"]);
}

#[tokio::test(start_paused = true)]
async fn what_waited_for_the_lease_goes_before_what_came_later() {
    let stage = Stage::begin();
    let mut client = stage.client().await;
    let mut worker = stage.worker().await;
    let mut tasks = Vec::new();
    for id in ["one", "two"] {
        client.start_workflow(start(id)).await.unwrap();
        tasks.push(worker.task().await);
    }
    // When this batch is durable at last the lease has run out.
    stage.store.faults().script(CallKind::Commit, slow(4 * SECOND));
    worker.complete(&tasks[0], vec![start_timer(1, 3_600 * SECOND)]).await;
    sleep(SECOND).await;
    worker.complete(&tasks[1], vec![start_timer(1, 3_600 * SECOND)]).await;
    let mut acked = Vec::new();
    while acked.len() < 2 {
        if let v1::server_item::Kind::Ack(ack) = worker.next().await {
            acked.extend(ack.tasks);
        }
    }
    let sent: Vec<_> = tasks.iter().map(|task| task.task_id.unwrap()).collect();
    assert_eq!(acked, sent);
}

#[tokio::test(start_paused = true)]
async fn a_run_does_not_leave_memory_before_its_answers_do() {
    // Runs leave memory as soon as they can.
    let stage = Stage::with_memory(database(), 0);
    let mut client = stage.client().await;
    let mut worker = stage.worker().await;
    client.start_workflow(start("one")).await.unwrap();
    let task = worker.task().await;
    let waits = tokio::spawn({
        let mut client = client.clone();
        let workflow_id = "one".to_owned();
        let request = v1::WaitWorkflowResultRequest { workflow_id, ..Default::default() };
        async move { client.wait_workflow_result(request).await }
    });
    sleep(SECOND / 10).await;
    // When the close is durable at last the lease has run out.
    stage.store.faults().script(CallKind::Commit, slow(4 * SECOND));
    worker.complete(&task, vec![complete_workflow("bye")]).await;
    let told = timeout(10 * SECOND, waits).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(told.outcome.unwrap().status(), WorkflowStatus::Completed);
}
