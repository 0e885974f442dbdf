#![deny(unused_must_use)]

use onward::prelude::*;

#[activity]
async fn charge(_: &ActivityCtx, amount: u64) -> onward::Result<u64> {
    Ok(amount)
}

#[workflow]
async fn buy(ctx: &Ctx) -> onward::Result<()> {
    charge(ctx, 10);
    Ok(())
}

fn main() {}
