//! Leaves: what the code has asked for and history will answer.
//!
//! Issuing one gives it its number and emits its command; its closing fact wakes it; dropping it
//! unanswered asks for its end. The cancels of one drain go out in the order of their numbers.

use std::{
    panic::Location,
    task::{Context, Poll, Waker},
};

use onward_proto::{
    SeededBug,
    v1::{self, command::Kind, history_event::Attributes},
};

use super::{
    core::{Core, Phase},
    marker::LocalStage,
    report::{self, Side},
};
use crate::limits::without_nul;

/// Something issued that history will answer.
pub(super) struct Leaf {
    pub(super) kind: LeafKind,
    /// Whether a handle in the code will still take the outcome.
    pub(super) owned: bool,
    pub(super) waker: Option<Waker>,
    pub(super) outcome: Option<Attributes>,
}

#[allow(clippy::large_enum_variant)] // the large ones are the rarest, and few are alive
pub(super) enum LeafKind {
    Activity,
    Timer,
    /// With its value, once that is made; a replay makes none.
    Record {
        site: v1::CallSite,
        value: Option<v1::Payload>,
    },
    Local {
        stage: LocalStage,
        hash: u64,
        site: v1::CallSite,
        name: &'static str,
    },
}

pub(super) fn call_site(location: &Location<'_>) -> v1::CallSite {
    v1::CallSite {
        file: location.file().to_owned(),
        line: location.line(),
        column: location.column(),
    }
}

impl Core {
    /// Takes the next number for something that history will answer; nothing outside a drive.
    pub(super) fn begin_leaf(&self, kind: LeafKind) -> Option<u32> {
        if !self.is_active() {
            return None;
        }
        let mut state = self.state.borrow_mut();
        state.numbers += 1;
        let number = state.numbers;
        state.leaves.insert(number, Leaf { kind, owned: true, waker: None, outcome: None });
        Some(number)
    }

    pub(crate) fn schedule_activity(
        &self,
        call: v1::ScheduleActivity,
        arguments_hash: u64,
        summary: String,
        location: &Location<'_>,
    ) -> Option<u32> {
        let call = Kind::ScheduleActivity(call);
        self.issue(LeafKind::Activity, call, arguments_hash, summary, location)
    }

    pub(crate) fn start_timer(
        &self,
        duration_us: i64,
        summary: String,
        location: &Location<'_>,
    ) -> Option<u32> {
        let start = Kind::StartTimer(v1::StartTimer { duration_us });
        self.issue(LeafKind::Timer, start, 0, summary, location)
    }

    /// Gives a command its number and a leaf that waits for its outcome.
    fn issue(
        &self,
        leaf: LeafKind,
        command: Kind,
        arguments_hash: u64,
        summary: String,
        location: &Location<'_>,
    ) -> Option<u32> {
        let number = self.begin_leaf(leaf)?;
        self.emit(v1::Command {
            number,
            call_site: Some(call_site(location)),
            arguments_hash,
            // It is for people, and no text with U+0000 is taken.
            summary: without_nul(summary),
            kind: Some(command),
            refused: None,
        });
        Some(number)
    }

    /// What history said about a command, once it has.
    pub(crate) fn poll_leaf(&self, number: u32, cx: &Context<'_>) -> Poll<Attributes> {
        let waker = cx.waker().clone();
        let mut state = self.state.borrow_mut();
        let Some(leaf) = state.leaves.get_mut(&number) else { return Poll::Pending };
        if leaf.outcome.is_some() {
            let leaf = state.leaves.remove(&number);
            drop(state);
            return match leaf.and_then(|leaf| leaf.outcome) {
                Some(outcome) => Poll::Ready(outcome),
                None => Poll::Pending,
            };
        }
        let old = leaf.waker.replace(waker);
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// The code no longer waits for it, and asks it to stop.
    pub(crate) fn drop_leaf(&self, number: u32) {
        if !self.is_active() {
            return;
        }
        let mut state = self.state.borrow_mut();
        let leaf = state.leaves.remove(&number);
        if let Some(leaf) = &leaf
            && leaf.outcome.is_none()
        {
            match &leaf.kind {
                LeafKind::Activity => {
                    state.cancels.insert(number, Kind::CancelActivity(v1::CancelActivity {}));
                }
                LeafKind::Timer => {
                    state.cancels.insert(number, Kind::CancelTimer(v1::CancelTimer {}));
                }
                LeafKind::Local { stage: LocalStage::Running, .. } => {
                    state.local_cancels.push(number);
                }
                LeafKind::Local { .. } => {}
                LeafKind::Record { .. } => state.records.retain(|waiting| *waiting != number),
            }
        }
        drop(state);
        drop(leaf);
    }

    /// Nobody will take the outcome, but it is to run on.
    pub(crate) fn detach_leaf(&self, number: u32) {
        if let Some(leaf) = self.state.borrow_mut().leaves.get_mut(&number) {
            leaf.owned = false;
        }
    }

    pub(super) fn flush_cancels(&self) {
        let mut state = self.state.borrow_mut();
        let mut cancels: Vec<_> = std::mem::take(&mut state.cancels).into_iter().collect();
        if SeededBug::CancelOrder.is_on() && matches!(state.phase, Phase::Replay { .. }) {
            cancels.reverse();
        }
        drop(state);
        for (number, kind) in cancels {
            self.emit(v1::Command { number, kind: Some(kind), ..Default::default() });
        }
    }

    /// Gives a command its outcome and wakes who waits for it.
    pub(super) fn resolve(&self, event_id: u64, number: u32, outcome: Attributes) {
        let mut state = self.state.borrow_mut();
        if number > state.numbers {
            let build_id = match &state.phase {
                Phase::Replay { build_id, .. } => build_id.clone(),
                Phase::Idle | Phase::Live { .. } => String::new(),
            };
            let failure = report::non_determinism(
                &self.run,
                &self.options,
                event_id,
                &build_id,
                &Side::of_event(&outcome),
                &Side::none(&format!("no command #{number}")),
            );
            state.failure.get_or_insert(failure);
            return;
        }
        // A call that the code has dropped may still close.
        let Some(leaf) = state.leaves.get_mut(&number) else { return };
        let waker = if leaf.owned {
            leaf.outcome = Some(outcome);
            leaf.waker.take()
        } else {
            state.leaves.remove(&number).and_then(|leaf| leaf.waker)
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
