//! Messages from outside.

use onward::prelude::*;

use crate::activities::{Work, work};

/// The workflows of this theme.
pub(crate) type Workflows = (received, together, with_start, skipped, named);

/// Adds to a sum.
const ADD: Signal<u32> = Signal::new("add");
/// What somebody sends who thinks that sums are texts.
const ADD_TEXT: Signal<String> = Signal::new("add");
/// Says a name.
const NAME: Signal<(String, Option<u8>)> = Signal::new("name");
/// Ends it.
const ENOUGH: Signal<()> = Signal::new("enough");

/// One signal after the other, a step between them.
#[workflow(name = "signals.received")]
pub async fn received(ctx: &Ctx) -> onward::Result<u32> {
    let first = ctx.recv(ADD).await;
    work(ctx, first, Work::default()).await?;
    let second = ctx.recv(ADD).await;
    Ok(first + second)
}

/// Signals that one task takes together, with two mailboxes.
#[workflow(name = "signals.together")]
pub async fn together(ctx: &Ctx) -> onward::Result<Vec<u32>> {
    ctx.recv(ENOUGH).await;
    let mut sum = Vec::new();
    for _ in 0..3 {
        sum.push(ctx.recv(ADD).await);
    }
    Ok(sum)
}

/// It has its first signal from the beginning.
#[workflow(name = "signals.with_start")]
pub async fn with_start(ctx: &Ctx) -> onward::Result<u32> {
    Ok(ctx.recv(ADD).await)
}

/// A signal that cannot be read is left out.
#[workflow(name = "signals.skipped")]
pub async fn skipped(ctx: &Ctx) -> onward::Result<u32> {
    Ok(ctx.recv(ADD).await)
}

/// A name that is read twice, and in between one that nobody sends.
#[workflow(name = "signals.named")]
pub async fn named(ctx: &Ctx) -> onward::Result<(String, Option<u8>, String)> {
    let (name, age) = ctx.recv(NAME).await;
    let silence = ctx.timeout(Duration::from_secs(1), ctx.recv(ENOUGH)).await;
    let again = ctx.recv(NAME).await.0;
    silence.expect_err("nobody says that it is enough");
    Ok((name, age, format!("{again} by {}", NAME.name())))
}

pub(crate) mod play {
    use onward_proto::v1::{History, history_event::Attributes};

    use super::{ADD, ADD_TEXT, ENOUGH, NAME};
    use crate::stage::{QUEUE, Stage};

    pub(crate) async fn received(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = super::received(&stage.client).id("received").queue(QUEUE);
        let run = start.start().await.unwrap();
        run.signal(ADD, 1).await.unwrap();
        stage.until(&run, |event| matches!(event, Attributes::ActivityCompleted(_))).await;
        run.signal(ADD, 2).await.unwrap();
        stage.ended(&run).await
    }

    pub(crate) async fn together(stage: &Stage) -> History {
        let start = super::together(&stage.client).id("together").queue(QUEUE);
        let run = start.start().await.unwrap();
        for number in 1..=3 {
            run.signal(ADD, number).await.unwrap();
        }
        run.signal(ENOUGH, ()).await.unwrap();
        let _worker = stage.worker().await;
        stage.ended(&run).await
    }

    pub(crate) async fn with_start(stage: &Stage) -> History {
        let start = super::with_start(&stage.client).id("with_start").queue(QUEUE);
        let run = start.signal(ADD, 5).start().await.unwrap();
        let _worker = stage.worker().await;
        stage.ended(&run).await
    }

    pub(crate) async fn skipped(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = super::skipped(&stage.client).id("skipped").queue(QUEUE);
        let run = start.start().await.unwrap();
        run.signal(ADD_TEXT, "one".to_owned()).await.unwrap();
        run.signal(ADD, 1).await.unwrap();
        stage.ended(&run).await
    }

    pub(crate) async fn named(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = super::named(&stage.client).id("named").queue(QUEUE);
        let run = start.start().await.unwrap();
        run.signal(NAME, ("Ada".to_owned(), Some(36))).await.unwrap();
        stage.until(&run, |event| matches!(event, Attributes::TimerFired(_))).await;
        run.signal(NAME, ("Grace".to_owned(), None)).await.unwrap();
        stage.ended(&run).await
    }
}
