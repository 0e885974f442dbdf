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
    random: Arc<Mutex<fastrand::Rng>>,
    process: Option<SimulatedProcess>,
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").finish_non_exhaustive()
    }
}

impl Env {
    /// The machine's clock and a random seed.
    pub fn system() -> Self {
        Self::new(Arc::new(SystemBootClock), fastrand::Rng::new())
    }

    /// A given clock and seed: the same inputs then give the same outputs.
    pub fn seeded(clock: Arc<dyn BootClock>, seed: u64) -> Self {
        Self::new(clock, fastrand::Rng::with_seed(seed))
    }

    fn new(clock: Arc<dyn BootClock>, random: fastrand::Rng) -> Self {
        Self { clock, random: Arc::new(Mutex::new(random)), process: None }
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
        self.random.lock().unwrap_or_else(PoisonError::into_inner).u64(..)
    }

    /// A random UUID, version 4.
    pub fn random_uuid(&self) -> Uuid {
        let high = self.random();
        let low = self.random();
        uuid::Builder::from_u128(u128::from(high) << 64 | u128::from(low))
            .with_variant(uuid::Variant::RFC4122)
            .with_version(uuid::Version::Random)
            .into_uuid()
    }

    /// 32 random bytes.
    ///
    /// They seed values that become tokens and keys in user code, so on a real node they come from
    /// the operating system; a seeded node draws them from its seed.
    pub fn random_seed(&self) -> [u8; 32] {
        let mut seed = [0; 32];
        for chunk in seed.chunks_exact_mut(16) {
            chunk.copy_from_slice(self.random_uuid().as_bytes());
        }
        seed
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
