//! What workers say.

use std::sync::Arc;

use onward_proto::{RunId, v1::CancelReason};

use super::{
    super::{
        batch::Deferred,
        message::{FromWorker, Mail},
    },
    Lane,
};
use crate::{
    dispatch::Session,
    engine::{Input, Rejection, SessionId, TaskId},
};

impl Lane {
    pub(super) fn on_worker(&mut self, from: FromWorker) {
        match from {
            FromWorker::Run { run_id, session, input } => self.on_run(run_id, session, input),
            FromWorker::NeedHistory { run_id, task_id, session } => {
                self.need_history(run_id, task_id, &session);
            }
            FromWorker::TaskHeartbeat { run_id, task_id } => {
                let now = self.now();
                if let Some(entry) = self.runs.get_mut(&run_id) {
                    entry.run.renew_task(now, task_id, &self.node.limits);
                    self.settle(run_id);
                }
            }
            FromWorker::Evicted { run_id, session } => {
                if let Some(entry) = self.runs.get_mut(&run_id)
                    && entry.cached_on == Some(session)
                {
                    entry.cached_on = None;
                }
            }
            FromWorker::InFlight { tokens, session } => {
                for token in tokens {
                    let worker = session.info().worker.clone();
                    let input = Input::ClaimAttempt { token, worker };
                    self.on_run(token.run_id, Arc::clone(&session), input);
                }
            }
            FromWorker::Lost(session) => self.on_session_lost(session),
        }
    }

    pub(super) fn on_run(&mut self, run_id: RunId, session: Arc<Session>, input: Input) {
        self.free_credit(run_id, &input);
        if self.parked.contains_key(&run_id) {
            return;
        }
        if !self.runs.contains_key(&run_id) {
            // After a load: the run comes back first. One that does not exist is answered there.
            let letter = Mail::Worker(FromWorker::Run { run_id, session, input });
            return self.load(run_id, letter);
        }
        if matches!(input, Input::ClaimAttempt { .. }) && self.session(session.id()).is_none() {
            // It waited for the load, and its session has ended meanwhile: nobody would notice
            // that the attempt is gone. Its worker claims again in its next session.
            return;
        }
        let now = self.now();
        let decided = self.runs[&run_id].run.decide(now, &input, &self.node.limits);
        match decided {
            Ok(decision) => {
                let void = decision
                    .effects
                    .iter()
                    .any(|effect| matches!(effect, crate::engine::Effect::TaskVoid { .. }));
                if let Input::CompleteTask(completion) = &input
                    && let Some(entry) = self.runs.get_mut(&run_id)
                {
                    // A worker whose value was refused has gone on with it: it starts anew.
                    let is_current = !void && !decision.refuses_marker();
                    entry.cached_on = is_current.then_some(completion.worker.session);
                }
                if let Input::FailTask { .. } = &input
                    && let Some(entry) = self.runs.get_mut(&run_id)
                {
                    entry.cached_on = None;
                }
                self.apply(now, run_id, decision);
                self.acknowledge(run_id, &session, &input, void);
                self.release_held(run_id);
            }
            Err(Rejection::Recorded) => self.acknowledge(run_id, &session, &input, false),
            Err(_) => self.tell_stale_input(run_id, &session, &input),
        }
    }

    /// The credit is free as soon as the completion is here, whatever comes of it.
    fn free_credit(&mut self, run_id: RunId, input: &Input) {
        match input {
            Input::CompleteTask(completion) => self.free_task(run_id, completion.task_id),
            Input::FailTask { task_id, .. } => self.free_task(run_id, *task_id),
            Input::CompleteActivity { token, .. }
            | Input::FailActivity { token, .. }
            | Input::CancelledActivity { token, .. } => self.free_attempt(*token),
            Input::Heartbeat { .. }
            | Input::ClaimAttempt { .. }
            | Input::Signal(_)
            | Input::RequestCancel(_)
            | Input::Terminate(_)
            | Input::UseExisting { .. }
            | Input::StartAttempt { .. }
            | Input::SessionLost { .. }
            | Input::Deadline { .. } => {}
        }
    }

