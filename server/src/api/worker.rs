//! Workers' sessions: one stream each, tasks one way, completions the other.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use onward_proto::{
    PROTOCOL, RunId,
    v1::{
        self, Claim, Command, Hello, SessionRequest, SessionResponse, TaskCompleted, Welcome,
        server_item, worker_item, worker_service_server::WorkerService,
    },
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::{convert, history};
use crate::{
    BuildInfo,
    dispatch::{Kind, Session, SessionInfo},
    engine::{Input, SessionId, TaskCompletion, TaskId, Token, Worker},
    shard::{
        Node,
        message::{FromWorker, Mail},
    },
};

/// A session without an item for so long is dead.
const SILENCE: Duration = Duration::from_secs(10);
/// Largest message, both ways.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;
/// Largest completion, all parts together.
const MAX_COMPLETION: usize = 32 << 20;

/// The worker service of a node.
pub(crate) struct WorkerApi {
    node: Arc<Node>,
    build: BuildInfo,
    next_session: AtomicU64,
}

impl WorkerApi {
    pub(crate) fn new(node: Arc<Node>, build: BuildInfo) -> Self {
        Self { node, build, next_session: AtomicU64::new(1) }
    }

    fn open(&self, hello: Hello) -> Result<Arc<Session>, Status> {
        let limits = &self.node.limits;
        if hello.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "worker {} speaks protocol {}, server {} speaks protocol {PROTOCOL}",
                hello.version, hello.protocol, self.build.version
            )));
        }
        let (namespace_id, namespace) = convert::namespace(&hello.namespace)?;
        convert::required("task_queue", &hello.task_queue, limits)?;
        convert::optional("identity", &hello.identity, limits)?;
        convert::optional("build_id", &hello.build_id, limits)?;
        for name in hello.workflow_types.iter().chain(&hello.activity_types) {
            convert::required("a workflow or activity type", name, limits)?;
        }
        let id = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let session = Arc::new(Session::new(SessionInfo {
            namespace_id,
            namespace,
            task_queue: hello.task_queue,
            workflow_types: hello.workflow_types.into_iter().collect(),
            activity_types: hello.activity_types.into_iter().collect(),
            worker: Worker { session: id, identity: hello.identity, build_id: hello.build_id },
        }));
        let outbox = session.outbox();
        outbox.push(server_item::Kind::Welcome(Welcome {
            version: self.build.version.clone(),
            protocol: PROTOCOL,
            node_id: self.node.id.0.as_u64_pair().0,
            silence_limit_us: SILENCE.as_micros() as i64,
            max_message_bytes: MAX_MESSAGE as u64,
            max_payload_bytes: limits.payload_bytes,
        }));
        // The session is known before the lanes are listed: a lane that loads meanwhile claims by
        // itself, and a claim that comes twice does no harm.
        if !self.node.dispatch.open(Arc::clone(&session)) {
            return Err(Status::unavailable("this server is going away"));
        }
        for (_, lane) in self.node.lanes() {
            outbox.push(server_item::Kind::Claim(Claim {
                slot_from: lane.slots.start.into(),
                slot_to: lane.slots.end.into(),
                incarnation: lane.incarnation.0,
            }));
        }
        Ok(session)
    }
}

/// The outgoing side of a session's stream.
pub(crate) struct SessionStream(Arc<Session>);

impl Stream for SessionStream {
    type Item = Result<SessionResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.outbox().poll_message(context).map(|message| message.map(Ok))
    }
}

impl Drop for SessionStream {
    fn drop(&mut self) {
        // Nobody reads any more: nothing is kept for them.
        self.0.outbox().close();
    }
}

#[tonic::async_trait]
impl WorkerService for WorkerApi {
    type SessionStream = SessionStream;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<SessionStream>, Status> {
        let mut stream = request.into_inner();
        let first = stream
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("a session begins with Hello"))?;
        let mut items = first.items.into_iter();
        let Some(worker_item::Kind::Hello(hello)) = items.next().and_then(|item| item.kind) else {
            return Err(Status::invalid_argument("a session begins with Hello"));
        };
        let session = self.open(hello)?;
        let info = session.info();
        tracing::info!(worker = %info.worker.identity, queue = %info.task_queue, "worker connected");
        self.node.metrics.session(1);
        let reader =
            Reader { node: Arc::clone(&self.node), session: Arc::clone(&session), parts: None };
        let rest = items.filter_map(|item| item.kind).collect();
        self.node.env.spawn(reader.read(rest, stream));
        Ok(Response::new(SessionStream(session)))
    }

    async fn task_history(
        &self,
        request: Request<v1::TaskHistoryRequest>,
    ) -> Result<Response<v1::TaskHistoryResponse>, Status> {
        let request = request.into_inner();
        convert::namespace(&request.namespace)?;
        let run_id = convert::run_id(&request.run_id)?
            .ok_or_else(|| Status::invalid_argument("run_id is missing"))?;
        let task_id = request
            .task_id
            .as_ref()
            .map(TaskId::from_wire)
            .ok_or_else(|| Status::invalid_argument("task_id is missing"))?;
        let page = history::task_history(&self.node, run_id, task_id, &request.position).await?;
        Ok(Response::new(page))
    }
}

