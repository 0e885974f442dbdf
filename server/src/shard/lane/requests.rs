//! What clients ask.

use onward_proto::{
    Timestamp,
    v1::{WorkflowExecutionStarted, history_event::Attributes},
};
use prost::Message as _;

use super::{
    super::{
        batch::Deferred,
        message::{Located, Refusal, Reply, Request, Target, TaskTail},
    },
    IdKey, Lane,
    runs::Entry,
    waiting::Follower,
};
use crate::engine::{
    Answer, Decision, Draw, Existing, Input, Rejection, Requests, Run, Start, StartVerdict, TaskId,
    decide_start,
};
use bytes::Bytes;
use onward_proto::{RequestId, RunId, Slot, v1::WorkflowOutcome};

impl Request {
    /// The workflow id that it is about.
    pub(super) fn key(&self) -> Option<IdKey> {
        let target = match self {
            Self::Start { start, .. } => {
                return Some((start.namespace_id, start.workflow_id.clone()));
            }
            Self::Change { target, .. }
            | Self::Describe { target, .. }
            | Self::AwaitResult { target, .. }
            | Self::Locate { target, .. } => target,
            Self::TaskTail { .. } => return None,
        };
        Some((target.namespace_id, target.workflow_id.clone()))
    }

    /// The run that it names, when it does.
    fn run_id(&self) -> Option<RunId> {
        match self {
            Self::Start { .. } => None,
            Self::Change { target, .. }
            | Self::Describe { target, .. }
            | Self::AwaitResult { target, .. }
            | Self::Locate { target, .. } => target.run_id,
            Self::TaskTail { run_id, .. } => Some(*run_id),
        }
    }

    /// Answers that it cannot be done.
    pub(super) fn refuse(self, refusal: Refusal) {
        // A receiver that is gone has stopped waiting.
        match self {
            Self::Start { answer, .. } | Self::Change { answer, .. } => {
                drop(answer.send(Err(refusal)));
            }
            Self::Describe { answer, .. } => drop(answer.send(Err(refusal))),
            Self::AwaitResult { located, .. } => drop(located.send(Err(refusal))),
            Self::Locate { answer, .. } => drop(answer.send(Err(refusal))),
            Self::TaskTail { answer, .. } => drop(answer.send(Err(refusal))),
        }
    }

    fn target(&self) -> Option<&Target> {
        match self {
            Self::Start { .. } | Self::TaskTail { .. } => None,
            Self::Change { target, .. }
            | Self::Describe { target, .. }
            | Self::AwaitResult { target, .. }
            | Self::Locate { target, .. } => Some(target),
        }
    }

    /// From now on it is about this run, whatever starts in its place.
    pub(super) fn name_run(&mut self, run_id: RunId) {
        match self {
            Self::Start { .. } | Self::TaskTail { .. } => {}
            Self::Change { target, .. }
            | Self::Describe { target, .. }
            | Self::AwaitResult { target, .. }
            | Self::Locate { target, .. } => {
                target.run_id.get_or_insert(run_id);
            }
        }
    }

    /// Answers that there is no such run.
    pub(super) fn refuse_not_found(self) {
        let refusal = self.target().map_or_else(
            || Refusal::Rejected(Rejection::Stale),
            |target| Refusal::NotFound {
                namespace: target.namespace.clone(),
                workflow_id: target.run_id.map_or_else(
                    || target.workflow_id.clone(),
                    |run_id| format!("{} (run {run_id})", target.workflow_id),
                ),
            },
        );
        self.refuse(refusal);
    }
}

/// Requests of one lane that may wait for looks and loads.
const WAITING: usize = 16_384;
/// Bytes of those that may.
const WAITING_BYTES: usize = 64 << 20;

/// Runs of one lane that may wait for workers outside memory before starts are refused.
const MOST_AWAY: usize = 1_000_000;

