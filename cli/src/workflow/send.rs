//! `onward workflow signal`, `cancel` and `terminate`: what is sent to a run.

use bytes::Bytes;
use onward_proto::v1::{
    RequestCancelWorkflowRequest, SignalWorkflowRequest, TerminateWorkflowRequest,
};
use serde::Serialize;

use super::{Session, identity, request_id};
use crate::{
    args::{SignalArgs, StopArgs},
    error::Result,
    text,
};

/// The run that was reached.
#[derive(Serialize)]
struct Reached<'a> {
    workflow_id: &'a str,
    run_id: String,
}

pub(super) async fn signal(session: &mut Session, args: SignalArgs) -> Result<()> {
    let request = SignalWorkflowRequest {
        namespace: session.target.namespace.clone(),
        workflow_id: args.run.workflow_id.clone(),
        run_id: args.run.run_id(),
        signal_name: args.signal_name.clone(),
        arguments: args.input.payloads()?,
        request_id: request_id(),
        identity: identity(),
    };
    let answer = session
        .connection
        .call(request, async |client, request| client.signal_workflow(request).await)
        .await?;
    let what = format!("sent {} to", text::clean(&args.signal_name));
    reached(session, &what, &args.run.workflow_id, &answer.run_id)
}

pub(super) async fn cancel(session: &mut Session, args: StopArgs) -> Result<()> {
    let request = RequestCancelWorkflowRequest {
        namespace: session.target.namespace.clone(),
        workflow_id: args.run.workflow_id.clone(),
        run_id: args.run.run_id(),
        reason: args.reason,
        request_id: request_id(),
        identity: identity(),
    };
    let answer = session
        .connection
        .call(request, async |client, request| client.request_cancel_workflow(request).await)
        .await?;
    reached(session, "asked to stop:", &args.run.workflow_id, &answer.run_id)
}

pub(super) async fn terminate(session: &mut Session, args: StopArgs) -> Result<()> {
    let request = TerminateWorkflowRequest {
        namespace: session.target.namespace.clone(),
        workflow_id: args.run.workflow_id.clone(),
        run_id: args.run.run_id(),
        reason: args.reason,
        request_id: request_id(),
        identity: identity(),
    };
    let answer = session
        .connection
        .call(request, async |client, request| client.terminate_workflow(request).await)
        .await?;
    reached(session, "terminated", &args.run.workflow_id, &answer.run_id)
}

fn reached(session: &mut Session, what: &str, workflow_id: &str, run_id: &Bytes) -> Result<()> {
    let run_id = text::run_id(run_id);
    if session.target.json {
        return session.out.json(&Reached { workflow_id, run_id });
    }
    session.out.line(format_args!("{what} {}, run {run_id}", text::clean(workflow_id)))
}
