//! What payloads and failures count, how a failure is made to fit, and the longest duration: the
//! same on both sides, so that a worker can say what the server would not take.

use prost::Message as _;

use crate::v1::{Failure, Payload};

/// The failures in one chain of causes that are kept. Deeper ones could not be sent: decoders stop
/// at a depth of 100.
pub const FAILURE_DEPTH: usize = 32;

/// The longest duration that is accepted, a hundred years: beyond lie times that no database
/// knows. Microseconds.
pub const MAX_DURATION_US: i64 = 100 * 366 * 86_400 * 1_000_000;

/// What a failure keeps for the lengths and the small fields beside its texts, generously. Bytes.
const REST: usize = 64;

impl Payload {
    /// What this payload counts against a limit: data, content type and metadata. Bytes.
    pub fn counted_bytes(&self) -> u64 {
        let metadata = self.metadata.iter().map(|(key, value)| key.len() + value.len());
        (self.data.len() + self.content_type.len() + metadata.sum::<usize>()) as u64
    }
}

impl Failure {
    /// How many failures this chain of causes has, itself among them.
    pub fn depth(&self) -> usize {
        let mut depth = 1;
        let mut failure = self;
        while let Some(cause) = &failure.cause {
            (failure, depth) = (cause, depth + 1);
        }
        depth
    }

    /// This failure as it may be recorded: without U+0000, with at most [`FAILURE_DEPTH`] failures,
    /// and in at most `max_bytes`, given up in this order: stacks, causes, details, the end of the
    /// message.
    #[must_use]
    pub fn fit(mut self, max_bytes: u64) -> Self {
        let mut depth = 0;
        self.for_each(|failure| {
            for text in [&mut failure.kind, &mut failure.message, &mut failure.stack] {
                if text.contains('\0') {
                    *text = text.replace('\0', "\u{fffd}");
                }
            }
            depth += 1;
            if depth == FAILURE_DEPTH {
                failure.cause = None;
            }
        });
        let fits = |failure: &Self| failure.encoded_len() as u64 <= max_bytes;
        if !fits(&self) {
            self.for_each(|failure| failure.stack.clear());
        }
        if !fits(&self) {
            self.cause = None;
        }
        if !fits(&self) {
            self.details.clear();
        }
        if !fits(&self) {
            let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
            cut(&mut self.kind, max_bytes / 4);
            let room = max_bytes.saturating_sub(self.kind.len() + REST);
            cut(&mut self.message, room);
        }
        self
    }

    /// Does something with this failure, then with its cause, if it still has one, and so on.
    fn for_each(&mut self, mut change: impl FnMut(&mut Self)) {
        let mut next = Some(self);
        while let Some(failure) = next {
            change(failure);
            next = failure.cause.as_deref_mut();
        }
    }
}

fn cut(text: &mut String, bytes: usize) {
    text.truncate(text.floor_char_boundary(bytes));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A chain of so many failures, each with a U+0000 in its message.
    fn chain(depth: usize) -> Failure {
        let mut failure = Failure { message: "a\0b".to_owned(), ..Failure::default() };
        for _ in 1..depth {
            let cause = Some(Box::new(failure));
            failure = Failure { message: "a\0b".to_owned(), cause, ..Failure::default() };
        }
        failure
    }

    #[test]
    fn a_payload_counts_its_data_its_type_and_its_metadata() {
        let payload = Payload {
            data: vec![0; 100].into(),
            content_type: "json/plain".to_owned(),
            metadata: BTreeMap::from([("key".to_owned(), b"value".to_vec().into())]),
        };
        assert_eq!(payload.counted_bytes(), 100 + 10 + 3 + 5);
    }

    #[test]
    fn a_failure_loses_as_little_as_it_must() {
        let cause =
            Failure { message: "c".repeat(300), stack: "s".repeat(150), ..Failure::default() };
        let detail = Payload { data: vec![b'd'; 300].into(), ..Payload::default() };
        let failure = Failure {
            kind: "Large".to_owned(),
            message: "m".repeat(300),
            details: vec![detail],
            cause: Some(Box::new(cause)),
            stack: "s".repeat(150),
            ..Failure::default()
        };
        let kept = |max_bytes| {
            let fit = failure.clone().fit(max_bytes);
            assert!(fit.encoded_len() as u64 <= max_bytes, "{max_bytes}");
            assert_eq!(fit.kind, "Large");
            (!fit.stack.is_empty(), fit.cause.is_some(), fit.details.len(), fit.message.len())
        };
        assert_eq!(kept(failure.encoded_len() as u64), (true, true, 1, 300));
        assert_eq!(kept(1_000), (false, true, 1, 300));
        assert_eq!(kept(700), (false, false, 1, 300));
        assert_eq!(kept(400), (false, false, 0, 300));
        assert_eq!(kept(200), (false, false, 0, 200 - 64 - 5));
    }

    #[test]
    fn a_cut_text_ends_with_a_whole_character() {
        for max_bytes in 64..100 {
            let failure =
                Failure { kind: "é".repeat(50), message: "é".repeat(50), ..Failure::default() };
            let fit = failure.fit(max_bytes);
            assert!(fit.encoded_len() as u64 <= max_bytes.max(64), "{max_bytes}");
            assert_eq!(fit.kind, "é".repeat((max_bytes / 8) as usize));
        }
    }

    #[test]
    fn a_failure_has_no_nul_and_few_causes() {
        let fit = chain(FAILURE_DEPTH + 20).fit(1 << 20);
        assert_eq!(fit.depth(), FAILURE_DEPTH);
        assert_eq!(chain(FAILURE_DEPTH).depth(), FAILURE_DEPTH);
        assert_eq!(chain(FAILURE_DEPTH).fit(1 << 20).depth(), FAILURE_DEPTH);
        let mut next = Some(&fit);
        while let Some(failure) = next {
            assert_eq!(failure.message, "a\u{fffd}b");
            next = failure.cause.as_deref();
        }
    }
}
