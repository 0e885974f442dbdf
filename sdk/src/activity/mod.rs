//! What activity code sees: its dependencies, its attempt, its signs of life.

pub(crate) mod attempt;

use std::{
    fmt,
    future::Future,
    ops::Deref,
    panic::Location,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use onward_proto::SeededBug;
use serde::{Serialize, de::DeserializeOwned};

pub use self::attempt::ActivityInfo;
use self::attempt::Attempt;
use crate::{
    definition::{Activity, ActivityTarget},
    deps::{Provide, Via},
    error::{Error, Result},
    limits,
    payload::{self, Codec},
};

/// Where an activity runs: it derefs to the dependencies that the activity asks for.
///
/// ```
/// use onward::prelude::*;
///
/// #[derive(Deps)]
/// struct App {
///     greeting: String,
/// }
///
/// #[activity(timeout = "30s")]
/// async fn greet(ctx: &ActivityCtx<App>, name: &str) -> onward::Result<String> {
///     Ok(format!("{}, {name}! ({})", ctx.greeting, ctx.idempotency_key()))
/// }
/// ```
pub struct ActivityCtx<D = ()> {
    deps: Arc<dyn Provide<D>>,
    attempt: Arc<Attempt>,
    codec: Codec,
    /// In the context of a direct call: which one it is within the attempt.
    direct_call: Option<u32>,
}

/// Dependencies that provide themselves whole, whatever else they provide.
pub(crate) struct Whole<D>(pub(crate) D);

impl<D: Send + Sync> Provide<D> for Whole<D> {
    fn provide(&self) -> &D {
        &self.0
    }
}

impl<D> Deref for ActivityCtx<D> {
    type Target = D;

    fn deref(&self) -> &D {
        self.deps.provide()
    }
}

impl<D> fmt::Debug for ActivityCtx<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActivityCtx").field("info", &self.attempt.info).finish_non_exhaustive()
    }
}

impl<D: Send + Sync + 'static> ActivityCtx<D> {
    pub(crate) fn new(deps: Arc<dyn Provide<D>>, attempt: Arc<Attempt>, codec: Codec) -> Self {
        Self { deps, attempt, codec, direct_call: None }
    }

    /// A context for a unit test: the activity runs as the plain function that it is.
    ///
    /// Heartbeats go nowhere, and nobody cancels.
    pub fn test(deps: D) -> Self {
        Self::new(Arc::new(Whole(deps)), Arc::new(Attempt::test()), Codec::default())
    }

    /// The same context for an activity that asks for less.
    pub(crate) fn narrow<E: 'static>(&self) -> ActivityCtx<E>
    where
        D: Provide<E>,
    {
        ActivityCtx {
            deps: Arc::new(Via(Arc::clone(&self.deps))),
            attempt: Arc::clone(&self.attempt),
            codec: self.codec,
            direct_call: self.direct_call,
        }
    }

    /// What this attempt knows about itself.
    pub fn info(&self) -> &ActivityInfo {
        &self.attempt.info
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt.info.attempt
    }

    /// A key that is the same in every attempt of this call and in no other call: give it to
    /// whatever must not do the same thing twice.
    ///
    /// It is the run's id and the call's number, `{run}-{number}`. An activity that this one calls
    /// directly gets `/1`, `/2` .. behind it, in the order of the calls.
    pub fn idempotency_key(&self) -> String {
        let info = &self.attempt.info;
        if SeededBug::KeyByAttempt.is_on() {
            return format!("{}-{}-{}", info.run_id, info.number, info.attempt);
        }
        match self.direct_call {
            None => format!("{}-{}", info.run_id, info.number),
            Some(call) => format!("{}-{}/{call}", info.run_id, info.number),
        }
    }

    /// Says that the attempt is alive, and what the next one should know if this one fails.
    ///
    /// It returns at once: details are gathered and sent a few times a second at most, the newest
    /// wins.
    ///
    /// # Errors
    /// If the details cannot be encoded, or are so large that the server would not keep them.
    pub fn heartbeat<T: Serialize + ?Sized>(&self, details: &T) -> Result<()> {
        let details = payload::encode(details, self.codec)?;
        limits::check_details(&details)
            .map_err(|limit| Error::msg(format!("the details of a heartbeat: {limit}")))?;
        self.attempt.save(details);
        Ok(())
    }

    /// What the attempt before said last, if it said anything.
    ///
    /// # Errors
    /// If that is no `T`.
    pub fn last_heartbeat<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        Ok(self.attempt.last_heartbeat.as_ref().map(payload::decode).transpose()?)
    }

    /// Resolves when the workflow asks this attempt to stop.
    ///
    /// Asking for it is a promise: the attempt then ends by itself, after it has cleaned up. One
    /// that never asks is dropped at its next await.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + use<D> {
        self.attempt.want_cancel();
        let attempt = Arc::clone(&self.attempt);
        async move { attempt.cancelled().await }
    }

    /// Whether the workflow has asked this attempt to stop.
    pub fn is_cancelled(&self) -> bool {
        self.attempt.is_cancelled()
    }
}

