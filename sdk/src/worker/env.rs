//! What a worker takes from its surroundings, apart from the network: tasks, chance, threads.
//!
//! Time is Tokio's everywhere, so a worker runs on a paused clock as on the real one.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

/// The surroundings of a worker. The default is the real world.
#[derive(Debug, Clone, Default)]
pub struct Env {
    /// Where seeds come from, if all chance must be repeatable.
    seeds: Option<Arc<Mutex<fastrand::Rng>>>,
}

impl Env {
    /// Surroundings in which a worker does the same for the same seed: chance comes from the seed,
    /// and workflow code runs on the executor of the caller, which must be single-threaded and
    /// allow [`spawn_local`](tokio::task::spawn_local).
    pub fn simulated(seed: u64) -> Self {
        Self { seeds: Some(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)))) }
    }

    pub(crate) fn is_simulated(&self) -> bool {
        self.seeds.is_some()
    }

    /// A source of chance for one purpose.
    pub(crate) fn rng(&self) -> fastrand::Rng {
        match &self.seeds {
            None => fastrand::Rng::new(),
            Some(seeds) => {
                let mut seeds = seeds.lock().unwrap_or_else(PoisonError::into_inner);
                fastrand::Rng::with_seed(seeds.u64(..))
            }
        }
    }

    /// Runs a task of the worker's own. It reports by channel, so nobody waits for its handle.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let _ = self;
        drop(tokio::spawn(task));
    }
}
