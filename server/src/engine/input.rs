//! What can happen to a run, and what comes of it.

use std::collections::BTreeMap;

use super::activity::Attempt;
use bytes::Bytes;
use onward_proto::{
    NamespaceId, RequestId, RunId, Timestamp,
    v1::{
        self, AcceptedRequest, ActivityToken, CancelReason, Command, Failure, HistoryEvent,
        IdConflictPolicy, IdReusePolicy, Limit, Payload, PendingActivity, WorkflowStatus,
        WorkflowTaskFailureCause, history_event::Attributes,
    },
};

/// A worker's session on this node. Never used twice by one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// One load of a lane, drawn at random; every token and task id carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// Names one hand-out of a workflow task; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    /// The load of the lane that handed it out.
    pub incarnation: Incarnation,
    /// From 1 within the incarnation.
    pub counter: u64,
}

impl TaskId {
    /// Reads it from the wire.
    pub fn from_wire(id: &v1::TaskId) -> Self {
        Self { incarnation: Incarnation(id.incarnation), counter: id.counter }
    }

    /// Writes it for the wire.
    pub fn to_wire(self) -> v1::TaskId {
        v1::TaskId { incarnation: self.incarnation.0, counter: self.counter }
    }
}

/// Fences one attempt of an activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// The run.
    pub run_id: RunId,
    /// The activity.
    pub number: u32,
    /// The load of the lane that dispatched it.
    pub incarnation: Incarnation,
    /// From 1.
    pub attempt: u32,
}

impl Token {
    /// Reads it from the wire.
    ///
    /// # Errors
    /// When the run id is not 16 bytes long.
    pub fn from_wire(token: &ActivityToken) -> Result<Self, onward_proto::InvalidId> {
        Ok(Self {
            run_id: RunId::from_wire(&token.run_id)?,
            number: token.number,
            incarnation: Incarnation(token.incarnation),
            attempt: token.attempt,
        })
    }

    /// Writes it for the wire.
    pub fn to_wire(self) -> ActivityToken {
        ActivityToken {
            run_id: self.run_id.to_wire(),
            number: self.number,
            incarnation: self.incarnation.0,
            attempt: self.attempt,
        }
    }
}

/// A worker as the engine knows it: where to send, and what to put on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its session.
    pub session: SessionId,
    /// Names it for people.
    pub identity: String,
    /// The build of its code.
    pub build_id: String,
}

/// An accepted start, before it is known whether its workflow id is free.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// The namespace.
    pub namespace_id: NamespaceId,
    /// The caller's key.
    pub workflow_id: String,
    /// The registered name of the workflow function.
    pub workflow_type: String,
    /// Where its workflow tasks go.
    pub task_queue: String,
    /// One entry for each parameter.
    pub arguments: Vec<Payload>,
    /// The request.
    pub request_id: RequestId,
    /// Who asks.
    pub identity: String,
    /// Small notes.
    pub memo: BTreeMap<String, Payload>,
    /// For the whole chain; 0 means none. Microseconds.
    pub execution_timeout_us: i64,
    /// For this run; 0 means none. Microseconds.
    pub run_timeout_us: i64,
    /// When the last run has closed. Never unspecified.
    pub id_reuse_policy: IdReusePolicy,
    /// When a run is open. Never unspecified.
    pub id_conflict_policy: IdConflictPolicy,
    /// Set for signal-with-start: the signal, under the start's own request id.
    pub signal: Option<Signal>,
}

/// What the lane draws for a run before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draw {
    /// The new run's id.
    pub run_id: RunId,
    /// 16 random bytes, the source of the run's own randomness.
    pub seed: Bytes,
}

/// A signal.
#[derive(Debug, Clone, PartialEq)]
pub struct Signal {
    /// Which mailbox or handler it is for.
    pub name: String,
    /// One entry for each parameter.
    pub arguments: Vec<Payload>,
    /// The request.
    pub request_id: RequestId,
    /// Who sends it.
    pub identity: String,
}

/// A request to stop, or to be ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// For people.
    pub reason: String,
    /// The request.
    pub request_id: RequestId,
    /// Who asks.
    pub identity: String,
}

