//! Bad input and bad code: a clear error, nothing lost, and the neighbours do not notice.

use std::time::Duration;

use bytes::Bytes;
use onward::{Client, Code, RpcError, WorkflowError, WorkflowHandle};
use onward_proto::{
    PROTOCOL, RequestId,
    v1::{
        self, Command, WorkflowTaskFailureCause as Cause, command, history_event::Attributes,
        server_item, worker_item, worker_service_client::WorkerServiceClient,
    },
};
use onward_system_tests::{
    QUEUE, Server, StoreUrl, WorkerProcess, check, within,
    workflows::{
        GO, calls_many, calls_stray, five_steps, five_steps_result, gets_too_much, grow_old,
        overflows, panics, returns_too_much, sends_too_much, spins,
    },
};
use onward_test_postgres::Cluster;
use tokio::sync::mpsc;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};
use uuid::Uuid;

use crate::Scene;

/// A server and one worker.
struct Stage {
    scene: Scene,
    server: Server,
    worker: WorkerProcess,
    client: Client,
}

impl Stage {
    async fn on_sqlite() -> Self {
        let scene = Scene::new();
        let store = scene.sqlite();
        Self::set(scene, store).await
    }

    async fn on_postgres() -> Self {
        Self::set(Scene::new(), StoreUrl::Postgres(Cluster::shared().create_database())).await
    }

    async fn set(scene: Scene, store: StoreUrl) -> Self {
        let server = Server::start(store, scene.dir()).await;
        let worker = WorkerProcess::start(&server.address(), scene.dir(), "w0");
        let client = server.client();
        Self { scene, server, worker, client }
    }

    /// A run that has nothing to do with what is wrong goes through, on the same worker.
    async fn neighbour(&self) {
        let run = five_steps(&self.client, 7).queue(QUEUE);
        let result = within(60, "a neighbour completes", run).await.unwrap();
        assert_eq!(result, five_steps_result(7));
    }

    /// All is as it should be, and stops in order.
    async fn end(mut self) {
        self.neighbour().await;
        self.server.assert_no_panics();
        self.server.stop().await;
    }
}

/// Waits until the description of a run is as it should be.
async fn described<W: onward::Workflow>(
    handle: &WorkflowHandle<W>,
    what: &str,
    is_so: impl Fn(&v1::DescribeWorkflowResponse) -> bool,
) -> v1::DescribeWorkflowResponse {
    let mut last = None;
    let so = async {
        loop {
            let run = handle.describe().await.unwrap();
            if is_so(&run) {
                return run;
            }
            last = Some(run);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(90), so).await;
    waited.unwrap_or_else(|_| panic!("never: {what}; the run is {last:#?}"))
}

fn is_blocked(run: &v1::DescribeWorkflowResponse) -> bool {
    run.task.as_ref().is_some_and(|task| task.blocked)
}

async fn assert_terminates<W>(handle: &WorkflowHandle<W>)
where
    W: onward::Workflow,
    W::Output: std::fmt::Debug,
{
    handle.terminate("the test is over").await.unwrap();
    let ended = within(30, "a terminated run ends", handle.result()).await;
    assert!(matches!(ended, Err(WorkflowError::Terminated(_))));
    let mut faults = Vec::new();
    check::form(&handle.history().await.unwrap(), &mut |fault| faults.push(fault));
    assert_eq!(faults, [""; 0]);
}

macro_rules! on_both_stores {
    ($($test:ident)*) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Stage::on_sqlite().await).await;
            })*
        }

        mod on_postgres {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Stage::on_postgres().await).await;
            })*
        }
    };
}

on_both_stores! {
    ids_that_are_none
    payloads_that_are_too_large
    a_payload_that_is_large_and_taken
    many_large_activities_in_one_task
    one_activity_more_than_may_be_pending
    bytes_that_are_no_text_and_no_message
    timers_that_are_negative
    types_that_no_worker_has
    a_workflow_that_panics
    a_workflow_that_loops_for_ever
    a_workflow_that_overflows_its_stack
    a_workflow_whose_code_has_changed
    a_refusal_is_not_asked_again
}

