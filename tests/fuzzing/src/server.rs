//! A whole server in this thread, on a virtual clock, that is called with bytes.

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes};
use hyper_util::rt::TokioIo;
use onward::Client;
use onward_proto::Timestamp;
use onward_server::{
    BuildInfo,
    engine::Limits,
    env::{Env, TokioBootClock},
    serve_connections,
    shard::{Node, NodeOptions},
    store::MemoryStore,
};
use tokio::{
    io::{DuplexStream, duplex},
    runtime::Runtime,
    sync::mpsc,
    task::LocalSet,
    time::Instant,
};
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

/// Room in a pipe.
const PIPE: usize = 256 << 10;
/// Larger than any answer: what the server sends is never refused here.
const MAX_ANSWER: usize = 16 << 20;
/// When time begins, in microseconds since the Unix epoch.
pub(crate) const DAWN_US: i64 = 1_790_000_000_000_000;

/// Codes that say to a caller what it did wrong. All else says that the server did.
const REFUSALS: [Code; 6] = [
    Code::InvalidArgument,
    Code::NotFound,
    Code::AlreadyExists,
    Code::FailedPrecondition,
    Code::ResourceExhausted,
    // What the transport says of a message that is larger than any may be.
    Code::OutOfRange,
];

/// Whether a status says to the caller of a method what it did wrong.
pub(crate) fn is_refusal(path: &str, code: Code) -> bool {
    // A task that was taken from its worker meanwhile is nobody's mistake.
    let is_stale = code == Code::Aborted && path.ends_with("/TaskHistory");
    is_stale || REFUSALS.contains(&code)
}

/// A runtime whose clock moves when there is nothing to do.
pub(crate) fn runtime() -> (Runtime, LocalSet) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without input and output needs nothing");
    (runtime, LocalSet::new())
}

/// An empty database whose clock is the virtual one.
pub(crate) fn database() -> MemoryStore {
    let dawn = Instant::now();
    MemoryStore::new(move || Timestamp::from_micros(DAWN_US) + dawn.elapsed())
}

/// A server on a database.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) store: MemoryStore,
    node: Arc<Node>,
    door: mpsc::UnboundedSender<io::Result<DuplexStream>>,
}

impl Server {
    /// Starts one whose chance comes from a seed, and waits until it serves.
    pub(crate) async fn start(store: MemoryStore, seed: u64, shards: u16, memory: usize) -> Self {
        let node = Node::new(NodeOptions {
            env: Env::seeded(Arc::new(TokioBootClock::start()), seed),
            store: Arc::new(store.clone()),
            limits: Limits::default(),
            cache_bytes: memory,
            waiting_bytes: memory,
            shards,
        });
        let (door, incoming) = mpsc::unbounded_channel::<io::Result<DuplexStream>>();
        tokio::spawn(serve_connections(
            Arc::clone(&node),
            BuildInfo::default(),
            UnboundedReceiverStream::new(incoming),
            std::future::pending(),
            Duration::from_secs(10),
        ));
        while !node.is_ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Self { store, node, door }
    }

    /// What a metric without labels stands at.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.node.metrics().render();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
    }

    /// One end of a new connection.
    pub(crate) fn connect(&self) -> io::Result<DuplexStream> {
        let (near, far) = duplex(PIPE);
        self.door.send(Ok(far)).map_err(io::Error::other)?;
        Ok(near)
    }

    /// A client of the SDK.
    pub(crate) fn client(&self, name: &str, seed: u64) -> Client {
        let server = self.clone();
        Client::builder()
            .connector(move || {
                let connected = server.connect();
                async move { connected }
            })
            .identity(name)
            .retry_for(Duration::from_hours(10))
            .seed(seed)
            .build()
            .expect("the address is ours")
    }

    /// A way for raw calls.
    pub(crate) fn caller(&self) -> Caller {
        let server = self.clone();
        let connector = tower::service_fn(move |_| {
            let connected = server.connect();
            async move { connected.map(TokioIo::new) }
        });
        Caller(Endpoint::from_static("http://fuzzed").connect_with_connector_lazy(connector))
    }
}

/// Calls methods with bytes that need not be a message.
#[derive(Clone)]
pub(crate) struct Caller(Channel);

impl Caller {
    /// Calls a method that takes and gives one message.
    pub(crate) async fn call(&self, path: &PathAndQuery, message: Bytes) -> Result<Bytes, Status> {
        let mut grpc = self.ready().await?;
        let answer = grpc.unary(Request::new(message), path.clone(), Raw).await?;
        Ok(answer.into_inner())
    }

    /// Opens a stream of messages both ways.
    pub(crate) async fn stream(
        &self,
        path: &PathAndQuery,
        messages: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Streaming<Bytes>, Status> {
        let mut grpc = self.ready().await?;
        let answer = grpc.streaming(Request::new(messages), path.clone(), Raw).await?;
        Ok(answer.into_inner())
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.0.clone()).max_decoding_message_size(MAX_ANSWER);
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        Ok(grpc)
    }
}

/// Messages as the bytes that they are.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
