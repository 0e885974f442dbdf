//! A whole server: requests, sessions, tokens, bytes that are no HTTP, and stores that were written
//! by somebody else.

use std::{cell::RefCell, mem::ManuallyDrop, sync::Arc, time::Duration};

use bytes::Bytes;
use onward_proto::{
    DEFAULT_NAMESPACE, PROTOCOL, RunId, Slot, Timestamp,
    v1::{self, WorkflowStatus, history_event::Attributes, worker_item::Kind},
};
use onward_server::store::{
    Batch, CommitId, HistorySize, JournalInsert, MemoryStore, NodeId, PendingWrite, RunRow,
    Store as _, Take, Taken, WakeAt,
};
use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::Runtime,
    sync::mpsc,
    task::LocalSet,
    time::timeout,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, codegen::http::uri::PathAndQuery};
use uuid::Uuid;

use super::engine::{StoredRun, run_id};
use crate::server::{Caller, DAWN_US, Server, database, is_refusal, runtime};

/// No call takes longer, by the virtual clock: some wait for nearly so long.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a session is listened to behind each frame.
const LISTEN: Duration = Duration::from_millis(2);
/// Inputs that one server takes. What is in its store depends on those before, but not for long.
const INPUTS: u32 = 200;

/// Methods that take one message, in an order that stays.
pub(crate) const UNARY: [&str; 12] = [
    "/onward.v1.ClientService/GetServerInfo",
    "/onward.v1.ClientService/StartWorkflow",
    "/onward.v1.ClientService/ExecuteWorkflow",
    "/onward.v1.ClientService/SignalWorkflow",
    "/onward.v1.ClientService/SignalWithStartWorkflow",
    "/onward.v1.ClientService/RequestCancelWorkflow",
    "/onward.v1.ClientService/TerminateWorkflow",
    "/onward.v1.ClientService/DescribeWorkflow",
    "/onward.v1.ClientService/GetWorkflowHistory",
    "/onward.v1.ClientService/WaitWorkflowResult",
    "/onward.v1.ClientService/ListWorkflows",
    "/onward.v1.WorkerService/TaskHistory",
];
const SESSION: &str = "/onward.v1.WorkerService/Session";

/// A server, and a way to call it.
pub(crate) struct Scene {
    server: Server,
    caller: Caller,
    left: u32,
    // These end last, and in this order.
    local: LocalSet,
    runtime: Runtime,
}

impl Scene {
    /// A server on an empty database, and two runs: one open, one closed. Their ids are the same in
    /// every scene.
    pub(crate) fn new() -> Self {
        let scene = Self::on(|| async { database() });
        scene.play(async |scene| {
            for workflow_id in ["open", "closed"] {
                let started: v1::StartWorkflowResponse = scene.ask(1, &start(workflow_id)).await;
                assert!(started.started, "{workflow_id}");
            }
            let terminate = v1::TerminateWorkflowRequest {
                workflow_id: "closed".to_owned(),
                request_id: request_id(3),
                ..Default::default()
            };
            let _: v1::TerminateWorkflowResponse = scene.ask(6, &terminate).await;
        });
        scene
    }

    /// A server on that database.
    fn on<F: Future<Output = MemoryStore>>(make: impl FnOnce() -> F) -> Self {
        let (runtime, local) = runtime();
        let (server, caller) = local.block_on(&runtime, async {
            let server = Server::start(make().await, 7, 1, 1 << 20).await;
            let caller = server.caller();
            (server, caller)
        });
        Self { runtime, local, server, caller, left: INPUTS }
    }

    pub(crate) fn play<T>(&self, act: impl AsyncFnOnce(&Self) -> T) -> T {
        self.local.block_on(&self.runtime, act(self))
    }

    /// Calls a method that must succeed.
    pub(crate) async fn ask<T: Message + Default>(
        &self,
        method: usize,
        request: &impl Message,
    ) -> T {
        let answer = self.call(method, request.encode_to_vec().into()).await;
        let answer = answer.unwrap_or_else(|status| panic!("{}: {status}", UNARY[method]));
        T::decode(answer).expect("an answer is a message")
    }

