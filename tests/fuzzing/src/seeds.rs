//! Inputs made of real messages, from which a corpus begins.

use std::time::Duration;

use bytes::Bytes;
use onward::{Client, Codec, Env, Worker, payload};
use onward_proto::{
    RunId, json,
    v1::{
        self, command::Kind as CommandKind, history_event::Attributes,
        server_item::Kind as ServerKind, worker_item::Kind as WorkerKind,
    },
};
use onward_server::store::{Loaded, LoadedRun, MemoryStore, Store as _};
use prost::Message;
use tokio::time::sleep;

use crate::{
    rpcs::draw,
    server::{Server, database, runtime},
    targets::{
        engine::{PendingRow, StoredRun},
        sdk::{errand, fetch, server_frame, welcome},
        serving::{Scene, UNARY, frame, request_id, run_of, start},
    },
};

/// The seeds of each target, by its name.
pub fn all() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let runs = record();
    vec![
        ("client_requests", client_requests()),
        ("session_frames", session_frames()),
        ("page_tokens", page_tokens()),
        ("connection_bytes", connection_bytes()),
        ("parked_runs", stored_runs(&runs)),
        ("stored_runs", stored_runs(&runs)),
        ("histories", runs.iter().map(|run| run.history.encode_to_vec()).collect()),
        ("history_texts", history_texts(&runs)),
        ("workflow_tasks", workflow_tasks(&runs)),
        ("server_frames", server_frames(&runs)),
        ("payloads", payloads()),
        ("failures", failures()),
        ("command_lines", command_lines()),
        ("settings", settings()),
        ("orders_files", orders_files()),
        ("store_urls", store_urls()),
    ]
}

/// A run as it was at some moment.
struct Recorded {
    history: v1::History,
    stored: LoadedRun,
}

/// Runs of errands, each as it was early and late.
fn record() -> Vec<Recorded> {
    let (runtime, local) = runtime();
    local.block_on(&runtime, async {
        let store = database();
        let server = Server::start(store.clone(), 1, 1, 1 << 20).await;
        let client = server.client("recorder", 1);
        let whole = Worker::builder(server.client("worker", 2), "q")
            .workflows::<(errand,)>()
            .activities::<(fetch,)>()
            .env(Env::simulated(2))
            .spawn()
            .await;
        // Its errands wait for an activity that nobody runs.
        let half = Worker::builder(server.client("half", 3), "half")
            .workflows::<(errand,)>()
            .env(Env::simulated(3))
            .spawn()
            .await;
        let _workers = (whole.expect("it has work"), half.expect("it has work"));
        let mut run_ids = Vec::new();
        for (n, (queue, names)) in [
            ("q", &[][..]),
            ("q", &["a"]),
            ("q", &["a", "b", "c"]),
            ("q", &["d"]),
            ("half", &["a"]),
        ]
        .into_iter()
        .enumerate()
        {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let request = v1::StartWorkflowRequest {
                task_queue: queue.to_owned(),
                arguments: vec![payload::encode(&names, Codec::Json).expect("it is plain data")],
                request_id: request_id(n as u8 + 1),
                ..start(&format!("errand-{n}"))
            };
            let mut raw = client.raw();
            let started = raw.start_workflow(request).await.expect("it is a good request");
            run_ids.push(RunId::from_wire(&started.into_inner().run_id).expect("a run has an id"));
        }
        send_go(&client, "errand-2").await;
        let cancel = v1::RequestCancelWorkflowRequest {
            workflow_id: "errand-3".to_owned(),
            request_id: request_id(30),
            ..Default::default()
        };
        client.raw().request_cancel_workflow(cancel).await.expect("it is open");
        let mut recorded = Vec::new();
        for wait in [Duration::from_millis(100), Duration::from_secs(20)] {
            sleep(wait).await;
            for run_id in &run_ids {
                recorded.push(look(&store, &client, *run_id).await);
            }
        }
        recorded
    })
}

