//! The workflows and the one activity that everything is measured with, and what the worker
//! remembers about them.
//!
//! A step does no work of its own: it returns its input.

use std::{
    collections::HashMap,
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use onward::prelude::*;
use serde::{Deserialize, Serialize};

/// Where all of it runs.
pub(crate) const QUEUE: &str = "bench";

/// What a workflow of `signals` waits for.
pub(crate) const GO: Signal<String> = Signal::new("go");

/// The input of every workflow.
pub(crate) fn payload() -> String {
    "x".repeat(100)
}

#[activity]
pub(crate) async fn step(_: &ActivityCtx, input: String) -> onward::Result<String> {
    Ok(input)
}

#[workflow]
pub(crate) async fn w0(_: &Ctx, input: String) -> onward::Result<String> {
    note_finished();
    Ok(input)
}

#[workflow]
pub(crate) async fn w1(ctx: &Ctx, input: String) -> onward::Result<String> {
    let output = step(ctx, input).await?;
    note_finished();
    Ok(output)
}

#[workflow]
pub(crate) async fn w5(ctx: &Ctx, input: String) -> onward::Result<String> {
    let mut value = input;
    for _ in 0..5 {
        value = step(ctx, value).await?;
    }
    note_finished();
    Ok(value)
}

#[workflow]
pub(crate) async fn w1_inline(ctx: &Ctx, input: String) -> onward::Result<String> {
    let output = step(ctx.local(), input).await?;
    note_finished();
    Ok(output)
}

#[workflow]
pub(crate) async fn w5_inline(ctx: &Ctx, input: String) -> onward::Result<String> {
    let mut value = input;
    for _ in 0..5 {
        value = step(ctx.local(), value).await?;
    }
    note_finished();
    Ok(value)
}

/// As many steps as asked, for a history as long as wanted.
#[workflow]
pub(crate) async fn long(ctx: &Ctx, input: String, steps: u64) -> onward::Result<String> {
    let mut value = input;
    for _ in 0..steps {
        value = step(ctx, value).await?;
    }
    Ok(value)
}

#[workflow]
pub(crate) async fn sleeps(ctx: &Ctx, input: String, ms: u64) -> onward::Result<String> {
    note_asleep(ctx.workflow_id());
    ctx.sleep(Duration::from_millis(ms)).await;
    note_awake(ctx.workflow_id(), ms);
    note_finished();
    Ok(input)
}

#[workflow]
pub(crate) async fn waits(ctx: &Ctx, input: String) -> onward::Result<String> {
    drop(input); // it travels like everybody's, but the signal's content is the result
    let content = ctx.recv(GO).await;
    note_finished();
    Ok(content)
}

/// How often workflow code came to its end here.
static FINISHED: AtomicU64 = AtomicU64::new(0);

fn note_finished() {
    FINISHED.fetch_add(1, Ordering::Relaxed);
}

/// What the worker saw of sleeps. Code that is replayed asks again; only the first time counts.
#[derive(Default)]
struct Sleeps {
    asked: HashMap<String, Instant>,
    late_us: HashMap<String, i64>,
    most_asleep: usize,
    last_woke: Option<Instant>,
}

static SLEEPS: LazyLock<Mutex<Sleeps>> = LazyLock::new(Mutex::default);

fn note_asleep(workflow_id: &str) {
    let now = Instant::now();
    let mut sleeps = SLEEPS.lock().unwrap_or_else(PoisonError::into_inner);
    if !sleeps.asked.contains_key(workflow_id) {
        sleeps.asked.insert(workflow_id.to_owned(), now);
        sleeps.most_asleep = sleeps.most_asleep.max(sleeps.asked.len() - sleeps.late_us.len());
    }
}

fn note_awake(workflow_id: &str, ms: u64) {
    let now = Instant::now();
    let mut sleeps = SLEEPS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(asked) = sleeps.asked.get(workflow_id) else { return };
    let late_us = now.duration_since(*asked).as_micros() as i64 - (ms * 1_000) as i64;
    if !sleeps.late_us.contains_key(workflow_id) {
        sleeps.late_us.insert(workflow_id.to_owned(), late_us);
        sleeps.last_woke = Some(now);
    }
}

/// How far the worker has come.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// How often workflow code came to its end.
    pub(crate) finished: u64,
    /// How many workflows have asked for a sleep.
    pub(crate) asked: usize,
}

pub(crate) fn progress() -> Progress {
    let asked = SLEEPS.lock().unwrap_or_else(PoisonError::into_inner).asked.len();
    Progress { finished: FINISHED.load(Ordering::Relaxed), asked }
}

/// How late sleeps ended, by the worker's monotonic clock.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Lateness {
    /// In microseconds, lowest first.
    pub(crate) late_us: Vec<i64>,
    pub(crate) most_asleep: usize,
    /// From the first sleep asked for to the last end.
    pub(crate) seconds: f64,
}

pub(crate) fn lateness() -> Lateness {
    let sleeps = SLEEPS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut late_us: Vec<i64> = sleeps.late_us.values().copied().collect();
    late_us.sort_unstable();
    let first = sleeps.asked.values().min();
    let seconds = match (first, sleeps.last_woke) {
        (Some(first), Some(last)) => last.duration_since(*first).as_secs_f64(),
        _ => 0.0,
    };
    Lateness { late_us, most_asleep: sleeps.most_asleep, seconds }
}
