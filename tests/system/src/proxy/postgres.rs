//! A proxy before Postgres that knows what is said there.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
};

use super::local;
use crate::{free_port, process::within};

/// What happens to a batch statement on its way to Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchFault {
    /// Its Sync never arrives, and the connection breaks on both sides.
    CutBefore,
    /// It arrives and is carried out; its reply never comes back.
    CutAfter,
    /// The server loses the connection; the whole statement arrives later, when it is let through.
    Hold,
    /// The same, but everything except its Sync arrives at once: it holds its locks meanwhile.
    HoldSync,
}

/// A proxy before Postgres that knows a batch statement when it sees one.
#[derive(Debug)]
pub struct PostgresProxy {
    port: u16,
    wire: Arc<Wire>,
    accepting: AbortHandle,
}

#[derive(Debug, Default)]
struct Wire {
    armed: Mutex<Option<BatchFault>>,
    struck: watch::Sender<u32>,
    /// Lets held statements through.
    release: Notify,
    /// What became of held statements: the first reply of Postgres behind their Sync.
    ghosts: Mutex<Vec<String>>,
    ghost_answered: watch::Sender<u32>,
}

impl PostgresProxy {
    /// Listens on a port of its own before the Postgres at `port`.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", free_port())).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let wire = Arc::new(Wire::default());
        let shared = Arc::clone(&wire);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let wire = Arc::clone(&shared);
                connections.spawn(async move {
                    // Either side may end at any time; that is what this is for.
                    let _ = Session::open(stream, port, wire).await;
                });
            }
        });
        Self { port: own, wire, accepting: accepting.abort_handle() }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The url of a database of this Postgres, through the proxy.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Does this to the next batch statement, and waits until it is done.
    pub async fn strike(&self, fault: BatchFault) {
        let mut struck = self.wire.struck.subscribe();
        struck.borrow_and_update();
        *self.wire.armed.lock().unwrap() = Some(fault);
        within(60, "a batch statement comes by", struck.changed()).await.unwrap();
    }

    /// Lets what is held through, and tells what Postgres answered.
    pub async fn release(&self) -> String {
        let mut answered = self.wire.ghost_answered.subscribe();
        answered.borrow_and_update();
        self.wire.release.notify_one();
        within(60, "Postgres answers the held statement", answered.changed()).await.unwrap();
        self.wire.ghosts.lock().unwrap().pop().expect("it was answered")
    }
}

impl Drop for PostgresProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One connection.
struct Session {
    server: OwnedReadHalf,
    database: OwnedWriteHalf,
    replies: Replies,
    /// Names of prepared batch statements.
    batches: BTreeSet<Vec<u8>>,
    wire: Arc<Wire>,
}

/// The way back.
#[derive(Clone)]
struct Replies {
    /// Gone once nothing may come back any more.
    to: Arc<tokio::sync::Mutex<Option<OwnedWriteHalf>>>,
    /// What came since then: a type and the beginning of its body, ended by ReadyForQuery or EOF.
    unseen: watch::Sender<Vec<String>>,
}

impl Session {
    async fn open(server: TcpStream, port: u16, wire: Arc<Wire>) -> io::Result<()> {
        let database = TcpStream::connect(local(port)).await?;
        server.set_nodelay(true)?;
        database.set_nodelay(true)?;
        let (server, to_server) = server.into_split();
        let (from_database, database) = database.into_split();
        let replies = Replies {
            to: Arc::new(tokio::sync::Mutex::new(Some(to_server))),
            unseen: watch::Sender::new(Vec::new()),
        };
        let back = tokio::spawn(replies.clone().pump(from_database));
        let session = Self { server, database, replies, batches: BTreeSet::new(), wire };
        let done = session.pump().await;
        back.abort();
        done
    }

