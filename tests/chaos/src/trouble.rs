//! What can happen.

use std::{fs, io::Write as _, time::Duration};

use onward_system_tests::{Process, Server, free_port, program, proxy::BatchFault, within};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection as _, PgConnection};
use tokio::{task::block_in_place, time::sleep};

use crate::{
    Store,
    scene::{CONNECTIONS, Database, Postgres, Scene},
};

/// One kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The server is killed, and starts again.
    KillServer,
    /// The server is asked to end, and starts again.
    StopServer,
    /// The server stands still, maybe past its lease.
    FreezeServer,
    /// A second server starts on the same data. On Postgres it takes over while the first one
    /// stands still, and is killed when that one is back.
    RivalServer,
    /// A worker is killed, and starts again.
    KillWorker,
    /// A worker stands still, maybe longer than its session lasts.
    FreezeWorker,
    /// The connections of a client, a worker or the server's to the database are reset.
    ResetLink,
    /// Nothing comes through them, in one direction or both.
    StallLink,
    /// They are slow.
    DelayLink,
    /// The disk is full.
    FullDisk,
    /// Postgres stops at once, and starts again.
    CrashDatabase,
    /// A Postgres session is killed, and with it all others.
    KillBackend,
    /// Some Postgres sessions are ended.
    EndBackends,
    /// Postgres takes no writes.
    ReadOnly,
    /// Somebody locks a table.
    LockTable,
    /// Others take all connections, and those of the server end.
    EatConnections,
    /// The connection breaks just before or just behind a batch.
    CutBatch,
    /// The connection breaks, and the batch arrives later.
    LateBatch,
}

impl Trouble {
    /// What can happen on this store.
    pub fn all(store: Store) -> Vec<Self> {
        let mut all = vec![
            Self::KillServer,
            Self::StopServer,
            Self::FreezeServer,
            Self::RivalServer,
            Self::KillWorker,
            Self::FreezeWorker,
            Self::ResetLink,
            Self::StallLink,
            Self::DelayLink,
            Self::FullDisk,
        ];
        if store == Store::Postgres {
            all.extend([
                Self::CrashDatabase,
                Self::KillBackend,
                Self::EndBackends,
                Self::ReadOnly,
                Self::LockTable,
                Self::EatConnections,
                Self::CutBatch,
                Self::LateBatch,
            ]);
        }
        all
    }
}

/// Lets something happen and takes it back again. `None` if something else is happening to what it
/// is about.
pub(crate) async fn befall(
    scene: &Scene,
    trouble: Trouble,
    longest: Duration,
    rng: &mut fastrand::Rng,
) -> Option<()> {
    let lasts = longest.mul_f64(rng.f64().powi(2));
    match trouble {
        Trouble::KillServer => {
            let mut server = scene.server.try_lock().ok()?;
            let _needed = scene.database.try_lock().ok()?;
            server.kill().await;
            sleep(lasts / 8).await;
            server.start_again().await;
        }
        Trouble::StopServer => {
            let mut server = scene.server.try_lock().ok()?;
            let _needed = scene.database.try_lock().ok()?;
            server.stop().await;
            sleep(lasts / 8).await;
            server.start_again().await;
        }
        Trouble::FreezeServer => {
            let server = scene.server.try_lock().ok()?;
            server.process().freeze();
            sleep(lasts).await;
            server.process().thaw();
        }
        Trouble::RivalServer => {
            let server = scene.server.try_lock().ok()?;
            let database = scene.database.try_lock().ok()?;
            match &*database {
                Database::Sqlite(dir) => refused_server(dir, scene).await,
                Database::Postgres(_) => rival(scene, &server, &database, rng).await,
            }
        }
        Trouble::KillWorker => {
            let mut worker = scene.workers[rng.usize(0..scene.workers.len())].try_lock().ok()?;
            worker.kill().await;
            sleep(lasts / 8).await;
            worker.start_again();
        }
        Trouble::FreezeWorker => {
            let mut worker = scene.workers[rng.usize(0..scene.workers.len())].try_lock().ok()?;
            worker.process().freeze();
            sleep(2 * lasts).await;
            worker.process().thaw();
        }
        Trouble::ResetLink | Trouble::StallLink | Trouble::DelayLink => {
            let links = scene.links();
            // Most often the way to the database, if there is one.
            let database = scene.database.try_lock().ok().filter(|_| rng.bool());
            let link = match database.as_deref() {
                Some(Database::Postgres(postgres)) => &postgres.way,
                Some(Database::Sqlite(_)) | None => links[rng.usize(0..links.len())],
            };
            match trouble {
                Trouble::StallLink => {
                    let (there, back) =
                        [(true, true), (true, false), (false, true)][rng.usize(0..3)];
                    link.stall(there, back);
                    sleep(lasts).await;
                    link.stall(false, false);
                }
                Trouble::DelayLink => {
                    link.delay(Duration::from_millis(rng.u64(1..100)));
                    sleep(lasts).await;
                    link.delay(Duration::ZERO);
                }
                _ => link.reset(),
            }
        }
        Trouble::FullDisk => {
            let disk = scene.disk.as_ref()?;
            let _server = scene.server.try_lock().ok()?;
            let database = scene.database.try_lock().ok()?;
            let filler = disk.path.join("filler");
            block_in_place(|| fill(&filler));
            sleep(lasts).await;
            fs::remove_file(&filler).unwrap();
            if let Database::Postgres(postgres) = &*database {
                // It may have ended itself, and ends when it cannot recover.
                block_in_place(|| postgres.revive());
            }
        }
        Trouble::CrashDatabase
        | Trouble::KillBackend
        | Trouble::EndBackends
        | Trouble::ReadOnly
        | Trouble::LockTable
        | Trouble::EatConnections
        | Trouble::CutBatch
        | Trouble::LateBatch => {
            let database = scene.database.try_lock().ok()?;
            let Database::Postgres(postgres) = &*database else { return None };
            befall_postgres(postgres, trouble, lasts, rng).await;
        }
    }
    Some(())
}