    /// Calls a method with anything.
    async fn call(&self, method: usize, message: Bytes) -> Result<Bytes, Status> {
        let path = PathAndQuery::from_static(UNARY[method]);
        let answer = timeout(PATIENCE, self.caller.call(&path, message)).await;
        answer.unwrap_or_else(|_| panic!("{} was not answered within 60 s", UNARY[method]))
    }

    async fn is_alive(&self) {
        let hello = v1::GetServerInfoRequest { protocol: PROTOCOL, ..Default::default() };
        let _: v1::GetServerInfoResponse = self.ask(0, &hello).await;
    }

    /// Plays a session, and gives what the server said, frame by frame.
    pub(crate) async fn session(&self, frames: Vec<Bytes>) -> Vec<Bytes> {
        let (sender, stream) = mpsc::unbounded_channel();
        let path = PathAndQuery::from_static(SESSION);
        let mut frames = frames.into_iter();
        drop(sender.send(frames.next().unwrap_or_default()));
        let opening = self.caller.stream(&path, UnboundedReceiverStream::new(stream));
        let mut said = Vec::new();
        let mut answers = match timeout(PATIENCE, opening).await.expect("a session opens") {
            Ok(answers) => answers,
            Err(status) => {
                must_be_refusal(SESSION, &status);
                return said;
            }
        };
        let mut next = frames.next();
        loop {
            match timeout(LISTEN, answers.message()).await {
                Ok(Ok(Some(frame))) => said.push(frame),
                Ok(Ok(None)) => return said,
                Ok(Err(status)) => {
                    must_be_refusal(SESSION, &status);
                    return said;
                }
                Err(_) => {
                    let Some(frame) = next.take() else { return said };
                    drop(sender.send(frame));
                    next = frames.next();
                }
            }
        }
    }
}

thread_local! {
    /// The end of a thread comes too late for a runtime to end in order.
    static SCENE: RefCell<Option<ManuallyDrop<Scene>>> = const { RefCell::new(None) };
}

/// A scene that others have played on before.
fn on_stage<T>(act: impl AsyncFnOnce(&Scene) -> T) -> T {
    let scene = SCENE.take().map(ManuallyDrop::into_inner).filter(|scene| scene.left > 0);
    let mut scene = scene.unwrap_or_else(Scene::new);
    scene.left -= 1;
    let result = scene.play(act);
    SCENE.replace(Some(ManuallyDrop::new(scene)));
    result
}

fn must_be_refusal(what: &str, status: &Status) {
    assert!(is_refusal(what, status.code()), "{what} was answered with {status:?}");
}

/// The number of a method, and its message.
pub(crate) fn client_requests(input: &[u8]) {
    let Some((method, message)) = input.split_first() else { return };
    let method = usize::from(*method) % UNARY.len();
    on_stage(async |scene| {
        if let Err(status) = scene.call(method, Bytes::copy_from_slice(message)).await {
            must_be_refusal(UNARY[method], &status);
        }
    });
}

/// Frames of a worker, each behind its length. Greeting and credits come before them.
pub(crate) fn session_frames(input: &[u8]) {
    let mut frames = vec![hello(), credits()];
    let mut rest = input;
    while let Ok(len) = prost::decode_length_delimiter(&mut rest)
        && len <= rest.len()
    {
        let (frame, behind) = rest.split_at(len);
        frames.push(Bytes::copy_from_slice(frame));
        rest = behind;
    }
    frames.push(Bytes::copy_from_slice(rest));
    // Each on a server of its own: ids of tasks are the same then, and are met by what names them.
    let scene = Scene::new();
    scene.play(async |scene| {
        scene.session(frames).await;
        scene.is_alive().await;
    });
}

/// A token, wherever one is taken.
pub(crate) fn page_tokens(input: &[u8]) {
    let token = || Bytes::copy_from_slice(input);
    on_stage(async |scene| {
        let history = v1::GetWorkflowHistoryRequest {
            workflow_id: "closed".to_owned(),
            page_token: token(),
            max_bytes: 1,
            ..Default::default()
        };
        let list =
            v1::ListWorkflowsRequest { page_token: token(), page_size: 1, ..Default::default() };
        let task = v1::TaskHistoryRequest {
            task_id: Some(v1::TaskId { incarnation: 1, counter: 1 }),
            run_id: run_of(scene, "open").await.to_wire(),
            position: token(),
            ..Default::default()
        };
        let calls =
            [(8, history.encode_to_vec()), (10, list.encode_to_vec()), (11, task.encode_to_vec())];
        for (method, message) in calls {
            if let Err(status) = scene.call(method, message.into()).await {
                must_be_refusal(UNARY[method], &status);
            }
        }
    });
}

