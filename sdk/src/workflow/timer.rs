//! Durable timers.

use std::{
    panic::Location,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::FusedFuture;
use onward_proto::MAX_DURATION_US;

use super::Ctx;
use crate::error::Elapsed;

/// A durable timer. Dropping it unfinished cancels it.
#[must_use = "a timer does not start until it is awaited"]
pub struct Sleep<'c> {
    ctx: &'c Ctx,
    duration_us: i64,
    summary: String,
    call_site: &'static Location<'static>,
    number: Option<u32>,
    is_done: bool,
}

impl<'c> Sleep<'c> {
    pub(super) fn new(
        ctx: &'c Ctx,
        duration: Duration,
        call_site: &'static Location<'static>,
    ) -> Self {
        let duration_us = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let duration_us = duration_us.min(MAX_DURATION_US);
        Self { ctx, duration_us, summary: String::new(), call_site, number: None, is_done: false }
    }

    /// A line for people.
    pub fn summary(mut self, summary: impl Into<String>) -> Self {
        self.summary = summary.into();
        self
    }
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let core = &self.ctx.core;
        let number = match self.number {
            Some(number) => number,
            None => {
                match core.start_timer(self.duration_us, self.summary.clone(), self.call_site) {
                    Some(number) => number,
                    None => return Poll::Pending,
                }
            }
        };
        let fired = !self.is_done && core.poll_leaf(number, cx).is_ready();
        self.number = Some(number);
        self.is_done |= fired;
        if fired { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl FusedFuture for Sleep<'_> {
    fn is_terminated(&self) -> bool {
        self.is_done
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number
            && !self.is_done
        {
            self.ctx.core.drop_leaf(number);
        }
    }
}

/// A future with a time limit. See [`Ctx::timeout`].
#[must_use = "futures do nothing unless awaited"]
pub struct Timeout<'c, F> {
    sleep: Option<Sleep<'c>>,
    future: Option<Pin<Box<F>>>,
}

impl<'c, F> Timeout<'c, F> {
    pub(super) fn new(sleep: Sleep<'c>, future: F) -> Self {
        Self { sleep: Some(sleep), future: Some(Box::pin(future)) }
    }
}

impl<F: Future> Future for Timeout<'_, F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            self.future = None;
            self.sleep = None;
            return Poll::Ready(Ok(output));
        }
        let Some(sleep) = &mut self.sleep else { return Poll::Pending };
        if Pin::new(sleep).poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.future = None;
        self.sleep = None;
        Poll::Ready(Err(Elapsed))
    }
}

impl<F: Future> FusedFuture for Timeout<'_, F> {
    fn is_terminated(&self) -> bool {
        self.future.is_none()
    }
}
