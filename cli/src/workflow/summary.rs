//! One short line for each event of a history.

use onward_proto::v1::{
    ActivityFailureCause, ActivityTimeoutKind, CallSite, HistoryEvent, Limit,
    LocalActivityFailureCause, MarkerKind, Payload, WorkflowTaskFailureCause, WorkflowTimeoutKind,
    history_event::Attributes,
};

use crate::text::{self, clean};

/// The event's name, and what is worth knowing about it.
pub(super) fn of(event: &HistoryEvent) -> (&'static str, String) {
    let Some(attributes) = &event.attributes else {
        return ("?", "an event that this version of onward does not know".to_owned());
    };
    match attributes {
        Attributes::WorkflowExecutionStarted(a) => (
            "WorkflowExecutionStarted",
            join([
                format!("{}{}", clean(&a.workflow_type), text::arguments(&a.arguments)),
                format!("on queue {}", clean(&a.task_queue)),
                by(&a.identity),
            ]),
        ),
        Attributes::WorkflowExecutionCompleted(a) => (
            "WorkflowExecutionCompleted",
            join([result(a.result.as_ref()), unread(&a.unread_signals)]),
        ),
        Attributes::WorkflowExecutionFailed(a) => (
            "WorkflowExecutionFailed",
            join([
                a.failure.as_ref().map(text::failure).unwrap_or_default(),
                refused(a.refused.as_ref()),
                unread(&a.unread_signals),
            ]),
        ),
        Attributes::WorkflowExecutionCancelled(a) => (
            "WorkflowExecutionCancelled",
            join([
                a.failure.as_ref().map(text::failure).unwrap_or_default(),
                unread(&a.unread_signals),
            ]),
        ),
        Attributes::WorkflowExecutionTimedOut(a) => (
            "WorkflowExecutionTimedOut",
            match a.kind() {
                WorkflowTimeoutKind::Unspecified => String::new(),
                kind => text::word(kind.as_str_name(), "WORKFLOW_TIMEOUT_KIND_") + " timeout",
            },
        ),
        Attributes::WorkflowExecutionTerminated(a) => {
            ("WorkflowExecutionTerminated", join([clean(&a.reason), by(&a.identity)]))
        }
        Attributes::WorkflowExecutionCancelRequested(a) => {
            ("WorkflowExecutionCancelRequested", join([clean(&a.reason), by(&a.identity)]))
        }
        Attributes::WorkflowTaskCompleted(a) => (
            "WorkflowTaskCompleted",
            join([
                format!("took {}", count(u64::from(a.facts_taken), "fact")),
                format!("gave {}", count(u64::from(a.command_events), "command")),
                if a.more { "goes on at once".to_owned() } else { String::new() },
                match a.untaken_facts {
                    0 => String::new(),
                    n => format!("left {}", count(u64::from(n), "fact")),
                },
                by(&a.identity),
            ]),
        ),
        Attributes::WorkflowTaskFailed(a) => (
            "WorkflowTaskFailed",
            join([task_cause(a.cause(), a.failure.as_ref().map(text::failure)), by(&a.identity)]),
        ),
        Attributes::ActivityScheduled(a) => (
            "ActivityScheduled",
            join([
                format!(
                    "#{} {}{}",
                    a.number,
                    clean(&a.activity_type),
                    text::arguments(&a.arguments)
                ),
                clean(&a.summary),
                format!("on queue {}", clean(&a.task_queue)),
                refused(a.refused.as_ref()),
                call_site(a.call_site.as_ref()),
            ]),
        ),
        Attributes::ActivityCancelRequested(a) => {
            ("ActivityCancelRequested", format!("#{}", a.number))
        }
        Attributes::ActivityCompleted(a) => (
            "ActivityCompleted",
            join([
                format!("#{} {}", a.number, result(a.result.as_ref())),
                attempt(a.attempt),
                by(&a.identity),
            ]),
        ),
        Attributes::ActivityFailed(a) => (
            "ActivityFailed",
            join([
                format!(
                    "#{} {}",
                    a.number,
                    a.failure.as_ref().map(text::failure).unwrap_or_default()
                ),
                match a.cause() {
                    ActivityFailureCause::Unspecified => String::new(),
                    ActivityFailureCause::Application => "not retryable".to_owned(),
                    ActivityFailureCause::Exhausted => "no attempts left".to_owned(),
                    ActivityFailureCause::OutcomeUnknown => {
                        "its worker vanished, it may have happened".to_owned()
                    }
                    ActivityFailureCause::Refused => refused(a.refused.as_ref()),
                },
                attempt(a.attempt),
                by(&a.identity),
            ]),
        ),
        Attributes::ActivityTimedOut(a) => (
            "ActivityTimedOut",
            join([
                format!(
                    "#{} {}",
                    a.number,
                    match a.kind() {
                        ActivityTimeoutKind::Unspecified => String::new(),
                        kind => {
                            text::word(kind.as_str_name(), "ACTIVITY_TIMEOUT_KIND_")
                                .replace(' ', "-")
                                + " timeout"
                        }
                    }
                ),
                attempt(a.attempt),
                match &a.last_failure {
                    Some(failure) => format!("before that: {}", text::failure(failure)),
                    None => String::new(),
                },
            ]),
        ),
        Attributes::ActivityCancelled(a) => (
            "ActivityCancelled",
            join([
                format!(
                    "#{} {}",
                    a.number,
                    a.failure.as_ref().map(text::failure).unwrap_or_default()
                ),
                attempt(a.attempt),
            ]),
        ),
        Attributes::TimerStarted(a) => (
            "TimerStarted",
            join([
                format!("#{} {}", a.number, text::duration_us(a.duration_us)),
                clean(&a.summary),
                refused(a.refused.as_ref()),
                call_site(a.call_site.as_ref()),
            ]),
        ),
        Attributes::TimerFired(a) => ("TimerFired", format!("#{}", a.number)),
        Attributes::TimerCancelled(a) => ("TimerCancelled", format!("#{}", a.number)),
        Attributes::SignalReceived(a) => (
            "SignalReceived",
            join([
                format!("{}{}", clean(&a.signal_name), text::arguments(&a.arguments)),
                if a.handed_over { "handed over".to_owned() } else { String::new() },
                by(&a.identity),
            ]),
        ),
        Attributes::MarkerRecorded(a) => (
            "MarkerRecorded",
            join([
                format!(
                    "#{} {} {}",
                    a.number,
                    match a.kind() {
                        MarkerKind::LocalActivity => format!("local activity {}", clean(&a.name)),
                        MarkerKind::RecordedValue | MarkerKind::Unspecified => "value".to_owned(),
                    },
                    result(a.result.as_ref())
                ),
                a.failure.as_ref().map(text::failure).unwrap_or_default(),
                match a.cause() {
                    LocalActivityFailureCause::Unspecified => String::new(),
                    LocalActivityFailureCause::Application => "not retryable".to_owned(),
                    LocalActivityFailureCause::Exhausted => "no attempts left".to_owned(),
                    LocalActivityFailureCause::TimedOut => "timed out".to_owned(),
                    LocalActivityFailureCause::DeadlinePassed => "deadline passed".to_owned(),
                    LocalActivityFailureCause::Cancelled => "cancelled".to_owned(),
                },
                attempt(a.attempts),
                refused(a.refused.as_ref()),
                call_site(a.call_site.as_ref()),
            ]),
        ),
    }
}

