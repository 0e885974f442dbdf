#![deny(warnings)]

use onward::{prelude::*, wf};
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OrderId(String);

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Cents(u64);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    id: OrderId,
    total: Cents,
    items: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Payment {
    amount: Cents,
}

#[derive(Clone)]
pub struct Pool;

#[derive(Clone)]
pub struct Psp;

impl Psp {
    async fn charge(&self, _: &OrderId, amount: Cents, _: &str) -> std::io::Result<Payment> {
        Ok(Payment { amount })
    }
}

#[derive(Clone, Deps)]
pub struct App {
    pub db: Pool,
    pub psp: Psp,
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
pub enum PaymentError {
    #[error("card declined: {reason}")]
    #[failure(terminal)]
    Declined { reason: String },
    #[error("slow down")]
    #[failure(retry_after = after)]
    RateLimited { after: Duration },
    #[error(transparent)]
    Other(#[from] onward::Error),
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
pub enum OrderError {
    #[error("rejected by {by}")]
    Rejected { by: String },
    #[error(transparent)]
    Payment(#[from] ActivityError<PaymentError>),
    #[error(transparent)]
    Step(#[from] ActivityError),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Charges the card.
#[activity(timeout = "30s", retry(max_attempts = 5, initial = "200ms", max_interval = "10s"))]
pub async fn charge(
    ctx: &ActivityCtx<App>,
    order: &OrderId,
    amount: Cents,
) -> Result<Payment, PaymentError> {
    Ok(ctx.psp.charge(order, amount, &ctx.idempotency_key()).await.retryable()?)
}

#[activity(
    heartbeat = "10s",
    queue_timeout = "5m",
    deadline = "1h 30m",
    queue = "stock",
    priority = 3
)]
pub async fn reserve(_: &ActivityCtx<Pool>, items: &[String], hold: &str) -> onward::Result<()> {
    let _ = (items, hold);
    Ok(())
}

#[activity(retry(backoff = 2, never_on("PaymentError::Declined", "Error")))]
pub async fn refund(ctx: &ActivityCtx<App>, order: &OrderId) -> Result<(), PaymentError> {
    // An activity calls another one directly, and itself.
    charge(ctx, order, Cents(0)).await?;
    if order.0.is_empty() { refund(ctx, order).await } else { Ok(()) }
}

type Shop = ActivityCtx<App>;
type Done = onward::Result<()>;

#[activity(name = "aliased-activity", marker = Aliased)]
pub async fn aliased(ctx: &Shop, (low, high): (u8, u8), _: Option<String>) -> Done {
    let _ = (&ctx.db, low, high);
    Ok(())
}

pub const APPROVAL: Signal<bool> = Signal::new("approval");

#[workflow]
pub async fn order(ctx: &Ctx, mut order: Order) -> Result<Payment, OrderError> {
    if order.total > Cents(100_000) {
        match ctx.timeout(Duration::from_hours(72), ctx.recv(APPROVAL)).await {
            Ok(true) => {}
            Ok(false) => return Err(OrderError::Rejected { by: "ann".into() }),
            Err(Elapsed) => order.total = Cents(0),
        }
    }
    let hold = ctx.uuid().to_string();
    let reserved = reserve(ctx, &order.items, &hold).start();
    let payment = charge(ctx, &order.id, order.total).retry(Retry::attempts(3)).await?;
    wf::join!(reserved, aliased(ctx.local(), (1, 2), None)).0?;
    ctx.cancellable(ctx.sleep(Duration::from_secs(5))).await?;
    if payment.amount == Cents(0) {
        refund(ctx, &order.id).timeout(Duration::from_secs(3)).await?;
    }
    let home = ctx.record(|| std::env::var("HOME").unwrap_or_default()).await;
    let width = onward::audited!(std::env::var("COLUMNS")).unwrap_or_default();
    let _ = (home, width);
    Ok(payment)
}

/// A helper is an ordinary function.
async fn all(ctx: &Ctx, orders: &[Order]) -> Result<u64, OrderError> {
    let mut total = 0;
    for order in orders {
        total += charge(ctx, &order.id, order.total).await?.amount.0;
    }
    Ok(total)
}

#[workflow(name = "many-orders")]
async fn many(ctx: &Ctx, orders: Vec<Order>) -> Result<u64, OrderError> {
    all(ctx, &orders).await
}

async fn run(client: Client) -> onward::Result<()> {
    let worker = Worker::builder(client.clone(), "orders")
        .deps(App { db: Pool, psp: Psp })
        .workflows::<(order, many)>()
        .activities::<(charge, reserve, refund, Aliased)>()
        .spawn()
        .await?;
    let id = OrderId("o-1".into());
    order(&client, Order { id, total: Cents(10), items: vec![] }).id("order-1").await?;
    worker.shutdown().await?;
    Ok(())
}

#[test]
fn an_order_is_one_as_well() {
    let _ = run;
}
