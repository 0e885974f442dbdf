//! `onward workflow show`: one run, above all what it waits for.

use std::fmt::{Display, Write};

use onward_proto::{
    json::Json,
    v1::{
        DescribeWorkflowRequest, DescribeWorkflowResponse, PendingActivityInfo,
        PendingActivityState, WorkflowStatus, WorkflowTaskInfo, WorkflowTaskState,
    },
};

use super::{Session, outcome, summary};
use crate::{
    args::RunArgs,
    error::{Error, Result},
    output::Paint,
    text::{self, Clock, clean},
};

pub(super) async fn run(session: &mut Session, run: RunArgs) -> Result<()> {
    let request = DescribeWorkflowRequest {
        namespace: session.target.namespace.clone(),
        workflow_id: run.workflow_id.clone(),
        run_id: run.run_id(),
    };
    let answer = session
        .connection
        .call(request, async |client, request| client.describe_workflow(request).await)
        .await?;
    if session.target.json {
        return session.out.json(&Json(&answer));
    }
    let clock = Clock::new();
    head(session, &clock, &answer)?;
    report(session, answer.task.as_ref())?;
    activities(session, &clock, &answer.pending_activities)?;
    left_out(session, answer.activities_left_out)?;
    if !answer.pending_timers.is_empty() {
        section(session, "Timers")?;
        let rows = answer.pending_timers.iter().map(|timer| {
            [
                format!("#{}", timer.number),
                clock.relative(timer.fire_at_us),
                clock.time(timer.fire_at_us),
                clean(&timer.summary),
            ]
        });
        session.out.table(["timer", "fires", "at", "summary"], rows)?;
    }
    if !answer.inbox.is_empty() {
        section(session, "Inbox: what no workflow task has taken yet")?;
        let rows = answer.inbox.iter().map(|event| {
            let (name, about) = summary::of(event);
            [clock.exact_time(event.time_us), name.to_owned(), about]
        });
        session.out.table(["since", "event", "about"], rows)?;
    }
    left_out(session, answer.inbox_left_out)?;
    Ok(())
}

/// Says that an answer had no room for more.
fn left_out(session: &mut Session, count: u32) -> Result<()> {
    if count > 0 {
        session.out.line(format_args!("... and {count} more"))?;
    }
    Ok(())
}

/// Identity, status, and right behind it what the run waits for.
fn head(session: &mut Session, clock: &Clock, answer: &DescribeWorkflowResponse) -> Result<()> {
    let Some(info) = &answer.info else {
        return Err(Error::failed("the server described a run without saying which"));
    };
    let status = info.status();
    let name = session.out.paint(Paint::Bold, clean(&info.workflow_id));
    let painted = session.out.paint(Paint::of(status), text::status(status));
    let incident = if info.incident {
        session.out.paint(Paint::Bad, ", needs attention")
    } else {
        String::new()
    };
    session.out.line(format_args!("{name}  {painted}{incident}"))?;

    let mut label = "waits for";
    for reason in &answer.waits_for {
        entry(session, label, clean(reason))?;
        label = "";
    }
    if let Some(outcome) = &answer.outcome {
        entry(session, "outcome", outcome::ended(outcome))?;
    }
    if answer.cancel_requested && status == WorkflowStatus::Running {
        entry(session, "cancel", "requested")?;
    }
    entry(session, "type", clean(&info.workflow_type) + &text::arguments(&answer.arguments))?;
    entry(session, "queue", clean(&info.task_queue))?;
    entry(session, "run", text::run_id(&info.run_id))?;
    let started = clock.time(info.started_at_us);
    entry(session, "started", format!("{started}, {}", clock.relative(info.started_at_us)))?;
    if info.closed_at_us != 0 {
        let took = clock.span(info.started_at_us, info.closed_at_us);
        entry(session, "closed", format!("{}, after {took}", clock.time(info.closed_at_us)))?;
    }
    let timeouts: Vec<_> =
        [("run", answer.run_timeout_us), ("execution", answer.execution_timeout_us)]
            .into_iter()
            .filter(|(_, us)| *us != 0)
            .map(|(what, us)| format!("{what} {}", text::duration_us(us)))
            .collect();
    if !timeouts.is_empty() {
        entry(session, "timeouts", timeouts.join(", "))?;
    }
    entry(
        session,
        "history",
        format!(
            "{}, {}",
            summary::count(info.history_events, "event"),
            text::bytes(info.history_bytes)
        ),
    )?;
    if !info.memo.is_empty() {
        entry(session, "memo", text::memo(&info.memo))?;
    }
    if let Some(task) = answer.task.as_ref().filter(|_| status == WorkflowStatus::Running) {
        entry(session, "task", task_state(clock, task))?;
    }
    Ok(())
}

