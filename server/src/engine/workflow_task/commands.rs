//! What the commands of a completed task mean, one by one.
//!
//! Each yields one event. One that breaks a limit yields its event without the payloads and with the
//! limit named; a timer that does ends the run with it, because a sleep has no error to return; one
//! that makes no sense fails the task.

use onward_proto::{
    Timestamp,
    v1::{
        self, ActivityCancelRequested, ActivityScheduled, CancelReason, Command, Failure,
        HistoryEvent, Limit, LocalActivityFailureCause, MarkerKind, MarkerRecorded, RecordMarker,
        ScheduleActivity, StartTimer, TimerCancelled, TimerStarted, WorkflowExecutionCancelled,
        WorkflowExecutionCompleted, WorkflowExecutionFailed, WorkflowTaskCompleted, command::Kind,
        history_event::Attributes,
    },
};

use super::{
    super::{
        Decision, Effect, LeaseChange, Limits, Run, TaskCompletion,
        activity::{Attempt, cancelled, closed_activity, refused, remove_row},
        close::broken_limit,
        history::is_firing_of,
        limits::{
            check_duration, check_failure, check_id, check_payloads, check_text, harmless, limit,
            record,
        },
    },
    Numbers, Open,
};

/// Whether a command ends the run.
pub(super) fn is_close(command: &Command) -> bool {
    matches!(
        command.kind,
        Some(Kind::CompleteWorkflow(_) | Kind::FailWorkflow(_) | Kind::CancelWorkflow(_))
    )
}

/// Works a completion's commands out, one by one.
pub(super) struct Commands<'a> {
    run: &'a Run,
    now: Timestamp,
    open: &'a Open,
    /// The last command closes the run.
    closes: bool,
    limits: &'a Limits,
    /// The time that the events of the commands will have.
    event_time: Timestamp,
    numbers: Numbers,
    /// The task's own event, then those of the commands.
    records: Vec<HistoryEvent>,
    /// What follows from them: closings of refused and of cancelled calls.
    facts: Vec<HistoryEvent>,
    /// Activities called here, ascending.
    scheduled: Vec<u32>,
    /// Activities called here whose command broke a limit, ascending.
    refused: Vec<u32>,
    /// Activities cancelled here.
    cancelled: Vec<u32>,
    /// Timers started here, ascending.
    timers: Vec<u32>,
    /// Timers cancelled here.
    cancelled_timers: Vec<u32>,
    /// Untaken firings that were taken back.
    taken_back: usize,
    effects: Vec<Effect>,
    pending: Vec<u32>,
}

/// Why a completion makes no sense.
pub(super) type Malformed = &'static str;

