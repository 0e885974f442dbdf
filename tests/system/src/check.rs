//! What must be true of histories and effects, whatever happened.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use onward_proto::v1::{History, WorkflowInfo, WorkflowStatus, history_event::Attributes};
use uuid::Uuid;

use crate::{
    Effect, Ended,
    workflows::{STEPS, five_steps_result},
};

/// What was looked at, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Report {
    /// Runs.
    pub runs: usize,
    /// Events of all histories.
    pub events: usize,
    /// Rows of the ledger.
    pub effects: usize,
    /// Effects of attempts that did not become the activity's result.
    pub repeated: usize,
    /// `WorkflowTaskFailed` events.
    pub failed_tasks: usize,
    /// Histories that were read while their runs were open.
    pub looks: usize,
    /// Broken promises, one sentence each.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} runs, {} events, {} effects of which {} repeated, {} failed workflow tasks, {} looks, {} violations",
            self.runs,
            self.events,
            self.effects,
            self.repeated,
            self.failed_tasks,
            self.looks,
            self.violations.len()
        )
    }
}

/// Checks runs of [`five_steps`](crate::workflows::five_steps) whose results are known.
pub fn five_steps(ended: &[Ended], histories: &[History], effects: &[Effect]) -> Report {
    let mut report = Report { runs: ended.len(), effects: effects.len(), ..Report::default() };
    assert_eq!(ended.len(), histories.len(), "a history for each run");
    let mut ledger = Books::new(effects, &mut report.violations);
    let mut numbers = BTreeSet::new();
    for (run, history) in ended.iter().zip(histories) {
        if !numbers.insert(run.number) {
            report.violations.push(format!("{}: ended twice", run.workflow_id));
        }
        report.events += history.events.len();
        let mut say = |text: String| {
            report.violations.push(format!("{} ({}): {text}", run.workflow_id, run.run_id));
        };
        if run.result != five_steps_result(run.number) {
            say(format!("the result is {}", run.result));
        }
        let mut activities = Activities::default();
        form(history, &mut say);
        for event in &history.events {
            match event.attributes.as_ref() {
                Some(Attributes::WorkflowExecutionStarted(started)) => {
                    if started.run_id != run.run_id.as_bytes().as_slice()
                        || started.workflow_id != run.workflow_id
                    {
                        say("event 1 names another run".to_owned());
                    }
                }
                Some(Attributes::WorkflowTaskFailed(_)) => report.failed_tasks += 1,
                Some(attributes) => activities.take(attributes, &mut say),
                None => say(format!("event {} says nothing", event.event_id)),
            }
        }
        if !matches!(
            history.events.last().and_then(|event| event.attributes.as_ref()),
            Some(Attributes::WorkflowExecutionCompleted(_))
        ) {
            say("the last event does not complete the run".to_owned());
        }
        if activities.scheduled.len() != STEPS as usize {
            say(format!("{} activities were scheduled", activities.scheduled.len()));
        }
        for number in activities.scheduled.difference(&activities.closed) {
            say(format!("activity {number} has no closing event"));
        }
        for (number, attempt) in activities.completed {
            let key = format!("{}-{number}", run.run_id);
            report.repeated += ledger.settle(&key, attempt, &mut say);
        }
    }
    for key in ledger.attempts.keys() {
        report.violations.push(format!("the effect {key} belongs to no completed activity"));
    }
    report
}

/// What a reader has seen of a run while it was open is how its history begins.
pub fn append_only(
    ended: &[Ended],
    histories: &[History],
    seen: &[(Uuid, History)],
    report: &mut Report,
) {
    let now: BTreeMap<_, _> = ended.iter().map(|run| run.run_id).zip(histories).collect();
    for (run_id, before) in seen {
        report.looks += 1;
        if !now.get(run_id).is_some_and(|now| now.events.starts_with(&before.events)) {
            report.violations.push(format!(
                "{run_id}: its history does not begin with the {} events that were read before",
                before.events.len()
            ));
        }
    }
}

/// The server lists the runs whose starts were acked, as completed, and no other.
pub fn listed(
    ended: &[Ended],
    histories: &[History],
    listed: &[WorkflowInfo],
    report: &mut Report,
) {
    let mut expected: BTreeMap<_, _> = ended
        .iter()
        .map(|run| (run.run_id, run.workflow_id.as_str()))
        .zip(histories.iter().map(|history| history.events.len() as u64))
        .map(|((run_id, workflow_id), events)| (run_id, (workflow_id, events)))
        .collect();
    for info in listed {
        let run_id = Uuid::from_slice(&info.run_id).unwrap_or_default();
        match expected.remove(&run_id) {
            Some((workflow_id, events))
                if workflow_id == info.workflow_id
                    && events == info.history_events
                    && info.status() == WorkflowStatus::Completed => {}
            expected => {
                report.violations.push(format!("listed is {info:?}, expected {expected:?}"));
            }
        }
    }
    for (run_id, (workflow_id, _)) in expected {
        report.violations.push(format!("{workflow_id} ({run_id}) is not listed"));
    }
}

