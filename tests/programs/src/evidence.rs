//! What a system leaves behind: its store, and each history as a reader gets it.

use std::time::Duration;

use onward::{Client, Replayer};
use onward_checker::log::{JournalRow, Listed, Replay, Row, Run, Wake};
use onward_proto::{
    DEFAULT_NAMESPACE, RunId, Slot, Timestamp,
    v1::{self, HistoryEvent, history_event::Attributes},
};
use onward_server::store::{ListRuns, Loaded, LoadedRun, RunRow, ShardRow, Store, WakeAt};
use prost::Message as _;
use uuid::Uuid;

use crate::interpret;

/// How long somebody who asks why a run is open waits for the answer.
const PATIENCE: Duration = Duration::from_mins(5);

/// All parts of a history with fewer events are replayed.
const SHORT: usize = 200;
/// And no more of any other.
const FEW: usize = 20;

/// All runs of a store, the newest first.
///
/// # Panics
/// If the store cannot be read, here and below.
pub async fn rows(store: &dyn Store) -> Vec<RunRow> {
    let mut list =
        ListRuns { namespace_id: DEFAULT_NAMESPACE, status: None, before: None, limit: 1_000 };
    let mut rows = Vec::new();
    loop {
        let page = store.list_runs(list.clone()).await.expect("nothing goes wrong any more");
        let Some(last) = page.last() else { return rows };
        list.before = Some((last.started_at, last.run_id));
        rows.extend(page);
    }
}

/// All that a store has of a run.
pub async fn load(store: &dyn Store, run_id: RunId) -> Box<LoadedRun> {
    let loaded = store.load_runs(vec![run_id], u32::MAX).await;
    match loaded.expect("nothing goes wrong any more").pop() {
        Some(Loaded::Run(run)) => run,
        other => panic!("a run that is listed is there: {other:?}"),
    }
}

/// A history, page by page.
pub async fn history(client: &Client, workflow_id: &str, run_id: RunId) -> Vec<HistoryEvent> {
    let mut request = v1::GetWorkflowHistoryRequest {
        workflow_id: workflow_id.to_owned(),
        run_id: run_id.to_wire(),
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

/// A run as the checker reads it.
pub fn run(loaded: LoadedRun, shards: &[ShardRow], history: Vec<HistoryEvent>) -> Run {
    let LoadedRun { row, journal, pending } = loaded;
    let slot = Slot::get(row.run_id.slot());
    let shard = shards.iter().find(|shard| shard.slots.contains(&slot));
    let journal = journal.into_iter().map(|bytes| {
        let row = v1::JournalRow::decode(bytes).expect("a journal row is one");
        JournalRow { epoch: row.epoch, commit_seq: row.commit_seq, records: row.records }
    });
    Run {
        run_id: row.run_id.uuid(),
        workflow_id: row.workflow_id,
        status: row.status,
        row: Row {
            workflow_type: row.workflow_type,
            task_queue: row.task_queue,
            started_at_us: row.started_at.as_micros(),
            closed_at_us: row.closed_at.map(Timestamp::as_micros),
        },
        shard: shard.expect("every slot has a shard").shard_id.0,
        wake: match row.wake_at {
            WakeAt::Hot => Wake::Hot,
            WakeAt::At(at) => Wake::At(at.as_micros()),
            WakeAt::Never => Wake::Never,
        },
        pending: pending.len(),
        journal: journal.collect(),
        history,
    }
}

/// All runs by the server's own list.
pub async fn list(client: &Client) -> Vec<Listed> {
    let mut request = v1::ListWorkflowsRequest::default();
    let mut listed = Vec::new();
    loop {
        let page = client.call(&request, |mut service, request| async move {
            service.list_workflows(request).await
        });
        let page = page.await.expect("nothing goes wrong any more");
        listed.extend(page.workflows.iter().map(|info| Listed {
            run_id: Uuid::from_slice(&info.run_id).unwrap_or_default(),
            status: info.status(),
            events: info.history_events,
        }));
        if page.next_page_token.is_empty() {
            return listed;
        }
        request.page_token = page.next_page_token;
    }
}

/// Puts a history before the code that it is of, and the parts of it that end with a task: all of a
/// short one, and some of a long one.
pub fn replays(run: &Run) -> Vec<Replay> {
    let replayer = Replayer::new().workflows::<(interpret,)>().strict();
    let replay = |part: Option<usize>| {
        let events = run.history[..part.unwrap_or(run.history.len())].to_vec();
        let replayed = replayer.replay(&v1::History { events });
        Replay { run_id: run.run_id, part, wrong: replayed.err().map(|error| error.to_string()) }
    };
    let parts = parts(&run.history);
    let step = if run.history.len() < SHORT { 1 } else { parts.len().div_ceil(FEW).max(1) };
    parts.into_iter().rev().step_by(step).map(Some).chain([None]).map(replay).collect()
}

/// How long each part of a history is that ends with a task. The whole is none of them.
fn parts(history: &[HistoryEvent]) -> Vec<usize> {
    let end = |(place, event): (usize, &HistoryEvent)| match &event.attributes {
        Some(Attributes::WorkflowTaskCompleted(task)) => {
            Some(place + 1 + task.command_events as usize)
        }
        _ => None,
    };
    let ends = history.iter().enumerate().filter_map(end);
    ends.filter(|end| *end < history.len()).collect()
}

/// What the server says of a run that should have ended.
pub async fn why_open(client: &Client, workflow_id: &str) -> String {
    let request =
        v1::DescribeWorkflowRequest { workflow_id: workflow_id.to_owned(), ..Default::default() };
    let described = client.call(&request, |mut service, request| async move {
        service.describe_workflow(request).await
    });
    match tokio::time::timeout(PATIENCE, described).await {
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
