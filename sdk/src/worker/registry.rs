//! What a worker can run, by name.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
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
    /// How many first polls in a row were short.
    short_polls: AtomicU32,
}

/// A first poll that takes longer holds up too much to be made at once.
const LONG_FIRST_POLL: Duration = Duration::from_micros(200);
/// So many short first polls in a row speak for the next.
const QUICK_AFTER: u32 = 16;

impl RegisteredActivity {
    pub(crate) fn new<D: Send + Sync + 'static>(
        entry: ActivityEntry<D>,
        deps: Arc<dyn Provide<D>>,
        codec: Codec,
    ) -> Self {
        let start = move |attempt, arguments| {
            (entry.run)(ActivityCtx::new(Arc::clone(&deps), attempt, codec), arguments, codec)
        };
        Self { start: Box::new(start), short_polls: AtomicU32::new(0) }
    }

    /// Whether its first poll may be made at once, where it holds everything else up.
    pub(crate) fn is_quick(&self) -> bool {
        self.short_polls.load(Ordering::Relaxed) >= QUICK_AFTER
    }

    /// Takes note of how long a first poll has lasted.
    pub(crate) fn note_first_poll(&self, lasted: Duration) {
        if lasted > LONG_FIRST_POLL {
            self.short_polls.store(0, Ordering::Relaxed);
        } else if !self.is_quick() {
            self.short_polls.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for RegisteredActivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisteredActivity")
            .field("short_polls", &self.short_polls)
            .finish_non_exhaustive()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_activity_with_many_short_first_polls_in_a_row_is_quick() {
        let activity = RegisteredActivity {
            start: Box::new(|_, _| Box::pin(std::future::pending())),
            short_polls: AtomicU32::new(0),
        };
        for _ in 0..QUICK_AFTER {
            assert!(!activity.is_quick());
            activity.note_first_poll(LONG_FIRST_POLL);
        }
        assert!(activity.is_quick());
        activity.note_first_poll(2 * LONG_FIRST_POLL);
        assert!(!activity.is_quick());
    }
}
