//! Nobody is told less than somebody was told before.
//!
//! Answers carry no epoch, but each shows what it rests on. The batches of a shard are in one order,
//! so who was told of one of them was told of all before it: from then on nobody may be shown a run
//! of this shard as it was before that batch, whoever asks whichever server. An owner that has been
//! replaced and goes on to answer does just that, as soon as the new one has written something.

use std::collections::BTreeMap;

use onward_proto::v1::{HistoryEvent, history_event::Attributes};
use uuid::Uuid;

use super::{acks, activities, history};
use crate::{
    judge::{Judge, Rule},
    log::{Call, Execution, Lack, Log, Operation, Outcome, Read, Refusal, Run},
};

pub(super) const NO_STALE_ANSWER: Rule = Rule {
    name: "O2",
    says: "once something of a shard is known, nobody is shown a run of it, or given a call to do, as it was before",
    check: no_stale_answer,
};

/// What a server hands out is begun within this time, unless something holds it up on its way.
const ON_ITS_WAY_US: u64 = 5_000_000;

fn no_stale_answer(log: &Log, judge: &mut Judge) {
    let store = Store::of(log);
    let known = Known::of(log, &store);
    for read in &log.reads {
        known.judge_read(&store, read, log, judge);
    }
    for look in log.operations.iter().filter(|operation| operation.call == Call::Describe) {
        known.judge_look(&store, look, log, judge);
    }
    if !log.lacks.contains(&Lack::Held) {
        for execution in log.executions.iter().filter(|execution| !execution.local) {
            known.judge_execution(&store, execution, log, judge);
        }
    }
}

/// A run, batch by batch.
struct Past {
    shard: i32,
    /// Each batch, and how long the history was behind it.
    lengths: Vec<(u64, u64)>,
    /// The batches that scheduled its calls, by their numbers.
    scheduled: BTreeMap<u32, u64>,
    /// The batches that closed its calls, by their numbers.
    closed_calls: BTreeMap<u32, u64>,
    /// The batch that closed the run.
    closed: Option<u64>,
}

impl Past {
    fn of(run: &Run) -> Self {
        let mut past = Self {
            shard: run.shard,
            lengths: Vec::new(),
            scheduled: BTreeMap::new(),
            closed_calls: BTreeMap::new(),
            closed: None,
        };
        // Facts are numbered when a task takes them, and all others in the order of the journal.
        let mut numbered = run.history.iter().filter(|event| !is_fact(event));
        let mut length = 0;
        for row in &run.journal {
            let batch = row.commit_seq;
            for record in &row.records {
                if !is_fact(record)
                    && let Some(event) = numbered.next()
                {
                    length = event.event_id;
                }
                let Some(attributes) = &record.attributes else { continue };
                if let Attributes::ActivityScheduled(event) = attributes {
                    past.scheduled.insert(event.number, batch);
                }
                if let Some((number, _)) = activities::closes(attributes) {
                    past.closed_calls.entry(number).or_insert(batch);
                }
                if history::closes(attributes).is_some() {
                    past.closed = Some(batch);
                }
            }
            past.lengths.push((batch, length));
        }
        past
    }

    /// The batch that started it.
    fn first(&self) -> Option<u64> {
        self.lengths.first().map(|(batch, _)| *batch)
    }

    /// The first batch behind which its history has so many events.
    fn with(&self, events: u64) -> Option<u64> {
        self.lengths.iter().find(|(_, length)| *length >= events).map(|(batch, _)| *batch)
    }
}

fn is_fact(event: &HistoryEvent) -> bool {
    let Some(attributes) = &event.attributes else { return false };
    activities::closes(attributes).is_some()
        || matches!(
            attributes,
            Attributes::SignalReceived(_)
                | Attributes::WorkflowExecutionCancelRequested(_)
                | Attributes::TimerFired(_)
        )
}

/// What is on record.
struct Store<'a> {
    runs: BTreeMap<Uuid, Past>,
    /// The runs of each workflow, in their order.
    workflows: BTreeMap<&'a str, Vec<Uuid>>,
    /// Shard and batch in which a request took effect.
    requests: BTreeMap<Uuid, (i32, u64)>,
}

