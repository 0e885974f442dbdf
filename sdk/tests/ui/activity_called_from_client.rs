use onward::prelude::*;

#[activity]
async fn charge(_: &ActivityCtx, amount: u64) -> onward::Result<u64> {
    Ok(amount)
}

fn call(client: &Client) {
    charge(client, 10);
}

fn main() {}
