//! The form of a history.

use std::collections::{BTreeMap, BTreeSet};

use onward_proto::v1::{HistoryEvent, WorkflowStatus, history_event::Attributes};

use crate::{
    judge::{Judge, Rule},
    log::{Log, Run, fingerprint},
};

pub(super) const CONTIGUOUS: Rule = Rule {
    name: "H1",
    says: "events are numbered from 1 without a gap, the first starts the run, and only the last may end it",
    check: contiguous,
};

pub(super) const PREFIX: Rule = Rule {
    name: "H2",
    says: "what a reader has seen of a history is how it begins for ever, and later readers see no less",
    check: prefix,
};

pub(super) const FOLLOWED: Rule = Rule {
    name: "Q2",
    says: "who follows a history gets every event of it, the one that ends it too",
    check: followed,
};

pub(super) const CAUSALITY: Rule =
    Rule { name: "H5", says: "what ends was begun before, and ends once", check: causality };

pub(super) const TIME: Rule =
    Rule { name: "H6", says: "no event is older than the one before it", check: time };

pub(super) const NOTHING_MISSING: Rule = Rule {
    name: "H7",
    says: "the history of a closed run tells all that its journal does, but timers whose firing was taken back",
    check: nothing_missing,
};

/// The status that a closing event leaves; `None` for all others.
pub(crate) fn closes(attributes: &Attributes) -> Option<WorkflowStatus> {
    Some(match attributes {
        Attributes::WorkflowExecutionCompleted(_) => WorkflowStatus::Completed,
        Attributes::WorkflowExecutionFailed(_) => WorkflowStatus::Failed,
        Attributes::WorkflowExecutionCancelled(_) => WorkflowStatus::Cancelled,
        Attributes::WorkflowExecutionTimedOut(_) => WorkflowStatus::TimedOut,
        Attributes::WorkflowExecutionTerminated(_) => WorkflowStatus::Terminated,
        _ => return None,
    })
}

fn contiguous(log: &Log, judge: &mut Judge) {
    for run in &log.runs {
        let last = run.history.len();
        for (index, event) in run.history.iter().enumerate() {
            let place = index + 1;
            judge.must(event.event_id == place as u64, || {
                format!("{}: event {} stands at place {place}", run.run_id, event.event_id)
            });
            let Some(attributes) = &event.attributes else {
                judge.say(format!("{}: event {place} says nothing", run.run_id));
                continue;
            };
            if matches!(attributes, Attributes::WorkflowExecutionStarted(_)) != (place == 1) {
                judge
                    .say(format!("{}: event {place} is a start, or the first is none", run.run_id));
            }
            if closes(attributes).is_some() && place != last {
                judge.say(format!("{}: event {place} of {last} ends the run", run.run_id));
            }
        }
        let ended = run.history.last().and_then(|event| closes(event.attributes.as_ref()?));
        if ended.is_some() != (run.status != WorkflowStatus::Running) {
            judge.say(format!("{}: it is {:?}, its history {ended:?}", run.run_id, run.status));
        }
    }
}

fn prefix(log: &Log, judge: &mut Judge) {
    let finals: BTreeMap<_, Vec<u64>> = log
        .runs
        .iter()
        .map(|run| (run.run_id, run.history.iter().map(fingerprint).collect()))
        .collect();
    for read in &log.reads {
        if log.is_waived(read.began_us, read.ended_us) {
            continue;
        }
        match finals.get(&read.run_id) {
            Some(all) => judge.must(all.starts_with(&read.events), || {
                let same = all.iter().zip(&read.events).take_while(|(one, other)| one == other);
                let same = same.count();
                format!("{}: event {} is not what a reader got", read.run_id, same + 1)
            }),
            None if log.kept_all() => judge.say(format!("{}: read, and gone", read.run_id)),
            None => {}
        }
        for later in &log.reads {
            if later.run_id == read.run_id
                && read.ended_us < later.began_us
                && !log.is_waived(later.began_us, later.ended_us)
                && later.events.len() < read.events.len()
            {
                judge.say(format!(
                    "{}: {} events, and later {}",
                    read.run_id,
                    read.events.len(),
                    later.events.len()
                ));
            }
        }
    }
}

