//! The facts that close an activity.

use onward_proto::{
    SeededBug,
    v1::{
        ActivityCancelled, ActivityFailed, ActivityFailureCause, ActivityTimedOut,
        ActivityTimeoutKind, Failure, HistoryEvent, Limit, history_event::Attributes,
    },
};

use super::{
    super::{Decision, Token},
    Activity,
};

/// Removes the row of an activity that closes.
pub(in crate::engine) fn remove_row(activity: &Activity, decision: &mut Decision) {
    if activity.row.is_some() && !SeededBug::LeavePending.is_on() {
        decision.pending.push((activity.number(), None));
    }
}

/// An activity that stopped because it was asked to.
pub(in crate::engine) fn cancelled(
    number: u32,
    attempt: u32,
    failure: Option<Failure>,
) -> Attributes {
    Attributes::ActivityCancelled(ActivityCancelled { number, attempt, failure })
}

/// An activity whose command broke a limit.
pub(in crate::engine) fn refused(number: u32, limit: Limit) -> Attributes {
    Attributes::ActivityFailed(ActivityFailed {
        number,
        failure: None,
        cause: ActivityFailureCause::Refused.into(),
        attempt: 0,
        identity: String::new(),
        refused: Some(limit),
    })
}

pub(super) fn failed(
    activity: &Activity,
    attempt: u32,
    failure: Option<Failure>,
    identity: &str,
    refused: Option<Limit>,
) -> Attributes {
    let cause = match refused {
        Some(_) => ActivityFailureCause::Refused,
        None => ActivityFailureCause::Application,
    };
    Attributes::ActivityFailed(ActivityFailed {
        number: activity.number(),
        failure,
        cause: cause.into(),
        attempt,
        identity: identity.to_owned(),
        refused,
    })
}

pub(super) fn timed_out(
    activity: &Activity,
    kind: ActivityTimeoutKind,
    attempt: u32,
) -> Attributes {
    Attributes::ActivityTimedOut(ActivityTimedOut {
        number: activity.number(),
        kind: kind.into(),
        last_failure: activity.row.as_ref().and_then(|row| row.last_failure.clone()),
        attempt,
    })
}

/// Whether a fact closes an activity with the attempt of this token.
pub(super) fn closes_attempt(fact: &HistoryEvent, token: Token) -> bool {
    closed_activity(fact) == Some((token.number, token.attempt))
}

/// The activity that a fact closes, and the attempt that did it.
pub(in crate::engine) fn closed_activity(fact: &HistoryEvent) -> Option<(u32, u32)> {
    match fact.attributes.as_ref()? {
        Attributes::ActivityCompleted(closed) => Some((closed.number, closed.attempt)),
        Attributes::ActivityFailed(closed) => Some((closed.number, closed.attempt)),
        Attributes::ActivityTimedOut(closed) => Some((closed.number, closed.attempt)),
        Attributes::ActivityCancelled(closed) => Some((closed.number, closed.attempt)),
        Attributes::WorkflowExecutionStarted(_)
        | Attributes::WorkflowExecutionCancelRequested(_)
        | Attributes::WorkflowExecutionCompleted(_)
        | Attributes::WorkflowExecutionFailed(_)
        | Attributes::WorkflowExecutionCancelled(_)
        | Attributes::WorkflowExecutionTimedOut(_)
        | Attributes::WorkflowExecutionTerminated(_)
        | Attributes::WorkflowTaskCompleted(_)
        | Attributes::WorkflowTaskFailed(_)
        | Attributes::ActivityScheduled(_)
        | Attributes::ActivityCancelRequested(_)
        | Attributes::TimerStarted(_)
        | Attributes::TimerFired(_)
        | Attributes::TimerCancelled(_)
        | Attributes::SignalReceived(_)
        | Attributes::MarkerRecorded(_) => None,
    }
}
