//! One writer at a time.

use std::collections::BTreeMap;

use onward_proto::v1::history_event::Attributes;

use crate::{
    judge::{Judge, Rule},
    log::Log,
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

#[cfg(test)]
mod tests {
    use crate::fixture::broken;

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
