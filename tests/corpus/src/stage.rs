//! Where stories are played: one server, workers and a client in one thread, on a virtual clock.
//! Nothing is left to chance: all of it is drawn from the story's name.

use std::{
    io,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use onward::{
    Client, Env as WorkerEnv, Worker, WorkerBuilder, WorkerHandle, Workflow, WorkflowHandle,
};
use onward_proto::{
    Timestamp,
    v1::{self, history_event::Attributes},
};
use onward_server::{
    BuildInfo,
    engine::Limits,
    env::{Env, TokioBootClock},
    serve_connections,
    shard::{Node, NodeOptions},
    store::{MemoryStore, Store},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::mpsc,
    task::LocalSet,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use twox_hash::XxHash3_64;

use crate::{Play, Workflows, activities};

/// When every story begins, in microseconds since the Unix epoch.
const DAWN_US: i64 = 1_790_000_000_000_000;
/// The queue of every worker.
pub(crate) const QUEUE: &str = "corpus";
/// The build of every worker.
const BUILD: &str = "build-1";
/// How long a packet travels, so that things happen while a task is on its way.
const WAY: Duration = Duration::from_millis(10);
/// Room in a pipe, and the most bytes that travel together.
const PIPE: usize = 64 << 10;
/// Memory that no story needs.
const PLENTY: usize = 64 << 20;

/// Plays a story in a runtime of its own, on this thread.
pub(crate) fn play(name: &str, play: Play) -> v1::History {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without input and output needs nothing");
    LocalSet::new().block_on(&runtime, async {
        let stage = Stage::new(name);
        play(&stage).await
    })
}

/// What connections lead to.
struct Server {
    dawn: Instant,
    seed: u64,
    limits: Mutex<Limits>,
    door: OnceLock<mpsc::UnboundedSender<io::Result<DuplexStream>>>,
}

impl Server {
    fn connect(&self) -> io::Result<DuplexStream> {
        let (client, near) = duplex(PIPE);
        let (far, server) = duplex(PIPE);
        let ((from_client, to_client), (from_server, to_server)) = (split(near), split(far));
        tokio::spawn(carry(from_client, to_server));
        tokio::spawn(carry(from_server, to_client));
        let door = self.door.get_or_init(|| self.start());
        door.send(Ok(server)).map_err(io::Error::other)?;
        Ok(client)
    }

    fn start(&self) -> mpsc::UnboundedSender<io::Result<DuplexStream>> {
        let dawn = self.dawn;
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(move || {
            Timestamp::from_micros(DAWN_US + dawn.elapsed().as_micros() as i64)
        }));
        let env = Env::seeded(Arc::new(TokioBootClock::start()), self.seed);
        let node = Node::new(NodeOptions {
            env: env.clone(),
            store,
            limits: self.limits.lock().unwrap().clone(),
            cache_bytes: PLENTY,
            waiting_bytes: PLENTY,
            shards: 1,
        });
        let (door, incoming) = mpsc::unbounded_channel();
        drop(env.spawn(serve_connections(
            node,
            BuildInfo::default(),
            UnboundedReceiverStream::new(incoming),
            std::future::pending(),
            Duration::from_secs(10),
        )));
        door
    }
}

async fn carry(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
    let mut packet = vec![0; PIPE];
    while let Ok(bytes @ 1..) = from.read(&mut packet).await {
        sleep(WAY).await;
        if to.write_all(&packet[..bytes]).await.is_err() {
            return;
        }
    }
    // The other end may have gone first.
    let _ = to.shutdown().await;
}

/// One story's world.
pub(crate) struct Stage {
    dawn: Instant,
    seed: u64,
    server: Arc<Server>,
    /// Who starts workflows and sends to them.
    pub(crate) client: Client,
}

impl Stage {
    fn new(name: &str) -> Self {
        let (dawn, seed) = (Instant::now(), XxHash3_64::oneshot(name.as_bytes()));
        let server = Server { dawn, seed, limits: Mutex::default(), door: OnceLock::new() };
        let server = Arc::new(server);
        let client = client(&server, seed, "customer");
        Self { dawn, seed, server, client }
    }

    /// Changes the server's limits. It comes before all else.
    pub(crate) fn limit(&self, change: impl FnOnce(&mut Limits)) {
        assert!(self.server.door.get().is_none(), "the server runs already");
        change(&mut self.server.limits.lock().unwrap());
    }

    /// Another client; its name decides what it draws.
    pub(crate) fn client(&self, identity: &str) -> Client {
        client(&self.server, self.seed, identity)
    }

    /// A worker with everything.
    pub(crate) async fn worker(&self) -> WorkerHandle {
        self.worker_named("worker").await
    }

    /// A worker with everything, by another name.
    pub(crate) async fn another_worker(&self) -> WorkerHandle {
        self.worker_named("another worker").await
    }

    async fn worker_named(&self, identity: &str) -> WorkerHandle {
        self.build(identity)
            .workflows::<Workflows>()
            .activities::<activities::All>()
            .spawn()
            .await
            .unwrap()
    }

    /// A worker that has nothing yet.
    pub(crate) fn build(&self, identity: &str) -> WorkerBuilder<()> {
        let seed = XxHash3_64::oneshot_with_seed(self.seed, identity.as_bytes());
        Worker::builder(self.client(identity), QUEUE)
            .identity(identity)
            .build_id(BUILD)
            .env(WorkerEnv::simulated(seed))
    }

    /// Waits until an event of the run is like that.
    pub(crate) async fn until<W: Workflow>(
        &self,
        run: &WorkflowHandle<W>,
        is_it: impl Fn(&Attributes) -> bool,
    ) {
        let happened = |history: &v1::History| {
            history.events.iter().filter_map(|event| event.attributes.as_ref()).any(&is_it)
        };
        while !happened(&run.history().await.unwrap()) {
            sleep(Duration::from_millis(250)).await;
        }
    }

    /// How long it is until then, by the server's clock.
    pub(crate) fn until_time(&self, time_us: i64) -> Duration {
        let since_dawn = Duration::from_micros((time_us - DAWN_US).unsigned_abs());
        since_dawn.saturating_sub(self.dawn.elapsed())
    }

    /// The history of a run once it has come to its end, however it ends.
    pub(crate) async fn ended<W: Workflow>(&self, run: &WorkflowHandle<W>) -> v1::History {
        drop(run.result().await);
        run.history().await.unwrap()
    }
}

fn client(server: &Arc<Server>, seed: u64, identity: &str) -> Client {
    let server = Arc::clone(server);
    Client::builder()
        .connector(move || {
            let connected = server.connect();
            async move { connected }
        })
        .identity(identity)
        .retry_for(Duration::from_mins(1))
        .seed(XxHash3_64::oneshot_with_seed(seed, identity.as_bytes()))
        .build()
        .expect("the address is ours")
}

/// Milliseconds.
pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
