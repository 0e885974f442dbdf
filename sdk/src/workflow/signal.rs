//! Messages from outside.

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use serde::{Serialize, de::DeserializeOwned};

use super::Ctx;
use crate::payload::Args;

/// A kind of message: its name and the type of its content.
///
/// ```
/// use onward::Signal;
///
/// pub const APPROVAL: Signal<bool> = Signal::new("approval");
/// ```
pub struct Signal<T> {
    name: &'static str,
    content: PhantomData<fn(T) -> T>,
}

impl<T> Signal<T> {
    /// Messages of this name.
    pub const fn new(name: &'static str) -> Self {
        Self { name, content: PhantomData }
    }

    /// The name.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

impl<T> Clone for Signal<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Signal<T> {}

impl<T> fmt::Debug for Signal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signal").field(&self.name).finish()
    }
}

/// Waits for a signal. See [`Ctx::recv`].
#[must_use = "futures do nothing unless awaited"]
pub struct Recv<'c, T> {
    ctx: &'c Ctx,
    signal: Signal<T>,
    id: Option<u64>,
}

impl<'c, T> Recv<'c, T> {
    pub(super) fn new(ctx: &'c Ctx, signal: Signal<T>) -> Self {
        Self { ctx, signal, id: None }
    }
}

impl<T> Unpin for Recv<'_, T> {}

impl<T: Serialize + DeserializeOwned + 'static> Future for Recv<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let core = &self.ctx.core;
        let name = self.signal.name;
        while let Some((event_id, arguments)) = core.take_signal(name) {
            match <(T,)>::decode(&arguments) {
                Ok((content,)) => {
                    if let Some(id) = self.id.take() {
                        self.ctx.core.end_signal_wait(name, id);
                    }
                    return Poll::Ready(content);
                }
                Err(error) => core.skip_signal(event_id, name, &error),
            }
        }
        self.id = core.wait_signal(name, self.id, cx);
        Poll::Pending
    }
}

impl<T> Drop for Recv<'_, T> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.ctx.core.end_signal_wait(self.signal.name, id);
        }
    }
}
