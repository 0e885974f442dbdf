//! A log in which all is well and every rule has something to look at.

use onward_proto::v1::{self, HistoryEvent, WorkflowStatus, history_event::Attributes};
use uuid::Uuid;

use crate::{
    Log,
    judge::Report,
    log::{
        Batch, Call, Conflict, End, Ending, Execution, JournalRow, Listed, Operation, Outcome,
        Owner, Read, Refusal, Replay, Reply, Reuse, Row, Run, Shown, Snapshot, Wait, Wake, Well,
        fingerprint,
    },
    rules::RULES,
};

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn bytes(id: Uuid) -> prost::bytes::Bytes {
    id.as_bytes().to_vec().into()
}

/// Applies a change to a good log; this rule must find it.
pub(crate) fn broken(rule: &str, change: impl FnOnce(&mut Log)) {
    let mut log = good();
    let rules: Vec<_> = RULES.iter().filter(|one| one.name == rule).copied().collect();
    assert_eq!(rules.len(), 1, "there is one rule {rule}");
    assert_eq!(Report::of(&log, &rules).violations(), [], "{rule} finds fault with a good log");
    change(&mut log);
    assert!(!Report::of(&log, &rules).violations().is_empty(), "{rule} finds nothing in {log:#?}");
}

/// The run that is open at the end.
pub(crate) fn open_run(log: &mut Log) -> &mut Run {
    log.runs.iter_mut().find(|run| run.status == WorkflowStatus::Running).unwrap()
}

fn started(workflow_id: &str, run_id: Uuid, request: u128) -> Attributes {
    Attributes::WorkflowExecutionStarted(v1::WorkflowExecutionStarted {
        workflow_id: workflow_id.into(),
        run_id: bytes(run_id),
        workflow_type: "interpret".into(),
        task_queue: "default".into(),
        request_id: bytes(uuid(request)),
        ..Default::default()
    })
}

fn task(commands: u32) -> Attributes {
    Attributes::WorkflowTaskCompleted(v1::WorkflowTaskCompleted {
        command_events: commands,
        ..Default::default()
    })
}

fn scheduled(number: u32) -> Attributes {
    Attributes::ActivityScheduled(v1::ActivityScheduled {
        number,
        retry: Some(v1::RetryPolicy { initial_interval_us: 100, ..Default::default() }),
        timeouts: Some(v1::ActivityTimeouts { start_to_close_us: 50, ..Default::default() }),
        ..Default::default()
    })
}

fn signal(request: u128) -> Attributes {
    Attributes::SignalReceived(v1::SignalReceived {
        request_id: bytes(uuid(request)),
        ..Default::default()
    })
}

fn cancel_requested(request: u128) -> Attributes {
    Attributes::WorkflowExecutionCancelRequested(v1::WorkflowExecutionCancelRequested {
        request_id: bytes(uuid(request)),
        ..Default::default()
    })
}

fn terminated(request: u128) -> Attributes {
    Attributes::WorkflowExecutionTerminated(v1::WorkflowExecutionTerminated {
        request_id: bytes(uuid(request)),
        ..Default::default()
    })
}

/// A run whose journal rows are in the order of its history.
fn run(
    workflow_id: &str,
    run_id: u128,
    first_batch: u64,
    rows: Vec<Vec<(i64, Attributes)>>,
) -> Run {
    let mut history = Vec::new();
    let mut journal = Vec::new();
    for (index, row) in rows.into_iter().enumerate() {
        let mut records = Vec::new();
        for (time_us, attributes) in row {
            let record =
                HistoryEvent { time_us, attributes: Some(attributes), ..Default::default() };
            history.push(HistoryEvent { event_id: history.len() as u64 + 1, ..record.clone() });
            records.push(record);
        }
        journal.push(JournalRow { epoch: 1, commit_seq: first_batch + index as u64, records });
    }
    let last: &HistoryEvent = history.last().expect("a run has started");
    let closed = last.attributes.as_ref().and_then(crate::rules::closes);
    let status = closed.unwrap_or(WorkflowStatus::Running);
    Run {
        run_id: uuid(run_id),
        workflow_id: workflow_id.into(),
        status,
        shard: 0,
        row: Row {
            workflow_type: "interpret".into(),
            task_queue: "default".into(),
            started_at_us: history[0].time_us,
            closed_at_us: closed.map(|_| last.time_us),
        },
        wake: if status == WorkflowStatus::Running { Wake::At(31) } else { Wake::Never },
        pending: 0,
        journal,
        history,
    }
}

fn operation(process: &str, workflow_id: &str, at: u64, request: u128, call: Call) -> Operation {
    Operation {
        process: process.into(),
        workflow_id: workflow_id.into(),
        request_id: (request != 0).then(|| uuid(request)),
        call,
        began_us: at,
        ended_us: at + 5,
        outcome: Outcome::Unknown,
    }
}

fn ok(mut operation: Operation, run_id: u128, started: bool) -> Operation {
    operation.outcome = Outcome::Ok(Reply { run_id: uuid(run_id), started, shown: None });
    operation
}

fn shows(mut operation: Operation, run_id: u128, status: WorkflowStatus) -> Operation {
    let (events, closed_at_us) = if status == WorkflowStatus::Running { (1, 0) } else { (2, 11) };
    let shown = Shown { status, events, closed_at_us };
    let reply = Reply { run_id: uuid(run_id), started: false, shown: Some(shown) };
    operation.outcome = Outcome::Ok(reply);
    operation
}

const START: Call = Call::Start { reuse: Reuse::Allow, conflict: Conflict::Fail };