/// The newest run of a workflow.
pub(crate) async fn run_of(scene: &Scene, workflow_id: &str) -> RunId {
    let request =
        v1::DescribeWorkflowRequest { workflow_id: workflow_id.to_owned(), ..Default::default() };
    let described: v1::DescribeWorkflowResponse = scene.ask(7, &request).await;
    RunId::from_wire(&described.info.unwrap_or_default().run_id).expect("a run has an id")
}

/// What comes over a new connection in place of HTTP/2.
pub(crate) fn connection_bytes(input: &[u8]) {
    on_stage(async |scene| {
        let mut connection = scene.server.connect().expect("the server accepts");
        drop(connection.write_all(input).await);
        let mut buffer = [0; 1_024];
        while let Ok(Ok(1..)) = timeout(LISTEN, connection.read(&mut buffer)).await {}
        drop(connection);
        scene.is_alive().await;
    });
}

/// A run that somebody else has written is served, or told to be unreadable, and its neighbour
/// feels nothing of it.
pub(crate) fn parked_runs(input: &[u8]) {
    let Ok(stored) = StoredRun::decode(input) else { return };
    let scene = Scene::on(|| stored_in(stored));
    scene.play(async |scene| {
        let neighbour = run_of(scene, "neighbour").await;
        scene.session(vec![hello(), credits()]).await;
        let (id, run_id) = ("stored".to_owned(), run_id().to_wire());
        let calls = [
            (
                7,
                v1::DescribeWorkflowRequest { workflow_id: id.clone(), ..Default::default() }
                    .encode_to_vec(),
            ),
            (
                8,
                v1::GetWorkflowHistoryRequest {
                    workflow_id: id.clone(),
                    run_id,
                    ..Default::default()
                }
                .encode_to_vec(),
            ),
            (10, v1::ListWorkflowsRequest::default().encode_to_vec()),
            (3, signal(&id).encode_to_vec()),
            (1, start(&id).encode_to_vec()),
            (
                6,
                v1::TerminateWorkflowRequest {
                    workflow_id: id,
                    request_id: request_id(5),
                    ..Default::default()
                }
                .encode_to_vec(),
            ),
        ];
        for (method, message) in calls {
            if let Err(status) = scene.call(method, message.into()).await {
                let told =
                    status.code() == Code::DataLoss || is_refusal(UNARY[method], status.code());
                assert!(told, "{} was answered with {status:?}", UNARY[method]);
            }
        }
        assert_eq!(run_of(scene, "neighbour").await, neighbour);
        let _: v1::SignalWorkflowResponse = scene.ask(3, &signal("neighbour")).await;
    });
}

