//! The driver: starts workflows through the public client, as quickly as its task says.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use onward::{Client, Workflow, WorkflowError};
use serde::{Deserialize, Serialize};
use tokio::task::LocalSet;

use super::say;
use crate::workloads::{GO, QUEUE, payload, sleeps, w0, w1, w1_inline, w5, w5_inline, waits};

/// What the driver is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DriverTask {
    pub(crate) address: String,
    pub(crate) work: Work,
    /// Callers, or submitters, at once.
    pub(crate) concurrency: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Callers that each start a workflow when the last one's result has reached them.
    Loop { workload: Workload, warm_up_s: f64, window_s: f64 },
    /// A given number of workflows whose results nobody waits for.
    Submit { workload: Workload, runs: usize },
}

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Workload {
    W0,
    W1,
    W5,
    W1Inline,
    W5Inline,
    /// Started, sent a signal, waited for.
    Signal,
    /// One sleep of so many milliseconds.
    Sleep(u64),
}

/// What the driver says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Said {
    /// The window begins, or the first submission.
    Begin,
    /// The window is over; what runs still comes to its end.
    End,
    /// All is done.
    Done(Driven),
}

/// What came of the task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Driven {
    /// Workflows that ended in the window, or were submitted.
    pub(crate) units: u64,
    /// The window's length, or how long submitting took.
    pub(crate) seconds: f64,
    /// Of the call, or from the signal on.
    pub(crate) latency: Option<Latency>,
    /// When the first was submitted, by the machine's clock.
    pub(crate) began_us: i64,
}

/// In milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// How many callers share a connection. One connection is one task in the server and one here.
const CALLERS_PER_CONNECTION: usize = 128;

/// Does the task.
pub(super) async fn run(task: DriverTask) -> Result<()> {
    let connections = task.concurrency.div_ceil(CALLERS_PER_CONNECTION).clamp(1, 4);
    let mut clients = Vec::new();
    for _ in 0..connections {
        let client = Client::connect(task.address.as_str()).await?;
        client.server_info().await?;
        clients.push(client);
    }
    let driven = LocalSet::new()
        .run_until(async {
            match task.work {
                Work::Loop { workload, warm_up_s, window_s } => {
                    closed_loop(&clients, task.concurrency, workload, warm_up_s, window_s).await
                }
                Work::Submit { workload, runs } => {
                    submit(&clients, task.concurrency, workload, runs).await
                }
            }
        })
        .await?;
    say(&Said::Done(driven))
}

/// What all callers share. They live on one thread.
struct Shared {
    latency: RefCell<Histogram<u64>>,
    /// Results count from here on, once it is known.
    from: Cell<Option<Instant>>,
    /// Nobody calls any more from here on.
    until: Cell<Option<Instant>>,
    input: String,
}

async fn closed_loop(
    clients: &[Client],
    concurrency: usize,
    workload: Workload,
    warm_up_s: f64,
    window_s: f64,
) -> Result<Driven> {
    let latency = RefCell::new(Histogram::new(3).context("three digits are allowed")?);
    let (from, until) = (Cell::new(None), Cell::new(None));
    let shared = Rc::new(Shared { latency, from, until, input: payload() });
    let callers: Vec<_> = (0..concurrency)
        .map(|caller| {
            let client = clients[caller % clients.len()].clone();
            tokio::task::spawn_local(call_on(client, workload, Rc::clone(&shared)))
        })
        .collect();
    let window = Duration::from_secs_f64(window_s);
    tokio::time::sleep(Duration::from_secs_f64(warm_up_s)).await;
    let from = Instant::now();
    let began_us = now_us();
    shared.from.set(Some(from));
    shared.until.set(Some(from + window));
    say(&Said::Begin)?;
    tokio::time::sleep_until((from + window).into()).await;
    say(&Said::End)?;
    for caller in callers {
        caller.await??;
    }
    let latency = shared.latency.borrow();
    Ok(Driven {
        units: latency.len(),
        seconds: window_s,
        latency: Some(Latency::of(&latency)),
        began_us,
    })
}

