//! What a world leaves behind: its store, its histories, and what was reached in it.

use onward::Client;
use onward_checker::log::{Batch, Call, JournalRow, Log, Outcome, Run, Wake};
use onward_proto::{
    DEFAULT_NAMESPACE, RunId, Slot,
    v1::{self, HistoryEvent, history_event::Attributes},
};
use onward_server::store::{ListRuns, Loaded, LoadedRun, MemoryStore, RunRow, Store as _, WakeAt};
use prost::Message as _;

use crate::diary::Diary;

/// Everything that is durable, and each history as a reader gets it.
pub async fn store(store: &MemoryStore, client: &Client) -> Log {
    let shards = store.shards(1).await.expect("this connection has no faults").rows;
    let mut runs = Vec::new();
    let mut list =
        ListRuns { namespace_id: DEFAULT_NAMESPACE, status: None, before: None, limit: 1_000 };
    loop {
        let page = store.list_runs(list.clone()).await.expect("this connection has no faults");
        let Some(last) = page.last() else { break };
        list.before = Some((last.started_at, last.run_id));
        for row in page {
            let slot = Slot::get(row.run_id.slot());
            let shard = shards.iter().find(|shard| shard.slots.contains(&slot));
            let shard = shard.expect("every slot has a shard").shard_id.0;
            runs.push(run(store, client, row, shard).await);
        }
    }
    let batches = store.batches().into_iter();
    let batches =
        batches.map(|(shard, commit_seq, epoch)| Batch { shard: shard.0, commit_seq, epoch });
    Log { batches: batches.collect(), runs, ..Log::default() }
}

async fn run(store: &MemoryStore, client: &Client, row: RunRow, shard: i32) -> Run {
    // Some still go on: what is read has to be of one moment.
    let (loaded, history) = loop {
        let before = load(store, row.run_id).await;
        let history = history(client, &row).await;
        if before == load(store, row.run_id).await {
            break (before, history);
        }
    };
    let journal = loaded.journal.iter().map(|bytes| {
        let row = v1::JournalRow::decode(bytes.clone()).expect("a journal row is one");
        JournalRow { epoch: row.epoch, commit_seq: row.commit_seq, records: row.records }
    });
    Run {
        run_id: row.run_id.uuid(),
        workflow_id: row.workflow_id,
        status: loaded.row.status,
        shard,
        wake: match loaded.row.wake_at {
            WakeAt::Hot => Wake::Hot,
            WakeAt::At(_) => Wake::At,
            WakeAt::Never => Wake::Never,
        },
        pending: loaded.pending.len(),
        journal: journal.collect(),
        history,
    }
}

async fn load(store: &MemoryStore, run_id: RunId) -> Box<LoadedRun> {
    let loaded = store.load_runs(vec![run_id], u32::MAX).await;
    match loaded.expect("this connection has no faults").pop() {
        Some(Loaded::Run(run)) => run,
        other => panic!("a run that is listed is there: {other:?}"),
    }
}

async fn history(client: &Client, row: &RunRow) -> Vec<HistoryEvent> {
    let mut request = v1::GetWorkflowHistoryRequest {
        workflow_id: row.workflow_id.clone(),
        run_id: row.run_id.to_wire(),
        ..Default::default()
    };
    let mut events = Vec::new();
    loop {
        let page = client.call(&request, |mut service, request| async move {
            service.get_workflow_history(request).await
        });
        let page = page.await.expect("nothing goes wrong any more");
        events.extend(page.events);
        if page.at_end || page.next_page_token.is_empty() {
            return events;
        }
        request.page_token = page.next_page_token;
    }
}

/// What the server says of a run that should have ended.
pub async fn why_open(client: &Client, workflow_id: &str) -> String {
    let request =
        v1::DescribeWorkflowRequest { workflow_id: workflow_id.to_owned(), ..Default::default() };
    let described = client.call(&request, |mut service, request| async move {
        service.describe_workflow(request).await
    });
    match tokio::time::timeout(std::time::Duration::from_mins(5), described).await {
        Ok(Ok(run)) => format!(
            "it has not ended: {:?}, waits for {:?}, {:?}, {:?}",
            run.info.unwrap_or_default().status(),
            run.waits_for,
            run.pending_activities,
            run.task
        ),
        Ok(Err(error)) => format!("it has not ended: {error}"),
        Err(_) => "it has not ended, and nobody says why".to_owned(),
    }
}

/// Takes down what was reached.
pub(crate) fn count(log: &Log, diary: &Diary) {
    for run in &log.runs {
        diary.reached(format!("run {:?}", run.status));
        for event in &run.history {
            if let Some(attributes) = &event.attributes {
                diary.reached(format!("event {}", kind(attributes)));
            }
        }
        let records = run.journal.iter().flat_map(|row| &row.records);
        for _ in records {
            diary.reached("record");
        }
    }
    for operation in &log.operations {
        match (&operation.outcome, operation.call) {
            (Outcome::Ok(_), Call::Describe) => diary.reached("look"),
            (Outcome::Ok(_), _) => diary.reached("ack"),
            (Outcome::Refused(refusal), _) => diary.reached(format!("refused {refusal:?}")),
            (Outcome::Unknown, _) => diary.reached("unknown"),
        }
    }
    for execution in log.executions.iter().filter(|execution| execution.attempt > 1) {
        diary.reached(if execution.local { "local retry" } else { "retry" });
    }
}

/// What an event tells, and how.
fn kind(attributes: &Attributes) -> String {
    match attributes {
        Attributes::ActivityFailed(event) => format!("ActivityFailed {:?}", event.cause()),
        Attributes::ActivityTimedOut(event) => format!("ActivityTimedOut {:?}", event.kind()),
        Attributes::WorkflowTaskFailed(event) => format!("WorkflowTaskFailed {:?}", event.cause()),
        Attributes::WorkflowTaskCompleted(event) if event.more => {
            "WorkflowTaskCompleted more".to_owned()
        }
        Attributes::WorkflowTaskCompleted(event) if event.untaken_facts > 0 => {
            "WorkflowTaskCompleted untaken".to_owned()
        }
        Attributes::MarkerRecorded(event) => format!("MarkerRecorded {:?}", event.kind()),
        other => {
            let text = format!("{other:?}");
            text.split('(').next().unwrap_or_default().to_owned()
        }
    }
}
