//! The workflows of these tests. The worker process runs them, the tests start them.
#![allow(missing_docs, reason = "their names and bodies say it")]

use std::{hint::black_box, time::Duration};

use onward::{ActivityError, Limit, Signal, prelude::*, wf};

use crate::Ledger;

/// What the activities work on.
#[derive(Clone, Deps)]
pub struct World {
    pub ledger: Ledger,
    /// The worker process.
    pub worker: String,
}

/// Leaves an effect, and takes a moment in which it can be killed before it says so.
#[activity(timeout = "60s", retry(initial = "100ms", max_interval = "1s"))]
pub async fn noted(ctx: &ActivityCtx<World>, place: u32, so_far: u64) -> onward::Result<u64> {
    ctx.ledger.note(&ctx.idempotency_key(), ctx.attempt(), &ctx.worker).await?;
    tokio::time::sleep(Duration::from_millis(5)).await;
    Ok(so_far * 10 + u64::from(place))
}

/// How many activities [`five_steps`] calls.
pub const STEPS: u32 = 5;

/// What [`five_steps`] of `number` returns.
pub fn five_steps_result(number: u64) -> u64 {
    number * 100_000 + 12_345
}

/// Five activities, each with the result of the one before.
#[workflow]
pub async fn five_steps(ctx: &Ctx, number: u64) -> onward::Result<u64> {
    let mut so_far = number;
    for place in 1..=STEPS {
        so_far = noted(ctx, place, so_far).await?;
    }
    Ok(so_far)
}

/// Leaves an effect, sleeps, and says who slept: `{worker} {attempt}`.
#[activity]
pub async fn nap(ctx: &ActivityCtx<World>, millis: u64) -> onward::Result<String> {
    ctx.ledger.note(&ctx.idempotency_key(), ctx.attempt(), &ctx.worker).await?;
    tokio::time::sleep(Duration::from_millis(millis)).await;
    Ok(format!("{} {}", ctx.worker, ctx.attempt()))
}

/// One nap, which may take so long.
#[workflow]
pub async fn naps(ctx: &Ctx, millis: u64, timeout_millis: u64) -> onward::Result<String> {
    let retry = Retry::forever().initial(Duration::from_millis(100));
    Ok(nap(ctx, millis).timeout(Duration::from_millis(timeout_millis)).retry(retry).await?)
}

/// How heavy a text is.
#[activity]
pub async fn weigh(_: &ActivityCtx, text: String) -> onward::Result<usize> {
    Ok(text.len())
}

/// A text of that weight.
#[activity]
pub async fn make_heavy(_: &ActivityCtx, bytes: usize) -> onward::Result<String> {
    Ok("x".repeat(bytes))
}

/// Sends an activity more than fits, and says which limit that broke.
#[workflow]
pub async fn sends_too_much(ctx: &Ctx, bytes: usize) -> onward::Result<String> {
    match weigh(ctx, "x".repeat(bytes)).await {
        Ok(bytes) => Ok(format!("{bytes} bytes went through")),
        Err(ActivityError::Refused(Limit { name, .. })) => Ok(name),
        Err(other) => Err(other.into()),
    }
}

/// Gets more from an activity than fits, and says how that failed.
#[workflow]
pub async fn gets_too_much(ctx: &Ctx, bytes: usize) -> onward::Result<String> {
    match make_heavy(ctx, bytes).retry(Retry::attempts(2)).await {
        Ok(text) => Ok(format!("{} bytes came through", text.len())),
        Err(error) => Ok(error.to_string()),
    }
}

/// Returns more than fits.
#[workflow]
pub async fn returns_too_much(_: &Ctx, bytes: usize) -> onward::Result<String> {
    Ok("x".repeat(bytes))
}

/// Calls `count` activities of `bytes` each in one workflow task: bytes that arrived, calls that
/// were refused, and the limit they broke.
#[workflow]
pub async fn calls_many(
    ctx: &Ctx,
    count: usize,
    bytes: usize,
) -> onward::Result<(usize, usize, String)> {
    let calls = (0..count).map(|_| weigh(ctx, "x".repeat(bytes)).start()).collect::<Vec<_>>();
    let (mut arrived, mut refused, mut limit) = (0, 0, String::new());
    for outcome in wf::join_all(calls).await {
        match outcome {
            Ok(bytes) => arrived += bytes,
            Err(ActivityError::Refused(broken)) => {
                refused += 1;
                limit = broken.name;
            }
            Err(other) => return Err(other.into()),
        }
    }
    Ok((arrived, refused, limit))
}

/// No worker has it unless it is told to.
#[activity]
pub async fn stray(_: &ActivityCtx) -> onward::Result<String> {
    Ok("found".to_owned())
}

/// Calls an activity that no worker may have.
#[workflow]
pub async fn calls_stray(ctx: &Ctx) -> onward::Result<String> {
    Ok(stray(ctx).await?)
}

#[workflow]
pub async fn panics(_: &Ctx) -> onward::Result<()> {
    panic!("this workflow always panics")
}

#[workflow]
pub async fn spins(_: &Ctx) -> onward::Result<()> {
    let mut turns = 0_u64;
    while black_box(turns) < u64::MAX {
        turns += 1;
    }
    Ok(())
}

fn deeper(depth: u64) -> u64 {
    let room = black_box([depth; 64]);
    if black_box(depth) == u64::MAX { 0 } else { deeper(depth + 1) + room[0] }
}

#[workflow]
pub async fn overflows(_: &Ctx) -> onward::Result<u64> {
    Ok(deeper(1))
}

/// What [`grow_old`] and [`grow_new`] wait for.
pub const GO: Signal<u64> = Signal::new("go");

/// A workflow whose code changes while its runs are open: before.
#[workflow(name = "grow")]
pub async fn grow_old(ctx: &Ctx, number: u64) -> onward::Result<u64> {
    let so_far = noted(ctx, 1, number).await?;
    let go = ctx.recv(GO).await;
    Ok(noted(ctx, 2, so_far).await? + go)
}

/// A workflow whose code changes while its runs are open: after.
#[workflow(name = "grow")]
pub async fn grow_new(ctx: &Ctx, number: u64) -> onward::Result<u64> {
    let so_far = noted(ctx, 1, number).await?;
    let so_far = noted(ctx, 7, so_far).await?;
    let go = ctx.recv(GO).await;
    Ok(noted(ctx, 2, so_far).await? + go)
}
