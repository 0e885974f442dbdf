use onward::prelude::*;

#[activity]
async fn charge(_: &ActivityCtx, amount: u64) -> Result<u64, std::fmt::Error> {
    Ok(amount)
}

fn main() {}
