//! Replay: completed tasks once more, against the events of their commands.

use std::collections::VecDeque;

use onward_proto::v1::{self, WorkflowTaskFailureCause as Cause, history_event::Attributes};

use super::{
    Code, Machine, SDK_FLAGS, TaskFailure,
    core::{Core, Phase},
    out_of_place, panicked,
    report::{self, Side, task_failure},
    unsupported, wake,
};
use crate::{caught::caught, error::Limit, workflow::Ctx};

impl Machine {
    /// Replays completed tasks and returns the facts behind the last of them.
    pub(super) fn replay_completed(
        &mut self,
        events: Vec<v1::HistoryEvent>,
    ) -> Result<Vec<v1::HistoryEvent>, TaskFailure> {
        let mut facts = Vec::new();
        let mut events = events.into_iter();
        while let Some(mut event) = events.next() {
            match event.attributes.take() {
                None => {
                    return Err(unsupported(format!(
                        "event {} is of an unknown kind",
                        event.event_id
                    )));
                }
                Some(Attributes::WorkflowExecutionStarted(started)) => self.begin(started)?,
                Some(Attributes::WorkflowTaskCompleted(done)) => {
                    let recorded: VecDeque<_> =
                        events.by_ref().take(done.command_events as usize).collect();
                    if recorded.len() < done.command_events as usize {
                        return Err(unsupported("the history ends inside a completed task".into()));
                    }
                    if done.task_id.is_some() && done.task_id == self.last_completed {
                        check_taken(&recorded)?;
                        continue;
                    }
                    facts.truncate(facts.len().saturating_sub(done.untaken_facts as usize));
                    self.replay_task(std::mem::take(&mut facts), done, recorded)?;
                }
                Some(Attributes::WorkflowTaskFailed(_)) => {}
                // Nobody's code ends a run like that.
                Some(
                    Attributes::WorkflowExecutionTimedOut(_)
                    | Attributes::WorkflowExecutionTerminated(_),
                ) => facts.clear(),
                Some(Attributes::WorkflowExecutionFailed(full)) if full.refused.is_some() => {
                    facts.clear();
                }
                Some(
                    fact @ (Attributes::WorkflowExecutionCancelRequested(_)
                    | Attributes::ActivityCompleted(_)
                    | Attributes::ActivityFailed(_)
                    | Attributes::ActivityTimedOut(_)
                    | Attributes::ActivityCancelled(_)
                    | Attributes::TimerFired(_)
                    | Attributes::SignalReceived(_)),
                ) => {
                    event.attributes = Some(fact);
                    facts.push(event);
                }
                Some(
                    command @ (Attributes::WorkflowExecutionCompleted(_)
                    | Attributes::WorkflowExecutionFailed(_)
                    | Attributes::WorkflowExecutionCancelled(_)
                    | Attributes::ActivityScheduled(_)
                    | Attributes::ActivityCancelRequested(_)
                    | Attributes::TimerStarted(_)
                    | Attributes::TimerCancelled(_)
                    | Attributes::MarkerRecorded(_)),
                ) => return Err(out_of_place(event.event_id, &command)),
            }
        }
        if matches!(self.code, Code::New) {
            return Err(unsupported("the history does not begin with event 1".into()));
        }
        Ok(facts)
    }

    fn begin(&mut self, started: v1::WorkflowExecutionStarted) -> Result<(), TaskFailure> {
        if !matches!(self.code, Code::New) {
            return Err(unsupported("the history begins a second time".into()));
        }
        {
            let mut state = self.core.state.borrow_mut();
            state.started.task_queue = started.task_queue;
            state.started.attempt = started.attempt;
            state.started.seed = started.seed;
        }
        let ctx = Ctx::new(self.core.clone());
        let (make, codec) = (self.entry.make, self.core.options.codec);
        match caught(|| make(ctx, &started.arguments, codec)) {
            Ok(Ok(code)) => {
                self.code = Code::Running(code);
                Ok(())
            }
            Ok(Err(error)) => {
                Err(task_failure(Cause::Payload, format!("the workflow's arguments: {error}")))
            }
            Err(panic) => Err(panicked(&panic)),
        }
    }

