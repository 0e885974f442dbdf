//! A server in this process, a raw client, and a worker that says only what a test tells it to.

use std::{net::SocketAddr, time::Duration};

use onward_proto::{
    PROTOCOL,
    v1::{
        self, Command, HistoryEvent, Payload, SessionRequest, SessionResponse, WorkerItem,
        client_service_client::ClientServiceClient, history_event::Attributes, server_item,
        worker_item, worker_service_client::WorkerServiceClient,
    },
};
use onward_server::{Config, Server, StoreConfig};
use sqlx::Connection as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use uuid::Uuid;

/// Waits that only fail a test: nothing is supposed to take so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    url: String,
    http: Option<SocketAddr>,
    pub(crate) store: String,
    memory: usize,
    _dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl World {
    pub(crate) async fn sqlite() -> Self {
        let config = Config::new(StoreConfig::new(""));
        Self::with_memory(config.cache_bytes.max(config.waiting_bytes)).await
    }

    /// A server that keeps so many bytes of idle runs in memory, and of waiting ones.
    pub(crate) async fn with_memory(memory: usize) -> Self {
        // ONWARD_LOG shows what the server says; a second test finds the subscriber there.
        drop(
            tracing_subscriber::fmt()
                .with_env_filter(tracing_subscriber::EnvFilter::from_env("ONWARD_LOG"))
                .with_test_writer()
                .try_init(),
        );
        let dir = tempfile::tempdir().unwrap();
        let store = format!("sqlite://{}", dir.path().join("onward.db").display());
        let (url, http) = (String::new(), None);
        let mut world = Self { url, http, store, memory, _dir: dir, stop: None, served: None };
        world.start().await;
        world
    }

    /// Starts the server on what the store has.
    pub(crate) async fn start(&mut self) {
        let mut config = Config::new(StoreConfig::new(&self.store));
        config.listen = ([127, 0, 0, 1], 0).into();
        config.http_listen = Some(([127, 0, 0, 1], 0).into());
        config.cache_bytes = self.memory;
        config.waiting_bytes = self.memory;
        let server = Server::bind(config).await.unwrap();
        self.url = format!("http://{}", server.grpc_addr());
        self.http = server.http_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        self.stop = Some(stop);
        self.served = Some(tokio::spawn(async move {
            let stopped = async move { drop(stopped.await) };
            server.serve(stopped).await.unwrap();
        }));
    }

    /// Ends the server in order and starts it again on the same store.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    /// Ends the server in order.
    pub(crate) async fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.served.take().unwrap().await.unwrap();
    }

    /// Does something to the store behind a stopped server's back.
    pub(crate) async fn tamper(&self, statement: &'static str) {
        let mut connection = sqlx::SqliteConnection::connect(&self.store).await.unwrap();
        sqlx::query(statement).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    /// What a metric without labels stands at.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(self.http.unwrap()).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(self.url.clone()).unwrap().connect().await.unwrap()
    }

    /// A client, once all of the server's lanes have loaded.
    pub(crate) async fn client(&self) -> ClientServiceClient<Channel> {
        client_of(self.channel().await).await
    }

    pub(crate) async fn worker(&self) -> RawWorker {
        RawWorker::connect(self.channel().await, 10, 10).await
    }
}

/// A client of the server at the other end, once all of its lanes have loaded.
pub(crate) async fn client_of(channel: Channel) -> ClientServiceClient<Channel> {
    let mut client = ClientServiceClient::new(channel);
    // So many ids that every lane has some of them.
    for id in 0..64 {
        let request = describe(&format!("is anybody there? {id}"));
        loop {
            match client.describe_workflow(request.clone()).await.unwrap_err().code() {
                tonic::Code::NotFound => break,
                tonic::Code::Unavailable => tokio::time::sleep(Duration::from_millis(5)).await,
                other => panic!("{other}"),
            }
        }
    }
    client
}

pub(crate) struct RawWorker {
    /// The first word of the server.
    pub(crate) welcome: v1::Welcome,
    items: mpsc::Sender<SessionRequest>,
    answers: Streaming<SessionResponse>,
    waiting: std::collections::VecDeque<server_item::Kind>,
    pub(crate) calls: WorkerServiceClient<Channel>,
}

