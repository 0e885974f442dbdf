//! Sections: what a cancel request interrupts, and what it does not.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use super::Ctx;
use crate::{error::Cancelled, machine::section::SectionTurn};

/// The common part of both kinds of section.
struct Section<'c, F> {
    ctx: &'c Ctx,
    future: Option<Pin<Box<F>>>,
    id: Option<u64>,
}

impl<F: Future> Section<'_, F> {
    fn poll(
        &mut self,
        is_shield: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<F::Output, Cancelled>> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        let core = &self.ctx.core;
        match core.enter_section(self.id, is_shield, cx) {
            SectionTurn::Inert => Poll::Pending,
            SectionTurn::Cancelled => {
                self.id = None;
                self.future = None;
                Poll::Ready(Err(Cancelled))
            }
            SectionTurn::Poll(id) => {
                self.id = Some(id);
                // A panic leaves the section entered; the run is over then anyway.
                let output = future.as_mut().poll(cx);
                core.leave_section(id, output.is_ready());
                if output.is_ready() {
                    self.id = None;
                    self.future = None;
                }
                output.map(Ok)
            }
        }
    }
}

impl<F> Drop for Section<'_, F> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.ctx.core.drop_section(id);
        }
    }
}

/// A section that a cancel request interrupts. See [`Ctx::cancellable`].
#[must_use = "futures do nothing unless awaited"]
pub struct Cancellable<'c, F>(Section<'c, F>);

impl<'c, F> Cancellable<'c, F> {
    pub(super) fn new(ctx: &'c Ctx, future: F) -> Self {
        Self(Section { ctx, future: Some(Box::pin(future)), id: None })
    }
}

impl<F: Future> Future for Cancellable<'_, F> {
    type Output = Result<F::Output, Cancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(false, cx)
    }
}

/// A section that holds a cancel request back. See [`Ctx::shield`].
#[must_use = "futures do nothing unless awaited"]
pub struct Shield<'c, F>(Section<'c, F>);

impl<'c, F> Shield<'c, F> {
    pub(super) fn new(ctx: &'c Ctx, future: F) -> Self {
        Self(Section { ctx, future: Some(Box::pin(future)), id: None })
    }
}

impl<F: Future> Future for Shield<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.0.poll(true, cx) {
            Poll::Ready(Ok(output)) => Poll::Ready(output),
            // Nothing cancels a shield.
            Poll::Ready(Err(Cancelled)) | Poll::Pending => Poll::Pending,
        }
    }
}
