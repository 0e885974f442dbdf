use onward::prelude::*;

#[activity]
async fn greet(name: &str, _: &ActivityCtx) -> onward::Result<String> {
    Ok(name.to_owned())
}

#[workflow]
async fn hello(name: String, _: &Ctx) -> onward::Result<String> {
    Ok(name)
}

fn main() {}
