//! A worker has advanced the run.
//!
//! A completion counts for the task in flight only. It is recorded as one step, or is void because
//! it would close the run with signals that its code has not seen, or fails the task.

use onward_proto::{
    SeededBug, Timestamp,
    v1::{
        Failure, HistoryEvent, WorkflowTaskCompleted, WorkflowTaskFailureCause,
        history_event::Attributes,
    },
};

use super::{
    super::{Decision, Effect, LeaseChange, Limits, Rejection, Run, TaskCompletion, TaskId},
    LastTask, Open, TaskLease,
    commands::{Commands, is_close, refused_timer},
};

impl Run {
    pub(in crate::engine) fn decide_complete_task(
        &self,
        now: Timestamp,
        completion: &TaskCompletion,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let open = self.the_open_task(completion.task_id)?;
        let untaken = &self.inbox[open.taken..];
        let refused = refused_timer(self, &completion.commands, limits);
        let closes = refused.is_some() || completion.commands.last().is_some_and(is_close);

        let is_signal =
            |fact: &HistoryEvent| matches!(fact.attributes, Some(Attributes::SignalReceived(_)));
        let is_refused = closes && !SeededBug::CloseOverSignals.is_on();
        if is_refused && untaken.iter().any(is_signal) {
            let session = completion.worker.session;
            return Ok(Decision {
                effects: vec![
                    Effect::TaskVoid { task_id: open.task_id, session },
                    Effect::OfferTask,
                ],
                leases: vec![LeaseChange::TaskVoid],
                ..Decision::default()
            });
        }
        // A run that ends in order may do so, however long it is.
        if !closes && let Some(limit) = self.history_limit(completion.commands.len() + 1, limits) {
            return Ok(self.decide_full(now, limit));
        }

        let mut commands = Commands::new(self, now, open, closes, limits);
        for (place, command) in completion.commands.iter().enumerate() {
            let last = place + 1 == completion.commands.len();
            let broken = refused.as_ref().filter(|(timer, _)| *timer == place);
            let added = match broken {
                Some((_, limit)) => commands.refuse_timer(command.number, limit.clone()),
                None => commands.add(command, last),
            };
            if let Err(reason) = added {
                let failure = Failure {
                    kind: "onward::BadCommands".into(),
                    message: format!("command {place}: {reason}"),
                    ..Failure::default()
                };
                let cause = WorkflowTaskFailureCause::BadCommands;
                return Ok(self.fail_task(now, open, cause, Some(failure)));
            }
            if broken.is_some() {
                break;
            }
        }
        Ok(commands.finish(completion))
    }

    /// The open task, if that is its id.
    pub(super) fn the_open_task(&self, task_id: TaskId) -> Result<&Open, Rejection> {
        match &self.task.open {
            Some(open) if open.task_id == task_id || SeededBug::AnyTask.is_on() => Ok(open),
            Some(_) | None if self.last_task.is_some_and(|last| last.task_id == task_id) => {
                Err(Rejection::Recorded)
            }
            Some(_) | None => Err(Rejection::Stale),
        }
    }

    /// Folds a completed task in.
    pub(in crate::engine) fn complete_task(&mut self, completed: &WorkflowTaskCompleted) {
        if self.last_task.is_none() {
            self.started.first_task_completed();
        }
        let task_id = completed.task_id.unwrap_or_default();
        self.last_task = Some(LastTask {
            task_id: TaskId::from_wire(&task_id),
            handed_out_at: Timestamp::from_micros(completed.handed_out_at_us),
            more: completed.more,
        });
        self.head = Vec::new();
        self.change_task(|task| *task = TaskLease::default());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::WorkflowTaskFailureCause as Cause;

    use super::super::super::{fixture::*, *};

    #[test]
    fn a_completion_counts_for_the_task_in_flight_only() {
        let story = history().task([call(1)]).handed_out().signal("a").handed_out();
        let first = TaskCompletion { task_id: story.handed_out[0].0, ..story.completion(vec![]) };
        let story = story.when(&Input::CompleteTask(first.clone()));
        let story = story.then_rejected(&Rejection::Recorded).completed([]);
        let story = story.when(&Input::CompleteTask(first)).then_rejected(&Rejection::Stale);
        // A completion of the recorded task stays recorded when the run has closed.
        let story = story.terminated().completed([]).then_rejected(&Rejection::Recorded);
        story.task_failed(Cause::Panic).then_rejected(&Rejection::Recorded);
    }

    #[test]
    fn a_task_of_an_earlier_load_is_stale() {
        let story = history().handed_out();
        let old = story.completion(vec![]);
        let story = story.reload().handed_out().when(&Input::CompleteTask(old));
        story.then_rejected(&Rejection::Stale).completed([]).then_history("started task(0)");
    }

    #[test]
    fn a_full_history_fails_the_run_at_its_next_task() {
        let limits = Limits { history_events: 10, ..Limits::default() };
        let story = history_of(&start_request(), limits.clone());
        let story = story.task([timer(1, 1), timer(2, 1), timer(3, 1), timer(4, 1), timer(5, 1)]);
        // Seven events are there. A second signal would leave no room for an orderly end.
        let story = story.signal("a").signal("b");
        assert!(matches!(story.last, Err(Rejection::Limit(_))));
        let story = story.passes(1).then_inbox("signal:a fired1 fired2 fired3 fired4 fired5");
        story.handed_out().completed([]).then_effects("withdraw-task closed").then_history(
            "started task(0) timer1 timer2 timer3 timer4 timer5 signal:a fired1 fired2 fired3 \
                 fired4 fired5 FAILED!",
        );
        // A run that ends by itself may do so.
        let story = history_of(&start_request(), limits);
        let story = story.task([timer(1, 1), timer(2, 1), timer(3, 1), timer(4, 1), timer(5, 1)]);
        let story = story.passes(1).task([complete("done")]);
        assert_eq!(story.run.status(), onward_proto::v1::WorkflowStatus::Completed);
    }

    #[test]
    fn a_task_fits_with_its_own_event_the_facts_it_took_and_those_of_its_commands() {
        for (history_events, told) in
            [(5, "started signal:a task(1) marker1 marker2"), (4, "started signal:a FAILED!")]
        {
            let limits = Limits { history_events, ..Limits::default() };
            let story = history_of(&start_request(), limits).signal("a");
            story.task([marker(1, "v"), marker(2, "v")]).then_history(told);
        }
    }
}
