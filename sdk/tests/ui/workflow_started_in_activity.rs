use onward::prelude::*;

#[workflow]
async fn order(_: &Ctx, id: String) -> onward::Result<String> {
    Ok(id)
}

#[activity]
async fn charge(ctx: &ActivityCtx, id: &str) -> onward::Result<()> {
    order(ctx, id.to_owned());
    Ok(())
}

fn main() {}
