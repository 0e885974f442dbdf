//! The waker of a run: it tells a wake by the run's own code from one by anything else.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Wake,
};

thread_local! {
    /// The waker of the run that this thread drives right now, by address; 0 when it drives none.
    static DRIVING: Cell<usize> = const { Cell::new(0) };
    /// Whether what it drives is the past.
    static REPLAYING: Cell<bool> = const { Cell::new(false) };
    /// Whether the code makes a value that is to be recorded.
    static MAKING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread makes a value that is to be recorded: no replay makes it again, so nothing
/// else may come of it.
pub(crate) fn is_making() -> bool {
    MAKING.try_with(Cell::get).unwrap_or(false)
}

/// Marks this thread as making a value until the guard is dropped.
pub(crate) fn making() -> Making {
    MAKING.set(true);
    Making
}

/// A value is being made.
pub(crate) struct Making;

impl Drop for Making {
    fn drop(&mut self) {
        MAKING.set(false);
    }
}

/// Whether this thread is replaying workflow code.
pub(crate) fn is_replaying() -> bool {
    REPLAYING.try_with(Cell::get).unwrap_or(false)
}

pub(crate) fn set_replaying(replaying: bool) {
    REPLAYING.set(replaying);
}

/// Wakes nobody: it notes that the run has to be polled, and by whom it was woken.
#[derive(Debug, Default)]
pub(crate) struct RunWaker {
    woken: AtomicBool,
    foreign: AtomicBool,
}

impl RunWaker {
    /// Whether the run was woken since the last call.
    pub(crate) fn take(&self) -> bool {
        self.woken.swap(false, Ordering::Relaxed)
    }

    /// Whether anything but the run's own code ever woke it.
    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign.load(Ordering::Acquire)
    }

    /// Marks this thread as driving the run until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Driving {
        Driving { before: DRIVING.replace(Arc::as_ptr(self) as usize), replaying: REPLAYING.get() }
    }
}

impl Wake for RunWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let own = DRIVING.try_with(Cell::get).is_ok_and(|id| id == Arc::as_ptr(self) as usize);
        if own {
            self.woken.store(true, Ordering::Relaxed);
        } else {
            self.foreign.store(true, Ordering::Release);
        }
    }
}

/// This thread drives a run.
pub(crate) struct Driving {
    before: usize,
    replaying: bool,
}

impl Drop for Driving {
    fn drop(&mut self) {
        DRIVING.set(self.before);
        REPLAYING.set(self.replaying);
    }
}
