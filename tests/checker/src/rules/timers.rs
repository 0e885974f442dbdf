//! Timers are never early. That none is lost shows at the end: its run would not have ended.

use std::collections::BTreeMap;

use onward_proto::v1::history_event::Attributes;

use crate::{
    judge::{Judge, Rule},
    log::Log,
};

pub(super) const NEVER_EARLY: Rule = Rule {
    name: "T1",
    says: "by the database's clock, no timer fires before its time",
    check: never_early,
};

pub(super) const NEVER_EARLY_FOR_THE_CODE: Rule = Rule {
    name: "T2",
    says: "by the worker's clock, no code behind a timer runs before its time",
    check: never_early_for_the_code,
};

fn never_early(log: &Log, judge: &mut Judge) {
    for run in &log.runs {
        let mut started = BTreeMap::new();
        for record in run.journal.iter().flat_map(|row| &row.records) {
            match &record.attributes {
                Some(Attributes::TimerStarted(timer)) => {
                    started.insert(timer.number, (record.time_us, timer.duration_us));
                }
                Some(Attributes::TimerFired(timer)) => {
                    let Some((since, lasts)) = started.get(&timer.number) else { continue };
                    let waited = record.time_us - since;
                    judge.must(waited >= *lasts, || {
                        format!("{}: timer {} {waited} of {lasts} µs", run.run_id, timer.number)
                    });
                }
                _ => {}
            }
        }
    }
}

fn never_early_for_the_code(log: &Log, judge: &mut Judge) {
    for wait in &log.waits {
        let waited = wait.woke_us.saturating_sub(wait.asked_us);
        judge.must(waited >= wait.lasts_us || log.clock_stepped, || format!("{wait:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::broken;

    #[test]
    fn early_timers_are_found() {
        broken("T1", |log| {
            let records = log.runs[0].journal.iter_mut().flat_map(|row| &mut row.records);
            let is_fired = |attributes: &Option<Attributes>| {
                matches!(attributes, Some(Attributes::TimerFired(_)))
            };
            let fired = records.into_iter().find(|record| is_fired(&record.attributes));
            fired.unwrap().time_us -= 10;
        });
        broken("T2", |log| log.waits[0].woke_us -= 10);
    }
}
