//! Replays saved histories against today's code, without server or runtime.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use onward_proto::{
    RunId,
    v1::{self, history_event::Attributes},
};
use prost::Message;

use crate::{
    definition::{WorkflowEntry, WorkflowSet, workflow_entries},
    machine::{Machine, MachineOptions, RunInfo},
    payload::Codec,
};

/// Replays saved histories: a change of workflow code that open runs would not survive fails here
/// first.
///
/// ```no_run
/// # use onward::Replayer;
/// # fn check(replayer: Replayer) -> Result<(), onward::ReplayError> {
/// replayer.replay_dir("tests/histories")?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Replayer {
    entries: BTreeMap<&'static str, WorkflowEntry>,
    codec: Codec,
    is_strict: bool,
}

/// Why a history does not replay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The file or folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no history.
    #[error("{} is no history: {reason}", path.display())]
    NoHistory {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A folder without a single history proves nothing.
    #[error("{} holds no histories", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// The history does not begin with event 1.
    #[error("the history does not begin with event 1")]
    NoStart,
    /// Events are missing, or not in their order.
    #[error("event {expected} of the history is missing: event {found} is in its place")]
    Gap {
        /// The number of the event that should be there.
        expected: u64,
        /// The number of the one that is.
        found: u64,
    },
    /// No such workflow is registered here.
    #[error("the history is of workflow {workflow_type}, which is not among {registered:?}")]
    UnknownWorkflow {
        /// The workflow of the history.
        workflow_type: String,
        /// The workflows here.
        registered: Vec<&'static str>,
    },
    /// The code does not do what the history says.
    #[error("{report}")]
    Mismatch {
        /// Both sides, with their places.
        report: String,
    },
    /// A history of a folder failed.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<ReplayError>,
    },
}

impl Replayer {
    /// A replayer without workflows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds workflows.
    #[must_use]
    pub fn workflows<S: WorkflowSet>(mut self) -> Self {
        self.entries.extend(workflow_entries::<S>().into_iter().map(|entry| (entry.name, entry)));
        self
    }

    /// The codec of the worker, if it is not JSON. Only hashes of arguments depend on it.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Takes changed arguments of a recorded call for a mismatch too.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.is_strict = true;
        self
    }

    /// Replays one history from event 1. Returns warnings: calls whose arguments have changed,
    /// signals that were skipped.
    ///
    /// # Errors
    /// If the history is not whole, or the code does not do what it says.
    pub fn replay(&self, history: &v1::History) -> Result<Vec<String>, ReplayError> {
        let first = history.events.first().and_then(|event| event.attributes.as_ref());
        let Some(Attributes::WorkflowExecutionStarted(started)) = first else {
            return Err(ReplayError::NoStart);
        };
        let mut numbers = (1..).zip(history.events.iter().map(|event| event.event_id));
        if let Some((expected, found)) = numbers.find(|(expected, found)| expected != found) {
            return Err(ReplayError::Gap { expected, found });
        }
        let entry = self.entries.get(started.workflow_type.as_str()).ok_or_else(|| {
            ReplayError::UnknownWorkflow {
                workflow_type: started.workflow_type.clone(),
                registered: self.entries.keys().copied().collect(),
            }
        })?;
        let run = RunInfo {
            namespace: "default".to_owned(),
            workflow_id: started.workflow_id.clone(),
            run_id: RunId::from_wire(&started.run_id)
                .unwrap_or_else(|_| RunId::from_uuid(uuid::Uuid::nil())),
            workflow_type: started.workflow_type.clone(),
        };
        let options = MachineOptions {
            codec: self.codec,
            strict_arguments: self.is_strict,
            ..MachineOptions::default()
        };
        let mut machine = Machine::new(entry, options, run);
        match machine.replay(history.events.clone()) {
            Ok(()) => Ok(machine.take_notes()),
            Err(failure) => Err(ReplayError::Mismatch { report: failure.failure.message }),
        }
    }

    /// Replays every history of a folder and returns how many there were: files that end in
    /// `.history` (protobuf, as `onward workflow history --output` writes it) or `.json` (as
    /// `--json` prints it).
    ///
    /// # Errors
    /// The first history, by name, that does not replay; a file that is no history; or a folder
    /// without any.
    pub fn replay_dir(&self, path: impl AsRef<Path>) -> Result<usize, ReplayError> {
        let path = path.as_ref();
        let unreadable = |source| ReplayError::Read { path: path.to_owned(), source };
        let mut files = fs::read_dir(path)
            .map_err(unreadable)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(unreadable)?;
        files.retain(|file| is_json(file) || has_ending(file, "history"));
        files.sort();
        for file in &files {
            let history = read(file)?;
            self.replay(&history).map_err(|error| ReplayError::File {
                path: file.clone(),
                source: Box::new(error),
            })?;
        }
        if files.is_empty() {
            return Err(ReplayError::Empty { path: path.to_owned() });
        }
        Ok(files.len())
    }
}

