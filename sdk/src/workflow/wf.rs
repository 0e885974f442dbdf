//! Ways to wait for several things. All of them poll in the order written, so that a replay takes
//! the same path; they work on any futures.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

pub use futures_util::future::{join_all, try_join_all};

pub use crate::{__join as join, __select as select, __try_join as try_join};

/// Waits for the first of several futures, drops the others, then runs its branch.
///
/// Branches are polled in the order written: when two are ready, the upper one wins. Dropping the
/// others cancels what they wait for; `&mut call` keeps it.
///
/// ```
/// # use onward::prelude::*;
/// use onward::{Signal, wf::select};
///
/// const APPROVAL: Signal<bool> = Signal::new("approval");
///
/// # #[allow(dead_code)]
/// async fn approved(ctx: &Ctx) -> bool {
///     select! {
///         approved = ctx.recv(APPROVAL) => approved,
///         () = ctx.sleep(Duration::from_hours(72)) => false,
///     }
/// }
/// ```
#[doc(hidden)]
#[macro_export]
macro_rules! __select {
    ($($arms:tt)+) => { $crate::__select_arms!({} $($arms)+) };
}

/// Sorts the arms of [`select!`](select), then builds the future and the nested match.
#[doc(hidden)]
#[macro_export]
macro_rules! __select_arms {
    ({$($done:tt)*} $pattern:pat = $future:expr => $body:block, $($rest:tt)*) => {
        $crate::__select_arms!({$($done)* [($pattern) ($future) ($body)]} $($rest)*)
    };
    ({$($done:tt)*} $pattern:pat = $future:expr => $body:block $($rest:tt)*) => {
        $crate::__select_arms!({$($done)* [($pattern) ($future) ($body)]} $($rest)*)
    };
    ({$($done:tt)*} $pattern:pat = $future:expr => $body:expr, $($rest:tt)*) => {
        $crate::__select_arms!({$($done)* [($pattern) ($future) ($body)]} $($rest)*)
    };
    ({$($done:tt)*} $pattern:pat = $future:expr => $body:expr) => {
        $crate::__select_arms!({$($done)* [($pattern) ($future) ($body)]})
    };
    ({$([($pattern:pat) ($future:expr) ($body:expr)])+}) => {{
        // The losers are dropped before a branch runs.
        let winner = { $crate::__select_arms!(@future $(($future))+).await };
        $crate::__select_arms!(@match winner $([($pattern) ($body)])+)
    }};
    (@future) => { $crate::wf::Nothing };
    (@future ($future:expr) $($rest:tt)*) => {
        $crate::wf::Select::new($future, $crate::__select_arms!(@future $($rest)*))
    };
    (@match $winner:ident) => { match $winner {} };
    (@match $winner:ident [($pattern:pat) ($body:expr)] $($rest:tt)*) => {
        match $winner {
            $crate::wf::Winner::This($pattern) => $body,
            $crate::wf::Winner::Later(winner) => $crate::__select_arms!(@match winner $($rest)*),
        }
    };
}

/// Waits for all of several futures and gives their outputs as a tuple.
#[doc(hidden)]
#[macro_export]
macro_rules! __join {
    ($($future:expr),+ $(,)?) => { $crate::wf::Together::join(($($future,)+)).await };
}

/// Waits for all of several futures that give a `Result`; the first error drops the others.
#[doc(hidden)]
#[macro_export]
macro_rules! __try_join {
    ($($future:expr),+ $(,)?) => { $crate::wf::TryTogether::try_join(($($future,)+)).await };
}

/// Which branch of `select!` won.
#[doc(hidden)]
#[derive(Debug)]
pub enum Winner<A, B> {
    This(A),
    Later(B),
}

/// A branch of `select!` and those below it.
#[doc(hidden)]
pub struct Select<A, B> {
    this: Pin<Box<A>>,
    later: B,
}

impl<A, B> Select<A, B> {
    pub fn new(this: A, later: B) -> Self {
        Self { this: Box::pin(this), later }
    }
}

impl<A: Future, B: Future + Unpin> Future for Select<A, B> {
    type Output = Winner<A::Output, B::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.this.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Winner::This(output)),
            Poll::Pending => Pin::new(&mut self.later).poll(cx).map(Winner::Later),
        }
    }
}

/// Below the last branch of `select!`.
#[doc(hidden)]
#[derive(Debug)]
pub struct Nothing;

impl Future for Nothing {
    type Output = Infallible;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Infallible> {
        Poll::Pending
    }
}

/// A future and, once it is ready, its output.
#[doc(hidden)]
pub enum Part<F: Future> {
    Pending(Pin<Box<F>>),
    Done(F::Output),
    Taken,
}