impl Lane {
    pub(super) fn on_request(&mut self, request: Request) {
        if self.draining {
            return request.refuse(Self::draining_refusal());
        }
        if matches!(request, Request::Start { .. }) && self.away.len() >= MOST_AWAY {
            let limit = format!("{MOST_AWAY} workflows without a worker");
            return request.refuse(Refusal::Busy { limit });
        }
        // A request for a run in memory goes on at once. Otherwise it waits for a look at its
        // workflow id, or for the load of its run, and what comes later for them waits behind it.
        if let Some(run_id) = request.run_id() {
            // Another shard's run must not come into memory here, whatever the request says.
            if !self.slots.contains(&run_id.slot().get()) {
                return request.refuse_not_found();
            }
            if !self.runs.contains_key(&run_id) && self.is_crowded() {
                return request.refuse(Self::crowded());
            }
            return self.with_run(run_id, request);
        }
        let key = request.key().expect("a request without a run names a workflow id");
        if let Some(run_id) = self.ids.get(&key)
            && !self.looking.contains_key(&key)
        {
            self.with_run(*run_id, request);
        } else if self.is_crowded() {
            request.refuse(Self::crowded());
        } else if let Some(waiting) = self.looking.get_mut(&key) {
            self.waiting += 1;
            self.waiting_bytes += request.bytes();
            waiting.push(request);
        } else {
            self.look(key, request);
        }
    }

    /// Whether so much waits for reads already that nothing may join it: while the database is
    /// away the mailbox is read all the same.
    fn is_crowded(&self) -> bool {
        self.waiting >= WAITING || self.waiting_bytes >= WAITING_BYTES
    }

    fn crowded() -> Refusal {
        Refusal::Busy { limit: format!("{WAITING} requests, or {WAITING_BYTES} bytes of them,") }
    }

    /// Goes on with a request whose run is known; loads it first if need be.
    pub(super) fn with_run(&mut self, run_id: RunId, request: Request) {
        if let Some(parked) = self.parked.get(&run_id) {
            if request.target().is_some_and(|target| parked.is_of_another(target)) {
                return request.refuse_not_found();
            }
            return request.refuse(Refusal::Parked { run_id, reason: parked.reason.clone() });
        }
        if self.runs.contains_key(&run_id) {
            self.touch_idle(run_id);
            self.on_known(run_id, request);
        } else {
            self.load(run_id, super::Mail::Request(request));
        }
    }

    fn on_known(&mut self, run_id: RunId, request: Request) {
        if let Some(target) = request.target() {
            let identity = self.runs[&run_id].run.identity();
            if identity.workflow_id != target.workflow_id
                || identity.namespace_id != target.namespace_id
            {
                return request.refuse_not_found();
            }
        }
        if !self.stands_for(run_id, &request) {
            return self.on_request(request);
        }
        match request {
            Request::Start { start, answer, outcome } => {
                self.start_over_known(run_id, *start, answer, outcome);
            }
            Request::Change { target, input, answer } => {
                let holds =
                    matches!(input, Input::Signal(_)) && self.runs[&run_id].run.holds_signals();
                if holds {
                    self.hold_signal(run_id, Request::Change { target, input, answer });
                } else {
                    self.change(run_id, &input, answer);
                }
            }
            Request::Describe { answer, .. } => self.describe(run_id, answer),
            Request::AwaitResult { located, outcome, .. } => {
                self.await_result(run_id, located, outcome);
            }
            Request::Locate { beyond, answer, .. } => self.locate_beyond(run_id, beyond, answer),
            Request::TaskTail { task_id, rows, answer, .. } => {
                self.task_tail(run_id, task_id, rows, answer);
            }
        }
    }

    /// Whether the request is for this run. One that names none is for the run that stands for the
    /// workflow id when it is decided: the run that it waited for may have closed meanwhile, and
    /// another may have started in its place.
    fn stands_for(&self, run_id: RunId, request: &Request) -> bool {
        // An open run stands for its id.
        request.run_id().is_some()
            || !self.runs[&run_id].run.is_closed()
            || request.key().is_some_and(|key| self.ids.get(&key) == Some(&run_id))
    }