async fn send_go(client: &Client, workflow_id: &str) {
    let signal = v1::SignalWorkflowRequest {
        workflow_id: workflow_id.to_owned(),
        signal_name: "go".to_owned(),
        arguments: vec![payload::encode(&5_u32, Codec::Json).expect("it is plain data")],
        request_id: request_id(31),
        ..Default::default()
    };
    client.raw().signal_workflow(signal).await.expect("it is open");
}

async fn look(store: &MemoryStore, client: &Client, run_id: RunId) -> Recorded {
    let loaded = store.load_runs(vec![run_id], u32::MAX).await.expect("memory does not fail").pop();
    let Some(Loaded::Run(stored)) = loaded else { panic!("it was started") };
    let page = v1::GetWorkflowHistoryRequest {
        workflow_id: stored.row.workflow_id.clone(),
        run_id: run_id.to_wire(),
        ..Default::default()
    };
    let page = client.raw().get_workflow_history(page).await.expect("it is there").into_inner();
    Recorded { history: v1::History { events: page.events }, stored: *stored }
}

fn client_requests() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (method, path) in UNARY.iter().enumerate() {
        for message in draw::requests(path, 4) {
            let mut seed = vec![method as u8];
            seed.extend(message);
            seeds.push(seed);
        }
    }
    seeds
}

/// What a worker says that completes what it is given, step by step: each session is played on a
/// server of its own, where the same tasks have the same ids.
fn session_frames() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> =
        draw::frames(12).iter().map(|frame| delimited([frame.clone()])).collect();
    let mut frames = Vec::new();
    for _ in 0..6 {
        let answers = play(&frames);
        let Some(next) = answers.into_iter().rev().find_map(|kind| reply(&kind)) else { break };
        if frames.contains(&next) {
            break;
        }
        frames.push(next);
        seeds.push(delimited(frames.clone()));
    }
    seeds
}

fn play(frames: &[Bytes]) -> Vec<ServerKind> {
    let hello = frame(WorkerKind::Hello(v1::Hello {
        protocol: onward_proto::PROTOCOL,
        task_queue: "q".to_owned(),
        workflow_types: vec!["errand".to_owned()],
        activity_types: vec!["fetch".to_owned()],
        ..Default::default()
    }));
    let credits = frame(WorkerKind::Credits(v1::Credits { workflow: 10, activity: 10 }));
    let all = [hello, credits].into_iter().chain(frames.iter().cloned()).collect();
    let said = Scene::new().play(async |scene| scene.session(all).await);
    let said = said.into_iter().filter_map(|frame| v1::SessionResponse::decode(frame).ok());
    said.flat_map(|frame| frame.items).filter_map(|item| item.kind).collect()
}

fn reply(kind: &ServerKind) -> Option<Bytes> {
    Some(match kind {
        ServerKind::WorkflowTask(task) if task.follows.is_none() => {
            let command =
                |number, kind| v1::Command { number, kind: Some(kind), ..Default::default() };
            let call =
                v1::ScheduleActivity { activity_type: "fetch".to_owned(), ..Default::default() };
            let marker = v1::RecordMarker {
                kind: v1::MarkerKind::RecordedValue.into(),
                result: Some(v1::Payload::default()),
                ..Default::default()
            };
            frame(WorkerKind::TaskCompleted(v1::TaskCompleted {
                task_id: task.task_id,
                run_id: task.run_id.clone(),
                commands: vec![
                    command(1, CommandKind::ScheduleActivity(call)),
                    command(2, CommandKind::StartTimer(v1::StartTimer { duration_us: 1_000 })),
                    command(3, CommandKind::RecordMarker(marker)),
                ],
                ..Default::default()
            }))
        }
        ServerKind::WorkflowTask(task) => frame(WorkerKind::TaskCompleted(v1::TaskCompleted {
            task_id: task.task_id,
            run_id: task.run_id.clone(),
            commands: vec![v1::Command {
                kind: Some(CommandKind::CompleteWorkflow(v1::CompleteWorkflow::default())),
                ..Default::default()
            }],
            ..Default::default()
        })),
        ServerKind::ActivityTask(task) => {
            let token = task.token.clone();
            frame(WorkerKind::ActivityCompleted(v1::ActivityTaskCompleted { token, result: None }))
        }
        _ => return None,
    })
}

