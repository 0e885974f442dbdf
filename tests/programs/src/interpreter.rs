//! The one workflow that runs every program, and its activity.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use onward::{ActivityError, TimeoutKind, prelude::*, wf};
use onward_checker::log::{End, Execution};
use serde::{Deserialize, Serialize};

use crate::{
    judge::{Seen, TimedOut, What},
    notes::{self, Note, Notebook},
    program::{DEADLINE, Do, Fate, Finish, Loser, Program, Step, TOO_LONG, UNSERVED, Work},
};

/// What a program's `Receive` reads.
const NEWS: Signal<u32> = Signal::new("news");
/// What nobody sends.
const SILENCE: Signal<u32> = Signal::new("silence");
/// A queue that no worker polls.
pub const NEVER: &str = "never";
/// What an activity is called that tells the outside how far its program has come.
pub(crate) fn gate_name(id: u32) -> String {
    format!("gate {id}")
}

/// How long one attempt may take, and how long one that takes too long does.
const ATTEMPT: Duration = Duration::from_secs(30);
const MUCH_TOO_LONG: Duration = Duration::from_mins(2);

/// What activities work with.
#[derive(Clone, Deps)]
pub struct Tools {
    /// Where they take notes.
    pub notebook: Arc<dyn Notebook>,
    /// The worker process that they run in.
    pub worker: String,
}

impl std::fmt::Debug for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tools").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// How an attempt fails.
#[derive(Debug, thiserror::Error, Serialize, Deserialize, onward::Failure)]
pub enum WorkError {
    /// The next one may not.
    #[error("not this time")]
    Again,
    /// No other can help.
    #[error("never")]
    #[failure(terminal)]
    Never,
    /// It was asked to stop.
    #[error(transparent)]
    Stopped(#[from] Cancelled),
    /// It found something that should not be.
    #[error(transparent)]
    Other(#[from] onward::Error),
}

/// Does what its caller's program says, and takes notes of it.
#[activity(timeout = "30s", retry(initial = "200ms", max_interval = "5s"))]
pub async fn work(ctx: &ActivityCtx<Tools>, id: u32, work: Work) -> Result<u32, WorkError> {
    let (key, attempt) = (ctx.idempotency_key(), ctx.attempt());
    ctx.notebook.take(Note::Began(Execution {
        key: key.clone(),
        run_id: ctx.info().run_id,
        number: ctx.info().number,
        attempt,
        local: ctx.info().local,
        worker: ctx.worker.clone(),
        began_us: 0,
        ended: None,
    }));
    let done = attempt_of(ctx, id, work).await;
    let end = match &done {
        Ok(_) => End::Value,
        Err(WorkError::Never) => End::Terminal,
        Err(WorkError::Stopped(_)) => End::Cancelled,
        Err(WorkError::Again | WorkError::Other(_)) => End::Failed,
    };
    ctx.notebook.take(Note::Ended { key, attempt, worker: ctx.worker.clone(), end });
    done
}

async fn attempt_of(ctx: &ActivityCtx<Tools>, id: u32, work: Work) -> Result<u32, WorkError> {
    let attempt = ctx.attempt();
    if work.heartbeat_ms.is_some() {
        // What the attempt before has saved is its own number, and never that of a later one.
        if let Some(last) = ctx.last_heartbeat::<u32>()?
            && last >= attempt
        {
            return Err(onward::Error::msg(format!("attempt {last} before {attempt}")).into());
        }
        ctx.heartbeat(&attempt)?;
    }
    match work.fate {
        Fate::Endless => {
            ctx.cancelled().await;
            return Err(Cancelled.into());
        }
        Fate::TooSlow => tokio::time::sleep(MUCH_TOO_LONG).await,
        Fate::Value | Fate::Limited { .. } | Fate::Terminal | Fate::Deadline | Fate::Unserved => {
            if work.takes_ms > 0 {
                tokio::time::sleep(Duration::from_millis(work.takes_ms)).await;
            }
        }
    }
    if attempt <= work.fails || work.fate == Fate::Deadline {
        return Err(WorkError::Again);
    }
    if work.fate == Fate::Terminal { Err(WorkError::Never) } else { Ok(id) }
}

/// How a program fails.
#[derive(Debug, thiserror::Error, Serialize, Deserialize, onward::Failure)]
pub enum ProgramError {
    /// It was written to.
    #[error("as the program says")]
    AsWritten,
}

/// Runs a program, and returns what its steps saw.
#[workflow]
pub async fn interpret(ctx: &Ctx, program: Program) -> Result<Vec<Seen>, ProgramError> {
    let seen = run(ctx, &program.steps).await;
    match program.finish {
        Finish::Return => Ok(seen),
        Finish::Fail => Err(ProgramError::AsWritten),
        Finish::UntilCancelled | Finish::UntilTerminated | Finish::UntilTimedOut { .. } => {
            gate(ctx, 0).await;
            loop {
                ctx.recv(SILENCE).await;
            }
        }
    }
}

/// An activity that shows in the history how far the program has come.
async fn gate(ctx: &Ctx, id: u32) {
    let quick = Work { fails: 0, takes_ms: 0, heartbeat_ms: None, fate: Fate::Value };
    // Its outcome does not matter; that it has one does.
    drop(work(ctx, id, quick).summary(gate_name(id)).await);
}

type Steps<'a> = Pin<Box<dyn Future<Output = Vec<Seen>> + 'a>>;

fn run<'a>(ctx: &'a Ctx, steps: &'a [Step]) -> Steps<'a> {
    Box::pin(async move {
        let mut seen = Vec::new();
        for step in steps {
            let what = match &step.what {
                Do::Work(work) => saw(&call(ctx, step.id, *work).await),
                Do::Local(one) => saw(&local(ctx, step.id, *one).await),
                Do::Detached(one) => {
                    call(ctx, step.id, *one).detach();
                    What::Done
                }
                Do::Sleep { ms } => {
                    sleep(ctx, step.id, *ms).await;
                    What::Elapsed
                }
                Do::TimeOut { ms } => {
                    let limit = Duration::from_millis(*ms);
                    match ctx.timeout(limit, ctx.recv(SILENCE)).await {
                        Ok(_) => What::Strange,
                        Err(Elapsed) => What::Elapsed,
                    }
                }
                Do::Receive => What::Signal(ctx.recv(NEWS).await),
                Do::Record => {
                    let id = step.id;
                    What::Value(ctx.record(move || id).await)
                }
                Do::Until(one) => until(ctx, step.id, *one).await,
                Do::All(branches) => {
                    let all = branches.iter().map(|branch| run(ctx, branch));
                    seen.extend(wf::join_all(all).await.into_iter().flatten());
                    What::Done
                }
                Do::First { winner, losers, place } => {
                    let mut all: Vec<_> = losers.iter().map(|loser| lose(ctx, loser)).collect();
                    all.insert(*place, run(ctx, winner));
                    seen.extend(wf::race(all).await);
                    What::Done
                }
                Do::Section => {
                    let waits = ctx.cancellable(async {
                        gate(ctx, step.id).await;
                        ctx.recv(SILENCE).await
                    });
                    match waits.await {
                        Ok(_) => What::Strange,
                        Err(Cancelled) => What::Cancelled,
                    }
                }
                Do::Shield(steps) => {
                    seen.extend(ctx.shield(run(ctx, steps)).await);
                    What::Done
                }
            };
            seen.push(Seen { id: step.id, what });
        }
        seen
    })
}

async fn sleep(ctx: &Ctx, place: u32, ms: u64) {
    let run_id = ctx.run_id().uuid();
    notes::take(Note::Asked { run_id, place, lasts_us: ms * 1_000 });
    ctx.sleep(Duration::from_millis(ms)).await;
    notes::take(Note::Woke { run_id, place });
}

/// A condition that another branch makes true.
async fn until(ctx: &Ctx, id: u32, one: Work) -> What {
    let value = State::new(None);
    let (waited, ()) = wf::join!(ctx.until(|| value.get()), async {
        value.set(Some(saw(&call(ctx, id, one).await)));
    });
    waited
}

fn call(ctx: &Ctx, id: u32, one: Work) -> onward::Call<'_, work> {
    let mut call = work(ctx, id, one).timeout(ATTEMPT);
    if let Some(ms) = one.heartbeat_ms {
        call = call.heartbeat(Duration::from_millis(ms));
    }
    match one.fate {
        Fate::Value | Fate::Terminal => call,
        Fate::Endless => call.timeout(Duration::from_hours(24 * 100)),
        Fate::Limited { attempts } => call.retry(Retry::attempts(attempts)),
        Fate::TooSlow => call.timeout(TOO_LONG).retry(Retry::attempts(2)),
        Fate::Deadline => call.deadline(DEADLINE),
        Fate::Unserved => call.queue(NEVER).queue_timeout(UNSERVED),
    }
}

fn local(ctx: &Ctx, id: u32, one: Work) -> onward::LocalCall<'_, work> {
    let call = work(ctx.local(), id, one).timeout(ATTEMPT);
    match one.fate {
        Fate::Limited { attempts } => call.retry(Retry::attempts(attempts)),
        Fate::Value
        | Fate::Terminal
        | Fate::Endless
        | Fate::TooSlow
        | Fate::Deadline
        | Fate::Unserved => call,
    }
}

