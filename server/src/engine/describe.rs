//! What people are told about a run, above all what it waits for.

use onward_proto::{
    Timestamp,
    v1::{
        DescribeWorkflowResponse, Failure, PendingActivityInfo, PendingActivityState,
        PendingTimerInfo, WorkflowInfo, WorkflowTaskFailureCause, WorkflowTaskInfo,
        WorkflowTaskState,
    },
};

use super::{
    Limits, Run,
    activity::{Activity, Attempt},
};

/// Activities and timers that get a sentence of their own.
const SENTENCES: usize = 5;

impl Run {
    /// All about the run. The caller fills in the namespace's name; `pollers` tells how many
    /// sessions poll a queue.
    pub fn describe(
        &self,
        now: Timestamp,
        pollers: &dyn Fn(&str) -> usize,
        limits: &Limits,
    ) -> DescribeWorkflowResponse {
        let incident = self.has_incident(limits);
        let size = self.history_size();
        let started = self.started.event();
        let info = WorkflowInfo {
            namespace: String::new(),
            workflow_id: self.identity.workflow_id.clone(),
            run_id: self.identity.run_id.to_wire(),
            workflow_type: self.identity.workflow_type.clone(),
            task_queue: self.identity.task_queue.clone(),
            status: self.status.into(),
            started_at_us: self.identity.started_at.as_micros(),
            closed_at_us: self.closed_at().map_or(0, Timestamp::as_micros),
            history_events: size.events,
            history_bytes: size.bytes,
            memo: started.memo,
            incident,
        };
        DescribeWorkflowResponse {
            info: Some(info),
            pending_activities: self
                .activities
                .iter()
                .map(|activity| activity.describe(now, limits))
                .collect(),
            pending_timers: self
                .timers
                .iter()
                .map(|timer| PendingTimerInfo {
                    number: timer.number,
                    started_at_us: timer.started_at.as_micros(),
                    fire_at_us: timer.fire_at.as_micros(),
                    summary: timer.summary.to_string(),
                })
                .collect(),
            inbox: self.inbox.clone(),
            task: Some(self.describe_task(now, limits)),
            waits_for: self.waits_for(now, pollers, limits),
            outcome: self.outcome(),
            cancel_requested: self.cancel_requested,
            arguments: started.arguments,
            execution_timeout_us: self.started.execution_timeout_us,
            run_timeout_us: self.started.run_timeout_us,
            // The edge knows how much a message holds.
            activities_left_out: 0,
            inbox_left_out: 0,
        }
    }

    /// Whether somebody should look at the run.
    pub fn has_incident(&self, limits: &Limits) -> bool {
        self.is_blocked(limits)
            || self.activities.iter().any(|activity| activity.has_incident(limits))
    }

    /// Whether its workflow task fails again and again.
    pub fn is_blocked(&self, limits: &Limits) -> bool {
        !self.is_closed() && self.task.failures >= limits.blocked_attempts
    }

    fn describe_task(&self, now: Timestamp, limits: &Limits) -> WorkflowTaskInfo {
        let task = &self.task;
        let backs_off = task.not_before.filter(|&time| self.owes_task() && time > now);
        let state = if task.open.is_some() {
            WorkflowTaskState::InFlight
        } else if backs_off.is_some() {
            WorkflowTaskState::BackingOff
        } else if self.owes_task() {
            WorkflowTaskState::Queued
        } else {
            WorkflowTaskState::None
        };
        let last = task.last_failure.as_deref();
        let holder = task.open.as_ref().map(|open| &open.worker.identity);
        WorkflowTaskInfo {
            state: state.into(),
            identity: holder.or(last.map(|last| &last.identity)).cloned().unwrap_or_default(),
            attempt: task.failures + 1,
            blocked: self.is_blocked(limits),
            last_failure: last.and_then(|last| last.failure.as_deref().cloned()),
            last_cause: last.map_or(0, |last| last.cause.into()),
            next_attempt_at_us: backs_off.map_or(0, Timestamp::as_micros),
        }
    }

