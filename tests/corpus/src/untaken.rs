//! What has happened in a run, and its code was not given before it ended.

use onward::{prelude::*, wf};

use crate::activities::{End, Work, work};

/// The workflows of this theme.
pub(crate) type Workflows = (failure, cancel, left);

/// What is sent to a run that nobody goes on with.
const NEWS: Signal<u32> = Signal::new("news");

/// It fails while two calls end that it does not wait for.
#[workflow(name = "untaken.failure")]
pub async fn failure(ctx: &Ctx) -> onward::Result<u32> {
    work(ctx, 1, Work::lasts(504)).detach();
    work(ctx, 2, Work { lasts_ms: 506, ..Work::ends(End::Never) }).detach();
    work(ctx, 3, Work::lasts(500)).await?;
    Err(onward::Error::msg("without the others"))
}

/// It is asked to stop as it is about to close.
#[workflow(name = "untaken.cancel")]
pub async fn cancel(ctx: &Ctx) -> onward::Result<()> {
    ctx.sleep(Duration::from_secs(1)).await;
    Ok(())
}

/// It waits for a call, a timer and a signal, and has no worker when they come.
#[workflow(name = "untaken.left")]
pub async fn left(ctx: &Ctx) -> onward::Result<u32> {
    let call = work(ctx, 1, Work::lasts(60_000)).deadline(Duration::from_secs(8));
    let (done, (), news) = wf::join!(call, ctx.sleep(Duration::from_secs(5)), ctx.recv(NEWS));
    Ok(done? + news)
}

pub(crate) mod play {
    use std::time::Duration;

    use onward::WorkflowHandle;
    use onward_proto::v1::{History, history_event::Attributes};
    use tokio::time::sleep;

    use super::NEWS;
    use crate::stage::{QUEUE, Stage, ms};

    by_itself!(failure);

    fn is_timer(event: &Attributes) -> bool {
        matches!(event, Attributes::TimerStarted(_))
    }

    pub(crate) async fn cancel(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = super::cancel(&stage.client).id("cancel").queue(QUEUE);
        let run = start.start().await.unwrap();
        stage.until(&run, is_timer).await;
        let history = run.history().await.unwrap();
        let timer = history.events.iter().find_map(|event| match &event.attributes {
            Some(Attributes::TimerStarted(timer)) => Some(timer.fire_at_us),
            _ => None,
        });
        let fires_in = stage.until_time(timer.unwrap());
        sleep(fires_in.saturating_sub(ms(5))).await;
        run.cancel("too late").await.unwrap();
        stage.ended(&run).await
    }

    /// Its worker leaves for good; then it is sent something and asked to stop, its timer fires, and
    /// its call takes too long.
    async fn leave(stage: &Stage, run: &WorkflowHandle<super::left>) {
        let worker = stage.worker().await;
        stage.until(run, is_timer).await;
        drop(worker);
        run.signal(NEWS, 1).await.unwrap();
        run.cancel("nobody is there").await.unwrap();
        run.signal(NEWS, 2).await.unwrap();
    }

    pub(crate) async fn terminated(stage: &Stage) -> History {
        let start = super::left(&stage.client).id("terminated").queue(QUEUE);
        let run = start.start().await.unwrap();
        leave(stage, &run).await;
        sleep(Duration::from_secs(10)).await;
        run.terminate("nobody goes on with it").await.unwrap();
        stage.ended(&run).await
    }

    pub(crate) async fn timed_out(stage: &Stage) -> History {
        let start = super::left(&stage.client).id("timed_out").queue(QUEUE);
        let limit = Duration::from_secs(10);
        let run = start.run_timeout(limit).start().await.unwrap();
        leave(stage, &run).await;
        stage.ended(&run).await
    }
}
