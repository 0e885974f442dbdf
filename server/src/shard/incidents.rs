//! Which runs somebody should look at.
//!
//! Kept by the lanes of a node beside the runs, because a run in trouble waits for its next try
//! outside memory. A lane that has loaded learns of its hot runs at once, of a cold one when the next
//! attempt of its activity is due.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use onward_proto::RunId;

/// The runs of a node that have an incident.
#[derive(Debug, Default)]
pub(crate) struct Incidents(Mutex<BTreeSet<RunId>>);

impl Incidents {
    /// A run has an incident, or has none any more. Tells how many more have one.
    pub(crate) fn set(&self, run_id: RunId, incident: bool) -> i64 {
        let mut runs = self.runs();
        if incident { i64::from(runs.insert(run_id)) } else { -i64::from(runs.remove(&run_id)) }
    }

    pub(crate) fn contains(&self, run_id: RunId) -> bool {
        self.runs().contains(&run_id)
    }

    /// The lane of these slots has ended; the next one finds out by itself. Tells how many more
    /// have an incident now.
    pub(crate) fn forget(&self, slots: &Range<u16>) -> i64 {
        let mut runs = self.runs();
        let before = runs.len();
        runs.retain(|run_id| !slots.contains(&run_id.slot().get()));
        runs.len() as i64 - before as i64
    }

    fn runs(&self) -> MutexGuard<'_, BTreeSet<RunId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
