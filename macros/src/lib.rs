//! The attribute macros of [Onward](https://docs.rs/onward), reached through the crate `onward`.
//!
//! They are sugar over traits that can be implemented by hand: each turns the user's item into a
//! model in which nothing is left to check, and that into tokens. Mistakes are gathered and told
//! where they were made.

mod activity;
mod caller;
mod deps;
mod duration;
mod failure;
mod fault;
mod function;
mod keys;
mod lint;
mod options;
#[cfg(test)]
mod snapshot;
mod suggest;
mod workflow;

use proc_macro::TokenStream;

/// Makes an async function an activity: a step that may touch the world outside, is retried when
/// it fails, and whose result is recorded.
///
/// The function keeps its name and its parameters; the first argument says where it runs: a
/// workflow's `&Ctx` records it as a step, an activity's `&ActivityCtx` calls it directly. A type
/// of the same name stands for it in `Worker::activities::<(..)>()`.
///
/// ```ignore
/// #[activity(timeout = "30s", retry(max_attempts = 5))]
/// async fn charge(ctx: &ActivityCtx<App>, order: &OrderId, amount: Cents) -> Result<Payment, PaymentError> {
///     ctx.psp.charge(order, amount, ctx.idempotency_key()).await
/// }
/// ```
///
/// | key | what it sets |
/// |---|---|
/// | `timeout = "30s"` | how long one attempt may take |
/// | `deadline = "1h"` | how long all attempts may take together |
/// | `queue_timeout = "5m"` | how long it may wait for a worker |
/// | `heartbeat = "10s"` | after which silence of the worker an attempt counts as lost |
/// | `queue = "gpu"` | the queue it is put on; the workflow's own otherwise |
/// | `priority = 5` | its place among waiting activities |
/// | `retry(max_attempts = 5, initial = "200ms", max_interval = "10s", backoff = 2.0, never_on("PaymentError::Declined"))` | when a failed attempt is repeated |
/// | `name = "charge-card"` | the name the server knows; the function's own otherwise |
/// | `marker = Charge` | the name of the type; the function's own otherwise |
/// | `crate = path` | where the SDK is found; `::onward` otherwise |
#[proc_macro_attribute]
pub fn activity(args: TokenStream, item: TokenStream) -> TokenStream {
    activity::expand(args.into(), item.into()).into()
}

/// Makes an async function a workflow: code that survives crashes, because what it did is
/// recorded and replayed.
///
/// The first argument of a call says where it starts: a `&Client` starts a run from outside. A
/// type of the same name stands for it in `Worker::workflows::<(..)>()`.
///
/// ```ignore
/// #[workflow]
/// async fn order(ctx: &Ctx, order: Order) -> Result<Receipt, OrderError> {
///     let payment = charge(ctx, &order.id, order.total).await?;
///     ctx.sleep(Duration::from_hours(24)).await;
///     Ok(Receipt { payment })
/// }
/// ```
///
/// The body must decide the same on every replay, so clocks, random values, threads and the world
/// outside are compile errors that name the replacement. `onward::audited!(..)` lets an
/// expression through that only looks wrong.
///
/// | key | what it sets |
/// |---|---|
/// | `on_panic = "fail"` | a panic fails the run; otherwise it fails the task, which is tried again until it goes well |
/// | `name = "order"` | the name the server knows; the function's own otherwise |
/// | `marker = Order` | the name of the type; the function's own otherwise |
/// | `crate = path` | where the SDK is found; `::onward` otherwise |
#[proc_macro_attribute]
pub fn workflow(args: TokenStream, item: TokenStream) -> TokenStream {
    workflow::expand(args.into(), item.into()).into()
}

/// Implements `Failure`: what a caller in another process learns of an error, and whether it is
/// worth another attempt.
///
/// The kind of a failure is `Type::Variant`, or `Type` for a struct; `#[failure(kind = "...")]`
/// keeps an old one after a rename. A variant with `#[failure(terminal)]` is never retried, one
/// with `#[failure(retry_after = field)]` after the `Duration` in that field, any other as the
/// activity's policy says. What is marked `#[from]` or `#[error(transparent)]` answers as the
/// failure inside.
#[proc_macro_derive(Failure, attributes(failure))]
pub fn derive_failure(item: TokenStream) -> TokenStream {
    failure::expand(item.into()).into()
}

/// Implements `Provide` for each field's type, so that an activity may ask for the whole
/// (`&ActivityCtx<App>`), for a part (`&ActivityCtx<Pool>`) or for nothing (`&ActivityCtx`).
///
/// One field for each type; `#[deps(skip)]` leaves a field out.
#[proc_macro_derive(Deps, attributes(deps))]
pub fn derive_deps(item: TokenStream) -> TokenStream {
    deps::expand(item.into()).into()
}
