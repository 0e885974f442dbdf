//! A lane's mailbox, bounded by letters and by their bytes.

use std::sync::Arc;

use onward_proto::v1::{Failure, Payload};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::message::{FromWorker, Mail, Request};
use crate::engine::{Input, Signal};

/// Letters that may wait for one lane.
const LETTERS: usize = 16_384;
/// Bytes of large letters that may wait for one lane.
const ROOM: usize = 64 << 20;
/// A letter that is larger takes room; smaller ones are only counted.
const SMALL: usize = 4 << 10;

/// Where letters for a lane are put.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox {
    letters: mpsc::Sender<Letter>,
    room: Arc<Semaphore>,
}

/// A letter, and the room that it takes until the lane has read it.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) mail: Mail,
    _room: Option<OwnedSemaphorePermit>,
}

/// Why a letter cannot be put.
#[derive(Debug)]
pub(crate) enum NotPut {
    /// Too much waits already; says how much may.
    Full(Box<Mail>, String),
    /// The lane has ended.
    Closed,
}

impl Mailbox {
    /// An empty mailbox, and where its lane reads.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Letter>) {
        let (letters, mailbox) = mpsc::channel(LETTERS);
        (Self { letters, room: Arc::new(Semaphore::new(ROOM)) }, mailbox)
    }

    /// Puts a letter if there is room.
    pub(crate) fn try_put(&self, mail: Mail) -> Result<(), NotPut> {
        let room = match weight(&mail) {
            0 => None,
            bytes => match Arc::clone(&self.room).try_acquire_many_owned(bytes) {
                Ok(room) => Some(room),
                Err(_) => return Err(NotPut::Full(Box::new(mail), format!("{ROOM} bytes"))),
            },
        };
        self.letters.try_send(Letter { mail, _room: room }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(letter) => {
                NotPut::Full(Box::new(letter.mail), format!("{LETTERS} letters"))
            }
            mpsc::error::TrySendError::Closed(_) => NotPut::Closed,
        })
    }

    /// Puts a letter once there is room; tells whether the lane was still there.
    ///
    /// # Cancel safety
    /// Dropped half-way, the letter is not put.
    pub(crate) async fn put(&self, mail: Mail) -> bool {
        let room = match weight(&mail) {
            0 => None,
            bytes => Arc::clone(&self.room).acquire_many_owned(bytes).await.ok(),
        };
        self.letters.send(Letter { mail, _room: room }).await.is_ok()
    }
}

/// The room that a letter takes.
fn weight(mail: &Mail) -> u32 {
    let bytes = match mail {
        Mail::Request(request) => request.bytes(),
        Mail::Worker(FromWorker::Run { input, .. }) => bytes_of_input(input),
        Mail::Worker(_) | Mail::Matched(_) | Mail::Lease(_) | Mail::Drain => 0,
    };
    if bytes <= SMALL { 0 } else { bytes.min(ROOM) as u32 }
}

impl Request {
    /// Bytes of what it carries.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Start { start, .. } => {
                bytes_of_payloads(&start.arguments)
                    + bytes_of_payloads(start.memo.values())
                    + start.signal.as_ref().map_or(0, bytes_of_signal)
            }
            Self::Change { input, .. } => bytes_of_input(input),
            Self::Describe { .. }
            | Self::AwaitResult { .. }
            | Self::Locate { .. }
            | Self::TaskTail { .. } => 0,
        }
    }
}

fn bytes_of_input(input: &Input) -> usize {
    let failure = |failure: Option<&Failure>| failure.map_or(0, Failure::encoded_len);
    match input {
        Input::Signal(signal) => bytes_of_signal(signal),
        Input::CompleteTask(completion) => {
            completion.commands.iter().map(prost::Message::encoded_len).sum()
        }
        Input::CompleteActivity { result: payload, .. }
        | Input::Heartbeat { details: payload, .. } => bytes_of_payloads(payload),
        Input::FailTask { failure: said, .. } | Input::CancelledActivity { failure: said, .. } => {
            failure(said.as_ref())
        }
        Input::FailActivity { failure: said, .. } => failure(Some(said)),
        Input::RequestCancel(stop) | Input::Terminate(stop) => stop.reason.len(),
        Input::UseExisting { .. }
        | Input::StartAttempt { .. }
        | Input::ClaimAttempt { .. }
        | Input::SessionLost { .. }
        | Input::Deadline { .. } => 0,
    }
}

fn bytes_of_signal(signal: &Signal) -> usize {
    bytes_of_payloads(&signal.arguments)
}

fn bytes_of_payloads<'a>(payloads: impl IntoIterator<Item = &'a Payload>) -> usize {
    payloads.into_iter().map(Payload::encoded_len).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::{DEFAULT_NAMESPACE, RequestId};
    use tokio::sync::oneshot;

    use super::*;
    use crate::{engine::Stop, shard::message::Target};

    fn stop(bytes: usize) -> Mail {
        let request_id = RequestId::from_uuid(uuid::Uuid::nil());
        let stop = Stop { reason: "x".repeat(bytes), request_id, identity: String::new() };
        let target = Target {
            namespace_id: DEFAULT_NAMESPACE,
            namespace: "default".to_owned(),
            workflow_id: "order-1".to_owned(),
            run_id: None,
        };
        let (answer, _) = oneshot::channel();
        Mail::Request(Request::Change { target, input: Input::Terminate(stop), answer })
    }

    #[test]
    fn letters_are_bounded_by_number() {
        let (mailbox, _reader) = Mailbox::new();
        for _ in 0..LETTERS {
            mailbox.try_put(stop(10)).unwrap();
        }
        let Err(NotPut::Full(_, limit)) = mailbox.try_put(stop(10)) else { panic!() };
        assert_eq!(limit, "16384 letters");
    }

    #[test]
    fn large_letters_are_bounded_by_bytes_until_they_are_read() {
        let (mailbox, mut reader) = Mailbox::new();
        for _ in 0..32 {
            mailbox.try_put(stop(2 << 20)).unwrap();
        }
        let Err(NotPut::Full(_, limit)) = mailbox.try_put(stop(2 << 20)) else { panic!() };
        assert_eq!(limit, "67108864 bytes");
        mailbox.try_put(stop(10)).unwrap();
        let read = reader.try_recv().unwrap();
        mailbox.try_put(stop(2 << 20)).unwrap_err();
        drop(read);
        mailbox.try_put(stop(2 << 20)).unwrap();
    }

    #[test]
    fn a_mailbox_without_a_reader_is_closed() {
        let (mailbox, reader) = Mailbox::new();
        drop(reader);
        assert!(matches!(mailbox.try_put(stop(10)), Err(NotPut::Closed)));
    }
}
