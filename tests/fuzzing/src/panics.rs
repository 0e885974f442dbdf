//! Panics anywhere in this process: one in a spawned task ends that task alone, and is found here.

use std::sync::{Mutex, Once, PoisonError};

static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// How many there were so far.
pub(crate) fn count() -> usize {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            SEEN.lock().unwrap_or_else(PoisonError::into_inner).push(info.to_string());
            before(info);
        }));
    });
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).len()
}

/// What those said that came behind the first `before`.
pub(crate) fn since(before: usize) -> Vec<String> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)[before..].to_vec()
}
