//! `onward workflow history`.

use std::{fs, path::Path};

use onward_proto::{
    json::Json,
    v1::{GetWorkflowHistoryRequest, History, HistoryEvent},
};
use prost::Message;

use super::{Session, summary};
use crate::{
    args::HistoryArgs,
    error::{Error, Result},
    output::{Paint, note},
    text::{self, Clock},
};

pub(super) async fn run(session: &mut Session, args: HistoryArgs) -> Result<()> {
    if let Some(path) = &args.output {
        let mut events = Vec::new();
        each_page(session, &args, async |_, page| {
            events.extend(page);
            Ok(())
        })
        .await?;
        return write_file(path, &History { events });
    }
    if session.target.json {
        // One document, but one event a line: for `grep`, and for following.
        session.out.text("{\"events\":[")?;
        let mut separator = "\n";
        each_page(session, &args, async |session, page| {
            for event in page {
                session.out.text(separator)?;
                session.out.compact_json(&Json(&event))?;
                separator = ",\n";
            }
            session.out.flush()
        })
        .await?;
        return session.out.line("\n]}");
    }
    let clock = Clock::new();
    each_page(session, &args, async |session, page| {
        for event in page {
            line(session, &clock, &event)?;
        }
        session.out.flush()
    })
    .await
}

/// Reads the history to its end, and with `--follow` until the run closes.
async fn each_page(
    session: &mut Session,
    args: &HistoryArgs,
    mut page: impl AsyncFnMut(&mut Session, Vec<HistoryEvent>) -> Result<()>,
) -> Result<()> {
    let mut request = GetWorkflowHistoryRequest {
        namespace: session.target.namespace.clone(),
        workflow_id: args.run.workflow_id.clone(),
        run_id: args.run.run_id(),
        follow: args.follow,
        ..GetWorkflowHistoryRequest::default()
    };
    loop {
        let answer = session
            .connection
            .call(request.clone(), async |client, request| {
                client.get_workflow_history(request).await
            })
            .await?;
        page(session, answer.events).await?;
        if answer.next_page_token.is_empty() || (answer.at_end && !args.follow) {
            return Ok(());
        }
        request.page_token = answer.next_page_token;
    }
}

fn line(session: &mut Session, clock: &Clock, event: &HistoryEvent) -> Result<()> {
    let (name, about) = summary::of(event);
    let time = session.out.paint(Paint::Dim, clock.exact_time(event.time_us));
    // Padded before it is painted: colour codes have no width.
    let name = session.out.paint(Paint::Bold, format_args!("{name:<32}"));
    let text = format!("{:>5}  {time}  {name}  {about}", event.event_id);
    session.out.line(text.trim_end())
}

fn write_file(path: &Path, history: &History) -> Result<()> {
    fs::write(path, history.encode_to_vec())
        .map_err(|error| Error::Failed(format!("cannot write {}: {error}", path.display())))?;
    let path = path.display().to_string();
    note(format_args!("wrote {} events to {}", history.events.len(), text::clean(&path)));
    Ok(())
}
