//! Where activities and workflow code of a world take notes.

use std::{
    cell::RefCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use onward_programs::notes::{self, Note, Notebook, Noted};
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::diary::Diary;

/// Notes that somebody who listens may be behind.
const BEHIND: usize = 256;

/// A note is taken.
#[derive(Debug, Clone, Copy)]
pub struct Happening {
    /// Of this run.
    pub run_id: Uuid,
    /// By the worker at this place, if that is known.
    pub worker: Option<usize>,
    /// Of an activity that began in the middle of a workflow task.
    pub local: bool,
}

/// All notes of a world.
#[derive(Debug, Clone)]
pub struct Notes {
    taken: Arc<Mutex<Vec<Noted>>>,
    happens: broadcast::Sender<Happening>,
}

impl Default for Notes {
    fn default() -> Self {
        Self { taken: Arc::default(), happens: broadcast::channel(BEHIND).0 }
    }
}

impl Notes {
    /// All that were taken, which it then no longer holds.
    pub fn drain(&self) -> impl Iterator<Item = Noted> {
        std::mem::take(&mut *self.taken.lock().unwrap()).into_iter()
    }

    /// Hears what notes are taken from now on.
    pub fn listen(&self) -> broadcast::Receiver<Happening> {
        self.happens.subscribe()
    }
}

thread_local! {
    /// Where workflow code of this thread's world takes notes.
    static OPEN: RefCell<Option<Arc<dyn Notebook>>> = const { RefCell::new(None) };
}

/// What one process takes notes with, for as long as it lives.
#[derive(Debug)]
pub struct Pen {
    diary: Diary,
    notes: Notes,
    /// The worker's place among the workers; `None` for workflow code, which does not know it.
    place: Option<usize>,
    alive: AtomicBool,
}

impl Pen {
    /// A process begins, maybe the worker at this place.
    pub fn new(diary: &Diary, notes: &Notes, place: Option<usize>) -> Arc<Self> {
        let (diary, notes) = (diary.clone(), notes.clone());
        Arc::new(Self { diary, notes, place, alive: AtomicBool::new(true) })
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
            let what = match &note {
                Note::Began(execution) => Some((execution.run_id, execution.local)),
                Note::Asked { run_id, .. } | Note::Woke { run_id, .. } => Some((*run_id, false)),
                Note::Ended { .. } => None,
            };
            if let Some((run_id, local)) = what {
                // Nobody may care.
                let _ = self.notes.happens.send(Happening { run_id, worker: self.place, local });
            }
            self.notes.taken.lock().unwrap().push(Noted { at_us, note });
        }
    }
}
