//! Page tokens: where a list or a history goes on, and which request it belongs to.
//!
//! A token is opaque to those who hold it, but no secret: it only positions inside what its request
//! may read anyway, and the request is checked like any other before its token is. A token of
//! another request is refused, as its place would mean something else there.

use bytes::Bytes;
use onward_proto::{
    NamespaceId, RunId, Timestamp,
    v1::{HistoryPosition, WorkflowStatus},
};
use prost::Message;
use tonic::Status;

use crate::shard::message::Target;

/// What a token says. Its bytes are nobody else's business, so it is not in the protocol.
#[derive(Clone, PartialEq, Message)]
struct PageToken {
    /// The namespace that is read.
    #[prost(bytes = "bytes", tag = "1")]
    namespace_id: Bytes,
    #[prost(oneof = "Place", tags = "2, 3")]
    place: Option<Place>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Place {
    #[prost(message, tag = "2")]
    List(ListPlace),
    #[prost(message, tag = "3")]
    History(HistoryPlace),
}

#[derive(Clone, PartialEq, Message)]
struct ListPlace {
    /// The filter; unspecified lists every status.
    #[prost(enumeration = "WorkflowStatus", tag = "1")]
    status: i32,
    /// When the page's last run was started. Microseconds since the Unix epoch.
    #[prost(int64, tag = "2")]
    started_at_us: i64,
    /// The page's last run.
    #[prost(bytes = "bytes", tag = "3")]
    run_id: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct HistoryPlace {
    #[prost(string, tag = "1")]
    workflow_id: String,
    #[prost(message, optional, tag = "2")]
    position: Option<HistoryPosition>,
}

/// The list that a token must belong to.
#[derive(Debug, Clone, Copy)]
pub(super) struct OfList {
    pub(super) namespace_id: NamespaceId,
    pub(super) status: WorkflowStatus,
}

impl OfList {
    /// Goes on behind this run.
    pub(super) fn token(self, started_at: Timestamp, run_id: RunId) -> Bytes {
        let place = ListPlace {
            status: self.status.into(),
            started_at_us: started_at.as_micros(),
            run_id: run_id.to_wire(),
        };
        token(self.namespace_id, Place::List(place))
    }

    /// The last run of the page before. `None`: there was none.
    pub(super) fn read(self, token: &[u8]) -> Result<Option<(Timestamp, RunId)>, Status> {
        match read(token, self.namespace_id)? {
            None => Ok(None),
            Some(Place::List(place)) => {
                if place.status() != self.status {
                    let (theirs, ours) = (filter(place.status()), filter(self.status));
                    return Err(foreign(&format!("a list of {theirs}, not to one of {ours}")));
                }
                let run_id = RunId::from_wire(&place.run_id).map_err(|_| unknown())?;
                Ok(Some((Timestamp::from_micros(place.started_at_us), run_id)))
            }
            Some(Place::History(_)) => Err(foreign("a history, not to a list")),
        }
    }
}

/// The history that a token must belong to.
#[derive(Debug, Clone)]
pub(super) struct OfHistory {
    /// As the request names it: without a run id it is the newest run of the first page.
    pub(super) target: Target,
}

impl OfHistory {
    /// Goes on from here.
    pub(super) fn token(&self, position: HistoryPosition) -> Bytes {
        let workflow_id = self.target.workflow_id.clone();
        let place = HistoryPlace { workflow_id, position: Some(position) };
        token(self.target.namespace_id, Place::History(place))
    }

