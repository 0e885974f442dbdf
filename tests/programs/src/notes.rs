//! What activities and workflow code leave behind, outside of the system under test.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use onward_checker::log::{End, Execution, Wait};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Something that code has seen or done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// An attempt of an activity began.
    Began(Execution),
    /// It ended by itself. One that was dropped does not say so.
    Ended { key: String, attempt: u32, worker: String, end: End },
    /// Workflow code asked for a durable timer; a replay asks again.
    Asked { run_id: Uuid, place: u32, lasts_us: u64 },
    /// The code behind that timer runs; at a replay, again.
    Woke { run_id: Uuid, place: u32 },
}

/// A note, and when it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// Microseconds on the log's clock.
    pub at_us: u64,
    /// What.
    pub note: Note,
}

/// Where notes go.
pub trait Notebook: Send + Sync + 'static {
    /// Takes a note. It is kept when this returns, whatever happens to the process.
    fn take(&self, note: Note);
}

/// Workflow code has no dependencies, so what it sees goes to the notebook that is open on its
/// thread, or to that of the process.
type OpenNotebook = fn() -> Option<Arc<dyn Notebook>>;

static OPEN: OnceLock<OpenNotebook> = OnceLock::new();

/// Says where workflow code finds its notebook. The first one to say so is heard.
pub fn open_with(open: OpenNotebook) {
    OPEN.get_or_init(|| open);
}

/// Takes a note of workflow code.
pub(crate) fn take(note: Note) {
    if let Some(notebook) = OPEN.get().and_then(|open| open()) {
        notebook.take(note);
    }
}

/// Puts notes together: attempts with their ends, and waits with their beginnings.
pub fn assemble(notes: impl IntoIterator<Item = Noted>) -> (Vec<Execution>, Vec<Wait>) {
    let mut executions: Vec<Execution> = Vec::new();
    let mut waits = BTreeMap::<(Uuid, u32), Wait>::new();
    for Noted { at_us, note } in notes {
        match note {
            Note::Began(execution) => executions.push(Execution { began_us: at_us, ..execution }),
            Note::Ended { key, attempt, worker, end } => {
                let begun = executions.iter_mut().rev().find(|execution| {
                    execution.key == key
                        && execution.attempt == attempt
                        && execution.worker == worker
                        && execution.ended.is_none()
                });
                if let Some(begun) = begun {
                    begun.ended = Some((at_us, end));
                }
            }
            Note::Asked { run_id, place, lasts_us } => {
                let fresh = Wait { run_id, place, lasts_us, asked_us: at_us, woke_us: u64::MAX };
                waits.entry((run_id, place)).or_insert(fresh);
            }
            Note::Woke { run_id, place } => {
                if let Some(wait) = waits.get_mut(&(run_id, place)) {
                    wait.woke_us = wait.woke_us.min(at_us);
                }
            }
        }
    }
    let woken = waits.into_values().filter(|wait| wait.woke_us != u64::MAX);
    (executions, woken.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_counts_and_what_did_not_end_stays_open() {
        let run_id = Uuid::from_u128(1);
        let began = |attempt| {
            Note::Began(Execution {
                key: "k".into(),
                run_id,
                number: 1,
                attempt,
                local: false,
                worker: "w".into(),
                began_us: 0,
                ended: None,
            })
        };
        let ended =
            Note::Ended { key: "k".into(), attempt: 2, worker: "w".into(), end: End::Value };
        let asked = Note::Asked { run_id, place: 3, lasts_us: 10 };
        let woke = Note::Woke { run_id, place: 3 };
        let notes = [began(1), asked.clone(), began(2), ended, woke.clone(), asked, woke];
        let noted = notes.into_iter().zip(1..).map(|(note, at_us)| Noted { at_us, note });
        let (executions, waits) = assemble(noted);
        let ends: Vec<_> = executions.iter().map(|one| (one.began_us, one.ended)).collect();
        assert_eq!(ends, [(1, None), (3, Some((4, End::Value)))]);
        assert_eq!(waits, [Wait { run_id, place: 3, lasts_us: 10, asked_us: 2, woke_us: 5 }]);
    }
}
