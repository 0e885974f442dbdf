//! A whole node in this thread, on a virtual clock, and a database that does as it is told.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use onward_proto::{Timestamp, v1::client_service_client::ClientServiceClient};
use onward_server::{
    BuildInfo,
    engine::Limits,
    env::{Env, TokioBootClock},
    serve_connections,
    shard::{Node, NodeOptions},
    store::{Fault, MemoryStore, Plan},
};
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc,
    time::Instant,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::world::{RawWorker, client_of};

/// Room in a pipe.
const PIPE: usize = 64 << 10;

/// An empty database whose clock is the virtual one.
pub(crate) fn database() -> MemoryStore {
    let dawn = Instant::now();
    MemoryStore::new(move || Timestamp::from_micros(1_790_000_000_000_000) + dawn.elapsed())
}

/// One process of the server.
pub(crate) struct Stage {
    pub(crate) store: MemoryStore,
    node: Arc<Node>,
    connections: mpsc::UnboundedSender<io::Result<DuplexStream>>,
}

impl Stage {
    /// A server on an empty database.
    pub(crate) fn begin() -> Self {
        Self::with_memory(database(), 1 << 20)
    }

    /// A server that keeps so many bytes of idle runs in memory, and of waiting ones.
    pub(crate) fn with_memory(store: MemoryStore, memory: usize) -> Self {
        let node = Node::new(NodeOptions {
            env: Env::seeded(Arc::new(TokioBootClock::start()), fastrand::u64(..)),
            store: Arc::new(store.clone()),
            limits: Limits::default(),
            cache_bytes: memory,
            waiting_bytes: memory,
            shards: 1,
        });
        let (connections, incoming) = mpsc::unbounded_channel::<io::Result<DuplexStream>>();
        tokio::spawn(serve_connections(
            Arc::clone(&node),
            BuildInfo::default(),
            UnboundedReceiverStream::new(incoming),
            std::future::pending(),
            Duration::from_secs(10),
        ));
        Self { store, node, connections }
    }

    /// The process is cut off from its database for ever, and another one begins.
    pub(crate) fn crash(self) -> Self {
        self.cut_off();
        Self::with_memory(self.store.connect(), 1 << 20)
    }

    /// Nothing that this process asks of the database gets there any more.
    pub(crate) fn cut_off(&self) {
        self.store.faults().clear();
        self.store.faults().set_planner(|_| Plan::fault(Fault::Refuse));
    }

    pub(crate) async fn channel(&self) -> Channel {
        let connections = self.connections.clone();
        let connector = tower::service_fn(move |_| {
            let (near, far) = duplex(PIPE);
            let sent = connections.send(Ok(far));
            async move { sent.map(|()| TokioIo::new(near)).map_err(io::Error::other) }
        });
        Endpoint::from_static("http://stage").connect_with_connector(connector).await.unwrap()
    }

    /// A client, once the server's lane has loaded.
    pub(crate) async fn client(&self) -> ClientServiceClient<Channel> {
        client_of(self.channel().await).await
    }

    pub(crate) async fn worker(&self) -> RawWorker {
        RawWorker::connect(self.channel().await, 10, 10).await
    }

    /// Waits until there are as few runs in memory as that.
    pub(crate) async fn emptied(&self, most: f64) {
        while self.metric("onward_runs_in_memory") > most {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What a metric without labels stands at.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.node.metrics().render();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}
