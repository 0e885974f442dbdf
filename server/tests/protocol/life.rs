//! A run's life, from start to result.

use std::time::Duration;

use onward_proto::{
    DEFAULT_NAMESPACE, Slot,
    v1::{self, WorkflowStatus, history_event::Attributes},
};
use onward_server::engine::Limits;
use prost::Message as _;

use crate::world::{
    World, call_activity, complete_workflow, describe, history, kinds, payload, record_value,
    signal, start, start_timer, terminate,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_one_activity_completes() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = world.worker().await;

    let execute = v1::ExecuteWorkflowRequest { start: Some(start("one")) };
    let mut waiting = client.clone();
    let waits = tokio::spawn(async move { waiting.execute_workflow(execute).await });

    let first = worker.task().await;
    assert_eq!(first.workflow_type, "w");
    assert_eq!(kinds(&first.events), ["started"]);
    worker.complete(&first, vec![call_activity(1)]).await;
    let activity = worker.activity().await;
    assert_eq!(activity.activity_type, "a");
    assert_eq!(activity.arguments, [payload("in")]);
    worker.complete_activity(&activity, "out").await;
    let second = worker.task().await;
    assert_eq!(second.follows, first.task_id);
    assert_eq!(kinds(&second.events), ["done"]);
    worker.complete(&second, vec![complete_workflow("bye")]).await;

    let outcome = waits.await.unwrap().unwrap().into_inner().outcome.unwrap();
    assert_eq!(outcome.status(), WorkflowStatus::Completed);
    assert_eq!(outcome.result, Some(payload("bye")));
    let events = history(&mut client, "one").await;
    assert_eq!(kinds(&events), ["started", "task", "scheduled", "done", "task", "completed"]);
    let ids: Vec<u64> = events.iter().map(|event| event.event_id).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_run_goes_on_after_a_restart() {
    let mut world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = world.worker().await;
    client.start_workflow(start("two")).await.unwrap();
    let first = worker.task().await;
    worker.complete(&first, vec![call_activity(1)]).await;
    let activity = worker.activity().await;
    worker.complete_activity(&activity, "out").await;
    let second = worker.task().await;
    worker.complete(&second, vec![start_timer(2, Duration::from_millis(300))]).await;
    worker.acked(&second).await;

    drop((client, worker));
    world.restart().await;
    let mut client = world.client().await;
    let mut worker = world.worker().await;
    let third = worker.task().await;
    assert!(third.follows.is_none(), "a new worker needs the whole history");
    assert_eq!(
        kinds(&third.events),
        ["started", "task", "scheduled", "done", "task", "timer", "fired"]
    );
    worker.complete(&third, vec![complete_workflow("bye")]).await;
    let result = client
        .wait_workflow_result(v1::WaitWorkflowResultRequest {
            workflow_id: "two".to_owned(),
            ..v1::WaitWorkflowResultRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(result.outcome.unwrap().status(), WorkflowStatus::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_twice_gives_the_first_answer() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let request = start("twice");
    let first = client.start_workflow(request.clone()).await.unwrap().into_inner();
    let again = client.start_workflow(request).await.unwrap().into_inner();
    assert_eq!(first, again);
    let other = client.start_workflow(start("twice")).await.unwrap_err();
    assert_eq!(other.code(), tonic::Code::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_taken_before_the_run_may_close() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = world.worker().await;
    client.start_workflow(start("s")).await.unwrap();
    let first = worker.task().await;
    client.signal_workflow(signal("s")).await.unwrap();
    // The code has not seen the signal: the close is void and the task comes again.
    worker.complete(&first, vec![complete_workflow("too early")]).await;
    let again = worker.task().await;
    assert_ne!(again.task_id, first.task_id);
    assert_eq!(kinds(&again.events), ["started", "signal"]);
    worker.complete(&again, vec![complete_workflow("bye")]).await;
    worker.acked(&again).await;
    assert_eq!(kinds(&history(&mut client, "s").await), ["started", "signal", "task", "completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_vanishes_loses_its_task_to_another() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let mut first = world.worker().await;
    client.start_workflow(start("v")).await.unwrap();
    let task = first.task().await;
    drop(first);
    let mut second = world.worker().await;
    let again = second.task().await;
    assert_eq!(again.run_id, task.run_id);
    second.complete(&again, vec![complete_workflow("bye")]).await;
    second.acked(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_a_worker_says_what_it_waits_for() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    client.start_workflow(start("lonely")).await.unwrap();
    let description = client.describe_workflow(describe("lonely")).await.unwrap().into_inner();
    assert!(
        description.waits_for.iter().any(|line| line.contains("no worker polls queue q")),
        "{:?}",
        description.waits_for
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_the_history_asks_for_it() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = world.worker().await;
    client.start_workflow(start("n")).await.unwrap();
    let first = worker.task().await;
    worker.need_history(&first).await;
    let whole = worker.task().await;
    assert_eq!(whole.task_id, first.task_id);
    assert_eq!(kinds(&whole.events), ["started"]);

    worker.complete(&first, vec![call_activity(1)]).await;
    let activity = worker.activity().await;
    worker.complete_activity(&activity, "out").await;
    let second = worker.task().await;
    worker.need_history(&second).await;
    let whole = worker.task().await;
    assert_eq!(whole.task_id, second.task_id);
    assert!(whole.follows.is_none());
    assert_eq!(kinds(&whole.events), ["started", "task", "scheduled", "done"]);

    // A failure since the last completed task is in the journal and in what the task follows with.
    worker.fail(&second).await;
    let third = worker.task().await;
    assert_eq!(kinds(&third.events), ["started", "task", "scheduled", "task-failed", "done"]);
    let ids: Vec<u64> = third.events.iter().map(|event| event.event_id).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5]);
    assert_eq!(third.next_event_id, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_told_by_what_limits_its_commands_are_measured() {
    let welcome = World::sqlite().await.worker().await.welcome;
    assert_eq!(welcome.max_payload_bytes, Limits::default().payload_bytes);
    assert!(welcome.max_message_bytes > welcome.max_payload_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_own_value_was_refused_gets_the_whole_history_next() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = world.worker().await;
    for (id, bytes, is_cached) in [("kept", 1_000, true), ("refused", 3 << 20, false)] {
        client.start_workflow(start(id)).await.unwrap();
        let first = worker.task().await;
        worker.complete(&first, vec![record_value(1, bytes)]).await;
        client.signal_workflow(signal(id)).await.unwrap();
        let second = worker.task().await;
        assert_eq!(second.follows.is_some(), is_cached, "{id}");
        let expected: &[_] =
            if is_cached { &["signal"] } else { &["started", "task", "marker", "signal"] };
        assert_eq!(kinds(&second.events), expected);
        worker.complete(&second, vec![complete_workflow("bye")]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_id_of_another_workflow_is_not_found() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let run = client.start_workflow(start("mine")).await.unwrap().into_inner().run_id;
    for other in ["yours", "theirs", "a", "b", "c"] {
        let request = v1::DescribeWorkflowRequest { run_id: run.clone(), ..describe(other) };
        let refused = client.describe_workflow(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound);
    }
    // No lane has taken another one's run into its memory to find that out.
    assert!(world.metric("onward_runs_loaded_total").await < 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_timed_out_gives_its_credit_back() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = crate::world::RawWorker::connect(world.channel().await, 10, 1).await;
    client.start_workflow(start("slow")).await.unwrap();
    let task = worker.task().await;
    let mut call = call_activity(1);
    if let Some(v1::command::Kind::ScheduleActivity(schedule)) = &mut call.kind {
        schedule.timeouts =
            Some(v1::ActivityTimeouts { start_to_close_us: 50_000, ..Default::default() });
        schedule.retry = Some(v1::RetryPolicy { initial_interval_us: 1_000, ..Default::default() });
    }
    worker.complete(&task, vec![call]).await;
    let first = worker.activity().await;
    // The worker has room for one: the next attempt comes only if the first one's credit is back.
    let second = worker.activity().await;
    assert_eq!(second.token.as_ref().unwrap().attempt, 2);
    // A late answer of the first attempt changes nothing.
    worker.complete_activity(&first, "late").await;
    worker.complete_activity(&second, "in time").await;
    let last = worker.task().await;
    worker.complete(&last, vec![complete_workflow("bye")]).await;
    worker.acked(&last).await;
    let done = history(&mut client, "slow").await;
    let completed = done.iter().find_map(|event| match event.attributes.as_ref() {
        Some(Attributes::ActivityCompleted(completed)) => Some(completed.clone()),
        _ => None,
    });
    assert_eq!(completed.unwrap().result, Some(payload("in time")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_run_that_was_asked_for_does_not_stand_for_its_workflow_id() {
    let mut world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = world.worker().await;
    let old = client.start_workflow(start("again")).await.unwrap().into_inner().run_id;
    let task = worker.task().await;
    worker.complete(&task, vec![complete_workflow("bye")]).await;
    worker.acked(&task).await;
    // The next run sleeps, so that a server that starts has no reason to load it.
    let new = client.start_workflow(start("again")).await.unwrap().into_inner().run_id;
    let task = worker.task().await;
    worker.complete(&task, vec![start_timer(1, Duration::from_hours(1))]).await;
    worker.acked(&task).await;

    drop((client, worker));
    world.restart().await;
    let mut client = world.client().await;
    let described = |run_id| v1::DescribeWorkflowRequest { run_id, ..describe("again") };
    let run_of = |described: v1::DescribeWorkflowResponse| described.info.unwrap().run_id;
    let answer = client.describe_workflow(described(old.clone())).await.unwrap();
    assert_eq!(run_of(answer.into_inner()), old);
    let answer = client.describe_workflow(described(bytes::Bytes::new())).await.unwrap();
    assert_eq!(run_of(answer.into_inner()), new);
    let refused = client.start_workflow(start("again")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_refused_leaves_the_open_run_alone() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let open = client.start_workflow(start("kept")).await.unwrap().into_inner().run_id;
    let mut request = start("kept");
    request.id_conflict_policy = v1::IdConflictPolicy::TerminateExisting.into();
    let mut large = request.clone();
    large.arguments[0].data = vec![b'x'; 3 << 19].into();
    let note = v1::Payload { data: vec![b'x'; 3 << 19].into(), ..v1::Payload::default() };
    large.memo.insert("large".to_owned(), note);
    let two_centuries_us = 200 * 366 * 86_400 * 1_000_000;
    let long = v1::StartWorkflowRequest { run_timeout_us: two_centuries_us, ..request.clone() };
    let mut odd = request;
    odd.arguments[0].metadata.insert("a\0".to_owned(), bytes::Bytes::new());
    for refused in [large, long, odd] {
        let refused = client.start_workflow(refused).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    }
    let described = client.describe_workflow(describe("kept")).await.unwrap().into_inner();
    let info = described.info.unwrap();
    assert_eq!((info.run_id, info.status), (open, i32::from(WorkflowStatus::Running)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_a_worker_is_told_to_forget_gives_its_credit_back() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = crate::world::RawWorker::connect(world.channel().await, 1, 1).await;
    client.start_workflow(start("ended")).await.unwrap();
    let task = worker.task().await;
    worker.complete(&task, vec![start_timer(1, Duration::from_hours(1))]).await;
    worker.acked(&task).await;
    client.signal_workflow(signal("ended")).await.unwrap();
    // The run is in the worker's cache, and a task of it is with the worker: its only one.
    let open = worker.task().await;
    client.start_workflow(start("next")).await.unwrap();
    client.terminate_workflow(terminate("ended")).await.unwrap();
    let next = worker.task().await;
    assert_eq!(next.workflow_id, "next");
    // An answer that had been on its way gives nothing back a second time, and is refused.
    worker.complete(&open, vec![]).await;
    worker.complete(&next, vec![complete_workflow("bye")]).await;
    worker.acked(&next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_task_of_a_run_that_is_ended_gives_its_credit_back() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = crate::world::RawWorker::connect(world.channel().await, 1, 0).await;
    client.start_workflow(start("ended")).await.unwrap();
    let first = worker.task().await;
    client.start_workflow(start("next")).await.unwrap();
    client.terminate_workflow(terminate("ended")).await.unwrap();
    let mut evicted = false;
    let next = loop {
        match worker.next().await {
            v1::server_item::Kind::Evict(evict) => evicted |= evict.run_id == first.run_id,
            v1::server_item::Kind::WorkflowTask(task) => break task,
            _ => {}
        }
    };
    assert!(evicted);
    assert_eq!(next.workflow_id, "next");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_with_start_that_was_held_starts_a_run_when_the_open_one_closes() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = world.worker().await;
    let old = client.start_workflow(start("held")).await.unwrap().into_inner().run_id;
    let first = worker.task().await;
    let signal = v1::SignalWithStartWorkflowRequest {
        start: Some(start("held")),
        signal_name: "go".to_owned(),
        arguments: Vec::new(),
    };
    client.signal_with_start_workflow(signal.clone()).await.unwrap();
    worker.complete(&first, vec![complete_workflow("too early")]).await;
    let again = worker.task().await;
    // While the repeated task is out, signals wait; it need not wait for them to close the run.
    let mut waits = Vec::new();
    for _ in 0..2 {
        let signal =
            v1::SignalWithStartWorkflowRequest { start: Some(start("held")), ..signal.clone() };
        let mut client = client.clone();
        waits.push(tokio::spawn(async move { client.signal_with_start_workflow(signal).await }));
    }
    // A held signal asks the worker to let it in.
    while !matches!(worker.next().await, v1::server_item::Kind::Yield(_)) {}
    worker.complete(&again, vec![complete_workflow("bye")]).await;
    let mut started = Vec::new();
    for wait in waits {
        let told = wait.await.unwrap().unwrap().into_inner();
        assert_ne!(told.run_id, old);
        started.push(told.started);
    }
    started.sort_unstable();
    assert_eq!(started, [false, true], "one starts the next run, the other one signals it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_be_read_is_named_with_the_reason() {
    let mut world = World::sqlite().await;
    let mut client = world.client().await;
    let broken = client.start_workflow(start("broken")).await.unwrap().into_inner();
    let whole = client.start_workflow(start("whole")).await.unwrap().into_inner();
    drop(client);
    world.stop().await;
    world
        .tamper(
            "UPDATE journal SET records = x'ff'
             WHERE run_id = (SELECT run_id FROM run WHERE workflow_id = 'broken')",
        )
        .await;
    world.start().await;
    let mut client = world.client().await;

    let run_id = uuid::Uuid::from_slice(&broken.run_id).unwrap();
    for refusal in [
        client.describe_workflow(describe("broken")).await.unwrap_err(),
        client.signal_workflow(signal("broken")).await.unwrap_err(),
    ] {
        // A code that no client asks again for: it would get the same answer until it gives up.
        assert_eq!(refusal.code(), tonic::Code::DataLoss, "{refusal}");
        let says = format!("run {run_id} is parked: ");
        assert!(refusal.message().starts_with(&says), "{refusal}");
        assert!(refusal.message().contains("decode"), "{refusal}");
    }
    // Who names it as a run of another workflow learns nothing about it, in its slot or elsewhere.
    let slot = |id: &str| Slot::of(DEFAULT_NAMESPACE, id);
    let in_its_slot =
        (0..100_000).map(|n| format!("other-{n}")).find(|id| slot(id) == slot("broken"));
    for other in ["whole", &in_its_slot.unwrap()] {
        let request =
            v1::DescribeWorkflowRequest { run_id: broken.run_id.clone(), ..describe(other) };
        let refused = client.describe_workflow(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound, "{other}: {refused}");
    }
    let neighbour = client.describe_workflow(describe("whole")).await.unwrap().into_inner();
    assert_eq!(neighbour.info.unwrap().run_id, whole.run_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_description_fits_into_a_message_and_says_what_it_leaves_out() {
    const SIGNALS: usize = 10;
    let world = World::sqlite().await;
    let mut client = world.client().await.max_decoding_message_size(64 << 20);
    client.start_workflow(start("one")).await.unwrap();
    for _ in 0..SIGNALS {
        let large = payload(&"x".repeat(1 << 20));
        let request = v1::SignalWorkflowRequest { arguments: vec![large], ..signal("one") };
        client.signal_workflow(request).await.unwrap();
    }
    let description = client.describe_workflow(describe("one")).await.unwrap().into_inner();
    assert!(description.encoded_len() < 5 << 20, "{}", description.encoded_len());
    assert_eq!(description.inbox.len() + description.inbox_left_out as usize, SIGNALS);
    assert!(!description.inbox.is_empty());
}