impl<'a> Store<'a> {
    fn of(log: &'a Log) -> Self {
        let mut requests = BTreeMap::new();
        let mut workflows = BTreeMap::<_, Vec<_>>::new();
        for run in &log.runs {
            for row in &run.journal {
                for (request_id, _) in row.records.iter().filter_map(acks::effect) {
                    requests.entry(request_id).or_insert((run.shard, row.commit_seq));
                }
            }
            workflows.entry(run.workflow_id.as_str()).or_default().push(run.run_id);
        }
        let runs: BTreeMap<_, _> = log.runs.iter().map(|run| (run.run_id, Past::of(run))).collect();
        for own in workflows.values_mut() {
            own.sort_by_key(|run_id| (runs[run_id].first(), *run_id));
        }
        Self { runs, workflows, requests }
    }
}

/// Of each shard when the newest batch that somebody had been told of was which.
struct Known(BTreeMap<i32, Vec<(u64, u64)>>);

impl Known {
    fn of(log: &Log, store: &Store<'_>) -> Self {
        let mut told = BTreeMap::<i32, Vec<(u64, u64)>>::new();
        let mut tell = |shard, batch: Option<u64>, began_us, ended_us| {
            if let Some(batch) = batch
                && !log.is_waived(began_us, ended_us)
            {
                told.entry(shard).or_default().push((ended_us, batch));
            }
        };
        for operation in &log.operations {
            let Outcome::Ok(reply) = &operation.outcome else { continue };
            let (began_us, ended_us) = (operation.began_us, operation.ended_us);
            if let Some((shard, batch)) =
                operation.request_id.and_then(|request_id| store.requests.get(&request_id))
            {
                tell(*shard, Some(*batch), began_us, ended_us);
            }
            if let Some(run) = store.runs.get(&reply.run_id) {
                let events = reply.shown.map_or(1, |shown| shown.events);
                tell(run.shard, run.with(events), began_us, ended_us);
            }
        }
        for read in &log.reads {
            if let Some(run) = store.runs.get(&read.run_id) {
                let batch = run.with(read.events.len() as u64);
                tell(run.shard, batch, read.began_us, read.ended_us);
            }
        }
        for execution in log.executions.iter().filter(|execution| !execution.local) {
            if let Some(run) = store.runs.get(&execution.run_id) {
                let batch = run.scheduled.get(&execution.number).copied();
                tell(run.shard, batch, execution.began_us, execution.began_us);
            }
        }
        for told in told.values_mut() {
            told.sort_unstable();
            let mut newest = 0;
            for (_, batch) in told {
                newest = newest.max(*batch);
                *batch = newest;
            }
        }
        Self(told)
    }

    fn of_shard(&self, shard: i32) -> &[(u64, u64)] {
        self.0.get(&shard).map_or(&[], Vec::as_slice)
    }

    /// Whether somebody had been told of this batch before.
    fn has(&self, shard: i32, batch: Option<u64>, before_us: u64) -> bool {
        batch
            .and_then(|batch| self.since(shard, batch))
            .is_some_and(|since_us| since_us < before_us)
    }

    /// Since when somebody has been told of this batch.
    fn since(&self, shard: i32, batch: u64) -> Option<u64> {
        let told = self.of_shard(shard);
        told.get(told.partition_point(|(_, newest)| *newest < batch)).map(|(at_us, _)| *at_us)
    }

    fn judge_read(&self, store: &Store<'_>, read: &Read, log: &Log, judge: &mut Judge) {
        let Some(run) = store.runs.get(&read.run_id) else { return };
        if log.is_waived(read.began_us, read.ended_us) {
            return;
        }
        let events = read.events.len() as u64;
        let more = run.with(events + 1);
        judge.must(!self.has(run.shard, more, read.began_us), || {
            let (run_id, began_us) = (read.run_id, read.began_us);
            format!("{run_id}: {events} events are read at {began_us}, and batch {more:?} is known")
        });
    }

    fn judge_look(&self, store: &Store<'_>, look: &Operation, log: &Log, judge: &mut Judge) {
        let own = store.workflows.get(look.workflow_id.as_str()).map_or(&[][..], Vec::as_slice);
        let (behind, events) = match &look.outcome {
            Outcome::Ok(reply) => {
                let Some(nth) = own.iter().position(|run_id| *run_id == reply.run_id) else {
                    return; // D7 says so
                };
                (&own[nth..], reply.shown.map_or(0, |shown| shown.events))
            }
            Outcome::Refused(Refusal::NotOpen) => (own, 0),
            Outcome::Refused(_) | Outcome::Unknown => return,
        };
        let mut behind = behind.iter().map(|run_id| &store.runs[run_id]);
        let Some(run) = behind.next() else { return };
        if log.is_waived(look.began_us, look.ended_us) {
            return;
        }
        // What it would have shown if it had shown more: of this run, or the one that came next.
        let more = [run.with(events + 1), behind.next().and_then(Past::first)];
        let stale = more.iter().find(|batch| self.has(run.shard, **batch, look.began_us));
        judge.must(stale.is_none(), || format!("batch {stale:?} is known, and then {look:?}"));
    }

