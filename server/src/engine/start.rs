//! The start of a run, and requests that meet a run which is not open.

use onward_proto::{
    RequestId, RunId, Timestamp,
    v1::{
        IdConflictPolicy, IdReusePolicy, WorkflowExecutionStarted, WorkflowStatus,
        history_event::Attributes,
    },
};
use prost::Message as _;

use super::{
    Answer, Decision, Draw, Effect, Input, Limits, Rejection, RequestKind, Requests, Run,
    RunIdentity, Start,
    limits::{check_start, record},
    signal::{check_signal, received},
};

/// The newest run of a workflow id.
#[derive(Debug, Clone, Copy)]
pub enum Existing<'a> {
    /// The id was never used.
    None,
    /// Its newest run has closed.
    Closed {
        /// The run.
        run_id: RunId,
        /// How it ended.
        status: WorkflowStatus,
        /// The window of accepted requests.
        requests: &'a Requests,
    },
    /// It has an open run.
    Open(&'a Run),
}

/// What to do with a start.
#[derive(Debug, Clone, PartialEq)]
pub enum StartVerdict {
    /// Start a run: [`Run::start`].
    Start {
        /// The window of accepted requests that the new run takes over.
        inherited: Requests,
    },
    /// Answer with the open run: decide [`Input::UseExisting`] on it, which also remembers the
    /// request. The answer will be this one.
    UseExisting(Answer),
    /// Decide [`Input::Signal`] with the start's signal on the open run.
    SignalExisting,
    /// Decide [`Input::Terminate`] on the open run, then start one that takes its window over.
    TerminateThenStart,
}

/// Works out what a start means.
///
/// # Errors
/// [`Rejection::Repeated`] for a known request; otherwise the limit that the start breaks, or what
/// the policies refuse.
pub fn decide_start(
    now: Timestamp,
    start: &Start,
    existing: Existing<'_>,
    limits: &Limits,
) -> Result<StartVerdict, Rejection> {
    let requests = match existing {
        Existing::None => None,
        Existing::Closed { requests, .. } => Some(requests),
        Existing::Open(run) => Some(run.requests()),
    };
    // Signal-with-start may have reached an open run as a signal, so it is known as one.
    let kind = if start.signal.is_some() { RequestKind::Signal } else { RequestKind::Start };
    let known = requests.and_then(|known| known.lookup(now, kind, start.request_id, limits));
    if let Some(answer) = known {
        return Err(Rejection::Repeated(answer));
    }
    // Nothing refuses the start behind this: an open run may be ended for its sake.
    check_start(start, limits).map_err(Rejection::Limit)?;
    if let Some(signal) = &start.signal {
        check_signal(signal, limits)?;
    }
    let reused = |run_id: RunId, status: WorkflowStatus| Rejection::Reused {
        workflow_id: start.workflow_id.clone(),
        run_id,
        status,
    };
    match existing {
        Existing::None => Ok(StartVerdict::Start { inherited: Requests::default() }),
        Existing::Closed { run_id, status, requests } => match start.id_reuse_policy {
            IdReusePolicy::Reject => Err(reused(run_id, status)),
            IdReusePolicy::AllowFailedOnly if status == WorkflowStatus::Completed => {
                Err(reused(run_id, status))
            }
            IdReusePolicy::AllowFailedOnly | IdReusePolicy::Allow | IdReusePolicy::Unspecified => {
                Ok(StartVerdict::Start { inherited: requests.pruned(now, limits) })
            }
        },
        Existing::Open(_) if start.signal.is_some() => Ok(StartVerdict::SignalExisting),
        Existing::Open(run) => match start.id_conflict_policy {
            IdConflictPolicy::UseExisting => {
                let run_id = run.identity().run_id;
                Ok(StartVerdict::UseExisting(Answer { run_id, started: false }))
            }
            // Once it is terminated its id is used, which the reuse policy may refuse.
            IdConflictPolicy::TerminateExisting
                if start.id_reuse_policy != IdReusePolicy::Reject =>
            {
                Ok(StartVerdict::TerminateThenStart)
            }
            IdConflictPolicy::TerminateExisting
            | IdConflictPolicy::Fail
            | IdConflictPolicy::Unspecified => Err(Rejection::AlreadyRunning {
                workflow_id: start.workflow_id.clone(),
                run_id: run.identity().run_id,
            }),
        },
    }
}