/// The direct call of an activity: a plain call of its function, within the attempt that makes it.
#[must_use = "a call does nothing until it is awaited"]
pub struct DirectCall<'a, A: Activity> {
    #[allow(clippy::type_complexity, reason = "it is the definition of the type")]
    running: Pin<Box<dyn Future<Output = Result<A::Output, A::Error>> + Send + 'a>>,
}

impl<A: Activity> fmt::Debug for DirectCall<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectCall").field("activity", &A::NAME).finish_non_exhaustive()
    }
}

impl<A: Activity> Future for DirectCall<'_, A> {
    type Output = Result<A::Output, A::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.running.as_mut().poll(cx)
    }
}

impl<'a, A, D> ActivityTarget<A> for &'a ActivityCtx<D>
where
    A: Activity,
    D: Provide<A::Deps> + Send + Sync + 'static,
{
    type Call = DirectCall<'a, A>;

    fn call(self, args: A::Args, _: &'static Location<'static>) -> DirectCall<'a, A> {
        let mut ctx = self.narrow::<A::Deps>();
        ctx.direct_call = Some(self.attempt.next_direct_call());
        DirectCall { running: Box::pin(async move { A::run(&ctx, args).await }) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn details_that_the_server_would_not_keep_are_an_error() {
        let ctx = ActivityCtx::test(());
        ctx.heartbeat(&"x".repeat(60_000)).unwrap();
        let error = ctx.heartbeat(&"x".repeat(70_000)).unwrap_err().to_string();
        assert!(error.starts_with("the details of a heartbeat: heartbeat_details_bytes is 70"));
        assert!(error.ends_with("the limit is 65536"), "{error}");
    }

    struct App {
        name: String,
    }

    impl Provide<App> for App {
        fn provide(&self) -> &App {
            self
        }
    }

    impl Provide<String> for App {
        fn provide(&self) -> &String {
            &self.name
        }
    }

    struct Greet;

    impl Activity for Greet {
        const NAME: &'static str = "greet";
        type Args = (String,);
        type Deps = String;
        type Output = (String, String);
        type Error = crate::Error;

        async fn run(
            ctx: &ActivityCtx<String>,
            (whom,): (String,),
        ) -> Result<(String, String), crate::Error> {
            Ok((format!("{whom}, this is {}", **ctx), ctx.idempotency_key()))
        }
    }

    #[tokio::test]
    async fn an_activity_calls_another_with_a_part_of_its_own_dependencies() {
        let ctx = ActivityCtx::test(App { name: "Onward".to_owned() });
        let here = Location::caller();
        let call = |whom: &str| ActivityTarget::<Greet>::call(&ctx, (whom.to_owned(),), here);
        let (greeting, first) = call("Ada").await.unwrap();
        assert_eq!(greeting, "Ada, this is Onward");
        let (_, second) = call("Ada").await.unwrap();
        assert_eq!(first, format!("{}/1", ctx.idempotency_key()));
        assert_eq!(second, format!("{}/2", ctx.idempotency_key()));
    }

    #[tokio::test]
    async fn the_next_attempt_reads_what_the_last_one_said() {
        let ctx = ActivityCtx::test(());
        assert_eq!(ctx.last_heartbeat::<u32>().unwrap(), None);
        ctx.heartbeat(&7_u32).unwrap();
        let next = Attempt::new(ctx.info().clone(), 0, ctx.attempt.saved(), None);
        let next = ActivityCtx::new(Arc::new(()), Arc::new(next), Codec::Json);
        assert_eq!(next.last_heartbeat::<u32>().unwrap(), Some(7));
        assert!(next.last_heartbeat::<String>().is_err());
    }
}
