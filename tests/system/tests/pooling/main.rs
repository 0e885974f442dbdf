//! A server whose Postgres stands behind pgbouncer, and kills of both while runs go through.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use onward::{Client, WorkflowHandle, prelude::*};
use onward_proto::v1::history_event::Attributes;
use onward_test_postgres::{Cluster, Pgbouncer, PoolMode};
use tokio::task::JoinSet;

const QUEUE: &str = "pooling";
/// Runs that are kept open.
const OPEN: u32 = 80;
/// A kill that finds fewer does not count.
const OPEN_AT_LEAST: u64 = 50;
/// Completions between two kills.
const PROGRESS: u64 = 40;

/// The effects of activities, by run and place.
#[derive(Clone, Default, Deps)]
struct Effects {
    left: Arc<Mutex<BTreeSet<(u64, u32)>>>,
}

#[activity(timeout = "60s", retry(initial = "100ms", max_interval = "1s"))]
async fn noted(ctx: &ActivityCtx<Effects>, number: u64, place: u32) -> onward::Result<u32> {
    ctx.left.lock().unwrap().insert((number, place));
    Ok(place)
}

#[workflow]
async fn three_steps(ctx: &Ctx, number: u64) -> onward::Result<u32> {
    let mut sum = 0;
    for place in 1..=3 {
        sum += noted(ctx, number, place).await?;
    }
    Ok(sum)
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_of_a_postgres_session_pooler_and_its_server() {
    pooler_and_server_are_killed(PoolMode::Session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_of_a_postgres_transaction_pooler_and_its_server() {
    pooler_and_server_are_killed(PoolMode::Transaction).await;
}

/// Every run completes, each of its activities exactly once, and the batches are of one writer at
/// a time.
async fn pooler_and_server_are_killed(mode: PoolMode) {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::shared();
    let database = cluster.create_database();
    let pooler = Pgbouncer::start(cluster, mode).unwrap();
    let mut server = Server::start(pooler.url(&database), mode, dir.path());
    server.listens().await;
    let client =
        Client::builder().address(server.address()).retry_for(Duration::from_mins(3)).build();
    let client = client.unwrap();
    let effects = Effects::default();
    let worker = Worker::builder(client.clone(), QUEUE)
        .deps(effects.clone())
        .workflows::<(three_steps,)>()
        .activities::<(noted,)>()
        .spawn()
        .await
        .unwrap();
    let mut load = Load::start(&client);

    // The server stays: its connections end, and it goes on by itself.
    for _ in 0..2 {
        load.ready_for_a_kill(&server).await;
        pooler.kill().unwrap();
        pooler.start_again().unwrap();
    }
    // The pooler stays: it has to roll back what the server left.
    load.ready_for_a_kill(&server).await;
    server.kill();
    server.start_again();
    // Both.
    load.ready_for_a_kill(&server).await;
    pooler.kill().unwrap();
    server.kill();
    pooler.start_again().unwrap();
    server.start_again();
    load.ready_for_a_kill(&server).await;

    let handles = load.finish(&server).await;
    for handle in &handles {
        let history = handle.history().await.unwrap();
        let mut completed = BTreeSet::new();
        for event in history.events {
            if let Some(Attributes::ActivityCompleted(event)) = event.attributes {
                assert!(completed.insert(event.number), "{} has two ends", handle.id());
            }
        }
        assert_eq!(completed.len(), 3, "{}", handle.id());
    }
    assert_eq!(
        effects.left.lock().unwrap().len(),
        3 * handles.len(),
        "an effect for each activity"
    );
    let broken = "SELECT count(*) FROM (
            SELECT commit_seq - lag(commit_seq) OVER shard AS step,
                   epoch - lag(epoch) OVER shard AS newer
            FROM batch WINDOW shard AS (PARTITION BY shard_id ORDER BY commit_seq)
        ) AS pair WHERE step <> 1 OR newer < 0";
    assert_eq!(cluster.psql(&database, broken), "0", "gaps, or epochs that fall");
    worker.shutdown().await.unwrap();
}

/// Keeps runs open until it is told to stop.
struct Load {
    shared: Arc<Shared>,
    starters: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    started: AtomicU64,
    completed: AtomicU64,
    handles: Mutex<Vec<WorkflowHandle<three_steps>>>,
}

impl Load {
    fn start(client: &Client) -> Self {
        let shared = Arc::new(Shared::default());
        let mut starters = JoinSet::new();
        for _ in 0..OPEN {
            let (client, shared) = (client.clone(), shared.clone());
            starters.spawn(async move {
                while !shared.stop.load(Ordering::Acquire) {
                    let number = shared.started.fetch_add(1, Ordering::AcqRel);
                    let start = three_steps(&client, number).id(format!("steps-{number}"));
                    let handle = start.queue(QUEUE).start().await.unwrap();
                    assert_eq!(handle.result().await.unwrap(), 6);
                    shared.handles.lock().unwrap().push(handle);
                    shared.completed.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        Self { shared, starters }
    }

    /// Waits for progress since now, and for enough open runs.
    async fn ready_for_a_kill(&mut self, server: &Server) {
        let completed = || self.shared.completed.load(Ordering::Acquire);
        let open = || self.shared.started.load(Ordering::Acquire) - completed();
        let target = completed() + PROGRESS;
        let ready = async {
            while completed() < target || open() < OPEN_AT_LEAST {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(2)) => {}
                    Some(ended) = self.starters.join_next() => ended.unwrap(),
                }
            }
        };
        let patience = Duration::from_mins(1);
        let in_time = tokio::time::timeout(patience, ready).await.is_ok();
        assert!(in_time, "{} of {target} runs completed:\n{}", completed(), server.log());
    }

    async fn finish(mut self, server: &Server) -> Vec<WorkflowHandle<three_steps>> {
        self.shared.stop.store(true, Ordering::Release);
        let all = async {
            while let Some(ended) = self.starters.join_next().await {
                ended.unwrap();
            }
        };
        let in_time = tokio::time::timeout(Duration::from_mins(1), all).await.is_ok();
        assert!(in_time, "runs stay open:\n{}", server.log());
        std::mem::take(&mut *self.shared.handles.lock().unwrap())
    }
}

/// The real program, killed when it is dropped.
struct Server {
    args: Vec<String>,
    port: u16,
    log: PathBuf,
    process: Child,
}

impl Server {
    fn start(store: String, mode: PoolMode, dir: &Path) -> Self {
        let port = free_port(mode);
        let mut args: Vec<String> =
            ["server", "--unsafe-allow", "--http-listen", "off"].map(str::to_owned).into();
        args.extend(["--store".into(), store, "--listen".into(), format!("127.0.0.1:{port}")]);
        if mode == PoolMode::Transaction {
            args.push("--pg-transaction-pooling".into());
        }
        let log = dir.join("server.log");
        let process = spawn(&args, &log);
        Self { args, port, log, process }
    }

    fn start_again(&mut self) {
        self.process = spawn(&self.args, &self.log);
    }

    fn kill(&mut self) {
        assert_eq!(self.process.try_wait().unwrap(), None, "it has ended:\n{}", self.log());
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// A client's first call does not wait for a server that is not there.
    async fn listens(&mut self) {
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert_eq!(self.process.try_wait().unwrap(), None, "it has ended:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The program beside the test's own, with nothing of Onward's in its environment.
fn spawn(args: &[String], log: &Path) -> Child {
    let exe = std::env::current_exe().unwrap();
    let program = exe.ancestors().skip(1).take(2).map(|dir| dir.join("onward"));
    let program = program.into_iter().find(|path| path.exists());
    let program = program.expect("the workspace is built: `cargo build --workspace`");
    let log = || File::options().create(true).append(true).open(log).unwrap();
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(log()).stderr(log());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ONWARD_") {
            command.env_remove(name);
        }
    }
    command.spawn().unwrap()
}

/// A port below those that the system hands out to connections, so that nobody has it while its
/// server is down.
fn free_port(mode: PoolMode) -> u16 {
    let from = 12_000 + if mode == PoolMode::Session { 0 } else { 4_000 };
    let offset = u16::try_from(std::process::id() % 2_000).unwrap();
    (from + offset..from + 4_000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("some port is free")
}