    /// Signals wait behind a repeated task, so that a stream of them cannot keep the run open.
    fn hold_signal(&mut self, run_id: RunId, request: Request) {
        let limit = self.node.limits.held_signals;
        let now = self.now();
        let Some(entry) = self.runs.get_mut(&run_id) else { return };
        if entry.held.len() as u64 >= limit {
            return request.refuse(Refusal::Rejected(Rejection::Limit(onward_proto::v1::Limit {
                name: "held_signals".to_owned(),
                limit,
                value: limit + 1,
            })));
        }
        entry.held.push(request);
        entry.held_since.get_or_insert(now);
        self.settle(run_id);
    }

    /// Handles what waited behind a repeated task as if it came now.
    pub(super) fn release_held(&mut self, run_id: RunId) {
        let Some(entry) = self.runs.get_mut(&run_id) else { return };
        if entry.held.is_empty() || entry.run.holds_signals() {
            return;
        }
        entry.held_since = None;
        for request in std::mem::take(&mut entry.held) {
            // As if it came now, which may be to another run of the workflow id.
            self.on_request(request);
        }
        self.settle(run_id);
    }

    /// Decides an input for a run in memory and answers once all it rests on is durable.
    fn change(&mut self, run_id: RunId, input: &Input, answer: Reply<Answer>) {
        let now = self.now();
        match self.runs[&run_id].run.decide(now, input, &self.node.limits) {
            Ok(decision) => {
                let told = decision.answer.unwrap_or(Answer { run_id, started: false });
                self.apply(now, run_id, decision);
                self.defer(run_id, Deferred::Answer(answer, Ok(told)));
                // If this has ended the run, what waited behind its task waits no more.
                self.release_held(run_id);
            }
            Err(Rejection::Repeated(first)) => {
                self.defer(run_id, Deferred::Answer(answer, Ok(first)));
            }
            Err(rejection) => {
                self.defer(run_id, Deferred::Answer(answer, Err(rejection.into())));
            }
        }
    }

    /// A start whose workflow id has a run in memory.
    fn start_over_known(
        &mut self,
        run_id: RunId,
        start: Start,
        answer: Reply<Answer>,
        outcome: Option<Reply<WorkflowOutcome>>,
    ) {
        let now = self.now();
        let run = &self.runs[&run_id].run;
        let existing = match run.closed_at() {
            None => Existing::Open(run),
            Some(_) => Existing::Closed { run_id, status: run.status(), requests: run.requests() },
        };
        let verdict = decide_start(now, &start, existing, &self.node.limits);
        match verdict {
            Ok(StartVerdict::Start { inherited }) => {
                // The answer also rests on the close of the run before, which stands in an
                // earlier batch or in the same one.
                self.start(now, &start, Some(run_id), inherited, answer, outcome);
            }
            Ok(StartVerdict::UseExisting(_)) => {
                let input = Input::UseExisting { request_id: start.request_id };
                self.change_and_await(run_id, &input, answer, outcome);
            }
            Ok(StartVerdict::SignalExisting) => {
                let mut start = start;
                let signal =
                    start.signal.take().expect("only a start with a signal gets this verdict");
                if self.runs[&run_id].run.holds_signals() {
                    // It waits as what it is: the run may close, and then it starts another.
                    let start = Box::new(Start { signal: Some(signal), ..start });
                    self.hold_signal(run_id, Request::Start { start, answer, outcome });
                } else {
                    self.change_and_await(run_id, &Input::Signal(signal), answer, outcome);
                }
            }
            Ok(StartVerdict::TerminateThenStart) => {
                self.terminate_then_start(now, run_id, &start, answer, outcome);
            }
            Err(Rejection::Repeated(first)) => {
                self.defer(run_id, Deferred::Answer(answer, Ok(first)));
                self.await_outcome(first.run_id, outcome);
            }
            Err(rejection) => {
                self.defer(run_id, Deferred::Answer(answer, Err(rejection.into())));
            }
        }
    }

