//! What holds of the open batch in whatever order a lane stages, defers and commits. A list of
//! plain numbers says beside it what should be there.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, time::Duration};

use onward_proto::{
    RunId, Slot,
    v1::{AcceptedRequest, HistoryEvent, TimerFired, history_event::Attributes},
};
use proptest::prelude::*;
use tokio::sync::oneshot;

use super::{
    batch::{Deferred, LAZY, MAX_RECORDS, OpenBatch, Staged, read_row, seal_row},
    message::Refusal,
};
use crate::engine::Decision;

/// Something that a lane may do. Runs are few, so that they meet.
#[derive(Debug, Clone)]
enum Op {
    /// Records are staged.
    Stage(u64, u8),
    /// So many that the batch is soon full.
    Flood(u64),
    /// Only the run's row changes.
    Touch(u64),
    /// Somebody waits.
    Answer(u64),
    /// Somebody waits who is not in a hurry.
    AnswerLazily(u64),
    /// Somebody waits for the run's result, perhaps.
    Closed(u64),
    Hurry(u64),
    Pass(u64),
    /// The batch before is durable: commit if there is reason to.
    Commit,
    /// The same, one run at a time.
    CommitOne,
}

fn op() -> impl Strategy<Value = Op> {
    let run = 0..6_u64;
    prop_oneof![
        20 => (run.clone(), 0..4_u8).prop_map(|(run, count)| Op::Stage(run, count)),
        1 => run.clone().prop_map(Op::Flood),
        4 => run.clone().prop_map(Op::Touch),
        6 => run.clone().prop_map(Op::Answer),
        3 => run.clone().prop_map(Op::AnswerLazily),
        3 => run.clone().prop_map(Op::Closed),
        2 => run.prop_map(Op::Hurry),
        12 => (0..40_u64).prop_map(Op::Pass),
        12 => Just(Op::Commit),
        2 => Just(Op::CommitOne),
    ]
}

/// What should be staged for a run.
#[derive(Debug, Default, PartialEq)]
struct Expected {
    since: Duration,
    urgent: bool,
    records: Vec<u32>,
    requests: usize,
    deferred: usize,
}

#[derive(Default)]
struct Lane {
    open: OpenBatch,
    expected: BTreeMap<RunId, Expected>,
    boot: Duration,
    next_record: u32,
    /// Those who wait, so that nobody has gone.
    waiting: Vec<oneshot::Receiver<Result<crate::engine::Answer, Refusal>>>,
}

fn run(number: u64) -> RunId {
    RunId::new(1, number, Slot::new(0))
}

impl Lane {
    fn play(&mut self, op: &Op) {
        match *op {
            Op::Stage(n, count) => {
                let numbers: Vec<u32> =
                    (0..u32::from(count)).map(|n| self.next_record + n).collect();
                self.next_record += u32::from(count);
                let records = numbers.iter().map(|number| HistoryEvent {
                    attributes: Some(Attributes::TimerFired(TimerFired { number: *number })),
                    ..HistoryEvent::default()
                });
                let mut decision = Decision::default();
                decision.records.extend(records);
                self.stage(n, &decision);
                if count > 0 {
                    self.expect(n).records.extend(numbers);
                }
            }
            Op::Flood(n) => {
                let mut decision = Decision::default();
                decision.requests.resize(MAX_RECORDS / 2 + 1, AcceptedRequest::default());
                self.stage(n, &decision);
                self.expect(n).requests += MAX_RECORDS / 2 + 1;
            }
            Op::Touch(n) => {
                self.open.touch(run(n), self.boot);
                self.expect(n);
            }
            Op::Answer(n) => {
                let deferred = self.answer();
                if self.defer(n, deferred) {
                    self.expect(n).urgent = true;
                }
            }
            Op::AnswerLazily(n) => {
                let deferred = self.answer();
                self.open.defer_lazily(run(n), deferred);
                self.expected.entry(run(n)).and_modify(|expected| expected.deferred += 1);
            }
            Op::Closed(n) => {
                self.defer(n, Deferred::Closed(run(n)));
            }
            Op::Hurry(n) => {
                self.open.hurry(run(n));
                self.expected.entry(run(n)).and_modify(|expected| expected.urgent = true);
            }
            Op::Pass(ms) => self.boot += Duration::from_millis(ms),
            Op::Commit => self.commit(),
            Op::CommitOne => {
                let taken = self.open.take_one();
                let first = self.expected.pop_first();
                same(taken, first.into_iter().collect());
            }
        }
        self.check();
    }