impl RawWorker {
    pub(crate) async fn connect(channel: Channel, workflow: u32, activity: u32) -> Self {
        let (items, receiver) = mpsc::channel(64);
        let hello = worker_item::Kind::Hello(v1::Hello {
            version: "test".to_owned(),
            protocol: PROTOCOL,
            task_queue: "q".to_owned(),
            identity: "raw worker".to_owned(),
            build_id: "b1".to_owned(),
            workflow_types: vec!["w".to_owned()],
            activity_types: vec!["a".to_owned()],
            cached_workflows: 10,
            ..v1::Hello::default()
        });
        items.send(request(hello)).await.unwrap();
        let mut calls = WorkerServiceClient::new(channel);
        let answers = calls.session(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let (welcome, waiting) = (v1::Welcome::default(), std::collections::VecDeque::new());
        let mut worker = Self { welcome, items, answers, waiting, calls };
        let server_item::Kind::Welcome(welcome) = worker.next().await else { panic!("no welcome") };
        worker.welcome = welcome;
        worker.say(worker_item::Kind::Credits(v1::Credits { workflow, activity })).await;
        worker
    }

    pub(crate) async fn say(&self, item: worker_item::Kind) {
        self.items.send(request(item)).await.unwrap();
    }

    /// The next item, whatever it is.
    pub(crate) async fn next(&mut self) -> server_item::Kind {
        loop {
            if let Some(item) = self.waiting.pop_front() {
                return item;
            }
            let message = tokio::time::timeout(PATIENCE, self.answers.message())
                .await
                .expect("the server says something")
                .unwrap()
                .expect("the session goes on");
            self.waiting.extend(message.items.into_iter().filter_map(|item| item.kind));
        }
    }

    /// The next workflow task; acks and claims are passed over.
    pub(crate) async fn task(&mut self) -> v1::WorkflowTask {
        loop {
            if let server_item::Kind::WorkflowTask(task) = self.next().await {
                return task;
            }
        }
    }

    pub(crate) async fn activity(&mut self) -> v1::ActivityTask {
        loop {
            if let server_item::Kind::ActivityTask(task) = self.next().await {
                return task;
            }
        }
    }

    /// Waits until the completion of a task is acked.
    pub(crate) async fn acked(&mut self, task: &v1::WorkflowTask) {
        loop {
            if let server_item::Kind::Ack(ack) = self.next().await
                && ack.tasks.contains(&task.task_id.unwrap())
            {
                return;
            }
        }
    }

    pub(crate) async fn complete(&self, task: &v1::WorkflowTask, commands: Vec<Command>) {
        self.say(worker_item::Kind::TaskCompleted(v1::TaskCompleted {
            task_id: task.task_id,
            run_id: task.run_id.clone(),
            commands,
            ..v1::TaskCompleted::default()
        }))
        .await;
    }

    /// Completes a task with each command in a part of its own.
    pub(crate) async fn complete_in_parts(&self, task: &v1::WorkflowTask, commands: Vec<Command>) {
        let parts = commands.len() as u32;
        for (command, part) in commands.into_iter().zip(0..) {
            self.say(worker_item::Kind::TaskCompleted(v1::TaskCompleted {
                task_id: task.task_id,
                run_id: task.run_id.clone(),
                commands: vec![command],
                part,
                parts,
                ..v1::TaskCompleted::default()
            }))
            .await;
        }
    }

    /// Fails a task, as code does that was deployed too early.
    pub(crate) async fn fail(&self, task: &v1::WorkflowTask) {
        self.say(worker_item::Kind::TaskFailed(v1::TaskFailed {
            task_id: task.task_id,
            run_id: task.run_id.clone(),
            cause: v1::WorkflowTaskFailureCause::Panic.into(),
            failure: Some(v1::Failure { message: "bang".into(), ..v1::Failure::default() }),
        }))
        .await;
    }

    pub(crate) async fn need_history(&self, task: &v1::WorkflowTask) {
        self.say(worker_item::Kind::NeedHistory(v1::NeedHistory {
            task_id: task.task_id,
            run_id: task.run_id.clone(),
        }))
        .await;
    }

    /// What a task came with, and what it only points to.
    pub(crate) async fn whole_history(&mut self, task: &v1::WorkflowTask) -> Vec<HistoryEvent> {
        let mut events = task.events.clone();
        if !task.next_position.is_empty() {
            events.extend(self.task_history_from(task, task.next_position.clone()).await);
        }
        events
    }

    /// A task's history from event 1, apart from the session.
    pub(crate) async fn task_history(&mut self, task: &v1::WorkflowTask) -> Vec<HistoryEvent> {
        self.task_history_from(task, bytes::Bytes::new()).await
    }

    async fn task_history_from(
        &mut self,
        task: &v1::WorkflowTask,
        mut position: bytes::Bytes,
    ) -> Vec<HistoryEvent> {
        let mut events = Vec::new();
        loop {
            let request = v1::TaskHistoryRequest { position, ..task_history_of(task) };
            let page = self.calls.task_history(request).await.unwrap().into_inner();
            events.extend(page.events);
            position = page.next_position;
            if position.is_empty() {
                return events;
            }
        }
    }

    pub(crate) async fn complete_activity(&self, task: &v1::ActivityTask, result: &str) {
        self.say(worker_item::Kind::ActivityCompleted(v1::ActivityTaskCompleted {
            token: task.token.clone(),
            result: Some(payload(result)),
        }))
        .await;
    }

    /// Fails an attempt, which is to be repeated after that time.
    pub(crate) async fn fail_activity(&self, task: &v1::ActivityTask, next_delay: Duration) {
        self.say(worker_item::Kind::ActivityFailed(v1::ActivityTaskFailed {
            token: task.token.clone(),
            failure: Some(v1::Failure {
                kind: "Busy".to_owned(),
                next_delay_us: Some(next_delay.as_micros() as i64),
                ..v1::Failure::default()
            }),
        }))
        .await;
    }
}

/// Asks for a task's history, from event 1 on.
pub(crate) fn task_history_of(task: &v1::WorkflowTask) -> v1::TaskHistoryRequest {
    v1::TaskHistoryRequest {
        task_id: task.task_id,
        run_id: task.run_id.clone(),
        ..v1::TaskHistoryRequest::default()
    }
}

fn request(item: worker_item::Kind) -> SessionRequest {
    SessionRequest { items: vec![WorkerItem { kind: Some(item) }] }
}

pub(crate) fn payload(text: &str) -> Payload {
    Payload {
        content_type: "json".to_owned(),
        data: format!("{text:?}").into(),
        ..Payload::default()
    }
}

pub(crate) fn start(workflow_id: &str) -> v1::StartWorkflowRequest {
    v1::StartWorkflowRequest {
        workflow_id: workflow_id.to_owned(),
        workflow_type: "w".to_owned(),
        task_queue: "q".to_owned(),
        arguments: vec![payload("in")],
        request_id: request_id(),
        ..v1::StartWorkflowRequest::default()
    }
}

pub(crate) fn describe(workflow_id: &str) -> v1::DescribeWorkflowRequest {
    v1::DescribeWorkflowRequest {
        workflow_id: workflow_id.to_owned(),
        ..v1::DescribeWorkflowRequest::default()
    }
}

/// The signal `go`, under a new request id.
pub(crate) fn signal(workflow_id: &str) -> v1::SignalWorkflowRequest {
    v1::SignalWorkflowRequest {
        workflow_id: workflow_id.to_owned(),
        signal_name: "go".to_owned(),
        request_id: request_id(),
        ..v1::SignalWorkflowRequest::default()
    }
}

pub(crate) fn terminate(workflow_id: &str) -> v1::TerminateWorkflowRequest {
    v1::TerminateWorkflowRequest {
        workflow_id: workflow_id.to_owned(),
        request_id: request_id(),
        ..v1::TerminateWorkflowRequest::default()
    }
}

pub(crate) fn request_id() -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(Uuid::new_v4().as_bytes())
}

