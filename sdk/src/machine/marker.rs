//! Markers: values that the run makes by itself, recorded ones and those of local activities.
//!
//! Neither is there at the first poll. Its marker takes its place among the commands when it
//! resolves, and what the code gets is what is recorded there, live as well as at a replay.

use std::{
    panic::Location,
    task::{Context, Poll},
};

use onward_proto::v1::{
    self, WorkflowTaskFailureCause as Cause, command::Kind, history_event::Attributes,
};

use super::{
    LocalOutcome,
    core::{Core, Phase, State},
    leaf::{Leaf, LeafKind, call_site},
    report::task_failure,
};
use crate::{failure::plain_failure, limits, payload::EncodedArgs};

pub(super) enum LocalStage {
    /// The task that issued it is open.
    Issued(LocalCall),
    /// That task is committed.
    Startable(LocalCall),
    Running,
}

/// What is to be run once the task is committed.
pub(super) struct LocalCall {
    pub(super) activity_type: &'static str,
    pub(super) arguments: Vec<v1::Payload>,
    pub(super) options: crate::options::ActivityOptions,
}

/// What a recorded value's leaf has to do.
pub(crate) enum RecordTurn {
    Wait,
    /// Make the value now, and say it with [`Core::record`].
    Make,
    Recorded(Box<v1::MarkerRecorded>),
}

impl Core {
    pub(crate) fn issue_local(
        &self,
        name: &'static str,
        args: EncodedArgs,
        options: crate::options::ActivityOptions,
        location: &Location<'_>,
    ) -> Option<u32> {
        let call = LocalCall { activity_type: name, arguments: args.payloads, options };
        self.begin_leaf(LeafKind::Local {
            stage: LocalStage::Issued(call),
            hash: args.hash,
            site: call_site(location),
            name,
        })
    }

    pub(crate) fn issue_record(&self, location: &Location<'_>) -> Option<u32> {
        let number = self.begin_leaf(LeafKind::Record { site: call_site(location) })?;
        self.state.borrow_mut().records.push_back(number);
        Some(number)
    }

    pub(crate) fn poll_record(&self, number: u32, cx: &Context<'_>) -> RecordTurn {
        let is_its_drain =
            self.state.borrow().recording.is_some_and(|(recording, _)| recording == number);
        if is_its_drain && self.is_active() {
            return RecordTurn::Make;
        }
        match self.poll_leaf(number, cx) {
            Poll::Ready(Attributes::MarkerRecorded(marker)) => {
                RecordTurn::Recorded(Box::new(marker))
            }
            Poll::Ready(_) | Poll::Pending => RecordTurn::Wait,
        }
    }

    /// Fills the place that was kept for a recorded value. Ends the drive if the server would not
    /// take it: the code must not go on with what a replay would not find.
    pub(crate) fn record(&self, number: u32, value: v1::Payload) {
        if let Err(limit) = limits::check_payload(&value, self.options.max_payload_bytes) {
            self.fail_payload(&format!("recorded value #{number}"), &limit);
            return;
        }
        let mut state = self.state.borrow_mut();
        let State { recording, phase, leaves, .. } = &mut *state;
        let Some((_, place)) = recording.take_if(|(recording, _)| *recording == number) else {
            return;
        };
        if let Phase::Live { commands } = phase
            && let Some(Kind::RecordMarker(marker)) = commands[place].kind.as_mut()
        {
            marker.result = Some(value);
        }
        let leaf = leaves.remove(&number);
        drop(state);
        drop(leaf);
    }

