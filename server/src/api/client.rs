//! What services, people and the command line call.

use std::{sync::Arc, time::Duration};

use onward_proto::{
    PROTOCOL, Slot,
    v1::{self, WorkflowOutcome, client_service_server::ClientService},
};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

use super::{ask::ask, convert};
use crate::{
    BuildInfo,
    engine::{Answer, Input, Stop},
    shard::{
        Node,
        message::{self, Refusal, Reply, Target},
    },
};

/// How long a call waits for a result or for the next event.
pub(super) const LONG_POLL: Duration = Duration::from_secs(55);

/// The client service of a node.
pub(crate) struct ClientApi {
    pub(super) node: Arc<Node>,
    pub(super) build: BuildInfo,
}

type RpcResult<T> = Result<Response<T>, Status>;

impl ClientApi {
    pub(crate) fn new(node: Arc<Node>, build: BuildInfo) -> Self {
        Self { node, build }
    }

    /// Sends a request to the lane of a workflow id and waits for the answer.
    pub(super) async fn ask<T>(
        &self,
        target: &Target,
        request: impl FnOnce(Target, Reply<T>) -> message::Request,
    ) -> Result<T, Status> {
        let slot = Slot::of(target.namespace_id, &target.workflow_id);
        ask(&self.node, slot, |reply| request(target.clone(), reply)).await
    }

    async fn change(&self, target: &Target, input: Input) -> Result<Answer, Status> {
        let request = |target, answer| message::Request::Change { target, input, answer };
        self.ask(target, request).await
    }

    async fn start(
        &self,
        request: v1::StartWorkflowRequest,
        signal: Option<(String, Vec<v1::Payload>)>,
        outcome: Option<Reply<WorkflowOutcome>>,
    ) -> Result<Answer, Status> {
        let start = convert::start(&self.node.limits, request, signal)?;
        let slot = Slot::of(start.namespace_id, &start.workflow_id);
        let start = Box::new(start);
        ask(&self.node, slot, |answer| message::Request::Start { start, answer, outcome }).await
    }

    fn target(&self, namespace: &str, workflow_id: String, run: &[u8]) -> Result<Target, Status> {
        convert::target(&self.node.limits, namespace, workflow_id, run)
    }

    fn stop(&self, reason: String, request_id: &[u8], identity: String) -> Result<Stop, Status> {
        convert::stop(&self.node.limits, reason, request_id, identity)
    }

    /// Counts the call and lets its answer out.
    fn done<T>(&self, result: Result<T, Status>) -> RpcResult<T> {
        self.node.metrics.request(result.is_err());
        result.map(Response::new)
    }
}

