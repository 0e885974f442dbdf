//! A history through the machine: what a worker does that has lost its cache.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use onward::{
    Client, Replayer, Workflow as _,
    machine::{Machine, MachineOptions, RunInfo, WorkflowEntry},
};
use onward_proto::{RunId, v1::History};
use uuid::Uuid;

use crate::{
    database::Database,
    report::Figures,
    scenario::{Cell, StoreKind},
    stack::Stack,
    workloads::{QUEUE, long, payload},
};

/// Events that a step in sequence leaves: scheduled, completed, and the workflow task behind it.
const EVENTS_PER_STEP: usize = 3;

/// Has a real run write the history, then replays it for as long as the window is.
pub(crate) async fn measure(cell: &Cell, figures: &mut Figures) -> Result<()> {
    let history = record(cell.runs).await?;
    let events = history.events.len();
    figures.set("events", events as f64);

    let entry = WorkflowEntry::of::<long>();
    let window = Duration::from_secs_f64(cell.window_s / 2.0);
    let (mut replays, mut spent) = (0_u32, Duration::ZERO);
    while spent < window {
        let copy = history.events.clone();
        let run = RunInfo {
            namespace: "default".to_owned(),
            workflow_id: "replayed".to_owned(),
            run_id: RunId::from_uuid(Uuid::nil()),
            workflow_type: long::NAME.to_owned(),
        };
        let from = Instant::now();
        let mut machine = Machine::new(&entry, MachineOptions::default(), run);
        machine.replay(copy).map_err(|failure| anyhow!("{}", failure.failure.message))?;
        spent += from.elapsed();
        replays += 1;
    }
    figures.set("replays", f64::from(replays));
    figures.set("events_per_s", events as f64 * f64::from(replays) / spent.as_secs_f64());

    let replayer = Replayer::new().workflows::<(long,)>();
    let from = Instant::now();
    let mut replays = 0_u32;
    while from.elapsed() < window {
        replayer.replay(&history)?;
        replays += 1;
    }
    let seconds = from.elapsed().as_secs_f64();
    figures.set("replayer_events_per_s", events as f64 * f64::from(replays) / seconds);
    Ok(())
}

async fn record(events: usize) -> Result<History> {
    let database = Database::start(StoreKind::Sqlite, None).await?;
    let stack = Stack::start(&database.url()).await?;
    let client = Client::connect(stack.address.as_str()).await?;
    let steps = (events / EVENTS_PER_STEP).max(1) as u64;
    let workflow = long(&client, payload(), steps).queue(QUEUE).start().await?;
    let output = workflow.result().await.map_err(|error| anyhow!("{error:?}"))?;
    if output != payload() {
        bail!("the long workflow returned {output:?}");
    }
    let history = workflow.history().await?;
    drop(client);
    stack.end().await?;
    Ok(history)
}