fn start(workflow_id: &str) -> v1::StartWorkflowRequest {
    v1::StartWorkflowRequest {
        workflow_id: workflow_id.to_owned(),
        workflow_type: "five_steps".to_owned(),
        task_queue: QUEUE.to_owned(),
        arguments: vec![json("7")],
        request_id: RequestId::from_uuid(Uuid::new_v4()).to_wire(),
        ..Default::default()
    }
}

fn json(text: &str) -> v1::Payload {
    v1::Payload {
        content_type: "json".to_owned(),
        data: text.to_owned().into(),
        ..Default::default()
    }
}

/// Starts a run that the server must refuse; the answer says that nothing has happened.
async fn refused(stage: &Stage, request: v1::StartWorkflowRequest, says: &str) {
    let workflow_id = request.workflow_id.clone();
    let status = stage.client.raw().start_workflow(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains(says), "{says:?} is not in {status}");
    if workflow_id.len() == 1 {
        let handle = stage.client.handle::<five_steps>(workflow_id);
        assert_eq!(handle.describe().await.unwrap_err().code(), Code::NotFound);
    }
}

async fn ids_that_are_none(stage: Stage) {
    stage.neighbour().await;
    refused(&stage, start(""), "workflow_id is empty").await;
    refused(&stage, start("a\0b"), "workflow_id contains the character U+0000").await;
    refused(&stage, start(&"x".repeat(1_001)), "workflow_id is limited to 1000 bytes, got 1001")
        .await;
    let nameless = v1::StartWorkflowRequest { workflow_type: String::new(), ..start("a") };
    refused(&stage, nameless, "workflow_type is empty").await;
    let unasked = v1::StartWorkflowRequest { request_id: Bytes::new(), ..start("a") };
    refused(&stage, unasked, "request").await;
    let past = v1::StartWorkflowRequest { run_timeout_us: -1, ..start("a") };
    refused(&stage, past, "must be from 0").await;
    let mut zero = start("a");
    zero.memo.insert("a\0b".to_owned(), json("1"));
    refused(&stage, zero, "U+0000").await;
    stage.end().await;
}

async fn payloads_that_are_too_large(stage: Stage) {
    let large = |bytes: usize| v1::StartWorkflowRequest {
        arguments: vec![json(&"1".repeat(bytes))],
        ..start("large")
    };
    refused(&stage, large(3 << 20), "is limited to 2097152 bytes, got").await;
    // More than a message may have never gets as far as that.
    let status = stage.client.raw().start_workflow(large(5 << 20)).await.unwrap_err();
    let certain = [Code::InvalidArgument, Code::ResourceExhausted, Code::OutOfRange];
    assert!(certain.contains(&status.code()), "{status}");
    assert!(status.message().contains("4194304"), "{status}");

    let client = &stage.client;
    // With 5 MiB it fits into no message either: it is left out, and the limit goes in its place.
    for (bytes, limit) in [(3 << 20, "2097152"), (5 << 20, "4194304")] {
        let sent = sends_too_much(client, bytes).queue(QUEUE).await.unwrap();
        assert_eq!(sent, "payload_bytes_per_command", "{bytes}");
        let got = gets_too_much(client, bytes).queue(QUEUE).await.unwrap();
        assert!(got.contains(limit) && !got.contains("came through"), "{bytes}: {got}");
        let returned = returns_too_much(client, bytes).queue(QUEUE).await.unwrap_err();
        assert!(returned.to_string().contains("payload_bytes_per_command"), "{returned:?}");
    }
    stage.end().await;
}

async fn a_payload_that_is_large_and_taken(stage: Stage) {
    stage.neighbour().await;
    for (workflow_id, bytes) in [("below", 500 << 10), ("above", 600 << 10)] {
        let arguments = vec![json(&format!("\"{}\"", "x".repeat(bytes)))];
        let request = v1::StartWorkflowRequest { arguments, ..start(workflow_id) };
        stage.client.raw().start_workflow(request).await.unwrap();
    }
    let log = stage.server.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("a large payload")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("above") && told[0].contains("524288"), "{told:?}");
    assert!(!log.contains("xxxx"), "payloads are no business of the log");
    stage.end().await;
}