/// What can happen to a run that exists.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A message from outside.
    Signal(Signal),
    /// Somebody asks the run to stop.
    RequestCancel(Stop),
    /// Somebody ends the run.
    Terminate(Stop),
    /// A start with conflict policy *use existing* found this run open: its request id is kept, so
    /// that asking again names this run, also when it has closed meanwhile.
    UseExisting {
        /// The start's request id.
        request_id: RequestId,
    },
    /// A worker has advanced the run.
    CompleteTask(TaskCompletion),
    /// A worker could not advance the run.
    FailTask {
        /// The task.
        task_id: TaskId,
        /// Why.
        cause: WorkflowTaskFailureCause,
        /// The report.
        failure: Option<Failure>,
    },
    /// A worker has been found for the next attempt of an activity.
    StartAttempt {
        /// The activity.
        number: u32,
        /// The worker.
        worker: Worker,
        /// The lane's load.
        incarnation: Incarnation,
    },
    /// An attempt returned a value.
    CompleteActivity {
        /// The attempt.
        token: Token,
        /// What it returned.
        result: Option<Payload>,
        /// The worker that ran it.
        identity: String,
    },
    /// An attempt failed.
    FailActivity {
        /// The attempt.
        token: Token,
        /// How.
        failure: Failure,
        /// The worker that ran it.
        identity: String,
    },
    /// An attempt stopped as it was asked to.
    CancelledActivity {
        /// The attempt.
        token: Token,
        /// What it said.
        failure: Option<Failure>,
        /// The worker that ran it.
        identity: String,
    },
    /// A sign of life of an attempt.
    Heartbeat {
        /// The attempt.
        token: Token,
        /// What the next attempt should know, when there is something new.
        details: Option<Payload>,
    },
    /// A worker says that it still runs an attempt (after a new session, or a load of the lane).
    ClaimAttempt {
        /// The attempt.
        token: Token,
        /// The worker.
        worker: Worker,
    },
    /// A session is gone: its workflow task goes elsewhere, its attempts have a grace to be claimed.
    SessionLost {
        /// The session.
        session: SessionId,
    },
    /// The time that [`Run::wake`](crate::engine::Run::wake) named has passed.
    Deadline {
        /// True time is this or later: what deadlines are held against.
        due: Timestamp,
    },
}

/// A worker has advanced the run.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskCompletion {
    /// The task.
    pub task_id: TaskId,
    /// What the code asked for, in order; a close is last.
    pub commands: Vec<Command>,
    /// Commit this and hand out the next task at once, to run local activities.
    pub more: bool,
    /// Numbered behaviours of the SDK that shaped this task.
    pub sdk_flags: Vec<u32>,
    /// The worker.
    pub worker: Worker,
}

/// What an input means for its run: applied, and staged in one batch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    /// For the journal, in order, without event ids. Their time is the `now` of the decision.
    pub records: Vec<HistoryEvent>,
    /// Accepted requests that no record tells of; they go into the journal row beside the records.
    pub requests: Vec<AcceptedRequest>,
    /// Changes of the run's rows of `pending`, by activity number.
    pub pending: Vec<(u32, Option<PendingActivity>)>,
    /// What has to happen besides.
    pub effects: Vec<Effect>,
    /// What the one who asked is told, once the decision is durable.
    pub answer: Option<Answer>,
    /// What becomes of the leases, in order. Known to the engine alone.
    pub(in crate::engine) leases: Vec<LeaseChange>,
}

impl Decision {
    /// Whether anything of it has to become durable.
    pub fn writes(&self) -> bool {
        !self.records.is_empty() || !self.requests.is_empty() || !self.pending.is_empty()
    }

    /// Whether a value that a worker made by itself is recorded as refused.
    pub fn refuses_marker(&self) -> bool {
        let mut records = self.records.iter();
        records.any(|record| match &record.attributes {
            Some(Attributes::MarkerRecorded(marker)) => marker.refused.is_some(),
            Some(_) | None => false,
        })
    }
}

