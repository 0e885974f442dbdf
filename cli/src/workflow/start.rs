//! `onward workflow start` and `execute`.

use onward_proto::v1::{
    ExecuteWorkflowRequest, IdConflictPolicy, IdReusePolicy, StartWorkflowRequest,
};
use serde::Serialize;
use uuid::Uuid;

use super::{Session, identity, outcome, request_id};
use crate::{args::NewRunArgs, error::Result, input, output::note, text};

/// The run that a start made or found.
#[derive(Serialize)]
struct Answer {
    workflow_id: String,
    run_id: String,
    started: bool,
}

pub(super) async fn start(session: &mut Session, args: NewRunArgs) -> Result<()> {
    let request = request(session, args)?;
    let workflow_id = request.workflow_id.clone();
    let answer = session
        .connection
        .call(request, async |client, request| client.start_workflow(request).await)
        .await?;
    let run_id = text::run_id(&answer.run_id);
    if session.target.json {
        return session.out.json(&Answer { workflow_id, run_id, started: answer.started });
    }
    let workflow_id = text::clean(&workflow_id);
    let what = if answer.started { "started" } else { "already runs:" };
    session.out.line(format_args!("{what} {workflow_id}, run {run_id}"))
}

pub(super) async fn execute(session: &mut Session, args: NewRunArgs) -> Result<()> {
    let start = request(session, args)?;
    let workflow_id = start.workflow_id.clone();
    let answer = session
        .connection
        .call(ExecuteWorkflowRequest { start: Some(start) }, async |client, request| {
            client.execute_workflow(request).await
        })
        .await?;
    if !answer.started {
        let run_id = text::run_id(&answer.run_id);
        note(format_args!(
            "{} already runs, this is the result of run {run_id}",
            text::clean(&workflow_id)
        ));
    }
    let outcome = match answer.outcome {
        Some(outcome) => outcome,
        None => outcome::wait(session, &workflow_id, &answer.run_id).await?.1,
    };
    outcome::print(session, &workflow_id, &answer.run_id, &outcome)
}

fn request(session: &Session, args: NewRunArgs) -> Result<StartWorkflowRequest> {
    Ok(StartWorkflowRequest {
        namespace: session.target.namespace.clone(),
        workflow_id: args.id.unwrap_or_else(|| Uuid::now_v7().to_string()),
        workflow_type: args.workflow_type,
        task_queue: args.queue,
        arguments: args.input.payloads()?,
        request_id: request_id(),
        identity: identity(),
        memo: args.memo.into_iter().map(|(name, json)| (name, input::payload(&json))).collect(),
        execution_timeout_us: text::wire_us(args.execution_timeout),
        run_timeout_us: text::wire_us(args.run_timeout),
        id_reuse_policy: IdReusePolicy::from(args.reuse).into(),
        id_conflict_policy: IdConflictPolicy::from(args.conflict).into(),
    })
}
