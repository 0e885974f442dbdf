//! What a client was told is so.

use std::collections::{BTreeMap, BTreeSet};

use onward_proto::v1::{HistoryEvent, WorkflowStatus, history_event::Attributes};
use uuid::Uuid;

use crate::{
    judge::{Judge, Rule},
    log::{Call, Conflict, Log, Operation, Outcome, Refusal, Reply},
};

pub(super) const NO_LOST_ACK: Rule = Rule {
    name: "D1",
    says: "what was acknowledged is on record, once, in the run that the answer named",
    check: no_lost_ack,
};

pub(super) const NO_GHOST: Rule = Rule {
    name: "D2",
    says: "what is on record was asked for, by a request that was not refused",
    check: no_ghost,
};

pub(super) const ONCE: Rule = Rule {
    name: "D3",
    says: "a request that is sent again takes effect once and gets its first answer",
    check: once,
};

pub(super) const ONE_OPEN_RUN: Rule =
    Rule { name: "D5", says: "at most one run of a workflow id is open", check: one_open_run };

pub(super) const READ_YOUR_WRITE: Rule = Rule {
    name: "D6",
    says: "a look that begins after an answer shows what was answered",
    check: read_your_write,
};

/// What a request left on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Started,
    Signalled,
    CancelRequested,
    Terminated,
}

/// The effects on record, by the ids of their requests.
pub(super) fn effects(log: &Log) -> BTreeMap<Uuid, Vec<(Uuid, Effect)>> {
    let mut effects = BTreeMap::<_, Vec<_>>::new();
    for run in &log.runs {
        for record in run.journal.iter().flat_map(|row| &row.records) {
            let Some((request_id, effect)) = effect(record) else { continue };
            effects.entry(request_id).or_default().push((run.run_id, effect));
        }
    }
    effects
}

/// What a record is the effect of.
pub(super) fn effect(record: &HistoryEvent) -> Option<(Uuid, Effect)> {
    let (request_id, effect) = match record.attributes.as_ref()? {
        Attributes::WorkflowExecutionStarted(event) => (&event.request_id, Effect::Started),
        Attributes::SignalReceived(event) => (&event.request_id, Effect::Signalled),
        Attributes::WorkflowExecutionCancelRequested(event) => {
            (&event.request_id, Effect::CancelRequested)
        }
        Attributes::WorkflowExecutionTerminated(event) => (&event.request_id, Effect::Terminated),
        _ => return None,
    };
    Some((Uuid::from_slice(request_id).unwrap_or_default(), effect))
}

/// The request that started another run in the batch that ended this one.
pub(super) fn replaced_by(log: &Log, run_id: Uuid) -> Option<Uuid> {
    let run = log.run(run_id)?;
    let end = run.journal.last()?;
    let nexts = log.runs.iter().filter(|next| {
        next.run_id > run_id
            && next.workflow_id == run.workflow_id
            && next.journal.first().is_some_and(|first| first.commit_seq == end.commit_seq)
    });
    // The run that came instead may have ended in the same batch, and others come after it: the ids
    // of the runs of one workflow id rise.
    let next = nexts.min_by_key(|next| next.run_id)?;
    let start = next.journal.first()?.records.first()?;
    match &start.attributes {
        Some(Attributes::WorkflowExecutionStarted(start)) => {
            Uuid::from_slice(&start.request_id).ok()
        }
        _ => None,
    }
}

fn no_lost_ack(log: &Log, judge: &mut Judge) {
    let effects = effects(log);
    for operation in &log.operations {
        let (Outcome::Ok(reply), Some(request_id)) = (&operation.outcome, operation.request_id)
        else {
            continue;
        };
        if log.is_waived(operation.began_us, operation.ended_us) {
            continue;
        }
        let own = effects.get(&request_id).map(Vec::as_slice).unwrap_or_default();
        let count = |effect| own.iter().filter(|found| **found == (reply.run_id, effect)).count();
        let kept = match operation.call {
            Call::Start { .. } if reply.started => count(Effect::Started) == 1,
            Call::Start { .. } => log.run(reply.run_id).is_some(),
            Call::Signal { .. } => count(Effect::Signalled) == 1,
            // A run is told once; who asks later is acknowledged all the same.
            Call::Cancel { .. } => is_cancel_requested(log, reply.run_id),
            Call::Terminate { .. } => count(Effect::Terminated) == 1,
            Call::Describe => continue,
        };
        judge.must(kept, || format!("{operation:?} left {own:?}"));
    }
}

