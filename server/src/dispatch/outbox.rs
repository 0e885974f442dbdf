//! What waits to be written to a session's stream.
//!
//! Lanes put items in without waiting; the stream takes all that is there as one message. The
//! bound is what credits allow to be under way, with room for acks; a session that does not read
//! is ended, not waited for.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use onward_proto::v1::{Ack, ActivityToken, ServerItem, SessionResponse, TaskId, server_item};
use prost::Message as _;

/// Items that may wait for a slow reader.
const MAX_ITEMS: usize = 100_000;
/// Rough bytes of one message; a larger backlog goes in several.
const MESSAGE_BYTES: usize = 1 << 20;

/// The outgoing side of a session.
#[derive(Debug, Default)]
pub struct Outbox {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    items: VecDeque<ServerItem>,
    closed: bool,
    reader: Option<Waker>,
}

impl Outbox {
    /// Puts an item in. After the end of the session it is dropped: what matters is found again
    /// from run state.
    pub fn push(&self, item: server_item::Kind) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        inner.items.push_back(ServerItem { kind: Some(item) });
        if inner.items.len() > MAX_ITEMS {
            inner.items.clear();
            inner.closed = true;
        }
        if let Some(reader) = inner.reader.take() {
            drop(inner);
            reader.wake();
        }
    }

    /// Lets the worker forget a workflow task's completion.
    pub fn ack_task(&self, task_id: TaskId) {
        self.ack(|ack| ack.tasks.push(task_id));
    }

    /// Lets the worker forget an attempt's outcome.
    pub fn ack_activity(&self, token: ActivityToken) {
        self.ack(|ack| ack.activities.push(token));
    }

    /// Acks that follow each other travel as one item.
    fn ack(&self, add: impl FnOnce(&mut Ack)) {
        {
            let mut inner = self.lock();
            if let Some(ServerItem { kind: Some(server_item::Kind::Ack(ack)) }) =
                inner.items.back_mut()
            {
                return add(ack);
            }
        }
        let mut ack = Ack::default();
        add(&mut ack);
        self.push(server_item::Kind::Ack(ack));
    }

    /// Ends the stream once all that waits is written.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        if let Some(reader) = inner.reader.take() {
            drop(inner);
            reader.wake();
        }
    }

    /// Takes what is there as one message. `None` at the end.
    pub fn poll_message(&self, context: &mut Context<'_>) -> Poll<Option<SessionResponse>> {
        let mut inner = self.lock();
        if inner.items.is_empty() {
            if inner.closed {
                return Poll::Ready(None);
            }
            inner.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let mut items = Vec::with_capacity(inner.items.len());
        let mut bytes = 0;
        while let Some(item) = inner.items.front() {
            bytes += item.encoded_len();
            if bytes > MESSAGE_BYTES && !items.is_empty() {
                break;
            }
            items.extend(inner.items.pop_front());
        }
        Poll::Ready(Some(SessionResponse { items }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