async fn befall_postgres(
    postgres: &Postgres,
    trouble: Trouble,
    lasts: Duration,
    rng: &mut fastrand::Rng,
) {
    match trouble {
        Trouble::CrashDatabase => {
            block_in_place(|| postgres.cluster.stop_immediate()).unwrap();
            sleep(lasts / 4).await;
            block_in_place(|| postgres.cluster.start_again()).unwrap();
        }
        Trouble::KillBackend => {
            let pid = block_in_place(|| postgres.psql(&format!("SELECT pid {SESSIONS} LIMIT 1")));
            if let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
                block_in_place(|| postgres.revive());
            }
        }
        Trouble::EndBackends => {
            let count = rng.u8(1..6);
            let sql = format!(
                "SELECT count(pg_terminate_backend(pid)) FROM
                 (SELECT pid {SESSIONS} ORDER BY random() LIMIT {count}) AS victim"
            );
            block_in_place(|| postgres.psql(&sql));
        }
        Trouble::ReadOnly => {
            postgres.set_read_only(true);
            sleep(lasts).await;
            postgres.set_read_only(false);
        }
        Trouble::LockTable => {
            let table = ["shard", "batch", "run", "journal", "pending"][rng.usize(0..5)];
            let mut connection = PgConnection::connect(&postgres.url).await.unwrap();
            // Who waits for it may end this session.
            let sql = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
            let locked = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await;
            sleep(lasts).await;
            // It ends with its session, if that has not ended.
            drop((locked, connection));
        }
        Trouble::EatConnections => {
            let elsewhere = postgres.cluster.url("postgres");
            let mut eaten = Vec::new();
            for _ in 0..CONNECTIONS {
                let Ok(connection) = PgConnection::connect(&elsewhere).await else { break };
                eaten.push(connection);
            }
            if let Some(connection) = eaten.first_mut() {
                let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname <> current_database()";
                let _ = sqlx::raw_sql(ended).execute(connection).await;
            }
            sleep(lasts).await;
        }
        Trouble::CutBatch => {
            let fault = if rng.bool() { BatchFault::CutBefore } else { BatchFault::CutAfter };
            postgres.wire.strike(fault).await;
        }
        Trouble::LateBatch => {
            let fault = if rng.bool() { BatchFault::Hold } else { BatchFault::HoldSync };
            postgres.wire.strike(fault).await;
            sleep(lasts).await;
            postgres.wire.release().await;
        }
        other => unreachable!("{other:?} is not about Postgres"),
    }
}

/// Sessions of others in the same database.
const SESSIONS: &str = "FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()";

impl Postgres {
    fn psql(&self, sql: &str) -> String {
        self.cluster.try_psql(&self.url, sql).unwrap_or_default()
    }

    /// Waits until it takes connections, and starts it if it has ended.
    fn revive(&self) {
        for _ in 0..600 {
            // An error says that it runs.
            let _ = self.cluster.start_again();
            if self.cluster.try_psql(&self.url, "SELECT 1").is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("Postgres does not come back");
    }

    /// By its file: a database that is read-only takes no settings.
    fn set_read_only(&self, read_only: bool) {
        let path = self.cluster.data_dir().join("postgresql.auto.conf");
        let setting = if read_only { "default_transaction_read_only = on\n" } else { "" };
        fs::write(path, setting).unwrap();
        block_in_place(|| self.psql("SELECT pg_reload_conf()"));
    }
}

/// Writes until there is no room left.
fn fill(path: &std::path::Path) {
    let mut file = fs::File::create(path).unwrap();
    let mut size = 1 << 20;
    while size > 0 {
        if file.write_all(&vec![0; size]).is_err() {
            size /= 2;
        }
    }
}

/// A second server takes over while the first one stands still. Clients and workers go to it, and
/// back when it is killed.
async fn rival(scene: &Scene, server: &Server, database: &Database, rng: &mut fastrand::Rng) {
    let mut rival = Server::start(database.store_url(), &scene.dir).await;
    sleep(Duration::from_millis(rng.u64(0..2_000))).await;
    server.process().freeze();
    scene.lead_to(rival.port());
    sleep(Duration::from_millis(rng.u64(3_000..8_000))).await;
    server.process().thaw();
    sleep(Duration::from_millis(rng.u64(0..2_000))).await;
    if rng.bool() {
        rival.kill().await;
    } else {
        rival.stop().await;
    }
    scene.lead_to(server.port());
}

/// A second server on the same file does not start.
async fn refused_server(dir: &std::path::Path, scene: &Scene) {
    let mut args = vec!["dev".to_owned(), "--data-dir".to_owned(), dir.display().to_string()];
    args.extend(["--listen".to_owned(), format!("127.0.0.1:{}", free_port())]);
    args.extend(["--http-listen".to_owned(), "off".to_owned()]);
    let mut second = Process::start(&program("onward"), &args, &scene.dir.join("second.log"));
    let status = within(30, "the second server gives up", second.ended()).await;
    assert_eq!(status.code(), Some(1), "a second server starts on the same file");
}
