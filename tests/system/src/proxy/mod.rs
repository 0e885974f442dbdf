//! TCP proxies that break connections: one for anything, one that knows Postgres.

mod postgres;

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

pub use postgres::{BatchFault, PostgresProxy};

use crate::free_port;

/// A proxy that hands bytes through, until it is told to do so badly or not at all.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    road: watch::Sender<Road>,
    accepting: AbortHandle,
}

/// How bytes get through.
#[derive(Debug, Clone, Copy)]
struct Road {
    /// Where it leads; nobody gets through while this is `None`.
    target: Option<SocketAddr>,
    /// How often all connections were reset.
    resets: u32,
    there: Manner,
    back: Manner,
}

/// How bytes get through in one direction.
#[derive(Debug, Clone, Copy, Default)]
struct Manner {
    stalled: bool,
    delay: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    There,
    Back,
}

impl Road {
    fn manner(&self, direction: Direction) -> Manner {
        match direction {
            Direction::There => self.there,
            Direction::Back => self.back,
        }
    }
}

impl Proxy {
    /// Listens on a port of its own and leads to this one.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", free_port())).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (there, back) = (Manner::default(), Manner::default());
        let road = Road { target: Some(local(port)), resets: 0, there, back };
        let (road, roads) = watch::channel(road);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(pass(stream, roads.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { port: own, road, accepting: accepting.abort_handle() }
    }

    /// Where to connect to.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Breaks all connections, and all that come, until it leads somewhere again.
    pub fn cut(&self) {
        self.road.send_modify(|road| road.target = None);
    }

    /// Leads to this port from now on; connections to another are broken.
    pub fn lead_to(&self, port: u16) {
        self.road.send_modify(|road| road.target = Some(local(port)));
    }

    /// Resets all connections; others may come at once.
    pub fn reset(&self) {
        self.road.send_modify(|road| road.resets += 1);
    }

    /// Lets nothing through towards the target, or back from it. Connections stay open.
    pub fn stall(&self, there: bool, back: bool) {
        self.road.send_modify(|road| (road.there.stalled, road.back.stalled) = (there, back));
    }

    /// Holds all bytes up for this long, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.road.send_modify(|road| (road.there.delay, road.back.delay) = (delay, delay));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn pass(mut near: TcpStream, mut roads: watch::Receiver<Road>) {
    let Road { target: Some(target), resets, .. } = *roads.borrow_and_update() else { return };
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (from_near, to_near) = near.split();
    let (from_far, to_far) = far.split();
    let both = async {
        tokio::try_join!(
            pump(from_near, to_far, roads.clone(), Direction::There),
            pump(from_far, to_near, roads.clone(), Direction::Back)
        )
    };
    let mut turned = roads.clone();
    tokio::select! {
        _ = both => {}
        _ = turned.wait_for(|now| now.target != Some(target) || now.resets != resets) => {}
    }
    if roads.borrow().resets != resets {
        let _ = (near.set_zero_linger(), far.set_zero_linger());
    }
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut roads: watch::Receiver<Road>,
    direction: Direction,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        let open = roads.wait_for(|road| !road.manner(direction).stalled).await;
        let delay = open.map_err(io::Error::other)?.manner(direction).delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}
