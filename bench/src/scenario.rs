//! What can be measured: a workload, a form, a store, and how much of it.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scenario {
    /// No step.
    W0,
    /// One step.
    W1,
    /// Five steps, one after the other.
    W5,
    /// Drain a backlog of W1.
    B1,
    /// Drain a backlog of W5.
    B5,
    /// Durable sleeps and how late they end.
    Timers,
    /// From a signal to the result.
    Signals,
    /// What a server without work costs.
    Idle,
    /// Memory of runs that sleep.
    Asleep,
    /// A history through the machine, in this process.
    Replay,
}

/// How a step is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Form {
    /// An activity through a task queue.
    Call,
    /// A local activity in the workflow's own worker.
    Inline,
}

/// Where runs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StoreKind {
    /// A throw-away cluster with fsync on.
    Postgres,
    /// A throw-away file.
    Sqlite,
}

impl Scenario {
    pub(crate) fn default_runs(self) -> usize {
        match self {
            Self::B1 | Self::B5 => 5_000,
            Self::Timers => 20_000,
            Self::Asleep => 100_000,
            Self::Replay => 10_000,
            Self::W0 | Self::W1 | Self::W5 | Self::Signals | Self::Idle => 0,
        }
    }

    pub(crate) fn default_seconds(self) -> f64 {
        if self == Self::Idle { 60.0 } else { 8.0 }
    }

    /// Whether callers wait for results, so that their number matters.
    pub(crate) fn has_callers(self) -> bool {
        matches!(self, Self::W0 | Self::W1 | Self::W5 | Self::Signals)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(f, self)
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(f, self)
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(f, self)
    }
}

/// Writes what the command line calls it.
fn write_name(f: &mut fmt::Formatter<'_>, value: &impl ValueEnum) -> fmt::Result {
    let name = value.to_possible_value().expect("no value is hidden");
    f.pad(name.get_name())
}

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cell {
    pub(crate) scenario: Scenario,
    pub(crate) form: Form,
    pub(crate) store: StoreKind,
    /// Callers, or submitters where nobody waits.
    pub(crate) concurrency: usize,
    /// Workflows where their number is given, events of `replay`.
    pub(crate) runs: usize,
    pub(crate) timer_ms: u64,
    pub(crate) warm_up_s: f64,
    pub(crate) window_s: f64,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.scenario)?;
        match self.scenario {
            Scenario::W1 | Scenario::W5 | Scenario::B1 | Scenario::B5 => {
                write!(f, " {}", self.form)?;
            }
            Scenario::Timers => write!(f, " {}×{} ms", self.runs, self.timer_ms)?,
            Scenario::Asleep => write!(f, " {} runs", self.runs)?,
            Scenario::Replay => write!(f, " {} events", self.runs)?,
            Scenario::Idle => write!(f, " {} s", self.window_s)?,
            Scenario::W0 | Scenario::Signals => {}
        }
        if self.scenario.has_callers() {
            write!(f, " @{}", self.concurrency)?;
        }
        if self.scenario != Scenario::Replay {
            write!(f, " {}", self.store)?;
        }
        Ok(())
    }
}
