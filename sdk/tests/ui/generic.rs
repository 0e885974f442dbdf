use onward::prelude::*;

#[activity]
async fn store<T: Send>(_: &ActivityCtx, value: T) -> onward::Result<()> {
    drop(value);
    Ok(())
}

#[workflow]
async fn array<const N: usize>(_: &Ctx) -> onward::Result<()> {
    Ok(())
}

#[activity]
async fn greet(_: &ActivityCtx, name: impl Into<String>) -> onward::Result<String> {
    Ok(name.into())
}

#[activity]
async fn named<'a>(_: &'a ActivityCtx, name: &'a str) -> onward::Result<String> {
    Ok(name.to_owned())
}

fn main() {}
