use onward::prelude::*;

#[activity(tiemout = "30s", deadline = "1 hour")]
fn charge(_: &ActivityCtx, amount: &mut u64, card: Option<&str>) -> u64 {
    drop(card);
    *amount
}

fn main() {}