/// Why a workflow task failed.
pub(super) fn task_cause(cause: WorkflowTaskFailureCause, report: Option<String>) -> String {
    let cause = text::word(cause.as_str_name(), "WORKFLOW_TASK_FAILURE_CAUSE_");
    match report {
        Some(report) => format!("{cause}: {report}"),
        None => cause,
    }
}

fn join<const N: usize>(parts: [String; N]) -> String {
    let parts: Vec<_> = parts
        .into_iter()
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect();
    parts.join(", ")
}

fn by(identity: &str) -> String {
    if identity.is_empty() { String::new() } else { format!("by {}", clean(identity)) }
}

fn result(result: Option<&Payload>) -> String {
    result.map(text::short_payload).unwrap_or_default()
}

fn attempt(attempt: u32) -> String {
    if attempt > 1 { format!("attempt {attempt}") } else { String::new() }
}

fn unread(signals: &[u64]) -> String {
    if signals.is_empty() {
        String::new()
    } else {
        format!("{} never read", count(signals.len() as u64, "signal"))
    }
}

fn refused(limit: Option<&Limit>) -> String {
    limit
        .map(|limit| {
            format!(
                "refused: {} is {}, at most {} is allowed",
                clean(&limit.name),
                limit.value,
                limit.limit
            )
        })
        .unwrap_or_default()
}

fn call_site(site: Option<&CallSite>) -> String {
    site.map(|site| format!("at {}:{}:{}", clean(&site.file), site.line, site.column))
        .unwrap_or_default()
}

pub(super) fn count(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

#[cfg(test)]
mod tests {
    use onward_proto::v1::{
        ActivityCompleted, ActivityFailed, Failure, SignalReceived, TimerStarted,
        WorkflowTaskCompleted,
    };

    use super::*;
    use crate::input;

    fn line(attributes: Attributes) -> String {
        let (name, about) =
            of(&HistoryEvent { attributes: Some(attributes), ..HistoryEvent::default() });
        format!("{name} {about}")
    }

    #[test]
    fn events_read_like_notes() {
        for (attributes, expected) in [
            (
                Attributes::SignalReceived(SignalReceived {
                    signal_name: "approval".into(),
                    arguments: vec![input::payload(r#"{"by":"Ada"}"#)],
                    identity: "cli@host:1".into(),
                    ..SignalReceived::default()
                }),
                r#"SignalReceived approval({"by":"Ada"}), by cli@host:1"#,
            ),
            (
                Attributes::WorkflowTaskCompleted(WorkflowTaskCompleted {
                    facts_taken: 1,
                    command_events: 2,
                    ..WorkflowTaskCompleted::default()
                }),
                "WorkflowTaskCompleted took 1 fact, gave 2 commands",
            ),
            (
                Attributes::ActivityCompleted(ActivityCompleted {
                    number: 3,
                    result: Some(input::payload("[1,2]")),
                    attempt: 2,
                    ..ActivityCompleted::default()
                }),
                "ActivityCompleted #3 [1,2], attempt 2",
            ),
            (
                Attributes::ActivityFailed(ActivityFailed {
                    number: 3,
                    failure: Some(Failure { message: "no\x1b[2J".into(), ..Failure::default() }),
                    cause: ActivityFailureCause::Exhausted.into(),
                    ..ActivityFailed::default()
                }),
                "ActivityFailed #3 no\\u{1b}[2J, no attempts left",
            ),
            (
                Attributes::TimerStarted(TimerStarted {
                    number: 4,
                    duration_us: 5_000_000,
                    call_site: Some(CallSite { file: "src/main.rs".into(), line: 7, column: 9 }),
                    ..TimerStarted::default()
                }),
                "TimerStarted #4 5 s, at src/main.rs:7:9",
            ),
        ] {
            assert_eq!(line(attributes), expected);
        }
    }
}
