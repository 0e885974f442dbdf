use onward::prelude::*;

#[activity]
async fn nothing() -> onward::Result<()> {
    Ok(())
}

#[activity]
async fn greet(name: String) -> onward::Result<String> {
    Ok(name)
}

#[workflow]
async fn hello(name: String) -> onward::Result<String> {
    Ok(name)
}

#[activity]
async fn lent(name: &str) -> onward::Result<String> {
    Ok(name.to_owned())
}

fn main() {}