fn has_ending(file: &Path, ending: &str) -> bool {
    file.extension().is_some_and(|own| own == ending)
}

fn is_json(file: &Path) -> bool {
    has_ending(file, "json")
}

fn read(file: &Path) -> Result<v1::History, ReplayError> {
    let no_history = |reason: String| ReplayError::NoHistory { path: file.to_owned(), reason };
    let bytes =
        fs::read(file).map_err(|source| ReplayError::Read { path: file.to_owned(), source })?;
    if is_json(file) {
        let text = String::from_utf8(bytes).map_err(|error| no_history(error.to_string()))?;
        return onward_proto::json::from_str(&text).map_err(|error| no_history(error.to_string()));
    }
    v1::History::decode(bytes.as_slice()).map_err(|error| no_history(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, non_camel_case_types)]
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::{Ctx, Signal, Workflow, payload};

    const GO: Signal<u32> = Signal::new("go");

    macro_rules! workflow {
        ($name:ident, $registered:literal, |$ctx:ident| $body:expr) => {
            struct $name;
            impl Workflow for $name {
                const NAME: &'static str = $registered;
                type Args = ();
                type Output = u32;
                type Error = crate::Error;

                async fn run($ctx: &Ctx, (): ()) -> crate::Result<u32> {
                    Ok($body)
                }
            }
        };
    }
    workflow!(waits, "waits", |ctx| ctx.recv(GO).await);
    workflow!(sleeps, "waits", |ctx| {
        ctx.sleep(std::time::Duration::from_secs(1)).await;
        0
    });
    workflow!(other, "other", |ctx| ctx.recv(GO).await);
    workflow!(talks, "waits", |ctx| {
        tracing::info!("before");
        ctx.recv(GO).await
    });

    /// One run of `waits` that got its signal and completed.
    fn history() -> v1::History {
        let completed = |counter, command_events| {
            Attributes::WorkflowTaskCompleted(v1::WorkflowTaskCompleted {
                task_id: Some(v1::TaskId { incarnation: 1, counter }),
                command_events,
                ..Default::default()
            })
        };
        let seven = payload::encode(&7_u32, Codec::Json).unwrap();
        let events = [
            Attributes::WorkflowExecutionStarted(v1::WorkflowExecutionStarted {
                workflow_type: "waits".into(),
                workflow_id: "order-42".into(),
                seed: Bytes::from_static(&[1; 32]),
                ..Default::default()
            }),
            completed(1, 0),
            Attributes::SignalReceived(v1::SignalReceived {
                signal_name: "go".into(),
                arguments: vec![seven.clone()],
                ..Default::default()
            }),
            completed(2, 1),
            Attributes::WorkflowExecutionCompleted(v1::WorkflowExecutionCompleted {
                result: Some(seven),
                unread_signals: Vec::new(),
            }),
        ];
        let events = (1..).zip(events).map(|(event_id, attributes)| v1::HistoryEvent {
            event_id,
            attributes: Some(attributes),
            ..Default::default()
        });
        v1::History { events: events.collect() }
    }

    #[test]
    fn a_signal_that_does_not_decode_is_skipped_and_people_are_told() {
        let replayer = Replayer::new().workflows::<(waits,)>();
        let mut history = history();
        assert_eq!(replayer.replay(&history).unwrap(), [""; 0]);
        let mut unreadable = history.events[2].clone();
        let Some(Attributes::SignalReceived(signal)) = &mut unreadable.attributes else { panic!() };
        signal.arguments = vec![payload::encode(&"seven", Codec::Json).unwrap()];
        history.events.insert(2, unreadable);
        for (event, event_id) in history.events.iter_mut().zip(1..) {
            event.event_id = event_id;
        }
        let notes = replayer.replay(&history).unwrap();
        let [note] = &notes[..] else { panic!("{notes:?}") };
        assert!(note.starts_with("signal go (event 3) was skipped: "), "{note}");
    }

    #[test]
    fn saved_histories_replay_and_a_change_of_code_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let replayer = Replayer::new().workflows::<(waits,)>();
        assert!(matches!(replayer.replay_dir(&folder), Err(ReplayError::Empty { .. })));
        fs::write(folder.path().join("a.history"), history().encode_to_vec()).unwrap();
        fs::write(folder.path().join("notes.txt"), "not a history").unwrap();
        let text = onward_proto::json::to_string(&history());
        fs::write(folder.path().join("c.json"), text).unwrap();
        assert_eq!(replayer.replay_dir(&folder).unwrap(), 2);

        let changed = Replayer::new().workflows::<(sleeps,)>().replay_dir(&folder).unwrap_err();
        let ReplayError::File { path, source } = changed else { panic!("{changed}") };
        assert!(path.ends_with("a.history"));
        let report = source.to_string();
        assert!(report.starts_with("non-determinism in waits order-42"), "{report}");
        assert!(report.contains("the task ended here"), "{report}");
        assert!(report.contains("TimerStarted 1s(#1)"), "{report}");

        let unknown = Replayer::new().workflows::<(other,)>().replay(&history()).unwrap_err();
        assert!(matches!(unknown, ReplayError::UnknownWorkflow { .. }));
        fs::write(folder.path().join("b.history"), b"\xff").unwrap();
        let broken = replayer.replay_dir(&folder).unwrap_err();
        assert!(matches!(broken, ReplayError::NoHistory { .. }));
    }

    #[test]
    fn a_history_with_a_gap_or_in_disorder_is_refused_with_the_numbers() {
        let replayer = Replayer::new().workflows::<(waits,)>();
        let spoilt = |spoil: fn(&mut Vec<v1::HistoryEvent>)| {
            let mut history = history();
            spoil(&mut history.events);
            replayer.replay(&history).unwrap_err().to_string()
        };
        let found = |expected: u64, found: u64| {
            format!("event {expected} of the history is missing: event {found} is in its place")
        };
        // A task that took nothing would not be missed by the code.
        assert_eq!(spoilt(|events| drop(events.remove(1))), found(2, 3));
        assert_eq!(spoilt(|events| events.swap(1, 2)), found(2, 3));
        assert_eq!(spoilt(|events| events.insert(2, events[1].clone())), found(3, 2));
        assert_eq!(spoilt(|events| events[0].event_id = 7), found(1, 7));
        assert_eq!(spoilt(|events| events[4].event_id = u64::MAX), found(5, u64::MAX));
        assert_eq!(spoilt(|events| events[2].event_id = 0), found(3, 0));
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn code_is_silent_while_it_is_replayed() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry()
            .with(crate::trace::replay_filter())
            .with(tracing_subscriber::fmt::layer().with_writer(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            Replayer::new().workflows::<(talks,)>().replay(&history()).unwrap();
            assert_eq!(lines.0.lock().unwrap().len(), 0);

            let run = RunInfo {
                namespace: "default".into(),
                workflow_id: "order-42".into(),
                run_id: RunId::from_uuid(uuid::Uuid::nil()),
                workflow_type: "waits".into(),
            };
            let entry = WorkflowEntry::of::<talks>();
            let mut machine = Machine::new(&entry, MachineOptions::default(), run);
            let mut events = history().events;
            events.truncate(1);
            let task_id = v1::TaskId { incarnation: 1, counter: 1 };
            let task = crate::machine::Task { task_id, handed_out_at_us: 1, events };
            machine.run_task(task).unwrap();
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("before").count(), 1, "{text}");
    }
}