fn is_cancel_requested(log: &Log, run_id: Uuid) -> bool {
    let records = log.run(run_id).into_iter().flat_map(|run| &run.journal);
    records.flat_map(|row| &row.records).any(|record| {
        matches!(record.attributes, Some(Attributes::WorkflowExecutionCancelRequested(_)))
    })
}

fn no_ghost(log: &Log, judge: &mut Judge) {
    let mut asked = BTreeMap::<Uuid, Vec<&Operation>>::new();
    for operation in &log.operations {
        if let Some(request_id) = operation.request_id {
            asked.entry(request_id).or_default().push(operation);
        }
    }
    for (request_id, own) in effects(log) {
        if let [(run_id, Effect::Terminated)] = own[..]
            && !asked.contains_key(&request_id)
            && let Some(start) = replaced_by(log, run_id)
        {
            // A start that may do so has ended it, under an id that the server drew.
            let takes_over = |operation: &&Operation| {
                let conflict = Conflict::TerminateExisting;
                matches!(operation.call, Call::Start { conflict: own, .. } if own == conflict)
            };
            let asked = asked.get(&start).is_some_and(|asked| asked.iter().any(takes_over));
            judge.must(asked, || format!("{run_id}: replaced by {start}, which may not"));
            continue;
        }
        let asked = asked.get(&request_id).map(Vec::as_slice).unwrap_or_default();
        judge.must(!asked.is_empty(), || format!("nobody asked for {own:?}"));
        let refused = |operation: &&Operation| matches!(operation.outcome, Outcome::Refused(_));
        if !asked.is_empty() && asked.iter().all(refused) {
            judge.say(format!("{asked:?} left {own:?}"));
        }
    }
}

fn once(log: &Log, judge: &mut Judge) {
    let mut answers = BTreeMap::<(&str, Uuid), BTreeSet<(Uuid, bool)>>::new();
    let mut taken = BTreeMap::<Uuid, u64>::new();
    for operation in &log.operations {
        let (Outcome::Ok(reply), Some(request_id)) = (&operation.outcome, operation.request_id)
        else {
            continue;
        };
        if log.is_waived(operation.began_us, operation.ended_us) {
            continue;
        }
        let first = taken.entry(request_id).or_insert(operation.ended_us);
        *first = operation.ended_us.min(*first);
        answers
            .entry((&operation.workflow_id, request_id))
            .or_default()
            .insert((reply.run_id, reply.started));
    }
    for ((workflow_id, request_id), answers) in answers {
        judge.must(answers.len() == 1, || {
            format!("{workflow_id}: request {request_id} was answered with {answers:?}")
        });
    }
    for again in &log.operations {
        // One that was decided anew may be refused for what it did itself.
        let refused = Outcome::Refused(Refusal::Busy);
        if let (Outcome::Refused(_), Some(request_id)) = (&again.outcome, again.request_id)
            && again.outcome != refused
            && let Some(taken_us) = taken.get(&request_id)
            && *taken_us < again.began_us
            && !log.is_waived(*taken_us, again.ended_us)
        {
            judge.say(format!("it was taken before: {again:?}"));
        }
    }
    for (request_id, own) in effects(log) {
        if own.len() > 1 {
            judge.say(format!("request {request_id} took effect more than once: {own:?}"));
        }
    }
}

fn one_open_run(log: &Log, judge: &mut Judge) {
    for snapshot in &log.snapshots {
        judge.look();
        let mut open = BTreeMap::new();
        for (workflow_id, run_id) in &snapshot.open {
            if let Some(other) = open.insert(workflow_id, run_id) {
                judge.say(format!(
                    "{workflow_id}: {other} and {run_id} are open at {}",
                    snapshot.at_us
                ));
            }
        }
    }
}

