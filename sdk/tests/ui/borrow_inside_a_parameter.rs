use onward::prelude::*;
use std::borrow::Cow;

#[activity]
async fn maybe(_: &ActivityCtx, name: Option<&str>) -> onward::Result<()> {
    drop(name);
    Ok(())
}

#[activity]
async fn names(_: &ActivityCtx, names: &[&str]) -> onward::Result<()> {
    drop(names);
    Ok(())
}

#[workflow]
async fn cow(_: &Ctx, name: Cow<'_, str>) -> onward::Result<()> {
    drop(name);
    Ok(())
}

#[activity]
async fn forever(_: &ActivityCtx, name: &'static str) -> onward::Result<()> {
    drop(name);
    Ok(())
}

fn main() {}
