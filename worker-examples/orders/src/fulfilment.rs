//! The order workflow and its activities.
//!
//! ```text
//! reserve ──► charge ──► settle (5 s) ──► ship ──► confirm ──► completed
//!    │           │                          │
//!    │           └► release                 └► call off, refund, release
//!    ▼           ▼                          ▼
//! out of stock  declined                  not shipped
//! ```
//!
//! Every activity may run more than once, so each effect is keyed by the idempotency key of its
//! call. What is undone is undone by hand, latest first; each of those steps does nothing when
//! there is nothing to undo, so it is also right after a step whose outcome is unknown.

use onward::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    ledger::{Charge, Charged, Ledger, Reserved},
    orders::{Cents, Order},
};

/// How long a payment takes to settle. The parcel leaves after that.
pub(crate) const SETTLEMENT: Duration = Duration::from_secs(5);

/// Where the carrier does not go.
const NO_DELIVERY: [&str; 3] = ["AQ", "BV", "HM"];

/// What the activities work on.
#[derive(Clone, Deps)]
pub(crate) struct Shop {
    pub(crate) ledger: Ledger,
}

/// What a customer gets for an order that completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) order_id: String,
    pub(crate) paid: Cents,
    pub(crate) parcel: String,
}

/// Why an order did not complete.
#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
pub(crate) enum OrderError {
    #[error("{wanted} of {sku} wanted, {left} left")]
    OutOfStock { sku: String, wanted: u32, left: u32 },
    #[error("card declined: {reason}")]
    Declined { reason: String },
    #[error("not shipped: {reason}")]
    NotShipped { reason: String },
    #[error("stock: {0}")]
    Stock(#[from] ActivityError<StockError>),
    #[error("payment: {0}")]
    Payment(#[from] ActivityError<PaymentError>),
    #[error(transparent)]
    Step(#[from] ActivityError),
}

/// Takes an order from the warehouse to the customer's door, or leaves nothing behind.
#[workflow]
pub(crate) async fn order(ctx: &Ctx, order: Order) -> Result<Receipt, OrderError> {
    match reserve(ctx, &order).await {
        Ok(()) => {}
        Err(ActivityError::Failed(StockError::OutOfStock { sku, wanted, left })) => {
            return Err(OrderError::OutOfStock { sku, wanted, left });
        }
        Err(error) => {
            release(ctx, &order.id).await?;
            return Err(error.into());
        }
    }

    match charge(ctx, &order).await {
        Ok(()) => {}
        Err(ActivityError::Failed(PaymentError::Declined { reason })) => {
            release(ctx, &order.id).await?;
            return Err(OrderError::Declined { reason });
        }
        Err(error) => {
            refund(ctx, &order.id).await?; // it may have been charged
            release(ctx, &order.id).await?;
            return Err(error.into());
        }
    }

    ctx.sleep(SETTLEMENT).await;

    let parcel = match ship(ctx, &order).await {
        Ok(parcel) => parcel,
        Err(error) => {
            call_off(ctx, &order.id).await?; // after a lost answer, the parcel may be on its way
            refund(ctx, &order.id).await?;
            release(ctx, &order.id).await?;
            return Err(OrderError::NotShipped { reason: error.to_string() });
        }
    };

    confirm(ctx, &order, &parcel).await?;
    Ok(Receipt { order_id: order.id, paid: order.amount, parcel })
}

/// Why the warehouse did not reserve.
#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
pub(crate) enum StockError {
    #[error("{wanted} of {sku} wanted, {left} left")]
    #[failure(terminal)]
    OutOfStock { sku: String, wanted: u32, left: u32 },
    #[error("the warehouse does not answer")]
    Unavailable,
    #[error(transparent)]
    Other(#[from] onward::Error),
}

/// Sets the goods aside.
#[activity(timeout = "10s", retry(initial = "100ms", max_interval = "2s"))]
pub(crate) async fn reserve(ctx: &ActivityCtx<Shop>, order: &Order) -> Result<(), StockError> {
    begin(ctx, &order.id).await?;
    if ctx.attempt() <= order.faults.stock {
        return Err(StockError::Unavailable);
    }
    let Order { id, sku, quantity: wanted, .. } = order;
    match ctx.ledger.reserve(&ctx.idempotency_key(), id, sku, *wanted).await.retryable()? {
        Reserved::Held => Ok(()),
        Reserved::TooFew { left } => {
            Err(StockError::OutOfStock { sku: sku.clone(), wanted: *wanted, left })
        }
    }
}

/// Why the card was not charged, or why nobody knows whether it was.
#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
pub(crate) enum PaymentError {
    #[error("card declined: {reason}")]
    #[failure(terminal)]
    Declined { reason: String },
    #[error("the payment service is unavailable")]
    Unavailable,
    #[error("the payment service's answer was lost")]
    NoAnswer,
    #[error(transparent)]
    Other(#[from] onward::Error),
}

/// Charges the card.
#[activity(timeout = "10s", retry(initial = "100ms", max_interval = "2s"))]
pub(crate) async fn charge(ctx: &ActivityCtx<Shop>, order: &Order) -> Result<(), PaymentError> {
    begin(ctx, &order.id).await?;
    let key = ctx.idempotency_key();
    match ctx.ledger.charge(&Charge { key: &key, order }).await.retryable()? {
        Charged::Done => Ok(()),
        Charged::Declined { reason } => Err(PaymentError::Declined { reason }),
        Charged::Unavailable => Err(PaymentError::Unavailable),
        Charged::NoAnswer => Err(PaymentError::NoAnswer),
    }
}

/// Why the carrier did not take the parcel.
#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
pub(crate) enum CarrierError {
    #[error("no delivery to {country}")]
    #[failure(terminal)]
    NoDelivery { country: String },
    #[error("the carrier does not answer")]
    Unavailable,
    #[error(transparent)]
    Other(#[from] onward::Error),
}

/// Hands the parcel to the carrier and returns its number. Who does not get rid of it in six
/// attempts sends the money back.
#[activity(timeout = "10s", retry(max_attempts = 6, initial = "100ms", max_interval = "2s"))]
pub(crate) async fn ship(ctx: &ActivityCtx<Shop>, order: &Order) -> Result<String, CarrierError> {
    begin(ctx, &order.id).await?;
    if NO_DELIVERY.contains(&order.country.as_str()) {
        return Err(CarrierError::NoDelivery { country: order.country.clone() });
    }
    if ctx.attempt() <= order.faults.carrier {
        return Err(CarrierError::Unavailable);
    }
    Ok(ctx.ledger.ship(&ctx.idempotency_key(), &order.id).await.retryable()?)
}

/// Tells the customer.
#[activity(timeout = "10s", retry(initial = "100ms", max_interval = "2s"))]
pub(crate) async fn confirm(
    ctx: &ActivityCtx<Shop>,
    order: &Order,
    parcel: &str,
) -> onward::Result<()> {
    begin(ctx, &order.id).await?;
    if ctx.attempt() <= order.faults.email {
        return Err(onward::Error::msg(format!("no mail server took the mail about {parcel}")));
    }
    ctx.ledger.email(&ctx.idempotency_key(), &order.id, &order.email).await.retryable()
}

/// Stops a parcel of the order, if there is one.
#[activity(timeout = "10s", retry(initial = "100ms", max_interval = "2s"))]
pub(crate) async fn call_off(ctx: &ActivityCtx<Shop>, order_id: &str) -> onward::Result<()> {
    begin(ctx, order_id).await?;
    ctx.ledger.call_off(order_id).await.retryable()
}

/// Gives back what was charged for the order, if anything was.
#[activity(timeout = "10s", retry(initial = "100ms", max_interval = "2s"))]
pub(crate) async fn refund(ctx: &ActivityCtx<Shop>, order_id: &str) -> onward::Result<()> {
    begin(ctx, order_id).await?;
    ctx.ledger.refund(&ctx.idempotency_key(), order_id).await.retryable()
}

/// Puts the goods back, if any were set aside.
#[activity(timeout = "10s", retry(initial = "100ms", max_interval = "2s"))]
pub(crate) async fn release(ctx: &ActivityCtx<Shop>, order_id: &str) -> onward::Result<()> {
    begin(ctx, order_id).await?;
    ctx.ledger.release(order_id).await.retryable()
}

/// Every attempt signs in, so that retries can be counted from the books.
async fn begin(ctx: &ActivityCtx<Shop>, order_id: &str) -> onward::Result<()> {
    ctx.ledger.begin(&ctx.info().activity_type, order_id, ctx.attempt()).await.retryable()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        ledger::tests::ledger,
        orders::tests::{GOOD, file},
    };

    fn an_order(change: impl FnOnce(&mut Order)) -> Order {
        let mut order = file(&[GOOD]).lines.remove(0).order.unwrap();
        change(&mut order);
        order
    }

    #[tokio::test]
    async fn a_carrier_that_does_not_go_there_says_so_for_good() {
        let (_dir, ledger) = ledger().await;
        let ctx = ActivityCtx::test(Shop { ledger });
        let order = an_order(|order| order.country = "AQ".into());
        let error = ship(&ctx, &order).await.unwrap_err();
        assert!(matches!(&error, CarrierError::NoDelivery { country } if country == "AQ"));
        assert_eq!(error.retry(), RetryHint::Never);
    }

    #[tokio::test]
    async fn a_service_that_fails_once_is_worth_another_attempt() {
        let (_dir, ledger) = ledger().await;
        let ctx = ActivityCtx::test(Shop { ledger });
        let order = an_order(|order| order.faults.stock = 1);
        let error = reserve(&ctx, &order).await.unwrap_err();
        assert!(matches!(error, StockError::Unavailable));
        assert_eq!(error.retry(), RetryHint::Retry);
    }
}