    async fn pump(mut self) -> io::Result<()> {
        // The start-up message alone has no type.
        let mut begin = vec![0; 4];
        self.server.read_exact(&mut begin).await?;
        let length = u32::from_be_bytes([begin[0], begin[1], begin[2], begin[3]]) as usize;
        begin.resize(length, 0);
        self.server.read_exact(&mut begin[4..]).await?;
        self.database.write_all(&begin).await?;
        let mut staged = Vec::new();
        let mut is_batch = false;
        loop {
            let message = frame(&mut self.server).await?;
            let body = &message[5..];
            match message[0] {
                b'P' => {
                    let (name, rest) = text(body);
                    let (sql, _) = text(rest);
                    let marker = b"INSERT INTO journal";
                    if sql.windows(marker.len()).any(|part| part == marker) {
                        self.batches.insert(name.to_vec());
                    } else {
                        self.batches.remove(name);
                    }
                }
                b'B' => is_batch = self.batches.contains(text(text(body).1).0),
                b'S' if is_batch => {
                    let fault = self.wire.armed.lock().unwrap().take();
                    if let Some(fault) = fault {
                        return self.strike(fault, staged, &message).await;
                    }
                    is_batch = false;
                }
                _ => {}
            }
            let more_follows = matches!(message[0], b'P' | b'B' | b'D' | b'E' | b'C');
            staged.extend(message);
            if !more_follows {
                self.database.write_all(&staged).await?;
                staged.clear();
            }
        }
    }

    async fn strike(mut self, fault: BatchFault, staged: Vec<u8>, sync: &[u8]) -> io::Result<()> {
        let whole = [staged.as_slice(), sync].concat();
        let mut unseen = self.replies.unseen.subscribe();
        // From here on nothing comes back; the server sees its connection end with this function,
        // or now.
        let to_server = self.replies.to.lock().await.take();
        let (now, later): (&[u8], &[u8]) = match fault {
            BatchFault::CutBefore => (&staged, &[]),
            BatchFault::CutAfter => (&whole, &[]),
            BatchFault::Hold => (&[], &whole),
            BatchFault::HoldSync => (&staged, sync),
        };
        self.database.write_all(now).await?;
        if fault == BatchFault::CutAfter {
            let _ = unseen.wait_for(|replies| is_ended(replies)).await;
        }
        if matches!(fault, BatchFault::CutBefore | BatchFault::CutAfter) {
            drop((self.server, self.database, to_server));
            self.wire.struck.send_modify(|struck| *struck += 1);
            return Ok(());
        }
        drop((self.server, to_server));
        self.wire.struck.send_modify(|struck| *struck += 1);
        self.wire.release.notified().await;
        let told = match self.database.write_all(later).await {
            Ok(()) => match unseen.wait_for(|replies| is_ended(replies)).await {
                Ok(replies) => replies.join(" "),
                Err(_) => "nothing".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        self.wire.ghosts.lock().unwrap().push(told);
        self.wire.ghost_answered.send_modify(|answered| *answered += 1);
        Ok(())
    }
}

fn is_ended(replies: &[String]) -> bool {
    replies.last().is_some_and(|last| last.starts_with('Z') || last == "EOF")
}

impl Replies {
    async fn pump(self, mut database: OwnedReadHalf) {
        while let Ok(message) = frame(&mut database).await {
            if let Some(to) = self.to.lock().await.as_mut() {
                if to.write_all(&message).await.is_err() {
                    break;
                }
                continue;
            }
            let body: String = String::from_utf8_lossy(&message[5..])
                .chars()
                .filter(|char| char.is_ascii_graphic() || *char == ' ')
                .take(200)
                .collect();
            let told = format!("{}:{body}", char::from(message[0]));
            self.unseen.send_modify(|unseen| unseen.push(told));
        }
        self.to.lock().await.take();
        self.unseen.send_modify(|unseen| unseen.push("EOF".to_owned()));
    }
}

/// One message with a type.
async fn frame(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 5];
    from.read_exact(&mut message).await?;
    let length = u32::from_be_bytes([message[1], message[2], message[3], message[4]]) as usize;
    message.resize(1 + length, 0);
    from.read_exact(&mut message[5..]).await?;
    Ok(message)
}

/// A text that ends with a zero, and what follows.
fn text(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (&bytes[..end], bytes.get(end + 1..).unwrap_or_default())
}