async fn many_large_activities_in_one_task(stage: Stage) {
    let run = calls_many(&stage.client, 60, 100 << 10).queue(QUEUE);
    let (arrived, refused, _) = within(60, "60 activities of 100 KiB", run).await.unwrap();
    assert_eq!((arrived, refused), (60 * (100 << 10), 0));
    stage.end().await;
}

async fn one_activity_more_than_may_be_pending(stage: Stage) {
    let run = calls_many(&stage.client, 2_001, 1).queue(QUEUE);
    let (arrived, refused, limit) = within(120, "2,001 activities", run).await.unwrap();
    assert_eq!((arrived, refused, limit.as_str()), (2_000, 1, "pending_activities"));
    stage.end().await;
}

/// Sends and receives bytes as they are.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(to, item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = bytes::Buf::remaining(from);
        Ok(Some(bytes::Buf::copy_to_bytes(from, length)))
    }
}

/// A field with this number that holds text, bytes or a message.
fn framed(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut framed = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length > 127 {
        framed.push((length & 127) as u8 | 128);
        length >>= 7;
    }
    framed.push(length as u8);
    framed.extend(bytes);
    framed
}

async fn call(client: &Client, path: &'static str, message: Vec<u8>) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(client.channel());
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let request = tonic::Request::new(Bytes::from(message));
    let answer = grpc.unary(request, PathAndQuery::from_static(path), Raw).await?;
    Ok(answer.into_inner())
}

async fn bytes_that_are_no_text_and_no_message(stage: Stage) {
    stage.neighbour().await;
    let client = &stage.client;
    let start_path = "/onward.v1.ClientService/StartWorkflow";
    // Causes within causes, deeper than any message may be nested.
    let nested = (0..200).fold(Vec::new(), |inner: Vec<u8>, _| framed(6, &inner));
    let bad_text = [framed(2, b"a\xffb"), framed(3, b"five_steps")].concat();
    for (what, path, message) in [
        ("invalid UTF-8", start_path, bad_text),
        ("a wire type that is none", start_path, vec![0x17, 1, 2, 3]),
        ("a length beyond the end", start_path, vec![0x12, 0x7f, b'a']),
        ("rubbish in describe", "/onward.v1.ClientService/DescribeWorkflow", vec![0xff; 64]),
    ] {
        let status = call(client, path, message).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
    }
    // A session that sends what is none ends with that answer, and only that session.
    let session_path = "/onward.v1.WorkerService/Session";
    // SessionRequest.items, WorkerItem.task_failed, TaskFailed.failure.
    let bomb = framed(1, &framed(4, &framed(4, &nested)));
    for message in [vec![0x0a, 0x03, 0x0a, 0x09, 0xff], framed(1, b"\xff"), bomb] {
        let mut grpc = tonic::client::Grpc::new(client.channel());
        grpc.ready().await.unwrap();
        let request = tonic::Request::new(tokio_stream_of(Bytes::from(message)));
        let answered = grpc.streaming(request, PathAndQuery::from_static(session_path), Raw).await;
        let status = match answered {
            Err(status) => status,
            Ok(stream) => stream.into_inner().message().await.unwrap_err(),
        };
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    stage.end().await;
}

/// A stream of one message, which stays open.
fn tokio_stream_of(message: Bytes) -> impl tonic::codegen::tokio_stream::Stream<Item = Bytes> {
    let (sender, receiver) = mpsc::unbounded_channel();
    sender.send(message).unwrap();
    Forever { receiver, _sender: sender }
}

struct Forever<T> {
    receiver: mpsc::UnboundedReceiver<T>,
    _sender: mpsc::UnboundedSender<T>,
}

impl<T> tonic::codegen::tokio_stream::Stream for Forever<T> {
    type Item = T;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        self.receiver.poll_recv(context)
    }
}

/// A worker of a few lines that says what no SDK would.
struct RawWorker {
    items: mpsc::UnboundedSender<v1::SessionRequest>,
    frames: tonic::Streaming<v1::SessionResponse>,
    waiting: Vec<server_item::Kind>,
}

