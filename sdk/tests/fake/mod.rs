//! A server of tests: it speaks the protocol over pipes in memory, and does what the test says.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use onward::Client;
use onward_proto::{
    PROTOCOL, RunId, Slot,
    v1::{
        self,
        client_service_server::{ClientService, ClientServiceServer},
        server_item::Kind as ServerKind,
        worker_item::Kind as WorkerKind,
        worker_service_server::{WorkerService, WorkerServiceServer},
    },
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

type Answer<T> = Result<Response<T>, Status>;

/// The server's side of one session.
pub struct Session {
    items: VecDeque<WorkerKind>,
    requests: Streaming<v1::SessionRequest>,
    responses: mpsc::UnboundedSender<Result<v1::SessionResponse, Status>>,
}

impl Session {
    /// Sends items in one frame.
    pub fn send(&self, items: impl IntoIterator<Item = ServerKind>) {
        let items =
            items.into_iter().map(|kind| v1::ServerItem { kind: Some(kind) }).collect::<Vec<_>>();
        let _ = self.responses.send(Ok(v1::SessionResponse { items }));
    }

    /// The worker's next item.
    pub async fn next(&mut self) -> WorkerKind {
        self.try_next().await.expect("the stream is open")
    }

    /// The worker's next item, or `None` if it has ended the stream.
    pub async fn try_next(&mut self) -> Option<WorkerKind> {
        while self.items.is_empty() {
            let frame = tokio::time::timeout(Duration::from_secs(20), self.requests.next())
                .await
                .expect("the worker says something")?
                .ok()?;
            self.items.extend(frame.items.into_iter().filter_map(|item| item.kind));
        }
        self.items.pop_front()
    }

    /// The next item that is not a sign of life.
    pub async fn next_news(&mut self) -> WorkerKind {
        loop {
            match self.next().await {
                WorkerKind::Heartbeats(_) => {}
                other => return other,
            }
        }
    }

    /// Says welcome, and takes what a worker says to that: what is in flight, then credits.
    pub async fn welcome(&mut self) -> (v1::Hello, v1::InFlight, v1::Credits) {
        self.welcome_with(welcome_message()).await
    }

    /// Says welcome in these words.
    pub async fn welcome_with(
        &mut self,
        welcome: v1::Welcome,
    ) -> (v1::Hello, v1::InFlight, v1::Credits) {
        let WorkerKind::Hello(hello) = self.next().await else { panic!("no hello") };
        self.send([ServerKind::Welcome(welcome)]);
        let WorkerKind::InFlight(in_flight) = self.next().await else { panic!("no in-flight") };
        // What was sent again comes before the credits; the test sees it afterwards.
        let mut again = VecDeque::new();
        loop {
            match self.next().await {
                WorkerKind::Credits(credits) => {
                    again.append(&mut self.items);
                    self.items = again;
                    return (hello, in_flight, credits);
                }
                other => again.push_back(other),
            }
        }
    }

    /// Ends the stream in order: the worker hears of no error.
    pub fn end(self) {
        drop(self);
    }

    /// Breaks the stream.
    pub fn cut(self) {
        let _ = self.responses.send(Err(Status::unavailable("cut by the test")));
    }
}

pub fn welcome_message() -> v1::Welcome {
    v1::Welcome {
        version: "0.0.1".to_owned(),
        protocol: PROTOCOL,
        node_id: 1,
        silence_limit_us: 600_000,
        max_message_bytes: 4 << 20,
        max_payload_bytes: 2 << 20,
    }
}

pub fn run_id(n: u64, slot: u16) -> RunId {
    RunId::new(1_790_000_000_000, n, Slot::new(slot))
}

pub fn token(run: RunId, number: u32, attempt: u32) -> v1::ActivityToken {
    v1::ActivityToken { run_id: run.to_wire(), number, incarnation: 7, attempt }
}

pub fn activity_task(token: v1::ActivityToken, name: &str, arguments: &[&str]) -> v1::ActivityTask {
    v1::ActivityTask {
        token: Some(token),
        workflow_id: "order-1".to_owned(),
        workflow_type: "order".to_owned(),
        activity_type: name.to_owned(),
        arguments: arguments.iter().map(|text| json(text)).collect(),
        start_to_close_us: 60_000_000,
        namespace: "default".to_owned(),
        ..Default::default()
    }
}

pub fn json(text: &str) -> v1::Payload {
    v1::Payload {
        content_type: "json".to_owned(),
        data: text.to_owned().into(),
        ..Default::default()
    }
}

pub fn task_id(counter: u64) -> v1::TaskId {
    v1::TaskId { incarnation: 7, counter }
}

/// The first task of a run.
pub fn first_task(run: RunId, counter: u64, name: &str, arguments: &[&str]) -> v1::WorkflowTask {
    let arguments = arguments.iter().map(|text| json(text)).collect();
    let started = v1::WorkflowExecutionStarted {
        workflow_type: name.to_owned(),
        task_queue: "test".to_owned(),
        arguments,
        run_id: run.to_wire(),
        attempt: 1,
        seed: vec![7; 32].into(),
        workflow_id: "order-1".to_owned(),
        ..Default::default()
    };
    v1::WorkflowTask {
        task_id: Some(task_id(counter)),
        workflow_id: "order-1".to_owned(),
        run_id: run.to_wire(),
        workflow_type: name.to_owned(),
        handed_out_at_us: 1_790_000_000_000_000,
        events: vec![event(1, v1::history_event::Attributes::WorkflowExecutionStarted(started))],
        attempt: 1,
        next_event_id: 2,
        ..Default::default()
    }
}

pub fn event(id: u64, attributes: v1::history_event::Attributes) -> v1::HistoryEvent {
    v1::HistoryEvent {
        event_id: id,
        time_us: 1_790_000_000_000_000,
        attributes: Some(attributes),
        ..Default::default()
    }
}

/// What clients asked, and what they are told.
#[derive(Default)]
pub struct Script {
    pub starts: Vec<v1::StartWorkflowRequest>,
    pub start_answers: VecDeque<Result<v1::StartWorkflowResponse, Status>>,
    pub executes: Vec<v1::StartWorkflowRequest>,
    pub execute_answers: VecDeque<Result<v1::ExecuteWorkflowResponse, Status>>,
    pub waits: Vec<v1::WaitWorkflowResultRequest>,
    pub wait_answers: VecDeque<Result<v1::WaitWorkflowResultResponse, Status>>,
    pub signals: Vec<v1::SignalWorkflowRequest>,
    pub signal_starts: Vec<v1::SignalWithStartWorkflowRequest>,
    pub signal_start_answers: VecDeque<Result<v1::SignalWithStartWorkflowResponse, Status>>,
    pub history_pages: VecDeque<Result<v1::TaskHistoryResponse, Status>>,
    pub history_reads: Vec<v1::TaskHistoryRequest>,
    pub protocol: Option<u32>,
}

#[derive(Clone)]
struct Service {
    sessions: mpsc::UnboundedSender<Session>,
    script: Arc<Mutex<Script>>,
}

/// A running fake, with a client of it.
pub struct Fake {
    pub client: Client,
    pub script: Arc<Mutex<Script>>,
    /// Whether the server lets anybody connect.
    pub reachable: Arc<AtomicBool>,
    /// How often somebody tried to.
    pub tries: Arc<AtomicU32>,
    sessions: mpsc::UnboundedReceiver<Session>,
}

impl Fake {
    pub fn start() -> Self {
        let (sessions_in, sessions) = mpsc::unbounded_channel();
        let script = Arc::new(Mutex::new(Script::default()));
        let service = Service { sessions: sessions_in, script: Arc::clone(&script) };
        let (pipes_in, pipes) = mpsc::unbounded_channel::<std::io::Result<_>>();
        tokio::spawn(
            Server::builder()
                .add_service(WorkerServiceServer::new(service.clone()))
                .add_service(ClientServiceServer::new(service))
                .serve_with_incoming(UnboundedReceiverStream::new(pipes)),
        );
        let (reachable, tries) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
        let (is_reachable, tried) = (Arc::clone(&reachable), Arc::clone(&tries));
        let client = Client::builder()
            .connector(move || {
                tried.fetch_add(1, Ordering::Relaxed);
                let (ours, theirs) = tokio::io::duplex(1 << 16);
                let sent = if is_reachable.load(Ordering::Relaxed) {
                    pipes_in.send(Ok(theirs)).map_err(std::io::Error::other)
                } else {
                    Err(std::io::ErrorKind::ConnectionRefused.into())
                };
                async move { sent.map(|()| ours) }
            })
            .identity("tester")
            .build()
            .unwrap();
        Self { client, script, reachable, tries, sessions }
    }

    /// The next session that a worker opens.
    pub async fn session(&mut self) -> Session {
        tokio::time::timeout(Duration::from_secs(20), self.sessions.recv())
            .await
            .expect("the worker connects")
            .unwrap()
    }
}

#[tonic::async_trait]
impl WorkerService for Service {
    type SessionStream =
        Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send + 'static>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Answer<Self::SessionStream> {
        let (responses, stream) = mpsc::unbounded_channel();
        let requests = request.into_inner();
        let _ = self.sessions.send(Session { items: VecDeque::new(), requests, responses });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(stream))))
    }

    async fn task_history(
        &self,
        request: Request<v1::TaskHistoryRequest>,
    ) -> Answer<v1::TaskHistoryResponse> {
        let mut script = self.script.lock().unwrap();
        script.history_reads.push(request.into_inner());
        script.history_pages.pop_front().expect("a page is scripted").map(Response::new)
    }
}