pub(crate) fn good() -> Log {
    let timed_out = v1::ActivityTimedOut { number: 3, kind: 1, attempt: 1, ..Default::default() };
    let mut one = run(
        "one",
        1,
        1,
        vec![
            vec![
                (10, started("one", uuid(1), 101)),
                (10, task(4)),
                (10, scheduled(1)),
                (
                    10,
                    Attributes::TimerStarted(v1::TimerStarted {
                        number: 2,
                        duration_us: 20,
                        fire_at_us: 30,
                        ..Default::default()
                    }),
                ),
                (10, scheduled(3)),
                (
                    10,
                    Attributes::MarkerRecorded(v1::MarkerRecorded {
                        number: 4,
                        ..Default::default()
                    }),
                ),
            ],
            vec![(12, signal(102)), (13, signal(103)), (15, cancel_requested(104))],
            vec![
                (30, Attributes::TimerFired(v1::TimerFired { number: 2 })),
                (60, Attributes::ActivityTimedOut(timed_out)),
                (
                    70,
                    Attributes::ActivityCompleted(v1::ActivityCompleted {
                        number: 1,
                        attempt: 2,
                        ..Default::default()
                    }),
                ),
                (70, task(1)),
                (
                    70,
                    Attributes::WorkflowExecutionCompleted(
                        v1::WorkflowExecutionCompleted::default(),
                    ),
                ),
            ],
        ],
    );
    // All others have begun and ended meanwhile.
    one.journal[2].commit_seq = 8;
    let shared = run(
        "shared",
        2,
        4,
        vec![
            vec![(10, started("shared", uuid(2), 201)), (10, signal(204))],
            vec![(11, terminated(999))], // as the server itself did
        ],
    );
    let open = run(
        "shared",
        3,
        5,
        vec![vec![
            (11, started("shared", uuid(3), 203)),
            (11, task(1)),
            (
                11,
                Attributes::TimerStarted(v1::TimerStarted {
                    number: 1,
                    duration_us: 20,
                    fire_at_us: 31,
                    ..Default::default()
                }),
            ),
        ]],
    );
    let ended = run(
        "ended",
        4,
        6,
        vec![vec![(10, started("ended", uuid(4), 301))], vec![(11, terminated(302))]],
    );
    let attempt = |number, attempt, began_us, ended| Execution {
        key: format!("1-{number}"),
        run_id: uuid(1),
        number,
        attempt,
        local: false,
        worker: "w".into(),
        began_us,
        ended,
    };
    let signal_call = Call::Signal { run_id: None };
    let takes_over = Call::Start { reuse: Reuse::Allow, conflict: Conflict::TerminateExisting };
    let mut refused = operation("refused", "shared", 60, 202, START);
    refused.outcome = Outcome::Refused(Refusal::AlreadyExists);
    let runs = vec![one, shared, open, ended];
    let listed = runs.iter().map(|run| Listed {
        run_id: run.run_id,
        status: run.status,
        events: run.history.len() as u64,
    });
    let one = &runs[0];
    Log {
        listed: listed.collect(),
        replays: [None, Some(2)]
            .map(|part| Replay { run_id: one.run_id, part, wrong: None })
            .into(),
        operations: vec![
            ok(operation("a", "one", 10, 101, START), 1, true),
            ok(operation("a", "one", 20, 102, signal_call), 1, false),
            ok(operation("a", "one", 30, 103, signal_call), 1, false),
            ok(operation("a", "one", 40, 104, Call::Cancel { run_id: None }), 1, false),
            ok(operation("a", "shared", 50, 201, START), 2, true),
            refused,
            shows(operation("looks", "shared", 70, 0, Call::Describe), 2, WorkflowStatus::Running),
            ok(operation("takes over", "shared", 80, 203, takes_over), 3, true),
            ok(operation("signals", "shared", 75, 204, signal_call), 2, false),
            ok(operation("a", "ended", 90, 301, START), 4, true),
            ok(operation("a", "ended", 100, 302, Call::Terminate { run_id: None }), 4, false),
            shows(operation("a", "ended", 110, 0, Call::Describe), 4, WorkflowStatus::Terminated),
        ],
        executions: vec![
            attempt(1, 1, 100, Some((200, End::Failed))),
            attempt(1, 2, 400, Some((500, End::Value))),
            attempt(3, 1, 100, None),
        ],
        waits: vec![Wait { run_id: uuid(1), place: 2, lasts_us: 20, asked_us: 10, woke_us: 30 }],
        reads: vec![
            Read {
                run_id: uuid(1),
                began_us: 800,
                ended_us: 801,
                events: one.history.iter().take(6).map(fingerprint).collect(),
                followed: false,
            },
            Read {
                run_id: uuid(1),
                began_us: 850,
                ended_us: 890,
                events: one.history.iter().map(fingerprint).collect(),
                followed: true,
            },
        ],
        snapshots: vec![Snapshot { at_us: 70, open: vec![("shared".into(), uuid(2))] }],
        batches: (0..9).map(|commit_seq| Batch { shard: 0, commit_seq, epoch: 1 }).collect(),
        endings: vec![Ending { workflow_id: "one".into(), wrong: None }],
        lost: Vec::new(),
        left: vec![Batch { shard: 0, commit_seq: 4, epoch: 1 }],
        disturbances: Vec::new(),
        clock_stepped: false,
        well: vec![
            Well { node: uuid(11), from_us: 0, to_us: Some(2_000_000) },
            Well { node: uuid(12), from_us: 1_000_000, to_us: None },
        ],
        unwell: Vec::new(),
        owners: vec![
            Owner { at_us: 5, shard: 0, node: Some(uuid(11)) },
            Owner { at_us: 6_000_000, shard: 0, node: Some(uuid(12)) },
        ],
        ended_us: 60_000_000,
        held: Vec::new(),
        lacks: Vec::new(),
        runs,
    }
}