/// Answers an input that names a closed run which is not in memory.
pub fn decide_for_closed(
    now: Timestamp,
    input: &Input,
    workflow_id: &str,
    status: WorkflowStatus,
    requests: &Requests,
    limits: &Limits,
) -> Rejection {
    let (kind, request_id) = match input {
        Input::Signal(signal) => (RequestKind::Signal, signal.request_id),
        Input::RequestCancel(stop) => (RequestKind::Cancel, stop.request_id),
        Input::Terminate(stop) => (RequestKind::Terminate, stop.request_id),
        Input::UseExisting { request_id } => (RequestKind::Start, *request_id),
        Input::CompleteTask(_)
        | Input::FailTask { .. }
        | Input::StartAttempt { .. }
        | Input::CompleteActivity { .. }
        | Input::FailActivity { .. }
        | Input::CancelledActivity { .. }
        | Input::Heartbeat { .. }
        | Input::ClaimAttempt { .. }
        | Input::SessionLost { .. }
        | Input::Deadline { .. } => return Rejection::Stale,
    };
    match requests.lookup(now, kind, request_id, limits) {
        Some(answer) => Rejection::Repeated(answer),
        None => Rejection::Closed { workflow_id: workflow_id.to_owned(), status },
    }
}

/// What a run was started with, as far as it is still needed.
#[derive(Debug)]
pub(super) struct Started {
    request_id: Option<RequestId>,
    /// For the whole chain; 0 means none.
    pub(super) execution_timeout_us: i64,
    /// For this run; 0 means none.
    pub(super) run_timeout_us: i64,
    event: StartedEvent,
}

#[derive(Debug)]
enum StartedEvent {
    /// All of it, for the first task.
    Whole(Box<WorkflowExecutionStarted>),
    /// What people may ask for, the arguments and the memo, encoded: runs sleep by the million.
    Kept(Box<[u8]>),
}

impl Default for Started {
    fn default() -> Self {
        Self {
            request_id: None,
            execution_timeout_us: 0,
            run_timeout_us: 0,
            event: StartedEvent::Kept(Box::default()),
        }
    }
}

impl Started {
    /// From event 1.
    pub(super) fn new(event: &WorkflowExecutionStarted) -> Self {
        Self {
            request_id: RequestId::from_wire(&event.request_id).ok(),
            execution_timeout_us: event.execution_timeout_us,
            run_timeout_us: event.run_timeout_us,
            event: StartedEvent::Whole(Box::new(event.clone())),
        }
    }

    /// Whether a request with this id started the run.
    pub(super) fn is_by(&self, request_id: &[u8]) -> bool {
        self.request_id.is_some_and(|known| known.uuid().as_bytes() == request_id)
    }

    /// The event: before the first task completes all of it, then arguments and memo.
    pub(super) fn event(&self) -> WorkflowExecutionStarted {
        match &self.event {
            StartedEvent::Whole(event) => (**event).clone(),
            StartedEvent::Kept(kept) => {
                WorkflowExecutionStarted::decode(&**kept).expect("what was encoded here decodes")
            }
        }
    }

    /// The first task has completed: event 1 is not sent from memory again.
    pub(super) fn first_task_completed(&mut self) {
        if let StartedEvent::Whole(event) = &mut self.event {
            let kept = WorkflowExecutionStarted {
                arguments: std::mem::take(&mut event.arguments),
                memo: std::mem::take(&mut event.memo),
                ..WorkflowExecutionStarted::default()
            };
            self.event = StartedEvent::Kept(kept.encode_to_vec().into());
        }
    }

    /// Bytes of memory on the heap, roughly.
    pub(super) fn heap_bytes(&self) -> usize {
        match &self.event {
            StartedEvent::Whole(event) => size_of_val(&**event) + 2 * event.encoded_len(),
            StartedEvent::Kept(kept) => kept.len(),
        }
    }
}