    fn terminate_then_start(
        &mut self,
        now: Timestamp,
        run_id: RunId,
        start: &Start,
        answer: Reply<Answer>,
        outcome: Option<Reply<WorkflowOutcome>>,
    ) {
        let terminate = Input::Terminate(crate::engine::Stop {
            reason: "another run of the workflow id was started in its place".to_owned(),
            request_id: RequestId::from_uuid(self.node.env.random_uuid()),
            identity: start.identity.clone(),
        });
        match self.runs[&run_id].run.decide(now, &terminate, &self.node.limits) {
            Ok(decision) => {
                self.apply(now, run_id, decision);
                let inherited = self.runs[&run_id].run.requests().pruned(now, &self.node.limits);
                self.start(now, start, Some(run_id), inherited, answer, outcome);
                // Behind the start: it has the id, and what was held must not start another run.
                self.release_held(run_id);
            }
            Err(rejection) => {
                self.defer(run_id, Deferred::Answer(answer, Err(rejection.into())));
            }
        }
    }

    /// A start whose workflow id has no run in memory, and no open one anywhere.
    pub(super) fn start_after_look(
        &mut self,
        existing: Existing<'_>,
        start: &Start,
        answer: Reply<Answer>,
        outcome: Option<Reply<WorkflowOutcome>>,
    ) {
        let now = self.now();
        let before = match existing {
            Existing::Closed { run_id, .. } => Some(run_id),
            Existing::None | Existing::Open(_) => None,
        };
        match decide_start(now, start, existing, &self.node.limits) {
            Ok(StartVerdict::Start { inherited }) => {
                self.start(now, start, before, inherited, answer, outcome);
            }
            Ok(
                StartVerdict::UseExisting(_)
                | StartVerdict::SignalExisting
                | StartVerdict::TerminateThenStart,
            ) => unreachable!("these verdicts are for an open run, which is loaded first"),
            Err(Rejection::Repeated(first)) => {
                self.release(Deferred::Answer(answer, Ok(first)));
                self.await_outcome(first.run_id, outcome);
            }
            Err(rejection) => self.release(Deferred::Answer(answer, Err(rejection.into()))),
        }
    }

    fn start(
        &mut self,
        now: Timestamp,
        start: &Start,
        before: Option<RunId>,
        inherited: Requests,
        answer: Reply<Answer>,
        outcome: Option<Reply<WorkflowOutcome>>,
    ) {
        let slot = Slot::of(start.namespace_id, &start.workflow_id);
        let draw = Draw {
            run_id: self.new_run_id(now, slot, before),
            seed: Bytes::copy_from_slice(&self.node.env.random_seed()),
        };
        let (run, decision) = Run::start(now, start, draw, inherited, &self.node.limits);
        let told = decision.answer;
        let mut entry = Entry::fresh(run);
        entry.memo = encode_memo(&decision);
        let run_id = self.insert(entry);
        self.stage_started(run_id, decision);
        let told = told.unwrap_or(Answer { run_id, started: true });
        if let Some(outcome) = outcome {
            // Who waits for the result is not in a hurry for the start.
            self.open.defer_lazily(run_id, Deferred::Answer(answer, Ok(told)));
            self.waiters.add(run_id, outcome);
        } else {
            self.defer(run_id, Deferred::Answer(answer, Ok(told)));
        }
    }

    /// A run id that sorts behind that of the run before, also when the clock has lost time in a
    /// failover.
    fn new_run_id(&self, now: Timestamp, slot: Slot, before: Option<RunId>) -> RunId {
        let mut millis = now.as_millis();
        loop {
            let run_id = RunId::new(millis, self.node.env.random(), slot);
            match before {
                Some(before) if before >= run_id => {
                    // A UUID v7 begins with its time.
                    millis = millis.max((before.uuid().as_u128() >> 80) as u64) + 1;
                }
                _ => return run_id,
            }
        }
    }

