//! The workflow that is simulated: what it does comes with its start, so that its result is known.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use onward::{prelude::*, wf};
use serde::{Deserialize, Serialize};

/// Says that an order may go on.
pub(crate) const APPROVED: Signal<u64> = Signal::new("approved");

/// What one run is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
}

/// A part of a run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Step {
    /// An activity whose first attempts fail.
    Work(Work),
    /// Two of them at once.
    Both(Work, Work),
    /// An activity inside the workflow's worker.
    Quick(Work),
    /// A durable timer.
    Sleep { secs: u64 },
    /// A message from outside, which brings this value.
    Approval { value: u64 },
}

/// One activity.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) value: u64,
    pub(crate) fails: u32,
    pub(crate) takes_ms: u64,
}

impl Plan {
    /// What the run returns: each part counted once.
    pub(crate) fn total(&self) -> u64 {
        self.steps
            .iter()
            .map(|step| match step {
                Step::Work(work) | Step::Quick(work) => work.value,
                Step::Both(one, other) => one.value + other.value,
                Step::Sleep { .. } => 0,
                Step::Approval { value } => *value,
            })
            .sum()
    }

    /// How long its timers take.
    pub(crate) fn sleeps(&self) -> Duration {
        let secs = self.steps.iter().map(|step| match step {
            Step::Sleep { secs } => *secs,
            _ => 0,
        });
        Duration::from_secs(secs.sum())
    }

    /// How many activities the server hands out.
    pub(crate) fn handed_out(&self) -> usize {
        let count = self.steps.iter().map(|step| match step {
            Step::Work(_) => 1,
            Step::Both(..) => 2,
            Step::Quick(_) | Step::Sleep { .. } | Step::Approval { .. } => 0,
        });
        count.sum()
    }

    /// How many activities run inside the workflow's worker.
    pub(crate) fn local(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step, Step::Quick(_))).count()
    }

    /// The values of its approvals, in order.
    pub(crate) fn approvals(&self) -> Vec<u64> {
        self.steps
            .iter()
            .filter_map(|step| match step {
                Step::Approval { value } => Some(*value),
                _ => None,
            })
            .collect()
    }
}

/// What the activities need.
#[derive(Deps)]
pub(crate) struct Shop {
    pub(crate) ledger: Ledger,
}

/// Every attempt that ran, in the order in which they began.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Vec<String>>>);

impl Ledger {
    fn write(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// How many calls there were, however often each was tried.
    pub(crate) fn keys(&self) -> usize {
        let lines = self.lines();
        let keys = lines.iter().filter_map(|line| line.split_once(' ').map(|(key, _)| key));
        keys.collect::<BTreeSet<_>>().len()
    }
}

#[activity(timeout = "30s", retry(initial = "500ms", max_interval = "20s", max_attempts = 50))]
pub(crate) async fn work(ctx: &ActivityCtx<Ledger>, work: Work) -> onward::Result<u64> {
    ctx.write(format!("{} attempt {}", ctx.idempotency_key(), ctx.attempt()));
    tokio::time::sleep(Duration::from_millis(work.takes_ms)).await;
    if ctx.attempt() <= work.fails {
        return Err(onward::Error::msg("not this time"));
    }
    Ok(work.value)
}

#[workflow]
pub(crate) async fn order(ctx: &Ctx, plan: Plan) -> onward::Result<u64> {
    let mut total = 0;
    for step in plan.steps {
        match step {
            Step::Work(one) => total += work(ctx, one).await?,
            Step::Both(one, other) => {
                let (one, other) = wf::try_join!(work(ctx, one), work(ctx, other))?;
                total += one + other;
            }
            Step::Quick(one) => total += work(ctx.local(), one).await?,
            Step::Sleep { secs } => ctx.sleep(Duration::from_secs(secs)).await,
            Step::Approval { value } => {
                let approved = ctx.recv(APPROVED).await;
                if approved != value {
                    return Err(onward::Error::msg(format!("approval {approved}, want {value}")));
                }
                total += approved;
            }
        }
    }
    Ok(total)
}
