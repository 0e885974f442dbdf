//! What each command asks a server, and how it shows the answer: against a server that answers by script.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use onward_proto::{
    json,
    v1::{
        client_service_server::{ClientService, ClientServiceServer},
        history_event::Attributes,
        *,
    },
};
use prost::Message;
use support::{onward, stderr, stdout};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

const RUN: [u8; 16] = [7; 16];
const RUN_TEXT: &str = "07070707-0707-0707-0707-070707070707";
const START_US: i64 = 1_790_000_000_000_000;

/// Answers by script and remembers what it was asked.
#[derive(Default)]
struct Script {
    starts: Mutex<Vec<StartWorkflowRequest>>,
    waits: Mutex<Vec<WaitWorkflowResultRequest>>,
    signals: Mutex<Vec<SignalWorkflowRequest>>,
    cancels: Mutex<Vec<RequestCancelWorkflowRequest>>,
    terminates: Mutex<Vec<TerminateWorkflowRequest>>,
    lists: Mutex<Vec<ListWorkflowsRequest>>,
    follows: Mutex<u32>,
    describes: Mutex<u32>,
    protocol: Option<u32>,
}

type Answer<T> = Result<Response<T>, Status>;

fn payload(text: &str) -> Payload {
    Payload {
        content_type: "json".into(),
        data: Bytes::copy_from_slice(text.as_bytes()),
        metadata: BTreeMap::new(),
    }
}

