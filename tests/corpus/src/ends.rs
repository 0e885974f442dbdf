//! How runs end.

use std::collections::BTreeMap;

use onward::prelude::*;
use serde::{Deserialize, Serialize};

use crate::activities::{Reason, Work, work};

/// The workflows of this theme.
pub(crate) type Workflows = (
    unit,
    text,
    values,
    options,
    causes,
    plain_error,
    waits,
    untaken,
    refused_close,
    unread,
    unread_failure,
    full,
    too_large,
);

/// A signal that is sent as a run is about to close.
const LATE: Signal<u32> = Signal::new("late");

/// It returns nothing.
#[workflow(name = "ends.unit")]
pub async fn unit(_: &Ctx) -> onward::Result<()> {
    Ok(())
}

/// It returns what it is given.
#[workflow(name = "ends.text")]
pub async fn text(_: &Ctx, text: String, times: u32) -> onward::Result<String> {
    Ok(text.repeat(times as usize))
}

/// A value with a bit of everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Everything {
    /// Numbers.
    pub numbers: (i64, u64, f64),
    /// What may be missing.
    pub options: [Option<bool>; 2],
    /// Text as keys, lists as values.
    pub map: BTreeMap<String, Vec<char>>,
    /// One of several.
    pub choice: Result<(), String>,
}

/// It returns a structure.
#[workflow(name = "ends.values")]
pub async fn values(_: &Ctx, mut everything: Everything) -> onward::Result<Everything> {
    everything.numbers.0 += 1;
    Ok(everything)
}

/// It is started with all options.
#[workflow(name = "ends.options")]
pub async fn options(ctx: &Ctx, missing: Option<u32>) -> onward::Result<Option<u32>> {
    ctx.sleep(Duration::from_secs(1)).await;
    Ok(missing)
}

/// How `causes` ends.
#[derive(Debug, thiserror::Error, Serialize, Deserialize, onward::Failure)]
pub enum EndError {
    /// With what it is told.
    #[error("it ends with {number}")]
    #[failure(terminal, kind = "the-end")]
    Number {
        /// What it was told.
        number: u32,
        /// Why.
        #[source]
        because: Reason,
    },
}

/// It fails with an error of its own, which has causes.
#[workflow(name = "ends.causes")]
pub async fn causes(_: &Ctx, number: u32) -> Result<(), EndError> {
    Err(EndError::Number { number, because: Reason::chain(3) })
}

/// It fails with an error of any type.
#[workflow(name = "ends.plain_error")]
pub async fn plain_error(ctx: &Ctx) -> onward::Result<u32> {
    ctx.sleep(Duration::from_secs(1)).await;
    "seven".parse::<u32>().terminal()
}

/// It waits to be ended from outside.
#[workflow(name = "ends.waits")]
pub async fn waits(ctx: &Ctx) -> onward::Result<()> {
    work(ctx, 1, Work::lasts(20_000)).detach();
    ctx.sleep(Duration::from_hours(24)).await;
    Ok(())
}

/// It ends while something happens that it does not wait for.
#[workflow(name = "ends.untaken")]
pub async fn untaken(ctx: &Ctx) -> onward::Result<u32> {
    work(ctx, 1, Work::lasts(504)).detach();
    Ok(work(ctx, 2, Work::lasts(500)).await?)
}

/// A signal arrives as it is about to close, and is looked at.
#[workflow(name = "ends.refused_close")]
pub async fn refused_close(ctx: &Ctx) -> onward::Result<Option<u32>> {
    let number = State::new(None);
    let listen = async { number.set(Some(ctx.recv(LATE).await)) };
    onward::wf::select! {
        () = listen => {}
        () = ctx.sleep(Duration::from_secs(1)) => {}
    }
    Ok(number.get())
}

/// A signal arrives as it is about to close, and is not looked at.
#[workflow(name = "ends.unread")]
pub async fn unread(ctx: &Ctx) -> onward::Result<()> {
    ctx.sleep(Duration::from_secs(1)).await;
    Ok(())
}

/// It fails, and has signals that it has not looked at.
#[workflow(name = "ends.unread_failure")]
pub async fn unread_failure(ctx: &Ctx) -> onward::Result<()> {
    ctx.sleep(Duration::from_secs(1)).await;
    Err(onward::Error::msg("without a look"))
}

/// Its history becomes too long.
#[workflow(name = "ends.full")]
pub async fn full(ctx: &Ctx) -> onward::Result<()> {
    loop {
        ctx.sleep(Duration::from_secs(1)).await;
    }
}