fn delimited(frames: impl IntoIterator<Item = Bytes>) -> Vec<u8> {
    let mut seed = Vec::new();
    for frame in frames {
        prost::encode_length_delimiter(frame.len(), &mut seed).expect("a vector grows");
        seed.extend(frame);
    }
    seed
}

fn page_tokens() -> Vec<Vec<u8>> {
    Scene::new().play(async |scene| {
        let list = v1::ListWorkflowsRequest { page_size: 1, ..Default::default() };
        let list: v1::ListWorkflowsResponse = scene.ask(10, &list).await;
        let mut seeds = vec![list.next_page_token.to_vec()];
        for workflow_id in ["closed", "open"] {
            let page = v1::GetWorkflowHistoryRequest {
                workflow_id: workflow_id.to_owned(),
                max_bytes: 1,
                ..Default::default()
            };
            let page: v1::GetWorkflowHistoryResponse = scene.ask(8, &page).await;
            seeds.push(page.next_page_token.to_vec());
            let position = v1::HistoryPosition {
                run_id: run_of(scene, workflow_id).await.to_wire(),
                next_event_id: 1,
                ..Default::default()
            };
            seeds.push(position.encode_to_vec());
        }
        seeds
    })
}

fn connection_bytes() -> Vec<Vec<u8>> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let with = |frames: &[&[u8]]| [&preface[..], &frames.concat()].concat();
    let settings = &[0, 0, 0, 4, 0, 0, 0, 0, 0][..];
    let ping = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8][..];
    let go_away = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..];
    // :method POST, :scheme http, :path /
    let headers = &[0, 0, 3, 1, 4, 0, 0, 0, 1, 0x83, 0x86, 0x84][..];
    let reset = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8][..];
    let data = &[0, 0, 5, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0][..];
    vec![
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        with(&[]),
        with(&[settings, ping]),
        with(&[settings, headers, data]),
        with(&[settings, headers, reset, go_away]),
    ]
}

fn stored_runs(runs: &[Recorded]) -> Vec<Vec<u8>> {
    let commands = draw::commands(3);
    let stored = runs.iter().map(|Recorded { stored, .. }| {
        let mut pending = stored.pending.clone();
        let rows = stored.journal.iter().filter_map(|row| v1::JournalRow::decode(row.clone()).ok());
        let scheduled =
            rows.flat_map(|row| row.records).find_map(|record| match record.attributes {
                Some(Attributes::ActivityScheduled(scheduled)) => Some(scheduled.number),
                _ => None,
            });
        if let Some(number) = scheduled
            && stored.row.workflow_id == "errand-4"
        {
            let token = v1::ActivityToken {
                run_id: crate::targets::engine::run_id().to_wire(),
                number,
                incarnation: 5,
                attempt: 3,
            };
            let row = v1::PendingActivity {
                attempts: 2,
                last_failure: Some(v1::Failure { kind: "Busy".to_owned(), ..Default::default() }),
                heartbeat_details: Some(v1::Payload::default()),
                written_token: Some(token),
                ..Default::default()
            };
            pending.push((number, row.encode_to_vec().into()));
        }
        StoredRun {
            journal: stored.journal.clone(),
            pending: pending
                .into_iter()
                .map(|(number, data)| PendingRow { number, data })
                .collect(),
            requests: stored.row.requests.clone(),
            memo: stored.row.memo.clone(),
            status: stored.row.status as u32 - 1,
            wake_at: stored.row.wake_at.to_column().map_or(0, |at| at.max(1)),
            commands: commands.clone(),
        }
    });
    stored.map(|stored| stored.encode_to_vec()).collect()
}

