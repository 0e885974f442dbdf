//! Handing a task out: when one is owed, and what it takes along.

use onward_proto::{
    Timestamp,
    v1::{HistoryEvent, history_event::Attributes},
};

use super::{
    super::{
        Decision, Effect, HandOut, Limits, Run, SessionId, TaskId, Worker,
        history::{replay_order, stamp},
        limits::record,
    },
    Open,
};

/// A workflow task that waits for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskOffer<'a> {
    /// The queue that it waits in.
    pub task_queue: &'a str,
    /// The session that ran the run's last task: it has the run in its cache.
    pub sticky: Option<SessionId>,
    /// Whether the run has completed a task before.
    pub in_progress: bool,
    /// Since when it is owed.
    pub since: Timestamp,
}

/// The workflow task that is in flight.
#[derive(Debug, Clone, Copy)]
pub struct OpenTask<'a> {
    /// The task.
    pub task_id: TaskId,
    /// The session that holds it.
    pub session: SessionId,
    /// What `ctx.now()` returns in it.
    pub handed_out_at: Timestamp,
    /// From 1; failed hand-outs count.
    pub attempt: u32,
    /// When it fails unless there is a sign of life before.
    pub deadline: Timestamp,
    run: &'a Run,
    taken: usize,
}

impl OpenTask<'_> {
    /// What the task was handed out with: the same events, in the same order.
    pub fn events(&self) -> Vec<HistoryEvent> {
        self.run.events_behind_last_task(self.taken).0
    }

    /// The task that `events` follow; `None` for the first.
    pub fn follows(&self) -> Option<TaskId> {
        self.run.last_task.map(|task| task.task_id)
    }

    /// The event id behind the last of `events`.
    pub fn next_event_id(&self) -> u64 {
        self.run.next_event_id + self.taken as u64
    }
}

impl Run {
    /// Whether there is something to do for workflow code that no task in flight has.
    pub(in crate::engine) fn owes_task(&self) -> bool {
        !self.is_closed()
            && self.task.open.is_none()
            && (!self.inbox.is_empty() || self.last_task.is_none_or(|task| task.more))
    }

