//! How much is too much.
//!
//! Requests are refused before they reach a run. A command that breaks a limit is recorded without
//! its payloads and with the limit, so that replay never depends on anybody's configuration.

use onward_proto::{
    FAILURE_DEPTH, MAX_DURATION_US, Timestamp,
    v1::{Failure, Limit, Payload, history_event::Attributes},
};
use prost::Message as _;

use super::{Limits, Run, Start};

/// A broken limit.
pub(super) fn limit(name: &str, limit: u64, value: u64) -> Limit {
    Limit { name: name.into(), limit, value }
}

/// Checks an id or name.
///
/// # Errors
/// The limit it breaks.
pub fn check_id(name: &str, id: &str, limits: &Limits) -> Result<(), Limit> {
    if id.len() as u64 > limits.id_bytes {
        return Err(limit(name, limits.id_bytes, id.len() as u64));
    }
    check_text(id)
}

/// Checks that a text has no U+0000, which Postgres cannot store.
///
/// # Errors
/// The limit it breaks.
pub fn check_text(text: &str) -> Result<(), Limit> {
    match text.bytes().filter(|&byte| byte == 0).count() {
        0 => Ok(()),
        nul => Err(limit("nul_characters_in_text", 0, nul as u64)),
    }
}

/// Checks the payloads of one command or request together, `other` bytes of text among them.
///
/// # Errors
/// The limit they break.
pub fn check_payloads<'a>(
    payloads: impl IntoIterator<Item = &'a Payload>,
    other: usize,
    limits: &Limits,
) -> Result<(), Limit> {
    let mut bytes = other as u64;
    for payload in payloads {
        check_text(&payload.content_type)?;
        for key in payload.metadata.keys() {
            check_text(key)?;
        }
        bytes += payload.counted_bytes();
    }
    check_bytes(bytes, limits)
}

/// Checks a failure that a command carries.
///
/// # Errors
/// The limit it breaks.
pub(super) fn check_failure(failure: &Failure, limits: &Limits) -> Result<(), Limit> {
    check_bytes(failure.encoded_len() as u64, limits)?;
    let depth = failure.depth();
    if depth > FAILURE_DEPTH {
        return Err(limit("failure_depth", FAILURE_DEPTH as u64, depth as u64));
    }
    let mut next = Some(failure);
    while let Some(failure) = next {
        for text in [&failure.kind, &failure.message, &failure.stack] {
            check_text(text)?;
        }
        next = failure.cause.as_deref();
    }
    Ok(())
}

/// Checks a duration: not negative, and no longer than databases can count.
pub(super) fn check_duration(name: &str, duration_us: i64) -> Result<(), Limit> {
    match u64::try_from(duration_us) {
        Ok(_) if duration_us <= MAX_DURATION_US => Ok(()),
        Ok(value) => Err(limit(name, MAX_DURATION_US as u64, value)),
        // A negative one has no value of its own here: the limit's name tells.
        Err(_) => Err(limit(&format!("{name}_not_negative"), 0, duration_us.unsigned_abs())),
    }
}

fn check_bytes(bytes: u64, limits: &Limits) -> Result<(), Limit> {
    if bytes > limits.payload_bytes {
        return Err(limit("payload_bytes_per_command", limits.payload_bytes, bytes));
    }
    Ok(())
}

/// A text as a refused command's event may keep it: short, and without U+0000.
pub(super) fn harmless(text: &str, limits: &Limits) -> String {
    let end = text.floor_char_boundary(limits.id_bytes as usize);
    text[..end].replace('\0', "\u{fffd}")
}

impl Run {
    /// The limit that the history would break if it grew by so many events.
    pub(super) fn history_limit(&self, events: usize, limits: &Limits) -> Option<Limit> {
        let length = self.next_event_id - 1 + self.inbox.len() as u64 + events as u64;
        if length > limits.history_events {
            return Some(limit("history_events", limits.history_events, length));
        }
        if self.bytes > limits.history_bytes {
            return Some(limit("history_bytes", limits.history_bytes, self.bytes));
        }
        None
    }
}

/// Checks a start.
pub(super) fn check_start(start: &Start, limits: &Limits) -> Result<(), Limit> {
    check_id("workflow_id_bytes", &start.workflow_id, limits)?;
    check_id("workflow_type_bytes", &start.workflow_type, limits)?;
    check_id("task_queue_bytes", &start.task_queue, limits)?;
    check_id("identity_bytes", &start.identity, limits)?;
    for key in start.memo.keys() {
        check_id("memo_key_bytes", key, limits)?;
    }
    check_payloads(start.arguments.iter().chain(start.memo.values()), 0, limits)?;
    check_duration("execution_timeout_us", start.execution_timeout_us)?;
    check_duration("run_timeout_us", start.run_timeout_us)
}