fn entry(session: &mut Session, label: &str, value: impl Display) -> Result<()> {
    let label = session.out.paint(Paint::Dim, format_args!("{label:<9}"));
    session.out.line(format_args!("  {label}  {value}"))
}

fn section(session: &mut Session, title: &str) -> Result<()> {
    let title = session.out.paint(Paint::Bold, title);
    session.out.line(format_args!("\n{title}"))
}

fn task_state(clock: &Clock, task: &WorkflowTaskInfo) -> String {
    let mut text = match task.state() {
        WorkflowTaskState::Unspecified => "unknown".to_owned(),
        WorkflowTaskState::None => "nothing to do".to_owned(),
        WorkflowTaskState::Queued => "queued".to_owned(),
        WorkflowTaskState::InFlight => format!("with worker {}", clean(&task.identity)),
        WorkflowTaskState::BackingOff => {
            format!("goes again {}", clock.relative(task.next_attempt_at_us))
        }
    };
    if task.attempt > 1 {
        let _ = write!(text, ", attempt {}", task.attempt);
    }
    if task.blocked {
        text += ", blocked";
    }
    text
}

/// The failed workflow task's report, whole: it says where the code went another way.
fn report(session: &mut Session, task: Option<&WorkflowTaskInfo>) -> Result<()> {
    let Some((task, failure)) = task.and_then(|task| Some((task, task.last_failure.as_ref()?)))
    else {
        return Ok(());
    };
    section(session, "Last failure of its workflow task")?;
    let mut cause = summary::task_cause(task.last_cause(), None);
    if !task.identity.is_empty() {
        let _ = write!(cause, ", on worker {}", clean(&task.identity));
    }
    session.out.line(format_args!("  {cause}"))?;
    let mut next = Some(failure);
    while let Some(failure) = next {
        session.out.text(text::block(&failure.message, "  "))?;
        session.out.text(text::block(&failure.stack, "    "))?;
        next = failure.cause.as_deref();
    }
    Ok(())
}

fn activities(
    session: &mut Session,
    clock: &Clock,
    activities: &[PendingActivityInfo],
) -> Result<()> {
    if activities.is_empty() {
        return Ok(());
    }
    section(session, "Activities")?;
    let header =
        ["activity", "type", "queue", "state", "attempt", "scheduled", "worker", "last failure"];
    session.out.table(
        header,
        activities.iter().map(|activity| {
            [
                format!("#{}", activity.number),
                clean(&activity.activity_type),
                clean(&activity.task_queue),
                activity_state(clock, activity),
                activity.attempt.to_string(),
                clock.relative(activity.scheduled_at_us),
                clean(&activity.identity),
                activity.last_failure.as_ref().map(text::failure).unwrap_or_default(),
            ]
        }),
    )
}

fn activity_state(clock: &Clock, activity: &PendingActivityInfo) -> String {
    let mut state = match activity.state() {
        PendingActivityState::Unspecified => "unknown".to_owned(),
        PendingActivityState::Queued => "queued".to_owned(),
        PendingActivityState::Running => "running".to_owned(),
        PendingActivityState::BackingOff => {
            format!("goes again {}", clock.relative(activity.next_attempt_at_us))
        }
        PendingActivityState::CancelRequested => "asked to stop".to_owned(),
        PendingActivityState::Claimed => "may still run on a worker that is away".to_owned(),
    };
    if activity.incident {
        state += " !";
    }
    state
}