/// A branch that does not come to an end.
fn lose<'a>(ctx: &'a Ctx, loser: &'a Loser) -> Steps<'a> {
    Box::pin(async move {
        match loser {
            Loser::Sleep { ms } => ctx.sleep(Duration::from_millis(*ms)).await,
            Loser::Work { id, heartbeat_ms } => {
                let heartbeat_ms = Some(*heartbeat_ms);
                let one = Work { fails: 0, takes_ms: 0, heartbeat_ms, fate: Fate::Endless };
                drop(call(ctx, *id, one).await);
            }
            Loser::Receive => drop(ctx.recv(SILENCE).await),
        }
        // It has won, which it should not: the oracle misses the winner's steps.
        Vec::new()
    })
}

/// What the outcome of a call is to the oracle.
fn saw(outcome: &Result<u32, ActivityError<WorkError>>) -> What {
    match outcome {
        Ok(value) => What::Value(*value),
        Err(ActivityError::Failed(WorkError::Never)) => What::Failed,
        Err(ActivityError::Exhausted { last: WorkError::Again, .. }) => What::Exhausted,
        Err(ActivityError::OutcomeUnknown { .. }) => What::OutcomeUnknown,
        Err(ActivityError::TimedOut { kind, .. }) => match kind {
            TimeoutKind::StartToClose => What::TimedOut(TimedOut::StartToClose),
            TimeoutKind::ScheduleToStart => What::TimedOut(TimedOut::ScheduleToStart),
            TimeoutKind::ScheduleToClose => What::TimedOut(TimedOut::ScheduleToClose),
            TimeoutKind::Heartbeat => What::TimedOut(TimedOut::Heartbeat),
            _ => What::Strange,
        },
        Err(_) => What::Strange,
    }
}
