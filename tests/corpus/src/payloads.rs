//! Values that are not JSON.

use onward::{ActivityOptions, Codec, machine::MachineOptions, prelude::*};

use crate::{
    activities::{Work, measure, work},
    seen::{Seen, seen},
};

/// The workflows of this theme.
pub(crate) type Workflows = (binary, compact);

/// Says some bytes.
const BYTES: Signal<Bin<Vec<u8>>> = Signal::new("bytes");
/// The workflow whose workers encode everything with bincode.
pub(crate) const COMPACT: &str = "payloads.compact";

/// Arguments, results, recorded values and signals as bincode among JSON.
#[workflow(name = "payloads.binary")]
pub async fn binary(ctx: &Ctx, Bin(bytes): Bin<Vec<u8>>) -> onward::Result<Bin<Vec<u64>>> {
    let Bin((first, sum)) = measure(ctx, Bin(bytes)).await?;
    let Bin(recorded) = ctx.record(|| Bin(vec![1_u64, 2])).await;
    let Bin(told) = ctx.recv(BYTES).await;
    let Bin((_, local)) = measure(ctx.local(), Bin(told)).await?;
    Ok(Bin([recorded, vec![u64::from(first), sum, local]].concat()))
}

/// Everything as bincode, because the worker says so; it also sets options of its activities.
#[workflow(name = "payloads.compact")]
pub async fn compact(
    ctx: &Ctx,
    number: u32,
    text: Option<String>,
) -> onward::Result<(Vec<Seen>, String)> {
    let far = seen(&work(ctx, number, Work::fails(1)).await);
    let near = seen(&work(ctx.local(), number + 1, Work::default()).await);
    let failed = seen(&work(ctx, 3, Work::fails(9)).retry(Retry::attempts(1)).await);
    let recorded = ctx.record(|| text.clone().unwrap_or_default()).await;
    Ok((vec![far, near, failed], recorded))
}

/// What workers of `compact` set for its activities.
const SLOWLY: ActivityOptions = ActivityOptions::new()
    .timeout(Duration::from_secs(7))
    .deadline(Duration::from_mins(7))
    .queue_timeout(Duration::from_mins(6))
    .heartbeat(Duration::from_secs(6))
    .retry(Retry::attempts(9).backoff(1.25))
    .queue("corpus")
    .priority(2);

/// What the machine of `compact` is told.
pub(crate) fn options() -> MachineOptions {
    MachineOptions { codec: Codec::Bincode, activity: SLOWLY, ..MachineOptions::default() }
}

pub(crate) mod play {
    use onward::{Bin, Codec};
    use onward_proto::v1::History;

    use super::{BYTES, SLOWLY};
    use crate::{
        activities,
        stage::{QUEUE, Stage},
    };

    pub(crate) async fn binary(stage: &Stage) -> History {
        let _worker = stage.worker().await;
        let start = super::binary(&stage.client, Bin(vec![3, 4, 5])).id("binary").queue(QUEUE);
        let run = start.start().await.unwrap();
        run.signal(BYTES, Bin(vec![0, 255])).await.unwrap();
        stage.ended(&run).await
    }

    pub(crate) async fn compact(stage: &Stage) -> History {
        let _worker = stage
            .build("compact worker")
            .codec(Codec::Bincode)
            .activity_options(SLOWLY)
            .workflows::<(super::compact,)>()
            .activities::<activities::All>()
            .spawn()
            .await
            .unwrap();
        let start = super::compact(&stage.client, 1, Some("text".to_owned())).id("compact");
        stage.ended(&start.queue(QUEUE).start().await.unwrap()).await
    }
}