impl<'a> Commands<'a> {
    pub(super) fn new(
        run: &'a Run,
        now: Timestamp,
        open: &'a Open,
        closes: bool,
        limits: &'a Limits,
    ) -> Self {
        let facts = if closes { &run.inbox[..] } else { &run.inbox[..open.taken] };
        let newest = facts.iter().map(|fact| fact.time_us).max().unwrap_or(i64::MIN);
        Self {
            run,
            now,
            open,
            closes,
            limits,
            event_time: now.max(run.last_time).max(Timestamp::from_micros(newest)),
            numbers: run.numbers.clone(),
            // The task's own event is written in `finish`.
            records: vec![HistoryEvent::default()],
            facts: Vec::new(),
            scheduled: Vec::new(),
            refused: Vec::new(),
            cancelled: Vec::new(),
            timers: Vec::new(),
            cancelled_timers: Vec::new(),
            taken_back: 0,
            effects: Vec::new(),
            pending: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, command: &Command, last: bool) -> Result<(), Malformed> {
        let kind = command.kind.as_ref().ok_or("its kind is unknown")?;
        let attributes = match kind {
            Kind::ScheduleActivity(schedule) => self.schedule_activity(command, schedule)?,
            Kind::CancelActivity(_) => self.cancel_activity(command.number)?,
            Kind::StartTimer(start) => self.start_timer(command, *start)?,
            Kind::CancelTimer(_) => self.cancel_timer(command.number)?,
            Kind::RecordMarker(marker) => self.record_marker(command, marker)?,
            Kind::CompleteWorkflow(complete) if last => {
                let payloads = || check_payloads(&complete.result, 0, self.limits);
                match check_whole(command, self.limits).and_then(|()| payloads()) {
                    Ok(()) => Attributes::WorkflowExecutionCompleted(WorkflowExecutionCompleted {
                        result: complete.result.clone(),
                        unread_signals: complete.unread_signals.clone(),
                    }),
                    Err(limit) => fail_workflow(limit, &complete.unread_signals),
                }
            }
            Kind::FailWorkflow(fail) if last => {
                match self.check_close(command, fail.failure.as_ref()) {
                    Ok(()) => Attributes::WorkflowExecutionFailed(WorkflowExecutionFailed {
                        failure: fail.failure.clone(),
                        unread_signals: fail.unread_signals.clone(),
                        refused: None,
                    }),
                    Err(limit) => fail_workflow(limit, &fail.unread_signals),
                }
            }
            Kind::CancelWorkflow(cancel) if last => {
                match self.check_close(command, cancel.failure.as_ref()) {
                    Ok(()) => Attributes::WorkflowExecutionCancelled(WorkflowExecutionCancelled {
                        failure: cancel.failure.clone(),
                        unread_signals: cancel.unread_signals.clone(),
                    }),
                    Err(limit) => fail_workflow(limit, &cancel.unread_signals),
                }
            }
            Kind::CompleteWorkflow(_) | Kind::FailWorkflow(_) | Kind::CancelWorkflow(_) => {
                return Err("the run is closed by a command that is not the last");
            }
        };
        self.records.push(record(self.now, attributes));
        Ok(())
    }

    /// Ends the run with the limit that this timer broke. What the code asked for behind it is never
    /// made.
    pub(super) fn refuse_timer(&mut self, number: u32, limit: Limit) -> Result<(), Malformed> {
        self.take_call_number(number)?;
        self.records.push(record(self.now, fail_workflow(limit, &[])));
        Ok(())
    }

    fn take_call_number(&mut self, number: u32) -> Result<(), Malformed> {
        if self.numbers.take_call(number) {
            Ok(())
        } else {
            Err("its number is not greater than those of the calls before")
        }
    }

    fn check_close(&self, command: &Command, failure: Option<&Failure>) -> Result<(), Limit> {
        check_whole(command, self.limits)?;
        self.check_failure(failure)
    }

    fn check_failure(&self, failure: Option<&Failure>) -> Result<(), Limit> {
        failure.map_or(Ok(()), |failure| check_failure(failure, self.limits))
    }

    fn schedule_activity(
        &mut self,
        command: &Command,
        schedule: &ScheduleActivity,
    ) -> Result<Attributes, Malformed> {
        self.take_call_number(command.number)?;
        if schedule.activity_type.is_empty() {
            return Err("it names no activity");
        }
        let number = command.number;
        let queue = match schedule.task_queue.as_str() {
            "" => &self.run.identity.task_queue,
            queue => queue,
        };
        let mut event = ActivityScheduled {
            number,
            activity_type: String::new(),
            task_queue: String::new(),
            arguments: Vec::new(),
            timeouts: schedule.timeouts,
            retry: None,
            call_site: None,
            arguments_hash: command.arguments_hash,
            summary: String::new(),
            priority: schedule.priority,
            refused: None,
        };
        if let Err(limit) = self.check_activity(command, schedule) {
            event.activity_type = harmless(&schedule.activity_type, self.limits);
            event.task_queue = harmless(queue, self.limits);
            event.call_site = self.harmless_site(command);
            event.refused = Some(limit.clone());
            self.refused.push(number);
            self.facts.push(record(self.now, refused(number, limit)));
        } else {
            event.activity_type.clone_from(&schedule.activity_type);
            queue.clone_into(&mut event.task_queue);
            event.arguments.clone_from(&schedule.arguments);
            event.retry.clone_from(&schedule.retry);
            event.call_site.clone_from(&command.call_site);
            event.summary.clone_from(&command.summary);
            self.scheduled.push(number);
        }
        Ok(Attributes::ActivityScheduled(event))
    }

    fn check_activity(&self, command: &Command, schedule: &ScheduleActivity) -> Result<(), Limit> {
        let limits = self.limits;
        check_id("activity_type_bytes", &schedule.activity_type, limits)?;
        check_id("task_queue_bytes", &schedule.task_queue, limits)?;
        check_annotations(command, limits)?;
        let mut text = command.summary.len();
        if let Some(retry) = &schedule.retry {
            for kind in &retry.non_retryable_kinds {
                check_id("failure_kind_bytes", kind, limits)?;
                text += kind.len();
            }
            check_duration("retry_initial_interval_us", retry.initial_interval_us)?;
            check_duration("retry_max_interval_us", retry.max_interval_us)?;
            let factor = retry.backoff_coefficient;
            if factor != 0.0 && !(1.0..=1_000.0).contains(&factor) {
                return Err(limit("retry_backoff_coefficient_from_1", 1_000, factor as u64));
            }
        }
        if let Some(timeouts) = &schedule.timeouts {
            check_duration("start_to_close_us", timeouts.start_to_close_us)?;
            check_duration("schedule_to_start_us", timeouts.schedule_to_start_us)?;
            check_duration("schedule_to_close_us", timeouts.schedule_to_close_us)?;
            check_duration("heartbeat_us", timeouts.heartbeat_us)?;
        }
        check_payloads(&schedule.arguments, text, limits)?;
        let pending = (self.run.activities.len() + self.scheduled.len()) as u64;
        if pending >= limits.pending_activities {
            return Err(limit("pending_activities", limits.pending_activities, pending + 1));
        }
        Ok(())
    }

    fn harmless_site(&self, command: &Command) -> Option<v1::CallSite> {
        let site = command.call_site.as_ref()?;
        Some(v1::CallSite { file: harmless(&site.file, self.limits), ..*site })
    }

    fn cancel_activity(&mut self, number: u32) -> Result<Attributes, Malformed> {
        if self.cancelled.contains(&number) {
            return Err("it cancels an activity that is cancelled already");
        }
        self.cancelled.push(number);
        let event = Attributes::ActivityCancelRequested(ActivityCancelRequested { number });
        if self.scheduled.binary_search(&number).is_ok() {
            self.facts.push(record(self.now, cancelled(number, 0, None)));
            return Ok(event);
        }
        let Some(activity) = self.run.activity(number) else {
            let mut facts = self.run.inbox.iter();
            let closed =
                facts.any(|fact| closed_activity(fact).is_some_and(|(closed, _)| closed == number));
            // It has closed, and the code could not know or has just learnt: nothing to do.
            if closed || self.refused.binary_search(&number).is_ok() {
                return Ok(event);
            }
            return Err("it cancels an activity that is not pending");
        };
        if activity.cancel_requested {
            return Err("it cancels an activity that is cancelled already");
        }
        match &activity.attempt {
            Attempt::Running(running) => self.effects.push(Effect::CancelAttempt {
                token: running.token,
                session: running.session,
                reason: CancelReason::Requested,
            }),
            Attempt::Ready { .. } => self.effects.push(Effect::WithdrawActivity { number }),
            Attempt::BackingOff { .. } | Attempt::Unknown { .. } => {}
        }
        if activity.is_at_home() {
            self.facts.push(record(self.now, cancelled(number, activity.attempts(), None)));
            self.pending.push(number);
        }
        Ok(event)
    }

    fn start_timer(
        &mut self,
        command: &Command,
        start: StartTimer,
    ) -> Result<Attributes, Malformed> {
        let number = command.number;
        self.take_call_number(number)?;
        self.timers.push(number);
        Ok(Attributes::TimerStarted(TimerStarted {
            number,
            duration_us: start.duration_us,
            // Counted from the event's own time, so that it is never early by the run's clock.
            fire_at_us: self.event_time.plus_micros(start.duration_us).as_micros(),
            call_site: command.call_site.clone(),
            summary: command.summary.clone(),
            refused: None,
        }))
    }

    fn cancel_timer(&mut self, number: u32) -> Result<Attributes, Malformed> {
        if self.cancelled_timers.contains(&number) {
            return Err("it cancels a timer that is cancelled already");
        }
        let firing = self.run.inbox.iter().position(|fact| is_firing_of(fact, number));
        let is_new = self.timers.binary_search(&number).is_ok();
        if let Some(place) = firing {
            self.taken_back += usize::from(place >= self.open.taken);
        } else if !is_new && self.run.timer_place(number).is_none() {
            return Err("it cancels a timer that is not pending");
        }
        self.cancelled_timers.push(number);
        Ok(Attributes::TimerCancelled(TimerCancelled { number }))
    }

    fn record_marker(
        &mut self,
        command: &Command,
        marker: &RecordMarker,
    ) -> Result<Attributes, Malformed> {
        if command.number == 0 || !self.numbers.take(command.number) {
            return Err("its number is used already");
        }
        if !matches!(marker.kind(), MarkerKind::LocalActivity | MarkerKind::RecordedValue)
            || MarkerKind::try_from(marker.kind).is_err()
        {
            return Err("its kind of marker is unknown");
        }
        if LocalActivityFailureCause::try_from(marker.cause).is_err() {
            return Err("its cause of failure is unknown");
        }
        let mut event = MarkerRecorded {
            number: command.number,
            kind: marker.kind,
            name: String::new(),
            result: None,
            failure: None,
            cause: 0,
            attempts: marker.attempts,
            call_site: None,
            arguments_hash: command.arguments_hash,
            refused: None,
        };
        if let Err(limit) = self.check_marker(command, marker) {
            event.name = harmless(&marker.name, self.limits);
            event.call_site = self.harmless_site(command);
            event.refused = Some(limit);
        } else {
            event.name.clone_from(&marker.name);
            event.result.clone_from(&marker.result);
            event.failure.clone_from(&marker.failure);
            event.cause = marker.cause;
            event.call_site.clone_from(&command.call_site);
        }
        Ok(Attributes::MarkerRecorded(event))
    }

    fn check_marker(&self, command: &Command, marker: &RecordMarker) -> Result<(), Limit> {
        check_id("activity_type_bytes", &marker.name, self.limits)?;
        check_annotations(command, self.limits)?;
        check_payloads(&marker.result, 0, self.limits)?;
        self.check_failure(marker.failure.as_ref())
    }

    /// Puts the decision together.
    pub(super) fn finish(mut self, completion: &TaskCompletion) -> Decision {
        let command_events = (self.records.len() - 1) as u32;
        let untaken = self.run.inbox.len() - self.open.taken - self.taken_back;
        self.records[0] = record(
            self.now,
            Attributes::WorkflowTaskCompleted(WorkflowTaskCompleted {
                task_id: Some(self.open.task_id.to_wire()),
                handed_out_at_us: self.open.handed_out_at.as_micros(),
                facts_taken: self.open.taken as u32,
                command_events,
                more: completion.more && !self.closes,
                build_id: completion.worker.build_id.clone(),
                identity: completion.worker.identity.clone(),
                sdk_flags: completion.sdk_flags.clone(),
                untaken_facts: if self.closes { untaken as u32 } else { 0 },
            }),
        );
        let mut decision = Decision {
            leases: vec![LeaseChange::Sticky(completion.worker.session)],
            ..Decision::default()
        };
        if self.closes {
            // Nothing follows a closing event, so what was called here is never made.
            decision.records = self.records;
            self.run.let_go(&mut decision);
            return decision;
        }
        for number in self.pending {
            if let Some(activity) = self.run.activity(number) {
                remove_row(activity, &mut decision);
            }
        }
        decision.effects = self.effects;
        for number in self.scheduled {
            if !self.cancelled.contains(&number) {
                decision.effects.push(Effect::OfferActivity { number });
            }
        }
        if completion.more {
            decision.effects.push(Effect::OfferTaskWhenDurable);
        } else if untaken > 0 || !self.facts.is_empty() {
            decision.effects.push(Effect::OfferTask);
        }
        decision.records = self.records;
        decision.records.append(&mut self.facts);
        decision
    }
}

/// The first timer of a completion that breaks a limit, by its place, and the limit.
pub(super) fn refused_timer(
    run: &Run,
    commands: &[Command],
    limits: &Limits,
) -> Option<(usize, Limit)> {
    let mut pending = run.timers.len() as u64;
    // Ascending, or the completion makes no sense.
    let mut started = Vec::new();
    for (place, command) in commands.iter().enumerate() {
        let number = command.number;
        match &command.kind {
            Some(Kind::StartTimer(start)) => {
                started.push(number);
                pending += 1;
                if let Err(limit) = check_timer(command, *start, pending, limits) {
                    return Some((place, limit));
                }
            }
            // One that has fired already is not pending: its place was free before.
            Some(Kind::CancelTimer(_))
                if run.timer_place(number).is_some() || started.binary_search(&number).is_ok() =>
            {
                pending = pending.saturating_sub(1);
            }
            _ => {}
        }
    }
    None
}

fn check_timer(
    command: &Command,
    start: StartTimer,
    pending: u64,
    limits: &Limits,
) -> Result<(), Limit> {
    check_duration("timer_duration_us", start.duration_us)?;
    check_annotations(command, limits)?;
    check_payloads([], command.summary.len(), limits)?;
    if pending > limits.pending_timers {
        return Err(limit("pending_timers", limits.pending_timers, pending));
    }
    Ok(())
}

/// Checks what stands beside a command for people.
fn check_annotations(command: &Command, limits: &Limits) -> Result<(), Limit> {
    check_whole(command, limits)?;
    check_text(&command.summary)?;
    match &command.call_site {
        Some(site) => check_id("call_site_bytes", &site.file, limits),
        None => Ok(()),
    }
}

/// A command of which parts were left out says why.
fn check_whole(command: &Command, limits: &Limits) -> Result<(), Limit> {
    let Some(broken) = &command.refused else { return Ok(()) };
    Err(Limit { name: harmless(&broken.name, limits), ..*broken })
}

/// A close, or a timer, that broke a limit fails the run with that limit.
fn fail_workflow(limit: Limit, unread_signals: &[u64]) -> Attributes {
    Attributes::WorkflowExecutionFailed(WorkflowExecutionFailed {
        failure: Some(broken_limit(&limit)),
        unread_signals: unread_signals.to_vec(),
        refused: Some(limit),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::{
        ActivityFailureCause, ActivityTimeouts, CallSite, Command, Limit, RecordMarker,
        RetryPolicy, command::Kind, history_event::Attributes,
    };

    use super::super::super::{fixture::*, *};

    #[test]
    fn each_command_yields_one_event_and_refused_calls_close_in_the_same_step() {
        let limits = Limits { payload_bytes: 100, ..Limits::default() };
        let mut big = call(1);
        if let Some(Kind::ScheduleActivity(schedule)) = &mut big.kind {
            schedule.arguments = vec![payload(&"x".repeat(101))];
        }
        let story = given(history_of(&start_request(), limits))
            .task([big, call(2), timer(3, 1), marker(4, &"y".repeat(101))])
            .then_effects("offer2 offer-task")
            .then_history("started task(0) call1! call2 timer3 marker4!")
            .then_inbox("broke1#0:Refused");
        let events = story.events();
        let Some(Attributes::ActivityScheduled(event)) = &events[2].attributes else { panic!() };
        assert!(event.arguments.is_empty());
        assert_eq!(event.activity_type, "charge");
        let limit = event.refused.as_ref().unwrap();
        assert_eq!((limit.name.as_str(), limit.limit), ("payload_bytes_per_command", 100));
        let Some(Attributes::ActivityFailed(fact)) = &story.run.inbox[0].attributes else {
            panic!()
        };
        assert_eq!(fact.refused.as_ref(), Some(limit));
        assert_eq!(fact.cause(), ActivityFailureCause::Refused);
        story
            .task([])
            .then_history("started task(0) call1! call2 timer3 marker4! broke1#0:Refused task(1)");
    }

    #[test]
    fn a_command_that_comes_without_what_was_too_large_is_recorded_as_refused() {
        let broken = Limit { name: "message_bytes".into(), limit: 9, value: 10 };
        let left_out = |command: Command| Command { refused: Some(broken.clone()), ..command };
        let calls = [call(1), marker(2, "v")].map(left_out);
        let story = history().task(calls);
        let story = story.then_history("started task(0) call1! marker2!");
        let Some(Attributes::ActivityScheduled(event)) = &story.events()[2].attributes else {
            panic!()
        };
        assert_eq!(event.refused.as_ref(), Some(&broken));
        for close in [complete("done"), fail("Broken"), cancel(), timer(1, 1)] {
            let story = history().task([left_out(close)]);
            let story = story.then_history("started task(0) FAILED!");
            let failure = story.run.outcome().unwrap().failure.unwrap();
            assert_eq!(failure.message, "message_bytes is limited to 9, got 10");
        }
    }

    #[test]
    fn too_many_pending_activities_are_refused() {
        let limits = Limits { pending_activities: 2, ..Limits::default() };
        given(history_of(&start_request(), limits))
            .task([call(1), call(2), call(3)])
            .then_history("started task(0) call1 call2 call3!")
            .then_inbox("broke3#0:Refused")
            .dispatched(1)
            .returned(1)
            .task([call(6), call(7)])
            .then_inbox("broke7#0:Refused");
    }

    #[test]
    fn a_timer_that_breaks_a_limit_closes_the_run_and_never_fires() {
        let limits = Limits { pending_timers: 2, ..Limits::default() };
        let story = || history_of(&start_request(), limits.clone());
        let noted = Command { summary: "\0".into(), ..timer(2, 1) };
        let century = 100 * 366 * 86_400 * 1_000_000;
        for (broken, name) in [
            (timer(2, -1), "timer_duration_us_not_negative"),
            (timer(2, i64::MIN), "timer_duration_us_not_negative"),
            (timer(2, century + 1), "timer_duration_us"),
            (noted, "nul_characters_in_text"),
        ] {
            // What the code asks for behind it is never made.
            let story = story().task([call(1), broken, call(3), complete("done")]);
            let story = story.then_effects("closed").then_inbox("");
            let story = story.then_history("started task(0) call1 FAILED!").then_wakes(Wake::Never);
            let failure = story.run.outcome().unwrap().failure.unwrap();
            assert_eq!(failure.kind, "onward::Limit");
            assert!(failure.message.starts_with(&format!("{name} is limited")), "{failure:?}");
        }
        story().task([timer(1, century)]).then_history("started task(0) timer1");
        story()
            .task([timer(1, secs(1)), timer(2, secs(1)), timer(3, 1)])
            .then_history("started task(0) timer1 timer2 FAILED!");
        story()
            .task([timer(1, secs(1)), timer(2, secs(1))])
            .signal("a")
            .task([timer(3, 1)])
            .then_history("started task(0) timer1 timer2 signal:a task(1) FAILED!");
    }

    #[test]
    fn a_cancelled_timer_makes_room_for_the_next_in_the_same_task() {
        let limits = Limits { pending_timers: 2, ..Limits::default() };
        let story = || {
            history_of(&start_request(), limits.clone())
                .task([timer(1, secs(9)), timer(2, 10)])
                .passes(10)
        };
        story()
            .task([
                timer(3, secs(9)),
                cancel_timer(1),
                timer(4, secs(9)),
                cancel_timer(4),
                timer(5, secs(9)),
            ])
            .then_history(
                "started task(0) timer1 timer2 fired2 task(1) timer3 cancel-timer1 timer4 \
                 cancel-timer4 timer5",
            );
        // One that has fired has made its room before.
        story().task([timer(3, secs(9)), cancel_timer(2), timer(4, secs(9))]).then_history(
            "started task(0) timer1 timer2 fired2 task(1) timer3 cancel-timer2 FAILED!",
        );
    }

    #[test]
    fn an_untaken_signal_refuses_the_close_by_a_timer_too() {
        let story = history().task([call(1)]).signal("a").handed_out().signal("b");
        let story = story.completed([timer(2, -1)]).then_effects("void offer-task");
        let story = story.then_history("started task(0) call1").then_inbox("signal:a signal:b");
        story
            .task([timer(2, -1)])
            .then_history("started task(0) call1 signal:a signal:b task(2) FAILED!");
    }

    #[test]
    fn a_timer_that_makes_no_sense_fails_the_task_and_not_the_run() {
        for commands in [[call(3), timer(2, -1)], [cancel_call(7), timer(8, -1)]] {
            let story = history().task(commands);
            story.then_history("started task-failed:BadCommands");
        }
    }

    /// Why the first command is refused.
    fn refusal(command: Command) -> Option<(String, u64, u64)> {
        let limits = Limits { payload_bytes: 100, ..Limits::default() };
        let story = history_of(&start_request(), limits).task([command]);
        let refused = match story.events()[2].attributes.clone().unwrap() {
            Attributes::ActivityScheduled(event) => event.refused,
            Attributes::TimerStarted(_) => None,
            Attributes::WorkflowExecutionFailed(event) => event.refused,
            Attributes::MarkerRecorded(event) => event.refused,
            _ => panic!(),
        };
        refused.map(|limit| (limit.name, limit.limit, limit.value))
    }

    #[test]
    fn the_texts_of_a_command_count_with_its_payloads() {
        let retried = |kinds: &[usize], summary: usize| {
            let non_retryable_kinds = kinds.iter().map(|&length| "k".repeat(length)).collect();
            let retry = RetryPolicy { non_retryable_kinds, ..RetryPolicy::default() };
            let call = call_with(1, ActivityTimeouts::default(), retry);
            refusal(Command { summary: "s".repeat(summary), ..call })
        };
        let over = |value| Some(("payload_bytes_per_command".to_owned(), 100, value));
        // The argument of the call takes five bytes, its type of content among them.
        assert_eq!(retried(&[20, 25], 50), None);
        assert_eq!(retried(&[20, 26], 50), over(101));
        let summed = |summary| refusal(Command { summary: "s".repeat(summary), ..timer(1, 1) });
        assert_eq!(summed(100), None);
        assert_eq!(summed(101), over(101));
    }

    #[test]
    fn a_backoff_grows_by_a_factor_that_makes_sense() {
        let factor = |backoff_coefficient| {
            let retry = RetryPolicy { backoff_coefficient, ..RetryPolicy::default() };
            refusal(call_with(1, ActivityTimeouts::default(), retry))
        };
        for sound in [0.0, 1.0, 2.5, 1_000.0] {
            assert_eq!(factor(sound), None, "{sound}");
        }
        for wild in [-1.0, 0.5, 1_000.5, f64::INFINITY, f64::NAN] {
            let (name, ..) = factor(wild).unwrap();
            assert_eq!(name, "retry_backoff_coefficient_from_1", "{wild}");
        }
    }

    #[test]
    fn a_command_that_is_one_too_many_says_how_many_there_would_be() {
        let limits = Limits { pending_activities: 2, pending_timers: 2, ..Limits::default() };
        let story = history_of(&start_request(), limits).task([call(1), timer(2, secs(9))]);
        let story = story.signal("a").task([call(3), timer(4, secs(9)), call(5), timer(6, 1)]);
        let refused = story.events().into_iter().filter_map(|event| match event.attributes {
            Some(Attributes::ActivityScheduled(event)) => event.refused,
            Some(Attributes::WorkflowExecutionFailed(event)) => event.refused,
            _ => None,
        });
        let refused: Vec<_> = refused.map(|limit| (limit.name, limit.limit, limit.value)).collect();
        let [calls, timers] = ["pending_activities", "pending_timers"].map(str::to_owned);
        assert_eq!(refused, [(calls, 2, 3), (timers, 2, 3)]);
    }

    #[test]
    fn a_call_site_stays_with_its_command_also_when_that_is_refused() {
        let site = |file: &str| Some(CallSite { file: file.into(), line: 7, column: 3 });
        let sites = |file: &str, text: &str| {
            let commands = [call(1), marker(2, text)];
            let story = history().task(commands.map(|command| Command {
                call_site: site(file),
                summary: text.into(),
                ..command
            }));
            let events = story.events().into_iter().skip(2);
            events
                .map(|event| match event.attributes.unwrap() {
                    Attributes::ActivityScheduled(event) => {
                        (event.call_site, event.refused.is_some())
                    }
                    Attributes::MarkerRecorded(event) => (event.call_site, event.refused.is_some()),
                    _ => panic!(),
                })
                .collect::<Vec<_>>()
        };
        let kept = |file: &str, refused| vec![(site(file), refused); 2];
        assert_eq!(sites("src/a.rs", "fine"), kept("src/a.rs", false));
        assert_eq!(sites("src/a.rs", "\0"), kept("src/a.rs", true));
        assert_eq!(sites(&"x".repeat(1_001), "fine"), kept(&"x".repeat(1_000), true));
    }

    #[test]
    fn a_text_with_nul_is_refused_and_not_stored() {
        let mut bad = call(1);
        if let Some(Kind::ScheduleActivity(schedule)) = &mut bad.kind {
            schedule.activity_type = "a\0b".into();
        }
        let story = history().task([bad]).then_history("started task(0) call1!");
        let events = story.events();
        let Some(Attributes::ActivityScheduled(call)) = &events[2].attributes else { panic!() };
        assert_eq!(call.activity_type, "a\u{fffd}b");
        assert_eq!(call.refused.as_ref().unwrap().name, "nul_characters_in_text");
    }

    #[test]
    fn a_malformed_completion_fails_the_task() {
        let unknown = onward_proto::v1::Command { number: 9, ..Default::default() };
        let wrong_marker = |kind| {
            let marker = RecordMarker { kind, ..RecordMarker::default() };
            let kind = Some(Kind::RecordMarker(marker));
            onward_proto::v1::Command { number: 9, kind, ..Default::default() }
        };
        for commands in [
            vec![unknown],
            vec![call(0)],
            vec![call(1)],
            vec![call(3), call(3)],
            vec![call(4), timer(3, 1)],
            vec![marker(2, "v")],
            vec![cancel_call(7)],
            vec![cancel_call(8)],
            vec![cancel_call(2)],
            vec![cancel_call(1), cancel_call(1)],
            vec![cancel_timer(1)],
            vec![cancel_timer(2), cancel_timer(2)],
            vec![complete("a"), call(3)],
            vec![complete("a"), complete("b")],
            vec![fail("Broken"), call(3)],
            vec![cancel(), call(3)],
            vec![wrong_marker(0)],
            vec![wrong_marker(77)],
            vec![call(u32::MAX), marker(u32::MAX, "v")],
        ] {
            let story = history().task([call(1), timer(2, secs(1))]).signal("a").handed_out();
            let completion = story.completion(commands);
            let said = format!("{:?}", completion.commands);
            let story = story.when(&Input::CompleteTask(completion));
            assert_eq!(
                tell(&story.events()),
                "started task(0) call1 timer2 task-failed:BadCommands",
                "{said}"
            );
            story.then_inbox("signal:a");
        }
    }

    #[test]
    fn a_malformed_completion_says_which_command_makes_no_sense_and_why() {
        let story = history().task([marker(1, "v"), cancel_call(7), call(2)]);
        let task = story.run.describe(story.now, &|_| 1, &story.limits).task.unwrap();
        let told = task.last_failure.unwrap();
        assert_eq!(told.kind, "onward::BadCommands");
        assert_eq!(told.message, "command 1: it cancels an activity that is not pending");
        let recorded = story.events().pop().unwrap().attributes;
        let Some(Attributes::WorkflowTaskFailed(recorded)) = recorded else { panic!() };
        assert_eq!(recorded.failure, Some(told));
    }
}
