//! What an activity and a workflow are: the traits that the macros implement, the places a call
//! may run, and the lists that a worker registers.

use std::{
    future::{Future, poll_fn},
    panic::Location,
    pin::pin,
    task::Poll,
};

use futures_util::future::{BoxFuture, LocalBoxFuture};
use onward_proto::v1;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    activity::ActivityCtx,
    caught::caught,
    deps::Provide,
    failure::{self, Failure},
    options::ActivityOptions,
    payload::{self, Args, Codec, PayloadError},
    workflow::Ctx,
};

/// An activity: a function whose calls are recorded, retried, and not repeated by a replay.
/// Implemented by `#[activity]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no activity",
    note = "write `#[activity]` above the function, and name it here without parentheses"
)]
pub trait Activity: Sized + 'static {
    /// The name by which the server finds it.
    const NAME: &'static str;
    /// What its attribute sets.
    const DEFAULTS: ActivityOptions = ActivityOptions::new();
    /// Its parameters after the context.
    type Args: Args + Send;
    /// What it needs from its worker.
    type Deps: Send + Sync + 'static;
    /// What it returns.
    type Output: Serialize + DeserializeOwned + Send + 'static;
    /// What it fails with.
    type Error: Failure;

    /// Runs it.
    fn run(
        ctx: &ActivityCtx<Self::Deps>,
        args: Self::Args,
    ) -> impl Future<Output = Result<Self::Output, Self::Error>> + Send;
}

/// What a panic of a workflow's code ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnPanic {
    /// The workflow task, which is tried again: a panic is a mistake in the code, and once that is
    /// mended the run goes on.
    #[default]
    Retry,
    /// The run: it closes as failed, with a failure of kind `Panic`. A panic in a closure of
    /// [`Ctx::record`] still fails the task, as that may do something else the next time.
    Fail,
}

/// A workflow: a function that is carried on from its history. Implemented by `#[workflow]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no workflow",
    note = "write `#[workflow]` above the function, and name it here without parentheses"
)]
pub trait Workflow: Sized + 'static {
    /// The name by which the server finds it.
    const NAME: &'static str;
    /// What a panic of its code ends.
    const ON_PANIC: OnPanic = OnPanic::Retry;
    /// Its parameters after the context.
    type Args: Args;
    /// What it returns.
    type Output: Serialize + DeserializeOwned + Send + 'static;
    /// What it fails with.
    type Error: Failure;

    /// Runs it. The future stays on one thread.
    fn run(ctx: &Ctx, args: Self::Args) -> impl Future<Output = Result<Self::Output, Self::Error>>;
}

/// Takes the return type of an activity or workflow apart, aliases included.
#[diagnostic::on_unimplemented(
    message = "activities and workflows return a `Result`, not `{Self}`",
    note = "return `onward::Result<{Self}>`, or a `Result` with an error of your own"
)]
pub trait ActivityReturn {
    /// The value.
    type Output;
    /// The error.
    type Error;
}

impl<T, E> ActivityReturn for Result<T, E> {
    type Output = T;
    type Error = E;
}

/// Takes the type of an activity's context apart, aliases included.
#[diagnostic::on_unimplemented(
    message = "an activity's context is an `&ActivityCtx<..>`, not `&{Self}`",
    note = "a workflow's context is a `&Ctx`: is this function a `#[workflow]`?"
)]
pub trait CtxParam {
    /// The dependencies.
    type Deps;
}

impl<D> CtxParam for ActivityCtx<D> {
    type Deps = D;
}

/// A place where an activity can be called: the first argument of its function.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot call the activity `{A}`",
    label = "an activity cannot be called from here",
    note = "pass `ctx` of a workflow (`&Ctx`), `ctx.local()`, or the context of an activity (`&ActivityCtx<..>`)"
)]
pub trait ActivityTarget<A: Activity> {
    /// The call: a future that is also a builder.
    type Call;

    /// Makes the call; nothing happens before it is polled or started.
    fn call(self, args: A::Args, call_site: &'static Location<'static>) -> Self::Call;
}

