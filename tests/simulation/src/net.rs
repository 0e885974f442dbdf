//! Connections that break and stall.

use std::{
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::watch,
    time::sleep,
};

/// Room in a pipe.
const PIPE: usize = 64 << 10;
/// Most bytes that travel together.
const PACKET: usize = 16 << 10;

use crate::diary::Diary;

/// How a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct State {
    /// Nothing gets to the server.
    stalled_there: bool,
    /// Nothing gets back.
    stalled_back: bool,
    /// It breaks behind so many packets to the server; 0 for never.
    packets_left: u32,
    cut: bool,
}

/// What a connection joins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    /// The server's place among the hosts.
    pub(crate) host: usize,
    /// The worker's place among the workers, if it is one's.
    pub(crate) worker: Option<usize>,
}

/// One connection between a client or worker and a server.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) way: Way,
    state: Arc<watch::Sender<State>>,
}

impl Link {
    /// A connection to a host, and its two ends: the client's and the server's.
    pub(crate) fn lay(
        way: Way,
        delay: Duration,
        diary: &Diary,
        rng: &mut fastrand::Rng,
    ) -> (Self, DuplexStream, DuplexStream) {
        let (client, near) = duplex(PIPE);
        let (far, server) = duplex(PIPE);
        let state = Arc::new(watch::Sender::new(State::default()));
        let ((from_client, to_client), (from_server, to_server)) = (split(near), split(far));
        for (from, to, there) in [(from_client, to_server, true), (from_server, to_client, false)] {
            // The one that counts packets may break the connection; it keeps nobody's hope alive.
            let breaker = there.then(|| Arc::downgrade(&state));
            let (rng, diary) = (rng.fork(), diary.clone());
            let pump = Pump { there, state: state.subscribe(), breaker, delay, rng, diary };
            tokio::spawn(pump.run(from, to));
        }
        (Self { way, state }, client, server)
    }

    /// It breaks.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.cut = true);
    }

    /// It breaks right behind the so many next packets to the server, which still finds them.
    pub(crate) fn cut_behind(&self, packets: u32) {
        self.state.send_modify(|state| state.packets_left = packets);
    }

    /// Nothing comes through any more, in these directions.
    pub(crate) fn stall(&self, there: bool, back: bool) {
        self.state.send_modify(|state| {
            state.stalled_there = there;
            state.stalled_back = back;
        });
    }

    /// Whether anybody is at its ends.
    pub(crate) fn is_open(&self) -> bool {
        !self.state.is_closed() && !self.state.borrow().cut
    }
}

/// Carries bytes in one direction.
struct Pump {
    there: bool,
    state: watch::Receiver<State>,
    breaker: Option<Weak<watch::Sender<State>>>,
    delay: Duration,
    rng: fastrand::Rng,
    diary: Diary,
}

impl Pump {
    async fn run(mut self, from: ReadHalf<DuplexStream>, to: WriteHalf<DuplexStream>) {
        let mut broken = self.state.clone();
        // Either side may end at any time; that is what this is for.
        let _: Option<io::Result<()>> = tokio::select! {
            biased;
            _ = broken.wait_for(|state| state.cut) => None,
            done = self.carry(from, to) => Some(done),
        };
    }

    async fn carry(
        &mut self,
        mut from: ReadHalf<DuplexStream>,
        mut to: WriteHalf<DuplexStream>,
    ) -> io::Result<()> {
        let mut packet = vec![0; PACKET];
        let there = self.there;
        loop {
            let bytes = from.read(&mut packet).await?;
            if bytes == 0 {
                break;
            }
            sleep(self.delay.mul_f64(self.rng.f64())).await;
            let open =
                |state: &State| !(if there { state.stalled_there } else { state.stalled_back });
            if self.state.wait_for(open).await.is_err() {
                break;
            }
            to.write_all(&packet[..bytes]).await?;
            if self.was_the_last() {
                break;
            }
        }
        to.shutdown().await
    }

    /// Counts a packet; behind the last one the connection is broken.
    fn was_the_last(&self) -> bool {
        let Some(link) = self.breaker.as_ref().and_then(Weak::upgrade) else { return false };
        let left = link.borrow().packets_left;
        if left > 0 {
            link.send_modify(|state| state.packets_left -= 1);
        }
        if left == 1 {
            self.diary.write("a connection breaks behind a packet");
            self.diary.disturbed();
            link.send_modify(|state| state.cut = true);
        }
        left == 1
    }
}
