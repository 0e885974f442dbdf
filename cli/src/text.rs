//! How values look to people. Text that others wrote never reaches a terminal with its control characters.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use onward_proto::{
    json,
    v1::{Failure, Payload, WorkflowStatus},
};
use uuid::Uuid;

/// The longest value that stands inside a line.
const INLINE: usize = 100;

/// Reads `250ms`, `30s`, `5m`, `2h`, `3d` or several of them, as in `1h30m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err("write it as 30s or 1h30m".to_owned());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let number: u64 = number.parse().map_err(|_| "write it as 30s or 1h30m".to_owned())?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err("unknown unit; use ms, s, m, h or d".to_owned()),
        };
        let part = number.checked_mul(millis).map(Duration::from_millis);
        total = part.and_then(|part| total.checked_add(part)).ok_or("too long")?;
        rest = tail;
    }
    if i64::try_from(total.as_micros()).is_err() {
        return Err("too long".to_owned());
    }
    Ok(total)
}

/// Microseconds for the wire; 0 means none.
pub(crate) fn wire_us(duration: Option<Duration>) -> i64 {
    duration.map_or(0, |duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
}

/// A length of time in two units, for example `3 m 2 s` or `12.5 ms`.
pub(crate) fn duration_us(us: i64) -> String {
    let us = us.max(0);
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{} ms", decimal(us, 1_000)),
        1_000_000..60_000_000 => format!("{} s", decimal(us, 1_000_000)),
        _ => {
            let s = us / 1_000_000;
            let (big, big_unit, small, small_unit) = match s {
                0..3_600 => (s / 60, "m", s % 60, "s"),
                3_600..86_400 => (s / 3_600, "h", s % 3_600 / 60, "m"),
                _ => (s / 86_400, "d", s % 86_400 / 3_600, "h"),
            };
            if small == 0 {
                format!("{big} {big_unit}")
            } else {
                format!("{big} {big_unit} {small} {small_unit}")
            }
        }
    }
}

/// `us / unit` with one decimal, which is left out when it is 0.
fn decimal(us: i64, unit: i64) -> String {
    match (us / unit, us % unit * 10 / unit) {
        (whole, 0) => whole.to_string(),
        (whole, tenth) => format!("{whole}.{tenth}"),
    }
}

/// A size for people.
pub(crate) fn bytes(size: u64) -> String {
    let (unit, name) = match size {
        0..1_024 => return format!("{size} B"),
        1_024..1_048_576 => (1_024, "KiB"),
        _ => (1_048_576, "MiB"),
    };
    format!("{}.{} {name}", size / unit, size % unit * 10 / unit)
}

/// How points in time are shown: in the reader's own time zone, which is always named.
pub(crate) struct Clock {
    zone: TimeZone,
    now: Timestamp,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { zone: TimeZone::try_system().unwrap_or(TimeZone::UTC), now: Timestamp::now() }
    }

    /// To the second.
    pub(crate) fn time(&self, us: i64) -> String {
        self.format(us, "%Y-%m-%d %H:%M:%S %Z")
    }

    /// To the millisecond.
    pub(crate) fn exact_time(&self, us: i64) -> String {
        self.format(us, "%Y-%m-%d %H:%M:%S%.3f %Z")
    }

    fn format(&self, us: i64, format: &str) -> String {
        match Timestamp::from_microsecond(us) {
            Ok(time) => time.to_zoned(self.zone.clone()).strftime(format).to_string(),
            Err(_) => format!("{us} µs"),
        }
    }

    /// How long ago, or until then.
    pub(crate) fn relative(&self, us: i64) -> String {
        match us.saturating_sub(self.now.as_microsecond()) {
            until if until > 0 => format!("in {}", duration_us(until)),
            ago => format!("{} ago", duration_us(ago.saturating_neg())),
        }
    }

    /// How long it has been open, or was.
    pub(crate) fn span(&self, from_us: i64, to_us: i64) -> String {
        let to_us = if to_us == 0 { self.now.as_microsecond() } else { to_us };
        duration_us(to_us.saturating_sub(from_us))
    }
}

