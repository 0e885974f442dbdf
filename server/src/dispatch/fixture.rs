//! Sessions and offers of tests.

use std::sync::Arc;

use onward_proto::{DEFAULT_NAMESPACE, RunId, Slot};

use super::{Offer, OfferKind, Rank, Session, SessionInfo};
use crate::{
    engine::{SessionId, Worker},
    store::ShardId,
};

/// The shard that all offers are of.
pub(crate) const SHARD: ShardId = ShardId(0);

/// A session that takes so many activities of this type at once.
pub(crate) fn session(id: u64, activity: &str, credits: u32) -> Arc<Session> {
    let session = Session::new(SessionInfo {
        namespace_id: DEFAULT_NAMESPACE,
        namespace: "default".to_owned(),
        task_queue: "q".to_owned(),
        workflow_types: [].into(),
        activity_types: [activity.to_owned()].into(),
        worker: Worker { session: SessionId(id), identity: String::new(), build_id: String::new() },
    });
    session.set_credits(0, credits);
    Arc::new(session)
}

/// An activity of this type.
pub(crate) fn offer(n: u64, activity: &str) -> Offer {
    Offer {
        shard: SHARD,
        run_id: RunId::new(1, n, Slot::new(0)),
        namespace_id: DEFAULT_NAMESPACE,
        task_queue: "q".to_owned(),
        type_name: activity.to_owned(),
        kind: OfferKind::Activity { number: 1 },
        rank: Rank::new(0, false),
    }
}
