//! Whether a command is what history recorded, and what to say when it is not.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use onward_proto::v1::{self, command::Kind, history_event::Attributes};

use super::{MachineOptions, RunInfo, TaskFailure};
use crate::failure::plain_failure;

/// A failed task with this cause and message.
pub(crate) fn task_failure(
    cause: v1::WorkflowTaskFailureCause,
    message: impl Into<String>,
) -> TaskFailure {
    let name = cause.as_str_name().trim_start_matches("WORKFLOW_TASK_FAILURE_CAUSE_");
    TaskFailure { cause, failure: Box::new(plain_failure(name, message)) }
}

/// Whether `command` is what `event` came from: number, kind and name, nothing else.
fn caused(command: &v1::Command, event: &Attributes) -> bool {
    use Attributes as Event;
    let number = command.number;
    // A close or a timer that broke a limit is recorded as the run's failure.
    let is_refused_close =
        || matches!(event, Event::WorkflowExecutionFailed(event) if event.refused.is_some());
    match command.kind.as_ref() {
        Some(Kind::ScheduleActivity(command)) => {
            matches!(event, Event::ActivityScheduled(event)
                if event.number == number && event.activity_type == command.activity_type)
        }
        Some(Kind::CancelActivity(_)) => {
            matches!(event, Event::ActivityCancelRequested(event) if event.number == number)
        }
        Some(Kind::StartTimer(_)) => {
            matches!(event, Event::TimerStarted(event) if event.number == number)
                || is_refused_close()
        }
        Some(Kind::CancelTimer(_)) => {
            matches!(event, Event::TimerCancelled(event) if event.number == number)
        }
        Some(Kind::RecordMarker(command)) => {
            matches!(event, Event::MarkerRecorded(event)
                if event.number == number && event.kind == command.kind && event.name == command.name)
        }
        Some(Kind::CompleteWorkflow(_)) => {
            matches!(event, Event::WorkflowExecutionCompleted(_)) || is_refused_close()
        }
        Some(Kind::CancelWorkflow(_)) => {
            matches!(event, Event::WorkflowExecutionCancelled(_)) || is_refused_close()
        }
        Some(Kind::FailWorkflow(_)) => matches!(event, Event::WorkflowExecutionFailed(_)),
        None => false,
    }
}

/// The recorded hash of a call's arguments, if the event keeps one.
fn recorded_hash(event: &Attributes) -> Option<u64> {
    match event {
        Attributes::ActivityScheduled(event) => {
            event.refused.is_none().then_some(event.arguments_hash)
        }
        Attributes::MarkerRecorded(event) => {
            event.refused.is_none().then_some(event.arguments_hash)
        }
        Attributes::WorkflowExecutionStarted(_)
        | Attributes::WorkflowExecutionCompleted(_)
        | Attributes::WorkflowExecutionFailed(_)
        | Attributes::WorkflowExecutionCancelled(_)
        | Attributes::WorkflowExecutionTimedOut(_)
        | Attributes::WorkflowExecutionTerminated(_)
        | Attributes::WorkflowExecutionCancelRequested(_)
        | Attributes::WorkflowTaskCompleted(_)
        | Attributes::WorkflowTaskFailed(_)
        | Attributes::ActivityCancelRequested(_)
        | Attributes::ActivityCompleted(_)
        | Attributes::ActivityFailed(_)
        | Attributes::ActivityTimedOut(_)
        | Attributes::ActivityCancelled(_)
        | Attributes::TimerStarted(_)
        | Attributes::TimerFired(_)
        | Attributes::TimerCancelled(_)
        | Attributes::SignalReceived(_) => None,
    }
}

/// How a command differs from what history has in its place, and whether that ends the drive.
pub(crate) fn mismatch(
    command: &v1::Command,
    recorded: Option<&Attributes>,
    strict_arguments: bool,
) -> Option<(Side, bool)> {
    let Some(event) = recorded else { return Some((Side::none("the task ended here"), true)) };
    if !caused(command, event) {
        return Some((Side::of_event(event), true));
    }
    let hash = recorded_hash(event)?;
    if hash == command.arguments_hash || hash == 0 {
        return None;
    }
    let mut history = Side::of_event(event);
    history.note("with other arguments");
    Some((history, strict_arguments))
}

