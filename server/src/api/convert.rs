//! From messages to the domain: past this point no `Option` stands for "required" and no integer
//! for an enum. Each refusal names the field, the limit and the value.

use std::collections::BTreeMap;

use onward_proto::{
    DEFAULT_NAMESPACE, MAX_DURATION_US, NamespaceId, RequestId, RunId,
    v1::{self, IdConflictPolicy, IdReusePolicy, Payload},
};
use prost::Message as _;
use tonic::Status;

use crate::{
    engine::{Limits, Signal, Start, Stop},
    shard::message::Target,
};

/// Checks an id or name that must be there.
pub(super) fn required(field: &str, text: &str, limits: &Limits) -> Result<(), Status> {
    if text.is_empty() {
        return Err(Status::invalid_argument(format!("{field} is empty")));
    }
    optional(field, text, limits)
}

/// Checks an id or name that may be empty.
pub(super) fn optional(field: &str, text: &str, limits: &Limits) -> Result<(), Status> {
    if text.len() as u64 > limits.id_bytes {
        let (limit, len) = (limits.id_bytes, text.len());
        return Err(Status::invalid_argument(format!(
            "{field} is limited to {limit} bytes, got {len}"
        )));
    }
    if text.contains('\0') {
        return Err(Status::invalid_argument(format!("{field} contains the character U+0000")));
    }
    Ok(())
}

fn payloads<'a>(
    field: &str,
    payloads: impl Iterator<Item = &'a Payload>,
    limits: &Limits,
) -> Result<(), Status> {
    let mut bytes = 0;
    for payload in payloads {
        let texts = std::iter::once(&payload.content_type).chain(payload.metadata.keys());
        if texts.into_iter().any(|text| text.contains('\0')) {
            return Err(Status::invalid_argument(format!(
                "a content type or a key of metadata in {field} contains the character U+0000"
            )));
        }
        bytes += payload.encoded_len() as u64;
    }
    if bytes > limits.payload_bytes {
        let limit = limits.payload_bytes;
        return Err(Status::invalid_argument(format!(
            "{field} is limited to {limit} bytes, got {bytes}"
        )));
    }
    Ok(())
}

fn timeout(field: &str, micros: i64) -> Result<i64, Status> {
    if (0..=MAX_DURATION_US).contains(&micros) {
        Ok(micros)
    } else {
        Err(Status::invalid_argument(format!(
            "{field} must be from 0 to {MAX_DURATION_US} µs, got {micros}"
        )))
    }
}

pub(super) fn request_id(bytes: &[u8]) -> Result<RequestId, Status> {
    RequestId::from_wire(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// A run id that may be absent.
pub(super) fn run_id(bytes: &[u8]) -> Result<Option<RunId>, Status> {
    if bytes.is_empty() {
        return Ok(None);
    }
    RunId::from_wire(bytes).map(Some).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// The namespace of that name; `default` is the only one.
pub(super) fn namespace(name: &str) -> Result<(NamespaceId, String), Status> {
    match name {
        "" | "default" => Ok((DEFAULT_NAMESPACE, "default".to_owned())),
        other => Err(Status::not_found(format!("there is no namespace {other:?}"))),
    }
}

pub(super) fn target(
    limits: &Limits,
    namespace_name: &str,
    workflow_id: String,
    run: &[u8],
) -> Result<Target, Status> {
    required("workflow_id", &workflow_id, limits)?;
    let (namespace_id, namespace) = namespace(namespace_name)?;
    Ok(Target { namespace_id, namespace, workflow_id, run_id: run_id(run)? })
}

pub(super) fn start(
    limits: &Limits,
    request: v1::StartWorkflowRequest,
    signal: Option<(String, Vec<Payload>)>,
) -> Result<Start, Status> {
    let (namespace_id, _) = namespace(&request.namespace)?;
    required("workflow_id", &request.workflow_id, limits)?;
    required("workflow_type", &request.workflow_type, limits)?;
    optional("task_queue", &request.task_queue, limits)?;
    optional("identity", &request.identity, limits)?;
    // Together, as the engine counts them: a start that is to end an open run first must not be
    // refused behind that.
    let given = request.arguments.iter().chain(request.memo.values());
    payloads("arguments and memo", given, limits)?;
    for key in request.memo.keys() {
        required("a key of memo", key, limits)?;
    }
    let request_id = request_id(&request.request_id)?;
    let signal = signal
        .map(|(name, arguments)| {
            signal_parts(limits, name, arguments, request_id, request.identity.clone())
        })
        .transpose()?;
    Ok(Start {
        namespace_id,
        workflow_id: request.workflow_id,
        workflow_type: request.workflow_type,
        task_queue: if request.task_queue.is_empty() {
            "default".to_owned()
        } else {
            request.task_queue
        },
        arguments: request.arguments,
        request_id,
        identity: request.identity,
        memo: request.memo.into_iter().collect::<BTreeMap<_, _>>(),
        execution_timeout_us: timeout("execution_timeout_us", request.execution_timeout_us)?,
        run_timeout_us: timeout("run_timeout_us", request.run_timeout_us)?,
        id_reuse_policy: reuse_policy(request.id_reuse_policy)?,
        id_conflict_policy: conflict_policy(request.id_conflict_policy)?,
        signal,
    })
}

fn reuse_policy(value: i32) -> Result<IdReusePolicy, Status> {
    match IdReusePolicy::try_from(value) {
        Ok(IdReusePolicy::Unspecified) => Ok(IdReusePolicy::Allow),
        Ok(policy) => Ok(policy),
        Err(_) => Err(Status::invalid_argument(format!("id_reuse_policy {value} is not known"))),
    }
}

fn conflict_policy(value: i32) -> Result<IdConflictPolicy, Status> {
    match IdConflictPolicy::try_from(value) {
        Ok(IdConflictPolicy::Unspecified) => Ok(IdConflictPolicy::Fail),
        Ok(policy) => Ok(policy),
        Err(_) => Err(Status::invalid_argument(format!("id_conflict_policy {value} is not known"))),
    }
}

fn signal_parts(
    limits: &Limits,
    name: String,
    arguments: Vec<Payload>,
    request_id: RequestId,
    identity: String,
) -> Result<Signal, Status> {
    required("signal_name", &name, limits)?;
    optional("identity", &identity, limits)?;
    payloads("arguments", arguments.iter(), limits)?;
    Ok(Signal { name, arguments, request_id, identity })
}

pub(super) fn signal(
    limits: &Limits,
    request: v1::SignalWorkflowRequest,
) -> Result<Signal, Status> {
    let id = request_id(&request.request_id)?;
    signal_parts(limits, request.signal_name, request.arguments, id, request.identity)
}

pub(super) fn stop(
    limits: &Limits,
    reason: String,
    id: &[u8],
    identity: String,
) -> Result<Stop, Status> {
    optional("reason", &reason, limits)?;
    optional("identity", &identity, limits)?;
    Ok(Stop { reason, request_id: request_id(id)?, identity })
}
