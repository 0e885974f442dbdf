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

/// Checks the payload of a command.
///
/// # Errors
/// The limit that it breaks.
pub(crate) fn check_payload(payload: &v1::Payload, max_bytes: u64) -> Result<(), Limit> {
    let value = payload.counted_bytes();
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