/// One side of a mismatch.
#[derive(Debug, Default)]
pub(crate) struct Side {
    what: String,
    at: String,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Side {
    pub(crate) fn none(what: &str) -> Self {
        Self { what: what.to_owned(), at: String::new() }
    }

    fn note(&mut self, note: &str) {
        self.what.push(' ');
        self.what.push_str(note);
    }

    pub(crate) fn of_event(event: &Attributes) -> Self {
        let plain = |name: &str| (name.to_owned(), None);
        let (what, site) = match event {
            Attributes::ActivityScheduled(event) => (
                format!("ActivityScheduled {}(#{})", event.activity_type, event.number),
                event.call_site.as_ref(),
            ),
            Attributes::ActivityCancelRequested(event) => {
                (format!("ActivityCancelRequested #{}", event.number), None)
            }
            Attributes::TimerStarted(event) => (
                format!("TimerStarted {}(#{})", duration(event.duration_us), event.number),
                event.call_site.as_ref(),
            ),
            Attributes::TimerCancelled(event) => {
                (format!("TimerCancelled #{}", event.number), None)
            }
            Attributes::MarkerRecorded(event) => {
                (marker(event.kind, &event.name, event.number), event.call_site.as_ref())
            }
            Attributes::WorkflowExecutionStarted(_) => plain("WorkflowExecutionStarted"),
            Attributes::WorkflowExecutionCompleted(_) => plain("WorkflowExecutionCompleted"),
            Attributes::WorkflowExecutionFailed(_) => plain("WorkflowExecutionFailed"),
            Attributes::WorkflowExecutionCancelled(_) => plain("WorkflowExecutionCancelled"),
            Attributes::WorkflowExecutionTimedOut(_) => plain("WorkflowExecutionTimedOut"),
            Attributes::WorkflowExecutionTerminated(_) => plain("WorkflowExecutionTerminated"),
            Attributes::WorkflowExecutionCancelRequested(_) => {
                plain("WorkflowExecutionCancelRequested")
            }
            Attributes::WorkflowTaskCompleted(_) => plain("WorkflowTaskCompleted"),
            Attributes::WorkflowTaskFailed(_) => plain("WorkflowTaskFailed"),
            Attributes::ActivityCompleted(event) => {
                (format!("ActivityCompleted #{}", event.number), None)
            }
            Attributes::ActivityFailed(event) => {
                (format!("ActivityFailed #{}", event.number), None)
            }
            Attributes::ActivityTimedOut(event) => {
                (format!("ActivityTimedOut #{}", event.number), None)
            }
            Attributes::ActivityCancelled(event) => {
                (format!("ActivityCancelled #{}", event.number), None)
            }
            Attributes::TimerFired(event) => (format!("TimerFired #{}", event.number), None),
            Attributes::SignalReceived(event) => {
                (format!("SignalReceived {}", event.signal_name), None)
            }
        };
        Self { what, at: site.map(place).unwrap_or_default() }
    }

    pub(crate) fn of_command(command: &v1::Command) -> Self {
        let number = command.number;
        let what = match command.kind.as_ref() {
            Some(Kind::ScheduleActivity(call)) => {
                format!("ActivityScheduled {}(#{number})", call.activity_type)
            }
            Some(Kind::CancelActivity(_)) => format!("ActivityCancelRequested #{number}"),
            Some(Kind::StartTimer(timer)) => {
                format!("TimerStarted {}(#{number})", duration(timer.duration_us))
            }
            Some(Kind::CancelTimer(_)) => format!("TimerCancelled #{number}"),
            Some(Kind::RecordMarker(recorded)) => marker(recorded.kind, &recorded.name, number),
            Some(Kind::CompleteWorkflow(_)) => "WorkflowExecutionCompleted".into(),
            Some(Kind::FailWorkflow(_)) => "WorkflowExecutionFailed".into(),
            Some(Kind::CancelWorkflow(_)) => "WorkflowExecutionCancelled".into(),
            None => "nothing".into(),
        };
        Self { what, at: command.call_site.as_ref().map(place).unwrap_or_default() }
    }
}

/// A command as reports name it, with its place in the code.
pub(crate) fn describe(command: &v1::Command) -> String {
    let Side { what, at } = Side::of_command(command);
    if at.is_empty() { what } else { format!("{what}, issued at {at},") }
}

/// Fails the task with both sides of a mismatch.
pub(crate) fn non_determinism(
    run: &RunInfo,
    options: &MachineOptions,
    event_id: u64,
    recorded_build: &str,
    history: &Side,
    code: &Side,
) -> TaskFailure {
    let mut text = format!("non-determinism in {} {}", run.workflow_type, run.workflow_id);
    if event_id > 0 {
        let _ = write!(text, " at event {event_id}");
    }
    let width = history.what.len().max(code.what.len());
    for (label, side, verb, build) in [
        ("history ", history, "recorded", recorded_build),
        ("code now", code, "issued  ", options.build_id.as_str()),
    ] {
        let _ = write!(text, "\n  {label}  {:width$}", side.what);
        let mut comma = "  ";
        if !side.at.is_empty() {
            let _ = write!(text, "  {verb} at {}", side.at);
            comma = ", ";
        }
        if !build.is_empty() {
            let _ = write!(text, "{comma}build {build}");
        }
    }
    text.push_str(
        "\na step was added, removed or reordered before this point; \
         let a worker with the old code finish this run, or give the new code a new workflow name",
    );
    task_failure(v1::WorkflowTaskFailureCause::NonDeterminism, text)
}

fn marker(kind: i32, name: &str, number: u32) -> String {
    match v1::MarkerKind::try_from(kind) {
        Ok(v1::MarkerKind::LocalActivity) => format!("MarkerRecorded local {name}(#{number})"),
        Ok(v1::MarkerKind::RecordedValue) => format!("MarkerRecorded value(#{number})"),
        Ok(v1::MarkerKind::Unspecified) | Err(_) => {
            format!("MarkerRecorded kind {kind}(#{number})")
        }
    }
}

fn place(site: &v1::CallSite) -> String {
    format!("{}:{}:{}", site.file, site.line, site.column)
}

/// A duration for people, in its largest whole unit.
fn duration(micros: i64) -> String {
    let duration = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
    let seconds = duration.as_secs();
    if duration.is_zero() {
        "0s".to_owned()
    } else if duration.subsec_nanos() == 0 && seconds.is_multiple_of(3_600) {
        format!("{}h", seconds / 3_600)
    } else if duration.subsec_nanos() == 0 && seconds.is_multiple_of(60) {
        format!("{}m", seconds / 60)
    } else {
        format!("{duration:?}")
    }
}