/// What becomes of a run's leases by a decision: what no record tells.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine) enum LeaseChange {
    /// The open task counts for nothing; it is to be repeated, and holds signals then.
    TaskVoid,
    /// The open task failed; the next goes out at this time.
    TaskFailed {
        /// Why.
        cause: WorkflowTaskFailureCause,
        /// The report.
        failure: Option<Box<Failure>>,
        /// When it may go out again.
        not_before: Option<Timestamp>,
        /// The worker that held it.
        identity: String,
    },
    /// The wait after a failed task is over.
    TaskBackoffOver,
    /// A task was completed in this session: it is preferred from now on.
    Sticky(SessionId),
    /// A session is gone.
    SessionLost {
        /// The session.
        session: SessionId,
        /// Until when its attempts may be claimed.
        claimable_until: Timestamp,
    },
    /// An attempt of an activity changes.
    Attempt {
        /// The activity.
        number: u32,
        /// Where it stands from now on.
        attempt: Attempt,
    },
    /// An attempt gave a sign of life.
    Heartbeat {
        /// The activity.
        number: u32,
        /// When.
        at: Timestamp,
        /// Something new for the next attempt.
        details: Option<Payload>,
    },
}

/// What has to happen because of a decision.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Offer the run's workflow task to its queue at once: workflow code has no side effects, so
    /// it may run before its cause is durable.
    OfferTask,
    /// Offer the run's workflow task once all that is staged is durable (after `more`).
    OfferTaskWhenDurable,
    /// Offer the next attempt of an activity to its queue, once all that is staged is durable.
    OfferActivity {
        /// The activity.
        number: u32,
    },
    /// Send an attempt to its worker, once all that is staged is durable.
    SendActivity {
        /// The attempt.
        token: Token,
        /// Where it goes.
        session: SessionId,
    },
    /// Tell a worker to stop an attempt, once all that is staged is durable.
    CancelAttempt {
        /// The attempt.
        token: Token,
        /// Where it runs.
        session: SessionId,
        /// Why.
        reason: CancelReason,
    },
    /// Take back the offer of an activity that is not to be dispatched any more.
    WithdrawActivity {
        /// The activity.
        number: u32,
    },
    /// Take back the offer of a workflow task, and let the worker that holds it forget it.
    WithdrawTask,
    /// The open task counts for nothing, because signals wait that its code has not seen: its
    /// completion is answered as stale. The task is offered again.
    TaskVoid {
        /// The task.
        task_id: TaskId,
        /// The worker's session.
        session: SessionId,
    },
    /// The run has closed: tell those who wait for its result, once that is durable.
    Closed,
}

/// What the one who asked is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The run that the request reached.
    pub run_id: RunId,
    /// Whether the request started that run.
    pub started: bool,
}

/// Why an input is refused. Nothing of it is recorded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// The request was accepted before; this is its first answer.
    #[error("the request was answered before")]
    Repeated(Answer),
    /// The run is closed.
    #[error("workflow {workflow_id} is closed: it {}", ended(*status))]
    Closed {
        /// The caller's key.
        workflow_id: String,
        /// How it ended.
        status: WorkflowStatus,
    },
    /// A run of that workflow id is open, and the conflict policy says fail.
    #[error("workflow {workflow_id} is already running as {run_id}")]
    AlreadyRunning {
        /// The caller's key.
        workflow_id: String,
        /// The open run.
        run_id: RunId,
    },
    /// The workflow id was used before, and the reuse policy says no.
    #[error(
        "workflow {workflow_id} was used before by {run_id} ({status:?}), and the id reuse policy refuses it"
    )]
    Reused {
        /// The caller's key.
        workflow_id: String,
        /// The last run.
        run_id: RunId,
        /// How it ended.
        status: WorkflowStatus,
    },
    /// A limit is reached.
    #[error("{} is limited to {}, got {}", .0.name, .0.limit, .0.value)]
    Limit(Limit),
    /// The task or attempt no longer counts. The worker forgets it.
    #[error("stale")]
    Stale,
    /// The completion is already on record. The worker forgets it; acked once that is durable.
    #[error("already recorded")]
    Recorded,
}

