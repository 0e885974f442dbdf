//! Activities that run in the workflow's own worker.

use onward::{prelude::*, wf};

use crate::{
    activities::{End, Work, work},
    seen::{Seen, seen},
};

/// The workflows of this theme.
pub(crate) type Workflows = (outcomes, chained, beside, dropped, cancelled, refused);

/// What lets `cancelled` go on.
const GO: Signal<()> = Signal::new("go");

/// One call after the other, each with another outcome.
#[workflow(name = "locals.outcomes")]
pub async fn outcomes(ctx: &Ctx) -> onward::Result<Vec<Seen>> {
    let second = Duration::from_secs(1);
    let slow = Work::lasts(5_000);
    Ok(vec![
        seen(&work(ctx.local(), 1, Work::default()).await),
        seen(&work(ctx.local(), 2, Work::fails(2)).await),
        seen(&work(ctx.local(), 3, Work::ends(End::Never)).await),
        seen(&work(ctx.local(), 4, Work::fails(9)).retry(Retry::attempts(2)).await),
        seen(&work(ctx.local(), 5, Work::ends(End::Panic)).retry(Retry::attempts(2)).await),
        seen(&work(ctx.local(), 6, slow).timeout(second).retry(Retry::attempts(2)).await),
        seen(&work(ctx.local(), 7, Work::fails(9)).deadline(3 * second).await),
    ])
}

/// Calls that begin where others end: each begins with the next task.
#[workflow(name = "locals.chained")]
pub async fn chained(ctx: &Ctx) -> onward::Result<u32> {
    let mut sum = 0;
    for number in 1..=3 {
        sum += work(ctx.local(), number, Work::lasts(100)).await?;
    }
    let first = work(ctx.local(), 10, Work::lasts(300)).start();
    let second = work(ctx.local(), 20, Work::lasts(200)).start();
    let (second, recorded, first) = wf::join!(second, ctx.record(|| 30), first);
    let next = work(ctx, sum + first? + second? + recorded, Work::default());
    Ok(work(ctx.local(), next.await?, Work::default()).await?)
}

/// Facts come in while a local activity runs.
#[workflow(name = "locals.beside")]
pub async fn beside(ctx: &Ctx) -> onward::Result<(u32, u32)> {
    let long = work(ctx.local(), 1, Work::lasts(5_000));
    let short = async {
        ctx.sleep(Duration::from_millis(500)).await;
        work(ctx, 2, Work::default()).await
    };
    let (long, short) = wf::join!(long, short);
    Ok((long?, short?))
}

/// A running one is dropped, and one that has not begun.
#[workflow(name = "locals.dropped")]
pub async fn dropped(ctx: &Ctx) -> onward::Result<u32> {
    let long = work(ctx.local(), 1, Work::lasts(10_000));
    if let Ok(done) = ctx.timeout(Duration::from_secs(1), long).await {
        return Ok(done?);
    }
    drop(work(ctx.local(), 2, Work::default()).start());
    Ok(work(ctx.local(), 3, Work::default()).await?)
}

/// Another worker says that it was cancelled.
#[workflow(name = "locals.cancelled")]
pub async fn cancelled(ctx: &Ctx) -> onward::Result<Seen> {
    let outcome = work(ctx.local(), 1, Work::default()).await;
    ctx.recv(GO).await;
    Ok(seen(&outcome))
}

/// The server does not take its marker, because the name of this file is too long for it. The code
/// has gone on by then, so it had better not look at the outcome.
#[workflow(name = "locals.refused")]
pub async fn refused(ctx: &Ctx) -> onward::Result<()> {
    drop(work(ctx.local(), 1, Work::default()).await);
    Ok(())
}

pub(crate) mod play {
    use onward_proto::v1::{self, History, command::Kind};

    use super::GO;
    use crate::{
        puppet::Puppet,
        stage::{QUEUE, Stage},
    };

    by_itself!(outcomes, chained, beside, dropped);

    pub(crate) async fn cancelled(stage: &Stage) -> History {
        let start = super::cancelled(&stage.client).id("cancelled").queue(QUEUE);
        let run = start.start().await.unwrap();
        let mut puppet = Puppet::enter(stage, "puppet", "locals.cancelled").await;
        let task = puppet.task().await;
        puppet.complete(&task, Vec::new(), true).await;
        let marker = v1::RecordMarker {
            kind: v1::MarkerKind::LocalActivity.into(),
            name: "work".to_owned(),
            cause: v1::LocalActivityFailureCause::Cancelled.into(),
            attempts: 1,
            ..Default::default()
        };
        let kind = Some(Kind::RecordMarker(marker));
        let task = puppet.task().await;
        puppet
            .complete(&task, vec![v1::Command { number: 1, kind, ..Default::default() }], false)
            .await;
        run.signal(GO, ()).await.unwrap();
        drop(puppet);
        let _worker = stage.worker().await;
        stage.ended(&run).await
    }

    pub(crate) async fn refused(stage: &Stage) -> History {
        stage.limit(|limits| limits.id_bytes = file!().len() as u64 - 1);
        let _worker = stage.worker().await;
        let start = super::refused(&stage.client).id("refused").queue(QUEUE);
        stage.ended(&start.start().await.unwrap()).await
    }
}
