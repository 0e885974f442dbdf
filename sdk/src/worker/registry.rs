//! What a worker can run, by name.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use onward_proto::v1;

use super::attempts::failure;
use crate::{
    activity::{ActivityCtx, attempt::Attempt},
    definition::{ActivityEntry, AttemptError, AttemptFuture, WorkflowEntry},
    deps::Provide,
    payload::Codec,
};

/// An activity with its dependencies.
pub(crate) struct RegisteredActivity {
    /// Makes an attempt; polls nothing.
    pub(crate) start: Box<dyn Fn(Arc<Attempt>, Vec<v1::Payload>) -> AttemptFuture + Send + Sync>,
    /// Its first poll has once taken long.
    slow: AtomicBool,
}

impl RegisteredActivity {
    pub(crate) fn new<D: Send + Sync + 'static>(
        entry: ActivityEntry<D>,
        deps: Arc<dyn Provide<D>>,
        codec: Codec,
    ) -> Self {
        let start = move |attempt, arguments| {
            (entry.run)(ActivityCtx::new(Arc::clone(&deps), attempt, codec), arguments, codec)
        };
        Self { start: Box::new(start), slow: AtomicBool::new(false) }
    }

    /// Whether its first poll may be made at once, where it holds everything else up.
    pub(crate) fn is_quick(&self) -> bool {
        !self.slow.load(Ordering::Relaxed)
    }

    pub(crate) fn set_slow(&self) {
        self.slow.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for RegisteredActivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisteredActivity").field("slow", &self.slow).finish_non_exhaustive()
    }
}

/// All that a worker can run.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) workflows: BTreeMap<&'static str, WorkflowEntry>,
    pub(crate) activities: BTreeMap<&'static str, Arc<RegisteredActivity>>,
}

impl Registry {
    pub(crate) fn workflow(&self, name: &str) -> Option<WorkflowEntry> {
        self.workflows.get(name).copied()
    }

    pub(crate) fn activity(&self, name: &str) -> Option<Arc<RegisteredActivity>> {
        self.activities.get(name).map(Arc::clone)
    }

    pub(crate) fn workflow_names(&self) -> Vec<String> {
        self.workflows.keys().map(ToString::to_string).collect()
    }

    pub(crate) fn activity_names(&self) -> Vec<String> {
        self.activities.keys().map(ToString::to_string).collect()
    }

    /// What a worker says that was given an activity it does not have. Another worker may have it,
    /// so the attempt is repeated.
    pub(crate) fn unknown_activity(&self, name: &str, identity: &str) -> AttemptError {
        let message = format!(
            "worker {identity} has no activity `{name}`; it has: {}",
            list(&self.activity_names())
        );
        AttemptError { failure: failure("UnknownActivity", message, false), cancelled: false }
    }
}

/// Names in a message for people.
pub(crate) fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