/// How much of everything a run may have. Checked at the edge and, for commands, by the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of an id or name.
    pub id_bytes: u64,
    /// Bytes of the payloads of one command or request together.
    pub payload_bytes: u64,
    /// Bytes of one record from which on the log tells of it.
    pub large_record_bytes: u64,
    /// Numbered events of a run.
    pub history_events: u64,
    /// Bytes of a run's history.
    pub history_bytes: u64,
    /// Activities of a run that have not closed.
    pub pending_activities: u64,
    /// Timers of a run that have not closed.
    pub pending_timers: u64,
    /// Signals that one run accepts.
    pub signals_per_run: u64,
    /// Signals that wait behind a repeated task.
    pub held_signals: u64,
    /// Bytes of heartbeat details that are kept.
    pub heartbeat_details_bytes: u64,
    /// Bytes of the last failure that are kept while an activity is retried.
    pub last_failure_bytes: u64,
    /// Request ids that are kept for one workflow id.
    pub request_ids: u64,
    /// How long a request id is kept. Microseconds.
    pub request_window_us: i64,
    /// A workflow task without a sign of life fails after this. Microseconds.
    pub task_deadline_us: i64,
    /// How long the attempts of a lost session may be claimed. Microseconds.
    pub reconnect_grace_us: i64,
    /// Failed attempts of one activity that make an incident.
    pub incident_attempts: u32,
    /// Failed attempts of one workflow task that make the run show as blocked.
    pub blocked_attempts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            id_bytes: 1_000,
            payload_bytes: 2 << 20,
            large_record_bytes: 512 << 10,
            history_events: 51_200,
            history_bytes: 50 << 20,
            pending_activities: 2_000,
            pending_timers: 2_000,
            signals_per_run: 10_000,
            held_signals: 256,
            heartbeat_details_bytes: 64 << 10,
            last_failure_bytes: 4 << 10,
            request_ids: 10_000,
            request_window_us: 24 * 3_600 * 1_000_000,
            task_deadline_us: 10_000_000,
            reconnect_grace_us: 10_000_000,
            incident_attempts: 10,
            blocked_attempts: 3,
        }
    }
}

/// What a workflow task was handed out with.
#[derive(Debug, Clone, PartialEq)]
pub struct HandOut {
    /// The facts it takes, numbered, in replay order. For the first task: event 1 leads.
    pub events: Vec<HistoryEvent>,
    /// The task that `events` follow; `None` for the first.
    pub follows: Option<TaskId>,
    /// What `ctx.now()` returns.
    pub handed_out_at: Timestamp,
    /// From 1; failed hand-outs count.
    pub attempt: u32,
    /// The event id behind the last of `events`.
    pub next_event_id: u64,
}

/// When a run needs the lane's attention without an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// It has work in flight or owed; its next deadline stands beside it.
    Hot(Option<Timestamp>),
    /// It waits for a deadline.
    Cold(Timestamp),
    /// It waits for outside only, or is closed and settled.
    Never,
}

/// How a run ended, behind the word *it*.
fn ended(status: WorkflowStatus) -> &'static str {
    match status {
        WorkflowStatus::Completed => "completed",
        WorkflowStatus::Failed => "failed",
        WorkflowStatus::Cancelled => "was cancelled",
        WorkflowStatus::Terminated => "was terminated",
        WorkflowStatus::TimedOut => "timed out",
        WorkflowStatus::Running | WorkflowStatus::Unspecified => "has an end that is unknown",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{super::fixture::*, *};

    #[test]
    fn records_requests_and_rows_have_to_become_durable_and_leases_have_not() {
        let writes = |story: Story| story.last.unwrap().writes();
        let called = || history().task([call(1)]);
        assert!(writes(called().signal("a")), "a record");
        assert!(writes(called().when(&Input::UseExisting { request_id: request(9) })), "a request");
        assert!(writes(called().dispatched(1).heartbeat(1, Some("half"))), "a row of pending");
        assert!(!writes(called().dispatched(1)), "a lease");
    }

    #[test]
    fn who_comes_after_the_end_is_told_how_it_ended() {
        use WorkflowStatus::{Cancelled, Completed, Failed, Terminated, TimedOut};
        for (status, ended) in [
            (Completed, "completed"),
            (Failed, "failed"),
            (Cancelled, "was cancelled"),
            (Terminated, "was terminated"),
            (TimedOut, "timed out"),
        ] {
            let rejection = Rejection::Closed { workflow_id: "order-42".into(), status };
            assert_eq!(rejection.to_string(), format!("workflow order-42 is closed: it {ended}"));
        }
    }
}
