//! What may come of a program.

use std::collections::{BTreeMap, BTreeSet};

use onward_proto::v1::WorkflowStatus;
use serde::{Deserialize, Serialize};

use crate::program::{Do, Fate, Finish, Program, Step, each};

/// What a step saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The step.
    pub id: u32,
    /// What it saw.
    pub what: What,
}

/// What a step can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// The value that an activity returned or that was recorded: the step's own number.
    Value(u32),
    /// The activity failed for good.
    Failed,
    /// Its attempts were used up.
    Exhausted,
    /// One of its timeouts passed.
    TimedOut(TimedOut),
    /// The worker of its last attempt vanished.
    OutcomeUnknown,
    /// Something that no step should see.
    Strange,
    /// A timer fired, or a time limit passed.
    Elapsed,
    /// A signal, with its content.
    Signal(u32),
    /// A cancel request.
    Cancelled,
    /// It is done, and there is nothing to tell.
    Done,
}

/// Which timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimedOut {
    /// Of one attempt.
    StartToClose,
    /// Until a worker takes it.
    ScheduleToStart,
    /// Of all attempts.
    ScheduleToClose,
    /// Between two signs of life.
    Heartbeat,
}

/// How a run ended, as its client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its status.
    pub status: WorkflowStatus,
    /// What it returned, if it completed.
    pub seen: Vec<Seen>,
}

impl Program {
    /// Says what is wrong with how a run of this program ended.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn judge(&self, ended: &Ended) -> Result<(), String> {
        let status = match self.finish {
            Finish::Return => WorkflowStatus::Completed,
            Finish::Fail => WorkflowStatus::Failed,
            Finish::UntilCancelled => WorkflowStatus::Cancelled,
            Finish::UntilTerminated => WorkflowStatus::Terminated,
            Finish::UntilTimedOut { .. } => WorkflowStatus::TimedOut,
        };
        if ended.status != status {
            return Err(format!("it ended as {:?}, not as {status:?}", ended.status));
        }
        if status != WorkflowStatus::Completed {
            return Ok(());
        }
        let mut seen = BTreeMap::new();
        for Seen { id, what } in &ended.seen {
            if seen.insert(*id, *what).is_some() {
                return Err(format!("step {id} was seen twice"));
            }
        }
        let mut wrong = None;
        let mut signals = BTreeSet::new();
        each(&self.steps, &mut |step| {
            let what = seen.remove(&step.id);
            if let Some(What::Signal(value)) = what {
                signals.insert(value);
            }
            if !what.is_some_and(|what| allows(step, what)) {
                wrong.get_or_insert(format!("{step:?} saw {what:?}"));
            }
        });
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        if let Some(stray) = seen.first_key_value() {
            return Err(format!("there is no such step: {stray:?}"));
        }
        if signals != (1..=self.receives()).collect() {
            return Err(format!("{} signals were sent, it saw {signals:?}", self.receives()));
        }
        in_order(&self.steps, &ended.seen)
    }
}

/// Signals that are read one after the other come in the order in which they were sent.
fn in_order(steps: &[Step], seen: &[Seen]) -> Result<(), String> {
    let reads = steps.iter().filter(|step| step.what == Do::Receive);
    let values: Vec<_> = reads
        .filter_map(|step| seen.iter().find(|seen| seen.id == step.id))
        .map(|seen| seen.what)
        .collect();
    let sorted = values.is_sorted_by_key(|what| match what {
        What::Signal(value) => *value,
        _ => 0,
    });
    if sorted { Ok(()) } else { Err(format!("signals came as {values:?}")) }
}

fn allows(step: &Step, what: What) -> bool {
    let value = what == What::Value(step.id);
    match &step.what {
        Do::Work(work) | Do::Local(work) => match work.fate {
            Fate::Value => value,
            Fate::Limited { attempts } => match what {
                What::Value(_) => value && work.fails < attempts,
                What::Exhausted | What::OutcomeUnknown | What::TimedOut(_) => true,
                _ => false,
            },
            Fate::Terminal => what == What::Failed,
            // Its worker may vanish, or the connection to it, before its time is up.
            Fate::TooSlow => matches!(
                what,
                What::TimedOut(TimedOut::StartToClose | TimedOut::Heartbeat) | What::OutcomeUnknown
            ),
            Fate::Deadline => what == What::TimedOut(TimedOut::ScheduleToClose),
            Fate::Unserved => what == What::TimedOut(TimedOut::ScheduleToStart),
            Fate::Endless => false,
        },
        Do::Record | Do::Until(_) => value,
        Do::Sleep { .. } | Do::TimeOut { .. } => what == What::Elapsed,
        Do::Receive => matches!(what, What::Signal(_)),
        Do::Section => what == What::Cancelled,
        Do::Detached(_) | Do::All(_) | Do::First { .. } | Do::Shield(_) => what == What::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Work;

    fn step(id: u32, what: Do) -> Step {
        Step { id, what }
    }

    fn program() -> Program {
        let work = Work { fails: 1, takes_ms: 0, heartbeat_ms: None, fate: Fate::Value };
        let limited = Work { fate: Fate::Limited { attempts: 1 }, ..work };
        let steps = vec![
            step(1, Do::Work(work)),
            step(2, Do::Receive),
            step(3, Do::Receive),
            step(4, Do::All(vec![vec![step(5, Do::Sleep { ms: 1 })], vec![]])),
            step(6, Do::Work(limited)),
        ];
        Program { steps, finish: Finish::Return, unread: 0 }
    }

    fn good() -> Vec<Seen> {
        let what = [
            What::Value(1),
            What::Signal(1),
            What::Signal(2),
            What::Done,
            What::Elapsed,
            What::Exhausted,
        ];
        what.into_iter().zip(1..).map(|(what, id)| Seen { id, what }).collect()
    }

    fn judge(seen: Vec<Seen>) -> Result<(), String> {
        program().judge(&Ended { status: WorkflowStatus::Completed, seen })
    }

    type Spoil = fn(&mut Vec<Seen>);

    #[test]
    fn what_may_come_is_allowed_and_all_else_is_not() {
        assert_eq!(judge(good()), Ok(()));
        let spoilt: [(&str, Spoil); 7] = [
            ("a value of another step", |seen| seen[0].what = What::Value(2)),
            ("a step too few", |seen| seen.truncate(5)),
            ("a step too many", |seen| seen.push(Seen { id: 9, what: What::Done })),
            ("a step twice", |seen| seen.push(seen[0])),
            ("a signal twice", |seen| seen[2].what = What::Signal(1)),
            ("signals out of order", |seen| {
                (seen[1].what, seen[2].what) = (What::Signal(2), What::Signal(1));
            }),
            ("a value that no allowed attempt had", |seen| seen[5].what = What::Value(6)),
        ];
        for (what, spoil) in spoilt {
            let mut seen = good();
            spoil(&mut seen);
            assert!(judge(seen).is_err(), "{what}");
        }
        let failed = Ended { status: WorkflowStatus::Failed, seen: vec![] };
        assert!(program().judge(&failed).is_err());
    }
}