/// Ids, times and ends: what holds for every history of a closed run.
pub fn form(history: &History, say: &mut impl FnMut(String)) {
    let mut time = i64::MIN;
    for (index, event) in history.events.iter().enumerate() {
        if event.event_id != index as u64 + 1 {
            say(format!("event {} stands at place {}", event.event_id, index + 1));
        }
        if event.time_us < time {
            say(format!("event {} is older than the one before", event.event_id));
        }
        time = event.time_us;
        let attributes = event.attributes.as_ref();
        let first = matches!(attributes, Some(Attributes::WorkflowExecutionStarted(_)));
        if first != (index == 0) {
            say(format!("event {} is a start, or the first is none", event.event_id));
        }
        if attributes.is_some_and(is_terminal) != (index + 1 == history.events.len()) {
            say(format!("event {} is terminal, or the last is not", event.event_id));
        }
    }
}

fn is_terminal(attributes: &Attributes) -> bool {
    matches!(
        attributes,
        Attributes::WorkflowExecutionCompleted(_)
            | Attributes::WorkflowExecutionFailed(_)
            | Attributes::WorkflowExecutionCancelled(_)
            | Attributes::WorkflowExecutionTimedOut(_)
            | Attributes::WorkflowExecutionTerminated(_)
    )
}

/// The activities of one history.
#[derive(Debug, Default)]
struct Activities {
    scheduled: BTreeSet<u32>,
    closed: BTreeSet<u32>,
    completed: BTreeMap<u32, u32>,
}

impl Activities {
    fn take(&mut self, attributes: &Attributes, say: &mut impl FnMut(String)) {
        let closed = match attributes {
            Attributes::ActivityScheduled(scheduled) => {
                if !self.scheduled.insert(scheduled.number) {
                    say(format!("activity {} was scheduled twice", scheduled.number));
                }
                return;
            }
            Attributes::ActivityCompleted(completed) => {
                self.completed.insert(completed.number, completed.attempt);
                completed.number
            }
            Attributes::ActivityFailed(failed) => failed.number,
            Attributes::ActivityTimedOut(timed_out) => timed_out.number,
            Attributes::ActivityCancelled(cancelled) => cancelled.number,
            _ => return,
        };
        if !self.scheduled.contains(&closed) {
            say(format!("activity {closed} closed before it was scheduled"));
        }
        if !self.closed.insert(closed) {
            say(format!("activity {closed} has two closing events"));
        }
        if !matches!(attributes, Attributes::ActivityCompleted(_)) {
            say(format!("activity {closed} did not complete: {attributes:?}"));
        }
    }
}

/// The ledger, by key.
struct Books<'a> {
    attempts: BTreeMap<&'a str, BTreeSet<u32>>,
}

impl<'a> Books<'a> {
    fn new(effects: &'a [Effect], violations: &mut Vec<String>) -> Self {
        let mut attempts = BTreeMap::<&str, BTreeSet<u32>>::new();
        for Effect { key, attempt, worker, .. } in effects {
            if !attempts.entry(key).or_default().insert(*attempt) {
                violations.push(format!("attempt {attempt} of {key} ran twice, last on {worker}"));
            }
        }
        Self { attempts }
    }

