//! The smallest whole program: one activity, one workflow, a worker, and a run of it.
//!
//! Start a server with `onward dev`, then `cargo run -p onward-example-hello`.

use onward::prelude::*;

#[activity]
async fn greet(_: &ActivityCtx, name: &str) -> onward::Result<String> {
    Ok(format!("Hello, {name}!"))
}

#[workflow]
async fn hello(ctx: &Ctx, name: String) -> onward::Result<String> {
    Ok(greet(ctx, &name).await?)
}

#[tokio::main]
async fn main() -> onward::Result<()> {
    let client = Client::from_env().await?;
    let worker = Worker::builder(client.clone(), "hello")
        .workflows::<(hello,)>()
        .activities::<(greet,)>()
        .spawn()
        .await?;
    println!("{}", hello(&client, "Ada".into()).queue("hello").await?); // start, wait, typed result
    Ok(worker.shutdown().await?)
}
