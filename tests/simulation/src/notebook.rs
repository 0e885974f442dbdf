//! Where activities and workflow code of a world take notes.

use std::{
    cell::RefCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use onward_programs::notes::{self, Note, Notebook, Noted};

use crate::diary::Diary;

/// All notes of a world.
pub type Notes = Arc<Mutex<Vec<Noted>>>;

thread_local! {
    /// Where workflow code of this thread's world takes notes.
    static OPEN: RefCell<Option<Arc<dyn Notebook>>> = const { RefCell::new(None) };
}

/// What one process takes notes with, for as long as it lives.
#[derive(Debug)]
pub struct Pen {
    diary: Diary,
    notes: Notes,
    alive: AtomicBool,
}

impl Pen {
    /// A process begins.
    pub fn new(diary: &Diary, notes: &Notes) -> Arc<Self> {
        let (diary, notes) = (diary.clone(), Arc::clone(notes));
        Arc::new(Self { diary, notes, alive: AtomicBool::new(true) })
    }

    /// Its process is gone.
    pub fn lay_down(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    /// Workflow code on this thread takes its notes with it.
    pub fn lend(self: Arc<Self>) {
        OPEN.replace(Some(self));
        notes::open_with(|| OPEN.with_borrow(Clone::clone));
    }
}

/// Workflow code on this thread takes no notes any more.
pub fn close() {
    OPEN.replace(None);
}

impl Notebook for Pen {
    fn take(&self, note: Note) {
        if self.alive.load(Ordering::Relaxed) {
            let at_us = self.diary.now_us();
            self.notes.lock().unwrap().push(Noted { at_us, note });
        }
    }
}
