//! "Did you mean": the nearest of the words that would have been right.

/// The message for a key that does not exist: what was written, what may have been meant, what
/// there is.
pub(crate) fn unknown_key(written: &str, known: &[&str]) -> String {
    match nearest(written, known) {
        Some(meant) => format!("unknown key `{written}`; did you mean `{meant}`?"),
        None if known.len() == 1 => {
            format!("unknown key `{written}`; the only key is {}", list(known))
        }
        None => format!("unknown key `{written}`; the keys are {}", list(known)),
    }
}

/// The known word that is at most a third of its letters away.
fn nearest<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|word| (distance(written, word), *word))
        .filter(|(distance, word)| *distance <= (word.len() / 3).max(1))
        .min()
        .map(|(_, word)| word)
}

fn list(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// Insertions, deletions, replacements and swaps of neighbours that lead from one word to the
/// other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![(0..=to.len()).collect::<Vec<_>>()];
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[&str] = &["name", "timeout", "queue_timeout", "retry"];

    #[test]
    fn a_slip_of_the_pen_is_recognised() {
        assert_eq!(unknown_key("tiemout", KEYS), "unknown key `tiemout`; did you mean `timeout`?");
        assert_eq!(
            unknown_key("retries", KEYS),
            "unknown key `retries`; the keys are `name`, `timeout`, `queue_timeout` and `retry`"
        );
        assert_eq!(nearest("queue_timout", KEYS), Some("queue_timeout"));
        assert_eq!(nearest("nmae", KEYS), Some("name"));
        assert_eq!(nearest("tmeout", &["time_out", "timeout", "time"]), Some("timeout"));
    }

    #[test]
    fn a_different_word_is_no_slip() {
        assert_eq!(nearest("color", KEYS), None);
        assert_eq!(nearest("rely", KEYS), None);
    }
}
