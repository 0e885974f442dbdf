//! `onward workflow result`, and how every command shows the end of a run.

use bytes::Bytes;
use onward_proto::{
    json::Json,
    v1::{WaitWorkflowResultRequest, WorkflowOutcome, WorkflowStatus, WorkflowTimeoutKind},
};
use serde::Serialize;

use super::Session;
use crate::{
    args::RunArgs,
    error::{Error, Result},
    text,
};

/// How a run ended.
#[derive(Serialize)]
struct Ended<'a> {
    workflow_id: &'a str,
    run_id: String,
    outcome: Json<'a, WorkflowOutcome>,
}

pub(super) async fn run(session: &mut Session, run: RunArgs) -> Result<()> {
    let (run_id, outcome) = wait(session, &run.workflow_id, &run.run_id()).await?;
    print(session, &run.workflow_id, &run_id, &outcome)
}

/// Waits for the end of a run, however often the server says "still running".
pub(super) async fn wait(
    session: &Session,
    workflow_id: &str,
    run_id: &Bytes,
) -> Result<(Bytes, WorkflowOutcome)> {
    let mut request = WaitWorkflowResultRequest {
        namespace: session.target.namespace.clone(),
        workflow_id: workflow_id.to_owned(),
        run_id: run_id.clone(),
    };
    loop {
        let answer = session
            .connection
            .call(request.clone(), async |client, request| {
                client.wait_workflow_result(request).await
            })
            .await?;
        match answer.outcome {
            Some(outcome) => return Ok((answer.run_id, outcome)),
            // The newest run may be another one tomorrow: stay with the one that we began to wait for.
            None => request.run_id = answer.run_id,
        }
    }
}

/// Prints the result to stdout, so that it can be piped; any other end is an error on stderr.
pub(super) fn print(
    session: &mut Session,
    workflow_id: &str,
    run_id: &Bytes,
    outcome: &WorkflowOutcome,
) -> Result<()> {
    let completed = outcome.status() == WorkflowStatus::Completed;
    if session.target.json {
        let run_id = text::run_id(run_id);
        session.out.json(&Ended { workflow_id, run_id, outcome: Json(outcome) })?;
        return if completed { Ok(()) } else { Err(Error::WorkflowFailed(None)) };
    }
    if completed {
        return match &outcome.result {
            Some(result) => session.out.line(text::payload(result)),
            None => session.out.line("null"),
        };
    }
    let workflow_id = text::clean(workflow_id);
    Err(Error::WorkflowFailed(Some(format!("workflow {workflow_id} {}", ended(outcome)))))
}

/// How a run ended, as the end of a sentence.
pub(super) fn ended(outcome: &WorkflowOutcome) -> String {
    let why = outcome.failure.as_ref().map(text::failure);
    let because = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    match outcome.status() {
        WorkflowStatus::Unspecified | WorkflowStatus::Running => "has not ended".to_owned(),
        WorkflowStatus::Completed => match &outcome.result {
            Some(result) => format!("completed: {}", text::short_payload(result)),
            None => "completed".to_owned(),
        },
        WorkflowStatus::Failed => format!("failed{because}"),
        WorkflowStatus::Cancelled => format!("was cancelled{because}"),
        // The server makes this failure of the reason; its kind says nothing more.
        WorkflowStatus::Terminated => {
            match outcome.failure.as_ref().map(|why| why.message.as_str()) {
                None | Some("") => "was terminated".to_owned(),
                Some(reason) => format!("was terminated: {}", text::clean(reason)),
            }
        }
        WorkflowStatus::TimedOut => match outcome.timeout_kind() {
            WorkflowTimeoutKind::Unspecified => "timed out".to_owned(),
            WorkflowTimeoutKind::Run => "timed out: its run timeout passed".to_owned(),
            WorkflowTimeoutKind::Execution => "timed out: its execution timeout passed".to_owned(),
        },
    }
}
