//! Connections, as the server and the SDK take them.

use std::{
    future::pending,
    io,
    net::Ipv4Addr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, future::BoxFuture, stream};
use onward_simulation::Diary;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
    time::sleep,
};
use tonic::transport::server::Connected;
use turmoil::net::{TcpListener, TcpStream};

/// Where servers listen.
pub(crate) const PORT: u16 = 7450;

/// The connections of one host, in the order in which they were made.
#[derive(Default)]
pub(crate) struct Sockets {
    open: Mutex<Vec<Socket>>,
    dies: AtomicBool,
}

type Socket = Arc<Mutex<Option<TcpStream>>>;

impl Sockets {
    /// All processes of the host die in `death`. Their connections close in order, whatever order
    /// a runtime drops its tasks in.
    pub(crate) fn die_in(&self, death: impl FnOnce()) {
        self.dies.store(true, Ordering::Relaxed);
        death();
        self.dies.store(false, Ordering::Relaxed);
        self.open.lock().unwrap().clear();
    }

    fn add(&self, stream: TcpStream) -> Socket {
        let socket = Arc::new(Mutex::new(Some(stream)));
        self.open.lock().unwrap().push(Arc::clone(&socket));
        socket
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.open.lock().unwrap().len()
    }

    /// The owner of a connection lets go of it.
    fn close(&self, socket: &Socket, diary: &Diary) {
        let mut open = self.open.lock().unwrap();
        if self.dies.load(Ordering::Relaxed) {
            for socket in open.iter() {
                drop(socket.lock().unwrap().take());
            }
        }
        open.retain(|other| !Arc::ptr_eq(other, socket));
        if let Some(stream) = socket.lock().unwrap().take()
            && let (Ok(here), Ok(there)) = (stream.local_addr(), stream.peer_addr())
        {
            diary.write(format_args!("{here} closes its connection to {there}"));
        }
    }
}

/// One end of a connection.
pub(crate) struct Wire {
    host: Arc<Sockets>,
    socket: Socket,
    diary: Diary,
    /// What closes it from outside.
    cut: BoxFuture<'static, ()>,
    is_cut: bool,
    is_open: Arc<AtomicBool>,
}

/// Who can close a connection from outside.
pub(crate) struct Knife {
    pub(crate) from: String,
    pub(crate) to: String,
    cut: oneshot::Sender<()>,
    is_open: Arc<AtomicBool>,
}

impl Knife {
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    pub(crate) fn cut(self) {
        // Whoever has let go of the connection does not mind.
        let _ = self.cut.send(());
    }
}

/// Everybody who connects, for as long as the process lives.
pub(crate) async fn listen(
    host: Arc<Sockets>,
    diary: Diary,
) -> io::Result<impl Stream<Item = io::Result<Wire>> + Send + 'static> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    Ok(stream::unfold((listener, host, diary), |(listener, host, diary)| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Wire {
            socket: host.add(stream),
            host: Arc::clone(&host),
            diary: diary.clone(),
            cut: Box::pin(pending()),
            is_cut: false,
            is_open: Arc::new(AtomicBool::new(true)),
        });
        Some((accepted, (listener, host, diary)))
    }))
}

/// Connects to a host by its name. What is between the two may keep no connection for longer than
/// `age`.
pub(crate) async fn connect(
    host: Arc<Sockets>,
    diary: Diary,
    from: String,
    to: String,
    age: Option<Duration>,
) -> io::Result<(Wire, Knife)> {
    let stream = match TcpStream::connect((to.as_str(), PORT)).await {
        Ok(stream) => stream,
        Err(error) => {
            diary.write(format_args!("{from} cannot connect to {to}: {error}"));
            diary.reached("connect refused");
            return Err(error);
        }
    };
    diary.write(format_args!("{from} connects to {to} from {}", stream.local_addr()?));
    diary.reached("connected");
    let (cut, asked) = oneshot::channel();
    let is_open = Arc::new(AtomicBool::new(true));
    let knife = Knife { from, to, cut, is_open: Arc::clone(&is_open) };
    let cut = Box::pin(async move {
        let asked = async {
            if asked.await.is_err() {
                pending::<()>().await;
            }
        };
        let aged = async {
            match age {
                Some(age) => sleep(age).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = asked => {}
            () = aged => {}
        }
    });
    let socket = host.add(stream);
    Ok((Wire { host, socket, diary, cut, is_cut: false, is_open }, knife))
}

impl Wire {
    /// Fails once it has been closed from outside.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.is_cut = self.is_cut || self.cut.as_mut().poll(cx).is_ready();
        if self.is_cut { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }

    fn with<T>(
        &self,
        act: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut *self.socket.lock().unwrap() {
            Some(stream) => act(pin!(stream)),
            None => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.is_open.store(false, Ordering::Relaxed);
        self.host.close(&self.socket, &self.diary);
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        let read = ready!(self.with(|stream| stream.poll_read(cx, buf)));
        if read.is_err() {
            self.diary.write("a connection is reset");
            self.diary.reached("reset");
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        self.with(|stream| stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}

impl Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use futures_util::StreamExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::Notify,
    };

    use super::*;

    fn diary() -> Diary {
        Diary::on(|| turmoil::sim_elapsed().unwrap_or_default())
    }

    #[test]
    fn who_is_cut_off_is_told_and_so_is_the_other_end() {
        let mut net = turmoil::Builder::new().rng_seed(1).build();
        net.host("server", || async {
            let mut incoming = std::pin::pin!(listen(Arc::default(), diary()).await?);
            let mut wire = incoming.next().await.expect("somebody connects")?;
            let mut all = Vec::new();
            wire.read_to_end(&mut all).await?;
            assert_eq!(all, b"a");
            Ok(())
        });
        let is_cut = Rc::new(Notify::new());
        net.client("client", async move {
            let (from, to) = ("client".to_owned(), "server".to_owned());
            let (mut wire, knife) = connect(Arc::default(), diary(), from, to, None).await?;
            wire.write_all(b"a").await?;
            assert!(knife.is_open());
            let waits = Rc::clone(&is_cut);
            tokio::task::spawn_local(async move {
                waits.notified().await;
                knife.cut();
            });
            is_cut.notify_one();
            let error = wire.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            Ok(())
        });
        net.run().unwrap();
        while net.is_host_running("server") {
            net.step().unwrap();
        }
    }

    #[test]
    fn no_connection_grows_older_than_it_may() {
        let mut net = turmoil::Builder::new().rng_seed(1).build();
        net.host("server", || async {
            let mut incoming = std::pin::pin!(listen(Arc::default(), diary()).await?);
            let _wire = incoming.next().await.expect("somebody connects")?;
            pending().await
        });
        net.client("client", async {
            let age = Some(Duration::from_secs(1));
            let (from, to) = ("client".to_owned(), "server".to_owned());
            let (mut wire, knife) = connect(Arc::default(), diary(), from, to, age).await?;
            assert!(wire.read_u8().await.is_err());
            drop(wire);
            assert!(!knife.is_open());
            Ok(())
        });
        net.run().unwrap();
    }
}
