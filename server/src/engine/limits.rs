//! How much is too much.
//!
//! Requests are refused before they reach a run. A command that breaks a limit is recorded without
//! its payloads and with the limit, so that replay never depends on anybody's configuration.

use onward_proto::{
    Timestamp,
    v1::{Failure, Limit, Payload, WorkflowExecutionStarted, history_event::Attributes},
};
use prost::Message as _;

use super::{Limits, Run};

/// Causes below a failure that are kept. Deeper ones could not be sent to a worker: decoders stop
/// at a depth of 100.
const FAILURE_DEPTH: usize = 32;

/// The longest duration that is accepted, a hundred years: beyond lie times that no database
/// knows. Microseconds.
pub const MAX_DURATION_US: i64 = 100 * 366 * 86_400 * 1_000_000;

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
        bytes += payload_bytes(payload);
    }
    check_bytes(bytes, limits)
}

/// Checks a failure that a command carries.
///
/// # Errors
/// The limit it breaks.
pub(super) fn check_failure(failure: &Failure, limits: &Limits) -> Result<(), Limit> {
    check_bytes(failure.encoded_len() as u64, limits)?;
    let mut depth = 0;
    let mut next = Some(failure);
    while let Some(failure) = next {
        depth += 1;
        for text in [&failure.kind, &failure.message, &failure.stack] {
            check_text(text)?;
        }
        next = failure.cause.as_deref();
    }
    if depth > FAILURE_DEPTH {
        return Err(limit("failure_depth", FAILURE_DEPTH as u64, depth as u64));
    }
    Ok(())
}

/// Checks a duration: not negative, and no longer than databases can count.
pub(super) fn check_duration(name: &str, duration_us: i64) -> Result<(), Limit> {
    if (0..=MAX_DURATION_US).contains(&duration_us) {
        return Ok(());
    }
    // A negative one has no value of its own here: the limit's name tells.
    let name = if duration_us < 0 { format!("{name}_not_negative") } else { name.to_owned() };
    let greatest = if duration_us < 0 { 0 } else { MAX_DURATION_US as u64 };
    Err(limit(&name, greatest, duration_us.unsigned_abs()))
}

fn check_bytes(bytes: u64, limits: &Limits) -> Result<(), Limit> {
    if bytes > limits.payload_bytes {
        return Err(limit("payload_bytes_per_command", limits.payload_bytes, bytes));
    }
    Ok(())
}

/// What a payload counts.
pub(super) fn payload_bytes(payload: &Payload) -> u64 {
    let metadata: usize = payload.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    (payload.data.len() + payload.content_type.len() + metadata) as u64
}

/// A text as a refused command's event may keep it: short, and without U+0000.
pub(super) fn harmless(text: &str, limits: &Limits) -> String {
    let end = text.floor_char_boundary(limits.id_bytes as usize);
    text[..end].replace('\0', "\u{fffd}")
}

/// A failure that fits: without U+0000 and not too deep, and if it is larger than `max_bytes`
/// first without stacks, then without causes, without details, and at last with a shorter message.
pub(super) fn cut_failure(failure: &Failure, max_bytes: u64) -> Failure {
    let mut cut = failure.clone();
    let mut depth = 1;
    let mut next = Some(&mut cut);
    while let Some(failure) = next {
        for text in [&mut failure.kind, &mut failure.message, &mut failure.stack] {
            if text.contains('\0') {
                *text = text.replace('\0', "\u{fffd}");
            }
        }
        if depth == FAILURE_DEPTH {
            failure.cause = None;
        }
        depth += 1;
        next = failure.cause.as_deref_mut();
    }
    let fits = |failure: &Failure| failure.encoded_len() as u64 <= max_bytes;
    if !fits(&cut) {
        let mut next = Some(&mut cut);
        while let Some(failure) = next {
            failure.stack.clear();
            next = failure.cause.as_deref_mut();
        }
    }
    if !fits(&cut) {
        cut.cause = None;
    }
    if !fits(&cut) {
        cut.details.clear();
    }
    if !fits(&cut) {
        let room = (max_bytes / 4) as usize;
        cut.kind.truncate(cut.kind.floor_char_boundary(room));
        let room = (max_bytes as usize).saturating_sub(cut.kind.len() + 64);
        cut.message.truncate(cut.message.floor_char_boundary(room));
    }
    cut
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
pub(super) fn check_start(
    started: &WorkflowExecutionStarted,
    limits: &Limits,
) -> Result<(), Limit> {
    check_id("workflow_id_bytes", &started.workflow_id, limits)?;
    check_id("workflow_type_bytes", &started.workflow_type, limits)?;
    check_id("task_queue_bytes", &started.task_queue, limits)?;
    check_id("identity_bytes", &started.identity, limits)?;
    for key in started.memo.keys() {
        check_id("memo_key_bytes", key, limits)?;
    }
    check_payloads(started.arguments.iter().chain(started.memo.values()), 0, limits)?;
    check_duration("execution_timeout_us", started.execution_timeout_us)?;
    check_duration("run_timeout_us", started.run_timeout_us)
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

    use super::*;

    fn deep(depth: usize) -> Failure {
        let mut failure = Failure { message: "a\0b".into(), ..Failure::default() };
        for _ in 1..depth {
            failure = Failure {
                kind: "Outer".into(),
                message: "m".repeat(100),
                cause: Some(Box::new(failure)),
                ..Failure::default()
            };
        }
        failure
    }

    #[test]
    fn a_failure_is_cut_to_what_fits_and_keeps_its_kind() {
        for (depth, message, max) in [(1, 10, 4096), (90, 10, 4096), (2, 100_000, 4096)] {
            let mut failure = deep(depth);
            failure.kind = "PaymentError::Declined".into();
            failure.message = "é".repeat(message);
            failure.stack = "s".repeat(50_000);
            let cut = cut_failure(&failure, max);
            assert!(cut.encoded_len() as u64 <= max, "{}", cut.encoded_len());
            assert_eq!(cut.kind, "PaymentError::Declined");
            assert!(cut.message.starts_with('é'));
        }
        assert_eq!(cut_failure(&deep(1), 4096).message, "a\u{fffd}b");
        assert!(check_failure(&cut_failure(&deep(90), 1 << 20), &Limits::default()).is_ok());
        assert_eq!(
            check_failure(&deep(33).cause.unwrap(), &Limits::default()).unwrap_err().limit,
            0
        );
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
        assert!(check_duration("d", i64::MAX).is_err());
        assert!(check_duration("d", i64::MIN).is_err());
    }
}
