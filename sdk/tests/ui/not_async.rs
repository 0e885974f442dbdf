use onward::prelude::*;

#[activity]
fn greet(_: &ActivityCtx, name: &str) -> onward::Result<String> {
    Ok(format!("Hello, {name}!"))
}

#[workflow]
fn hello(_: &Ctx, name: String) -> onward::Result<String> {
    Ok(name)
}

fn main() {}
