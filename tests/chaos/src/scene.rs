//! The processes, and the ways between them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use onward::Client;
use onward_system_tests::{
    Server, StoreUrl, WorkerProcess, client_of,
    proxy::{PostgresProxy, Proxy},
};
use onward_test_postgres::{Cluster, ClusterOptions};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::sync::Mutex;

use crate::Store;

/// Connections that Postgres takes; few, so that somebody can take them all.
pub(crate) const CONNECTIONS: u32 = 60;
const WORKERS: usize = 4;
pub(crate) const CLIENTS: usize = 8;
/// Room on a disk that somebody will fill.
const DISK: &str = "1500m";

/// What is going to happen there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Trouble: the disk is small, workers are many, and every batch is kept for the checker.
    Rough,
    /// Nothing but work: one server and one worker as they are, and the server's metrics.
    Calm,
}

/// Everything that runs. Who does something to a part of it locks that part, so that no two troubles
/// undo each other.
pub(crate) struct Scene {
    pub(crate) server: Mutex<Server>,
    pub(crate) workers: Vec<Mutex<WorkerProcess>>,
    /// One for each client.
    doors: Vec<Proxy>,
    /// One for each worker.
    ways: Vec<Proxy>,
    pub(crate) database: Mutex<Database>,
    /// A disk of its own for the database, if there can be one.
    pub(crate) disk: Option<Disk>,
    pub(crate) dir: PathBuf,
}

/// Where the server keeps its runs.
pub(crate) enum Database {
    Sqlite(PathBuf),
    Postgres(Box<Postgres>),
}

pub(crate) struct Postgres {
    pub(crate) cluster: Cluster,
    /// Straight to it, past all proxies.
    pub(crate) url: String,
    /// Knows what a batch is.
    pub(crate) wire: PostgresProxy,
    /// Knows nothing, and stands before the other one.
    pub(crate) way: Proxy,
    /// What the server is told.
    server_url: String,
}

impl Scene {
    pub(crate) async fn set(store: Store, mood: Mood, dir: &Path) -> Self {
        let rough = mood == Mood::Rough;
        let disk = rough.then(|| Disk::mount(&dir.join("disk"))).flatten();
        let home = disk.as_ref().map_or_else(|| dir.to_owned(), |disk| disk.path.clone());
        let database = match store {
            Store::Sqlite => Database::Sqlite(home.join("data")),
            Store::Postgres => Database::Postgres(Box::new(Postgres::start(home).await)),
        };
        let server = if rough {
            let mut server = Server::start(database.store_url(), dir).await;
            server.stop().await;
            database.keep_batches().await;
            server.start_again().await;
            server
        } else {
            Server::start_with_metrics(database.store_url(), dir).await
        };
        let mut doors = Vec::new();
        for _ in 0..CLIENTS {
            doors.push(Proxy::start(server.port()).await);
        }
        let (mut ways, mut workers) = (Vec::new(), Vec::new());
        for n in 0..if rough { WORKERS } else { 1 } {
            let way = Proxy::start(server.port()).await;
            // Some keep hardly a workflow in memory: theirs are replayed all the time.
            let cached = if rough && n == 0 { "2" } else { "1000" };
            workers.push(Mutex::new(worker(n, cached, &way, dir)));
            ways.push(way);
        }
        Self {
            server: Mutex::new(server),
            workers,
            doors,
            ways,
            database: Mutex::new(database),
            disk,
            dir: dir.to_owned(),
        }
    }

    /// A client by its own door.
    pub(crate) fn client(&self, n: usize) -> Client {
        let patience = std::time::Duration::from_hours(10);
        let door = self.doors[n % CLIENTS].address();
        Client::builder().address(door).retry_for(patience).build().unwrap()
    }

    /// A client that nothing stands before.
    pub(crate) async fn client_within(&self) -> Client {
        client_of(&self.server.lock().await.address())
    }

    /// Ways to the server that somebody may break at any time.
    pub(crate) fn links(&self) -> Vec<&Proxy> {
        self.doors.iter().chain(&self.ways).collect()
    }

    /// All clients and workers go to the server on this port.
    pub(crate) fn lead_to(&self, port: u16) {
        self.links().iter().for_each(|link| link.lead_to(port));
    }

    /// The files in which workers take notes.
    pub(crate) fn notes(&self) -> Vec<PathBuf> {
        (0..self.workers.len()).map(|n| notes_path(n, &self.dir)).collect()
    }

    /// What servers and workers have logged.
    pub(crate) fn logs(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(&self.dir).unwrap().map(|file| file.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect()
    }
}

fn worker(n: usize, cached: &str, way: &Proxy, dir: &Path) -> WorkerProcess {
    let notes = notes_path(n, dir).display().to_string();
    let name = format!("worker-{n}");
    let args = ["--address", &way.address(), "--notes", &notes, "--name", &name];
    let args = args.into_iter().chain(["--cached-workflows", cached]).map(str::to_owned).collect();
    WorkerProcess::of("chaos-worker", args, dir.join(format!("{name}.log")))
}

fn notes_path(n: usize, dir: &Path) -> PathBuf {
    dir.join(format!("worker-{n}.notes"))
}

impl Database {
    pub(crate) fn store_url(&self) -> StoreUrl {
        match self {
            Self::Sqlite(dir) => StoreUrl::Sqlite(dir.clone()),
            Self::Postgres(postgres) => StoreUrl::Postgres(postgres.server_url.clone()),
        }
    }

    /// The checker wants to see every batch; the server deletes old ones.
    async fn keep_batches(&self) {
        match self {
            Self::Sqlite(dir) => {
                let options = SqliteConnectOptions::new().filename(dir.join("onward.db"));
                let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
                let ignore =
                    "CREATE TRIGGER keep BEFORE DELETE ON batch BEGIN SELECT RAISE(IGNORE); END";
                sqlx::query(ignore).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Self::Postgres(postgres) => {
                postgres.cluster.psql(
                    &postgres.url,
                    "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS
                         'BEGIN RETURN NULL; END';
                     CREATE TRIGGER keep BEFORE DELETE ON batch
                         FOR EACH ROW EXECUTE FUNCTION keep()",
                );
            }
        }
    }
}

impl Postgres {
    async fn start(home: PathBuf) -> Self {
        let mut options = ClusterOptions::durable()
            .tcp()
            .setting("max_connections", &CONNECTIONS.to_string())
            .setting("max_wal_size", "256MB");
        options.parent = Some(home);
        let cluster = Cluster::start(options).unwrap();
        let url = cluster.create_database();
        let database = url.split(['/', '?']).nth(3).unwrap().to_owned();
        let wire = PostgresProxy::start(cluster.tcp_port()).await;
        let way = Proxy::start(wire.port()).await;
        let server_url =
            format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", way.port());
        Self { cluster, url, wire, way, server_url }
    }
}

/// A small disk that is there as long as this.
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
}

impl Disk {
    /// `None` if this process may not mount anything.
    fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o"]).arg(format!("size={DISK},mode=0755")).arg("tmpfs");
        let mounted = mount.arg(path).output().is_ok_and(|output| output.status.success());
        mounted.then(|| Self { path: path.to_owned() })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is about to end may still have files there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}
