//! Waiting for several things, and for the workflow's own state.

use onward::{prelude::*, wf};

use crate::{
    activities::{End, Work, work},
    seen::{Seen, seen},
};

/// The workflows of this theme.
pub(crate) type Workflows = (state, select, join, race);

/// Says that it is time.
const NOW: Signal<u32> = Signal::new("now");

/// Branches that wait for what others do with shared state.
#[workflow(name = "waits.state")]
pub async fn state(ctx: &Ctx) -> onward::Result<(u32, Option<String>, Vec<u32>)> {
    let done = State::new(0_u32);
    let word = State::new(None);
    let list: State<Vec<u32>> = State::default();
    let branch = |number: u32| {
        let (done, list) = (&done, &list);
        async move {
            let value = work(ctx, number, Work::lasts(u64::from(10 - number) * 100)).await?;
            list.update(|list| list.push(value));
            done.set(done.get() + 1);
            Ok::<_, onward::Error>(())
        }
    };
    let watch = async {
        ctx.until(|| done.get() >= 2).await;
        word.set(Some("two".to_owned()));
    };
    let read = async {
        let two = ctx.until(|| word.take()).await;
        let before = done.replace(100);
        ctx.until(|| list.with(|list| list.len() == 3)).await;
        (before, two)
    };
    let ((before, two), (), first, second, third) =
        wf::join!(read, watch, branch(1), branch(2), branch(3));
    first.and(second).and(third)?;
    Ok((before, Some(two), list.with(Clone::clone)))
}

/// The first of several different things.
#[workflow(name = "waits.select")]
pub async fn select(ctx: &Ctx) -> onward::Result<Vec<String>> {
    let mut won = Vec::new();
    let mut kept = work(ctx, 1, Work::lasts(3_000)).start();
    for _ in 0..4 {
        won.push(wf::select! {
            number = ctx.recv(NOW) => format!("signal {number}"),
            outcome = &mut kept => format!("kept {}", outcome?),
            () = ctx.sleep(Duration::from_secs(1)) => { "timer".to_owned() }
        });
    }
    // When two are ready, the upper one wins.
    won.push(wf::select! {
        text = async { "upper" } => text.to_owned(),
        text = async { "lower" } => text.to_owned(),
    });
    Ok(won)
}

/// All of several things.
#[workflow(name = "waits.join")]
pub async fn join(ctx: &Ctx) -> onward::Result<(Vec<Seen>, Seen, (u32, u32))> {
    let quick = |number| work(ctx, number, Work::lasts(200));
    let (one, ()) = wf::join!(quick(1), ctx.sleep(Duration::from_millis(100)));
    let all = wf::join_all((2..5).map(quick)).await;
    let tried = wf::try_join_all((5..7).map(quick)).await?;
    let never = work(ctx, 7, Work::ends(End::Never));
    let broken = wf::try_join!(work(ctx, 8, Work::lasts(9_000)), never).map(|(left, _)| left);
    let both = wf::try_join!(quick(9), quick(10))?;
    let mut outcomes = vec![seen(&one), Seen::Value(tried.iter().sum())];
    outcomes.extend(all.iter().map(seen));
    Ok((outcomes, seen(&broken), both))
}

/// The first of several things of one type; the others are cancelled.
#[workflow(name = "waits.race")]
pub async fn race(ctx: &Ctx) -> onward::Result<u32> {
    let calls = (1..=3).map(|number| work(ctx, number, Work::lasts(u64::from(4 - number) * 1_000)));
    let first = wf::race(calls).await?;
    ctx.sleep(Duration::from_secs(1)).await;
    Ok(first)
}

pub(crate) mod play {
    use onward_proto::v1::{History, history_event::Attributes};

    use super::NOW;
    use crate::stage::{QUEUE, Stage};

    by_itself!(state, join, race);

    pub(crate) async fn select(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = super::select(&stage.client).id("select").queue(QUEUE);
        let run = start.start().await.unwrap();
        stage.until(&run, |event| matches!(event, Attributes::TimerFired(_))).await;
        run.signal(NOW, 4).await.unwrap();
        stage.ended(&run).await
    }
}
