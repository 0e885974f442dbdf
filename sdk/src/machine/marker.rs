//! Markers: values that the run makes by itself, recorded ones and those of local activities.
//!
//! Neither is there at the first poll. Its marker takes its place among the commands when it
//! resolves, and what the code gets is what is recorded there, live as well as at a replay.

use std::panic::Location;

use onward_proto::v1::{self, command::Kind, history_event::Attributes};

use super::{
    LocalOutcome,
    core::Core,
    leaf::{Leaf, LeafKind, call_site},
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

    /// Gives a recorded value its number. A live one is to be made now, and given to
    /// [`Core::keep_record`].
    pub(crate) fn issue_record(&self, location: &Location<'_>) -> Option<u32> {
        let site = call_site(location);
        let number = self.begin_leaf(LeafKind::Record { site, value: None })?;
        self.state.borrow_mut().records.push_back(number);
        Some(number)
    }

    /// Keeps a recorded value until its turn among the commands comes.
    pub(crate) fn keep_record(&self, number: u32, made: v1::Payload) {
        if let Err(limit) = limits::check_payload(&made, self.options.max_payload_bytes) {
            self.fail_payload(&format!("recorded value #{number}"), &limit);
            return;
        }
        let mut state = self.state.borrow_mut();
        if let Some(Leaf { kind: LeafKind::Record { value, .. }, .. }) =
            state.leaves.get_mut(&number)
        {
            *value = Some(made);
        }
    }

    /// Writes the marker of a recorded value and wakes its leaf. A dropped one leaves no trace.
    pub(super) fn finish_record(&self, number: u32) -> bool {
        let marker = {
            let mut state = self.state.borrow_mut();
            let Some(Leaf { kind: LeafKind::Record { site, value }, .. }) =
                state.leaves.get_mut(&number)
            else {
                return false;
            };
            v1::MarkerRecorded {
                number,
                kind: v1::MarkerKind::RecordedValue as i32,
                result: value.take(),
                call_site: Some(site.clone()),
                ..Default::default()
            }
        };
        self.mark(marker);
        true
    }

    /// Gives a marker its place among the commands and its leaf the outcome.
    fn mark(&self, marker: v1::MarkerRecorded) {
        self.emit(v1::Command {
            number: marker.number,
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
        self.resolve(0, marker.number, Attributes::MarkerRecorded(marker));
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
                let (failure, cause) = (Some(failure), v1::LocalActivityFailureCause::Application);
                LocalOutcome::Failed { failure, cause, attempts }
            }
            LocalOutcome::Failed { failure, cause, attempts } => {
                let failure = failure.map(|failure| failure.fit(max_bytes));
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
                    (None, failure, cause, attempts)
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
        self.mark(marker);
        true
    }

    /// Whether the code waits for a marker of this kind and name under this number, and then the
    /// command that it stands for.
    pub(super) fn expects_marker(&self, marker: &v1::MarkerRecorded) -> Option<v1::Command> {
        let mut state = self.state.borrow_mut();
        let leaf = state.leaves.get(&marker.number)?;
        let (kind, name, hash, site) = match &leaf.kind {
            LeafKind::Record { site, .. } => (v1::MarkerKind::RecordedValue, "", 0, site.clone()),
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
