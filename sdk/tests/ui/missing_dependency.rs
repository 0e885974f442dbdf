use onward::prelude::*;

struct App {
    pool: u32,
}

#[activity]
async fn charge(ctx: &ActivityCtx<App>, amount: u64) -> onward::Result<u64> {
    Ok(amount + u64::from(ctx.pool))
}

fn worker(client: Client) {
    let _ = Worker::builder(client, "orders").activities::<(charge,)>();
}

fn main() {}
