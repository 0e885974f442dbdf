//! What a lane reads, beside it.
//!
//! What is read decides what is written, so it must be the lane's own: a reply counts only if the
//! lease has stood, without a gap, from before the question until after the reply. Otherwise a
//! successor may have written what was read, a failover may have taken it back, and the lane, whose
//! epoch counts again, would go on with what never was.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{
    super::{lease::Lease, node::Node},
    Beside, LEASE_WATCH, Lane,
};
use crate::store::{self, BoxFuture, Store};

/// Waits between two tries to read while the database is away.
pub(super) const RETRY: Duration = Duration::from_millis(100);

/// Reads for a lane, until the lane ends.
pub(super) struct Reader {
    pub(super) node: Arc<Node>,
    lease: Arc<Lease>,
    beside: mpsc::Sender<Beside>,
}

impl Lane {
    pub(super) fn reader(&self) -> Reader {
        Reader {
            node: Arc::clone(&self.node),
            lease: Arc::clone(&self.lease),
            beside: self.beside_tx.clone(),
        }
    }
}

impl Reader {
    /// Reads `what` until there is a reply that counts: what was asked for, or a lasting error.
    /// `None` when the lane has ended.
    pub(super) async fn read<T>(
        &self,
        what: &str,
        ask: impl Fn(&dyn Store) -> BoxFuture<'_, store::Result<T>>,
    ) -> Option<store::Result<T>> {
        loop {
            match self.ask_under_lease(|| ask(self.node.store.as_ref())).await? {
                Err(error) if !error.is_lasting() => {
                    tracing::warn!(%error, what, "cannot read yet");
                    self.node.env.sleep(RETRY).await;
                }
                reply => return Some(reply),
            }
        }
    }

    /// Asks until a reply counts. `None` when the lane has ended.
    pub(super) async fn ask_under_lease<'a, T>(
        &self,
        ask: impl Fn() -> BoxFuture<'a, T>,
    ) -> Option<T> {
        while !self.beside.is_closed() {
            let tenure = self.lease.tenure(self.node.env.boot());
            if tenure.is_none() {
                self.node.env.sleep(LEASE_WATCH).await;
                continue;
            }
            let reply = ask().await;
            if self.lease.tenure(self.node.env.boot()) == tenure {
                return Some(reply);
            }
        }
        None
    }

    /// Tells the lane what was read.
    pub(super) async fn tell(self, news: Beside) {
        // A lane that has ended needs it no more.
        drop(self.beside.send(news).await);
    }
}
