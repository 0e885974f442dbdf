//! The whole server: store, node, sockets, and an orderly end.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use onward_proto::v1::{
    client_service_server::ClientServiceServer, worker_service_server::WorkerServiceServer,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpIncoming};

use crate::{
    api::{self, ClientApi, WorkerApi},
    engine::Limits,
    env::Env,
    shard::{Node, NodeOptions},
    store::{self, OpenError, OpenOptions},
};
use onward_proto::v1::{Drain, server_item};

/// How long clients have to close their connections once all work is done.
const LINGER: Duration = Duration::from_secs(2);

/// Version and commit, as `onward version` prints them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildInfo {
    /// The version.
    pub version: String,
    /// The commit it was built from.
    pub commit: String,
}

impl Default for BuildInfo {
    fn default() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), commit: "unknown".to_owned() }
    }
}

/// Where runs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// `postgres://…` or `sqlite://path`.
    pub url: String,
    /// Start in spite of settings that can lose acknowledged work.
    pub unsafe_allow: bool,
    /// Behind a transaction pooler that does not track prepared statements.
    pub pg_transaction_pooling: bool,
}

impl StoreConfig {
    /// A store with safe settings.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), unsafe_allow: false, pg_transaction_pooling: false }
    }
}

/// What a server is started with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Where gRPC listens. Port 0 means any free one.
    pub listen: SocketAddr,
    /// Where probes and metrics listen; `None` means nowhere.
    pub http_listen: Option<SocketAddr>,
    /// Where runs are kept.
    pub store: StoreConfig,
    /// How much of everything a run may have.
    pub limits: Limits,
    /// Version and commit.
    pub build: BuildInfo,
    /// How long an orderly end may take.
    pub drain: Duration,
    /// How many shards to make in an empty store; `None` means one for each core, at least 2.
    pub shards: Option<u16>,
    /// Bytes of runs that sleep or are closed that are kept in memory.
    pub cache_bytes: usize,
    /// Bytes of runs that wait for a worker that are kept in memory. Of more than those only ids
    /// are kept, until a worker comes.
    pub waiting_bytes: usize,
}

impl Config {
    /// The defaults: loopback, ports 7450 and 7451.
    pub fn new(store: StoreConfig) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], onward_proto::DEFAULT_PORT)),
            http_listen: Some(SocketAddr::from(([127, 0, 0, 1], onward_proto::DEFAULT_PORT + 1))),
            store,
            limits: Limits::default(),
            build: BuildInfo::default(),
            drain: Duration::from_secs(10),
            shards: None,
            cache_bytes: 32 << 20,
            waiting_bytes: 64 << 20,
        }
    }
}

/// Which of the two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// For clients and workers.
    Grpc,
    /// For probes and metrics.
    Http,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The socket cannot be had.
    #[error("cannot listen on {addr}: {source}")]
    Bind {
        /// Which of the two.
        port: Port,
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
}

/// Why a server ended badly.
#[derive(Debug, thiserror::Error)]
#[error("the gRPC server has failed: {0}")]
pub struct ServeError(#[from] tonic::transport::Error);

/// A server that has its sockets and its store, and serves once it is told to.
pub struct Server {
    node: Arc<Node>,
    grpc: TcpListener,
    http: Option<TcpListener>,
    build: BuildInfo,
    drain: Duration,
}

impl Server {
    /// Opens the store and binds the sockets.
    ///
    /// # Errors
    /// [`StartError`], each a whole sentence.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        // Sockets first: a port that is taken must not touch the store.
        let grpc = listen(Port::Grpc, config.listen).await?;
        let http = match config.http_listen {
            Some(addr) => Some(listen(Port::Http, addr).await?),
            None => None,
        };
        let options = OpenOptions {
            unsafe_allow: config.store.unsafe_allow,
            pg_transaction_pooling: config.store.pg_transaction_pooling,
            ..OpenOptions::default()
        };
        let store = store::open(&config.store.url, options).await?;
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get) as u16;
        let shards = config.shards.unwrap_or(cores.max(2));
        let node = Node::new(NodeOptions {
            env: Env::system(),
            store,
            limits: config.limits,
            cache_bytes: config.cache_bytes / usize::from(shards.max(1)),
            waiting_bytes: config.waiting_bytes / usize::from(shards.max(1)),
            shards,
        });
        Ok(Self { node, grpc, http, build: config.build, drain: config.drain })
    }

    /// Where gRPC listens.
    ///
    /// # Panics
    /// If the socket has lost its address, which a bound one cannot.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc.local_addr().expect("a bound socket has an address")
    }

    /// Where probes and metrics listen.
    ///
    /// # Panics
    /// If the socket has lost its address, which a bound one cannot.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        let http = self.http.as_ref()?;
        Some(http.local_addr().expect("a bound socket has an address"))
    }

    /// `postgres`, `sqlite` or `memory`.
    pub fn store_kind(&self) -> &'static str {
        self.node.store.kind()
    }

    /// Serves until `shutdown` is ready, then drains: refuses what is new, commits what is staged,
    /// lets workers go, gives the leases back.
    ///
    /// # Errors
    /// When the gRPC server fails as a whole.
    ///
    /// # Cancel safety
    /// Dropping it is like a crash: nothing acknowledged is lost, leases run out by themselves.
    pub async fn serve(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        let Self { node, grpc, http, build, drain } = self;
        let probes = http.map(|http| {
            let app = api::router(Arc::clone(&node));
            node.env.spawn(async move {
                if let Err(error) = axum::serve(http, app).await {
                    tracing::error!(%error, "the HTTP port has failed");
                }
            })
        });
        let incoming = TcpIncoming::from(grpc).with_nodelay(Some(true));
        let served = serve_connections(node, build, incoming, shutdown, drain).await;
        if let Some(probes) = probes {
            // It holds nothing but the node, which would keep the store open. An answer that is
            // under way is cut, as it is when the process ends.
            probes.abort();
            drop(probes.await);
        }
        served
    }
}