/// A place where a workflow can be started: the first argument of its function.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot start the workflow `{W}`",
    label = "a workflow cannot be started from here",
    note = "pass a `&Client`"
)]
pub trait WorkflowTarget<W: Workflow> {
    /// The call: a future that is also a builder.
    type Call;

    /// Makes the call; nothing happens before it is polled or started.
    fn call(self, args: W::Args, call_site: &'static Location<'static>) -> Self::Call;
}

/// How a workflow's own code ended.
#[derive(Debug)]
pub enum RunError {
    /// It returned an error.
    Failed {
        /// The error.
        failure: v1::Failure,
        /// Whether the error is, or wraps, [`Cancelled`](crate::Cancelled).
        cancelled: bool,
    },
    /// Its result cannot be encoded.
    Payload(PayloadError),
}

/// A run's own code, from its arguments to its encoded result.
pub(crate) type RunFuture = LocalBoxFuture<'static, Result<v1::Payload, RunError>>;

/// A registered workflow.
#[derive(Clone, Copy)]
pub struct WorkflowEntry {
    /// The name by which the server finds it.
    pub name: &'static str,
    /// Makes a run of it; polls nothing.
    pub make: fn(Ctx, &[v1::Payload], Codec) -> Result<RunFuture, PayloadError>,
}

impl WorkflowEntry {
    /// The entry of `W`.
    pub fn of<W: Workflow>() -> Self {
        Self { name: W::NAME, make: make_run::<W> }
    }
}

impl std::fmt::Debug for WorkflowEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("WorkflowEntry").field(&self.name).finish()
    }
}

fn make_run<W: Workflow>(
    ctx: Ctx,
    arguments: &[v1::Payload],
    codec: Codec,
) -> Result<RunFuture, PayloadError> {
    let args = W::Args::decode(arguments)?;
    let code = async move {
        match W::run(&ctx, args).await {
            Ok(value) => payload::encode(&value, codec).map_err(RunError::Payload),
            Err(error) => Err(RunError::Failed {
                failure: failure::to_wire(&error, codec),
                cancelled: error.is_cancelled(),
            }),
        }
    };
    Ok(match W::ON_PANIC {
        OnPanic::Retry => Box::pin(code),
        OnPanic::Fail => Box::pin(ending_with_its_panic(code)),
    })
}

/// Code whose panic is how it ended.
async fn ending_with_its_panic(
    code: impl Future<Output = Result<v1::Payload, RunError>>,
) -> Result<v1::Payload, RunError> {
    let mut code = pin!(code);
    poll_fn(|cx| {
        caught(|| code.as_mut().poll(cx)).unwrap_or_else(|panic| {
            let failure = failure::plain_failure("Panic", format!("the workflow {panic}"));
            Poll::Ready(Err(RunError::Failed { failure, cancelled: false }))
        })
    })
    .await
}

/// How an attempt of an activity failed.
#[derive(Debug)]
pub struct AttemptError {
    /// The failure, with its retry hint.
    pub failure: v1::Failure,
    /// Whether it is, or wraps, [`Cancelled`](crate::Cancelled).
    pub cancelled: bool,
}

/// One attempt, from encoded arguments to encoded result.
pub(crate) type AttemptFuture = BoxFuture<'static, Result<v1::Payload, AttemptError>>;

/// A registered activity of a worker with dependencies `D`.
pub struct ActivityEntry<D> {
    /// The name by which the server finds it.
    pub name: &'static str,
    /// What its attribute sets.
    pub defaults: ActivityOptions,
    /// Makes an attempt; polls nothing.
    pub run: fn(ActivityCtx<D>, Vec<v1::Payload>, Codec) -> AttemptFuture,
}

impl<D> Clone for ActivityEntry<D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D> Copy for ActivityEntry<D> {}

impl<D> std::fmt::Debug for ActivityEntry<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ActivityEntry").field(&self.name).finish()
    }
}

