//! Connections that break and stall.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::watch,
    time::sleep,
};

/// Room in a pipe.
const PIPE: usize = 64 << 10;
/// Most bytes that travel together.
const PACKET: usize = 16 << 10;

/// How a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct State {
    /// Nothing gets to the server.
    stalled_there: bool,
    /// Nothing gets back.
    stalled_back: bool,
    cut: bool,
}

/// One connection between a client or worker and a server.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// The server's place among the hosts.
    pub(crate) host: usize,
    state: Arc<watch::Sender<State>>,
}

impl Link {
    /// A connection to a host, and its two ends: the client's and the server's.
    pub(crate) fn lay(
        host: usize,
        delay: Duration,
        rng: &mut fastrand::Rng,
    ) -> (Self, DuplexStream, DuplexStream) {
        let (client, near) = duplex(PIPE);
        let (far, server) = duplex(PIPE);
        let state = Arc::new(watch::Sender::new(State::default()));
        let ((from_client, to_client), (from_server, to_server)) = (split(near), split(far));
        for (from, to, there) in [(from_client, to_server, true), (from_server, to_client, false)] {
            let (state, rng) = (state.subscribe(), rng.fork());
            tokio::spawn(pump(from, to, there, state, delay, rng));
        }
        (Self { host, state }, client, server)
    }

    /// It breaks.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.cut = true);
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

async fn pump(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    there: bool,
    mut state: watch::Receiver<State>,
    delay: Duration,
    mut rng: fastrand::Rng,
) {
    let mut broken = state.clone();
    let carry = async {
        let mut packet = vec![0; PACKET];
        loop {
            let bytes = from.read(&mut packet).await?;
            if bytes == 0 {
                break;
            }
            sleep(delay.mul_f64(rng.f64())).await;
            let open =
                |state: &State| !(if there { state.stalled_there } else { state.stalled_back });
            if state.wait_for(open).await.is_err() {
                break;
            }
            to.write_all(&packet[..bytes]).await?;
        }
        to.shutdown().await
    };
    // Either side may end at any time; that is what this is for.
    let _: Option<io::Result<()>> = tokio::select! {
        biased;
        _ = broken.wait_for(|state| state.cut) => None,
        done = carry => Some(done),
    };
}
