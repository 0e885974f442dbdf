//! Whether a command is what history says, in all its parts and not only in those that a replay
//! compares.

use onward_proto::v1::{
    ActivityCancelRequested, ActivityScheduled, Command, HistoryEvent, MarkerRecorded,
    TimerCancelled, TimerStarted, WorkflowExecutionCancelled, WorkflowExecutionCompleted,
    WorkflowExecutionFailed, command::Kind, history_event::Attributes,
};

/// The event of a command, where the server's part and the place in the code are as recorded.
/// Nothing if it cannot have come from that command.
fn event_of(command: &Command, recorded: &Attributes, queue: &str) -> Option<Attributes> {
    let number = command.number;
    Some(match (command.kind.as_ref()?, recorded) {
        (Kind::ScheduleActivity(call), Attributes::ActivityScheduled(event)) => {
            if event.refused.is_some() {
                // The arguments and all that is text were left out.
                let hash = command.arguments_hash;
                let event = ActivityScheduled { number, arguments_hash: hash, ..event.clone() };
                return Some(Attributes::ActivityScheduled(event));
            }
            let own = if call.task_queue.is_empty() { queue } else { &call.task_queue };
            Attributes::ActivityScheduled(ActivityScheduled {
                number,
                activity_type: call.activity_type.clone(),
                task_queue: own.to_owned(),
                arguments: call.arguments.clone(),
                timeouts: call.timeouts,
                retry: call.retry.clone(),
                call_site: event.call_site.clone(),
                arguments_hash: command.arguments_hash,
                summary: command.summary.clone(),
                priority: call.priority,
                refused: None,
            })
        }
        (Kind::CancelActivity(_), Attributes::ActivityCancelRequested(_)) => {
            Attributes::ActivityCancelRequested(ActivityCancelRequested { number })
        }
        (Kind::StartTimer(timer), Attributes::TimerStarted(event)) => {
            Attributes::TimerStarted(TimerStarted {
                number,
                duration_us: timer.duration_us,
                fire_at_us: event.fire_at_us,
                call_site: event.call_site.clone(),
                summary: command.summary.clone(),
                refused: None,
            })
        }
        (Kind::CancelTimer(_), Attributes::TimerCancelled(_)) => {
            Attributes::TimerCancelled(TimerCancelled { number })
        }
        (Kind::RecordMarker(marker), Attributes::MarkerRecorded(event)) => {
            if event.refused.is_some() {
                let event = MarkerRecorded { number, kind: marker.kind, ..event.clone() };
                return Some(Attributes::MarkerRecorded(event));
            }
            // A marker of a worker without an SDK has no hash.
            let hash = if event.arguments_hash == 0 { 0 } else { command.arguments_hash };
            Attributes::MarkerRecorded(MarkerRecorded {
                number,
                kind: marker.kind,
                name: marker.name.clone(),
                result: marker.result.clone(),
                failure: marker.failure.clone(),
                cause: marker.cause,
                attempts: marker.attempts,
                call_site: event.call_site.clone(),
                arguments_hash: hash,
                refused: None,
            })
        }
        (kind, Attributes::WorkflowExecutionFailed(event)) if event.refused.is_some() => {
            let unread_signals = match kind {
                Kind::StartTimer(_) => Vec::new(),
                Kind::CompleteWorkflow(close) => close.unread_signals.clone(),
                Kind::FailWorkflow(close) => close.unread_signals.clone(),
                Kind::CancelWorkflow(close) => close.unread_signals.clone(),
                Kind::ScheduleActivity(_)
                | Kind::CancelActivity(_)
                | Kind::CancelTimer(_)
                | Kind::RecordMarker(_) => return None,
            };
            let event = WorkflowExecutionFailed { unread_signals, ..event.clone() };
            Attributes::WorkflowExecutionFailed(event)
        }
        (Kind::CompleteWorkflow(close), Attributes::WorkflowExecutionCompleted(_)) => {
            Attributes::WorkflowExecutionCompleted(WorkflowExecutionCompleted {
                result: close.result.clone(),
                unread_signals: close.unread_signals.clone(),
            })
        }
        (Kind::FailWorkflow(close), Attributes::WorkflowExecutionFailed(_)) => {
            Attributes::WorkflowExecutionFailed(WorkflowExecutionFailed {
                failure: close.failure.clone(),
                unread_signals: close.unread_signals.clone(),
                refused: None,
            })
        }
        (Kind::CancelWorkflow(close), Attributes::WorkflowExecutionCancelled(_)) => {
            Attributes::WorkflowExecutionCancelled(WorkflowExecutionCancelled {
                failure: close.failure.clone(),
                unread_signals: close.unread_signals.clone(),
            })
        }
        _ => return None,
    })
}

/// How the commands of a task differ from the events that were made of them.
pub(crate) fn difference(
    commands: &[Command],
    events: &[HistoryEvent],
    queue: &str,
) -> Option<String> {
    // What was asked for behind a timer that ended the run was never made.
    let ended_by_timer = events.last().is_some_and(|event| {
        matches!(&event.attributes, Some(Attributes::WorkflowExecutionFailed(failed))
            if failed.refused.is_some())
    });
    if commands.len() != events.len() && !(ended_by_timer && commands.len() > events.len()) {
        return Some(format!("{} commands in place of {}", commands.len(), events.len()));
    }
    commands.iter().zip(events).find_map(|(command, event)| {
        let recorded = event.attributes.as_ref()?;
        let made = event_of(command, recorded, queue);
        (made.as_ref() != Some(recorded))
            .then(|| format!("event {}: {recorded:?}\n in its place: {command:?}", event.event_id))
    })
}
