//! Activities and their attempts.
//!
//! ```text
//! ActivityScheduled ──▶ ready ── a worker is found ──▶ running ──▶ closed (a fact)
//!                        ▲  ▲                            │  ▲
//!                        │  └──── backing off ◀── failed ┘  │ claimed
//!                        └── grace passed ── unknown (after a load)
//! ```
//!
//! Only *scheduled* and *closed* are history. The count of ended attempts, the last failure and the
//! saved details stand in a row of `pending`; which attempt runs where is a lease in memory.
//!
//! After a load nobody knows which attempts are out. What may be out can be claimed: the attempt
//! that follows the stored count, or the one whose token is stored. So that no attempt is ever
//! mistaken for another, a token is stored before dispatch when it is the last that the policy
//! allows, and when it follows one that may have been out.

mod attempt;
mod cancel;
mod claim;
mod closing;
mod dispatch;
mod heartbeat;
mod timeout;

pub(super) use closing::{cancelled, closed_activity, refused, remove_row};
pub use dispatch::ActivityOffer;

use onward_proto::{
    Timestamp,
    v1::{self, ActivityScheduled, Payload, PendingActivity},
};
use prost::Message as _;

use super::{Run, SessionId, Token, deadlines::Due, run::detached};

/// An activity that has not closed.
#[derive(Debug)]
pub(super) struct Activity {
    /// What the code called. Its arguments go to every attempt.
    pub(super) scheduled: ActivityScheduled,
    pub(super) scheduled_at: Timestamp,
    pub(super) cancel_requested: bool,
    /// Its row of `pending`, if it has one.
    pub(super) row: Option<Box<PendingActivity>>,
    /// A lease: where its attempt stands.
    pub(super) attempt: Attempt,
    /// A lease: details that the row does not have yet.
    pub(super) unsaved_details: Option<Payload>,
    /// A lease: when the row was written last.
    pub(super) saved_at: Timestamp,
}

/// Where the attempt of an activity stands.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine) enum Attempt {
    /// The next attempt waits for a worker.
    Ready {
        since: Timestamp,
        /// An attempt from before a load may run somewhere.
        may_be_out: bool,
    },
    /// The next attempt waits for its time.
    BackingOff { until: Timestamp },
    /// An attempt runs.
    Running(Box<Running>),
    /// After a load: an attempt may run somewhere, and nothing is dispatched yet.
    Unknown { since: Timestamp, claimable_until: Timestamp },
}

/// An attempt that runs.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine) struct Running {
    pub(super) token: Token,
    pub(super) session: SessionId,
    pub(super) identity: String,
    pub(super) started_at: Timestamp,
    /// The last sign of life.
    pub(super) sign_at: Timestamp,
    /// Set when its session is gone.
    pub(super) claimable_until: Option<Timestamp>,
}

impl Activity {
    fn new(scheduled: ActivityScheduled, at: Timestamp) -> Self {
        Self {
            scheduled,
            scheduled_at: at,
            cancel_requested: false,
            row: None,
            attempt: Attempt::Ready { since: at, may_be_out: false },
            unsaved_details: None,
            saved_at: Timestamp::MIN,
        }
    }

    pub(super) fn number(&self) -> u32 {
        self.scheduled.number
    }

    /// Whether it is more than a wait between two attempts.
    pub(super) fn is_active(&self) -> bool {
        !matches!(self.attempt, Attempt::BackingOff { .. })
    }

    /// Attempts that have ended or were written off.
    pub(super) fn attempts(&self) -> u32 {
        self.row.as_ref().map_or(0, |row| row.attempts)
    }

    /// What the last attempt saved.
    pub(super) fn details(&self) -> Option<&Payload> {
        let saved = || self.row.as_ref().and_then(|row| row.heartbeat_details.as_ref());
        self.unsaved_details.as_ref().or_else(saved)
    }

    /// The row as it would be written now.
    fn current_row(&self) -> PendingActivity {
        let mut row = self.row.as_deref().cloned().unwrap_or_default();
        if let Some(details) = &self.unsaved_details {
            row.heartbeat_details = Some(details.clone());
        }
        row
    }

    fn written_token(&self) -> Option<&v1::ActivityToken> {
        self.row.as_ref().and_then(|row| row.written_token.as_ref())
    }

    /// Whether the policy allows no attempt after this one.
    fn is_last(&self, attempt: u32) -> bool {
        self.scheduled
            .retry
            .as_ref()
            .is_some_and(|retry| retry.max_attempts > 0 && attempt >= retry.max_attempts)
    }

    /// Bytes of memory, roughly.
    pub(super) fn memory_bytes(&self) -> usize {
        let arguments: usize =
            self.scheduled.arguments.iter().map(|payload| payload.data.len() + 80).sum();
        let row = self.row.as_ref().map_or(0, |row| size_of_val(&**row) + row.encoded_len());
        let unsaved = self.unsaved_details.as_ref().map_or(0, |details| details.data.len());
        size_of::<Self>() + 128 + arguments + row + unsaved
    }
}

impl Run {
    /// Where the activity stands in the list.
    pub(super) fn activity_place(&self, number: u32) -> Option<usize> {
        self.activities.binary_search_by_key(&number, |activity| activity.number()).ok()
    }

    pub(super) fn activity(&self, number: u32) -> Option<&Activity> {
        self.activity_place(number).map(|place| &*self.activities[place])
    }

    /// Changes the activity at this place of the list, and with it what the run keeps beside the
    /// list.
    pub(super) fn change_activity(&mut self, place: usize, change: impl FnOnce(&mut Activity)) {
        let activity = &mut *self.activities[place];
        let (deadline, active) = (activity.deadline(), activity.is_active());
        change(activity);
        self.active += u32::from(activity.is_active());
        self.active -= u32::from(active);
        let due = Due::Activity(activity.number());
        self.deadlines.change(due, deadline, activity.deadline());
    }

    /// Folds a scheduled activity in. Its event has just been numbered.
    pub(super) fn schedule_activity(&mut self, scheduled: &ActivityScheduled) {
        let mut scheduled = scheduled.clone();
        for argument in &mut scheduled.arguments {
            *argument = detached(argument);
        }
        let activity = Activity::new(scheduled, self.last_time);
        self.active += u32::from(activity.is_active());
        self.deadlines.change(Due::Activity(activity.number()), None, activity.deadline());
        self.activities.push(Box::new(activity));
    }

    /// Folds the end of an activity in.
    pub(super) fn end_activity(&mut self, number: u32) {
        if let Some(place) = self.activity_place(number) {
            let activity = self.activities.remove(place);
            self.active -= u32::from(activity.is_active());
            self.deadlines.change(Due::Activity(number), activity.deadline(), None);
        }
    }
}
