//! What was shown of a run, whoever looked.

use std::collections::BTreeMap;

use onward_proto::v1::{HistoryEvent, WorkflowStatus};
use uuid::Uuid;

use super::history::closes;
use crate::{
    judge::{Judge, Rule},
    log::{Log, Operation, Outcome, Run, Shown},
};

pub(super) const STANDS: Rule = Rule {
    name: "D7",
    says: "what a look shows is on record, and a later look shows no less",
    check: stands,
};

fn stands(log: &Log, judge: &mut Judge) {
    let mut looks = BTreeMap::<Uuid, Vec<(&Operation, Shown)>>::new();
    for operation in &log.operations {
        if let Outcome::Ok(reply) = &operation.outcome
            && let Some(shown) = reply.shown
            && !log.is_waived(operation.began_us, operation.ended_us)
        {
            looks.entry(reply.run_id).or_default().push((operation, shown));
        }
    }
    for (run_id, looks) in looks {
        let Some(run) = log.run(run_id) else {
            judge.say(format!("{:?}, and there is no such run", looks[0].0));
            continue;
        };
        for (look, shown) in &looks {
            judge.must(is_on_record(run, *shown), || {
                format!("{look:?}, but it is {:?}, {:?}", run.status, run.history.last())
            });
            let back = looks
                .iter()
                .find(|(later, less)| look.ended_us < later.began_us && less.events < shown.events);
            if let Some((later, _)) = back {
                judge.say(format!("{look:?}, and later {later:?}"));
            }
        }
    }
}

fn is_on_record(run: &Run, shown: Shown) -> bool {
    if shown.status == WorkflowStatus::Running {
        return shown.events <= run.history.len() as u64;
    }
    let last = run.history.last();
    let ended = last.and_then(|event| closes(event.attributes.as_ref()?));
    ended == Some(shown.status)
        && shown.events == run.history.len() as u64
        && last.is_some_and(|event| own_time_us(event) == shown.closed_at_us)
}

/// When an event happened: in a history none is older than the one before it.
fn own_time_us(event: &HistoryEvent) -> i64 {
    if event.received_at_us == 0 { event.time_us } else { event.received_at_us }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixture::broken, log::Call};

    fn look(log: &mut Log, change: fn(&mut Uuid, &mut Shown)) {
        let is_look = |operation: &&mut Operation| operation.call == Call::Describe;
        let look = log.operations.iter_mut().rfind(is_look).unwrap();
        let Outcome::Ok(reply) = &mut look.outcome else { panic!("it was answered") };
        change(&mut reply.run_id, reply.shown.as_mut().unwrap());
    }

    #[test]
    fn what_was_shown_and_never_was_is_found() {
        broken("D7", |log| look(log, |run_id, _| *run_id = Uuid::from_u128(77)));
        broken("D7", |log| look(log, |_, shown| shown.status = WorkflowStatus::Failed));
        broken("D7", |log| look(log, |_, shown| shown.closed_at_us += 1));
        broken("D7", |log| look(log, |_, shown| shown.events += 1));
    }

    #[test]
    fn a_later_look_that_shows_less_is_found() {
        broken("D7", |log| {
            let is_look = |operation: &&Operation| operation.process == "looks";
            let mut again = log.operations.iter().find(is_look).unwrap().clone();
            (again.began_us, again.ended_us) = (700, 701);
            let Outcome::Ok(reply) = &mut again.outcome else { panic!("it was answered") };
            reply.shown.as_mut().unwrap().events -= 1;
            log.operations.push(again);
        });
    }
}