fn followed(log: &Log, judge: &mut Judge) {
    for read in log.reads.iter().filter(|read| read.followed) {
        if log.is_waived(read.began_us, read.ended_us) {
            continue;
        }
        if let Some(run) = log.run(read.run_id) {
            judge.must(run.history.len() == read.events.len(), || {
                format!("{}: {} of {} events", run.run_id, read.events.len(), run.history.len())
            });
        }
    }
}

/// What may be open in a history, by its number.
#[derive(Debug, Default)]
struct Begun {
    activities: BTreeMap<u32, bool>,
    timers: BTreeMap<u32, Option<usize>>,
}

fn causality(log: &Log, judge: &mut Judge) {
    for run in &log.runs {
        let mut begun = Begun::default();
        let mut tasks = 0;
        for event in &run.history {
            let Some(attributes) = &event.attributes else { continue };
            if matches!(attributes, Attributes::WorkflowTaskCompleted(_)) {
                tasks += 1;
            }
            if let Err(text) = begun.take(attributes, tasks, judge) {
                judge.say(format!("{}: event {}: {text}", run.run_id, event.event_id));
            }
        }
        if let Some(text) = numbered_twice(&run.history) {
            judge.say(format!("{}: {text}", run.run_id));
        }
    }
}

impl Begun {
    fn take(
        &mut self,
        attributes: &Attributes,
        tasks: usize,
        judge: &mut Judge,
    ) -> Result<(), String> {
        match attributes {
            Attributes::ActivityScheduled(event) => {
                self.activities.insert(event.number, false);
            }
            Attributes::TimerStarted(event) => {
                self.timers.insert(event.number, None);
            }
            Attributes::ActivityCancelRequested(event)
                if !self.activities.contains_key(&event.number) =>
            {
                return Err(format!("activity {} was never scheduled", event.number));
            }
            Attributes::ActivityCompleted(event) => return self.close(event.number, judge),
            Attributes::ActivityFailed(event) => return self.close(event.number, judge),
            Attributes::ActivityTimedOut(event) => return self.close(event.number, judge),
            Attributes::ActivityCancelled(event) => return self.close(event.number, judge),
            Attributes::TimerFired(event) => match self.timers.get_mut(&event.number) {
                Some(fired @ None) => {
                    judge.look();
                    *fired = Some(tasks);
                }
                Some(Some(_)) => return Err(format!("timer {} fired twice", event.number)),
                None => return Err(format!("timer {} fired and is not there", event.number)),
            },
            Attributes::TimerCancelled(event) => {
                judge.look();
                match self.timers.remove(&event.number) {
                    None => return Err(format!("timer {} is not there", event.number)),
                    // The task that took the firing may have cancelled the timer all the same.
                    Some(Some(fired)) if fired + 1 != tasks => {
                        return Err(format!("timer {} had fired long before", event.number));
                    }
                    Some(_) => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, number: u32, judge: &mut Judge) -> Result<(), String> {
        judge.look();
        match self.activities.get_mut(&number) {
            None => Err(format!("activity {number} was never scheduled")),
            Some(closed) if *closed => Err(format!("activity {number} has closed before")),
            Some(closed) => {
                *closed = true;
                Ok(())
            }
        }
    }
}

/// Activities, timers and recorded values share one sequence of numbers.
fn numbered_twice(history: &[HistoryEvent]) -> Option<String> {
    let mut numbers = BTreeSet::new();
    for event in history {
        let number = match event.attributes.as_ref()? {
            Attributes::ActivityScheduled(event) => event.number,
            Attributes::TimerStarted(event) => event.number,
            Attributes::MarkerRecorded(event) => event.number,
            _ => continue,
        };
        if !numbers.insert(number) {
            return Some(format!("two commands have number {number}"));
        }
    }
    None
}

fn time(log: &Log, judge: &mut Judge) {
    for run in &log.runs {
        for pair in run.history.windows(2) {
            judge.must(pair[0].time_us <= pair[1].time_us, || {
                format!("{}: event {} is older than the one before", run.run_id, pair[1].event_id)
            });
        }
    }
}

fn nothing_missing(log: &Log, judge: &mut Judge) {
    let closed = log.runs.iter().filter(|run| run.status != WorkflowStatus::Running);
    for run in closed {
        judge.look();
        let mut records = BTreeMap::<u64, (i64, &HistoryEvent)>::new();
        for record in run.journal.iter().flat_map(|row| &row.records) {
            records.entry(content(record)).or_insert((0, record)).0 += 1;
        }
        for event in &run.history {
            records.entry(content(event)).or_insert((0, event)).0 -= 1;
        }
        for (count, event) in records.into_values() {
            let taken_back = count == 1 && was_taken_back(run, event);
            if count != 0 && !taken_back {
                judge.say(format!("{}: {count} times too few: {event:?}", run.run_id));
            }
        }
    }
}

/// What an event says, wherever it stands.
fn content(event: &HistoryEvent) -> u64 {
    fingerprint(&HistoryEvent { attributes: event.attributes.clone(), ..Default::default() })
}

/// Whether it is the firing of a timer that was cancelled before any task took it.
fn was_taken_back(run: &Run, event: &HistoryEvent) -> bool {
    let Some(Attributes::TimerFired(fired)) = &event.attributes else { return false };
    run.history.iter().any(|event| {
        matches!(&event.attributes, Some(Attributes::TimerCancelled(cancelled))
            if cancelled.number == fired.number)
    })
}

#[cfg(test)]
mod tests {
    use onward_proto::v1::TimerFired;

    use super::*;
    use crate::{
        fixture::{broken, good},
        log::Read,
    };

    #[test]
    fn planted_violations_of_form_are_found() {
        broken("H1", |log| log.runs[0].history[3].event_id = 9);
        broken("H1", |log| log.runs[0].history.swap(0, 1));
        broken("H1", |log| {
            let end = log.runs[0].history.pop().unwrap();
            log.runs[0].history.insert(4, end);
        });
        broken("H1", |log| drop(log.runs[0].history.pop()));
        broken("H6", |log| log.runs[0].history[3].time_us = 1);
    }

    #[test]
    fn a_history_that_shrinks_or_changes_is_found() {
        broken("H2", |log| log.reads[0].events[1] += 1);
        broken("H2", |log| log.reads[0].run_id = uuid::Uuid::from_u128(99));
        broken("H2", |log| {
            let shorter = Read {
                began_us: 900,
                ended_us: 901,
                events: log.reads[0].events[..1].to_vec(),
                ..log.reads[0]
            };
            log.reads.push(shorter);
        });
    }

    #[test]
    fn a_follower_who_misses_the_end_is_found() {
        broken("Q2", |log| log.reads[1].events.truncate(3));
    }

    #[test]
    fn what_ends_twice_or_was_never_begun_is_found() {
        let at = |log: &Log, is: fn(&Attributes) -> bool| {
            let history = &log.runs[0].history;
            history.iter().position(|event| event.attributes.as_ref().is_some_and(is)).unwrap()
        };
        broken("H5", |log| {
            let scheduled = at(log, |event| matches!(event, Attributes::ActivityScheduled(_)));
            log.runs[0].history.remove(scheduled);
        });
        broken("H5", |log| {
            let completed = at(log, |event| matches!(event, Attributes::ActivityCompleted(_)));
            let again = log.runs[0].history[completed].clone();
            log.runs[0].history.insert(completed, again);
        });
        broken("H5", |log| {
            let fired = at(log, |event| matches!(event, Attributes::TimerFired(_)));
            let again = log.runs[0].history[fired].clone();
            log.runs[0].history.insert(fired, again);
        });
        broken("H5", |log| {
            let fired = at(log, |event| matches!(event, Attributes::TimerFired(_)));
            let stray = TimerFired { number: 77 };
            log.runs[0].history[fired].attributes = Some(Attributes::TimerFired(stray));
        });
        broken("H5", |log| {
            let timer = at(log, |event| matches!(event, Attributes::TimerStarted(_)));
            let again = log.runs[0].history[timer].clone();
            log.runs[0].history.insert(timer, again);
        });
    }

    #[test]
    fn a_record_that_no_reader_gets_is_found() {
        broken("H7", |log| {
            let signal = log.runs[0].journal[1].records[0].clone();
            log.runs[0].journal[1].records.push(signal);
        });
        broken("H7", |log| drop(log.runs[0].journal.pop()));
    }

    #[test]
    fn a_reader_who_was_there_when_commits_were_lost_is_excused() {
        let mut log = good();
        log.reads[0].events[1] += 1;
        log.lost.push(crate::log::Window { from_us: 0, to_us: 10_000 });
        let report = Report::of(&log, &[PREFIX]);
        assert!(report.violations().is_empty(), "{report:?}");
    }

    use crate::judge::Report;
}