    /// The workflow task that waits for a worker: owed, not in flight, and not backing off.
    pub fn task_offer(&self, now: Timestamp) -> Option<TaskOffer<'_>> {
        if !self.owes_task() || self.task.not_before.is_some_and(|time| time > now) {
            return None;
        }
        let since = match self.inbox.first() {
            Some(fact) => Timestamp::from_micros(fact.time_us),
            None => self.last_time,
        };
        Some(TaskOffer {
            task_queue: &self.identity.task_queue,
            sticky: self.task.sticky,
            in_progress: self.last_task.is_some(),
            since,
        })
    }

    /// Hands the workflow task out: it takes the whole inbox. `None` when none is owed, one is in
    /// flight, or it backs off.
    pub fn hand_out(
        &mut self,
        now: Timestamp,
        task_id: TaskId,
        worker: &Worker,
        limits: &Limits,
    ) -> Option<HandOut> {
        self.task_offer(now)?;
        let handed_out_at = match self.last_task {
            Some(last) => now.max(last.handed_out_at),
            None => now,
        };
        let taken = self.inbox.len();
        self.change_task(|task| {
            task.open = Some(Box::new(Open {
                task_id,
                worker: worker.clone(),
                handed_out_at,
                taken,
                deadline: now.plus_micros(limits.task_deadline_us),
                holds_signals: std::mem::take(&mut task.repeat),
            }));
            task.not_before = None;
        });
        let (events, next_event_id) = self.events_behind_last_task(taken);
        Some(HandOut {
            events,
            follows: self.last_task.map(|task| task.task_id),
            handed_out_at,
            attempt: self.task.failures + 1,
            next_event_id,
        })
    }

    /// A worker's sign of life for its open task. False when it is not the open one.
    pub fn renew_task(&mut self, now: Timestamp, task_id: TaskId, limits: &Limits) -> bool {
        let deadline = now.plus_micros(limits.task_deadline_us);
        let mut is_open = false;
        self.change_task(|task| {
            if let Some(open) = task.open.as_mut().filter(|open| open.task_id == task_id) {
                open.deadline = open.deadline.max(deadline);
                is_open = true;
            }
        });
        is_open
    }

    /// The workflow task that is in flight.
    pub fn open_task(&self) -> Option<OpenTask<'_>> {
        let open = self.task.open.as_ref()?;
        Some(OpenTask {
            task_id: open.task_id,
            session: open.worker.session,
            handed_out_at: open.handed_out_at,
            attempt: self.task.failures + 1,
            deadline: open.deadline,
            run: self,
            taken: open.taken,
        })
    }

    /// Whether new signals have to wait until the open task ends: it repeats one that wanted to
    /// close the run without having seen all signals.
    pub fn holds_signals(&self) -> bool {
        self.task.open.as_ref().is_some_and(|open| open.holds_signals)
    }

    /// Since when a fact waits that the open task has not taken.
    pub fn facts_waiting_since(&self) -> Option<Timestamp> {
        let taken = self.task.open.as_ref()?.taken;
        self.inbox.get(taken).map(|fact| Timestamp::from_micros(fact.time_us))
    }

    /// The events behind the last completed task with those of the oldest `taken` facts, and the
    /// number that follows them.
    fn events_behind_last_task(&self, taken: usize) -> (Vec<HistoryEvent>, u64) {
        let mut events = Vec::new();
        if self.last_task.is_none() {
            let mut started = record(
                self.identity.started_at,
                Attributes::WorkflowExecutionStarted(self.started.event()),
            );
            started.event_id = 1;
            events.push(started);
        }
        events.extend_from_slice(&self.head);
        let mut next_event_id = self.next_event_id;
        let mut last_time_us = self.last_time.as_micros();
        for fact in replay_order(&self.inbox[..taken]) {
            let mut event = fact.clone();
            stamp(&mut event, &mut next_event_id, &mut last_time_us);
            events.push(event);
        }
        (events, next_event_id)
    }

    /// Offers the workflow task if these facts make it owed.
    pub(in crate::engine) fn offer_task_for_facts(&self, decision: &mut Decision) {
        // Owed before means offered before, or backing off.
        if self.task.open.is_none() && self.task.not_before.is_none() && !self.owes_task() {
            decision.effects.push(Effect::OfferTask);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::WorkflowTaskFailureCause as Cause;

    use super::super::super::{fixture::*, *};

    #[test]
    fn one_task_is_in_flight_at_most_and_it_takes_the_whole_inbox() {
        let story = history().signal("a").handed_out().signal("b").handed_out();
        assert_eq!(story.handed_out.len(), 1);
        assert_eq!(story.run.facts_waiting_since(), Some(story.now));
        story.completed([]).then_effects("offer-task").then_inbox("signal:b");
    }

    #[test]
    fn nothing_is_owed_without_news() {
        let story = history().task([timer(1, secs(5))]);
        assert_eq!(story.run.task_offer(story.now), None);
        let due = story.wake_in(secs(5));
        story.then_wakes(Wake::Cold(due)).handed_out().then_handed_out("started");
    }

    #[test]
    fn a_task_is_offered_once_however_many_facts_come() {
        given(history().task([]))
            .signal("a")
            .then_effects("offer-task")
            .signal("b")
            .then_effects("")
            .handed_out()
            .signal("c")
            .then_effects("");
    }

    #[test]
    fn more_owes_the_next_task_once_durable_also_after_a_load() {
        let story = history().handed_out();
        let completion = TaskCompletion { more: true, ..story.completion(vec![marker(1, "v")]) };
        let story = story.when(&Input::CompleteTask(completion));
        let story = story.then_effects("offer-task-when-durable").then_wakes(Wake::Hot(None));
        assert!(story.run.task_offer(story.now).unwrap().in_progress);
        let story = story.reload().then_wakes(Wake::Hot(None)).handed_out().then_handed_out("");
        story.completed([]).then_history("started task(0)+more marker1 task(0)");
    }

    #[test]
    fn the_session_that_ran_the_last_task_is_preferred_until_it_is_lost() {
        let story = history().task([]).signal("a");
        assert_eq!(story.run.task_offer(story.now).unwrap().sticky, Some(SessionId(1)));
        let story = story.session_lost(1);
        assert_eq!(story.run.task_offer(story.now).unwrap().sticky, None);
    }

    #[test]
    fn a_hand_out_is_never_before_that_of_the_last_completed_task() {
        let story = history().after(secs(5)).task([]).after(-secs(3)).signal("a").handed_out();
        let times: Vec<_> = story.handed_out.iter().map(|(_, task)| task.handed_out_at).collect();
        assert_eq!(times, [story.wake_in(secs(3)), story.wake_in(secs(3))]);
    }

    #[test]
    fn a_task_that_backs_off_may_go_out_at_its_time_and_not_before() {
        let story = history().handed_out().task_failed(Cause::Panic).after(secs(1) - 1);
        assert_eq!(story.run.task_offer(story.now), None);
        let story = story.handed_out().after(1);
        assert!(story.run.task_offer(story.now).is_some());
        assert_eq!(story.handed_out().handed_out.len(), 2);
    }
}