/// Waits for an outcome, for as long as a call may take. `None`: it still runs.
async fn await_outcome(
    outcome: oneshot::Receiver<Result<WorkflowOutcome, Refusal>>,
) -> Result<Option<WorkflowOutcome>, Status> {
    // Dropped half-way it only stops waiting: the lane finds its reply closed.
    match tokio::time::timeout(LONG_POLL, outcome).await {
        Ok(Ok(result)) => result.map(Some).map_err(Status::from),
        // The lane has ended or the run has left memory: the caller asks again.
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

#[tonic::async_trait]
impl ClientService for ClientApi {
    async fn get_server_info(
        &self,
        request: Request<v1::GetServerInfoRequest>,
    ) -> RpcResult<v1::GetServerInfoResponse> {
        let request = request.into_inner();
        if request.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "client {} speaks protocol {}, server {} speaks protocol {PROTOCOL}",
                request.version, request.protocol, self.build.version
            )));
        }
        Ok(Response::new(v1::GetServerInfoResponse {
            version: self.build.version.clone(),
            protocol: PROTOCOL,
            commit: self.build.commit.clone(),
            store: self.node.store.kind().to_owned(),
        }))
    }

    async fn start_workflow(
        &self,
        request: Request<v1::StartWorkflowRequest>,
    ) -> RpcResult<v1::StartWorkflowResponse> {
        let told = self.start(request.into_inner(), None, None).await;
        self.done(told.map(|told| v1::StartWorkflowResponse {
            run_id: told.run_id.to_wire(),
            started: told.started,
        }))
    }

    async fn execute_workflow(
        &self,
        request: Request<v1::ExecuteWorkflowRequest>,
    ) -> RpcResult<v1::ExecuteWorkflowResponse> {
        let start = request
            .into_inner()
            .start
            .ok_or_else(|| Status::invalid_argument("start is missing"))?;
        let (reply, outcome) = oneshot::channel();
        let result = async {
            let told = self.start(start, None, Some(reply)).await?;
            Ok(v1::ExecuteWorkflowResponse {
                run_id: told.run_id.to_wire(),
                started: told.started,
                outcome: await_outcome(outcome).await?,
            })
        };
        self.done(result.await)
    }

    async fn signal_workflow(
        &self,
        request: Request<v1::SignalWorkflowRequest>,
    ) -> RpcResult<v1::SignalWorkflowResponse> {
        let request = request.into_inner();
        let result = async {
            let (workflow_id, run) = (request.workflow_id.clone(), request.run_id.clone());
            let target = self.target(&request.namespace, workflow_id, &run)?;
            let signal = convert::signal(&self.node.limits, request)?;
            let told = self.change(&target, Input::Signal(signal)).await?;
            Ok(v1::SignalWorkflowResponse { run_id: told.run_id.to_wire() })
        };
        self.done(result.await)
    }

    async fn signal_with_start_workflow(
        &self,
        request: Request<v1::SignalWithStartWorkflowRequest>,
    ) -> RpcResult<v1::SignalWithStartWorkflowResponse> {
        let request = request.into_inner();
        let start = request.start.ok_or_else(|| Status::invalid_argument("start is missing"))?;
        let signal = (request.signal_name, request.arguments);
        let told = self.start(start, Some(signal), None).await;
        self.done(told.map(|told| v1::SignalWithStartWorkflowResponse {
            run_id: told.run_id.to_wire(),
            started: told.started,
        }))
    }

    async fn request_cancel_workflow(
        &self,
        request: Request<v1::RequestCancelWorkflowRequest>,
    ) -> RpcResult<v1::RequestCancelWorkflowResponse> {
        let request = request.into_inner();
        let result = async {
            let target = self.target(&request.namespace, request.workflow_id, &request.run_id)?;
            let stop = self.stop(request.reason, &request.request_id, request.identity)?;
            let told = self.change(&target, Input::RequestCancel(stop)).await?;
            Ok(v1::RequestCancelWorkflowResponse { run_id: told.run_id.to_wire() })
        };
        self.done(result.await)
    }

    async fn terminate_workflow(
        &self,
        request: Request<v1::TerminateWorkflowRequest>,
    ) -> RpcResult<v1::TerminateWorkflowResponse> {
        let request = request.into_inner();
        let result = async {
            let target = self.target(&request.namespace, request.workflow_id, &request.run_id)?;
            let stop = self.stop(request.reason, &request.request_id, request.identity)?;
            let told = self.change(&target, Input::Terminate(stop)).await?;
            Ok(v1::TerminateWorkflowResponse { run_id: told.run_id.to_wire() })
        };
        self.done(result.await)
    }

    async fn describe_workflow(
        &self,
        request: Request<v1::DescribeWorkflowRequest>,
    ) -> RpcResult<v1::DescribeWorkflowResponse> {
        let request = request.into_inner();
        let result = async {
            let target = self.target(&request.namespace, request.workflow_id, &request.run_id)?;
            self.describe(target).await
        };
        self.done(result.await)
    }

    async fn get_workflow_history(
        &self,
        request: Request<v1::GetWorkflowHistoryRequest>,
    ) -> RpcResult<v1::GetWorkflowHistoryResponse> {
        let request = request.into_inner();
        let result = async {
            let target = self.target(&request.namespace, request.workflow_id, &request.run_id)?;
            self.history_page(target, &request.page_token, request.max_bytes, request.follow).await
        };
        self.done(result.await)
    }

    async fn wait_workflow_result(
        &self,
        request: Request<v1::WaitWorkflowResultRequest>,
    ) -> RpcResult<v1::WaitWorkflowResultResponse> {
        let request = request.into_inner();
        let (reply, outcome) = oneshot::channel();
        let result = async {
            let target = self.target(&request.namespace, request.workflow_id, &request.run_id)?;
            let located = self
                .ask(&target, |target, located| message::Request::AwaitResult {
                    target,
                    located,
                    outcome: reply,
                })
                .await?;
            Ok(v1::WaitWorkflowResultResponse {
                run_id: located.run_id.to_wire(),
                outcome: await_outcome(outcome).await?,
            })
        };
        self.done(result.await)
    }

    async fn list_workflows(
        &self,
        request: Request<v1::ListWorkflowsRequest>,
    ) -> RpcResult<v1::ListWorkflowsResponse> {
        self.done(self.list(request.into_inner()).await)
    }
}
