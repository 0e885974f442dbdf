//! Timers, and the time.

use std::time::SystemTime;

use onward::{prelude::*, wf};

use crate::activities::{Work, work};

/// The workflows of this theme.
pub(crate) type Workflows = (sleeps, timeouts, dropped, taken_back, refused);

/// Timers one after the other, and what the time is after each.
#[workflow(name = "timers.sleeps")]
pub async fn sleeps(ctx: &Ctx) -> onward::Result<Vec<u64>> {
    let since_epoch = || ctx.now().duration_since(SystemTime::UNIX_EPOCH).map(|it| it.as_secs());
    let mut times = vec![since_epoch()?];
    ctx.sleep(Duration::ZERO).await;
    ctx.sleep(Duration::from_millis(1_500)).summary("not for long").await;
    times.push(since_epoch()?);
    ctx.sleep(Duration::from_mins(10)).await;
    times.push(since_epoch()?);
    Ok(times)
}

/// A time limit that holds, one that does not, and one of what is ready at once.
#[workflow(name = "timers.timeouts")]
pub async fn timeouts(ctx: &Ctx) -> onward::Result<(u32, bool, bool)> {
    let limit = Duration::from_secs(2);
    let in_time = ctx.timeout(limit, work(ctx, 1, Work::lasts(500))).await??;
    let late = ctx.timeout(limit, work(ctx, 2, Work::lasts(5_000))).await;
    let at_once = ctx.timeout(limit, async { 3 }).await;
    Ok((in_time, matches!(late, Err(Elapsed)), at_once == Ok(3)))
}

/// Timers that are dropped: at once, and while they run.
#[workflow(name = "timers.dropped")]
pub async fn dropped(ctx: &Ctx) -> onward::Result<()> {
    let short = Duration::from_secs(1);
    wf::race([ctx.sleep(2 * short), ctx.sleep(short), ctx.sleep(3 * short)]).await;
    wf::select! {
        () = ctx.sleep(short) => {}
        () = async {} => {}
    }
    Ok(())
}

/// Timers that fire while the task is on its way that drops them: one firing is taken back by a
/// task that goes on, one by the task that closes the run.
#[workflow(name = "timers.taken_back")]
pub async fn taken_back(ctx: &Ctx) -> onward::Result<()> {
    for _ in 0..2 {
        let first = ctx.sleep(Duration::from_secs(1));
        wf::race([first, ctx.sleep(Duration::from_millis(1_005))]).await;
    }
    Ok(())
}

/// More timers than the server allows: the third ends the run.
#[workflow(name = "timers.refused")]
pub async fn refused(ctx: &Ctx) -> onward::Result<()> {
    let timers = (1..=3).map(|hours| ctx.sleep(Duration::from_hours(hours)));
    wf::join!(work(ctx, 1, Work::default()), wf::join_all(timers), ctx.sleep(Duration::ZERO)).0?;
    Ok(())
}

pub(crate) mod play {
    use onward_proto::v1::History;

    use crate::stage::{QUEUE, Stage};

    by_itself!(sleeps, timeouts, dropped, taken_back);

    pub(crate) async fn refused(stage: &Stage) -> History {
        stage.limit(|limits| limits.pending_timers = 2);
        let _worker = stage.worker().await;
        let start = super::refused(&stage.client).id("refused").queue(QUEUE);
        stage.ended(&start.start().await.unwrap()).await
    }
}