async fn call_on(client: Client, workload: Workload, shared: Rc<Shared>) -> Result<()> {
    loop {
        let waited = call(&client, workload, &shared.input).await?;
        let now = Instant::now();
        let until = shared.until.get();
        let is_over = until.is_some_and(|until| now >= until);
        if shared.from.get().is_some_and(|from| now >= from) && !is_over {
            let us = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
            shared.latency.borrow_mut().record(us)?;
        }
        if is_over {
            return Ok(());
        }
    }
}

/// Runs one workflow; how long its caller waited.
async fn call(client: &Client, workload: Workload, input: &str) -> Result<Duration> {
    let from = Instant::now();
    let output = match workload {
        Workload::W0 => told(w0(client, input.to_owned()).queue(QUEUE).await)?,
        Workload::W1 => told(w1(client, input.to_owned()).queue(QUEUE).await)?,
        Workload::W5 => told(w5(client, input.to_owned()).queue(QUEUE).await)?,
        Workload::W1Inline => told(w1_inline(client, input.to_owned()).queue(QUEUE).await)?,
        Workload::W5Inline => told(w5_inline(client, input.to_owned()).queue(QUEUE).await)?,
        Workload::Signal => return signal(client, input).await,
        Workload::Sleep(ms) => told(sleeps(client, input.to_owned(), ms).queue(QUEUE).await)?,
    };
    let waited = from.elapsed();
    if output != input {
        bail!("a workflow returned {output:?}");
    }
    Ok(waited)
}

async fn signal(client: &Client, input: &str) -> Result<Duration> {
    let workflow = waits(client, input.to_owned()).queue(QUEUE).start().await?;
    let from = Instant::now();
    workflow.signal(GO, input.to_owned()).await?;
    let output = told(workflow.result().await)?;
    let waited = from.elapsed();
    if output != input {
        bail!("a workflow returned {output:?}");
    }
    Ok(waited)
}

fn told<T, E: std::fmt::Debug>(outcome: Result<T, WorkflowError<E>>) -> Result<T> {
    outcome.map_err(|error| anyhow::anyhow!("a workflow ended badly: {error:?}"))
}

async fn submit(
    clients: &[Client],
    concurrency: usize,
    workload: Workload,
    runs: usize,
) -> Result<Driven> {
    let from = Instant::now();
    let began_us = now_us();
    say(&Said::Begin)?;
    let left = Rc::new(Cell::new(runs));
    let submitters: Vec<_> = (0..concurrency)
        .map(|submitter| {
            let client = clients[submitter % clients.len()].clone();
            let left = Rc::clone(&left);
            tokio::task::spawn_local(async move {
                while let Some(rest) = left.get().checked_sub(1) {
                    left.set(rest);
                    start(&client, workload).await?;
                }
                Ok::<_, anyhow::Error>(())
            })
        })
        .collect();
    for submitter in submitters {
        submitter.await??;
    }
    say(&Said::End)?;
    let seconds = from.elapsed().as_secs_f64();
    Ok(Driven { units: runs as u64, seconds, latency: None, began_us })
}

/// Starts one workflow and forgets it.
fn start<'c>(
    client: &'c Client,
    workload: Workload,
) -> Pin<Box<dyn Future<Output = Result<()>> + 'c>> {
    let input = payload();
    match workload {
        Workload::W0 => Box::pin(started(w0(client, input))),
        Workload::W1 => Box::pin(started(w1(client, input))),
        Workload::W5 => Box::pin(started(w5(client, input))),
        Workload::W1Inline => Box::pin(started(w1_inline(client, input))),
        Workload::W5Inline => Box::pin(started(w5_inline(client, input))),
        Workload::Signal => Box::pin(started(waits(client, input))),
        Workload::Sleep(ms) => Box::pin(started(sleeps(client, input, ms))),
    }
}

async fn started<W: Workflow>(call: onward::ClientCall<W>) -> Result<()> {
    call.queue(QUEUE).start().await?;
    Ok(())
}

impl Latency {
    fn of(latency: &Histogram<u64>) -> Self {
        let ms = |us: u64| us as f64 / 1_000.0;
        let at = |quantile| ms(latency.value_at_quantile(quantile));
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99), max: ms(latency.max()) }
    }
}

fn now_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since_epoch.as_micros() as i64
}
