//! Signals: a mailbox for each name, read in the order of arrival.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    task::{Context, Waker},
};

use onward_proto::v1;

use super::core::Core;

#[derive(Default)]
pub(super) struct Mailbox {
    signals: VecDeque<Taken>,
    pub(super) waiters: BTreeMap<u64, Rc<Waker>>,
}

/// A signal that a task took and no code has read.
struct Taken {
    event_id: u64,
    arguments: Vec<v1::Payload>,
}

impl Core {
    pub(super) fn deliver_signal(&self, event_id: u64, signal: v1::SignalReceived) {
        let mut state = self.state.borrow_mut();
        let mailbox = state.mailboxes.entry(signal.signal_name).or_default();
        mailbox.signals.push_back(Taken { event_id, arguments: signal.arguments });
        let waiters: Vec<Rc<Waker>> = mailbox.waiters.values().map(Rc::clone).collect();
        drop(state);
        for waker in waiters {
            waker.wake_by_ref();
        }
    }

    /// The oldest unread signal of this name, with its event.
    pub(crate) fn take_signal(&self, name: &str) -> Option<(u64, Vec<v1::Payload>)> {
        if !self.is_active() {
            return None;
        }
        let mut state = self.state.borrow_mut();
        let taken = state.mailboxes.get_mut(name)?.signals.pop_front()?;
        Some((taken.event_id, taken.arguments))
    }

    /// Skips a signal that does not decode. It counts as unread.
    pub(crate) fn skip_signal(&self, event_id: u64, name: &str, error: &dyn std::fmt::Display) {
        let mut state = self.state.borrow_mut();
        state.undeliverable.push(event_id);
        state.notes.push(format!("signal {name} (event {event_id}) was skipped: {error}"));
    }

    pub(crate) fn wait_signal(&self, name: &str, id: Option<u64>, cx: &Context<'_>) -> Option<u64> {
        if !self.is_active() {
            return id;
        }
        let id = id.unwrap_or_else(|| self.next_id());
        let waker = Rc::new(cx.waker().clone());
        let mut state = self.state.borrow_mut();
        if !state.mailboxes.contains_key(name) {
            state.mailboxes.insert(name.to_owned(), Mailbox::default());
        }
        let mailbox = state.mailboxes.get_mut(name);
        let old = mailbox.and_then(|mailbox| mailbox.waiters.insert(id, waker));
        drop(state);
        drop(old);
        Some(id)
    }

    pub(crate) fn end_signal_wait(&self, name: &str, id: u64) {
        let mut state = self.state.borrow_mut();
        let old = state.mailboxes.get_mut(name).and_then(|mailbox| mailbox.waiters.remove(&id));
        drop(state);
        drop(old);
    }

    pub(super) fn unread_signals(&self) -> Vec<u64> {
        let state = self.state.borrow();
        let unread = state.mailboxes.values().flat_map(|mailbox| &mailbox.signals);
        let unread: BTreeSet<u64> =
            unread.map(|taken| taken.event_id).chain(state.undeliverable.iter().copied()).collect();
        unread.into_iter().collect()
    }
}
