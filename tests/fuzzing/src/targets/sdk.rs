//! What a worker reads: histories, tasks, frames of its session, payloads, failures.

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use onward::{
    ActivityCtx, Bin, Client, Codec, Ctx, Env, RemoteFailure, Replayer, Signal, Worker, activity,
    machine::{
        LocalOutcome, Machine, MachineOptions, Progress, RunInfo, Task, TaskFailure, WorkflowEntry,
    },
    payload::{self, Args as _},
    wf, workflow,
};
use onward_proto::{
    FAILURE_DEPTH, PROTOCOL, RunId,
    json::{self, Described},
    v1::{
        self,
        server_item::Kind as ServerKind,
        worker_service_server::{WorkerService, WorkerServiceServer},
    },
};
use prost::Message;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{io::duplex, sync::mpsc, time::sleep};
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use crate::server::runtime;

/// What an errand waits for.
pub(crate) const GO: Signal<u32> = Signal::new("go");

/// Gives back what it is given.
#[activity]
pub(crate) async fn fetch(_: &ActivityCtx, what: String) -> onward::Result<String> {
    Ok(what)
}

/// A workflow with a step of every kind, that has no panic in it whatever comes.
#[workflow]
pub(crate) async fn errand(ctx: &Ctx, names: Vec<String>) -> onward::Result<u64> {
    let mut sum = ctx.record(|| 1_u64).await;
    sum = sum.wrapping_add(ctx.rng().range(0..10));
    for name in names.into_iter().take(3) {
        let (far, near) = wf::join!(fetch(ctx, name.clone()), fetch(ctx.local(), name));
        sum = sum.wrapping_add(far.map_or(1, |text| text.len() as u64));
        sum = sum.wrapping_add(near.map_or(1, |text| text.len() as u64));
    }
    if let Ok(value) = ctx.timeout(Duration::from_secs(5), ctx.recv(GO)).await {
        sum = sum.wrapping_add(value.into());
    }
    let section = ctx.cancellable(async {
        ctx.sleep(Duration::from_secs(1)).await;
        ctx.shield(fetch(ctx, "last".to_owned())).await.map_or(1, |text| text.len() as u64)
    });
    Ok(sum.wrapping_add(section.await.unwrap_or(7)))
}

/// A whole history.
pub(crate) fn histories(input: &[u8]) {
    let Ok(history) = v1::History::decode(input) else { return };
    let replayer = Replayer::new().workflows::<(errand,)>();
    // Most of what is mutated has a gap, which is noticed before the code is asked.
    let mut numbered = history.clone();
    for (event, event_id) in numbered.events.iter_mut().zip(1..) {
        event.event_id = event_id;
    }
    for (replayer, history) in [
        (replayer.clone(), &history),
        (replayer.clone(), &numbered),
        (replayer.strict(), &numbered),
    ] {
        if let Err(error) = replayer.replay(history) {
            assert!(!error.to_string().is_empty(), "what does not replay says why");
        }
    }
}

/// A history, or another message, as text: what can be read is written and read as the same.
pub(crate) fn history_texts(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    read_and_write::<v1::History>(text);
    read_and_write::<v1::HistoryEvent>(text);
    read_and_write::<v1::Failure>(text);
    read_and_write::<v1::Payload>(text);
    read_and_write::<v1::DescribeWorkflowResponse>(text);
    read_and_write::<v1::WorkflowOutcome>(text);
}

fn read_and_write<M: Described + PartialEq + fmt::Debug>(text: &str) {
    if let Ok(message) = json::from_str::<M>(text) {
        let written = json::to_string(&message);
        let read = json::from_str::<M>(&written);
        assert_eq!(read.as_ref(), Ok(&message), "{written}");
    }
}

/// Workflow tasks of one run, as its worker's thread takes them.
pub(crate) fn workflow_tasks(input: &[u8]) {
    let mut rest = input;
    let run = RunInfo {
        namespace: "default".to_owned(),
        workflow_id: "errand-1".to_owned(),
        run_id: RunId::from_uuid(Uuid::nil()),
        workflow_type: "errand".to_owned(),
    };
    let entry = WorkflowEntry::of::<errand>();
    let mut machine = Machine::new(&entry, MachineOptions::default(), run);
    for _ in 0..20 {
        let Ok(task) = v1::WorkflowTask::decode_length_delimited(&mut rest) else { return };
        let task = Task {
            task_id: task.task_id.unwrap_or_default(),
            handed_out_at_us: task.handed_out_at_us,
            events: task.events,
        };
        let progress = machine.run_task(task);
        if drive(&mut machine, progress).is_err() {
            return;
        }
    }
}

/// Runs what local activities there are, until the task is done.
fn drive(
    machine: &mut Machine,
    progress: Result<Progress, TaskFailure>,
) -> Result<(), TaskFailure> {
    let mut progress = progress?;
    drop(machine.take_notes());
    for task in machine.take_local_activities() {
        let result = payload::encode(&task.activity_type, Codec::Json);
        let result = result.expect("a text can be encoded");
        let outcome = LocalOutcome::Completed { result, attempts: 1 };
        progress = machine.local_activity_done(task.number, outcome)?;
    }
    drop(machine.take_local_cancels());
    if matches!(progress, Progress::Waiting) {
        machine.yield_task()?;
    }
    Ok(())
}

type Answers = mpsc::UnboundedSender<Result<v1::SessionResponse, Status>>;

/// A server that says what it is told to, once in each session.
#[derive(Clone)]
struct Script(Arc<Mutex<Vec<v1::SessionResponse>>>, Arc<Mutex<Vec<Answers>>>);

