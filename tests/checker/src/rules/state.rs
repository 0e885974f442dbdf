//! What is derived from histories agrees with them.

use std::collections::BTreeMap;

use onward_proto::v1::{WorkflowStatus, history_event::Attributes};

use super::history;
use crate::{
    judge::{Judge, Rule},
    log::{Log, Row, Run, Wake},
};

pub(super) const ROW: Rule =
    Rule { name: "K1", says: "the row of a run repeats what its journal says", check: row };

pub(super) const WAKEABLE: Rule = Rule {
    name: "K3",
    says: "an open run that waits for a timer or an activity will be in memory in time",
    check: wakeable,
};

pub(super) const CLOSED_IS_CLOSED: Rule = Rule {
    name: "K4",
    says: "a closed run keeps no row of an activity and is never woken",
    check: closed_is_closed,
};

pub(super) const LISTED: Rule = Rule {
    name: "K5",
    says: "the list holds each run of the store once, and of a closed one how it ended",
    check: listed,
};

fn row(log: &Log, judge: &mut Judge) {
    for run in &log.runs {
        let mut told = Row::default();
        for record in run.journal.iter().flat_map(|row| &row.records) {
            match &record.attributes {
                Some(Attributes::WorkflowExecutionStarted(event)) => {
                    told.workflow_type.clone_from(&event.workflow_type);
                    told.task_queue.clone_from(&event.task_queue);
                    told.started_at_us = record.time_us;
                }
                Some(attributes) if history::closes(attributes).is_some() => {
                    told.closed_at_us = Some(record.time_us);
                }
                _ => {}
            }
        }
        judge.must(run.row == told, || {
            format!("{}: its journal says {told:?}, and its row {:?}", run.run_id, run.row)
        });
    }
}

fn wakeable(log: &Log, judge: &mut Judge) {
    for run in log.runs.iter().filter(|run| run.status == WorkflowStatus::Running) {
        let waits = waits(run);
        let in_time = match run.wake {
            Wake::Hot => true,
            Wake::At(wake_us) => waits.values().all(|due_us| wake_us <= *due_us),
            Wake::Never => waits.is_empty(),
        };
        judge.must(in_time, || {
            format!("{}: it waits for {waits:?} and is woken {:?}", run.run_id, run.wake)
        });
    }
}

/// Numbers of timers and activities that have not closed, and when it is known of them that
/// something is due.
fn waits(run: &Run) -> BTreeMap<u32, i64> {
    let mut open = BTreeMap::new();
    for record in run.journal.iter().flat_map(|row| &row.records) {
        match &record.attributes {
            Some(Attributes::TimerStarted(event)) => open.insert(event.number, event.fire_at_us),
            Some(Attributes::ActivityScheduled(event)) => open.insert(event.number, i64::MAX),
            Some(Attributes::TimerFired(event)) => open.remove(&event.number),
            Some(Attributes::TimerCancelled(event)) => open.remove(&event.number),
            Some(Attributes::ActivityCompleted(event)) => open.remove(&event.number),
            Some(Attributes::ActivityFailed(event)) => open.remove(&event.number),
            Some(Attributes::ActivityTimedOut(event)) => open.remove(&event.number),
            Some(Attributes::ActivityCancelled(event)) => open.remove(&event.number),
            _ => continue,
        };
    }
    open
}

fn closed_is_closed(log: &Log, judge: &mut Judge) {
    for run in log.runs.iter().filter(|run| run.status != WorkflowStatus::Running) {
        judge.must(run.pending == 0 && run.wake == Wake::Never, || {
            format!("{}: {} rows are left, it is {:?}", run.run_id, run.pending, run.wake)
        });
    }
}

fn listed(log: &Log, judge: &mut Judge) {
    let mut listed = BTreeMap::new();
    for one in &log.listed {
        judge.must(listed.insert(one.run_id, one).is_none(), || format!("{one:?} is listed twice"));
    }
    for run in &log.runs {
        let Some(one) = listed.remove(&run.run_id) else {
            judge.say(format!("{} is not listed", run.run_id));
            continue;
        };
        if run.status != WorkflowStatus::Running {
            let events = run.history.len() as u64;
            judge.must((one.status, one.events) == (run.status, events), || {
                format!("{one:?}, but it is {:?} with {events} events", run.status)
            });
        }
    }
    for stray in listed.values() {
        judge.say(format!("{stray:?} is in no store"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{broken, open_run};

    #[test]
    fn a_run_that_nobody_wakes_is_found() {
        broken("K3", |log| open_run(log).wake = Wake::Never);
        broken("K3", |log| open_run(log).wake = Wake::At(32));
    }

    #[test]
    fn a_row_that_does_not_repeat_its_journal_is_found() {
        broken("K1", |log| log.runs[0].row.workflow_type.clear());
        broken("K1", |log| log.runs[0].row.task_queue.clear());
        broken("K1", |log| log.runs[0].row.started_at_us += 1);
        broken("K1", |log| log.runs[0].row.closed_at_us = None);
        broken("K1", |log| open_run(log).row.closed_at_us = Some(1));
    }

    #[test]
    fn a_list_that_is_not_the_store_is_found() {
        broken("K5", |log| log.listed.truncate(3));
        broken("K5", |log| log.listed.push(log.listed[0]));
        broken("K5", |log| log.listed[0].run_id = uuid::Uuid::from_u128(77));
        broken("K5", |log| log.listed[0].status = WorkflowStatus::Failed);
        broken("K5", |log| log.listed[0].events += 1);
    }

    #[test]
    fn what_a_closed_run_left_behind_is_found() {
        broken("K4", |log| log.runs[0].pending = 1);
        broken("K4", |log| log.runs[0].wake = Wake::Hot);
    }
}
