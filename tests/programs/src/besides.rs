//! What a customer knows and does besides asking the server, where the world around it allows.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use onward_server::store::Store;
use uuid::Uuid;

/// Nothing, unless the world says so.
#[derive(Clone, Default)]
pub struct Besides {
    /// It says nothing after the start, so that no server looks after the run for its sake, and
    /// asks the store alone whether the run is open.
    pub away: Option<Arc<dyn Store>>,
    /// It notices when something happens in a run.
    pub cue: Option<Cue>,
    /// It gives a request up after this time, and does not know then what came of it.
    pub patience: Option<Duration>,
}

impl fmt::Debug for Besides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Besides").field("patience", &self.patience).finish_non_exhaustive()
    }
}

type Coming = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Says when something happens in a run, from outside of the system.
#[derive(Clone)]
pub struct Cue(Arc<dyn Fn(Uuid) -> Coming + Send + Sync>);

impl Cue {
    /// One that comes when what `come` gives for a run is ready.
    pub fn new<F>(come: impl Fn(Uuid) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self(Arc::new(move |run_id| Box::pin(come(run_id))))
    }

    pub(crate) async fn come(&self, run_id: Uuid) {
        (self.0)(run_id).await;
    }
}
