//! Histories that no code of ours has written: a replay must say so.

use std::{collections::BTreeMap, path::Path};

use onward::ReplayError;
use onward_corpus::{histories, replayer};
use onward_proto::v1::{History, HistoryEvent, MarkerKind, history_event::Attributes};

use crate::replay::started;

/// The ways to spoil a history, each with how often it was tried.
type Tried = BTreeMap<&'static str, u32>;

fn attributes(event: &HistoryEvent) -> &Attributes {
    event.attributes.as_ref().unwrap()
}

fn is_marker(event: &HistoryEvent) -> bool {
    matches!(event.attributes, Some(Attributes::MarkerRecorded(_)))
}

/// Whether the marker is of a local activity: one that is missing may still run.
fn is_local(event: &HistoryEvent) -> bool {
    matches!(&event.attributes, Some(Attributes::MarkerRecorded(marker))
        if marker.kind() == MarkerKind::LocalActivity)
}

fn is_command(event: &HistoryEvent) -> bool {
    matches!(
        event.attributes,
        Some(
            Attributes::ActivityScheduled(_)
                | Attributes::ActivityCancelRequested(_)
                | Attributes::TimerStarted(_)
                | Attributes::TimerCancelled(_)
                | Attributes::MarkerRecorded(_)
        )
    )
}

/// Whether it closes the run as its code wanted.
fn is_close(event: &HistoryEvent) -> bool {
    matches!(
        event.attributes,
        Some(
            Attributes::WorkflowExecutionCompleted(_)
                | Attributes::WorkflowExecutionFailed(_)
                | Attributes::WorkflowExecutionCancelled(_)
        )
    )
}

fn is_refused(event: &HistoryEvent) -> bool {
    matches!(&event.attributes, Some(Attributes::WorkflowExecutionFailed(failed))
        if failed.refused.is_some())
}

/// The number of a command, to be changed.
fn number(event: &mut HistoryEvent) -> Option<&mut u32> {
    match event.attributes.as_mut()? {
        Attributes::ActivityScheduled(event) => Some(&mut event.number),
        Attributes::ActivityCancelRequested(event) => Some(&mut event.number),
        Attributes::TimerStarted(event) => Some(&mut event.number),
        Attributes::TimerCancelled(event) => Some(&mut event.number),
        Attributes::MarkerRecorded(event) => Some(&mut event.number),
        _ => None,
    }
}

/// The name of what a command calls, to be changed.
fn name(event: &mut HistoryEvent) -> Option<&mut String> {
    match event.attributes.as_mut()? {
        Attributes::ActivityScheduled(event) => Some(&mut event.activity_type),
        Attributes::MarkerRecorded(event) if event.kind() == MarkerKind::LocalActivity => {
            Some(&mut event.name)
        }
        _ => None,
    }
}

/// Of how many commands the task knows, to be changed.
fn command_events(event: &mut HistoryEvent) -> &mut u32 {
    let Some(Attributes::WorkflowTaskCompleted(completed)) = event.attributes.as_mut() else {
        panic!("this is no task");
    };
    &mut completed.command_events
}

/// The history as it would be if that had never been written.
fn without(history: &History, place: usize) -> History {
    let mut history = history.clone();
    history.events.remove(place);
    number_anew(&mut history);
    history
}

/// A gap or disorder in the numbers would be noticed before all else.
fn number_anew(history: &mut History) {
    for (event, event_id) in history.events.iter_mut().zip(1..) {
        event.event_id = event_id;
    }
}

/// The places of the completed tasks, each with those of its commands.
fn tasks(history: &History) -> Vec<(usize, std::ops::Range<usize>)> {
    let task = |(place, event): (usize, &HistoryEvent)| match attributes(event) {
        Attributes::WorkflowTaskCompleted(completed) => {
            Some((place, place + 1..place + 1 + completed.command_events as usize))
        }
        _ => None,
    };
    history.events.iter().enumerate().filter_map(task).collect()
}