    fn judge_execution(
        &self,
        store: &Store<'_>,
        execution: &Execution,
        log: &Log,
        judge: &mut Judge,
    ) {
        let Some(run) = store.runs.get(&execution.run_id) else { return };
        let over = run.closed_calls.get(&execution.number).copied().or(run.closed);
        let Some(known_us) = over.and_then(|batch| self.since(run.shard, batch)) else { return };
        let began_us = execution.began_us;
        if log.is_waived(known_us.min(began_us), began_us) {
            return;
        }
        let is_held =
            log.held.iter().any(|window| known_us <= window.to_us && window.from_us <= began_us);
        let in_time = began_us <= known_us + ON_ITS_WAY_US;
        judge.must(in_time || is_held, || {
            format!("that it is over is known since {known_us}, and then {execution:?}")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixture::{broken, good},
        judge::Report,
        log::{Shown, Window},
        rules::RULES,
    };

    /// A look at the run of `one` behind everything, which shows so many events.
    fn look(log: &Log, workflow_id: &str, change: impl FnOnce(&mut Operation)) -> Operation {
        let is_look = |operation: &&Operation| operation.call == Call::Describe;
        let mut look = log.operations.iter().rfind(is_look).unwrap().clone();
        look.workflow_id = workflow_id.into();
        (look.began_us, look.ended_us) = (900, 901);
        change(&mut look);
        look
    }

    fn shows(run_id: u128, status: onward_proto::v1::WorkflowStatus, events: u64) -> Outcome {
        let shown = Shown { status, events, closed_at_us: 0 };
        let run_id = Uuid::from_u128(run_id);
        Outcome::Ok(crate::log::Reply { run_id, started: false, shown: Some(shown) })
    }

    fn report(log: &Log) -> Report {
        let rules: Vec<_> = RULES.iter().filter(|rule| rule.name == "O2").copied().collect();
        Report::of(log, &rules)
    }

    #[test]
    fn answers_of_an_owner_that_was_replaced_are_found() {
        use onward_proto::v1::WorkflowStatus::{Running, Terminated};

        // Less than a reader of the run has got, shown to who looks at it.
        broken("O2", |log| {
            let look = look(log, "one", |look| look.outcome = shows(1, Running, 6));
            log.operations.push(look);
        });
        // Less than there must have been when another run of the shard was told of.
        broken("O2", |log| log.runs[0].journal[2].commit_seq = 3);
        // A run that another has replaced, and none where there is one.
        broken("O2", |log| {
            let look = look(log, "shared", |look| look.outcome = shows(2, Terminated, 3));
            log.operations.push(look);
        });
        broken("O2", |log| {
            let look = look(log, "one", |look| look.outcome = Outcome::Refused(Refusal::NotOpen));
            log.operations.push(look);
        });
        // What a worker has begun is known as well.
        broken("O2", |log| {
            log.operations.clear();
            log.reads.truncate(1);
            log.reads[0].events.truncate(2);
        });
    }

    #[test]
    fn a_call_that_is_handed_out_when_it_is_known_to_be_over_is_found() {
        let late = |log: &mut Log| log.executions[0].began_us = 20_000_000;
        broken("O2", late);
        let mut log = good();
        late(&mut log);
        log.held.push(Window { from_us: 0, to_us: 10_000_000 });
        assert_eq!(report(&log).violations(), []);
        log.held.clear();
        log.lacks.push(Lack::Held);
        assert_eq!(report(&log).violations(), []);
    }

    #[test]
    fn all_who_are_told_something_are_looked_at() {
        let looked = |log: &Log| report(log).looked()["O2"];
        let log = good();
        let looks = log.operations.iter().filter(|operation| operation.call == Call::Describe);
        let all = log.reads.len() + looks.count() + log.executions.len();
        assert_eq!(looked(&log), all as u64);
        let nobody = Log { reads: Vec::new(), executions: Vec::new(), ..log };
        assert_eq!(looked(&nobody), (all - 5) as u64);
    }

    #[test]
    fn who_was_told_what_was_lost_later_proves_nothing() {
        let mut log = good();
        log.runs[0].journal[2].commit_seq = 3;
        assert_ne!(report(&log).violations(), []);
        log.lost.push(Window { from_us: 0, to_us: 10_000 });
        assert_eq!(report(&log).violations(), []);
    }
}
