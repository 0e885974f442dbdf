use onward::prelude::*;

type Greeting = String;

#[activity]
async fn greet(_: &ActivityCtx, name: &str) -> Greeting {
    format!("Hello, {name}!")
}

fn main() {}
