//! Who waits for news of a run, and may have gone meanwhile.

use std::collections::BTreeMap;

use onward_proto::RunId;

use super::super::message::{Located, Reply};

/// Somebody who may stop waiting.
pub(super) trait Waiter {
    /// Whether nobody would hear the news.
    fn has_gone(&self) -> bool;
}

impl<T> Waiter for Reply<T> {
    fn has_gone(&self) -> bool {
        self.is_closed()
    }
}

/// Who waits for a run's journal to grow.
#[derive(Debug)]
pub(super) struct Follower {
    /// Rows that it has read.
    pub(super) beyond: u32,
    /// Where to tell it.
    pub(super) reply: Reply<Located>,
}

impl Waiter for Follower {
    fn has_gone(&self) -> bool {
        self.reply.is_closed()
    }
}

/// Those who wait, by run. Whoever asks again and again leaves a waiter that has gone each time: they
/// are forgotten before they are as many again as those who wait.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    by_run: BTreeMap<RunId, Vec<T>>,
    /// How many runs had such when those who had gone were last forgotten.
    left: usize,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { by_run: BTreeMap::new(), left: 0 }
    }
}

impl<T: Waiter> Waiting<T> {
    pub(super) fn add(&mut self, run_id: RunId, waiter: T) {
        if self.by_run.len() >= 2 * self.left + 64 {
            self.by_run.retain(|_, waiting| {
                waiting.retain(|waiter| !waiter.has_gone());
                !waiting.is_empty()
            });
            self.left = self.by_run.len();
        }
        let waiting = self.by_run.entry(run_id).or_default();
        if waiting.len().is_power_of_two() {
            waiting.retain(|waiter| !waiter.has_gone());
        }
        waiting.push(waiter);
    }

    /// All who wait for this run, who wait no more.
    pub(super) fn take(&mut self, run_id: RunId) -> Vec<T> {
        self.by_run.remove(&run_id).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use onward_proto::Slot;
    use tokio::sync::oneshot;

    use super::*;

    fn run(number: u64) -> RunId {
        RunId::new(number, 0, Slot::new(0))
    }

    fn count(waiting: &Waiting<Reply<()>>) -> usize {
        waiting.by_run.values().map(Vec::len).sum()
    }

    #[test]
    fn who_has_gone_is_forgotten_also_of_runs_that_never_change_again() {
        let mut waiting = Waiting::default();
        let (reply, _waits) = oneshot::channel();
        waiting.add(run(0), reply);
        for number in 0..10_000 {
            waiting.add(run(number), oneshot::channel().0);
            waiting.add(run(0), oneshot::channel().0);
            assert!(count(&waiting) < 200, "{}", count(&waiting));
        }
        let told = waiting.take(run(0)).into_iter().filter(|waiter| !waiter.has_gone());
        assert_eq!(told.count(), 1);
        assert!(waiting.take(run(0)).is_empty());
    }
}
