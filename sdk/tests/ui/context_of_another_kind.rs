use onward::prelude::*;

#[activity]
async fn by_value(_: ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[activity]
async fn exclusive(_: &mut ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[workflow]
async fn hello(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[activity]
async fn greet(_: &Ctx) -> onward::Result<()> {
    Ok(())
}

fn main() {}
