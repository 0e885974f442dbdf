//! Calls of activities, and all that can come of them.

use onward::{prelude::*, wf};

use crate::{
    activities::{End, Work, careful, count, directly, enlarge, keep, work},
    seen::{Seen, seen},
};

/// The workflows of this theme.
pub(crate) type Workflows = (outcomes, options, started, vanished, heartbeats, direct, refused);

/// A queue that no worker serves.
const NOBODY: &str = "nobody";

/// One call after the other, each with another outcome.
#[workflow(name = "calls.outcomes")]
pub async fn outcomes(ctx: &Ctx) -> onward::Result<Vec<Seen>> {
    let second = Duration::from_secs(1);
    let slow = Work::lasts(5_000);
    Ok(vec![
        seen(&work(ctx, 1, Work::default()).await),
        seen(&work(ctx, 2, Work::fails(2)).await),
        seen(&work(ctx, 3, Work::ends(End::Never)).await),
        seen(&work(ctx, 4, Work::fails(9)).retry(Retry::attempts(2)).await),
        seen(&work(ctx, 5, Work::ends(End::Later)).retry(Retry::attempts(2)).await),
        seen(&work(ctx, 6, Work::ends(End::Other)).retry(Retry::attempts(1)).await),
        seen(&work(ctx, 7, Work::ends(End::Panic)).retry(Retry::attempts(2)).await),
        seen(
            &work(ctx, 8, Work::fails(9))
                .retry(Retry::forever().never_on(&["WorkError::Again"]))
                .await,
        ),
        seen(&work(ctx, 9, slow).timeout(second).retry(Retry::attempts(2)).await),
        seen(&work(ctx, 10, Work::fails(9)).deadline(3 * second).await),
        seen(&work(ctx, 11, Work::default()).queue(NOBODY).queue_timeout(second).await),
    ])
}

/// Every option of a call, and every one of an attribute.
#[workflow(name = "calls.options")]
pub async fn options(ctx: &Ctx) -> onward::Result<Vec<Seen>> {
    let of_attribute = careful(ctx, 1).await;
    let retry = Retry::new()
        .max_attempts(4)
        .initial(Duration::from_millis(300))
        .backoff(3.0)
        .max_interval(Duration::from_secs(2))
        .never_on(&["WorkError::Later"]);
    let of_call = careful(ctx, 2)
        .timeout(Duration::from_secs(10))
        .deadline(Duration::from_mins(2))
        .queue_timeout(Duration::from_mins(1))
        .heartbeat(Duration::from_secs(4))
        .retry(retry.or(Retry::forever()))
        .queue(ctx.task_queue())
        .priority(7)
        .summary("the second one")
        .await;
    Ok(vec![seen(&of_attribute), seen(&of_call)])
}

/// Calls that run beside each other, and one that nobody waits for.
#[workflow(name = "calls.started")]
pub async fn started(ctx: &Ctx) -> onward::Result<Vec<Seen>> {
    let slow = work(ctx, 1, Work::lasts(2_000)).start();
    let quick = work(ctx, 2, Work::lasts(500)).start();
    work(ctx, 3, Work::lasts(1_000)).detach();
    let quick = quick.await;
    let then = work(ctx, 4, Work::default()).await;
    Ok(vec![seen(&quick), seen(&then), seen(&slow.await)])
}

/// Calls whose worker vanishes.
#[workflow(name = "calls.vanished")]
pub async fn vanished(ctx: &Ctx) -> onward::Result<Vec<Seen>> {
    let (unheard, unknown, repeated) = wf::join!(
        work(ctx, 1, Work::lasts(20_000))
            .heartbeat(Duration::from_secs(3))
            .retry(Retry::attempts(1)),
        work(ctx, 2, Work::lasts(20_000)).retry(Retry::attempts(1)),
        work(ctx, 3, Work::lasts(5_000)),
    );
    Ok(vec![seen(&unheard), seen(&unknown), seen(&repeated)])
}

/// An attempt that goes on where the one before stood.
#[workflow(name = "calls.heartbeats")]
pub async fn heartbeats(ctx: &Ctx) -> onward::Result<u32> {
    Ok(count(ctx, 6).await?)
}

/// An activity that calls another.
#[workflow(name = "calls.direct")]
pub async fn direct(ctx: &Ctx) -> onward::Result<(u32, bool)> {
    Ok(directly(ctx, 5).await?)
}

/// Calls that break a limit: with the name of their queue, with an argument, with their result.
#[workflow(name = "calls.refused")]
pub async fn refused(ctx: &Ctx) -> onward::Result<Vec<Seen>> {
    let queue = work(ctx, 1, Work::default()).queue("q".repeat(2_000)).await;
    let argument = keep(ctx, &"x".repeat(3 << 20)).await.map(|_| 2);
    let result = enlarge(ctx, 3 << 20).await.map(|_| 3);
    Ok(vec![seen(&queue), seen(&argument), seen(&result)])
}

pub(crate) mod play {
    use onward_proto::v1::History;
    use tokio::time::sleep;

    use crate::stage::{QUEUE, Stage, ms};

    by_itself!(outcomes, options, started, heartbeats, direct, refused);

    pub(crate) async fn vanished(stage: &Stage) -> History {
        let worker = stage.worker().await;
        let start = super::vanished(&stage.client).id("vanished").queue(QUEUE);
        let run = start.start().await.unwrap();
        sleep(ms(1_000)).await;
        drop(worker);
        let _worker = stage.another_worker().await;
        stage.ended(&run).await
    }
}
