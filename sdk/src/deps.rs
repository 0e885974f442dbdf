//! What activities need from their worker, checked by the compiler.

use std::sync::Arc;

/// Holds a `T` that an activity may ask for as `ActivityCtx<T>`. Derive it with `#[derive(Deps)]`.
#[diagnostic::on_unimplemented(
    message = "the worker's dependencies `{Self}` do not provide `{T}`",
    label = "does not provide `{T}`",
    note = "add a field of type `{T}` to the dependencies and derive it: `#[derive(Deps)]`; give them to the worker with `.deps(..)`"
)]
pub trait Provide<T>: Send + Sync {
    /// The part.
    fn provide(&self) -> &T;
}

impl Provide<()> for () {
    fn provide(&self) -> &() {
        self
    }
}

/// A part of a part: dependencies narrowed to what one activity asked for.
pub(crate) struct Via<D>(pub(crate) Arc<dyn Provide<D>>);

impl<D: Provide<E> + 'static, E> Provide<E> for Via<D> {
    fn provide(&self) -> &E {
        self.0.provide().provide()
    }
}
