//! What the server will not take, so that a worker can say so before it sends it.
//!
//! Nothing here decides what workflow code sees at a replay: what is too large is recorded, as a
//! failure or as refused.

use std::mem;

use onward_proto::v1::{self, command::Kind};
use prost::Message as _;

use crate::error::Limit;

/// The payloads of one command together, as the server counts them.
pub(crate) const PAYLOAD_BYTES: u64 = 2 << 20;

const PAYLOAD_LIMIT: &str = "payload_bytes_per_command";

/// Larger details of a heartbeat are not kept.
const HEARTBEAT_DETAILS_BYTES: u64 = 64 << 10;

/// A text as the server takes it: without U+0000, which Postgres cannot store.
pub(crate) fn without_nul(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

/// Checks the payload of a command.
///
/// # Errors
/// The limit that it breaks.
pub(crate) fn check_payload(payload: &v1::Payload, max_bytes: u64) -> Result<(), Limit> {
    let value = payload.counted_bytes();
    if value <= max_bytes {
        return Ok(());
    }
    Err(Limit { name: PAYLOAD_LIMIT.to_owned(), limit: max_bytes, value })
}

/// Leaves out of a command what makes it too large for a message, and says which limit it breaks:
/// the server records it as refused, as it does with one that is not quite as large.
pub(crate) fn leave_out(command: &mut v1::Command, max_message: usize) {
    let message = command.encoded_len() as u64;
    let failure_bytes = |failure: v1::Failure| failure.encoded_len() as u64;
    let payload_bytes = |payload: v1::Payload| payload.counted_bytes();
    let counted = match &mut command.kind {
        Some(Kind::ScheduleActivity(schedule)) => {
            schedule.retry = None;
            mem::take(&mut schedule.arguments).into_iter().map(payload_bytes).sum()
        }
        Some(Kind::RecordMarker(marker)) => {
            marker.result.take().map_or(0, payload_bytes)
                + marker.failure.take().map_or(0, failure_bytes)
        }
        Some(Kind::CompleteWorkflow(complete)) => complete.result.take().map_or(0, payload_bytes),
        Some(Kind::FailWorkflow(fail)) => fail.failure.take().map_or(0, failure_bytes),
        Some(Kind::CancelWorkflow(cancel)) => cancel.failure.take().map_or(0, failure_bytes),
        Some(Kind::CancelActivity(_) | Kind::StartTimer(_) | Kind::CancelTimer(_)) | None => 0,
    };
    let counted = counted + mem::take(&mut command.summary).len() as u64;
    let (name, limit, value) = if counted > PAYLOAD_BYTES {
        (PAYLOAD_LIMIT, PAYLOAD_BYTES, counted)
    } else {
        ("message_bytes", max_message as u64, message)
    };
    command.refused = Some(v1::Limit { name: name.to_owned(), limit, value });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn command(kind: Kind) -> v1::Command {
        v1::Command { number: 7, kind: Some(kind), ..v1::Command::default() }
    }

    fn payload(bytes: usize) -> v1::Payload {
        v1::Payload { data: vec![7; bytes].into(), ..v1::Payload::default() }
    }

    fn failure(bytes: usize) -> v1::Failure {
        v1::Failure { message: "m".repeat(bytes), ..v1::Failure::default() }
    }

    #[test]
    fn a_command_without_its_payloads_is_small_and_names_the_limit_and_the_value() {
        let commands = |bytes: usize| {
            let (arguments, result) = (vec![payload(bytes)], Some(payload(bytes)));
            let failure = Some(failure(bytes));
            let schedule = v1::ScheduleActivity { arguments, ..Default::default() };
            let marker = v1::RecordMarker { result: result.clone(), ..Default::default() };
            let complete = v1::CompleteWorkflow { result, ..Default::default() };
            let fail = v1::FailWorkflow { failure: failure.clone(), ..Default::default() };
            let cancel = v1::CancelWorkflow { failure, ..Default::default() };
            [
                command(Kind::ScheduleActivity(schedule)),
                command(Kind::RecordMarker(marker)),
                command(Kind::CompleteWorkflow(complete)),
                command(Kind::FailWorkflow(fail)),
                command(Kind::CancelWorkflow(cancel)),
                v1::Command {
                    summary: "s".repeat(bytes),
                    ..command(Kind::StartTimer(v1::StartTimer { duration_us: 5 }))
                },
            ]
        };
        for (bytes, name, limit) in
            [(3_000_000, PAYLOAD_LIMIT, PAYLOAD_BYTES), (10_000, "message_bytes", 4_096)]
        {
            for mut command in commands(bytes) {
                leave_out(&mut command, 4_096);
                assert!(command.encoded_len() < 100, "{command:?}");
                assert_eq!(command.number, 7);
                let broken = command.refused.expect("it says why");
                assert_eq!((broken.name.as_str(), broken.limit), (name, limit));
                let over = broken.value - bytes as u64;
                assert!(over < 100, "{} of {bytes}", broken.value);
            }
        }
    }
}
