//! One writer at a time.

use std::collections::BTreeMap;

use onward_proto::v1::history_event::Attributes;

use crate::{
    judge::{Judge, Rule},
    log::{Batch, Lack, Log},
};

pub(super) const EPOCHS: Rule = Rule {
    name: "H3",
    says: "along a journal neither epoch nor batch number falls",
    check: epochs,
};

pub(super) const BATCHES: Rule = Rule {
    name: "H4",
    says: "batches of a shard have no gap, each journal row names one that is there, and a completed task is in one row",
    check: batches,
};

pub(super) const FENCE: Rule =
    Rule { name: "O1", says: "along the batches of a shard the epoch never falls", check: fence };

pub(super) const GOES_ON: Rule = Rule {
    name: "O4",
    says: "when commits were lost, the batches of a shard go on from the last one that was left",
    check: goes_on,
};

fn epochs(log: &Log, judge: &mut Judge) {
    for run in &log.runs {
        for pair in run.journal.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            let rises = before.epoch <= after.epoch && before.commit_seq < after.commit_seq;
            judge.must(rises, || {
                format!(
                    "{}: epoch {} batch {}, then epoch {} batch {}",
                    run.run_id, before.epoch, before.commit_seq, after.epoch, after.commit_seq
                )
            });
        }
    }
}

fn batches(log: &Log, judge: &mut Judge) {
    for pair in log.batches.windows(2) {
        if pair[0].shard == pair[1].shard {
            judge.must(pair[0].commit_seq + 1 == pair[1].commit_seq, || {
                format!("a gap between {:?} and {:?}", pair[0], pair[1])
            });
        }
    }
    let known: BTreeMap<_, _> =
        log.batches.iter().map(|batch| ((batch.shard, batch.commit_seq), batch.epoch)).collect();
    for run in &log.runs {
        for row in &run.journal {
            let epoch = known.get(&(run.shard, row.commit_seq));
            judge.must(epoch == Some(&row.epoch), || {
                format!(
                    "{}: a row of batch {} under epoch {}, the batch has {epoch:?}",
                    run.run_id, row.commit_seq, row.epoch
                )
            });
            for (place, record) in row.records.iter().enumerate() {
                if let Some(Attributes::WorkflowTaskCompleted(task)) = &record.attributes {
                    let follow = row.records.len() - place - 1;
                    if follow < task.command_events as usize {
                        judge.say(format!(
                            "{}: {follow} of {} events of a task are in its batch",
                            run.run_id, task.command_events
                        ));
                    }
                }
            }
        }
    }
}

fn fence(log: &Log, judge: &mut Judge) {
    for pair in log.batches.windows(2) {
        if pair[0].shard == pair[1].shard {
            judge.must(pair[0].epoch <= pair[1].epoch, || {
                format!("{:?} stands before {:?}", pair[0], pair[1])
            });
        }
    }
}

/// A node whose memory is ahead of the database would leave a gap, or write under an epoch that the
/// database has never seen. All other rules about batches and histories hold as they do elsewhere:
/// only who was answered about what was lost is excused ([`Log::lost`]).
fn goes_on(log: &Log, judge: &mut Judge) {
    if log.lacks.contains(&Lack::LostCommits) {
        return judge.skip();
    }
    for (place, left) in log.left.iter().enumerate() {
        let is_earlier =
            |later: &Batch| later.shard == left.shard && later.commit_seq < left.commit_seq;
        if log.left[place + 1..].iter().any(is_earlier) {
            continue; // it was lost itself, later
        }
        let mut behind = log
            .batches
            .iter()
            .filter(|batch| batch.shard == left.shard && batch.commit_seq >= left.commit_seq);
        let (last, next) = (behind.next(), behind.next());
        judge.must(last == Some(left), || format!("{left:?} was left, and it is {last:?}"));
        if let Some(next) = next {
            let follows = next.commit_seq == left.commit_seq + 1 && next.epoch >= left.epoch;
            judge.must(follows, || format!("behind {left:?}, which was left, comes {next:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixture::{broken, good},
        judge::Report,
    };

    #[test]
    fn a_node_that_is_ahead_of_its_database_is_found() {
        // It goes on from what was lost,
        broken("O4", |log| log.batches.retain(|batch| batch.commit_seq != 5));
        // in place of what was left,
        broken("O4", |log| log.batches.retain(|batch| batch.commit_seq != 4));
        broken("O4", |log| log.batches[4].epoch = 2);
        // or under an epoch that is over.
        broken("O4", |log| log.batches[5].epoch = 0);
    }

    #[test]
    fn what_goes_on_behind_a_loss_is_looked_at() {
        let looked = |log: &Log| Report::of(log, &[GOES_ON]).looked()["O4"];
        let mut log = good();
        assert_eq!(looked(&log), 2);
        // What is lost itself later is none of it.
        log.left.push(Batch { commit_seq: 2, ..log.left[0] });
        assert_eq!(looked(&log), 2);
        log.left.clear();
        assert_eq!(looked(&log), 0);
    }

    #[test]
    fn two_writers_are_found() {
        broken("H3", |log| log.runs[0].journal[1].epoch = 0);
        broken("H3", |log| log.runs[0].journal[1].commit_seq = 1);
        broken("H4", |log| log.batches.retain(|batch| batch.commit_seq != 1));
        broken("H4", |log| log.runs[0].journal[1].commit_seq = 77);
        broken("O1", |log| log.batches[1].epoch = 9);
    }

    #[test]
    fn a_task_that_is_torn_apart_is_found() {
        broken("H4", |log| {
            let row = &mut log.runs[0].journal[0];
            let torn = row.records.pop().unwrap();
            log.runs[0].journal[1].records.insert(0, torn);
        });
    }
}