impl RawWorker {
    async fn connect(client: &Client, queue: &str) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let say = |kind| v1::SessionRequest { items: vec![v1::WorkerItem { kind: Some(kind) }] };
        sender
            .send(say(worker_item::Kind::Hello(v1::Hello {
                version: "raw".into(),
                protocol: PROTOCOL,
                task_queue: queue.into(),
                identity: "raw".into(),
                workflow_types: vec!["five_steps".into()],
                ..Default::default()
            })))
            .unwrap();
        let credits = v1::Credits { workflow: 10, activity: 10 };
        sender.send(say(worker_item::Kind::Credits(credits))).unwrap();
        let outgoing = Forever { receiver, _sender: sender.clone() };
        let frames = WorkerServiceClient::new(client.channel())
            .session(outgoing)
            .await
            .unwrap()
            .into_inner();
        Self { items: sender, frames, waiting: Vec::new() }
    }

    async fn task(&mut self) -> v1::WorkflowTask {
        let next = async {
            loop {
                while let Some(kind) = self.waiting.pop() {
                    if let server_item::Kind::WorkflowTask(task) = kind {
                        return task;
                    }
                }
                let frame = self.frames.message().await.unwrap().expect("the session stays open");
                self.waiting.extend(frame.items.into_iter().filter_map(|item| item.kind));
                self.waiting.reverse();
            }
        };
        within(30, "a workflow task", next).await
    }

    fn complete(&self, task: &v1::WorkflowTask, commands: Vec<Command>) {
        let completed = v1::TaskCompleted {
            task_id: task.task_id,
            run_id: task.run_id.clone(),
            commands,
            ..Default::default()
        };
        let kind = Some(worker_item::Kind::TaskCompleted(completed));
        self.items.send(v1::SessionRequest { items: vec![v1::WorkerItem { kind }] }).unwrap();
    }
}

async fn timers_that_are_negative(stage: Stage) {
    stage.neighbour().await;
    let mut worker = RawWorker::connect(&stage.client, "raw").await;
    let request = v1::StartWorkflowRequest { task_queue: "raw".into(), ..start("timers") };
    stage.client.raw().start_workflow(request).await.unwrap();
    let task = worker.task().await;
    let timer = |number, duration_us| Command {
        number,
        kind: Some(command::Kind::StartTimer(v1::StartTimer { duration_us })),
        ..Default::default()
    };
    // The first closes the run, because a sleep has no error to return; the others are never made.
    worker.complete(&task, vec![timer(1, -5), timer(2, i64::MIN), timer(3, i64::MAX)]);
    let handle = stage.client.handle::<five_steps>("timers");
    within(30, "the run fails", handle.result()).await.unwrap_err();
    let events = handle.history().await.unwrap().events;
    let is_timer = |event: &v1::HistoryEvent| {
        matches!(event.attributes, Some(Attributes::TimerStarted(_) | Attributes::TimerFired(_)))
    };
    assert!(!events.iter().any(is_timer), "{events:?}");
    let Some(Attributes::WorkflowExecutionFailed(failed)) = &events.last().unwrap().attributes
    else {
        panic!("{events:?}");
    };
    let limit = failed.refused.as_ref().unwrap();
    assert_eq!((&*limit.name, limit.value), ("timer_duration_us_not_negative", 5));
    stage.end().await;
}

async fn types_that_no_worker_has(mut stage: Stage) {
    stage.neighbour().await;
    let request = v1::StartWorkflowRequest { workflow_type: "nobody".into(), ..start("nobody") };
    stage.client.raw().start_workflow(request).await.unwrap();
    let nobody = stage.client.handle::<five_steps>("nobody");
    let says = |text: &'static str| {
        move |run: &v1::DescribeWorkflowResponse| {
            run.waits_for.iter().any(|sentence| sentence.contains(text))
        }
    };
    let what = "worker w0 has no workflow `nobody`; it has: calls_many,";
    described(&nobody, what, says(what)).await;
    let stray = calls_stray(&stage.client).queue(QUEUE).start().await.unwrap();
    let what = "worker w0 has no activity `stray`; it has: ";
    described(&stray, what, says(what)).await;
    stage.neighbour().await;
    // Nothing is lost: a worker that has it goes on.
    stage.worker = WorkerProcess::start_with(
        &stage.server.address(),
        stage.scene.dir(),
        "w1",
        &["--with-stray"],
    );
    let found = within(60, "the activity finds a worker", stray.result()).await.unwrap();
    assert_eq!(found, "found");
    assert_terminates(&nobody).await;
    stage.end().await;
}