/// A record as it stands in a journal.
pub(super) fn record(now: Timestamp, attributes: Attributes) -> onward_proto::v1::HistoryEvent {
    onward_proto::v1::HistoryEvent {
        event_id: 0,
        time_us: now.as_micros(),
        received_at_us: 0,
        attributes: Some(attributes),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{
        super::{Rejection, fixture::*},
        *,
    };

    /// A chain of failures whose innermost has this message.
    fn deep(depth: usize, message: &str) -> Failure {
        let mut failure = Failure { message: message.to_owned(), ..Failure::default() };
        for _ in 1..depth {
            failure = Failure { cause: Some(Box::new(failure)), ..Failure::default() };
        }
        failure
    }

    #[test]
    fn a_failure_that_fits_is_taken_and_another_says_why_not() {
        let limits = Limits { payload_bytes: 1_000, ..Limits::default() };
        let refused =
            |failure: &Failure| check_failure(failure, &limits).map_err(|limit| limit.name);
        let failure = deep(FAILURE_DEPTH + 1, "");
        assert_eq!(refused(&failure), Err("failure_depth".to_owned()));
        assert_eq!(refused(failure.cause.as_ref().unwrap()), Ok(()));
        assert_eq!(refused(&deep(3, "\0")), Err("nul_characters_in_text".to_owned()));
        let large = deep(1, &"m".repeat(1_000));
        assert_eq!(refused(&large), Err("payload_bytes_per_command".to_owned()));
        assert_eq!(refused(&large.fit(1_000)), Ok(()));
    }

    #[test]
    fn a_broken_limit_says_its_name_and_the_offending_value() {
        let limits = Limits { payload_bytes: 10, id_bytes: 3, ..Limits::default() };
        let payload = Payload { data: vec![0; 11].into(), ..Payload::default() };
        let broken = check_payloads([&payload], 0, &limits).unwrap_err();
        assert_eq!(broken, limit("payload_bytes_per_command", 10, 11));
        assert_eq!(check_id("id", "abcd", &limits).unwrap_err(), limit("id", 3, 4));
        assert_eq!(check_id("id", "a\0", &limits).unwrap_err().name, "nul_characters_in_text");
        assert_eq!(check_duration("d", -5).unwrap_err(), limit("d_not_negative", 0, 5));
        assert!(check_duration("d", i64::MIN).is_err());
        let century = 3_162_240_000_000_000;
        let broken = check_duration("d", century + 1).unwrap_err();
        assert_eq!(broken, limit("d", century as u64, century as u64 + 1));
    }

    #[test]
    fn what_is_as_large_as_its_limit_fits() {
        let limits = Limits { payload_bytes: 10, id_bytes: 3, ..Limits::default() };
        let payload = Payload { data: vec![0; 6].into(), ..Payload::default() };
        assert_eq!(check_payloads([&payload], 4, &limits), Ok(()));
        let broken = check_payloads([&payload, &payload], 4, &limits).unwrap_err();
        assert_eq!(broken.value, 16);
        assert_eq!(check_id("id", "abc", &limits), Ok(()));
        assert_eq!(check_duration("d", 0), Ok(()));
        assert_eq!(check_duration("d", 3_162_240_000_000_000), Ok(()));
    }

    #[test]
    fn a_history_of_too_many_bytes_takes_no_message_and_no_task_that_goes_on() {
        let story = |history_bytes| {
            let mut story = history().task([marker(1, &"x".repeat(1_000))]);
            story.limits.history_bytes = history_bytes;
            story
        };
        let records = story(0).journal.into_iter().flat_map(|row| row.records);
        let bytes = records.map(|record| record.encoded_len() as u64).sum();
        assert_eq!(story(0).run.history_size().bytes, bytes);
        let broken = Rejection::Limit(limit("history_bytes", bytes - 1, bytes));
        story(bytes - 1).signal("a").then_rejected(&broken);
        let full = || story(bytes).signal("a").then_inbox("signal:a");
        full().task([]).then_history("started task(0) marker1 signal:a FAILED!");
        full()
            .task([complete("")])
            .then_history("started task(0) marker1 signal:a task(1) COMPLETED");
    }
}