struct Check<'a> {
    path: &'a Path,
    tried: &'a mut Tried,
}

impl Check<'_> {
    /// A replay must not take this for a history of its code.
    fn notices(&mut self, way: &'static str, place: usize, spoilt: &History) {
        *self.tried.entry(way).or_default() += 1;
        let answer = replayer(&started(spoilt).workflow_type).replay(spoilt);
        assert!(
            matches!(&answer, Err(ReplayError::Mismatch { .. })),
            "{}: {way} at event {}: {answer:?}",
            self.path.display(),
            place + 1
        );
    }

    fn commands(&mut self, history: &History, task: usize, commands: std::ops::Range<usize>) {
        for place in commands.clone() {
            let event = &history.events[place];
            let mut spoilt = history.clone();
            if let Some(number) = number(&mut spoilt.events[place]) {
                *number += 1_000;
                self.notices("a changed number", place, &spoilt);
            }
            let mut spoilt = history.clone();
            if let Some(name) = name(&mut spoilt.events[place]) {
                name.push('!');
                self.notices("a changed name", place, &spoilt);
            }
            let next = place + 1;
            // Any timer may have broken a limit, which is recorded in its place.
            let broke = matches!(event.attributes, Some(Attributes::TimerStarted(_)))
                && history.events.get(next).is_some_and(is_refused);
            if broke {
                continue;
            }
            // A local activity whose marker is missing may still run, unless the code has gone on.
            let has_gone_on =
                history.events[next..].iter().any(|event| is_command(event) || is_close(event));
            if is_command(event) && (!is_local(event) || has_gone_on) {
                let mut spoilt = without(history, place);
                *command_events(&mut spoilt.events[task]) -= 1;
                self.notices("a dropped command", place, &spoilt);
            }
            // Which of two markers comes first is for history to say.
            if commands.contains(&next) && !(is_marker(event) && is_marker(&history.events[next])) {
                let mut spoilt = history.clone();
                spoilt.events.swap(place, next);
                number_anew(&mut spoilt);
                self.notices("swapped commands", place, &spoilt);
            }
        }
    }

    fn tasks(&mut self, history: &History) {
        let mut from = 0;
        for (task, commands) in tasks(history) {
            self.commands(history, task, commands.clone());
            // The server closes a run that broke a limit by itself too.
            let is_by_code = |event: &HistoryEvent| !is_refused(event);
            if history.events[commands.clone()].iter().any(is_by_code) {
                self.notices("a dropped task", task, &without(history, task));
            }
            let facts: Vec<usize> = (from..task)
                .filter(|place| {
                    !matches!(
                        attributes(&history.events[*place]),
                        Attributes::WorkflowTaskFailed(_)
                    )
                })
                .collect();
            // A fact that a task took alone is why there are its commands, but for markers: those
            // come of what the worker did by itself.
            if let [fact] = facts[..]
                && from > 0
                && let Some(first) = commands.clone().next()
                && !is_marker(&history.events[first])
            {
                self.notices("a dropped fact", fact, &without(history, fact));
            }
            from = commands.end.max(task + 1);
        }
    }
}

#[test]
fn what_was_changed_in_a_history_is_noticed() {
    let mut tried = Tried::new();
    for (path, history) in histories() {
        Check { path: &path, tried: &mut tried }.tasks(&history);
        let answer =
            replayer(&started(&history).workflow_type).replay(&without(&history, 0)).unwrap_err();
        assert!(matches!(answer, ReplayError::NoStart), "{}: {answer}", path.display());
    }
    println!("{tried:?}");
    let ways = [
        "a changed name",
        "a changed number",
        "a dropped command",
        "a dropped fact",
        "a dropped task",
        "swapped commands",
    ];
    assert_eq!(tried.keys().copied().collect::<Vec<_>>(), ways);
    assert!(tried.values().all(|times| *times >= 20), "{tried:?}");
}