    /// The run that the page before showed, and where it ended. `None`: there was none.
    pub(super) fn read(&self, token: &[u8]) -> Result<Option<(RunId, HistoryPosition)>, Status> {
        match read(token, self.target.namespace_id)? {
            None => Ok(None),
            Some(Place::List(_)) => Err(foreign("a list, not to a history")),
            Some(Place::History(HistoryPlace { workflow_id, position })) => {
                let asked = &self.target.workflow_id;
                if workflow_id != *asked {
                    return Err(foreign(&format!("workflow {workflow_id:?}, not to {asked:?}")));
                }
                let position = position.ok_or_else(unknown)?;
                let run_id = checked(&position)?;
                match self.target.run_id {
                    Some(asked) if asked != run_id => {
                        Err(foreign(&format!("run {run_id}, not to run {asked}")))
                    }
                    _ => Ok(Some((run_id, position))),
                }
            }
        }
    }
}

/// Where a worker goes on with the history of its task. `None`: from event 1.
pub(super) fn read_position(
    run_id: RunId,
    position: &[u8],
) -> Result<Option<HistoryPosition>, Status> {
    if position.is_empty() {
        return Ok(None);
    }
    let position = HistoryPosition::decode(position)
        .map_err(|_| Status::invalid_argument("position was not made by this server"))?;
    match checked(&position)? {
        of if of == run_id => Ok(Some(position)),
        of => Err(Status::invalid_argument(format!(
            "position belongs to run {of}, not to run {run_id}"
        ))),
    }
}

/// The run of a position that a history can have.
fn checked(position: &HistoryPosition) -> Result<RunId, Status> {
    // No run has so many events; a number near the end of its range could not be counted on from.
    if position.next_event_id == 0 || position.next_event_id > u64::from(u32::MAX) {
        return Err(unknown());
    }
    RunId::from_wire(&position.run_id).map_err(|_| unknown())
}

fn token(namespace_id: NamespaceId, place: Place) -> Bytes {
    let namespace_id = Bytes::copy_from_slice(namespace_id.uuid().as_bytes());
    PageToken { namespace_id, place: Some(place) }.encode_to_vec().into()
}

fn read(token: &[u8], namespace_id: NamespaceId) -> Result<Option<Place>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let token = PageToken::decode(token).map_err(|_| unknown())?;
    let place = token.place.ok_or_else(unknown)?;
    if token.namespace_id.as_ref() != namespace_id.uuid().as_bytes() {
        return Err(foreign("another namespace"));
    }
    Ok(Some(place))
}

/// A status as people read it.
fn filter(status: WorkflowStatus) -> String {
    match status {
        WorkflowStatus::Unspecified => "every status".to_owned(),
        status => {
            let name = status.as_str_name();
            format!("status {}", name.trim_start_matches("WORKFLOW_STATUS_").to_lowercase())
        }
    }
}

fn unknown() -> Status {
    Status::invalid_argument("page_token was not made by this server")
}

fn foreign(whose: &str) -> Status {
    Status::invalid_argument(format!("page_token belongs to {whose}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::DEFAULT_NAMESPACE;
    use uuid::Uuid;

    use super::*;

    fn run(n: u128) -> RunId {
        RunId::from_wire(Uuid::from_u128(n).as_bytes()).unwrap()
    }

    fn history(workflow_id: &str, run_id: Option<RunId>) -> OfHistory {
        OfHistory {
            target: Target {
                namespace_id: DEFAULT_NAMESPACE,
                namespace: "default".to_owned(),
                workflow_id: workflow_id.to_owned(),
                run_id,
            },
        }
    }

    fn position(run_id: RunId) -> HistoryPosition {
        HistoryPosition { run_id: run_id.to_wire(), next_event_id: 7, ..HistoryPosition::default() }
    }

    fn list(status: WorkflowStatus) -> OfList {
        OfList { namespace_id: DEFAULT_NAMESPACE, status }
    }

    fn refusal<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
        let status = result.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        status.message().to_owned()
    }

    #[test]
    fn a_token_goes_on_where_its_request_ended() {
        let of = list(WorkflowStatus::Running);
        let at = Timestamp::from_micros(-5);
        assert_eq!(of.read(&of.token(at, run(1))).unwrap(), Some((at, run(1))));
        let of = history("w", None);
        let token = of.token(position(run(1)));
        assert_eq!(of.read(&token).unwrap(), Some((run(1), position(run(1)))));
        // A client that has learned the run id from the first page may name it from then on.
        let named = history("w", Some(run(1)));
        assert_eq!(named.read(&token).unwrap(), Some((run(1), position(run(1)))));
        assert_eq!(of.read(&[]).unwrap(), None);
    }

    #[test]
    fn a_token_of_another_request_is_refused_by_name() {
        let running = list(WorkflowStatus::Running);
        let list_token = running.token(Timestamp::from_micros(1), run(1));
        let history_token = history("w", None).token(position(run(1)));
        for (refused, says) in [
            (
                refusal(list(WorkflowStatus::Completed).read(&list_token)),
                "a list of status running, not to one of status completed",
            ),
            (
                refusal(list(WorkflowStatus::Unspecified).read(&list_token)),
                "a list of status running, not to one of every status",
            ),
            (refusal(running.read(&history_token)), "a history, not to a list"),
            (refusal(history("w", None).read(&list_token)), "a list, not to a history"),
            (refusal(history("v", None).read(&history_token)), "workflow \"w\", not to \"v\""),
        ] {
            assert_eq!(refused, format!("page_token belongs to {says}"));
        }
        let other = refusal(history("w", Some(run(2))).read(&history_token));
        assert_eq!(other, format!("page_token belongs to run {}, not to run {}", run(1), run(2)));
        let elsewhere =
            OfList { namespace_id: NamespaceId::from_uuid(Uuid::from_u128(9)), ..running };
        assert_eq!(refusal(elsewhere.read(&list_token)), "page_token belongs to another namespace");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let of = history("w", None);
        let (list, whole) = (list(WorkflowStatus::Running), of.token(position(run(1))));
        for garbage in [&b"garbage"[..], &[0; 24], &[0xff; 300], &whole[..whole.len() - 1]] {
            assert!(refusal(of.read(garbage)).starts_with("page_token"), "{garbage:?}");
            assert!(refusal(list.read(garbage)).starts_with("page_token"), "{garbage:?}");
        }
        for forged in [
            HistoryPosition { next_event_id: 0, ..position(run(1)) },
            HistoryPosition { next_event_id: u64::MAX, ..position(run(1)) },
            HistoryPosition { run_id: Bytes::from_static(b"short"), ..position(run(1)) },
        ] {
            assert_eq!(refusal(of.read(&of.token(forged))), unknown().message());
        }
    }
}
