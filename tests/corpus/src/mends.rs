//! A run that every kind of broken worker fails to advance, and that goes on when one is sound.

use onward::prelude::*;

use crate::activities::{Work, work};

/// The workflows of this theme.
pub(crate) type Workflows = (blocked,);

/// Lets it go on.
const GO: Signal<u32> = Signal::new("go");

/// Two steps, and a signal between them.
#[workflow(name = "mends.blocked")]
pub async fn blocked(ctx: &Ctx, number: u32) -> onward::Result<u32> {
    let first = work(ctx, number, Work::default()).await?;
    let more = ctx.recv(GO).await;
    Ok(work(ctx, first + more, Work::default()).await?)
}

/// The same workflow as others might have written it.
mod broken {
    use std::task::Poll;

    use onward::prelude::*;

    use super::GO;
    use crate::activities::{Careful, Work, careful, work};

    /// The first step is another one.
    #[workflow(name = "mends.blocked")]
    pub(super) async fn reordered(ctx: &Ctx, number: u32) -> onward::Result<u32> {
        ctx.sleep(Duration::from_secs(1)).await;
        Ok(number)
    }

    /// Its argument has another type.
    #[workflow(name = "mends.blocked")]
    pub(super) async fn retyped(_: &Ctx, text: String) -> onward::Result<u32> {
        Ok(text.parse()?)
    }

    macro_rules! after_the_signal {
        ($($name:ident: |$ctx:ident| $then:expr;)+) => {$(
            #[workflow(name = "mends.blocked")]
            pub(super) async fn $name($ctx: &Ctx, number: u32) -> onward::Result<u32> {
                work($ctx, number, Work::default()).await?;
                $ctx.recv(GO).await;
                $then
            }
        )+};
    }
    after_the_signal! {
        panics: |ctx| panic!("nobody thought of this");
        stuck: |ctx| std::future::pending().await;
        woken: |ctx| {
            wake_from_outside().await;
            Ok(0)
        };
        careless: |ctx| Ok(careful(ctx.local(), 1).retry(Retry::attempts(1)).await?);
    }

    /// Another workflow.
    #[workflow(name = "mends.other")]
    pub(super) async fn other(_: &Ctx) -> onward::Result<()> {
        Ok(())
    }

    /// Woken by a thread of its own.
    async fn wake_from_outside() {
        std::future::poll_fn(|cx| {
            let waker = cx.waker().clone();
            std::thread::spawn(move || waker.wake()).join().expect("a wake does not panic");
            Poll::<()>::Pending
        })
        .await;
    }

    /// What `careless` calls.
    pub(super) type Called = (work, Careful);
}

pub(crate) mod play {
    use onward::{WorkflowHandle, WorkflowSet};
    use onward_proto::v1::{History, WorkflowTaskFailureCause as Cause, history_event::Attributes};

    use super::{GO, broken};
    use crate::{
        puppet::Puppet,
        stage::{QUEUE, Stage},
    };

    const NAME: &str = "mends.blocked";

    /// Waits for a failed task with this cause.
    async fn fails(stage: &Stage, run: &WorkflowHandle<super::blocked>, cause: Cause) {
        let is_it = |event: &Attributes| matches!(event, Attributes::WorkflowTaskFailed(failed) if failed.cause() == cause);
        stage.until(run, is_it).await;
    }

    /// A worker with this code fails the task.
    async fn breaks<S: WorkflowSet>(
        stage: &Stage,
        run: &WorkflowHandle<super::blocked>,
        cause: Cause,
    ) {
        let _worker = stage
            .build(cause.as_str_name())
            .workflows::<S>()
            .activities::<broken::Called>()
            .spawn()
            .await
            .unwrap();
        fails(stage, run, cause).await;
    }

    pub(crate) async fn blocked(stage: &Stage) -> History {
        let worker = stage.worker().await;
        let start = super::blocked(&stage.client, 5).id("blocked").queue(QUEUE);
        let run = start.start().await.unwrap();
        stage.until(&run, |event| matches!(event, Attributes::ActivityCompleted(_))).await;
        worker.shutdown().await.unwrap();
        run.signal(GO, 6).await.unwrap();

        breaks::<(broken::reordered,)>(stage, &run, Cause::NonDeterminism).await;
        breaks::<(broken::retyped,)>(stage, &run, Cause::Payload).await;
        breaks::<(broken::panics,)>(stage, &run, Cause::Panic).await;
        breaks::<(broken::stuck,)>(stage, &run, Cause::Stuck).await;
        breaks::<(broken::woken,)>(stage, &run, Cause::ForeignWake).await;
        breaks::<(broken::careless,)>(stage, &run, Cause::BadCommands).await;
        breaks::<(broken::other,)>(stage, &run, Cause::UnknownType).await;

        let mut old = Puppet::enter(stage, "an old worker", NAME).await;
        let task = old.task().await;
        old.fail(&task, Cause::Unsupported, "event 7 is of an unknown kind").await;
        fails(stage, &run, Cause::Unsupported).await;
        drop(old);
        let mut hung = Puppet::enter(stage, "a worker that hangs", NAME).await;
        hung.task().await;
        hung.idle(11).await;
        fails(stage, &run, Cause::TimedOut).await;
        drop(hung);
        let mut lost = Puppet::enter(stage, "a worker that vanishes", NAME).await;
        lost.task().await;
        drop(lost);
        fails(stage, &run, Cause::WorkerLost).await;

        let _worker = stage.another_worker().await;
        stage.ended(&run).await
    }
}
