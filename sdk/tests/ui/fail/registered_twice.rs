use onward::prelude::*;

#[activity]
async fn charge(_: &ActivityCtx, amount: u64) -> onward::Result<u64> {
    Ok(amount)
}

#[activity(name = "charge")]
async fn charge_again(_: &ActivityCtx, amount: u64) -> onward::Result<u64> {
    Ok(amount)
}

fn main() {
    if let Some(client) = None::<Client> {
        let _ = Worker::builder(client, "orders").activities::<(charge, charge_again)>();
    }
}
