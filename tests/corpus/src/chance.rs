//! What a run makes by itself: random values, recorded ones, and who it is.

use onward::{prelude::*, wf};
use rand_core::RngCore as _;
use serde::{Deserialize, Serialize};

use crate::activities::{Work, keep, work};

/// The workflows of this theme.
pub(crate) type Workflows = (random, recorded, identity);

/// What a run draws.
#[derive(Debug, Serialize, Deserialize)]
pub struct Draws {
    range: u64,
    fraction: f64,
    chance: Vec<bool>,
    chosen: Option<String>,
    none: Option<u8>,
    shuffled: Vec<u8>,
    bytes: [u8; 5],
    small: u32,
    large: u64,
    named: [u64; 3],
    uuid: uuid::Uuid,
}

/// Draws from all streams in all ways, and once more after a while.
#[workflow(name = "chance.random")]
pub async fn random(ctx: &Ctx) -> onward::Result<Vec<Draws>> {
    let mut all = Vec::new();
    for _ in 0..2 {
        let mut rng = ctx.rng();
        let mut shuffled: Vec<u8> = (0..8).collect();
        rng.shuffle(&mut shuffled);
        let mut bytes = [0; 5];
        rng.fill_bytes(&mut bytes);
        let range = rng.range(10..1_000);
        keep(ctx, &format!("{range}")).await?;
        let mut one = ctx.rng_named("one");
        let first = one.next_u64();
        all.push(Draws {
            range,
            fraction: rng.fraction(),
            chance: (0..4).map(|_| rng.chance(0.5)).collect(),
            chosen: rng.choose(&["a", "b", "c"]).map(ToString::to_string),
            none: rng.choose(&[]).copied(),
            shuffled,
            bytes,
            small: rng.next_u32(),
            large: rng.next_u64(),
            named: [first, ctx.rng_named("another").next_u64(), ctx.rng_named("one").next_u64()],
            uuid: ctx.uuid(),
        });
    }
    Ok(all)
}

/// Values of some types, one that comes of the run's own time, and one that is dropped.
#[workflow(name = "chance.recorded")]
pub async fn recorded(ctx: &Ctx) -> onward::Result<(u32, String, Vec<Option<u8>>, bool)> {
    let number = ctx.record(|| 7).await;
    let text = ctx.record(|| "seven".to_owned()).await;
    work(ctx, number, Work::default()).await?;
    let list = ctx.record(|| vec![Some(1), None]).await;
    wf::select! {
        _ = ctx.record(|| 9_u8) => {}
        () = async {} => {}
    }
    let begun = ctx.now();
    ctx.sleep(Duration::from_secs(1)).await;
    let later = ctx.record(|| ctx.now() > begun).await;
    Ok((number, text, list, later))
}

/// What a run knows of itself.
#[workflow(name = "chance.identity")]
pub async fn identity(ctx: &Ctx) -> onward::Result<Vec<String>> {
    Ok(vec![
        ctx.namespace().to_owned(),
        ctx.workflow_id().to_owned(),
        ctx.run_id().to_string(),
        ctx.workflow_type().to_owned(),
        ctx.task_queue(),
        ctx.attempt().to_string(),
    ])
}

pub(crate) mod play {
    by_itself!(random, recorded, identity);
}
