//! Requests to stop: of whole runs, of sections, of calls.

use onward::{prelude::*, wf};
use serde::{Deserialize, Serialize};

use crate::{
    activities::{Work, until_stopped, work},
    seen::{Seen, seen},
};

/// The workflows of this theme.
pub(crate) type Workflows = (dropped, section, shield, asked, calls, late, unread, error);

/// What some of them wait for.
const GO: Signal<u32> = Signal::new("go");
/// What nobody sends before it is too late.
const NEVER: Signal<u32> = Signal::new("never");

/// It has no say: its code is dropped where it stands, and its call is cancelled.
#[workflow(name = "cancels.dropped")]
pub async fn dropped(ctx: &Ctx) -> onward::Result<u32> {
    Ok(wf::join!(until_stopped(ctx), ctx.sleep(Duration::from_hours(1))).0?)
}

/// It cleans up, and says that it was cancelled.
#[workflow(name = "cancels.section")]
pub async fn section(ctx: &Ctx) -> onward::Result<u32> {
    let outer = ctx.cancellable(async {
        let inner = ctx.cancellable(until_stopped(ctx)).await;
        // The request went to the innermost section alone.
        ctx.sleep(Duration::from_secs(1)).await;
        inner
    });
    match outer.await {
        Ok(Ok(stopped)) => Ok(stopped?),
        Ok(Err(cancelled)) | Err(cancelled) => {
            work(ctx, 1, Work::default()).await?;
            Err(cancelled.into())
        }
    }
}

/// A request that comes early waits for the end of the shield.
#[workflow(name = "cancels.shield")]
pub async fn shield(ctx: &Ctx) -> onward::Result<u32> {
    let held = ctx.shield(async {
        let number = ctx.recv(GO).await;
        work(ctx, number, Work::lasts(500)).await
    });
    let number = held.await?;
    ctx.sleep(Duration::from_hours(1)).await;
    Ok(number)
}

/// It sees the request and completes none the less.
#[workflow(name = "cancels.asked")]
pub async fn asked(ctx: &Ctx) -> onward::Result<(bool, bool)> {
    let before = ctx.cancel_requested();
    let asked = ctx.shield(async {
        ctx.until(|| ctx.cancel_requested()).await;
        work(ctx, 1, Work::default()).await.is_ok() && ctx.cancel_requested()
    });
    Ok((before, asked.await))
}

/// Calls that are dropped: before a worker has them, while one runs that says something when it
/// stops, while one runs that does not, and between two attempts.
#[workflow(name = "cancels.calls")]
pub async fn calls(ctx: &Ctx) -> onward::Result<Seen> {
    drop(work(ctx, 1, Work::default()).start());
    let stopped = until_stopped(ctx).start();
    let running = work(ctx, 3, Work::lasts(20_000)).start();
    let waits = Retry::forever().initial(Duration::from_mins(1));
    let backs_off = work(ctx, 4, Work::fails(9)).retry(waits.max_interval(Duration::from_mins(1)));
    let backs_off = backs_off.start();
    ctx.sleep(Duration::from_secs(2)).await;
    drop((stopped, running, backs_off));
    Ok(seen(&work(ctx, 5, Work::lasts(1_000)).await))
}

/// A call is dropped that has just ended, which the code cannot know yet: once by a task that goes
/// on, once by the one that closes the run.
#[workflow(name = "cancels.late")]
pub async fn late(ctx: &Ctx) -> onward::Result<u32> {
    let mut sum = 0;
    for number in 1..=2 {
        let first = work(ctx, number, Work::lasts(500)).start();
        let second = work(ctx, 10, Work::lasts(504)).start();
        sum += first.await?;
        drop(second);
    }
    Ok(sum)
}

/// It is cancelled with a signal that it has not read.
#[workflow(name = "cancels.unread")]
pub async fn unread(ctx: &Ctx) -> onward::Result<u32> {
    Ok(ctx.recv(NEVER).await)
}

/// How `error` ends.
#[derive(Debug, thiserror::Error, Serialize, Deserialize, onward::Failure)]
pub enum StopError {
    /// It stopped.
    #[error(transparent)]
    Stopped(#[from] Cancelled),
}

/// It says with an error of its own that it was cancelled.
#[workflow(name = "cancels.error")]
pub async fn error(ctx: &Ctx) -> Result<u32, StopError> {
    Ok(ctx.cancellable(ctx.recv(NEVER)).await?)
}

pub(crate) mod play {
    use onward::{Signal, Workflow, WorkflowHandle};
    use onward_proto::v1::{History, history_event::Attributes};
    use tokio::time::sleep;

    use super::GO;
    use crate::stage::{QUEUE, Stage, ms};

    by_itself!(calls, late);

    /// Cancels a run two seconds after its start.
    async fn cancelled<W: Workflow>(stage: &Stage, run: WorkflowHandle<W>) -> History {
        let _worker = stage.worker().await;
        sleep(ms(2_000)).await;
        run.cancel("enough of it").await.unwrap();
        stage.ended(&run).await
    }

    macro_rules! cancelled {
        ($($name:ident),+) => {$(
            pub(crate) async fn $name(stage: &Stage) -> History {
                let start = super::$name(&stage.client).id(stringify!($name)).queue(QUEUE);
                cancelled(stage, start.start().await.unwrap()).await
            }
        )+};
    }
    cancelled!(dropped, section, asked, error);

    pub(crate) async fn shield(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = super::shield(&stage.client).id("shield").queue(QUEUE);
        let run = start.start().await.unwrap();
        run.cancel("too early").await.unwrap();
        let asked =
            |event: &Attributes| matches!(event, Attributes::WorkflowExecutionCancelRequested(_));
        stage.until(&run, asked).await;
        run.cancel("and once more").await.unwrap();
        run.signal(GO, 1).await.unwrap();
        stage.ended(&run).await
    }

    pub(crate) async fn unread(stage: &Stage) -> History {
        let start = super::unread(&stage.client).id("unread").queue(QUEUE);
        let run = start.start().await.unwrap();
        run.signal(Signal::<()>::new("other"), ()).await.unwrap();
        cancelled(stage, run).await
    }
}