    /// Keeps the next place among the commands for this recorded value and wakes its leaf.
    pub(super) fn begin_recording(&self, number: u32) {
        let mut state = self.state.borrow_mut();
        let Some(leaf) = state.leaves.get_mut(&number) else { return };
        let LeafKind::Record { site } = &leaf.kind else { return };
        let (site, waker) = (site.clone(), leaf.waker.take());
        if let Phase::Live { commands } = &mut state.phase {
            let place = commands.len();
            commands.push(v1::Command {
                number,
                call_site: Some(site),
                kind: Some(Kind::RecordMarker(v1::RecordMarker {
                    kind: v1::MarkerKind::RecordedValue as i32,
                    ..Default::default()
                })),
                ..Default::default()
            });
            state.recording = Some((number, place));
        }
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the drain of a recorded value. Its place stays empty if the code dropped it unseen.
    pub(super) fn end_recording(&self) {
        let mut state = self.state.borrow_mut();
        if let Some((number, _)) = state.recording.take()
            && state.leaves.contains_key(&number)
        {
            state.failure.get_or_insert(task_failure(
                Cause::Stuck,
                format!("recorded value #{number} was woken but not polled"),
            ));
        }
    }

    /// An outcome that the server takes: a result that is too large is a failure instead. It is the
    /// recorded one that counts, live as well as at a replay.
    fn fit_outcome(&self, name: &str, outcome: LocalOutcome) -> LocalOutcome {
        let max_bytes = self.options.max_payload_bytes;
        match outcome {
            LocalOutcome::Completed { result, attempts } => {
                let Err(limit) = limits::check_payload(&result, max_bytes) else {
                    return LocalOutcome::Completed { result, attempts };
                };
                let mut failure =
                    plain_failure("ResultTooLarge", format!("the result of {name}: {limit}"));
                failure.non_retryable = true;
                let cause = v1::LocalActivityFailureCause::Application;
                LocalOutcome::Failed { failure, cause, attempts }
            }
            LocalOutcome::Failed { failure, cause, attempts } => {
                let failure = failure.fit(max_bytes);
                LocalOutcome::Failed { failure, cause, attempts }
            }
        }
    }

    /// Writes the marker of a local activity and wakes its leaf. A dropped one leaves no trace.
    pub(super) fn finish_local(&self, number: u32, outcome: LocalOutcome) -> bool {
        let marker = {
            let state = self.state.borrow();
            let Some(Leaf { kind: LeafKind::Local { hash, site, name, .. }, .. }) =
                state.leaves.get(&number)
            else {
                return false;
            };
            let (result, failure, cause, attempts) = match self.fit_outcome(name, outcome) {
                LocalOutcome::Completed { result, attempts } => {
                    (Some(result), None, v1::LocalActivityFailureCause::Unspecified, attempts)
                }
                LocalOutcome::Failed { failure, cause, attempts } => {
                    (None, Some(failure), cause, attempts)
                }
            };
            v1::MarkerRecorded {
                number,
                kind: v1::MarkerKind::LocalActivity as i32,
                name: (*name).to_owned(),
                result,
                failure,
                cause: cause as i32,
                attempts,
                call_site: Some(site.clone()),
                arguments_hash: *hash,
                refused: None,
            }
        };
        self.emit(v1::Command {
            number,
            call_site: marker.call_site.clone(),
            arguments_hash: marker.arguments_hash,
            summary: String::new(),
            refused: None,
            kind: Some(Kind::RecordMarker(v1::RecordMarker {
                kind: marker.kind,
                name: marker.name.clone(),
                result: marker.result.clone(),
                failure: marker.failure.clone(),
                cause: marker.cause,
                attempts: marker.attempts,
            })),
        });
        self.resolve(0, number, Attributes::MarkerRecorded(marker));
        true
    }

    /// Whether the code waits for a marker of this kind and name under this number, and then the
    /// command that it stands for.
    pub(super) fn expects_marker(&self, marker: &v1::MarkerRecorded) -> Option<v1::Command> {
        let mut state = self.state.borrow_mut();
        let leaf = state.leaves.get(&marker.number)?;
        let (kind, name, hash, site) = match &leaf.kind {
            LeafKind::Record { site } => (v1::MarkerKind::RecordedValue, "", 0, site.clone()),
            LeafKind::Local { hash, site, name, .. } => {
                (v1::MarkerKind::LocalActivity, *name, *hash, site.clone())
            }
            LeafKind::Activity | LeafKind::Timer => return None,
        };
        state.records.retain(|waiting| *waiting != marker.number);
        Some(v1::Command {
            number: marker.number,
            call_site: Some(site),
            arguments_hash: hash,
            summary: String::new(),
            refused: None,
            kind: Some(Kind::RecordMarker(v1::RecordMarker {
                kind: kind as i32,
                name: name.to_owned(),
                ..Default::default()
            })),
        })
    }
}