impl<F: Future> Part<F> {
    fn new(future: F) -> Self {
        Self::Pending(Box::pin(future))
    }

    /// Whether it is done.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if let Self::Pending(future) = self {
            match future.as_mut().poll(cx) {
                Poll::Ready(output) => *self = Self::Done(output),
                Poll::Pending => return false,
            }
        }
        true
    }

    fn take(&mut self) -> Option<F::Output> {
        match std::mem::replace(self, Self::Taken) {
            Self::Done(output) => Some(output),
            Self::Pending(_) | Self::Taken => None,
        }
    }
}

/// The future of `join!`.
#[doc(hidden)]
pub struct Join<P>(P);

/// The future of `try_join!`.
#[doc(hidden)]
pub struct TryJoin<P>(P);

/// A tuple of futures to wait for.
#[doc(hidden)]
pub trait Together {
    type Join;
    fn join(self) -> Self::Join;
}

/// A tuple of futures to wait for until one fails.
#[doc(hidden)]
pub trait TryTogether {
    type Join;
    fn try_join(self) -> Self::Join;
}

macro_rules! joins {
    ($($future:ident $index:tt),+) => {
        impl<$($future: Future),+> Together for ($($future,)+) {
            type Join = Join<($(Part<$future>,)+)>;

            fn join(self) -> Self::Join {
                Join(($(Part::new(self.$index),)+))
            }
        }

        impl<$($future: Future),+> Unpin for Join<($(Part<$future>,)+)> {}

        impl<$($future: Future),+> Future for Join<($(Part<$future>,)+)> {
            type Output = ($($future::Output,)+);

            fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
                let mut is_done = true;
                $(is_done &= self.0.$index.poll(cx);)+
                if !is_done {
                    return Poll::Pending;
                }
                Poll::Ready(($(self.0.$index.take().expect("polled once more after it was ready"),)+))
            }
        }
    };
}

macro_rules! try_joins {
    ($($future:ident $value:ident $index:tt),+) => {
        impl<Error, $($value, $future: Future<Output = Result<$value, Error>>),+> TryTogether
            for ($($future,)+)
        {
            type Join = TryJoin<($(Part<$future>,)+)>;

            fn try_join(self) -> Self::Join {
                TryJoin(($(Part::new(self.$index),)+))
            }
        }

        impl<$($future: Future),+> Unpin for TryJoin<($(Part<$future>,)+)> {}

        impl<Error, $($value, $future: Future<Output = Result<$value, Error>>),+> Future
            for TryJoin<($(Part<$future>,)+)>
        {
            type Output = Result<($($value,)+), Error>;

            fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
                let mut is_done = true;
                $(
                    is_done &= self.0.$index.poll(cx);
                    if matches!(&self.0.$index, Part::Done(Err(_)))
                        && let Some(Err(error)) = self.0.$index.take()
                    {
                        return Poll::Ready(Err(error));
                    }
                )+
                if !is_done {
                    return Poll::Pending;
                }
                Poll::Ready(Ok(($(
                    match self.0.$index.take() {
                        Some(Ok(value)) => value,
                        Some(Err(error)) => return Poll::Ready(Err(error)),
                        None => panic!("polled once more after it was ready"),
                    },
                )+)))
            }
        }
    };
}

joins!(A 0);
joins!(A 0, B 1);
joins!(A 0, B 1, C 2);
joins!(A 0, B 1, C 2, D 3);
joins!(A 0, B 1, C 2, D 3, E 4);
joins!(A 0, B 1, C 2, D 3, E 4, F 5);
joins!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
joins!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
try_joins!(A TA 0);
try_joins!(A TA 0, B TB 1);
try_joins!(A TA 0, B TB 1, C TC 2);
try_joins!(A TA 0, B TB 1, C TC 2, D TD 3);
try_joins!(A TA 0, B TB 1, C TC 2, D TD 3, E TE 4);
try_joins!(A TA 0, B TB 1, C TC 2, D TD 3, E TE 4, F TF 5);
try_joins!(A TA 0, B TB 1, C TC 2, D TD 3, E TE 4, F TF 5, G TG 6);
try_joins!(A TA 0, B TB 1, C TC 2, D TD 3, E TE 4, F TF 5, G TG 6, H TH 7);

/// Waits for the first of several futures of one type and drops the others. When two are ready,
/// the earlier one wins.
pub fn race<F: Future>(futures: impl IntoIterator<Item = F>) -> Race<F> {
    Race(futures.into_iter().map(Box::pin).collect())
}

/// Waits for the first of several futures. See [`race`].
#[must_use = "futures do nothing unless awaited"]
pub struct Race<F>(Vec<Pin<Box<F>>>);

impl<F: Future> Future for Race<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        for future in &mut self.0 {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                self.0.clear();
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    }
}
