//! The cluster itself. Names hold `postgres`, so that a run without Postgres can leave them out.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use onward_test_postgres::{Cluster, ClusterOptions, Durability, Pgbouncer, PoolMode};

#[test]
fn postgres_databases_are_apart() {
    let cluster = Cluster::shared();
    let (one, other) = (cluster.create_database(), cluster.create_database());
    cluster.psql(&one, "CREATE TABLE only_here (n int); INSERT INTO only_here VALUES (1), (2)");
    assert_eq!(cluster.psql(&one, "SELECT n, n * 2 FROM only_here ORDER BY n"), "1|2\n2|4");
    let error = cluster.try_psql(&other, "TABLE only_here").unwrap_err();
    assert!(error.contains("does not exist"), "{error}");
}

#[test]
fn postgres_commits_outlive_a_crash() {
    let cluster = Cluster::start(Durability::Durable).unwrap();
    let db = cluster.create_database();
    cluster.psql(&db, "CREATE TABLE t AS SELECT 7 AS n");
    assert_eq!(cluster.psql(&db, "SHOW fsync"), "on");
    let first_pid = cluster.pid();

    cluster.stop_immediate().unwrap();
    assert!(cluster.try_psql(&db, "SELECT 1").is_err());
    assert!(cluster.stop_immediate().is_err());
    cluster.start_again().unwrap();
    assert!(cluster.start_again().is_err());
    assert_eq!(cluster.psql(&db, "TABLE t"), "7");
    assert_ne!(cluster.pid(), first_pid);

    // A postmaster killed from outside leaves its lock file; starting again copes with that.
    assert!(
        Command::new("sh")
            .arg("-c")
            .arg(format!("kill -9 {}", cluster.pid()))
            .status()
            .unwrap()
            .success()
    );
    wait_until("the server is gone", || cluster.start_again().is_ok());
    assert_eq!(cluster.psql(&db, "TABLE t"), "7");

    cluster.restart().unwrap();
    assert_eq!(cluster.psql(&db, "TABLE t"), "7");
}

#[test]
fn postgres_listens_on_tcp_when_asked() {
    let cluster =
        Cluster::start(ClusterOptions::default().tcp().setting("work_mem", "5MB")).unwrap();
    TcpStream::connect(("127.0.0.1", cluster.tcp_port())).unwrap();
    assert_eq!(cluster.psql(&cluster.tcp_url("postgres"), "SHOW work_mem"), "5MB");
    assert_eq!(cluster.psql("postgres", "SHOW fsync"), "off");
}

#[test]
fn postgres_goes_with_its_owner() {
    let cluster = Cluster::start(Durability::None).unwrap();
    let (data_dir, pid) = (cluster.data_dir(), cluster.pid());
    assert!(data_dir.join("PG_VERSION").exists() && is_running(pid));
    drop(cluster);
    assert!(!data_dir.exists() && !is_running(pid));
}

#[test]
fn postgres_goes_with_an_owner_that_is_killed() {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_onward-test-postgres"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(owner.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let home = Path::new(url.trim().split_once("?host=").unwrap().1).to_owned();
    let lock = std::fs::read_to_string(home.join("data/postmaster.pid")).unwrap();
    let pid: u32 = lock.lines().next().unwrap().parse().unwrap();

    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_until("the directory is deleted", || !home.exists());
    wait_until("the server is gone", || !is_running(pid));
}

#[test]
fn postgres_is_reached_through_pgbouncer() {
    let cluster = Cluster::shared();
    let db = cluster.create_database();
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let pooler = Pgbouncer::start(cluster, mode).unwrap();
        let url = pooler.url(&db);
        assert_eq!(
            cluster.psql(&url, "SELECT current_database()"),
            cluster.psql(&db, "SELECT current_database()")
        );
        let (home, pid) = (pooler.home().to_owned(), pooler.pid());

        pooler.kill().unwrap();
        assert!(!is_running(pid));
        assert!(cluster.try_psql(&url, "SELECT 1").is_err());
        assert!(pooler.kill().is_err());
        pooler.start_again().unwrap();
        assert!(pooler.start_again().is_err());
        assert_eq!(cluster.psql(&url, "SELECT 1"), "1");

        let pid = pooler.pid();
        drop(pooler);
        assert!(!home.exists() && !is_running(pid));
    }
}

#[test]
fn postgres_pooler_goes_with_an_owner_that_is_killed() {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_onward-test-postgres"))
        .args(["--pgbouncer", "transaction"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(owner.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let home = Path::new(url.trim().split_once("?host=").unwrap().1).to_owned();
    let pid: u32 = std::fs::read_to_string(home.join("pid")).unwrap().trim().parse().unwrap();
    assert!(is_running(pid));

    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_until("the directory is deleted", || !home.exists());
    wait_until("pgbouncer is gone", || !is_running(pid));
}

fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