    fn stage(&mut self, n: u64, decision: &Decision) {
        self.open.stage(run(n), decision, self.boot);
    }

    fn answer(&mut self) -> Deferred {
        let (reply, waits) = oneshot::channel();
        self.waiting.push(waits);
        Deferred::Answer(reply, Err(Refusal::Unavailable(String::new())))
    }

    /// What is deferred waits for what is staged, and is given back if nothing is.
    fn defer(&mut self, n: u64, deferred: Deferred) -> bool {
        let is_staged = self.expected.contains_key(&run(n));
        assert_eq!(self.open.defer(run(n), deferred).is_ok(), is_staged);
        self.expected.entry(run(n)).and_modify(|expected| expected.deferred += 1);
        is_staged
    }

    fn expect(&mut self, n: u64) -> &mut Expected {
        let since = self.boot;
        self.expected.entry(run(n)).or_insert_with(|| Expected { since, ..Expected::default() })
    }

    fn is_full(&self) -> bool {
        let count = |expected: &Expected| expected.records.len() + expected.requests;
        self.expected.values().map(count).sum::<usize>() >= MAX_RECORDS
    }

    /// As `Lane::start_commit` does it.
    fn commit(&mut self) {
        if self.open.due_in(self.boot) != Some(Duration::ZERO) {
            return;
        }
        let (boot, full) = (self.boot, self.is_full());
        let all = std::mem::take(&mut self.expected);
        let is_due = |expected: &Expected| {
            full || expected.urgent || boot.saturating_sub(expected.since) >= LAZY
        };
        let (due, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(_, expected)| is_due(expected));
        self.expected = rest;
        assert!(!due.is_empty(), "a commit that was due writes something");
        same(self.open.take(self.boot), due);
    }

    fn check(&self) {
        let boot = self.boot;
        let due = |expected: &Expected| {
            let waits = LAZY.saturating_sub(boot.saturating_sub(expected.since));
            if expected.urgent || self.is_full() { Duration::ZERO } else { waits }
        };
        assert_eq!(self.open.due_in(boot), self.expected.values().map(due).min());
        assert_eq!(self.open.is_full(), self.is_full());
        assert_eq!(self.open.is_empty(), self.expected.is_empty());
        for n in 0..6 {
            assert_eq!(self.open.get(run(n)).is_some(), self.expected.contains_key(&run(n)));
        }
    }
}

/// Nothing is lost on the way into a commit, nothing comes twice, and each run's records keep
/// their order.
fn same(taken: BTreeMap<RunId, Staged>, expected: BTreeMap<RunId, Expected>) {
    assert_eq!(taken.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (staged, expected) in taken.into_values().zip(expected.into_values()) {
        let row = read_row(&seal_row(staged.records, 1, 2)).unwrap();
        let number = |record: &HistoryEvent| match &record.attributes {
            Some(Attributes::TimerFired(fired)) => fired.number,
            other => panic!("nobody staged {other:?}"),
        };
        assert_eq!(row.records.iter().map(number).collect::<Vec<_>>(), expected.records);
        assert_eq!(row.requests.len(), expected.requests);
        assert_eq!(staged.deferred.len(), expected.deferred);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_batch_commits_when_it_is_due_and_loses_nothing(ops in prop::collection::vec(op(), 1..150)) {
        let mut lane = Lane::default();
        for op in &ops {
            lane.play(op);
        }
        // All of it is durable in the end, though nobody asks.
        while !lane.expected.is_empty() {
            lane.play(&Op::Pass(50));
            lane.play(&Op::Commit);
        }
    }
}