    /// Takes out what belongs to a completed activity; gives how many effects were repeated.
    fn settle(&mut self, key: &str, completed: u32, say: &mut impl FnMut(String)) -> usize {
        let attempts = self.attempts.remove(key).unwrap_or_default();
        if !attempts.contains(&completed) {
            say(format!("attempt {completed} of {key} completed without an effect: lost"));
        }
        // The attempt behind one that has completed is never handed out, and one before it cannot
        // complete once it was.
        if let Some(later) = attempts.range(completed + 1..).next() {
            say(format!("attempt {later} of {key} ran, and attempt {completed} completed"));
        }
        attempts.len().saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use onward_proto::v1::{
        ActivityCompleted, ActivityScheduled, HistoryEvent, WorkflowExecutionCompleted,
        WorkflowExecutionStarted,
    };

    use super::*;

    /// A run as it should be.
    fn good() -> (Vec<Ended>, Vec<History>, Vec<Effect>) {
        let run_id = Uuid::from_u128(7);
        let run = Ended { number: 3, workflow_id: "w".into(), run_id, result: 312_345 };
        let mut attributes = vec![Attributes::WorkflowExecutionStarted(WorkflowExecutionStarted {
            workflow_id: "w".into(),
            run_id: run_id.as_bytes().to_vec().into(),
            ..Default::default()
        })];
        let mut effects = Vec::new();
        for number in 1..=STEPS {
            let scheduled = ActivityScheduled { number, ..Default::default() };
            let completed = ActivityCompleted { number, attempt: 2, ..Default::default() };
            attributes.push(Attributes::ActivityScheduled(scheduled));
            attributes.push(Attributes::ActivityCompleted(completed));
            for attempt in [1, 2] {
                let key = format!("{run_id}-{number}");
                effects.push(Effect { key, attempt, worker: "a".into(), time_us: 0 });
            }
        }
        let end = WorkflowExecutionCompleted::default();
        attributes.push(Attributes::WorkflowExecutionCompleted(end));
        (vec![run], vec![history(attributes)], effects)
    }

    fn history(attributes: Vec<Attributes>) -> History {
        let events = attributes.into_iter().zip(1..).map(|(attributes, event_id)| HistoryEvent {
            event_id,
            attributes: Some(attributes),
            ..Default::default()
        });
        History { events: events.collect() }
    }

    type Spoil = fn(&mut Vec<Ended>, &mut History, &mut Vec<Effect>);

    #[test]
    fn a_good_run_has_no_violation_and_each_planted_one_is_found() {
        let (ended, histories, effects) = good();
        let report = five_steps(&ended, &histories, &effects);
        assert_eq!((report.violations.as_slice(), report.repeated), (&[][..], 5));
        let planted: [(&str, Spoil); 12] = [
            ("the result is", |ended, _, _| ended[0].result += 1),
            ("ended twice", |ended, _, _| ended[1].number = 3),
            ("stands at place", |_, history, _| history.events[4].event_id = 9),
            ("older than", |_, history, _| history.events[4].time_us = -1),
            ("event 1 names another", |ended, _, _| ended[0].workflow_id = "x".into()),
            ("is terminal, or", |_, history, _| {
                let end = history.events.pop().unwrap();
                history.events.insert(3, end);
            }),
            ("scheduled twice", |_, history, _| history.events[3] = history.events[1].clone()),
            ("two closing events", |_, history, _| history.events[4] = history.events[2].clone()),
            ("has no closing event", |_, history, _| drop(history.events.remove(4))),
            ("without an effect: lost", |_, _, effects| drop(effects.remove(1))),
            ("ran twice", |_, _, effects| effects[0].attempt = 2),
            ("belongs to no completed", |_, _, effects| {
                effects[0].key = "7-1".into();
            }),
        ];
        for (expected, spoil) in planted {
            let (mut ended, mut histories, mut effects) = good();
            ended.push(Ended { number: 4, result: 412_345, ..ended[0].clone() });
            histories.push(histories[0].clone());
            spoil(&mut ended, &mut histories[0], &mut effects);
            let report = five_steps(&ended, &histories, &effects);
            let found = report.violations.iter().any(|violation| violation.contains(expected));
            assert!(found, "{expected}: {:?}", report.violations);
        }
    }

    #[test]
    fn what_was_read_before_must_stand() {
        let (ended, histories, _) = good();
        let looked = |change: fn(&mut History)| {
            let mut before = histories[0].clone();
            before.events.truncate(4);
            change(&mut before);
            let mut report = Report::default();
            append_only(&ended, &histories, &[(ended[0].run_id, before)], &mut report);
            report.violations.len()
        };
        assert_eq!(looked(|_| {}), 0);
        assert_eq!(looked(|before| before.events[2].time_us = 9), 1);
        assert_eq!(looked(|before| before.events.extend_from_within(..)), 1);
    }

    #[test]
    fn the_list_holds_what_was_acked_and_nothing_else() {
        let (ended, histories, _) = good();
        let info = |change: fn(&mut WorkflowInfo)| {
            let mut info = WorkflowInfo {
                workflow_id: "w".into(),
                run_id: ended[0].run_id.as_bytes().to_vec().into(),
                status: WorkflowStatus::Completed.into(),
                history_events: histories[0].events.len() as u64,
                ..WorkflowInfo::default()
            };
            change(&mut info);
            info
        };
        let violations = |infos: &[WorkflowInfo]| {
            let mut report = Report::default();
            listed(&ended, &histories, infos, &mut report);
            report.violations.len()
        };
        assert_eq!(violations(&[info(|_| {})]), 0);
        assert_eq!(violations(&[]), 1, "a run that is not listed");
        assert_eq!(violations(&[info(|_| {}), info(|_| {})]), 1, "a run too many");
        assert_eq!(violations(&[info(|info| info.history_events += 1)]), 1);
        assert_eq!(violations(&[info(|info| info.set_status(WorkflowStatus::Running))]), 1);
    }

    #[test]
    fn an_attempt_behind_the_completed_one_is_a_violation() {
        let (ended, histories, mut effects) = good();
        effects.push(Effect { attempt: 3, ..effects[0].clone() });
        let report = five_steps(&ended, &histories, &effects);
        assert!(report.violations[0].contains("attempt 3 of"), "{:?}", report.violations);
    }
}
