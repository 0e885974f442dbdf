use onward::prelude::*;

#[activity]
async fn greet(_: &ActivityCtx, name: &str) -> onward::Result<String> {
    Ok(format!("Hello, {name}!"))
}

#[workflow]
async fn hello(ctx: &Ctx, name: String) -> onward::Result<String> {
    Ok(greet(ctx, &name).await?)
}

async fn run(client: Client) -> onward::Result<()> {
    let worker = Worker::builder(client.clone(), "hello")
        .workflows::<(hello,)>()
        .activities::<(greet,)>()
        .spawn()
        .await?;
    println!("{}", hello(&client, "Ada".into()).queue("hello").await?);
    worker.shutdown().await?;
    Ok(())
}

#[test]
fn a_workflow_is_a_function() {
    let _ = run;
}
