use onward::prelude::*;

#[activity(timeout = "30 sec")]
async fn unit(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[activity(timeout = "30", deadline = "soon", heartbeat = "0s", queue_timeout = 5)]
async fn several(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[activity(retry(max_attempts = 0, backoff = 0.5, initial = "1.5s"))]
async fn retries(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[activity(retry = 5)]
async fn short(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[activity(name = "")]
async fn nameless(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[activity(retry(backoff = 1000.5))]
async fn steep(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[activity(retry(backoff = 1000))]
async fn as_steep_as_can_be(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[workflow(on_panic = "abort")]
async fn order(_: &Ctx) -> onward::Result<()> {
    Ok(())
}

fn main() {}