fn read_your_write(log: &Log, judge: &mut Judge) {
    let looks: Vec<_> =
        log.operations.iter().filter(|operation| operation.call == Call::Describe).collect();
    for write in &log.operations {
        let Outcome::Ok(Reply { run_id, .. }) = write.outcome else { continue };
        let ends = matches!(write.call, Call::Terminate { .. });
        if !ends && !matches!(write.call, Call::Start { .. }) {
            continue;
        }
        for look in &looks {
            if look.workflow_id != write.workflow_id
                || look.began_us <= write.ended_us
                || log.is_waived(write.began_us, look.ended_us)
            {
                continue;
            }
            let shown = match look.outcome {
                Outcome::Ok(shown) => Some(shown),
                Outcome::Refused(_) => None,
                Outcome::Unknown => continue,
            };
            let stale = match shown {
                None => true,
                Some(reply) => {
                    ends && reply.run_id == run_id
                        && reply.shown.is_some_and(|shown| shown.status == WorkflowStatus::Running)
                }
            };
            judge.must(!stale, || format!("{look:?} began after {write:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixture::{broken, good, open_run},
        judge::Report,
        log::{Reuse, Snapshot},
        rules::RULES,
    };

    #[test]
    fn lost_acks_are_found() {
        for call in ["start", "signal", "cancel", "terminate"] {
            broken("D1", |log| {
                for run in &mut log.runs {
                    for row in &mut run.journal {
                        row.records.retain(|record| {
                            let kind = match &record.attributes {
                                Some(Attributes::WorkflowExecutionStarted(_)) => "start",
                                Some(Attributes::SignalReceived(_)) => "signal",
                                Some(Attributes::WorkflowExecutionCancelRequested(_)) => "cancel",
                                Some(Attributes::WorkflowExecutionTerminated(_)) => "terminate",
                                _ => "",
                            };
                            kind != call
                        });
                    }
                }
            });
        }
    }

    #[test]
    fn ghosts_are_found() {
        broken("D2", |log| log.operations[0].request_id = Some(Uuid::from_u128(1234)));
        broken("D2", |log| log.operations[0].outcome = Outcome::Refused(Refusal::Invalid));
    }

    #[test]
    fn a_start_that_replaces_a_run_although_it_may_not_is_found() {
        broken("D2", |log| {
            let takes_over = log.operations.iter_mut().find(|one| one.process == "takes over");
            let conflict = Conflict::Fail;
            takes_over.unwrap().call = Call::Start { reuse: Reuse::Allow, conflict };
        });
    }

    #[test]
    fn a_start_that_comes_later_in_the_same_batch_has_replaced_nobody() {
        let mut log = good();
        let takes_over = log.operations.iter().find(|one| one.process == "takes over").unwrap();
        let request_id = Uuid::from_u128(205);
        let mut later = takes_over.clone();
        later.request_id = Some(request_id);
        later.call = Call::Start { reuse: Reuse::Allow, conflict: Conflict::Fail };
        let mut run = open_run(&mut log).clone();
        run.run_id = Uuid::from_u128(5);
        let start = &mut run.journal[0].records[0];
        start.time_us += 1;
        let Some(Attributes::WorkflowExecutionStarted(started)) = &mut start.attributes else {
            panic!("it begins with {start:?}");
        };
        started.request_id = request_id.as_bytes().to_vec().into();
        log.operations.push(later);
        // A list of runs has the newest first.
        log.runs.insert(0, run);
        let rules: Vec<_> = RULES.iter().filter(|rule| rule.name == "D2").copied().collect();
        assert_eq!(Report::of(&log, &rules).violations(), []);
    }

    #[test]
    fn two_answers_or_two_effects_are_found() {
        broken("D3", |log| {
            let mut again = log.operations[0].clone();
            let Outcome::Ok(reply) = &mut again.outcome else { panic!("it was answered") };
            reply.run_id = Uuid::from_u128(4321);
            log.operations.push(again);
        });
        broken("D3", |log| {
            let mut again = log.operations[0].clone();
            again.outcome = Outcome::Refused(Refusal::AlreadyExists);
            (again.began_us, again.ended_us) = (900, 901);
            log.operations.push(again);
        });
        broken("D3", |log| {
            let signal = log.runs[0].journal[1].records[0].clone();
            log.runs[0].journal[1].records.insert(0, signal);
        });
    }

    #[test]
    fn two_open_runs_are_found() {
        broken("D5", |log| {
            let open = [1, 2].map(|run| ("w".to_owned(), Uuid::from_u128(run)));
            log.snapshots.push(Snapshot { at_us: 5, open: open.into() });
        });
    }

    #[test]
    fn stale_looks_are_found() {
        let look = |log: &mut Log, change: fn(&mut Operation)| {
            let is_look = |operation: &&mut Operation| operation.call == Call::Describe;
            change(log.operations.iter_mut().rfind(is_look).unwrap());
        };
        broken("D6", |log| {
            look(log, |look| look.outcome = Outcome::Refused(Refusal::NotOpen));
        });
        broken("D6", |log| {
            look(log, |look| {
                let Outcome::Ok(reply) = &mut look.outcome else { panic!("it was answered") };
                reply.shown.as_mut().unwrap().status = WorkflowStatus::Running;
            });
        });
    }
}
