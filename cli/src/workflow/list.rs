//! `onward workflow list`.

use onward_proto::{
    json::Json,
    v1::{ListWorkflowsRequest, WorkflowInfo, WorkflowStatus},
};
use serde::Serialize;

use super::Session;
use crate::{
    args::ListArgs,
    error::Result,
    output::note,
    text::{self, Clock},
};

/// The server's largest page.
const PAGE: usize = 1_000;

#[derive(Serialize)]
struct Runs<'a> {
    workflows: Vec<Json<'a, WorkflowInfo>>,
    more: bool,
}

pub(super) async fn run(session: &mut Session, args: ListArgs) -> Result<()> {
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let mut request = ListWorkflowsRequest {
        namespace: session.target.namespace.clone(),
        status: args.status.map_or(WorkflowStatus::Unspecified, WorkflowStatus::from).into(),
        ..ListWorkflowsRequest::default()
    };
    let mut runs = Vec::new();
    let more = loop {
        request.page_size = (limit - runs.len()).min(PAGE) as u32;
        let page = session
            .connection
            .call(request.clone(), async |client, request| client.list_workflows(request).await)
            .await?;
        runs.extend(page.workflows);
        if page.next_page_token.is_empty() || runs.len() >= limit {
            break !page.next_page_token.is_empty() || runs.len() > limit;
        }
        request.page_token = page.next_page_token;
    };
    runs.truncate(limit);

    if session.target.json {
        let workflows = runs.iter().map(Json).collect();
        return session.out.json(&Runs { workflows, more });
    }
    if runs.is_empty() {
        note("no workflows");
        return Ok(());
    }
    let clock = Clock::new();
    let header = ["status", "workflow id", "type", "queue", "started", "took", "run id"];
    session.out.table(header, runs.iter().map(|run| row(run, &clock)))?;
    if more {
        session.out.flush()?;
        note(format_args!("these are the newest {limit}; --limit 0 lists all"));
    }
    Ok(())
}

fn row(run: &WorkflowInfo, clock: &Clock) -> [String; 7] {
    let incident = if run.incident { " !" } else { "" };
    [
        text::status(run.status()) + incident,
        text::clean(&run.workflow_id),
        text::clean(&run.workflow_type),
        text::clean(&run.task_queue),
        clock.time(run.started_at_us),
        clock.span(run.started_at_us, run.closed_at_us),
        text::run_id(&run.run_id),
    ]
}