    /// Lets the worker forget a completion once it is durable.
    fn acknowledge(&mut self, run_id: RunId, session: &Arc<Session>, input: &Input, void: bool) {
        match input {
            Input::CompleteTask(completion) => {
                if void {
                    self.tell_stale(run_id, session, completion.task_id);
                } else {
                    let ack = Deferred::AckTask(Arc::clone(session), completion.task_id);
                    self.defer(run_id, ack);
                }
            }
            Input::FailTask { task_id, .. } => {
                self.defer(run_id, Deferred::AckTask(Arc::clone(session), *task_id));
            }
            Input::CompleteActivity { token, .. }
            | Input::FailActivity { token, .. }
            | Input::CancelledActivity { token, .. } => {
                self.defer(run_id, Deferred::AckActivity(Arc::clone(session), *token));
            }
            Input::ClaimAttempt { token, .. } => self.hold_attempt(*token, session),
            Input::Heartbeat { .. }
            | Input::Signal(_)
            | Input::RequestCancel(_)
            | Input::Terminate(_)
            | Input::UseExisting { .. }
            | Input::StartAttempt { .. }
            | Input::SessionLost { .. }
            | Input::Deadline { .. } => {}
        }
    }

    /// What the worker said no longer counts.
    pub(super) fn tell_stale_input(
        &mut self,
        run_id: RunId,
        session: &Arc<Session>,
        input: &Input,
    ) {
        match input {
            Input::CompleteTask(completion) => {
                self.stale_task(run_id, session, completion.task_id);
            }
            Input::FailTask { task_id, .. } => self.stale_task(run_id, session, *task_id),
            Input::CompleteActivity { token, .. }
            | Input::FailActivity { token, .. }
            | Input::CancelledActivity { token, .. } => {
                self.defer(run_id, Deferred::AckActivity(Arc::clone(session), *token));
            }
            Input::ClaimAttempt { token, .. } | Input::Heartbeat { token, .. } => {
                let lost = Deferred::CancelAttempt(*token, session.id(), CancelReason::Lost);
                self.defer(run_id, lost);
            }
            Input::Signal(_)
            | Input::RequestCancel(_)
            | Input::Terminate(_)
            | Input::UseExisting { .. }
            | Input::StartAttempt { .. }
            | Input::SessionLost { .. }
            | Input::Deadline { .. } => {}
        }
    }

    fn stale_task(&mut self, run_id: RunId, session: &Arc<Session>, task_id: TaskId) {
        if let Some(entry) = self.runs.get_mut(&run_id)
            && entry.cached_on == Some(session.id())
            && entry.run.open_task().is_none_or(|open| open.task_id == task_id)
        {
            entry.cached_on = None;
        }
        self.tell_stale(run_id, session, task_id);
    }

    fn tell_stale(&mut self, run_id: RunId, session: &Arc<Session>, task_id: TaskId) {
        self.defer(run_id, Deferred::StaleTask(Arc::clone(session), run_id, task_id));
    }

    /// Everything that a session held goes elsewhere, its attempts after a grace.
    fn on_session_lost(&mut self, session: SessionId) {
        self.tasks_out.retain(|_, holder| *holder != session);
        self.attempts_out.retain(|_, holder| *holder != session);
        let now = self.now();
        let input = Input::SessionLost { session };
        let held: Vec<RunId> = self.runs.keys().copied().collect();
        for run_id in held {
            let Some(entry) = self.runs.get_mut(&run_id) else { continue };
            if entry.cached_on == Some(session) {
                entry.cached_on = None;
            }
            if !entry.run.uses_session(session) {
                continue;
            }
            if let Ok(decision) = entry.run.decide(now, &input, &self.node.limits) {
                self.apply(now, run_id, decision);
                self.release_held(run_id);
            }
        }
    }

    /// The deadlines that have come.
    pub(super) fn fire_deadlines(&mut self) {
        if !self.is_serving() || self.open.is_full() {
            return;
        }
        // Deadlines are held against the early end of the estimate: never before their time.
        let (now, due) = self.times();
        let input = Input::Deadline { due };
        while let Some((deadline, run_id)) = self.deadlines.first().copied()
            && deadline <= due
        {
            self.deadlines.pop_first();
            let Some(entry) = self.runs.get_mut(&run_id) else {
                self.load_due(run_id);
                continue;
            };
            entry.deadline = None;
            if let Ok(decision) = entry.run.decide(now, &input, &self.node.limits) {
                self.apply(now, run_id, decision);
                self.release_held(run_id);
            }
            if self.open.is_full() {
                return;
            }
        }
    }
}