    /// What the run waits for, one sentence each, most urgent first.
    fn waits_for(
        &self,
        now: Timestamp,
        pollers: &dyn Fn(&str) -> usize,
        limits: &Limits,
    ) -> Vec<String> {
        if self.is_closed() {
            return Vec::new();
        }
        let mut sentences = Vec::new();
        self.task_waits_for(now, pollers, limits, &mut sentences);

        let mut activities: Vec<&Activity> =
            self.activities.iter().map(|activity| &**activity).collect();
        // Those in trouble first; among equals the older call.
        activities.sort_by_key(|activity| std::cmp::Reverse(activity.attempts()));
        for activity in activities.iter().take(SENTENCES) {
            sentences.push(activity.waits_for(now, pollers));
        }
        if activities.len() > SENTENCES {
            sentences.push(format!("{} more activities", activities.len() - SENTENCES));
        }

        let mut timers: Vec<_> = self.timers.iter().collect();
        timers.sort_by_key(|timer| timer.fire_at);
        for timer in timers.iter().take(SENTENCES) {
            let summary = match &*timer.summary {
                "" => String::new(),
                summary => format!(" ({summary})"),
            };
            let left = until(now, timer.fire_at);
            sentences.push(format!("timer {}{summary} {left}", timer.number));
        }
        if timers.len() > SENTENCES {
            sentences.push(format!("{} more timers", timers.len() - SENTENCES));
        }

        if sentences.is_empty() {
            sentences.push("waits for a signal or other message from outside".into());
        }
        if let Some((at, _)) = self.workflow_timeout() {
            sentences.push(format!("its timeout {}", until(now, at)));
        }
        sentences
    }

    fn task_waits_for(
        &self,
        now: Timestamp,
        pollers: &dyn Fn(&str) -> usize,
        limits: &Limits,
        sentences: &mut Vec<String>,
    ) {
        let task = &self.task;
        if let Some(last) = &task.last_failure {
            let verb = if self.is_blocked(limits) { "blocked by" } else { "its task failed by" };
            let mut sentence = format!("{verb} {}", cause_text(last.cause));
            if let Some(failure) = &last.failure {
                sentence = format!("{sentence}: {}", failure.message);
            }
            let attempts = if task.failures == 1 { "attempt" } else { "attempts" };
            sentence = format!("{sentence} ({} {attempts})", task.failures);
            if let Some(time) = task.not_before.filter(|_| self.owes_task()) {
                sentence = format!("{sentence}; the next attempt {}", until(now, time));
            }
            sentences.push(sentence);
        }
        let queue = &self.identity.task_queue;
        if let Some(open) = &task.open {
            let identity = &open.worker.identity;
            let since = text(now.since(open.handed_out_at).as_micros());
            sentences.push(format!("worker {identity} has its workflow task since {since}"));
        } else if self.owes_task() && pollers(queue) == 0 {
            sentences.push(format!("no worker polls queue {queue}"));
        } else if self.task_offer(now).is_some() {
            sentences.push(format!("its workflow task waits for a free worker of queue {queue}"));
        }
    }
}

impl Activity {
    fn has_incident(&self, limits: &Limits) -> bool {
        self.attempts() >= limits.incident_attempts
    }

    fn state(&self) -> PendingActivityState {
        match &self.attempt {
            _ if self.cancel_requested => PendingActivityState::CancelRequested,
            Attempt::Ready { .. } => PendingActivityState::Queued,
            Attempt::BackingOff { .. } => PendingActivityState::BackingOff,
            Attempt::Running(running) if running.claimable_until.is_some() => {
                PendingActivityState::Claimed
            }
            Attempt::Running(_) => PendingActivityState::Running,
            Attempt::Unknown { .. } => PendingActivityState::Claimed,
        }
    }