impl<D: Send + Sync + 'static> ActivityEntry<D> {
    /// The entry of `A`.
    pub fn of<A: Activity>() -> Self
    where
        D: Provide<A::Deps>,
    {
        Self { name: A::NAME, defaults: A::DEFAULTS, run: make_attempt::<A, D> }
    }
}

fn make_attempt<A: Activity, D>(
    ctx: ActivityCtx<D>,
    arguments: Vec<v1::Payload>,
    codec: Codec,
) -> AttemptFuture
where
    D: Provide<A::Deps> + Send + Sync + 'static,
{
    // A payload that this build does not read may suit the next one, so the attempt is retried.
    let unreadable = |error: PayloadError| AttemptError {
        failure: failure::plain_failure("PayloadError", error.to_string()),
        cancelled: false,
    };
    Box::pin(async move {
        let args = A::Args::decode(&arguments).map_err(unreadable)?;
        drop(arguments);
        let ctx = ctx.narrow::<A::Deps>();
        match A::run(&ctx, args).await {
            Ok(value) => payload::encode(&value, codec).map_err(unreadable),
            Err(error) => Err(AttemptError {
                failure: failure::to_wire(&error, codec),
                cancelled: error.is_cancelled(),
            }),
        }
    })
}

/// Names of a registration, as they are written: a name, or a list.
#[derive(Debug, Clone, Copy)]
pub enum Names {
    /// One definition.
    One(&'static str),
    /// A tuple of them.
    Many(&'static [Names]),
}

impl Names {
    /// Whether no name occurs twice. Runs in constants.
    pub const fn unique(&self) -> bool {
        self.unique_in(self)
    }

    const fn unique_in(&self, all: &Self) -> bool {
        match self {
            Self::One(name) => all.count(name) == 1,
            Self::Many(list) => {
                let mut i = 0;
                while i < list.len() {
                    if !list[i].unique_in(all) {
                        return false;
                    }
                    i += 1;
                }
                true
            }
        }
    }

    const fn count(&self, name: &str) -> usize {
        match self {
            Self::One(own) => same(own, name) as usize,
            Self::Many(list) => {
                let (mut i, mut count) = (0, 0);
                while i < list.len() {
                    count += list[i].count(name);
                    i += 1;
                }
                count
            }
        }
    }
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// Workflows to register: one, or a tuple of them, nested at will.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no list of workflows",
    note = "name workflows in a tuple: `workflows::<(order, invoice)>()`; a tuple of one has a comma: `(order,)`"
)]
pub trait WorkflowSet {
    /// Their names.
    const NAMES: Names;

    /// Adds their entries.
    fn collect(entries: &mut Vec<WorkflowEntry>);
}

impl<W: Workflow> WorkflowSet for W {
    const NAMES: Names = Names::One(W::NAME);

    fn collect(entries: &mut Vec<WorkflowEntry>) {
        entries.push(WorkflowEntry::of::<W>());
    }
}

/// The entries of a list of workflows. Two of the same name do not compile.
pub(crate) fn workflow_entries<S: WorkflowSet>() -> Vec<WorkflowEntry> {
    const { assert!(S::NAMES.unique(), "two workflows of one worker have the same name") }
    let mut entries = Vec::new();
    S::collect(&mut entries);
    entries
}

/// Activities to register at a worker with dependencies `D`: one, or a tuple of them, nested at
/// will. `#[activity]` implements it for each: were it implemented for all that are an
/// [`Activity`], a tuple would match that too, and the compiler could not name the dependency that
/// is missing.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no list of activities",
    note = "name activities in a tuple: `activities::<(charge, refund)>()`; a tuple of one has a comma: `(charge,)`"
)]
pub trait ActivitySet<D> {
    /// Their names.
    const NAMES: Names;

    /// Adds their entries.
    fn collect(entries: &mut Vec<ActivityEntry<D>>);
}