    fn replay_task(
        &mut self,
        facts: Vec<v1::HistoryEvent>,
        done: v1::WorkflowTaskCompleted,
        recorded: VecDeque<v1::HistoryEvent>,
    ) -> Result<(), TaskFailure> {
        if let Some(flag) = done.sdk_flags.iter().find(|flag| !SDK_FLAGS.contains(flag)) {
            return Err(unsupported(format!("behaviour {flag} is not known to this SDK")));
        }
        wake::set_replaying(true);
        let build_id = done.build_id;
        self.core.state.borrow_mut().phase = Phase::Replay { recorded, build_id };
        self.take_facts(facts, done.handed_out_at_us)?;
        loop {
            if let Code::Ended(_) = self.code {
                self.issue_close();
                self.check()?;
                break;
            }
            if !self.replay_marker()? {
                break;
            }
        }
        self.check_all_issued()?;
        self.last_completed = done.task_id;
        Ok(())
    }

    /// Applies the marker that is next among the events of the task's commands, if one is.
    fn replay_marker(&mut self) -> Result<bool, TaskFailure> {
        let next = match &self.core.state.borrow().phase {
            Phase::Replay { recorded, .. } => recorded.front().cloned(),
            Phase::Idle | Phase::Live { .. } => None,
        };
        let Some(v1::HistoryEvent {
            event_id,
            attributes: Some(Attributes::MarkerRecorded(marker)),
            ..
        }) = next
        else {
            return Ok(false);
        };
        if !matches!(
            v1::MarkerKind::try_from(marker.kind),
            Ok(v1::MarkerKind::LocalActivity | v1::MarkerKind::RecordedValue)
        ) {
            return Err(unsupported(format!(
                "the marker at event {event_id} is of an unknown kind"
            )));
        }
        let Some(command) = self.core.expects_marker(&marker) else { return Ok(false) };
        self.core.emit(command);
        self.check()?;
        self.core.resolve(event_id, marker.number, Attributes::MarkerRecorded(marker));
        self.drain()?;
        Ok(true)
    }

    /// A completed task has the events of its commands, neither more nor fewer.
    fn check_all_issued(&self) -> Result<(), TaskFailure> {
        let mut state = self.core.state.borrow_mut();
        let unresolved = state.records.front().copied();
        let Phase::Replay { recorded, build_id } = std::mem::take(&mut state.phase) else {
            return Ok(());
        };
        let (event_id, history, code) = match (recorded.front(), unresolved) {
            (Some(event), _) => {
                let what =
                    event.attributes.as_ref().map_or_else(|| Side::none("unknown"), Side::of_event);
                (event.event_id, what, Side::none("nothing"))
            }
            (None, Some(number)) => (
                0,
                Side::none("the task ended here"),
                Side::none(&format!("MarkerRecorded value(#{number})")),
            ),
            (None, None) => return Ok(()),
        };
        let Core { run, options, .. } = &*self.core;
        Err(report::non_determinism(run, options, event_id, &build_id, &history, &code))
    }
}

/// The server records what it is given, or the limit that forbids it. A refused call is closed by a
/// fact; but with a refused value the code has gone on already, which no replay will.
fn check_taken(recorded: &VecDeque<v1::HistoryEvent>) -> Result<(), TaskFailure> {
    let markers = recorded.iter().filter_map(|event| match &event.attributes {
        Some(Attributes::MarkerRecorded(marker)) => Some((event.event_id, marker)),
        Some(_) | None => None,
    });
    for (event_id, marker) in markers {
        if let Some(limit) = marker.refused.clone().map(Limit::from) {
            let what = Side::of_event(&Attributes::MarkerRecorded(marker.clone()));
            let text = format!("event {event_id}, {what}, was refused: {limit}");
            return Err(task_failure(Cause::Payload, text));
        }
    }
    Ok(())
}
