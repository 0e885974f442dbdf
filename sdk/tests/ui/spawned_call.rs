use onward::prelude::*;

#[activity]
async fn charge(_: &ActivityCtx, amount: u64) -> onward::Result<u64> {
    Ok(amount)
}

// A helper, which the macro does not read: the types still do.
fn in_background(ctx: &'static Ctx) {
    tokio::spawn(async move { charge(ctx, 10).await });
}

fn main() {}