    fn describe(&self, now: Timestamp, limits: &Limits) -> PendingActivityInfo {
        let (attempt, identity) = match &self.attempt {
            Attempt::Running(running) => (running.token.attempt, running.identity.clone()),
            Attempt::Ready { .. } | Attempt::BackingOff { .. } | Attempt::Unknown { .. } => {
                (self.attempts() + 1, String::new())
            }
        };
        let next_attempt_at = match self.attempt {
            Attempt::BackingOff { until } if until > now => until.as_micros(),
            Attempt::BackingOff { .. }
            | Attempt::Ready { .. }
            | Attempt::Running(_)
            | Attempt::Unknown { .. } => 0,
        };
        PendingActivityInfo {
            number: self.number(),
            activity_type: self.scheduled.activity_type.clone(),
            task_queue: self.scheduled.task_queue.clone(),
            state: self.state().into(),
            attempt,
            last_failure: self.last_failure().cloned(),
            scheduled_at_us: self.scheduled_at.as_micros(),
            next_attempt_at_us: next_attempt_at,
            identity,
            incident: self.has_incident(limits),
            heartbeat_details: self.details().cloned(),
        }
    }

    fn last_failure(&self) -> Option<&Failure> {
        self.row.as_ref().and_then(|row| row.last_failure.as_ref())
    }

    fn waits_for(&self, now: Timestamp, pollers: &dyn Fn(&str) -> usize) -> String {
        let queue = &self.scheduled.task_queue;
        let place = match &self.attempt {
            Attempt::Ready { .. } if pollers(queue) == 0 => {
                format!("no worker polls queue {queue}")
            }
            Attempt::Ready { .. } => format!("waits for a free worker of queue {queue}"),
            Attempt::BackingOff { until: time } => {
                format!("the next attempt {}", until(now, *time))
            }
            Attempt::Running(running) => {
                let since = text(now.since(running.started_at).as_micros());
                let identity = &running.identity;
                match running.claimable_until {
                    None => format!("runs on worker {identity} since {since}"),
                    Some(_) => format!("its worker {identity} is gone and may come back"),
                }
            }
            Attempt::Unknown { .. } => "may still run on a worker that has not come back".into(),
        };
        let name = &self.scheduled.activity_type;
        let mut sentence = format!("activity {} {name}", self.number());
        if self.attempts() > 0 {
            let since = text(now.since(self.scheduled_at).as_micros());
            let times = if self.attempts() == 1 { "time" } else { "times" };
            sentence = format!("{sentence} has failed {} {times} in {since}", self.attempts());
            match self.last_failure() {
                Some(failure) => sentence = format!("{sentence} ({})", failure.message),
                None => sentence.push_str(" (it took too long)"),
            }
            sentence.push(';');
        } else {
            sentence.push(':');
        }
        sentence = format!("{sentence} {place}");
        if self.cancel_requested {
            sentence.push_str("; it was asked to stop");
        }
        sentence
    }
}

fn cause_text(cause: WorkflowTaskFailureCause) -> &'static str {
    match cause {
        WorkflowTaskFailureCause::Unspecified => "an unknown cause",
        WorkflowTaskFailureCause::NonDeterminism => "non-determinism",
        WorkflowTaskFailureCause::Panic => "a panic of the workflow code",
        WorkflowTaskFailureCause::Stuck => "workflow code that waits for nothing or loops",
        WorkflowTaskFailureCause::ForeignWake => "a wake from outside the workflow",
        WorkflowTaskFailureCause::WorkerLost => "a worker that vanished",
        WorkflowTaskFailureCause::TimedOut => "a worker that gave no sign of life",
        WorkflowTaskFailureCause::UnknownType => "a worker that does not know the workflow",
        WorkflowTaskFailureCause::Unsupported => "a worker too old for the history",
        WorkflowTaskFailureCause::Payload => "a recorded value that does not decode",
        WorkflowTaskFailureCause::BadCommands => "a malformed completion",
    }
}

/// When something is, seen from now.
fn until(now: Timestamp, at: Timestamp) -> String {
    match at.since(now).as_micros() {
        0 => "is due".into(),
        micros => format!("is due in {}", text(micros)),
    }
}

