//! Tracing of workflow code.

use tracing::{Metadata, Subscriber, subscriber::Interest};
use tracing_subscriber::{Layer, layer::Context};

/// A layer that silences workflow code while it is replayed, so that each line is logged once.
///
/// It filters for the whole registry: put it beside the layers that write.
///
/// ```
/// use tracing_subscriber::layer::SubscriberExt as _;
///
/// let subscriber = tracing_subscriber::registry()
///     .with(onward::trace::replay_filter())
///     .with(tracing_subscriber::fmt::layer());
/// ```
pub fn replay_filter() -> ReplayFilter {
    ReplayFilter { private: () }
}

/// See [`replay_filter`].
#[derive(Debug, Clone, Copy)]
pub struct ReplayFilter {
    private: (),
}

impl<S: Subscriber> Layer<S> for ReplayFilter {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // Never "always": that would be remembered, and nobody would be asked while replaying.
        Interest::sometimes()
    }

    fn enabled(&self, _: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let () = self.private;
        !crate::machine::is_replaying()
    }
}
