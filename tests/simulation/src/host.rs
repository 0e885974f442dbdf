//! Server processes: started, frozen, thawed and killed.

use std::{io, sync::Arc, time::Duration};

use onward_server::{
    BuildInfo,
    engine::Limits,
    env::{Env, SimulatedProcess, TokioBootClock},
    serve_connections,
    shard::{Node, NodeOptions},
    store::{MemoryStore, Store},
};
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use uuid::Uuid;

use crate::story::Story;

/// One server process.
pub(crate) struct Host {
    process: SimulatedProcess,
    node: Arc<Node>,
    door: mpsc::UnboundedSender<io::Result<DuplexStream>>,
    pub(crate) frozen: bool,
}

impl Host {
    /// Starts a server on a connection of its own to the database.
    pub(crate) fn start(story: &Story, store: &MemoryStore, seed: u64) -> Self {
        let process = SimulatedProcess::default();
        let clock = Arc::new(TokioBootClock::start());
        let env = Env::seeded(clock, seed).in_process(process.clone());
        let store: Arc<dyn Store> = Arc::new(store.clone());
        let node = Node::new(NodeOptions {
            env: env.clone(),
            store,
            limits: Limits::default(),
            cache_bytes: story.cache_bytes,
            waiting_bytes: story.waiting_bytes,
            shards: story.shards,
        });
        let (door, incoming) = mpsc::unbounded_channel::<io::Result<DuplexStream>>();
        drop(env.spawn(serve_connections(
            Arc::clone(&node),
            BuildInfo::default(),
            UnboundedReceiverStream::new(incoming),
            std::future::pending(),
            Duration::from_secs(10),
        )));
        Self { process, node, door, frozen: false }
    }

    /// Somebody connects.
    pub(crate) fn accept(&self, connection: DuplexStream) -> io::Result<()> {
        self.door.send(Ok(connection)).map_err(io::Error::other)
    }

    /// The process, as the store knows it.
    pub(crate) fn id(&self) -> Uuid {
        self.node.id().0
    }

    /// Whether it serves every shard.
    pub(crate) fn is_ready(&self) -> bool {
        self.node.is_ready()
    }

    pub(crate) fn freeze(&mut self) {
        self.frozen = true;
        self.process.freeze();
    }

    pub(crate) fn thaw(&mut self) {
        self.frozen = false;
        self.process.thaw();
    }

    /// It is gone; its connections have to be cut with it.
    pub(crate) fn kill(self) {
        self.process.kill();
    }
}
