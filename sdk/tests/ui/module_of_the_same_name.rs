mod charge {
    use onward::prelude::*;

    #[activity]
    pub async fn charge(_: &ActivityCtx, amount: u64) -> onward::Result<u64> {
        Ok(amount)
    }
}

// The type beside the function needs the name that the module has: call the module `payments`.
use charge::charge;

fn main() {}
