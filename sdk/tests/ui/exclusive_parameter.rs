use onward::prelude::*;

#[activity]
async fn count(_: &ActivityCtx, total: &mut u64) -> onward::Result<()> {
    *total += 1;
    Ok(())
}

fn main() {}