/// Its result is too large.
#[workflow(name = "ends.too_large")]
pub async fn too_large(ctx: &Ctx) -> onward::Result<String> {
    ctx.sleep(Duration::from_secs(1)).await;
    Ok("x".repeat(3 << 20))
}

pub(crate) mod play {
    use std::{collections::BTreeMap, time::Duration};

    use onward::{IdConflict, IdReuse};
    use onward_proto::v1::{History, history_event::Attributes};
    use tokio::time::sleep;

    use super::{Everything, LATE};
    use crate::stage::{QUEUE, Stage, ms};

    by_itself!(unit, plain_error, untaken, too_large);

    fn is_timer(event: &Attributes) -> bool {
        matches!(event, Attributes::TimerStarted(_))
    }

    pub(crate) async fn text(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = super::text(&stage.client, "ab\u{e9} \"\\\n".to_owned(), 2).id("text");
        stage.ended(&start.queue(QUEUE).start().await.unwrap()).await
    }

    pub(crate) async fn values(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let everything = Everything {
            numbers: (i64::MIN, u64::MAX, 0.1),
            options: [Some(true), None],
            map: BTreeMap::from([
                ("a".to_owned(), vec!['b', '\u{1f600}']),
                (String::new(), Vec::new()),
            ]),
            choice: Err("no".to_owned()),
        };
        let start = super::values(&stage.client, everything).id("values").queue(QUEUE);
        stage.ended(&start.start().await.unwrap()).await
    }

    pub(crate) async fn options(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = super::options(&stage.client, None)
            .id("options")
            .queue(QUEUE)
            .execution_timeout(Duration::from_hours(2))
            .run_timeout(Duration::from_hours(1))
            .id_reuse(IdReuse::Reject)
            .memo("note", "with everything")
            .memo("number", &7);
        stage.ended(&start.start().await.unwrap()).await
    }

    pub(crate) async fn causes(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = super::causes(&stage.client, 9).id("causes").queue(QUEUE);
        stage.ended(&start.start().await.unwrap()).await
    }

    pub(crate) async fn terminated(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = super::waits(&stage.client).id("terminated").queue(QUEUE);
        let run = start.start().await.unwrap();
        stage.until(&run, is_timer).await;
        run.terminate("it is not needed any more").await.unwrap();
        stage.ended(&run).await
    }

    pub(crate) async fn replaced(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = || super::waits(&stage.client).id("replaced").queue(QUEUE);
        let run = start().start().await.unwrap();
        stage.until(&run, is_timer).await;
        start().id_conflict(IdConflict::TerminateExisting).start().await.unwrap();
        stage.ended(&run).await
    }

    pub(crate) async fn run_timeout(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = super::waits(&stage.client).id("run_timeout").queue(QUEUE);
        let limit = Duration::from_secs(5);
        stage.ended(&start.run_timeout(limit).start().await.unwrap()).await
    }

    /// Its time is up before a worker has it.
    pub(crate) async fn execution_timeout(stage: &Stage) -> History {
        let start = super::waits(&stage.client).id("execution_timeout").queue(QUEUE);
        let limit = Duration::from_secs(5);
        stage.ended(&start.execution_timeout(limit).start().await.unwrap()).await
    }

    /// A signal that reaches the server while the task is on its way that closes the run.
    macro_rules! late_signal {
        ($($name:ident),+) => {$(
            pub(crate) async fn $name(stage: &Stage) -> History {
                let _worker = stage.worker().await;
                let start = super::$name(&stage.client).id(stringify!($name)).queue(QUEUE);
                let run = start.start().await.unwrap();
                stage.until(&run, is_timer).await;
                let history = run.history().await.unwrap();
                let timer = history.events.iter().find_map(|event| match &event.attributes {
                    Some(Attributes::TimerStarted(timer)) => Some(timer.fire_at_us),
                    _ => None,
                });
                let fires_in = stage.until_time(timer.unwrap());
                sleep(fires_in - ms(5)).await;
                run.signal(LATE, 3).await.unwrap();
                stage.ended(&run).await
            }
        )+};
    }
    late_signal!(refused_close, unread, unread_failure);

    pub(crate) async fn full(stage: &Stage) -> History {
        stage.limit(|limits| limits.history_events = 20);
        let _worker = stage.worker().await;
        let start = super::full(&stage.client).id("full").queue(QUEUE);
        stage.ended(&start.start().await.unwrap()).await
    }
}