/// The incoming side of a session.
struct Reader {
    node: Arc<Node>,
    session: Arc<Session>,
    /// The completion whose parts are coming; its parts follow each other.
    parts: Option<(TaskId, Parts)>,
}

#[derive(Default)]
struct Parts {
    commands: Vec<Command>,
    next: u32,
    bytes: usize,
}

impl Reader {
    async fn read(mut self, first: Vec<worker_item::Kind>, mut stream: Streaming<SessionRequest>) {
        let why = match self.items(first).await {
            Ok(()) => self.read_stream(&mut stream).await,
            Err(status) => status.message().to_owned(),
        };
        let (id, info) = (self.session.id(), self.session.info());
        tracing::info!(worker = %info.worker.identity, queue = %info.task_queue, why, "worker disconnected");
        self.node.dispatch.close(id);
        self.session.outbox().close();
        self.node.metrics.session(-1);
        for (_, lane) in self.node.lanes() {
            // A lane that has ended knows of no session.
            lane.mail.put(Mail::Worker(FromWorker::Lost(id))).await;
        }
    }

    /// Reads until the stream ends; tells why.
    async fn read_stream(&mut self, stream: &mut Streaming<SessionRequest>) -> String {
        loop {
            // Dropped half-way it ends the session, which loses nothing.
            let message = match tokio::time::timeout(SILENCE, stream.message()).await {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => return "the worker ended the session".to_owned(),
                Ok(Err(status)) => return format!("the stream broke: {}", status.message()),
                Err(_) => return format!("silent for {} s", SILENCE.as_secs()),
            };
            let items = message.items.into_iter().filter_map(|item| item.kind).collect();
            if let Err(status) = self.items(items).await {
                return status.message().to_owned();
            }
        }
    }

    async fn items(&mut self, items: Vec<worker_item::Kind>) -> Result<(), Status> {
        for item in items {
            self.item(item).await?;
        }
        Ok(())
    }

    async fn item(&mut self, item: worker_item::Kind) -> Result<(), Status> {
        use worker_item::Kind as Item;
        match item {
            Item::Hello(_) => {
                return Err(Status::invalid_argument("Hello came twice"));
            }
            Item::Credits(credits) => self.credit(credits),
            Item::TaskCompleted(completed) => self.task_completed(completed).await?,
            Item::TaskFailed(failed) => {
                let input = Input::FailTask {
                    task_id: task_id(failed.task_id.as_ref())?,
                    cause: failed.cause(),
                    failure: failed.failure,
                };
                self.tell_run(run_id(&failed.run_id)?, input).await;
            }
            Item::NeedHistory(need) => {
                let (run_id, task_id) = (run_id(&need.run_id)?, task_id(need.task_id.as_ref())?);
                let session = Arc::clone(&self.session);
                self.tell(run_id, FromWorker::NeedHistory { run_id, task_id, session }).await;
            }
            Item::ActivityCompleted(done) => {
                let token = token(done.token.as_ref())?;
                let input = Input::CompleteActivity {
                    token,
                    result: done.result,
                    identity: self.identity(),
                };
                self.tell_run(token.run_id, input).await;
            }
            Item::ActivityFailed(failed) => {
                let token = token(failed.token.as_ref())?;
                let failure = failed.failure.unwrap_or_default();
                let input = Input::FailActivity { token, failure, identity: self.identity() };
                self.tell_run(token.run_id, input).await;
            }
            Item::ActivityCancelled(cancelled) => {
                let token = token(cancelled.token.as_ref())?;
                let input = Input::CancelledActivity {
                    token,
                    failure: cancelled.failure,
                    identity: self.identity(),
                };
                self.tell_run(token.run_id, input).await;
            }
            Item::Heartbeats(heartbeats) => self.heartbeats(heartbeats).await?,
            Item::Evicted(evicted) => {
                let (run_id, session) = (run_id(&evicted.run_id)?, self.session.id());
                self.tell(run_id, FromWorker::Evicted { run_id, session }).await;
            }
            Item::InFlight(in_flight) => self.in_flight(in_flight).await?,
            Item::Draining(_) => self.node.dispatch.retire(self.session.id()),
        }
        Ok(())
    }

    fn identity(&self) -> String {
        self.session.info().worker.identity.clone()
    }

