use onward::prelude::*;

#[activity]
async fn charge(_: &ActivityCtx, order: &str, amount: u64) -> onward::Result<u64> {
    drop(order);
    Ok(amount)
}

#[workflow]
async fn buy(ctx: &Ctx) -> onward::Result<u64> {
    Ok(charge(ctx, 10, "order-1").await?)
}

fn main() {}
