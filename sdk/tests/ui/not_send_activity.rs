use onward::prelude::*;
use std::rc::Rc;

#[activity]
async fn charge(_: &ActivityCtx, amount: u64) -> onward::Result<u64> {
    let shared = Rc::new(amount);
    std::future::ready(()).await;
    Ok(*shared)
}

fn main() {}