    fn stage_started(&mut self, run_id: RunId, decision: Decision) {
        self.stage(run_id, &decision);
        for effect in decision.effects {
            self.start_effect(run_id, &effect);
        }
        self.settle(run_id);
    }

    fn change_and_await(
        &mut self,
        run_id: RunId,
        input: &Input,
        answer: Reply<Answer>,
        outcome: Option<Reply<WorkflowOutcome>>,
    ) {
        self.change(run_id, input, answer);
        self.await_outcome(run_id, outcome);
    }

    /// Tells the outcome of a run in memory when it has one; of any other, the caller asks again.
    fn await_outcome(&mut self, run_id: RunId, outcome: Option<Reply<WorkflowOutcome>>) {
        let Some(reply) = outcome else { return };
        let Some(entry) = self.runs.get(&run_id) else { return };
        if let Some(outcome) = entry.run.outcome() {
            return self.defer(run_id, Deferred::Outcome(reply, Box::new(outcome)));
        }
        self.waiters.add(run_id, reply);
    }

    fn await_result(
        &mut self,
        run_id: RunId,
        located: Reply<Located>,
        outcome: Reply<WorkflowOutcome>,
    ) {
        self.defer(run_id, Deferred::Locate(located, run_id));
        self.await_outcome(run_id, Some(outcome));
    }

    fn describe(
        &mut self,
        run_id: RunId,
        answer: Reply<Box<onward_proto::v1::DescribeWorkflowResponse>>,
    ) {
        let now = self.now();
        let entry = &self.runs[&run_id];
        let namespace_id = entry.run.identity().namespace_id;
        let dispatch = &self.node.dispatch;
        let pollers = |queue: &str| dispatch.pollers(namespace_id, queue);
        let description = Box::new(entry.run.describe(now, &pollers, &self.node.limits));
        self.defer(run_id, Deferred::Describe(answer, description));
    }

    fn locate_beyond(&mut self, run_id: RunId, beyond: Option<u32>, answer: Reply<Located>) {
        match (beyond, self.locate(run_id)) {
            (Some(beyond), Ok(located)) if located.rows <= beyond && !located.closed => {
                self.followers.add(run_id, Follower { beyond, reply: answer });
            }
            // What is staged now is not asked for: durable rows only. That there is a run at all is
            // an answer that waits for its first row.
            (_, Ok(Located { rows: 0, .. })) => {
                self.defer(run_id, Deferred::Locate(answer, run_id));
            }
            _ => self.release(Deferred::Locate(answer, run_id)),
        }
    }

    fn task_tail(&mut self, run_id: RunId, task_id: TaskId, rows: u32, answer: Reply<TaskTail>) {
        let entry = &self.runs[&run_id];
        let facts = match entry.run.open_task() {
            Some(task) if task.task_id == task_id => task.events(),
            _ => {
                drop(answer.send(Err(Refusal::Rejected(Rejection::Stale))));
                return;
            }
        };
        let durable = entry.durable_rows;
        let staged = if rows >= durable { self.staged_rows(run_id, rows) } else { Vec::new() };
        drop(answer.send(Ok(TaskTail { rows: durable, staged, facts })));
    }
}

/// The memo of a run that starts, as its row keeps it.
fn encode_memo(decision: &Decision) -> Bytes {
    let memo = decision.records.iter().find_map(|record| match &record.attributes {
        Some(Attributes::WorkflowExecutionStarted(started)) if !started.memo.is_empty() => {
            Some(WorkflowExecutionStarted {
                memo: started.memo.clone(),
                ..WorkflowExecutionStarted::default()
            })
        }
        _ => None,
    });
    memo.map_or_else(Bytes::new, |memo| Bytes::from(memo.encode_to_vec()))
}
