//! Waiting for the workflow's own state.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use super::Ctx;

/// What a condition gives: `bool`, or `Option` with a value.
pub trait Condition: sealed::Sealed {
    /// What waiting for it gives.
    type Output;

    /// The value, if the condition holds.
    fn holds(self) -> Option<Self::Output>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for bool {}
    impl<T> Sealed for Option<T> {}
}

impl Condition for bool {
    type Output = ();

    fn holds(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Condition for Option<T> {
    type Output = T;

    fn holds(self) -> Self {
        self
    }
}

/// Waits until a condition holds. See [`Ctx::until`].
#[must_use = "futures do nothing unless awaited"]
pub struct Until<'c, F> {
    ctx: &'c Ctx,
    condition: F,
    id: Option<u64>,
}

impl<'c, F> Until<'c, F> {
    pub(super) fn new(ctx: &'c Ctx, condition: F) -> Self {
        Self { ctx, condition, id: None }
    }
}

/// The closure is called, never pinned.
impl<F> Unpin for Until<'_, F> {}

impl<R: Condition, F: FnMut() -> R> Future for Until<'_, F> {
    type Output = R::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R::Output> {
        if let Some(value) = (self.condition)().holds() {
            if let Some(id) = self.id.take() {
                self.ctx.core.meet_condition(id);
            }
            return Poll::Ready(value);
        }
        self.id = self.ctx.core.wait_condition(self.id, cx);
        Poll::Pending
    }
}

impl<F> Drop for Until<'_, F> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.ctx.core.end_condition(id);
        }
    }
}
