//! What the workflows call. An activity does as its arguments say.

use onward::{Error, prelude::*};
use serde::{Deserialize, Serialize};

/// All of them, for a worker.
pub(crate) type All = (work, Careful, count, until_stopped, directly, keep, enlarge, measure);

/// What an attempt is to do.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Work {
    /// So many attempts fail before.
    pub fails: u32,
    /// How long each attempt takes.
    pub lasts_ms: u64,
    /// How the first attempt ends that does not fail.
    pub end: End,
}

/// How an attempt ends.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub enum End {
    /// With its value.
    #[default]
    Value,
    /// With an error that no other attempt can help, which has causes.
    Never,
    /// With an error that wants the next attempt later.
    Later,
    /// With an error of any type.
    Other,
    /// With a panic.
    Panic,
}

impl Work {
    /// It fails so often.
    pub(crate) fn fails(fails: u32) -> Self {
        Self { fails, ..Self::default() }
    }

    /// It takes so long.
    pub(crate) fn lasts(lasts_ms: u64) -> Self {
        Self { lasts_ms, ..Self::default() }
    }

    /// It ends like that.
    pub(crate) fn ends(end: End) -> Self {
        Self { end, ..Self::default() }
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
    Never {
        /// Why.
        #[source]
        because: Reason,
    },
    /// Not so soon.
    #[error("later")]
    #[failure(retry_after = after)]
    Later {
        /// How long to wait.
        after: Duration,
    },
    /// It was asked to stop.
    #[error(transparent)]
    Stopped(#[from] Cancelled),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] Error),
}

/// A cause, and what caused it.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{text}")]
pub struct Reason {
    text: String,
    #[source]
    deeper: Option<Box<Reason>>,
}

impl Reason {
    /// So many, one inside the other.
    pub(crate) fn chain(length: u32) -> Self {
        let deeper = (length > 1).then(|| Box::new(Self::chain(length - 1)));
        Self { text: format!("reason {length}"), deeper }
    }
}

/// Does as it is told, and gives back its number.
#[activity(timeout = "30s", retry(initial = "1s", max_interval = "4s"))]
pub async fn work(ctx: &ActivityCtx, number: u32, work: Work) -> Result<u32, WorkError> {
    if work.lasts_ms > 0 {
        tokio::time::sleep(Duration::from_millis(work.lasts_ms)).await;
    }
    if ctx.attempt() <= work.fails {
        return Err(WorkError::Again);
    }
    match work.end {
        End::Value => Ok(number),
        End::Never => Err(WorkError::Never { because: Reason::chain(2) }),
        End::Later => Err(WorkError::Later { after: Duration::from_secs(2) }),
        End::Other => Err(Error::msg("something else").into()),
        End::Panic => panic!("as it was told"),
    }
}

/// Has every option that an attribute can give.
#[activity(
    name = "careful-work",
    marker = Careful,
    timeout = "20s",
    deadline = "10m",
    queue_timeout = "5m",
    heartbeat = "5s",
    queue = "corpus",
    priority = -3,
    retry(
        max_attempts = 3,
        initial = "200ms",
        max_interval = "1s",
        backoff = 1.5,
        never_on("WorkError::Never"),
    ),
)]
pub async fn careful(ctx: &ActivityCtx, number: u32) -> Result<u32, WorkError> {
    if ctx.attempt() == 1 { Err(WorkError::Again) } else { Ok(number) }
}

/// Counts, fails half-way, and goes on where it stood. Gives back where that was.
#[activity(heartbeat = "5s", retry(max_attempts = 3, initial = "1s"))]
pub async fn count(ctx: &ActivityCtx, upto: u32) -> onward::Result<u32> {
    let from = ctx.last_heartbeat::<u32>()?.unwrap_or(0);
    for number in from + 1..=upto {
        ctx.heartbeat(&number)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        if ctx.attempt() == 1 && number == upto / 2 {
            return Err(Error::msg("half-way"));
        }
    }
    Ok(from)
}

/// Runs until it is asked to stop, and says that it has.
#[activity(timeout = "1h")]
pub async fn until_stopped(ctx: &ActivityCtx) -> Result<u32, WorkError> {
    ctx.cancelled().await;
    if ctx.is_cancelled() { Err(Cancelled.into()) } else { Ok(0) }
}

/// Calls another one directly.
#[activity]
pub async fn directly(ctx: &ActivityCtx, number: u32) -> Result<(u32, bool), WorkError> {
    let again = work(ctx, number, Work::default()).await?;
    let key = ctx.idempotency_key();
    Ok((again, key == format!("{}-{}", ctx.info().run_id, ctx.info().number)))
}

/// Gives back what it gets.
#[activity]
pub async fn keep(_: &ActivityCtx, text: &str) -> onward::Result<String> {
    Ok(text.to_owned())
}

/// Gives back so many bytes.
#[activity(retry(max_attempts = 2))]
pub async fn enlarge(_: &ActivityCtx, bytes: u32) -> onward::Result<String> {
    Ok("x".repeat(bytes as usize))
}

/// Takes and gives what is encoded with bincode.
#[activity]
pub async fn measure(_: &ActivityCtx, Bin(bytes): Bin<Vec<u8>>) -> onward::Result<Bin<(u8, u64)>> {
    let sum = bytes.iter().copied().map(u64::from).sum();
    Ok(Bin((bytes.first().copied().unwrap_or(0), sum)))
}