impl Run {
    /// A run from an accepted start, when [`decide_start`] has said so. The decision is applied
    /// already; it is to be staged.
    pub fn start(
        now: Timestamp,
        start: &Start,
        draw: Draw,
        inherited: Requests,
        limits: &Limits,
    ) -> (Self, Decision) {
        let started = WorkflowExecutionStarted {
            workflow_type: start.workflow_type.clone(),
            task_queue: start.task_queue.clone(),
            arguments: start.arguments.clone(),
            run_id: draw.run_id.to_wire(),
            first_run_id: bytes::Bytes::new(),
            attempt: 1,
            request_id: start.request_id.to_wire(),
            identity: start.identity.clone(),
            memo: start.memo.clone(),
            execution_timeout_us: start.execution_timeout_us,
            run_timeout_us: start.run_timeout_us,
            seed: draw.seed,
            workflow_id: start.workflow_id.clone(),
        };
        let mut records = vec![record(now, Attributes::WorkflowExecutionStarted(started))];
        records.extend(start.signal.as_ref().map(|signal| received(now, signal)));
        let decision = Decision {
            records,
            effects: vec![Effect::OfferTask],
            answer: Some(Answer { run_id: draw.run_id, started: true }),
            ..Decision::default()
        };
        let identity = RunIdentity {
            run_id: draw.run_id,
            namespace_id: start.namespace_id,
            workflow_id: start.workflow_id.clone(),
            workflow_type: start.workflow_type.clone(),
            task_queue: start.task_queue.clone(),
            started_at: now,
        };
        let mut run = Self::new(identity, inherited);
        run.apply(now, &decision, limits);
        (run, decision)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::fixture::*;
    use super::*;

    fn decide(start: &Start, existing: Existing<'_>) -> Result<StartVerdict, Rejection> {
        decide_start(Timestamp::from_micros(BEGIN), start, existing, &Limits::default())
    }

    fn closed(status: WorkflowStatus) -> (RunId, WorkflowStatus, Requests) {
        (run_id(1), status, Requests::default())
    }

    #[test]
    fn the_reuse_policy_says_whether_a_closed_id_is_free() {
        use IdReusePolicy as P;
        use WorkflowStatus as S;
        for (policy, status, free) in [
            (P::Allow, S::Completed, true),
            (P::Allow, S::Failed, true),
            (P::AllowFailedOnly, S::Completed, false),
            (P::AllowFailedOnly, S::Failed, true),
            (P::AllowFailedOnly, S::Terminated, true),
            (P::Reject, S::Failed, false),
        ] {
            let start =
                Start { id_reuse_policy: policy, request_id: request(5), ..start_request() };
            let (run_id, status, requests) = closed(status);
            let verdict = decide(&start, Existing::Closed { run_id, status, requests: &requests });
            assert_eq!(verdict.is_ok(), free, "{policy:?} {status:?}: {verdict:?}");
        }
        assert!(decide(&start_request(), Existing::None).is_ok());
    }

    #[test]
    fn the_conflict_policy_says_what_becomes_of_an_open_run() {
        let story = history();
        let open = Existing::Open(&story.run);
        let start = Start { request_id: request(5), ..start_request() };
        let with = |id_conflict_policy| Start { id_conflict_policy, ..start.clone() };
        assert!(matches!(
            decide(&with(IdConflictPolicy::Fail), open),
            Err(Rejection::AlreadyRunning { .. })
        ));
        let answer = Answer { run_id: run_id(1), started: false };
        let used = decide(&with(IdConflictPolicy::UseExisting), open);
        assert_eq!(used, Ok(StartVerdict::UseExisting(answer)));
        let terminate = with(IdConflictPolicy::TerminateExisting);
        assert_eq!(decide(&terminate, open), Ok(StartVerdict::TerminateThenStart));
        let reject = Start { id_reuse_policy: IdReusePolicy::Reject, ..terminate };
        assert!(decide(&reject, open).is_err());
    }

    #[test]
    fn a_start_that_comes_again_names_its_run_also_when_that_has_closed_and_another_started() {
        let story = history();
        let answer = Answer { run_id: run_id(1), started: true };
        let again = Err(Rejection::Repeated(answer));
        assert_eq!(decide(&start_request(), Existing::Open(&story.run)), again);
        let story = story.task([complete("done")]);
        let requests =
            Requests::decode(&story.run.requests().encode(run_id(1)), run_id(1)).unwrap();
        let status = story.run.status();
        let existing = Existing::Closed { run_id: run_id(1), status, requests: &requests };
        assert_eq!(decide(&start_request(), existing), again);

        let next = Start { request_id: request(5), ..start_request() };
        let Ok(StartVerdict::Start { inherited }) = decide(&next, existing) else { panic!() };
        let draw = Draw { run_id: run_id(2), seed: vec![0; 32].into() };
        let (run, _) = Run::start(story.now, &next, draw, inherited, &story.limits);
        assert_eq!(decide(&start_request(), Existing::Open(&run)), again);
        let second = Answer { run_id: run_id(2), started: true };
        assert_eq!(decide(&next, Existing::Open(&run)), Err(Rejection::Repeated(second)));
    }

    #[test]
    fn a_used_run_is_named_again_after_it_has_closed() {
        let story = history().when(&Input::UseExisting { request_id: request(5) });
        let answer = Answer { run_id: run_id(1), started: false };
        assert_eq!(story.last.as_ref().unwrap().answer, Some(answer));
        let story = story.reload().terminated();
        let start = Start { request_id: request(5), ..start_request() };
        let existing = Existing::Closed {
            run_id: run_id(1),
            status: story.run.status(),
            requests: story.run.requests(),
        };
        assert_eq!(decide(&start, existing), Err(Rejection::Repeated(answer)));
    }

    #[test]
    fn signal_with_start_starts_or_signals_and_is_known_either_way() {
        let Input::Signal(signal) = signal("a", request(5)) else { panic!() };
        let start = Start {
            request_id: request(5),
            signal: Some(signal.clone()),
            id_conflict_policy: IdConflictPolicy::Fail,
            ..start_request()
        };
        let fresh = history_of(&start, Limits::default()).then_inbox("signal:a");
        let started = Answer { run_id: run_id(1), started: true };
        assert_eq!(fresh.last.as_ref().unwrap().answer, Some(started));
        let again = decide(&start, Existing::Open(&fresh.run));
        assert_eq!(again, Err(Rejection::Repeated(started)));

        let open = history();
        let verdict = decide(&start, Existing::Open(&open.run));
        assert_eq!(verdict, Ok(StartVerdict::SignalExisting));
        let open = open.when(&Input::Signal(signal));
        let found = Answer { run_id: run_id(1), started: false };
        assert_eq!(open.last.as_ref().unwrap().answer, Some(found));
        assert_eq!(decide(&start, Existing::Open(&open.run)), Err(Rejection::Repeated(found)));
    }

    #[test]
    fn a_run_offers_its_first_task_and_tells_its_arguments_and_memo_for_ever() {
        let memo = [("note".to_owned(), payload("fast"))].into();
        let start = Start { memo, ..start_request() };
        let tells = |story: Story| {
            let told = story.run.describe(story.now, &|_| 1, &story.limits);
            assert_eq!(
                (told.arguments, told.info.unwrap().memo),
                (start.arguments.clone(), start.memo.clone())
            );
            story
        };
        let story = tells(history_of(&start, Limits::default()).then_effects("offer-task"));
        tells(tells(tells(story.task([])).reload()).terminated());
    }

    #[test]
    fn a_start_that_breaks_a_limit_is_refused_before_an_open_run_is_ended_for_it() {
        let limits = Limits { payload_bytes: 20, ..Limits::default() };
        let story = history();
        let Input::Signal(large) = signal(&"a".repeat(21), request(5)) else { panic!() };
        let start = Start {
            request_id: request(5),
            id_conflict_policy: IdConflictPolicy::TerminateExisting,
            ..start_request()
        };
        for start in [
            Start { workflow_id: "a\0".into(), ..start.clone() },
            Start { workflow_id: "a".repeat(1_001), ..start.clone() },
            Start { arguments: vec![payload(&"1".repeat(21))], ..start.clone() },
            Start { run_timeout_us: -1, ..start.clone() },
            Start { signal: Some(large), ..start.clone() },
        ] {
            for existing in [Existing::None, Existing::Open(&story.run)] {
                let verdict = decide_start(story.now, &start, existing, &limits);
                assert!(matches!(verdict, Err(Rejection::Limit(_))), "{verdict:?} for {start:?}");
            }
        }
        let verdict = decide_start(story.now, &start, Existing::Open(&story.run), &limits);
        assert_eq!(verdict, Ok(StartVerdict::TerminateThenStart));
    }
}