async fn listen(port: Port, addr: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(addr).await.map_err(|source| StartError::Bind { port, addr, source })
}

/// Serves any stream of connections, for example in-memory pipes in a simulation.
///
/// # Errors
/// When the gRPC server fails as a whole.
pub async fn serve_connections<I, C, E>(
    node: Arc<Node>,
    build: BuildInfo,
    incoming: I,
    shutdown: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) -> Result<(), ServeError>
where
    I: Stream<Item = Result<C, E>> + Send + 'static,
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    C::ConnectInfo: Clone + Send + Sync + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    let (stop, stopped) = watch::channel(false);
    let (closed_tx, closed) = watch::channel(false);
    let env = node.env.clone();
    let lanes = node.env.spawn(crate::shard::serve(Arc::clone(&node), stopped));
    let ending = node.env.spawn(end(Arc::clone(&node), shutdown, stop, lanes, closed_tx, drain));

    let client = ClientServiceServer::new(ClientApi::new(Arc::clone(&node), build.clone()))
        .max_decoding_message_size(api::MAX_MESSAGE)
        .max_encoding_message_size(api::MAX_MESSAGE + (1 << 20));
    let worker = WorkerServiceServer::new(WorkerApi::new(Arc::clone(&node), build))
        .max_decoding_message_size(api::MAX_MESSAGE)
        .max_encoding_message_size(api::MAX_MESSAGE + (1 << 20));
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ClientServiceServer<ClientApi>>().await;
    health.set_serving::<WorkerServiceServer<WorkerApi>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(onward_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were compiled with this build");

    let ended = closed.clone();
    let serving = tonic::transport::Server::builder()
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(4 << 20)
        .max_concurrent_streams(4_096)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .http2_max_header_list_size(16 << 10)
        .http2_max_pending_accept_reset_streams(Some(20))
        .add_service(client)
        .add_service(worker)
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming_shutdown(incoming, is_true(closed));
    // Dropping the server closes its connections, which is all that is left to do by then.
    tokio::select! {
        served = serving => served?,
        () = async { is_true(ended).await; env.sleep(LINGER).await } => {
            tracing::warn!("connections that their clients keep open are cut");
        }
    }
    drop(ending.await);
    Ok(())
}

/// Waits for it to become true. That its sender is gone counts as well: it is the ending task.
async fn is_true(mut value: watch::Receiver<bool>) {
    drop(value.wait_for(|value| *value).await);
}

/// The orderly end: lanes commit and release, then sessions are let go, then connections close.
async fn end(
    node: Arc<Node>,
    shutdown: impl Future<Output = ()> + Send,
    stop: watch::Sender<bool>,
    lanes: tokio::task::JoinHandle<()>,
    closed: watch::Sender<bool>,
    drain: Duration,
) {
    shutdown.await;
    tracing::info!("draining");
    node.dispatch.refuse_sessions();
    for session in node.dispatch.sessions() {
        session.outbox().push(server_item::Kind::Drain(Drain {}));
    }
    // A receiver is always there: the lanes' task holds one.
    stop.send_replace(true);
    if tokio::time::timeout(drain, lanes).await.is_err() {
        tracing::warn!(seconds = drain.as_secs(), "the drain took too long; leases will run out");
    }
    for session in node.dispatch.sessions() {
        session.outbox().close();
    }
    node.store.close().await;
    closed.send_replace(true);
}
