//! The history that comes with a task: whole, each event once, however large.

use onward_proto::v1::{self, WorkflowStatus};

use crate::world::{World, call_activity, complete_workflow, kinds, signal, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_history_holds_each_event_once() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    let mut worker = world.worker().await;
    client.start_workflow(start("once")).await.unwrap();
    let first = worker.task().await;
    worker.need_history(&first).await;
    let first = worker.task().await;
    assert_eq!(kinds(&first.events), ["started"]);
    worker.complete(&first, vec![call_activity(1)]).await;
    let activity = worker.activity().await;
    worker.complete_activity(&activity, "out").await;
    // A worker that vanishes leaves its failed task in the history.
    let task = worker.task().await;
    assert_eq!(kinds(&task.events), ["done"]);
    drop(worker);
    let mut worker = world.worker().await;
    let again = worker.task().await;
    let expected = ["started", "task", "scheduled", "task-failed", "done"];
    assert_eq!(kinds(&again.events), expected);
    assert_eq!(kinds(&worker.task_history(&again).await), expected);
    worker.complete(&again, vec![complete_workflow("bye")]).await;
    worker.acked(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_with_more_than_a_message_holds_comes_in_pages() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    client.start_workflow(start("large")).await.unwrap();
    for _ in 0..6 {
        let data = bytes::Bytes::from(vec![b'x'; 1 << 20]);
        client
            .signal_workflow(v1::SignalWorkflowRequest {
                arguments: vec![v1::Payload { data, ..v1::Payload::default() }],
                ..signal("large")
            })
            .await
            .unwrap();
    }
    let mut worker = world.worker().await;
    let first = worker.task().await;
    let events = worker.whole_history(&first).await;
    let six_signals = |tail: &[&'static str]| [&["started"], &["signal"; 6][..], tail].concat();
    assert_eq!(kinds(&events), six_signals(&[]));

    // What the task itself makes of it is as large, in one row of the journal.
    let calls = (1..=6).map(|number| {
        let mut call = call_activity(number);
        if let Some(v1::command::Kind::ScheduleActivity(schedule)) = &mut call.kind {
            schedule.arguments[0].data = vec![b'y'; 1 << 20].into();
        }
        call
    });
    worker.complete_in_parts(&first, calls.collect()).await;
    let mut last = None;
    for _ in 0..6 {
        last = Some(worker.activity().await);
    }
    worker.complete_activity(&last.unwrap(), "out").await;
    let second = worker.task().await;
    drop(worker);
    let mut worker = world.worker().await;
    let again = worker.task().await;
    assert_eq!(again.run_id, second.run_id);
    let events = worker.whole_history(&again).await;
    let tail = [&["task"][..], &["scheduled"; 6], &["task-failed", "done"]].concat();
    assert_eq!(kinds(&events), six_signals(&tail));
    let ids: Vec<u64> = events.iter().map(|event| event.event_id).collect();
    assert_eq!(ids, (1..=events.len() as u64).collect::<Vec<_>>());
    assert_eq!(again.next_event_id, events.len() as u64 + 1);
    worker.complete(&again, vec![complete_workflow("bye")]).await;
    worker.acked(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_token_serves_only_the_request_it_came_from() {
    let world = World::sqlite().await;
    let mut client = world.client().await;
    for workflow_id in ["mine", "other"] {
        client.start_workflow(start(workflow_id)).await.unwrap();
    }
    let pages = |workflow_id: &str, page_token: &bytes::Bytes| v1::GetWorkflowHistoryRequest {
        workflow_id: workflow_id.to_owned(),
        page_token: page_token.clone(),
        ..v1::GetWorkflowHistoryRequest::default()
    };
    let lists = |status: WorkflowStatus, page_token: &bytes::Bytes| v1::ListWorkflowsRequest {
        status: status.into(),
        page_size: 1,
        page_token: page_token.clone(),
        ..v1::ListWorkflowsRequest::default()
    };
    let none = bytes::Bytes::new();
    let page = client.get_workflow_history(pages("mine", &none)).await.unwrap().into_inner();
    let of_mine = page.next_page_token;
    let page = client.list_workflows(lists(WorkflowStatus::Running, &none)).await.unwrap();
    let v1::ListWorkflowsResponse { workflows: first, next_page_token: of_running, .. } =
        page.into_inner();
    assert!(!of_mine.is_empty() && !of_running.is_empty(), "both go on");

    // Where they belong they are taken.
    let page = client.get_workflow_history(pages("mine", &of_mine)).await.unwrap().into_inner();
    assert_eq!((page.events.len(), page.at_end), (0, true));
    let page = client.list_workflows(lists(WorkflowStatus::Running, &of_running)).await.unwrap();
    let second = page.into_inner().workflows;
    let mut listed = [&first, &second].map(|page| page[0].workflow_id.as_str());
    listed.sort_unstable();
    assert_eq!(listed, ["mine", "other"]);

    let mut refusals = Vec::new();
    for refused in [
        client.get_workflow_history(pages("other", &of_mine)).await,
        client.get_workflow_history(pages("other", &of_running)).await,
        client.get_workflow_history(pages("other", &"garbage".into())).await,
    ] {
        refusals.push(refused.unwrap_err());
    }
    for refused in [
        client.list_workflows(lists(WorkflowStatus::Completed, &of_running)).await,
        client.list_workflows(lists(WorkflowStatus::Running, &of_mine)).await,
        client.list_workflows(lists(WorkflowStatus::Running, &"garbage".into())).await,
    ] {
        refusals.push(refused.unwrap_err());
    }
    for refusal in refusals {
        assert_eq!(refusal.code(), tonic::Code::InvalidArgument, "{refusal}");
        assert!(refusal.message().starts_with("page_token "), "{refusal}");
    }
}
