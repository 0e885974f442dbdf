//! Durations in attributes: `"200ms"`, `"30s"`, `"1h 30m"`.

use std::time::Duration;
use syn::LitStr;

/// Reads a duration; a mistake is told at the literal.
pub(crate) fn parse(literal: &LitStr) -> syn::Result<Duration> {
    read(&literal.value()).map_err(|message| syn::Error::new(literal.span(), message))
}

fn read(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(r#"an empty duration; write a number and a unit, as in "30s""#.to_owned());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = split_where(rest, |c| !c.is_ascii_digit());
        if number.is_empty() {
            let (wrong, _) = split_where(rest, char::is_whitespace);
            return Err(format!(
                r#"expected a whole number at `{wrong}`; write a number and a unit, as in "30s""#
            ));
        }
        if after.starts_with('.') {
            return Err(format!("`{rest}` is not a whole number; use a smaller unit"));
        }
        let after = after.trim_start();
        let (unit, after) = split_where(after, |c| c.is_ascii_digit() || c.is_whitespace());
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err(format!("`{number}` has no unit; use ms, s, m, h or d")),
            _ => return Err(format!("unknown unit `{unit}`; use ms, s, m, h or d")),
        };
        total = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(millis))
            .and_then(|millis| total.checked_add(Duration::from_millis(millis)))
            .filter(|total| *total <= LONGEST)
            .ok_or_else(|| "a duration of more than 100 years".to_owned())?;
        rest = after.trim_start();
    }
    Ok(total)
}

/// Longer than any run, and far from where arithmetic on timestamps would overflow.
const LONGEST: Duration = Duration::from_hours(100 * 366 * 24);

fn split_where(text: &str, is_end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(is_end).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_reads() {
        for (text, millis) in [
            ("200ms", 200),
            ("30s", 30_000),
            ("30 s", 30_000),
            ("5m", 300_000),
            ("72h", 259_200_000),
            ("2d", 172_800_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
        ] {
            assert_eq!(read(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_mistake_names_what_would_be_right() {
        for (text, message) in [
            ("30 sec", "unknown unit `sec`; use ms, s, m, h or d"),
            ("30", "`30` has no unit; use ms, s, m, h or d"),
            ("", r#"an empty duration; write a number and a unit, as in "30s""#),
            (
                "soon",
                r#"expected a whole number at `soon`; write a number and a unit, as in "30s""#,
            ),
            ("-1s", r#"expected a whole number at `-1s`; write a number and a unit, as in "30s""#),
            ("1.5s", "`1.5s` is not a whole number; use a smaller unit"),
            ("99999999999999999999s", "a duration of more than 100 years"),
            ("40000d", "a duration of more than 100 years"),
        ] {
            assert_eq!(read(text), Err(message.to_owned()), "{text}");
        }
    }
}
