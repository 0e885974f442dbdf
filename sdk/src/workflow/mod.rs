//! What workflow code may call.

mod activity;
mod cancel;
mod condition;
mod random;
mod record;
mod signal;
mod state;
mod timer;
pub mod wf;

use std::{
    panic::Location,
    rc::Rc,
    time::{Duration, SystemTime},
};

use onward_proto::RunId;

pub use self::{
    activity::{Call, LocalCall, LocalCtx},
    cancel::{Cancellable, Shield},
    condition::{Condition, Until},
    random::Rng,
    record::Record,
    signal::{Recv, Signal},
    state::State,
    timer::{Sleep, Timeout},
};
use crate::machine::core::Core;

/// Where a workflow runs: its calls, its time, its randomness, its messages.
pub struct Ctx {
    pub(crate) core: Rc<Core>,
}

impl Ctx {
    pub(crate) fn new(core: Rc<Core>) -> Self {
        Self { core }
    }

    /// A durable timer: it survives restarts, fires once, and never early. The longest is a hundred
    /// years; what is longer is cut to that.
    #[track_caller]
    pub fn sleep(&self, duration: Duration) -> Sleep<'_> {
        Sleep::new(self, duration, Location::caller())
    }

    /// Gives `future` this long. The future is polled first; the timer starts only if that is
    /// pending.
    #[track_caller]
    pub fn timeout<F: Future>(&self, duration: Duration, future: F) -> Timeout<'_, F> {
        Timeout::new(self.sleep(duration), future)
    }

    /// The time at which the server handed out this step: the same at every replay, constant
    /// between awaits that wait, never going back.
    pub fn now(&self) -> SystemTime {
        let since_epoch = Duration::from_micros(self.core.now_us().unsigned_abs());
        SystemTime::UNIX_EPOCH + since_epoch
    }

    /// The run's own randomness: the same at every replay.
    pub fn rng(&self) -> Rng<'_> {
        Rng::new(self, None)
    }

    /// A stream of randomness of its own: draws from it do not shift those from any other.
    pub fn rng_named<'c>(&'c self, name: &'c str) -> Rng<'c> {
        Rng::new(self, Some(name))
    }

    /// A random UUID (version 4), the same at every replay.
    pub fn uuid(&self) -> uuid::Uuid {
        let mut bytes = [0; 16];
        rand_core::RngCore::fill_bytes(&mut self.rng(), &mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }

    /// Waits until `condition` gives `true` or `Some`. It is asked again after every event of the
    /// run.
    pub fn until<R: Condition, F: FnMut() -> R>(&self, condition: F) -> Until<'_, F> {
        Until::new(self, condition)
    }

    /// Makes a value once and records it: a replay finds the recorded one, and does not call
    /// `make`. So `make` may look at the run and its state and do nothing else with them: a call, a
    /// draw of its randomness or a changed [`State`] fails the task.
    #[track_caller]
    pub fn record<T, F: FnOnce() -> T>(&self, make: F) -> Record<'_, F> {
        Record::new(self, make, Location::caller())
    }

    /// Runs `future` until a cancel request arrives; then it is dropped, and what it waits for is
    /// cancelled.
    pub fn cancellable<F: Future>(&self, future: F) -> Cancellable<'_, F> {
        Cancellable::new(self, future)
    }

    /// Runs `future` to its end: a cancel request that arrives meanwhile is held back until then.
    pub fn shield<F: Future>(&self, future: F) -> Shield<'_, F> {
        Shield::new(self, future)
    }

    /// Whether somebody has asked this run to stop.
    pub fn cancel_requested(&self) -> bool {
        self.core.is_cancel_requested()
    }

    /// Calls given this run inside the workflow's own worker.
    pub fn local(&self) -> LocalCtx<'_> {
        LocalCtx(self)
    }

    /// The next unread signal of this name.
    pub fn recv<T>(&self, signal: Signal<T>) -> Recv<'_, T> {
        Recv::new(self, signal)
    }

    /// The isolation boundary that the run lives in.
    pub fn namespace(&self) -> &str {
        &self.core.run.namespace
    }

    /// The caller's key of this workflow.
    pub fn workflow_id(&self) -> &str {
        &self.core.run.workflow_id
    }

    /// This run.
    pub fn run_id(&self) -> RunId {
        self.core.run.run_id
    }

    /// The registered name of this workflow.
    pub fn workflow_type(&self) -> &str {
        &self.core.run.workflow_type
    }

    /// The task queue that this workflow runs on.
    pub fn task_queue(&self) -> String {
        self.core.task_queue()
    }

    /// Which attempt of the workflow this run is, from 1.
    pub fn attempt(&self) -> u32 {
        self.core.attempt()
    }
}

/// Whether this thread is unwinding: drop code that runs then must have no effect.
pub(crate) fn is_panicking() -> bool {
    std::thread::panicking()
}

impl std::fmt::Debug for Ctx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ctx").field("run", &self.core.run).finish_non_exhaustive()
    }
}
