//! What the server will not take, so that a worker can say so before it sends it.
//!
//! Nothing here decides what workflow code sees at a replay: what is too large is recorded as a
//! failure, or the task fails.

use onward_proto::v1;
use prost::Message as _;

use crate::error::Limit;

/// The payloads of one command together, as the server counts them.
pub(crate) const PAYLOAD_BYTES: u64 = 2 << 20;

/// Larger details of a heartbeat are not kept.
const HEARTBEAT_DETAILS_BYTES: u64 = 64 << 10;

/// Causes below a failure that the server keeps.
const FAILURE_DEPTH: usize = 32;

/// What a payload counts.
fn payload_bytes(payload: &v1::Payload) -> u64 {
    let metadata: usize = payload.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    (payload.data.len() + payload.content_type.len() + metadata) as u64
}

/// Checks the payload of a command.
///
/// # Errors
/// The limit that it breaks.
pub(crate) fn check_payload(payload: &v1::Payload, max_bytes: u64) -> Result<(), Limit> {
    let value = payload_bytes(payload);
    if value <= max_bytes {
        return Ok(());
    }
    Err(Limit { name: "payload_bytes_per_command".to_owned(), limit: max_bytes, value })
}

/// Checks what an activity says with a sign of life.
///
/// # Errors
/// The limit that it breaks.
pub(crate) fn check_details(details: &v1::Payload) -> Result<(), Limit> {
    let value = details.encoded_len() as u64;
    if value <= HEARTBEAT_DETAILS_BYTES {
        return Ok(());
    }
    let name = "heartbeat_details_bytes".to_owned();
    Err(Limit { name, limit: HEARTBEAT_DETAILS_BYTES, value })
}

/// A failure that the server takes: without U+0000, not too deep, and if it is larger than
/// `max_bytes`, first without stacks, then without causes, without its value, and at last with a
/// shorter message.
pub(crate) fn fit_failure(mut failure: v1::Failure, max_bytes: u64) -> v1::Failure {
    let mut depth = 1;
    let mut next = Some(&mut failure);
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
    let fits = |failure: &v1::Failure| failure.encoded_len() as u64 <= max_bytes;
    if !fits(&failure) {
        let mut next = Some(&mut failure);
        while let Some(failure) = next {
            failure.stack.clear();
            next = failure.cause.as_deref_mut();
        }
    }
    if !fits(&failure) {
        failure.cause = None;
    }
    if !fits(&failure) {
        failure.details.clear();
    }
    if !fits(&failure) {
        // What the lengths and the small fields take, generously.
        const REST: usize = 64;
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        cut(&mut failure.kind, max_bytes / 4);
        let room = max_bytes.saturating_sub(failure.kind.len() + REST);
        cut(&mut failure.message, room);
    }
    failure
}

fn cut(text: &mut String, bytes: usize) {
    text.truncate(text.floor_char_boundary(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_loses_as_little_as_it_must() {
        let cause = v1::Failure { message: "c".repeat(300), ..Default::default() };
        let detail = v1::Payload { data: vec![b'd'; 300].into(), ..Default::default() };
        let failure = v1::Failure {
            kind: "Large".to_owned(),
            message: "m".repeat(300),
            details: vec![detail],
            cause: Some(Box::new(cause)),
            stack: "s".repeat(300),
            ..Default::default()
        };
        let kept = |max_bytes| {
            let fit = fit_failure(failure.clone(), max_bytes);
            assert!(fit.encoded_len() as u64 <= max_bytes, "{max_bytes}");
            (!fit.stack.is_empty(), fit.cause.is_some(), fit.details.len(), fit.message.len())
        };
        assert_eq!(kept(2_000), (true, true, 1, 300));
        assert_eq!(kept(1_000), (false, true, 1, 300));
        assert_eq!(kept(700), (false, false, 1, 300));
        assert_eq!(kept(400), (false, false, 0, 300));
        assert_eq!(kept(200), (false, false, 0, 200 - 64 - 5));
    }

    #[test]
    fn a_failure_has_no_nul_and_few_causes() {
        let mut failure = v1::Failure { message: "a\0b".to_owned(), ..Default::default() };
        for _ in 0..50 {
            failure = v1::Failure { cause: Some(Box::new(failure)), ..Default::default() };
        }
        let mut fit = &fit_failure(failure, 1 << 20);
        let mut depth = 1;
        while let Some(cause) = &fit.cause {
            (fit, depth) = (cause, depth + 1);
        }
        assert_eq!(depth, FAILURE_DEPTH);
        let nul = v1::Failure { message: "a\0b".to_owned(), ..Default::default() };
        assert_eq!(fit_failure(nul, 1 << 20).message, "a\u{fffd}b");
    }
}
