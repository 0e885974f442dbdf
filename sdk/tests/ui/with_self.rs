use onward::prelude::*;

struct Shop;

impl Shop {
    #[activity]
    async fn charge(&self, _: &ActivityCtx, amount: u64) -> onward::Result<u64> {
        Ok(amount)
    }
}

fn main() {}