/// A run id as text; what is no id is shown as it is.
pub(crate) fn run_id(bytes: &[u8]) -> String {
    match Uuid::from_slice(bytes) {
        Ok(id) => id.to_string(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// `timed out` for `WORKFLOW_STATUS_TIMED_OUT`.
pub(crate) fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase().replace('_', " ")
}

/// The status in words.
pub(crate) fn status(status: WorkflowStatus) -> String {
    word(status.as_str_name(), "WORKFLOW_STATUS_")
}

/// On one line, without control characters.
pub(crate) fn clean(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut clean, c| {
        if c.is_control() {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
        clean
    })
}

/// The same for a text of several lines, each indented.
pub(crate) fn block(text: &str, indent: &str) -> String {
    text.lines().fold(String::new(), |mut block, line| {
        let _ = writeln!(block, "{indent}{}", clean(&line.replace('\t', "    ")));
        block
    })
}

/// Cut to fit into a line.
fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(INLINE) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A JSON text as it is, but on one line and with control characters as JSON writes them.
pub(crate) fn json_text(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut text, c| {
        match c {
            '\n' | '\r' | '\t' => text.push(' '),
            c if c.is_control() => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
        text
    })
}

/// A whole value on one line.
pub(crate) fn payload(payload: &Payload) -> String {
    match json::plain_json(payload) {
        Some(raw) => json_text(raw.get()),
        None => {
            format!("<{} of {}>", bytes(payload.data.len() as u64), clean(&payload.content_type))
        }
    }
}

/// A value that stands inside a line.
pub(crate) fn short_payload(value: &Payload) -> String {
    cut(payload(value))
}

/// Arguments as a call has them: `(1, "a")`.
pub(crate) fn arguments(arguments: &[Payload]) -> String {
    let list: Vec<_> = arguments.iter().map(payload).collect();
    cut(format!("({})", list.join(", ")))
}

/// Named values.
pub(crate) fn memo(memo: &BTreeMap<String, Payload>) -> String {
    let list: Vec<_> = memo
        .iter()
        .map(|(name, value)| format!("{}={}", clean(name), short_payload(value)))
        .collect();
    list.join(", ")
}

/// A failure on one line, its causes behind it.
pub(crate) fn failure(failure: &Failure) -> String {
    let mut text = String::new();
    let mut next = Some(failure);
    while let Some(failure) = next {
        if !text.is_empty() {
            text.push_str("; caused by ");
        }
        match (failure.kind.as_str(), failure.message.as_str()) {
            ("", "") => text.push_str("failed without a message"),
            ("", message) => text.push_str(&clean(message)),
            (kind, "") => text.push_str(&clean(kind)),
            (kind, message) => {
                let _ = write!(text, "{}: {}", clean(kind), clean(message));
            }
        }
        next = failure.cause.as_deref();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, millis) in
            [("250ms", 250), ("30s", 30_000), ("1h30m", 5_400_000), ("3d", 259_200_000)]
        {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for (text, error) in [
            ("30", "unknown unit; use ms, s, m, h or d"),
            ("30 sec", "unknown unit; use ms, s, m, h or d"),
            ("", "write it as 30s or 1h30m"),
            ("-1s", "write it as 30s or 1h30m"),
            ("18446744073709551615d", "too long"),
            ("300000000d", "too long"),
        ] {
            assert_eq!(parse_duration(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn durations_are_shown_in_two_units() {
        for (us, text) in [
            (-5, "0 µs"),
            (999, "999 µs"),
            (12_560, "12.5 ms"),
            (4_000_000, "4 s"),
            (182_000_000, "3 m 2 s"),
            (7_200_000_000, "2 h"),
            (273_600_000_000, "3 d 4 h"),
        ] {
            assert_eq!(duration_us(us), text);
        }
    }

    #[test]
    fn sizes_are_shown_to_a_tenth() {
        assert_eq!(
            [bytes(0), bytes(1_023), bytes(3_481), bytes(52_428_800)],
            ["0 B", "1023 B", "3.3 KiB", "50.0 MiB"]
        );
    }

    #[test]
    fn terminal_codes_of_others_are_harmless() {
        assert_eq!(clean("a\x1b[31mb\nc\u{9b}"), "a\\u{1b}[31mb\\nc\\u{9b}");
        assert_eq!(json_text("{\n\"a\": \"\u{9b}\"}"), "{ \"a\": \"\\u009b\"}");
        assert_eq!(block("a\x07\n\tb", "  "), "  a\\u{7}\n      b\n");
    }

    #[test]
    fn a_failure_names_its_causes() {
        let inner = Failure { message: "connection reset".into(), ..Failure::default() };
        let outer = Failure {
            kind: "PaymentError::Gateway".into(),
            message: "no answer".into(),
            cause: Some(Box::new(inner)),
            ..Failure::default()
        };
        assert_eq!(failure(&outer), "PaymentError::Gateway: no answer; caused by connection reset");
    }

    #[test]
    fn times_name_their_zone() {
        let clock = Clock {
            zone: TimeZone::UTC,
            now: Timestamp::from_microsecond(1_790_000_060_000_000).unwrap(),
        };
        assert_eq!(clock.exact_time(1_790_000_000_123_456), "2026-09-21 14:13:20.123 UTC");
        assert_eq!(clock.relative(1_790_000_000_000_000), "1 m ago");
        assert_eq!(clock.relative(1_790_000_063_000_000), "in 3 s");
        assert_eq!(clock.time(i64::MAX), "9223372036854775807 µs");
    }
}
