//! What a node takes from outside: a clock, random numbers, and where its tasks run.
//!
//! Everything above the store and below the sockets asks here, so that a whole node can run in one
//! thread, on Tokio's paused clock and from one seed; stopped and killed like a process, too.

mod process;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinHandle;
use uuid::Uuid;

pub use process::SimulatedProcess;

/// Time since some fixed moment, going on while the machine is suspended.
pub trait BootClock: Send + Sync + 'static {
    /// How long ago that moment was.
    fn boot(&self) -> Duration;
}

/// `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy)]
pub struct SystemBootClock;

impl BootClock for SystemBootClock {
    fn boot(&self) -> Duration {
        let now = clock_gettime(ClockId::Boottime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }
}

/// Tokio's own clock: the one that simulation pauses and moves.
#[derive(Debug, Clone, Copy)]
pub struct TokioBootClock {
    origin: tokio::time::Instant,
}

impl TokioBootClock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { origin: tokio::time::Instant::now() }
    }
}

impl BootClock for TokioBootClock {
    fn boot(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// Clock, randomness and spawning of one node.
#[derive(Clone)]
pub struct Env {
    clock: Arc<dyn BootClock>,
    /// What a seeded node draws from; a real one asks the operating system.
    seeded: Option<Arc<Mutex<fastrand::Rng>>>,
    process: Option<SimulatedProcess>,
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").finish_non_exhaustive()
    }
}

impl Env {
    /// The machine's clock and the operating system's randomness.
    pub fn system() -> Self {
        Self { clock: Arc::new(SystemBootClock), seeded: None, process: None }
    }

    /// A given clock and seed: the same inputs then give the same outputs.
    pub fn seeded(clock: Arc<dyn BootClock>, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { clock, seeded: Some(Arc::new(Mutex::new(random))), process: None }
    }

    /// All tasks belong to this process from now on.
    #[must_use]
    pub fn in_process(self, process: SimulatedProcess) -> Self {
        Self { process: Some(process), ..self }
    }

    /// The time on the node's own clock.
    pub fn boot(&self) -> Duration {
        self.clock.boot()
    }

    /// 64 random bits.
    pub fn random(&self) -> u64 {
        if let Some(seeded) = &self.seeded {
            return seeded.lock().unwrap_or_else(PoisonError::into_inner).u64(..);
        }
        let (high, low) = Uuid::new_v4().as_u64_pair();
        // The bits that all such ids share stand in different places of the two.
        high ^ low.rotate_left(32)
    }

    /// A random UUID, version 4.
    pub fn random_uuid(&self) -> Uuid {
        let Some(seeded) = &self.seeded else { return Uuid::new_v4() };
        let mut random = seeded.lock().unwrap_or_else(PoisonError::into_inner);
        uuid::Builder::from_random_bytes(random.u128(..).to_be_bytes()).into_uuid()
    }

    /// 16 random bytes.
    ///
    /// They seed values that become tokens and keys in user code: who knows those of one run must
    /// not be able to tell those of another.
    pub fn random_seed(&self) -> [u8; 16] {
        self.random_uuid().into_bytes()
    }

    /// Waits on the node's own clock.
    ///
    /// # Cancel safety
    /// Dropping it ends the wait; nothing is lost.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Runs a future beside its maker. It is not stopped when the handle is dropped.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match &self.process {
            None => tokio::spawn(future),
            Some(process) => process.spawn(future),
        }
    }
}