fn outcome(workflow_id: &str) -> WorkflowOutcome {
    match workflow_id {
        "bad" => WorkflowOutcome {
            status: WorkflowStatus::Failed.into(),
            failure: Some(Failure {
                kind: "OrderError::Empty".into(),
                message: "nothing to ship".into(),
                ..Failure::default()
            }),
            ..WorkflowOutcome::default()
        },
        _ => WorkflowOutcome {
            status: WorkflowStatus::Completed.into(),
            result: Some(payload(r#"{"total": 1.10}"#)),
            ..WorkflowOutcome::default()
        },
    }
}

fn info(workflow_id: String) -> WorkflowInfo {
    WorkflowInfo {
        namespace: "default".into(),
        workflow_id,
        run_id: Bytes::from_static(&RUN),
        workflow_type: "order".into(),
        task_queue: "orders".into(),
        status: WorkflowStatus::Running.into(),
        started_at_us: START_US,
        history_events: 3,
        history_bytes: 3_481,
        ..WorkflowInfo::default()
    }
}

fn event(event_id: u64, attributes: Attributes) -> HistoryEvent {
    HistoryEvent {
        event_id,
        time_us: START_US + event_id as i64 * 1_000,
        attributes: Some(attributes),
        ..HistoryEvent::default()
    }
}

/// Four events; the last one closes the run and comes only to those who follow.
fn events() -> Vec<HistoryEvent> {
    vec![
        event(
            1,
            Attributes::WorkflowExecutionStarted(WorkflowExecutionStarted {
                workflow_type: "order".into(),
                task_queue: "orders".into(),
                arguments: vec![payload("42")],
                run_id: Bytes::from_static(&RUN),
                seed: Bytes::from_static(&[9; 32]),
                ..WorkflowExecutionStarted::default()
            }),
        ),
        event(
            2,
            Attributes::WorkflowTaskCompleted(WorkflowTaskCompleted {
                command_events: 1,
                ..Default::default()
            }),
        ),
        event(
            3,
            Attributes::TimerStarted(TimerStarted {
                number: 1,
                duration_us: 5_000_000,
                ..Default::default()
            }),
        ),
        event(
            4,
            Attributes::WorkflowExecutionTerminated(WorkflowExecutionTerminated {
                reason: "enough".into(),
                ..Default::default()
            }),
        ),
    ]
}

#[tonic::async_trait]
impl ClientService for Script {
    async fn get_server_info(
        &self,
        _: Request<GetServerInfoRequest>,
    ) -> Answer<GetServerInfoResponse> {
        Ok(Response::new(GetServerInfoResponse {
            version: "9.9.9".into(),
            protocol: self.protocol.unwrap_or(onward_proto::PROTOCOL),
            ..GetServerInfoResponse::default()
        }))
    }

    async fn start_workflow(
        &self,
        request: Request<StartWorkflowRequest>,
    ) -> Answer<StartWorkflowResponse> {
        let request = request.into_inner();
        let mut starts = self.starts.lock().unwrap();
        starts.push(request);
        match starts.len() {
            1 => Err(Status::unavailable("the lane moves")),
            2 => Ok(Response::new(StartWorkflowResponse {
                run_id: Bytes::from_static(&RUN),
                started: true,
            })),
            _ => Err(Status::already_exists("workflow order-42 is open")),
        }
    }

    async fn execute_workflow(
        &self,
        request: Request<ExecuteWorkflowRequest>,
    ) -> Answer<ExecuteWorkflowResponse> {
        self.starts.lock().unwrap().push(request.into_inner().start.unwrap());
        Ok(Response::new(ExecuteWorkflowResponse {
            run_id: Bytes::from_static(&RUN),
            started: true,
            outcome: None,
        }))
    }

    async fn signal_workflow(
        &self,
        request: Request<SignalWorkflowRequest>,
    ) -> Answer<SignalWorkflowResponse> {
        self.signals.lock().unwrap().push(request.into_inner());
        Ok(Response::new(SignalWorkflowResponse { run_id: Bytes::from_static(&RUN) }))
    }

    async fn signal_with_start_workflow(
        &self,
        _: Request<SignalWithStartWorkflowRequest>,
    ) -> Answer<SignalWithStartWorkflowResponse> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn request_cancel_workflow(
        &self,
        request: Request<RequestCancelWorkflowRequest>,
    ) -> Answer<RequestCancelWorkflowResponse> {
        self.cancels.lock().unwrap().push(request.into_inner());
        Ok(Response::new(RequestCancelWorkflowResponse { run_id: Bytes::from_static(&RUN) }))
    }

    async fn terminate_workflow(
        &self,
        request: Request<TerminateWorkflowRequest>,
    ) -> Answer<TerminateWorkflowResponse> {
        self.terminates.lock().unwrap().push(request.into_inner());
        Ok(Response::new(TerminateWorkflowResponse { run_id: Bytes::from_static(&RUN) }))
    }

    async fn describe_workflow(
        &self,
        request: Request<DescribeWorkflowRequest>,
    ) -> Answer<DescribeWorkflowResponse> {
        let workflow_id = request.into_inner().workflow_id;
        *self.describes.lock().unwrap() += 1;
        if workflow_id == "broken" {
            return Err(Status::data_loss("run 1 is parked: the journal cannot be read"));
        }
        if workflow_id != "order-42" {
            return Err(Status::not_found(format!("workflow {workflow_id} does not exist")));
        }
        Ok(Response::new(DescribeWorkflowResponse {
            info: Some(info(workflow_id)),
            waits_for: vec!["no worker polls queue orders".into(), "timer #1, in 5 s".into()],
            arguments: vec![payload("42")],
            pending_activities: vec![PendingActivityInfo {
                number: 2,
                activity_type: "charge".into(),
                task_queue: "orders".into(),
                state: PendingActivityState::BackingOff.into(),
                attempt: 3,
                last_failure: Some(Failure {
                    message: "card \x1b[31mdeclined".into(),
                    ..Failure::default()
                }),
                scheduled_at_us: START_US,
                next_attempt_at_us: START_US,
                ..PendingActivityInfo::default()
            }],
            pending_timers: vec![PendingTimerInfo {
                number: 1,
                fire_at_us: START_US,
                ..PendingTimerInfo::default()
            }],
            inbox: vec![HistoryEvent {
                event_id: 0,
                ..event(
                    0,
                    Attributes::SignalReceived(SignalReceived {
                        signal_name: "approval".into(),
                        arguments: vec![payload("true")],
                        ..SignalReceived::default()
                    }),
                )
            }],
            task: Some(WorkflowTaskInfo {
                state: WorkflowTaskState::Queued.into(),
                attempt: 4,
                blocked: true,
                last_failure: Some(Failure {
                    message: "expected timer\nfound activity".into(),
                    ..Failure::default()
                }),
                last_cause: WorkflowTaskFailureCause::NonDeterminism.into(),
                ..WorkflowTaskInfo::default()
            }),
            ..DescribeWorkflowResponse::default()
        }))
    }

    async fn get_workflow_history(
        &self,
        request: Request<GetWorkflowHistoryRequest>,
    ) -> Answer<GetWorkflowHistoryResponse> {
        let request = request.into_inner();
        let from = request.page_token.first().map_or(0, |&from| usize::from(from));
        let page = |range: std::ops::Range<usize>, at_end, next: &'static [u8]| {
            Ok(Response::new(GetWorkflowHistoryResponse {
                events: events()[range].to_vec(),
                next_page_token: Bytes::from_static(next),
                at_end,
                run_id: Bytes::from_static(&RUN),
            }))
        };
        match from {
            0 => page(0..2, false, &[2]),
            2 => page(2..3, true, &[3]),
            // The first wait ends without news.
            3 if *self.follows.lock().unwrap() == 0 => {
                *self.follows.lock().unwrap() += 1;
                page(3..3, true, &[3])
            }
            _ => page(3..4, true, &[]),
        }
    }

    async fn wait_workflow_result(
        &self,
        request: Request<WaitWorkflowResultRequest>,
    ) -> Answer<WaitWorkflowResultResponse> {
        let request = request.into_inner();
        let mut waits = self.waits.lock().unwrap();
        waits.push(request.clone());
        let outcome = (waits.len() > 1).then(|| outcome(&request.workflow_id));
        Ok(Response::new(WaitWorkflowResultResponse { run_id: Bytes::from_static(&RUN), outcome }))
    }

    async fn list_workflows(
        &self,
        request: Request<ListWorkflowsRequest>,
    ) -> Answer<ListWorkflowsResponse> {
        const ALL: usize = 2_500;
        let request = request.into_inner();
        let from: usize = str::from_utf8(&request.page_token).unwrap().parse().unwrap_or(0);
        let to = (from + request.page_size as usize).min(ALL);
        self.lists.lock().unwrap().push(request);
        Ok(Response::new(ListWorkflowsResponse {
            workflows: (from..to).map(|n| info(format!("order-{n}"))).collect(),
            next_page_token: if to < ALL { to.to_string().into() } else { Bytes::new() },
        }))
    }
}

/// A server by script on a thread of its own; it ends with the test's process.
struct Fake {
    script: Arc<Script>,
    address: String,
}

impl Fake {
    fn start(script: Script) -> Self {
        let script = Arc::new(script);
        let served = script.clone();
        let (send, receive) = std::sync::mpsc::channel::<SocketAddr>();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
                send.send(incoming.local_addr().unwrap()).unwrap();
                tonic::transport::Server::builder()
                    .add_service(ClientServiceServer::from_arc(served))
                    .serve_with_incoming(incoming)
                    .await
                    .unwrap();
            });
        });
        let address = format!("http://{}", receive.recv().unwrap());
        Self { script, address }
    }

    fn run(&self, args: &[&str]) -> Output {
        onward().arg("workflow").args(args).env("ONWARD_ADDRESS", &self.address).output().unwrap()
    }

    /// Runs a command that must succeed, and hands over what it printed.
    fn prints(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        stdout(&output).to_owned()
    }

    fn prints_json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.prints(args)).unwrap()
    }
}