/// The entries of a list of activities. Two of the same name do not compile.
pub(crate) fn activity_entries<D, S: ActivitySet<D>>() -> Vec<ActivityEntry<D>> {
    const { assert!(S::NAMES.unique(), "two activities of one worker have the same name") }
    let mut entries = Vec::new();
    S::collect(&mut entries);
    entries
}

macro_rules! sets {
    ($($name:ident)*) => {
        impl<$($name: WorkflowSet),*> WorkflowSet for ($($name,)*) {
            const NAMES: Names = Names::Many(&[$($name::NAMES),*]);

            #[allow(unused_variables)]
            fn collect(entries: &mut Vec<WorkflowEntry>) {
                $($name::collect(entries);)*
            }
        }

        impl<Deps, $($name: ActivitySet<Deps>),*> ActivitySet<Deps> for ($($name,)*) {
            const NAMES: Names = Names::Many(&[$($name::NAMES),*]);

            #[allow(unused_variables)]
            fn collect(entries: &mut Vec<ActivityEntry<Deps>>) {
                $($name::collect(entries);)*
            }
        }
    };
}
sets!();
sets!(A);
sets!(A B);
sets!(A B C);
sets!(A B C D);
sets!(A B C D E);
sets!(A B C D E F);
sets!(A B C D E F G);
sets!(A B C D E F G H);
sets!(A B C D E F G H I);
sets!(A B C D E F G H I J);
sets!(A B C D E F G H I J K);
sets!(A B C D E F G H I J K L);
sets!(A B C D E F G H I J K L M);
sets!(A B C D E F G H I J K L M N);
sets!(A B C D E F G H I J K L M N O);
sets!(A B C D E F G H I J K L M N O P);
sets!(A B C D E F G H I J K L M N O P Q);
sets!(A B C D E F G H I J K L M N O P Q R);
sets!(A B C D E F G H I J K L M N O P Q R S);
sets!(A B C D E F G H I J K L M N O P Q R S T);
sets!(A B C D E F G H I J K L M N O P Q R S T U);
sets!(A B C D E F G H I J K L M N O P Q R S T U V);
sets!(A B C D E F G H I J K L M N O P Q R S T U V W);
sets!(A B C D E F G H I J K L M N O P Q R S T U V W X);

/// Asks what a variant's content says about itself, if that is a [`Failure`]: what a derived
/// `Failure` forwards to. Method lookup prefers [`ForwardFailure`], which needs one reference less.
pub struct Forward<'a, T: ?Sized>(pub &'a T);

/// The content is a failure.
pub trait ForwardFailure {
    /// Its hint.
    fn forward_retry(&self) -> failure::RetryHint;
    /// Whether it is cancelled.
    fn forward_is_cancelled(&self) -> bool;
}

impl<T: Failure> ForwardFailure for Forward<'_, T> {
    fn forward_retry(&self) -> failure::RetryHint {
        self.0.retry()
    }

    fn forward_is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// The content is no failure.
pub trait ForwardNothing {
    /// As the policy says.
    fn forward_retry(&self) -> failure::RetryHint;
    /// No.
    fn forward_is_cancelled(&self) -> bool;
}

impl<T: ?Sized> ForwardNothing for &Forward<'_, T> {
    fn forward_retry(&self) -> failure::RetryHint {
        failure::RetryHint::Retry
    }

    fn forward_is_cancelled(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_occur_once_in_nested_lists() {
        const INNER: &[Names] = &[Names::One("a"), Names::One("b")];
        assert!(Names::Many(&[Names::Many(INNER), Names::One("c")]).unique());
        assert!(!Names::Many(&[Names::Many(INNER), Names::One("b")]).unique());
    }

    #[test]
    #[allow(clippy::needless_borrow)] // as the macro writes it
    fn a_derived_failure_forwards_only_to_failures() {
        let cancelled = crate::Cancelled;
        assert!((&Forward(&cancelled)).forward_is_cancelled());
        assert_eq!((&Forward(&cancelled)).forward_retry(), failure::RetryHint::Never);
        assert!(!(&Forward("text")).forward_is_cancelled());
    }
}
