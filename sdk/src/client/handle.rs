//! A handle of a workflow that was started, by this client or another.

use std::{fmt, marker::PhantomData};

use onward_proto::{RunId, v1};
use serde::Serialize;
use tonic::Code;
use uuid::Uuid;

use super::{Client, call::Of, typed_outcome};
use crate::{
    definition::Workflow,
    error::{RpcError, WorkflowError},
    payload,
    workflow::Signal,
};

/// Talks to one workflow.
///
/// The handle that [`start`](super::ClientCall::start) gives is about the run that was started;
/// one from [`Client::handle`] is about whatever run of the id is open, or was last.
pub struct WorkflowHandle<W: Workflow> {
    client: Client,
    workflow_id: String,
    run_id: Option<RunId>,
    workflow: Of<W>,
}

impl<W: Workflow> Clone for WorkflowHandle<W> {
    fn clone(&self) -> Self {
        Self::new(self.client.clone(), self.workflow_id.clone(), self.run_id)
    }
}

impl<W: Workflow> fmt::Debug for WorkflowHandle<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkflowHandle")
            .field("workflow", &W::NAME)
            .field("workflow_id", &self.workflow_id)
            .field("run_id", &self.run_id)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A handle of the workflow with this id, whoever started it. Nothing is asked of the server.
    pub fn handle<W: Workflow>(&self, workflow_id: impl Into<String>) -> WorkflowHandle<W> {
        WorkflowHandle::new(self.clone(), workflow_id.into(), None)
    }
}

impl<W: Workflow> WorkflowHandle<W> {
    pub(crate) fn new(client: Client, workflow_id: String, run_id: Option<RunId>) -> Self {
        Self { client, workflow_id, run_id, workflow: PhantomData }
    }

    /// The same workflow, but only this run of it.
    #[must_use]
    pub fn run(mut self, run_id: Uuid) -> Self {
        self.run_id = Some(RunId::from_uuid(run_id));
        self
    }

    /// The workflow id.
    pub fn id(&self) -> &str {
        &self.workflow_id
    }

    /// The run that the handle is about, if it is about a certain one.
    pub fn run_id(&self) -> Option<Uuid> {
        self.run_id.map(RunId::uuid)
    }

    /// What every request about it begins with: namespace, workflow id, run id.
    fn target(&self) -> (String, String, bytes::Bytes) {
        let run_id = self.run_id.map(RunId::to_wire).unwrap_or_default();
        (self.client.namespace().to_owned(), self.workflow_id.clone(), run_id)
    }

    /// What a request that changes something ends with: its own id, and who asks.
    fn sender(&self) -> (bytes::Bytes, String) {
        (self.client.request_id().to_wire(), self.client.identity().to_owned())
    }

    /// Waits for the result.
    ///
    /// # Errors
    /// How the workflow ended if it did not complete, or that the server did not answer.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing; the result can be asked for again.
    pub async fn result(&self) -> Result<W::Output, WorkflowError<W::Error>> {
        let (namespace, workflow_id, run_id) = self.target();
        let request = v1::WaitWorkflowResultRequest { namespace, workflow_id, run_id };
        typed_outcome(self.client.wait_outcome(request).await?)
    }

    /// Sends a signal; it is durable when this returns.
    ///
    /// # Errors
    /// If the workflow is not open, or the server did not answer.
    pub async fn signal<T: Serialize>(&self, signal: Signal<T>, value: T) -> Result<(), RpcError> {
        let payload = payload::encode(&value, self.client.codec())
            .map_err(|error| RpcError::new(Code::InvalidArgument, error.to_string()))?;
        let (namespace, workflow_id, run_id) = self.target();
        let (request_id, identity) = self.sender();
        let request = v1::SignalWorkflowRequest {
            namespace,
            workflow_id,
            run_id,
            signal_name: signal.name().to_owned(),
            arguments: vec![payload],
            request_id,
            identity,
        };
        self.client
            .call(
                &request,
                |mut service, request| async move { service.signal_workflow(request).await },
            )
            .await
            .map(drop)
    }

    /// Asks the workflow to stop. Its code decides what that means; the request is durable when
    /// this returns.
    ///
    /// # Errors
    /// If the workflow is not open, or the server did not answer.
    pub async fn cancel(&self, reason: impl Into<String>) -> Result<(), RpcError> {
        let (namespace, workflow_id, run_id) = self.target();
        let (request_id, identity) = self.sender();
        let request = v1::RequestCancelWorkflowRequest {
            namespace,
            workflow_id,
            run_id,
            reason: reason.into(),
            request_id,
            identity,
        };
        self.client
            .call(&request, |mut service, request| async move {
                service.request_cancel_workflow(request).await
            })
            .await
            .map(drop)
    }

    /// Ends the workflow without asking its code.
    ///
    /// # Errors
    /// If the workflow is not open, or the server did not answer.
    pub async fn terminate(&self, reason: impl Into<String>) -> Result<(), RpcError> {
        let (namespace, workflow_id, run_id) = self.target();
        let (request_id, identity) = self.sender();
        let request = v1::TerminateWorkflowRequest {
            namespace,
            workflow_id,
            run_id,
            reason: reason.into(),
            request_id,
            identity,
        };
        self.client
            .call(&request, |mut service, request| async move {
                service.terminate_workflow(request).await
            })
            .await
            .map(drop)
    }

    /// All that the server knows about the run.
    ///
    /// # Errors
    /// If there is no such run, or the server did not answer.
    pub async fn describe(&self) -> Result<v1::DescribeWorkflowResponse, RpcError> {
        let (namespace, workflow_id, run_id) = self.target();
        let request = v1::DescribeWorkflowRequest { namespace, workflow_id, run_id };
        self.client
            .call(&request, |mut service, request| async move {
                service.describe_workflow(request).await
            })
            .await
    }

    /// The history of the run so far.
    ///
    /// # Errors
    /// If there is no such run, or the server did not answer.
    pub async fn history(&self) -> Result<v1::History, RpcError> {
        let mut events = Vec::new();
        let (namespace, workflow_id, run_id) = self.target();
        let mut request =
            v1::GetWorkflowHistoryRequest { namespace, workflow_id, run_id, ..Default::default() };
        loop {
            let page = self
                .client
                .call(&request, |mut service, request| async move {
                    service.get_workflow_history(request).await
                })
                .await?;
            events.extend(page.events);
            if page.at_end || page.next_page_token.is_empty() {
                return Ok(v1::History { events });
            }
            request.page_token = page.next_page_token;
            request.run_id = page.run_id;
        }
    }
}

/// Reads the run id of an answer.
pub(super) fn run_id_of(bytes: &[u8]) -> Result<RunId, RpcError> {
    RunId::from_wire(bytes).map_err(|error| RpcError::new(Code::Internal, error.to_string()))
}
