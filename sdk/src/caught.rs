//! Catching the panics of user code, with the place where they happened.
//!
//! The place is known to the panic hook alone. So the first catch puts a hook in front of whatever
//! is installed: it notes the place of panics that will be caught here, and leaves all else to the
//! hook before it, printing included.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    fmt,
    panic::{self, AssertUnwindSafe, catch_unwind},
    sync::Once,
    thread,
};

thread_local! {
    /// How many catches this thread is in.
    static CATCHES: Cell<u32> = const { Cell::new(0) };
    /// Where the newest panic in one of them happened.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic of user code.
#[derive(Debug)]
pub(crate) struct Caught {
    text: String,
    /// Unknown if the application has put a hook of its own in place of ours.
    place: Option<String>,
}

/// `panicked at src/orders.rs:41:9: no more paper`.
impl fmt::Display for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "panicked at {place}: {}", self.text),
            None => write!(f, "panicked: {}", self.text),
        }
    }
}

/// Runs user code.
///
/// # Errors
/// Its panic.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, Caught> {
    install_hook();
    PLACE.set(None);
    CATCHES.set(CATCHES.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(run));
    CATCHES.set(CATCHES.get() - 1);
    result.map_err(|panic| Caught { text: words(&*panic), place: PLACE.take() })
}

fn words(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => "a value that is no text".to_owned(),
    }
}

fn install_hook() {
    static INSTALLED: Once = Once::new();
    // While a panic unwinds no hook can be set. The next catch does it.
    if INSTALLED.is_completed() || thread::panicking() {
        return;
    }
    INSTALLED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if CATCHES.try_with(Cell::get).is_ok_and(|catches| catches > 0) {
                let place = info.location().map(ToString::to_string);
                // Neither is there a thread-local at a thread's end, nor is it ever borrowed here.
                let _ = PLACE.try_with(|cell| cell.replace(place));
            }
            before(info);
        }));
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_panic_is_caught_with_its_words_and_its_place() {
        let line = line!() + 1;
        let panic = caught(|| panic!("no {}", "paper")).unwrap_err().to_string();
        assert!(panic.contains(&format!("sdk/src/caught.rs:{line}:")), "{panic}");
        assert!(panic.starts_with("panicked at ") && panic.ends_with(": no paper"), "{panic}");
    }

    #[test]
    fn a_panic_that_is_only_passed_on_has_no_place_of_an_older_one() {
        assert!(caught(|| panic!("older")).is_err());
        let passed_on = caught(|| panic::resume_unwind(Box::new("newer"))).unwrap_err();
        assert_eq!(passed_on.to_string(), "panicked: newer");
    }

    #[test]
    fn a_catch_inside_a_catch_leaves_the_outer_one_in_place() {
        let outer = caught(|| {
            assert!(caught(|| panic!("inner")).is_err());
            panic!("outer")
        });
        let panic = outer.map(|()| String::new()).unwrap_err().to_string();
        assert!(panic.contains("caught.rs:") && panic.ends_with(": outer"), "{panic}");
    }
}
