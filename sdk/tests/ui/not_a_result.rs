use onward::prelude::*;

#[activity]
async fn nothing(_: &ActivityCtx) {}

#[activity]
async fn greet(_: &ActivityCtx, name: &str) -> String {
    format!("Hello, {name}!")
}

#[workflow]
async fn hello(_: &Ctx, name: String) -> (String, u64) {
    (name, 1)
}

fn main() {}
