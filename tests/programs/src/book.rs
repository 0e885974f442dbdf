//! What customers take down.

use std::sync::{Arc, Mutex};

use onward_checker::log::{Ending, Operation, Read};

/// Where customers take down what they asked and were told.
#[derive(Clone)]
pub struct Book {
    clock: Arc<dyn Fn() -> u64 + Send + Sync>,
    pages: Arc<Mutex<Pages>>,
}

#[derive(Debug, Default)]
struct Pages {
    operations: Vec<Operation>,
    reads: Vec<Read>,
    endings: Vec<Ending>,
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Book").finish_non_exhaustive()
    }
}

impl Book {
    /// An empty book that tells time by this clock, in microseconds.
    pub fn new(clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self { clock: Arc::new(clock), pages: Arc::default() }
    }

    /// The time.
    pub fn now_us(&self) -> u64 {
        (self.clock)()
    }

    /// All that is in it, which it then no longer holds.
    pub fn take(&self) -> (Vec<Operation>, Vec<Read>, Vec<Ending>) {
        let pages = std::mem::take(&mut *self.pages.lock().unwrap());
        (pages.operations, pages.reads, pages.endings)
    }

    /// Takes down what became of something.
    pub fn ending(&self, ending: Ending) {
        self.pages.lock().unwrap().endings.push(ending);
    }

    pub(crate) fn operation(&self, operation: Operation) {
        self.pages.lock().unwrap().operations.push(operation);
    }

    pub(crate) fn read(&self, read: Read) {
        self.pages.lock().unwrap().reads.push(read);
    }
}