/// A database that holds the run and a neighbour.
async fn stored_in(stored: StoredRun) -> MemoryStore {
    let store = database();
    let watched = store.shards(1).await.expect("memory does not fail").rows.remove(0);
    let commit_id = |n| CommitId(Uuid::from_u128(n));
    let node_id = NodeId(Uuid::from_u128(1));
    let take = Take {
        watched: watched.clone(),
        node_id,
        address: String::new(),
        commit_id: commit_id(1),
        lease_us: 1_000_000,
    };
    let Ok(Taken::Owned { epoch, commit_seq, .. }) = store.take(take).await else {
        panic!("nobody else is there")
    };
    let status = WorkflowStatus::try_from(1 + (stored.status % 6) as i32);
    let status = status.unwrap_or(WorkflowStatus::Running);
    let row = RunRow {
        run_id: run_id(),
        namespace_id: DEFAULT_NAMESPACE,
        workflow_id: "stored".to_owned(),
        workflow_type: "errand".to_owned(),
        task_queue: "q".to_owned(),
        status,
        started_at: Timestamp::from_micros(DAWN_US),
        closed_at: (status != WorkflowStatus::Running).then_some(Timestamp::from_micros(DAWN_US)),
        wake_at: match stored.wake_at {
            0 => WakeAt::Never,
            1 => WakeAt::Hot,
            at => WakeAt::At(Timestamp::from_micros(at)),
        },
        history: HistorySize::default(),
        memo: stored.memo,
        requests: stored.requests,
    };
    let slot = Slot::of(DEFAULT_NAMESPACE, "neighbour");
    let neighbour = RunRow {
        run_id: RunId::new(DAWN_US as u64 / 1_000, 43, slot),
        workflow_id: "neighbour".to_owned(),
        status: WorkflowStatus::Running,
        closed_at: None,
        wake_at: WakeAt::Hot,
        memo: Bytes::new(),
        requests: Bytes::new(),
        ..row.clone()
    };
    let started = v1::HistoryEvent {
        time_us: DAWN_US,
        attributes: Some(Attributes::WorkflowExecutionStarted(v1::WorkflowExecutionStarted {
            workflow_type: "errand".to_owned(),
            workflow_id: "neighbour".to_owned(),
            run_id: neighbour.run_id.to_wire(),
            request_id: request_id(9),
            ..Default::default()
        })),
        ..Default::default()
    };
    let records = v1::JournalRow { records: vec![started], ..Default::default() };
    let first =
        JournalInsert { run_id: neighbour.run_id, seq: 0, records: records.encode_to_vec().into() };
    let journal = (0..).zip(stored.journal);
    let journal = journal.map(|(seq, records)| JournalInsert { run_id: run_id(), seq, records });
    let mut pending: Vec<PendingWrite> = Vec::new();
    for row in stored.pending {
        if pending.iter().all(|other| other.number != row.number) {
            let data = Some(row.data);
            pending.push(PendingWrite { run_id: run_id(), number: row.number, data });
        }
    }
    let batch = Batch {
        shard_id: watched.shard_id,
        epoch,
        commit_seq: commit_seq + 1,
        commit_id: commit_id(2),
        previous: commit_id(1),
        renew_lease_us: None,
        journal: journal.chain([first]).collect(),
        new_runs: vec![row, neighbour],
        run_updates: Vec::new(),
        pending,
    };
    store.commit(Arc::new(batch)).await.expect("memory does not fail");
    store.release(watched.shard_id, node_id, epoch).await.expect("memory does not fail");
    store
}

pub(crate) fn request_id(n: u8) -> Bytes {
    Bytes::copy_from_slice(&[n; 16])
}

pub(crate) fn start(workflow_id: &str) -> v1::StartWorkflowRequest {
    v1::StartWorkflowRequest {
        workflow_id: workflow_id.to_owned(),
        workflow_type: "errand".to_owned(),
        task_queue: "q".to_owned(),
        request_id: request_id(workflow_id.len() as u8),
        ..Default::default()
    }
}

fn signal(workflow_id: &str) -> v1::SignalWorkflowRequest {
    v1::SignalWorkflowRequest {
        workflow_id: workflow_id.to_owned(),
        signal_name: "go".to_owned(),
        request_id: request_id(20),
        ..Default::default()
    }
}

/// A frame of one item.
pub(crate) fn frame(kind: Kind) -> Bytes {
    let items = vec![v1::WorkerItem { kind: Some(kind) }];
    v1::SessionRequest { items }.encode_to_vec().into()
}

fn hello() -> Bytes {
    frame(Kind::Hello(v1::Hello {
        protocol: PROTOCOL,
        task_queue: "q".to_owned(),
        workflow_types: vec!["errand".to_owned()],
        activity_types: vec!["fetch".to_owned()],
        ..Default::default()
    }))
}

fn credits() -> Bytes {
    frame(Kind::Credits(v1::Credits { workflow: 10, activity: 10 }))
}

#[cfg(test)]
mod tests {
    use super::UNARY;
    use crate::rpcs::unary_paths;

    #[test]
    fn every_method_that_takes_one_message_is_fuzzed() {
        assert_eq!(unary_paths(), UNARY);
    }
}