    /// More room: what waits goes out.
    fn credit(&self, credits: v1::Credits) {
        self.session.set_credits(credits.workflow, credits.activity);
        for kind in [Kind::Workflow, Kind::Activity] {
            while let Some(found) = self.node.dispatch.next_for(self.session.id(), kind) {
                self.node.deliver_match(found);
            }
        }
    }

    async fn task_completed(&mut self, completed: TaskCompleted) -> Result<(), Status> {
        let task_id = task_id(completed.task_id.as_ref())?;
        let run_id = run_id(&completed.run_id)?;
        let Some(commands) = self.put_together(task_id, &completed)? else { return Ok(()) };
        let commands = commands.unwrap_or(completed.commands);
        let completion = TaskCompletion {
            task_id,
            commands,
            more: completed.more,
            sdk_flags: completed.sdk_flags,
            worker: self.session.info().worker.clone(),
        };
        self.tell_run(run_id, Input::CompleteTask(completion)).await;
        Ok(())
    }

    /// `None` while parts are missing; then all commands, or `Some(None)` for a completion in one.
    #[allow(clippy::option_option, reason = "whole, in parts, and not yet are three answers")]
    fn put_together(
        &mut self,
        task_id: TaskId,
        completed: &TaskCompleted,
    ) -> Result<Option<Option<Vec<Command>>>, Status> {
        if completed.parts <= 1 {
            return Ok(Some(None));
        }
        if completed.part == 0 {
            self.parts = Some((task_id, Parts::default()));
        }
        let Some((_, parts)) = self.parts.as_mut().filter(|(of, _)| *of == task_id) else {
            return Err(Status::invalid_argument("a completion came without its first part"));
        };
        if completed.part != parts.next || completed.part >= completed.parts {
            let (got, want) = (completed.part, parts.next);
            return Err(Status::invalid_argument(format!(
                "part {got} of a completion came, part {want} was next"
            )));
        }
        parts.next += 1;
        parts.bytes += prost::Message::encoded_len(completed);
        if parts.bytes > MAX_COMPLETION {
            let bytes = parts.bytes;
            return Err(Status::invalid_argument(format!(
                "a completion is limited to {MAX_COMPLETION} bytes, got {bytes}"
            )));
        }
        parts.commands.extend(completed.commands.iter().cloned());
        if parts.next < completed.parts {
            return Ok(None);
        }
        Ok(Some(self.parts.take().map(|(_, parts)| parts.commands)))
    }

    async fn heartbeats(&self, heartbeats: v1::Heartbeats) -> Result<(), Status> {
        for beat in heartbeats.activities {
            let token = token(beat.token.as_ref())?;
            self.tell_run(token.run_id, Input::Heartbeat { token, details: beat.details }).await;
        }
        for task in heartbeats.tasks {
            let (run_id, task_id) = (run_id(&task.run_id)?, task_id(task.task_id.as_ref())?);
            self.tell(run_id, FromWorker::TaskHeartbeat { run_id, task_id }).await;
        }
        Ok(())
    }

    async fn in_flight(&self, in_flight: v1::InFlight) -> Result<(), Status> {
        let mut by_lane = BTreeMap::<u16, Vec<Token>>::new();
        for token_bytes in &in_flight.activities {
            let token = token(Some(token_bytes))?;
            by_lane.entry(token.run_id.slot().get()).or_default().push(token);
        }
        for tokens in by_lane.into_values() {
            let run_id = tokens[0].run_id;
            let session = Arc::clone(&self.session);
            self.tell(run_id, FromWorker::InFlight { tokens, session }).await;
        }
        Ok(())
    }

    async fn tell_run(&self, run_id: RunId, input: Input) {
        let session = Arc::clone(&self.session);
        self.tell(run_id, FromWorker::Run { run_id, session, input }).await;
    }

    /// Items of a session are never refused for a full mailbox: its reader waits. While no lane
    /// serves the slot they are dropped: the worker sends what matters again on the lane's claim.
    async fn tell(&self, run_id: RunId, from: FromWorker) {
        if let Some(lane) = self.node.lane_of(run_id.slot()) {
            lane.put(Mail::Worker(from)).await;
        }
    }
}

fn task_id(wire: Option<&v1::TaskId>) -> Result<TaskId, Status> {
    wire.map(TaskId::from_wire).ok_or_else(|| Status::invalid_argument("task_id is missing"))
}

fn run_id(wire: &[u8]) -> Result<RunId, Status> {
    RunId::from_wire(wire).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn token(wire: Option<&v1::ActivityToken>) -> Result<Token, Status> {
    let token = wire.ok_or_else(|| Status::invalid_argument("token is missing"))?;
    Token::from_wire(token).map_err(|error| Status::invalid_argument(error.to_string()))
}