pub(crate) fn call_activity(number: u32) -> Command {
    Command {
        number,
        kind: Some(v1::command::Kind::ScheduleActivity(v1::ScheduleActivity {
            activity_type: "a".to_owned(),
            arguments: vec![payload("in")],
            ..v1::ScheduleActivity::default()
        })),
        ..Command::default()
    }
}

pub(crate) fn start_timer(number: u32, duration: Duration) -> Command {
    Command {
        number,
        kind: Some(v1::command::Kind::StartTimer(v1::StartTimer {
            duration_us: duration.as_micros() as i64,
        })),
        ..Command::default()
    }
}

pub(crate) fn record_value(number: u32, bytes: usize) -> Command {
    Command {
        number,
        kind: Some(v1::command::Kind::RecordMarker(v1::RecordMarker {
            kind: v1::MarkerKind::RecordedValue.into(),
            result: Some(v1::Payload { data: vec![b'x'; bytes].into(), ..v1::Payload::default() }),
            ..v1::RecordMarker::default()
        })),
        ..Command::default()
    }
}

pub(crate) fn complete_workflow(result: &str) -> Command {
    Command {
        kind: Some(v1::command::Kind::CompleteWorkflow(v1::CompleteWorkflow {
            result: Some(payload(result)),
            unread_signals: Vec::new(),
        })),
        ..Command::default()
    }
}

/// All events of a run, page by page.
pub(crate) async fn history(
    client: &mut ClientServiceClient<Channel>,
    workflow_id: &str,
) -> Vec<v1::HistoryEvent> {
    let mut events = Vec::new();
    let mut page_token = bytes::Bytes::new();
    loop {
        let page = client
            .get_workflow_history(v1::GetWorkflowHistoryRequest {
                workflow_id: workflow_id.to_owned(),
                page_token,
                max_bytes: 200,
                ..v1::GetWorkflowHistoryRequest::default()
            })
            .await
            .unwrap()
            .into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() || page.at_end {
            return events;
        }
    }
}

/// The kinds of events, in order.
pub(crate) fn kinds(events: &[v1::HistoryEvent]) -> Vec<&'static str> {
    events
        .iter()
        .map(|event| match event.attributes.as_ref().unwrap() {
            Attributes::WorkflowExecutionStarted(_) => "started",
            Attributes::WorkflowTaskCompleted(_) => "task",
            Attributes::WorkflowTaskFailed(_) => "task-failed",
            Attributes::ActivityScheduled(_) => "scheduled",
            Attributes::ActivityCompleted(_) => "done",
            Attributes::MarkerRecorded(_) => "marker",
            Attributes::TimerStarted(_) => "timer",
            Attributes::TimerFired(_) => "fired",
            Attributes::SignalReceived(_) => "signal",
            Attributes::WorkflowExecutionCompleted(_) => "completed",
            Attributes::WorkflowExecutionTerminated(_) => "terminated",
            other => panic!("{other:?}"),
        })
        .collect()
}