fn history_texts(runs: &[Recorded]) -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> =
        runs.iter().map(|run| json::to_string(&run.history).into_bytes()).collect();
    let failure =
        v1::Failure { kind: "Busy".to_owned(), stack: "at".to_owned(), ..Default::default() };
    seeds.push(json::to_string(&failure).into_bytes());
    let payload = v1::Payload {
        content_type: "binary/bincode2".to_owned(),
        data: Bytes::from_static(&[0, 255, 7]),
        metadata: [("codec".to_owned(), Bytes::from_static(b"x"))].into(),
    };
    seeds.push(json::to_string(&payload).into_bytes());
    seeds
}

/// Each history as one task, as far as it goes behind each of its completed tasks.
fn workflow_tasks(runs: &[Recorded]) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for run in runs {
        let events = &run.history.events;
        let completed = events.iter().enumerate().filter_map(|(place, event)| {
            matches!(event.attributes, Some(Attributes::WorkflowTaskCompleted(_))).then_some(place)
        });
        for end in completed.chain([events.len()]) {
            seeds.push(task(&events[..end], 99).encode_length_delimited_to_vec());
        }
    }
    seeds
}

fn task(events: &[v1::HistoryEvent], counter: u64) -> v1::WorkflowTask {
    v1::WorkflowTask {
        task_id: Some(v1::TaskId { incarnation: 1, counter }),
        workflow_id: "errand-1".to_owned(),
        run_id: Bytes::from_static(&[1; 16]),
        workflow_type: "errand".to_owned(),
        handed_out_at_us: 1_790_000_000_000_000,
        events: events.to_vec(),
        attempt: 1,
        next_event_id: events.len() as u64 + 1,
        ..Default::default()
    }
}

fn server_frames(runs: &[Recorded]) -> Vec<Vec<u8>> {
    let token = v1::ActivityToken {
        run_id: Bytes::from_static(&[1; 16]),
        number: 2,
        incarnation: 1,
        attempt: 1,
    };
    let text = payload::encode("a", Codec::Json).expect("it is plain data");
    let activity = v1::ActivityTask {
        token: Some(token.clone()),
        activity_type: "fetch".to_owned(),
        arguments: vec![text],
        start_to_close_us: 1_000_000,
        heartbeat_us: 500_000,
        ..Default::default()
    };
    let claim = v1::Claim { slot_from: 0, slot_to: 1_024, incarnation: 1 };
    let (task_id, run_id) =
        (Some(v1::TaskId { incarnation: 1, counter: 1 }), Bytes::from_static(&[1; 16]));
    let mut frames = vec![
        vec![ServerKind::Welcome(welcome())],
        vec![ServerKind::Claim(claim), ServerKind::ActivityTask(activity.clone())],
        vec![
            ServerKind::ActivityTask(activity),
            ServerKind::CancelActivity(v1::CancelActivityTask {
                token: Some(token.clone()),
                reason: v1::CancelReason::Requested.into(),
            }),
            ServerKind::Ack(v1::Ack {
                tasks: task_id.into_iter().collect(),
                activities: vec![token],
            }),
        ],
        vec![
            ServerKind::WorkflowTask(task(&runs[1].history.events[..1], 1)),
            ServerKind::Yield(v1::YieldTask { task_id, run_id: run_id.clone() }),
            ServerKind::Stale(v1::StaleTask { task_id, run_id: run_id.clone() }),
            ServerKind::Evict(v1::EvictRun { run_id }),
            ServerKind::Drain(v1::Drain {}),
        ],
    ];
    for run in runs {
        frames.push(vec![ServerKind::WorkflowTask(task(&run.history.events, 9))]);
    }
    frames
        .into_iter()
        .map(|kinds| {
            let frames = kinds.into_iter().map(|kind| server_frame(kind).encode_to_vec().into());
            delimited(frames)
        })
        .collect()
}