#[tonic::async_trait]
impl ClientService for Service {
    async fn get_server_info(
        &self,
        _: Request<v1::GetServerInfoRequest>,
    ) -> Answer<v1::GetServerInfoResponse> {
        let protocol = self.script.lock().unwrap().protocol.unwrap_or(PROTOCOL);
        Ok(Response::new(v1::GetServerInfoResponse {
            version: "0.0.1".to_owned(),
            protocol,
            ..Default::default()
        }))
    }

    async fn start_workflow(
        &self,
        request: Request<v1::StartWorkflowRequest>,
    ) -> Answer<v1::StartWorkflowResponse> {
        let mut script = self.script.lock().unwrap();
        script.starts.push(request.into_inner());
        script.start_answers.pop_front().expect("an answer is scripted").map(Response::new)
    }

    async fn execute_workflow(
        &self,
        request: Request<v1::ExecuteWorkflowRequest>,
    ) -> Answer<v1::ExecuteWorkflowResponse> {
        let mut script = self.script.lock().unwrap();
        script.executes.push(request.into_inner().start.unwrap());
        script.execute_answers.pop_front().expect("an answer is scripted").map(Response::new)
    }

    async fn wait_workflow_result(
        &self,
        request: Request<v1::WaitWorkflowResultRequest>,
    ) -> Answer<v1::WaitWorkflowResultResponse> {
        let mut script = self.script.lock().unwrap();
        script.waits.push(request.into_inner());
        script.wait_answers.pop_front().expect("an answer is scripted").map(Response::new)
    }

