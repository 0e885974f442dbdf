use onward::prelude::*;

#[activity(tiemout = "30s")]
async fn charge(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[activity(retry(max_attempt = 3, jitter = 2))]
async fn refund(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[workflow(timeout = "30s")]
async fn order(_: &Ctx) -> onward::Result<()> {
    Ok(())
}

#[activity(timeout = "1s", timeout = "2s")]
async fn twice(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

// Still definitions: the mistakes above are the only messages.
fn is_activity<A: Activity>() {}

fn main() {
    is_activity::<charge>();
    is_activity::<refund>();
    is_activity::<twice>();
}
