//! A way to Postgres on which all bytes vanish while its connections seem to stand.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use onward_server::store::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, copy_bidirectional, sink},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout},
};

use crate::world::*;

/// Whether bytes get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Neither on the connections of before nor on new ones.
    Silent,
}

/// A socket that leads to that of Postgres.
struct Tunnel {
    dir: tempfile::TempDir,
    way: watch::Sender<Way>,
    accepting: AbortHandle,
}

impl Tunnel {
    /// To the Postgres whose socket lies in this directory.
    fn to(postgres: &Path, port: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name = format!(".s.PGSQL.{port}");
        let listener = UnixListener::bind(dir.path().join(&name)).unwrap();
        let postgres = postgres.join(&name);
        let (way, ways) = watch::channel(Way::Open);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(pass(near, postgres.clone(), ways.clone()));
            }
        });
        Self { dir, way, accepting: accepting.abort_handle() }
    }

    /// What is connected goes silent, for ever; what comes gets through.
    fn lose_all(&self) {
        self.way.send_replace(Way::Open);
    }

    /// Nothing gets through any more.
    fn fall_silent(&self) {
        self.way.send_replace(Way::Silent);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(mut near: UnixStream, postgres: PathBuf, mut ways: watch::Receiver<Way>) {
    if *ways.borrow_and_update() == Way::Open {
        let mut far = UnixStream::connect(postgres).await.unwrap();
        tokio::select! {
            _ = copy_bidirectional(&mut near, &mut far) => return,
            _ = ways.changed() => {}
        }
    }
    // Postgres hears no more than the other side does: its end stays open until ours is closed.
    let _ = copy(&mut near, &mut sink()).await;
}

/// A store whose connections all go through a tunnel, and are all in use.
async fn world() -> (World, Tunnel) {
    let mut world = World::postgres().await;
    let url = world.url.clone().unwrap();
    let (base, host) = url.split_once("?host=").unwrap();
    let port = base.split([':', '/']).find(|part| part.parse::<u16>().is_ok()).unwrap();
    let tunnel = Tunnel::to(host.as_ref(), port);
    let through = format!("{base}?host={}", tunnel.dir.path().display());
    world.store.close().await;
    world.store = open(&through, unsafe_options()).await.unwrap();
    world.start(&[new_run(1, 7, "order-1")]).await;
    assert!(world.row(run_id(1, 7)).await.is_some());
    assert_eq!(world.verdict(world.renewal()).await, Some(Verdict::Kept));
    (world, tunnel)
}

#[tokio::test]
async fn lost_connections_are_given_up_and_others_serve() {
    let (mut world, tunnel) = world().await;
    tunnel.lose_all();
    let lost = Instant::now();
    let renewal = async {
        assert_eq!(world.verdict(world.renewal()).await, Some(Verdict::Kept));
        // The lease lasts for 3 s, and the renewal before was sent a second ago.
        assert!(lost.elapsed() < Duration::from_millis(2_900), "{:?}", lost.elapsed());
    };
    let read = async {
        assert!(world.row(run_id(1, 7)).await.is_some());
        assert!(lost.elapsed() < Duration::from_secs(12), "{:?}", lost.elapsed());
    };
    let read_beside = async { assert!(world.row(run_id(1, 7)).await.is_some()) };
    tokio::join!(renewal, read, read_beside);
    let resolve = world.resolve_of(world.tip);
    assert!(world.resolve(resolve).await);
    timeout(Duration::from_secs(5), world.store.close()).await.unwrap();
}

#[tokio::test]
async fn every_call_ends_though_nothing_gets_through() {
    let (world, tunnel) = world().await;
    tunnel.fall_silent();
    let resolve = world.store.resolve(world.resolve_of(world.tip));
    let take = world.store.take(world.take_of(ShardRow {
        shard_id: SHARD,
        slots: 0..1024,
        node_id: Some(world.node_id),
        address: String::new(),
        epoch: world.epoch,
        lease_until: None,
    }));
    let renew = timeout(Duration::from_secs(5), world.store.renew(vec![world.renewal()], LEASE));
    let commit = world.store.commit(std::sync::Arc::new(world.batch()));
    let read = world.store.read_run(run_id(1, 7));
    let all = async { tokio::join!(resolve, take, renew, commit, read) };
    let limit = Duration::from_secs(17);
    let (resolved, taken, renewed, committed, read) = timeout(limit, all).await.unwrap();
    assert!(matches!(resolved, Err(Error::Unavailable(_) | Error::Unknown(_))), "{resolved:?}");
    assert!(matches!(taken, Err(Error::Unavailable(_) | Error::Unknown(_))), "{taken:?}");
    let renewed = renewed.expect("a renewal ends soon");
    assert!(matches!(renewed, Err(Error::Unknown(_))), "{renewed:?}");
    assert!(matches!(committed, Err(Error::Unknown(_))), "{committed:?}");
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    timeout(Duration::from_secs(3), world.store.close()).await.unwrap();
}

#[tokio::test]
async fn a_database_that_lets_in_and_says_no_more_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
    let host = tokio::spawn(async move {
        let (mut guest, _) = listener.accept().await.unwrap();
        let mut asked = [0; 1_024];
        assert!(guest.read(&mut asked).await.unwrap() > 0);
        // It may come in (R, 0) to a server of this version (S), and may ask (Z, idle).
        let welcome = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x18server_version\x0015.0\0Z\0\0\0\x05I";
        guest.write_all(welcome).await.unwrap();
        while guest.read(&mut asked).await.unwrap() > 0 {}
    });
    let url =
        format!("postgres://somebody@localhost/db?sslmode=disable&host={}", dir.path().display());
    let opened = timeout(Duration::from_secs(15), open(&url, OpenOptions::default())).await;
    let error = opened.expect("it ends").err().expect("nobody answered");
    assert_eq!(error.to_string(), "the database cannot be opened: it gives no answer within 10 s");
    host.await.unwrap();
}