    async fn signal_workflow(
        &self,
        request: Request<v1::SignalWorkflowRequest>,
    ) -> Answer<v1::SignalWorkflowResponse> {
        self.script.lock().unwrap().signals.push(request.into_inner());
        Ok(Response::new(v1::SignalWorkflowResponse::default()))
    }

    async fn signal_with_start_workflow(
        &self,
        request: Request<v1::SignalWithStartWorkflowRequest>,
    ) -> Answer<v1::SignalWithStartWorkflowResponse> {
        let mut script = self.script.lock().unwrap();
        script.signal_starts.push(request.into_inner());
        script.signal_start_answers.pop_front().expect("an answer is scripted").map(Response::new)
    }

    async fn request_cancel_workflow(
        &self,
        _: Request<v1::RequestCancelWorkflowRequest>,
    ) -> Answer<v1::RequestCancelWorkflowResponse> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn terminate_workflow(
        &self,
        _: Request<v1::TerminateWorkflowRequest>,
    ) -> Answer<v1::TerminateWorkflowResponse> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn describe_workflow(
        &self,
        _: Request<v1::DescribeWorkflowRequest>,
    ) -> Answer<v1::DescribeWorkflowResponse> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn get_workflow_history(
        &self,
        _: Request<v1::GetWorkflowHistoryRequest>,
    ) -> Answer<v1::GetWorkflowHistoryResponse> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn list_workflows(
        &self,
        _: Request<v1::ListWorkflowsRequest>,
    ) -> Answer<v1::ListWorkflowsResponse> {
        Err(Status::unimplemented("not scripted"))
    }
}
