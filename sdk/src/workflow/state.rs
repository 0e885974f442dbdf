//! State that the parts of one workflow share.

use std::{
    cell::{RefCell, RefMut},
    fmt,
};

use super::is_panicking;
use crate::machine::is_making;

/// A cell of a workflow's state. It gives out no guards, so that no borrow crosses an await.
///
/// ```
/// use onward::State;
///
/// let paid = State::new(0_u64);
/// paid.update(|paid| *paid += 5);
/// assert_eq!(paid.get(), 5);
/// ```
#[derive(Default)]
pub struct State<T>(RefCell<T>);

const REENTRY: &str = "State: a closure of this cell may not use the same cell";
const MAKING: &str = "State: inside ctx.record(..) a cell may be read only, because a replay does \
                      not make the value again";

impl<T> State<T> {
    /// A cell with this value.
    pub const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// A copy of the value.
    pub fn get(&self) -> T
    where
        T: Clone,
    {
        self.0.try_borrow().expect(REENTRY).clone()
    }

    /// Sets the value.
    pub fn set(&self, value: T) {
        drop(self.replace(value));
    }

    /// Sets the value and returns the one before.
    pub fn replace(&self, value: T) -> T {
        match self.borrow_to_set() {
            Some(mut cell) => std::mem::replace(&mut *cell, value),
            None => value,
        }
    }

    /// The value to be changed. Nothing for drop code of a closure of this cell that panicked: a
    /// second panic would abort the process.
    fn borrow_to_set(&self) -> Option<RefMut<'_, T>> {
        if is_panicking() {
            return self.0.try_borrow_mut().ok();
        }
        assert!(!is_making(), "{MAKING}");
        Some(self.0.try_borrow_mut().expect(REENTRY))
    }

    /// Looks at the value.
    ///
    /// # Panics
    /// If the closure changes the same cell.
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.0.try_borrow().expect(REENTRY))
    }

    /// Changes the value in place.
    ///
    /// # Panics
    /// If the closure uses the same cell.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        assert!(!is_making(), "{MAKING}");
        change(&mut self.0.try_borrow_mut().expect(REENTRY))
    }
}

impl<T> State<Option<T>> {
    /// Takes the value out.
    pub fn take(&self) -> Option<T> {
        self.borrow_to_set()?.take()
    }
}

impl<T: fmt::Debug> fmt::Debug for State<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("State").field(&self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// Changes a cell when it is dropped.
    struct ChangesOnDrop<'c>(&'c State<Option<u32>>);

    impl Drop for ChangesOnDrop<'_> {
        fn drop(&mut self) {
            self.0.set(Some(2));
            self.0.replace(Some(3));
            self.0.take();
        }
    }

    #[test]
    fn drop_code_of_a_closure_that_panics_changes_nothing_and_does_not_panic_again() {
        let cell = State::new(Some(1));
        let broken = catch_unwind(AssertUnwindSafe(|| {
            cell.update(|_| {
                let _guard = ChangesOnDrop(&cell);
                panic!("boom");
            });
        }));
        assert!(broken.is_err());
        assert_eq!(cell.get(), Some(1));
    }
}
