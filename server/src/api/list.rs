//! Listing runs, newest first.

use bytes::Bytes;
use onward_proto::{
    Timestamp,
    v1::{self, WorkflowInfo, WorkflowStatus},
};
use prost::Message as _;
use tonic::Status;

use super::{ask::read, client::ClientApi, convert, page_token::OfList};
use crate::store::{ListRuns, RunRow};

/// Runs of a page, unless asked otherwise.
const PAGE: u32 = 100;
/// Runs of a page at most.
const MAX_PAGE: u32 = 1_000;

impl ClientApi {
    pub(super) async fn list(
        &self,
        request: v1::ListWorkflowsRequest,
    ) -> Result<v1::ListWorkflowsResponse, Status> {
        let (namespace_id, namespace) = convert::namespace(&request.namespace)?;
        let status = WorkflowStatus::try_from(request.status).map_err(|_| {
            Status::invalid_argument(format!("status {} is not known", request.status))
        })?;
        let asked = OfList { namespace_id, status };
        let limit = match request.page_size {
            0 => PAGE,
            size => size.min(MAX_PAGE),
        };
        let list = ListRuns {
            namespace_id,
            status: (status != WorkflowStatus::Unspecified).then_some(status),
            before: asked.read(&request.page_token)?,
            limit,
        };
        let rows = read(&self.node, |store| async move { store.list_runs(list).await }).await?;
        let next_page_token = match rows.last() {
            Some(last) if rows.len() == limit as usize => asked.token(last.started_at, last.run_id),
            _ => Bytes::new(),
        };
        let info = |row: RunRow| WorkflowInfo {
            // No row tells of it: the lanes do.
            incident: self.node.incidents.contains(row.run_id),
            ..info_of(row, &namespace)
        };
        let workflows = rows.into_iter().map(info).collect();
        Ok(v1::ListWorkflowsResponse { workflows, next_page_token })
    }
}

fn info_of(row: RunRow, namespace: &str) -> WorkflowInfo {
    let memo = v1::WorkflowExecutionStarted::decode(row.memo.as_ref())
        .map(|started| started.memo)
        .unwrap_or_default();
    WorkflowInfo {
        namespace: namespace.to_owned(),
        workflow_id: row.workflow_id,
        run_id: row.run_id.to_wire(),
        workflow_type: row.workflow_type,
        task_queue: row.task_queue,
        status: row.status.into(),
        started_at_us: row.started_at.as_micros(),
        closed_at_us: row.closed_at.map_or(0, Timestamp::as_micros),
        history_events: row.history.events,
        history_bytes: row.history.bytes,
        memo,
        incident: false,
    }
}
