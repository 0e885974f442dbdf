//! What is derived from histories agrees with them.

use std::collections::BTreeSet;

use onward_proto::v1::{WorkflowStatus, history_event::Attributes};

use crate::{
    judge::{Judge, Rule},
    log::{Log, Run, Wake},
};

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

fn wakeable(log: &Log, judge: &mut Judge) {
    for run in log.runs.iter().filter(|run| run.status == WorkflowStatus::Running) {
        let waits = waits(run);
        judge.must(waits.is_empty() || run.wake != Wake::Never, || {
            format!("{}: it waits for {waits:?} and is never woken", run.run_id)
        });
    }
}

/// Numbers of timers and activities that have not closed.
fn waits(run: &Run) -> BTreeSet<u32> {
    let mut open = BTreeSet::new();
    for record in run.journal.iter().flat_map(|row| &row.records) {
        match &record.attributes {
            Some(Attributes::TimerStarted(event)) => open.insert(event.number),
            Some(Attributes::ActivityScheduled(event)) => open.insert(event.number),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{broken, open_run};

    #[test]
    fn a_run_that_nobody_wakes_is_found() {
        broken("K3", |log| open_run(log).wake = Wake::Never);
    }

    #[test]
    fn what_a_closed_run_left_behind_is_found() {
        broken("K4", |log| log.runs[0].pending = 1);
        broken("K4", |log| log.runs[0].wake = Wake::Hot);
    }
}