async fn a_workflow_that_panics(stage: Stage) {
    let handle = panics(&stage.client).queue(QUEUE).start().await.unwrap();
    let run = described(&handle, "it is blocked", is_blocked).await;
    let task = run.task.unwrap();
    assert_eq!(task.last_cause(), Cause::Panic);
    assert!(task.last_failure.unwrap().message.contains("this workflow always panics"));
    assert!(run.waits_for[0].contains("panic"), "{:?}", run.waits_for);
    stage.neighbour().await;
    assert_terminates(&handle).await;
    stage.end().await;
}

async fn a_workflow_that_loops_for_ever(stage: Stage) {
    let handle = spins(&stage.client).queue(QUEUE).start().await.unwrap();
    described(&handle, "it is with the worker", |run| {
        run.task.as_ref().is_some_and(|task| task.state() == v1::WorkflowTaskState::InFlight)
    })
    .await;
    stage.neighbour().await;
    let run = described(&handle, "the loop is noticed", |run| {
        run.task.as_ref().is_some_and(|task| task.last_failure.is_some())
    })
    .await;
    assert_eq!(run.task.unwrap().last_cause(), Cause::Stuck, "{:?}", run.waits_for);
    assert_terminates(&handle).await;
    stage.end().await;
}

async fn a_workflow_that_overflows_its_stack(mut stage: Stage) {
    stage.neighbour().await;
    let handle = overflows(&stage.client).queue(QUEUE).start().await.unwrap();
    let run = loop {
        let ended = tokio::select! {
            biased;
            run = described(&handle, "it is blocked", is_blocked) => break run,
            ended = stage.worker.process().ended() => ended,
        };
        assert!(!ended.success(), "a stack that overflows ends the process");
        stage.worker.start_again();
    };
    assert_eq!(run.task.unwrap().last_cause(), Cause::WorkerLost);
    if !stage.worker.process().is_running() {
        stage.worker.start_again();
    }
    assert_terminates(&handle).await;
    stage.end().await;
}

async fn a_workflow_whose_code_has_changed(mut stage: Stage) {
    let handle = grow_old(&stage.client, 4).queue(QUEUE).start().await.unwrap();
    described(&handle, "the first activity has completed", |run| {
        run.waits_for.iter().any(|sentence| sentence.contains("signal"))
    })
    .await;
    stage.worker.kill().await;
    stage.worker = WorkerProcess::start_with(
        &stage.server.address(),
        stage.scene.dir(),
        "new",
        &["--new-code"],
    );
    handle.signal(GO, 5).await.unwrap();
    let run = described(&handle, "it is blocked", is_blocked).await;
    let task = run.task.unwrap();
    assert_eq!(task.last_cause(), Cause::NonDeterminism);
    let report = task.last_failure.unwrap().message;
    assert!(report.contains("noted") && report.contains("workflows.rs"), "{report}");
    let shown = run.waits_for.join("\n");
    assert!(shown.contains("blocked by non-determinism"), "{shown}");
    stage.neighbour().await;

    stage.worker.kill().await;
    stage.worker = WorkerProcess::start(&stage.server.address(), stage.scene.dir(), "old");
    let result = within(90, "the old code goes on", handle.result()).await.unwrap();
    assert_eq!(result, 412 + 5);
    let history = handle.history().await.unwrap();
    let scheduled = history
        .events
        .iter()
        .filter(|event| matches!(event.attributes, Some(Attributes::ActivityScheduled(_))));
    assert_eq!(scheduled.count(), 2, "the new code has left nothing behind");
    stage.end().await;
}

async fn a_refusal_is_not_asked_again(stage: Stage) {
    let long = five_steps(&stage.client, 1).id("x".repeat(1_001)).queue(QUEUE).start();
    let error: RpcError = within(20, "a refusal", long).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(error.message(), "workflow_id is limited to 1000 bytes, got 1001");
    stage.end().await;
}