/// A duration for people: its largest unit, rounded down.
fn text(micros: u128) -> String {
    match micros / 1_000 {
        millis @ 0..1_000 => format!("{millis} ms"),
        millis @ 1_000..120_000 => format!("{} s", millis / 1_000),
        millis @ 120_000..7_200_000 => format!("{} min", millis / 60_000),
        millis @ 7_200_000..172_800_000 => format!("{} h", millis / 3_600_000),
        millis => format!("{} d", millis / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::{Command, RetryPolicy};

    use super::{
        super::{Input, Start, fixture::*},
        *,
    };

    #[test]
    fn it_says_what_a_run_waits_for() {
        assert_eq!(history().with_pollers(0), ["no worker polls queue default"]);
        assert_eq!(
            history().with_pollers(1),
            ["its workflow task waits for a free worker of queue default"]
        );
        assert_eq!(
            history().handed_out().after(secs(3)).with_pollers(1),
            ["worker w1 has its workflow task since 3 s"]
        );
        assert_eq!(
            history().task([]).with_pollers(0),
            ["waits for a signal or other message from outside"]
        );
        assert_eq!(
            history().task([timer(1, secs(3 * 86_400))]).with_pollers(1),
            ["timer 1 is due in 3 d"]
        );
        assert_eq!(
            history().task([call(1)]).with_pollers(0),
            ["activity 1 charge: no worker polls queue default"]
        );
        assert_eq!(
            history().task([call(1)]).dispatched(1).broke(1, "Flaky").with_pollers(1),
            [
                "activity 1 charge has failed 1 time in 0 ms (it was Flaky); the next attempt is due in \
              1 s"
            ]
        );
        assert_eq!(
            history().task([call(1)]).dispatched(1).reload().with_pollers(1),
            ["activity 1 charge: may still run on a worker that has not come back"]
        );
        assert_eq!(
            history().task([call(1)]).with_pollers(1),
            ["activity 1 charge: waits for a free worker of queue default"]
        );
        let story = history().task([call(1)]).dispatched(1).after(secs(2));
        assert_eq!(story.with_pollers(0), ["activity 1 charge: runs on worker w1 since 2 s"]);
        assert_eq!(
            story.session_lost(1).with_pollers(0),
            ["activity 1 charge: its worker w1 is gone and may come back"]
        );
        assert!(history().terminated().with_pollers(0).is_empty());
    }

    #[test]
    fn it_tells_the_end_of_a_timeout_and_what_takes_too_long() {
        let start = Start { run_timeout_us: secs(3_600), ..start_request() };
        let short = call_with(1, timeouts("start-to-close", secs(1)), RetryPolicy::default());
        let story = history_of(&start, Limits::default()).task([short]).dispatched(1);
        assert_eq!(
            story.passes(secs(1)).with_pollers(1),
            [
                "activity 1 charge has failed 1 time in 1 s (it took too long); the next attempt \
                 is due in 1 s",
                "its timeout is due in 59 min"
            ]
        );
    }

    #[test]
    fn those_in_trouble_and_those_due_first_get_a_sentence_of_their_own() {
        let waits = |commands: Vec<Command>| {
            let story = history().handed_out();
            let completion = story.completion(commands);
            story.when(&Input::CompleteTask(completion))
        };
        let story = waits((1..=5).map(call).collect());
        assert_eq!(story.with_pollers(1).len(), 5);
        let story = waits((1..=7).map(call).collect()).dispatched(6).broke(6, "Flaky");
        let sentences = story.with_pollers(1);
        assert!(sentences[0].starts_with("activity 6 charge has failed"), "{sentences:?}");
        assert!(sentences[4].starts_with("activity 4 charge: waits"), "{sentences:?}");
        assert_eq!(sentences[5..], ["2 more activities"]);
        let timers = |count: u32| (1..=count).map(|n| timer(n, secs(100 - i64::from(n)))).collect();
        assert_eq!(waits(timers(5)).with_pollers(1).len(), 5);
        let sentences = waits(timers(7)).with_pollers(1);
        assert_eq!(sentences[0], "timer 7 is due in 93 s");
        assert_eq!(sentences[5..], ["2 more timers"]);
    }

    #[test]
    fn it_says_where_each_attempt_stands() {
        use PendingActivityState::{BackingOff, CancelRequested, Claimed, Queued, Running};
        let stands = |story: &Story| {
            let description = story.run.describe(story.now, &|_| 1, &story.limits);
            let activity = &description.pending_activities[0];
            let wait = match activity.next_attempt_at_us {
                0 => 0,
                time => time - story.now.as_micros(),
            };
            (activity.state(), activity.attempt, activity.identity.clone(), wait)
        };
        let queued = || history().task([call(1)]);
        let running = || queued().dispatched(1);
        let backs_off = || running().broke(1, "Flaky");
        let none = String::new;
        let w1 = || "w1".to_owned();
        assert_eq!(stands(&queued()), (Queued, 1, none(), 0));
        assert_eq!(stands(&running()), (Running, 1, w1(), 0));
        assert_eq!(stands(&running().session_lost(1)), (Claimed, 1, w1(), 0));
        assert_eq!(stands(&running().reload()), (Claimed, 1, none(), 0));
        assert_eq!(stands(&backs_off()), (BackingOff, 2, none(), secs(1)));
        assert_eq!(stands(&backs_off().after(secs(1))), (BackingOff, 2, none(), 0), "it is due");
        assert_eq!(stands(&backs_off().passes(secs(1))), (Queued, 2, none(), 0));
        let stopping = running().signal("a").task([cancel_call(1)]);
        assert_eq!(stands(&stopping), (CancelRequested, 1, w1(), 0));
    }

    #[test]
    fn it_says_where_the_workflow_task_stands() {
        use WorkflowTaskState::{BackingOff, InFlight, None, Queued};
        let stands = |story: &Story| {
            let description = story.run.describe(story.now, &|_| 1, &story.limits);
            let task = description.task.unwrap();
            let wait = match task.next_attempt_at_us {
                0 => 0,
                time => time - story.now.as_micros(),
            };
            (task.state(), task.attempt, task.identity, wait)
        };
        let none = String::new;
        let w1 = || "w1".to_owned();
        assert_eq!(stands(&history()), (Queued, 1, none(), 0));
        assert_eq!(stands(&history().handed_out()), (InFlight, 1, w1(), 0));
        assert_eq!(stands(&history().task([])), (None, 1, none(), 0));
        let story = history().handed_out().task_failed(WorkflowTaskFailureCause::Panic);
        assert_eq!(stands(&story), (BackingOff, 2, w1(), secs(1)));
        assert_eq!(stands(&story.after(secs(1))), (Queued, 2, w1(), 0), "it is due");
    }

    #[test]
    fn an_activity_that_failed_often_is_an_incident() {
        let limits = Limits { incident_attempts: 2, ..Limits::default() };
        let incidents = |story: &Story| {
            let description = story.run.describe(story.now, &|_| 1, &story.limits);
            (description.info.unwrap().incident, description.pending_activities[0].incident)
        };
        let story = history_of(&start_request(), limits).task([call(1)]);
        let story = story.dispatched(1).broke(1, "Flaky").passes(secs(1));
        assert_eq!(incidents(&story), (false, false));
        assert_eq!(incidents(&story.dispatched(1).broke(1, "Flaky")), (true, true));
    }

    #[test]
    fn a_time_is_told_in_its_largest_unit() {
        let told: Vec<_> = [0, 999, 1_000, 119_999, 120_000, 7_199_999, 7_200_000, 172_799_999]
            .into_iter()
            .chain([172_800_000])
            .map(|millis| text(millis * 1_000))
            .collect();
        assert_eq!(
            told,
            ["0 ms", "999 ms", "1 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]
        );
    }

    #[test]
    fn a_blocked_run_says_why() {
        let mut story = history();
        for _ in 0..3 {
            story = story.handed_out().task_failed(WorkflowTaskFailureCause::NonDeterminism);
            story = story.after(secs(100));
        }
        assert_eq!(
            story.with_pollers(1)[0],
            "blocked by non-determinism: it was Bad (3 attempts); the next attempt is due"
        );
        let described = story.run.describe(story.now, &|_| 1, &story.limits);
        assert!(described.info.unwrap().incident);
    }
}
