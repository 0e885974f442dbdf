//! Values that are made once and found again at replay.

use std::{
    panic::Location,
    pin::Pin,
    task::{Context, Poll},
};

use onward_proto::v1::history_event::Attributes;
use serde::{Serialize, de::DeserializeOwned};

use super::Ctx;
use crate::{caught::caught, error::Limit, machine, payload};

/// A value that is made once. See [`Ctx::record`].
#[must_use = "futures do nothing unless awaited"]
pub struct Record<'c, F> {
    ctx: &'c Ctx,
    make: Option<F>,
    call_site: &'static Location<'static>,
    number: Option<u32>,
    is_done: bool,
}

impl<'c, F> Record<'c, F> {
    pub(super) fn new(ctx: &'c Ctx, make: F, call_site: &'static Location<'static>) -> Self {
        Self { ctx, make: Some(make), call_site, number: None, is_done: false }
    }
}

impl<T: Serialize, F: FnOnce() -> T> Record<'_, F> {
    /// Makes the value. The machine keeps it until its turn comes.
    fn make(&mut self, number: u32) {
        let core = &self.ctx.core;
        let Some(make) = self.make.take() else { return };
        let made = caught(|| {
            let _making = machine::making();
            payload::encode(&make(), core.options.codec)
        });
        match made {
            Ok(Ok(value)) => core.keep_record(number, value),
            Ok(Err(error)) => core.fail_payload(&format!("recorded value #{number}"), &error),
            // Even if the workflow says that a panic fails its run: a replay would not find it.
            Err(panic) => core.fail(machine::panicked(&panic)),
        }
    }
}

/// The closure is called, never pinned.
impl<F> Unpin for Record<'_, F> {}

impl<T: Serialize + DeserializeOwned, F: FnOnce() -> T> Future for Record<'_, F> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let core = self.ctx.core.clone();
        if self.is_done {
            return Poll::Pending;
        }
        if self.number.is_none() {
            self.number = core.issue_record(self.call_site);
            if let Some(number) = self.number
                && core.is_live()
            {
                self.make(number);
            }
        }
        let Some(number) = self.number else { return Poll::Pending };
        let recorded = match core.poll_leaf(number, cx) {
            Poll::Ready(Attributes::MarkerRecorded(marker)) => {
                if let Some(limit) = marker.refused.map(Limit::from) {
                    core.fail_payload(&format!("recorded value #{number}"), &limit);
                    return Poll::Pending;
                }
                marker.result
            }
            Poll::Ready(_) | Poll::Pending => return Poll::Pending,
        };
        self.is_done = true;
        // The code gets what a replay will get, live too.
        let error = match recorded.as_ref().map(payload::decode::<T>) {
            Some(Ok(value)) => return Poll::Ready(value),
            Some(Err(error)) => error.to_string(),
            None => "nothing was recorded".to_owned(),
        };
        core.fail_payload(&format!("recorded value #{number}"), &error);
        Poll::Pending
    }
}

impl<F> Drop for Record<'_, F> {
    fn drop(&mut self) {
        if let Some(number) = self.number
            && !self.is_done
        {
            self.ctx.core.drop_leaf(number);
        }
    }
}
