//! What a world leaves behind: its store, its histories, and what was reached in it.

use onward::Client;
use onward_checker::log::{Batch, Call, Log, Outcome, Owner, Run};
use onward_programs::evidence;
use onward_proto::{
    RunId,
    v1::{HistoryEvent, history_event::Attributes},
};
use onward_server::store::{MemoryStore, ShardRow, Store as _};

use crate::diary::Diary;

/// Everything that is durable, and each history as a reader gets it.
pub async fn store(store: &MemoryStore, client: &Client) -> Log {
    let shards = store.shards(1).await.expect("this connection has no faults").rows;
    let mut runs = Vec::new();
    for row in evidence::rows(store).await {
        runs.push(run(store, client, &row.workflow_id, row.run_id, &shards).await);
    }
    let listed = evidence::list(client).await;
    let replays = runs.iter().flat_map(evidence::replays).collect();
    Log { batches: batches(store), runs, listed, replays, ..Log::default() }
}

fn batches(store: &MemoryStore) -> Vec<Batch> {
    let batches = store.batches().into_iter();
    batches.map(|(shard, commit_seq, epoch)| Batch { shard: shard.0, commit_seq, epoch }).collect()
}

/// The newest batch of each shard.
pub(crate) fn newest_batches(store: &MemoryStore) -> Vec<Batch> {
    let mut newest = batches(store);
    newest.reverse();
    newest.dedup_by_key(|batch| batch.shard);
    newest
}

/// Who has owned the shards since when, by the clock of a database that began at `dawn_us` and
/// never stepped.
pub(crate) fn owners(store: &MemoryStore, dawn_us: i64) -> Vec<Owner> {
    let owners = store.owners().into_iter().map(|owned| Owner {
        at_us: (owned.since.as_micros() - dawn_us).unsigned_abs(),
        shard: owned.shard_id.0,
        node: owned.node_id.map(|node| node.0),
    });
    owners.collect()
}

/// Some runs still go on: what is read has to be of one moment.
async fn run(
    store: &MemoryStore,
    client: &Client,
    workflow_id: &str,
    run_id: RunId,
    shards: &[ShardRow],
) -> Run {
    loop {
        let before = evidence::load(store, run_id).await;
        let history = evidence::history(client, workflow_id, run_id).await;
        if before == evidence::load(store, run_id).await {
            return evidence::run(*before, shards, history);
        }
    }
}

/// Takes down what became of each run, and what was reached.
pub fn take_down(log: &Log, diary: &Diary) {
    for run in &log.runs {
        diary.write(format_args!(
            "{} {} {:?}: {} rows, {} events",
            run.workflow_id,
            run.run_id,
            run.status,
            run.journal.len(),
            run.history.len()
        ));
        diary.reached(format!("run {:?}", run.status));
        for event in &run.history {
            if let Some(attributes) = &event.attributes {
                diary.reached(format!("event {}", kind(attributes)));
            }
        }
        if is_signalled_at_end(&run.history) {
            diary.reached("signal at the end");
        }
        let records = run.journal.iter().flat_map(|row| &row.records);
        for _ in records {
            diary.reached("record");
        }
    }
    for operation in &log.operations {
        match (&operation.outcome, operation.call) {
            (Outcome::Ok(_), Call::Describe) => diary.reached("look"),
            (Outcome::Ok(_), _) if operation.process.ends_with("-again") => {
                diary.reached("asked again");
            }
            (Outcome::Ok(_), _) => diary.reached("ack"),
            (Outcome::Refused(refusal), _) => diary.reached(format!("refused {refusal:?}")),
            (Outcome::Unknown, _) => diary.reached("unknown"),
        }
    }
    for execution in log.executions.iter().filter(|execution| execution.attempt > 1) {
        diary.reached(if execution.local { "local retry" } else { "retry" });
    }
}

/// Whether a signal came when the run was about to end by itself.
fn is_signalled_at_end(history: &[HistoryEvent]) -> bool {
    let Some(last) = history.last() else { return false };
    matches!(
        last.attributes,
        Some(Attributes::WorkflowExecutionCompleted(_) | Attributes::WorkflowExecutionFailed(_))
    ) && history.iter().any(|event| {
        matches!(event.attributes, Some(Attributes::SignalReceived(_)))
            && last.time_us - event.time_us < AT_END_US
    })
}

/// So long before its end a run is about to end.
const AT_END_US: i64 = 50_000;

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
