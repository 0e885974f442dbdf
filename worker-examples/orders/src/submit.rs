//! Submits a file: one run for each order, so many of them at once, and how each line ended.
//!
//! Runs are started one after the other in the order of the file, so that of two lines with one
//! order id the first gets it. The workflow id is the order id, which may never be used again; a
//! start that finds it taken tells by the file what that means:
//!
//! - The id belongs to an earlier line of the file: this line is rejected.
//! - This line is the first with the id: it was submitted before, perhaps by a submitter that was
//!   killed. Its run is waited for like one that was just started.
//!
//! So submitting a file again starts nothing and ends with the same outcomes.

use std::{
    io::{IsTerminal as _, stderr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use onward::{Client, Code, IdReuse, RpcError, WorkflowError, WorkflowHandle};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    QUEUE,
    fulfilment::{OrderError, order},
    ledger::Ledger,
    orders::{Order, OrdersFile},
    outcome::{Outcome, Reason},
    summary::{Start, Summary},
};

/// Without a terminal the bar is a line of text every so many lines of the file.
const REPORT_EVERY: u64 = 100;

/// What a submission needs.
pub(crate) struct Submission {
    pub(crate) client: Client,
    pub(crate) ledger: Ledger,
    /// How many orders may be open at once.
    pub(crate) in_flight: usize,
}

impl Submission {
    /// # Errors
    /// If the server does not answer for longer than the client asks again, or the ledger cannot be
    /// written. Submitting again goes on where this one stopped.
    pub(crate) async fn run(&self, file: &OrdersFile) -> anyhow::Result<Summary> {
        self.ledger.claim(&file.lines).await?;
        let owners = file.owners();
        let bar = Arc::new(Bar::new(file.lines.len() as u64));
        let window = Arc::new(Semaphore::new(self.in_flight));
        let mut summary = Summary::default();
        let mut waiting = JoinSet::new();
        for line in &file.lines {
            let order = match &line.order {
                Err(detail) => {
                    let outcome = Outcome::Malformed { detail: detail.clone() };
                    self.ledger.note_end(line, &outcome).await?;
                    summary.add_end(line.number, outcome);
                    bar.advance();
                    continue;
                }
                Ok(order) => order,
            };
            let permit =
                Arc::clone(&window).acquire_owned().await.context("the window is closed")?;
            while let Some(ended) = waiting.try_join_next() {
                let (number, outcome) = ended.context("a wait for an order panicked")??;
                summary.add_end(number, outcome);
            }
            let handle = match self.start(order).await? {
                Some(handle) => {
                    summary.add_start(Start::New);
                    handle
                }
                None if owners[order.id.as_str()] == line.number => {
                    summary.add_start(Start::Known);
                    self.client.handle(&order.id)
                }
                None => {
                    let detail = format!(
                        "order id {} belongs to line {}",
                        order.id,
                        owners[order.id.as_str()]
                    );
                    let outcome = Outcome::Rejected { reason: Reason::DuplicateId, detail };
                    self.ledger.note_end(line, &outcome).await?;
                    summary.add_end(line.number, outcome);
                    bar.advance();
                    continue;
                }
            };
            self.ledger.note_open(line).await?;
            let (ledger, line, bar) = (self.ledger.clone(), line.clone(), Arc::clone(&bar));
            waiting.spawn(async move {
                let _permit = permit; // until the end is noted
                let outcome = wait(&handle).await?;
                ledger.note_end(&line, &outcome).await?;
                bar.advance();
                anyhow::Ok((line.number, outcome))
            });
        }
        while let Some(ended) = waiting.join_next().await {
            let (number, outcome) = ended.context("a wait for an order panicked")??;
            summary.add_end(number, outcome);
        }
        bar.finish();
        Ok(summary)
    }

    /// Starts the run of an order; `None` if its id is taken.
    async fn start(&self, o: &Order) -> Result<Option<WorkflowHandle<order>>, RpcError> {
        let started = order(&self.client, o.clone())
            .id(&o.id)
            .queue(QUEUE)
            .id_reuse(IdReuse::Reject)
            .start()
            .await;
        match started {
            Ok(handle) => Ok(Some(handle)),
            Err(error) if error.code() == Code::AlreadyExists => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Waits for the end of a run and says what it means to the business.
///
/// # Errors
/// If the server does not answer. That says nothing about the run.
async fn wait(handle: &WorkflowHandle<order>) -> Result<Outcome, RpcError> {
    match handle.result().await {
        Ok(_) => Ok(Outcome::Completed),
        Err(WorkflowError::Rpc(error)) => Err(error),
        Err(WorkflowError::Failed(error)) => Ok(rejection(&error)),
        Err(other) => Ok(Outcome::Failed { detail: other.to_string() }),
    }
}

/// Whether the business said no, or something went wrong that should not.
fn rejection(error: &OrderError) -> Outcome {
    let detail = error.to_string();
    let reason = match error {
        OrderError::OutOfStock { .. } => Reason::OutOfStock,
        OrderError::Declined { .. } => Reason::Declined,
        OrderError::NotShipped { .. } => Reason::NotShipped,
        OrderError::Stock(_) | OrderError::Payment(_) | OrderError::Step(_) => {
            return Outcome::Failed { detail };
        }
    };
    Outcome::Rejected { reason, detail }
}

/// Says on stderr how many lines have ended.
struct Bar {
    bar: ProgressBar,
    on_terminal: bool,
}

impl Bar {
    fn new(lines: u64) -> Self {
        let on_terminal = stderr().is_terminal();
        let bar = ProgressBar::new(lines);
        if on_terminal {
            let style = ProgressStyle::with_template(
                "{bar:40} {pos} of {len} lines, {elapsed} gone, {eta} to go",
            );
            bar.set_style(style.expect("the template is a constant, and a test uses it"));
            bar.enable_steady_tick(Duration::from_millis(250));
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { bar, on_terminal }
    }

    fn advance(&self) {
        self.bar.inc(1);
        let (position, length) = (self.bar.position(), self.bar.length().unwrap_or(0));
        if !self.on_terminal && position.is_multiple_of(REPORT_EVERY) {
            eprintln!("{position} of {length} lines");
        }
    }

    fn finish(&self) {
        self.bar.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fulfilment::{PaymentError, StockError};
    use onward::ActivityError;

    #[test]
    fn only_what_the_business_decides_is_a_rejection() {
        let reason = |error| match rejection(&error) {
            Outcome::Rejected { reason, .. } => Some(reason),
            _ => None,
        };
        let out = OrderError::OutOfStock { sku: "TEA".into(), wanted: 2, left: 1 };
        assert_eq!(reason(out), Some(Reason::OutOfStock));
        let declined = OrderError::Declined { reason: "expired".into() };
        assert_eq!(reason(declined), Some(Reason::Declined));
        let not_shipped = OrderError::NotShipped { reason: "storm".into() };
        assert_eq!(reason(not_shipped), Some(Reason::NotShipped));
        assert_eq!(reason(ActivityError::Failed(StockError::Unavailable).into()), None);
        assert_eq!(reason(ActivityError::Failed(PaymentError::NoAnswer).into()), None);
        assert_eq!(reason(ActivityError::Failed(onward::Error::msg("disk full")).into()), None);
    }

    #[test]
    fn the_bar_has_a_valid_template() {
        let bar = Bar { on_terminal: true, ..Bar::new(2) };
        bar.advance();
        assert_eq!(bar.bar.position(), 1);
    }
}