fn payloads() -> Vec<Vec<u8>> {
    let json = [
        "true",
        "-7",
        "\"text\"",
        "null",
        "[1,2,3]",
        "{\"a\":[1]}",
        "[7,\"x\",[1,2,3]]",
        "{\"Ok\":5}",
        "{\"secs\":1,\"nanos\":5}",
        "{\"secs_since_epoch\":1,\"nanos_since_epoch\":5}",
        "{\"id\":\"p\",\"weight\":1.5,\"items\":[[1,\"x\"]],\"note\":null,\"kind\":{\"Paper\":{\"colour\":\"r\"}}}",
        "{\"id\":\"p\",\"weight\":0,\"items\":[],\"note\":null,\"kind\":{\"Nested\":[\"None\"]}}",
    ];
    let bincode: [&[u8]; 6] = [
        &[1],
        &[2, b'o', b'1'],
        &[251, 0xe8, 3],
        &[2, 1, 1, b'x', 0],
        &[253, 255, 255, 255, 255, 255, 255, 255, 255],
        &[1, b'p', 0, 0, 0, 0, 0, 0, 2, 1, 0],
    ];
    let json = json.iter().map(|text| [&[0][..], text.as_bytes()].concat());
    json.chain(bincode.iter().map(|bytes| [&[1][..], bytes].concat())).collect()
}

fn failures() -> Vec<Vec<u8>> {
    let mut failure = v1::Failure { message: "deepest".to_owned(), ..Default::default() };
    let mut seeds = Vec::new();
    for depth in 0..40 {
        let detail = v1::Payload { data: vec![b'd'; depth].into(), ..Default::default() };
        let cause = Some(Box::new(failure));
        failure = v1::Failure {
            kind: "Order::Late".to_owned(),
            message: "m\0".repeat(depth),
            next_delay_us: Some(5),
            details: vec![detail],
            stack: "s".repeat(depth),
            cause,
            ..Default::default()
        };
        if depth % 8 == 0 {
            seeds.push(failure.encode_to_vec());
        }
    }
    seeds
}

fn command_lines() -> Vec<Vec<u8>> {
    [
        "dev\n--data-dir\n/tmp/x",
        "server\n--store\npostgres://u:p@h/d\n--log-format\njson",
        "workflow\nstart\ngreet\n--id\norder-42\n--queue\nq\n--input\n\"Ada\"\n--input\n{\"a\": 1.10}",
        "workflow\nstart\ngreet\n--memo\nnote=\"hi\"\n--execution-timeout\n1h30m\n--run-timeout\n250ms",
        "workflow\nlist\n--status\nrunning\n--limit\n7",
        "workflow\nsignal\norder-42\ngo\n--input\n-5",
        "workflow\nhistory\norder-42\n--run-id\n07070707-0707-0707-0707-070707070707\n--json",
        "workflow\nshow\norder-42\n--address\nlocalhost:7450",
        "workflow\nterminate\norder-42\n--reason\nlate",
        "version\n--json",
    ]
    .map(|line| line.as_bytes().to_vec())
    .into()
}

fn settings() -> Vec<Vec<u8>> {
    [
        "store = \"postgres://onward@db.internal/onward\"\ninsecure = true\n",
        "log_format = 'json'\nlog = 'warn'\ndata_dir = \"/var/lib/onward\"\n",
        "unsafe_allow = true\npg_transaction_pooling = true\n",
        "log = \"\"\"a\nb\"\"\"\n[table]\nx = 1979-05-27T07:32:00Z\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

fn orders_files() -> Vec<Vec<u8>> {
    [
        "W-1,Zoë Brontë,zoe@example.org,\"12 Rue de l'Église, Lyon\",FR,MUG-0301,\"Mug \"\"Best Dad\"\", 0.4 l\",2,25.80,tok_visa,,2,1,,",
        "W-1,A,a@b.c,S,DE,SKU,Item,1,0.01,tok,1,2,3,4,5\r\n\r\n\"never closed,\r\nW-2,A",
        "W-1,A,a@b.c,S,DE,SKU,Item,1,0.01,tok,1,2,3,4,5\nW-1,B,a@b.c,S,DE,SKU,Item,1,0.01,tok,,,,,\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

fn store_urls() -> Vec<Vec<u8>> {
    [
        "postgres://u:s%40cret@h:5432/db?sslmode=require",
        "postgresql:///db?host=/var/run/postgresql&user=u&password=secret",
        "postgres://u:a@b@h",
        "sqlite:///var/lib/a@b.db",
        "sqlite://",
        "memory:",
        "secret",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