#[test]
fn a_start_is_asked_again_under_the_same_request_id() {
    let fake = Fake::start(Script::default());
    let args = [
        "start",
        "order",
        "--id",
        "order-42",
        "--queue",
        "orders",
        "--input",
        "-5",
        "--input",
        r#"{"a": 1}"#,
        "--memo",
        "note=\"hi\"",
        "--run-timeout",
        "1h30m",
        "--reuse",
        "reject",
        "--conflict",
        "use-existing",
        "--namespace",
        "shop",
    ];
    assert_eq!(fake.prints(&args), format!("started order-42, run {RUN_TEXT}\n"));

    let starts = fake.script.starts.lock().unwrap().clone();
    assert_eq!(starts.len(), 2, "the first answer was lost");
    assert_eq!(starts[0], starts[1]);
    let start = &starts[0];
    assert_eq!(start.request_id.len(), 16);
    assert_eq!((start.workflow_id.as_str(), start.workflow_type.as_str()), ("order-42", "order"));
    assert_eq!((start.namespace.as_str(), start.task_queue.as_str()), ("shop", "orders"));
    assert_eq!(start.arguments, [payload("-5"), payload(r#"{"a": 1}"#)]);
    assert_eq!(start.memo["note"], payload("\"hi\""));
    assert_eq!((start.run_timeout_us, start.execution_timeout_us), (5_400_000_000, 0));
    assert_eq!(start.id_reuse_policy(), IdReusePolicy::Reject);
    assert_eq!(start.id_conflict_policy(), IdConflictPolicy::UseExisting);
    assert!(start.identity.starts_with("cli@"), "{}", start.identity);
}

#[test]
fn a_refusal_is_one_line_and_is_not_asked_again() {
    let fake = Fake::start(Script::default());
    fake.prints(&["start", "order"]);
    let output = fake.run(&["start", "order", "--id", "order-42"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "workflow order-42 is open\n");
    assert_eq!(fake.script.starts.lock().unwrap().len(), 3);
}

#[test]
fn execute_waits_on_and_prints_only_the_result() {
    for args in
        [&["execute", "order", "--id", "good"][..], &["start", "order", "--id", "good", "--wait"]]
    {
        let fake = Fake::start(Script::default());
        assert_eq!(fake.prints(args), "{\"total\": 1.10}\n");
        let waits = fake.script.waits.lock().unwrap();
        assert_eq!(waits.len(), 2, "the first wait ended without an outcome");
        assert!(waits.iter().all(|wait| wait.run_id[..] == RUN));
    }
}

#[test]
fn a_workflow_that_fails_exits_with_3() {
    let fake = Fake::start(Script::default());
    let output = fake.run(&["result", "bad"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(stderr(&output), "workflow bad failed: OrderError::Empty: nothing to ship\n");
    assert_eq!(stdout(&output), "");
    let waits = fake.script.waits.lock().unwrap().clone();
    assert_eq!(
        (waits[0].run_id.len(), &waits[1].run_id[..]),
        (0, &RUN[..]),
        "it stays with the run it found"
    );

    let output = fake.run(&["result", "bad", "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let ended: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ended["run_id"], RUN_TEXT);
    assert_eq!(ended["outcome"]["status"], "failed");
    assert_eq!(ended["outcome"]["failure"]["kind"], "OrderError::Empty");
    assert_eq!(stderr(&output), "");

    let ended = fake.prints_json(&["result", "good", "--json"]);
    assert_eq!(ended["outcome"]["result"]["total"], 1.10);
}

#[test]
fn signal_cancel_and_terminate_say_whom_they_reached() {
    let fake = Fake::start(Script::default());
    assert_eq!(
        fake.prints(&["signal", "order-42", "approval", "--input", "true", "--run-id", RUN_TEXT]),
        format!("sent approval to order-42, run {RUN_TEXT}\n")
    );
    let signal = fake.script.signals.lock().unwrap()[0].clone();
    assert_eq!((signal.signal_name.as_str(), &signal.run_id[..]), ("approval", &RUN[..]));
    assert_eq!(signal.arguments, [payload("true")]);

    assert_eq!(
        fake.prints(&["cancel", "order-42"]),
        format!("asked to stop: order-42, run {RUN_TEXT}\n")
    );
    let cancel = fake.script.cancels.lock().unwrap()[0].clone();
    assert_eq!((cancel.workflow_id.as_str(), cancel.run_id.len()), ("order-42", 0));

    let reached = fake.prints_json(&["terminate", "order-42", "--reason", "enough", "--json"]);
    assert_eq!(reached, serde_json::json!({"workflow_id": "order-42", "run_id": RUN_TEXT}));
    let terminate = fake.script.terminates.lock().unwrap()[0].clone();
    assert_eq!(terminate.reason, "enough");

    let ids = [signal.request_id, cancel.request_id, terminate.request_id];
    assert!(ids.iter().all(|id| id.len() == 16) && ids[0] != ids[1] && ids[1] != ids[2]);
}

#[test]
fn a_list_pages_to_its_limit() {
    let fake = Fake::start(Script::default());
    let output = fake.run(&["list", "--limit", "2", "--status", "timed-out"]);
    let words: Vec<Vec<_>> = stdout(&output)
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect())
        .collect();
    assert_eq!(words.len(), 3, "{}", stdout(&output));
    assert_eq!(words[0], ["STATUS", "WORKFLOW ID", "TYPE", "QUEUE", "STARTED", "TOOK", "RUN ID"]);
    assert_eq!(words[1][..4], ["running", "order-0", "order", "orders"]);
    assert_eq!(words[2][1], "order-1");
    assert!(
        stdout(&output).contains(RUN_TEXT) && stdout(&output).contains("2026-09-21 14:13:20 UTC")
    );
    assert_eq!(stderr(&output), "these are the newest 2; --limit 0 lists all\n");
    let list = fake.script.lists.lock().unwrap()[0].clone();
    assert_eq!((list.page_size, list.status()), (2, WorkflowStatus::TimedOut));

    let all = fake.prints_json(&["list", "--limit", "0", "--json"]);
    assert_eq!(all["workflows"].as_array().unwrap().len(), 2_500);
    assert_eq!(all["workflows"][2_499]["workflow_id"], "order-2499");
    assert_eq!(all["workflows"][0]["started_at"], "2026-09-21T14:13:20.000000Z");
    assert_eq!(all["workflows"][0]["status"], "running");
    assert_eq!(all["more"], false);
    let some = fake.prints_json(&["list", "--limit", "1200", "--json"]);
    assert_eq!((some["workflows"].as_array().unwrap().len(), &some["more"]), (1_200, &true.into()));
}

#[test]
fn a_list_whose_reader_has_gone_ends_quietly() {
    let fake = Fake::start(Script::default());
    for args in [&["list", "--limit", "0"][..], &["list", "--limit", "0", "--json"]] {
        let mut child = onward()
            .arg("workflow")
            .args(args)
            .env("ONWARD_ADDRESS", &fake.address)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // What `head -1` does. The list is longer than a pipe holds.
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(!first.is_empty());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn show_says_first_what_a_run_waits_for() {
    let fake = Fake::start(Script::default());
    let text = fake.prints(&["show", "order-42"]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "order-42  running");
    assert_eq!(lines[1], "  waits for  no worker polls queue orders");
    assert_eq!(lines[2], "             timer #1, in 5 s");
    for part in [
        "  type       order(42)\n",
        "  queue      orders\n",
        &format!("  run        {RUN_TEXT}\n"),
        "  started    2026-09-21 14:13:20 UTC, ",
        "  history    3 events, 3.3 KiB\n",
        "  task       queued, attempt 4, blocked\n",
        "Last failure of its workflow task\n  non determinism\n  expected timer\n  found activity\n",
        "card \\u{1b}[31mdeclined",
        "approval(true)",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert!(!text.contains('\x1b'), "colours belong on terminals: {text}");

    let json = fake.prints_json(&["show", "order-42", "--json"]);
    assert_eq!(json["waits_for"][0], "no worker polls queue orders");
    assert_eq!(json["pending_activities"][0]["state"], "backing_off");
    assert_eq!(json["arguments"], serde_json::json!([42]));
}

#[test]
fn an_unknown_workflow_is_named() {
    let fake = Fake::start(Script::default());
    for args in [&["show", "order-7"][..], &["show", "order-7", "--json"]] {
        let output = fake.run(args);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!((stderr(&output), stdout(&output)), ("workflow order-7 does not exist\n", ""));
    }
}

#[test]
fn a_run_that_cannot_be_read_is_told_at_once() {
    let fake = Fake::start(Script::default());
    let output = fake.run(&["show", "broken"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "run 1 is parked: the journal cannot be read\n");
    assert_eq!(*fake.script.describes.lock().unwrap(), 1, "nobody asks again");
}

#[test]
fn a_history_ends_where_it_ends_and_follows_when_asked() {
    let fake = Fake::start(Script::default());
    let text = fake.prints(&["history", "order-42"]);
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            "    1  2026-09-21 14:13:20.001 UTC  WorkflowExecutionStarted          order(42), on queue orders",
            "    2  2026-09-21 14:13:20.002 UTC  WorkflowTaskCompleted             took 0 facts, gave 1 command",
            "    3  2026-09-21 14:13:20.003 UTC  TimerStarted                      #1 5 s",
        ]
    );
    let text = fake.prints(&["history", "order-42", "--follow"]);
    assert_eq!(text.lines().count(), 4);
    assert!(text.ends_with("WorkflowExecutionTerminated       enough\n"), "{text}");
    assert_eq!(*fake.script.follows.lock().unwrap(), 1);
}

#[test]
fn a_saved_history_is_the_history() {
    let fake = Fake::start(Script::default());
    let expected = History { events: events() };
    let text = fake.prints(&["history", "order-42", "--follow", "--json"]);
    assert_eq!(json::from_str::<History>(&text).unwrap(), expected);
    assert_eq!(text.lines().count(), 6, "one event a line: {text}");

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("order-42.history");
    let output = fake.run(&["history", "order-42", "--follow", "--output", path.to_str().unwrap()]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), ""));
    assert_eq!(History::decode(&std::fs::read(&path).unwrap()[..]).unwrap(), expected);
}

#[test]
fn another_protocol_is_refused_with_both_versions() {
    let fake = Fake::start(Script { protocol: Some(99), ..Script::default() });
    let output = fake.run(&["list"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains(env!("CARGO_PKG_VERSION")) && text.contains("9.9.9"), "{text}");
    assert!(text.contains("protocol 99"), "{text}");
}