#[tonic::async_trait]
impl WorkerService for Script {
    type SessionStream =
        Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send + 'static>>;

    async fn session(
        &self,
        _: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (answers, stream) = mpsc::unbounded_channel();
        for frame in std::mem::take(&mut *self.0.lock().unwrap()) {
            drop(answers.send(Ok(frame)));
        }
        self.1.lock().unwrap().push(answers);
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(stream))))
    }

    async fn task_history(
        &self,
        _: Request<v1::TaskHistoryRequest>,
    ) -> Result<Response<v1::TaskHistoryResponse>, Status> {
        Ok(Response::new(v1::TaskHistoryResponse::default()))
    }
}

/// Frames of a server, each behind its length. A welcome comes before them.
pub(crate) fn server_frames(input: &[u8]) {
    let mut rest = input;
    let mut frames = vec![server_frame(ServerKind::Welcome(welcome()))];
    while let Ok(frame) = v1::SessionResponse::decode_length_delimited(&mut rest)
        && frames.len() < 20
    {
        frames.push(frame);
    }
    let (runtime, local) = runtime();
    local.block_on(&runtime, async {
        let script = Script(Arc::new(Mutex::new(frames)), Arc::default());
        let (door, connections) = mpsc::unbounded_channel::<std::io::Result<_>>();
        let served = tonic::transport::Server::builder()
            .add_service(WorkerServiceServer::new(script))
            .serve_with_incoming(UnboundedReceiverStream::new(connections));
        tokio::spawn(served);
        let client = Client::builder()
            .connector(move || {
                let (ours, theirs) = duplex(1 << 16);
                let sent = door.send(Ok(theirs)).map_err(std::io::Error::other);
                async move { sent.map(|()| ours) }
            })
            .build()
            .expect("the address is ours");
        let worker = Worker::builder(client, "q")
            .workflows::<(errand,)>()
            .activities::<(fetch,)>()
            .env(Env::simulated(1))
            .spawn()
            .await
            .expect("a worker with something to run runs");
        // Time for all that it may do by itself: give the stream up, and connect again.
        sleep(Duration::from_secs(30)).await;
        drop(worker);
    });
}

pub(crate) fn welcome() -> v1::Welcome {
    v1::Welcome {
        version: "0.1.0".to_owned(),
        protocol: PROTOCOL,
        node_id: 1,
        silence_limit_us: 10_000_000,
        max_message_bytes: 4 << 20,
        max_payload_bytes: 2 << 20,
    }
}

pub(crate) fn server_frame(kind: ServerKind) -> v1::SessionResponse {
    v1::SessionResponse { items: vec![v1::ServerItem { kind: Some(kind) }] }
}

/// What users send through payloads.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Parcel {
    id: String,
    weight: f32,
    items: Vec<(u32, String)>,
    note: Option<Box<Parcel>>,
    kind: Wrapping,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Wrapping {
    None,
    Paper { colour: char },
    Nested(Vec<Wrapping>),
}

/// A payload's encoding, and its bytes: read as many types, and as arguments.
pub(crate) fn payloads(input: &[u8]) {
    let Some((encoding, data)) = input.split_first() else { return };
    let content_type = ["json", "binary/bincode2", "", "avro"][usize::from(*encoding) % 4];
    let payload = v1::Payload {
        content_type: content_type.to_owned(),
        data: Bytes::copy_from_slice(data),
        ..Default::default()
    };
    read::<bool>(&payload);
    read::<u8>(&payload);
    read::<i64>(&payload);
    read::<u128>(&payload);
    read::<char>(&payload);
    read::<String>(&payload);
    read::<()>(&payload);
    read::<Vec<u8>>(&payload);
    read::<Vec<Option<String>>>(&payload);
    read::<BTreeMap<String, Vec<u32>>>(&payload);
    read::<(u8, String, [i16; 3])>(&payload);
    read::<Result<u32, String>>(&payload);
    read::<Duration>(&payload);
    read::<std::time::SystemTime>(&payload);
    read::<Bin<Vec<(u32, String)>>>(&payload);
    drop(payload::decode::<f64>(&payload));
    drop(payload::decode::<Parcel>(&payload));
    drop(payload::decode::<Wrapping>(&payload));
    drop(payload::decode::<Vec<()>>(&payload));
    drop(<(String, Option<u8>, Bin<Option<u8>>)>::decode(&[payload.clone(), payload]));
}

/// What can be read is written and read as the same.
fn read<T: Serialize + DeserializeOwned + PartialEq>(payload: &v1::Payload) {
    let Ok(value) = payload::decode::<T>(payload) else { return };
    for codec in [Codec::Json, Codec::Bincode] {
        if let Ok(written) = payload::encode(&value, codec) {
            let same = payload::decode::<T>(&written).is_ok_and(|again| again == value);
            assert!(same, "{} is written as {written:?}", std::any::type_name::<T>());
        }
    }
}

/// A failure: it is made to fit, and shown.
pub(crate) fn failures(input: &[u8]) {
    let Ok(failure) = v1::Failure::decode(input) else { return };
    drop(RemoteFailure::from(&failure).to_string());
    for max_bytes in [0, 64, 200, 4 << 10, 2 << 20] {
        let fit = failure.clone().fit(max_bytes);
        assert!(fit.encoded_len() as u64 <= max_bytes.max(64), "{max_bytes}: {fit:?}");
        assert!(fit.depth() <= FAILURE_DEPTH && !fit.message.contains('\0'), "{fit:?}");
        assert_eq!(fit.clone().fit(max_bytes), fit, "what fits is left alone");
    }
}
