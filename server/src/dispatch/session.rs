//! A worker's session as the lanes see it: where to send, and how much it takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use onward_proto::NamespaceId;

use super::{Kind, Outbox};
use crate::{
    engine::{SessionId, Worker},
    store::ShardId,
};

/// What a worker said of itself.
#[derive(Debug, Clone)]
pub struct SessionInfo {
    /// The namespace it serves.
    pub namespace_id: NamespaceId,
    /// That namespace's name.
    pub namespace: String,
    /// The task queue it serves.
    pub task_queue: String,
    /// Workflows it has.
    pub workflow_types: BTreeSet<String>,
    /// Activities it has.
    pub activity_types: BTreeSet<String>,
    /// The worker, as the engine knows it.
    pub worker: Worker,
}

/// One worker's session on this node.
#[derive(Debug)]
pub struct Session {
    info: SessionInfo,
    outbox: Outbox,
    flow: Mutex<Flow>,
}

/// Credits are a ceiling: how many tasks of a kind may be with the session at once.
#[derive(Debug, Default)]
struct Flow {
    ceiling: [usize; 2],
    held: [usize; 2],
    /// What is held of each lane, so that a lane that dies gives its credits back.
    of_lane: BTreeMap<ShardId, [usize; 2]>,
}

impl Session {
    /// A session without credits.
    pub fn new(info: SessionInfo) -> Self {
        Self { info, outbox: Outbox::default(), flow: Mutex::default() }
    }

    /// Names it on this node.
    pub fn id(&self) -> SessionId {
        self.info.worker.session
    }

    /// What the worker said of itself.
    pub fn info(&self) -> &SessionInfo {
        &self.info
    }

    /// Where to put what it shall get.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Whether the worker has a workflow or activity of that name.
    pub fn knows(&self, kind: Kind, type_name: &str) -> bool {
        match kind {
            Kind::Workflow => self.info.workflow_types.contains(type_name),
            Kind::Activity => self.info.activity_types.contains(type_name),
        }
    }

    /// Sets the ceilings.
    pub fn set_credits(&self, workflow: u32, activity: u32) {
        self.flow().ceiling = [workflow as usize, activity as usize];
    }

    /// Counts one more task with the session, if it has room.
    pub fn take(&self, shard: ShardId, kind: Kind) -> bool {
        let mut flow = self.flow();
        let index = index(kind);
        if flow.held[index] >= flow.ceiling[index] {
            return false;
        }
        flow.held[index] += 1;
        flow.of_lane.entry(shard).or_default()[index] += 1;
        true
    }

    /// Counts an attempt that the worker says it still runs, whatever the ceiling.
    pub fn hold(&self, shard: ShardId, kind: Kind) {
        let mut flow = self.flow();
        flow.held[index(kind)] += 1;
        flow.of_lane.entry(shard).or_default()[index(kind)] += 1;
    }

    /// Counts one task less with the session.
    pub fn give_back(&self, shard: ShardId, kind: Kind) {
        let mut flow = self.flow();
        let index = index(kind);
        let of_lane = flow.of_lane.entry(shard).or_default();
        // A completion may come twice, or from before the lane's load: it gives nothing back.
        if of_lane[index] > 0 {
            of_lane[index] -= 1;
            flow.held[index] -= 1;
        }
    }

    /// Gives back all that is held of a lane.
    pub fn forget_lane(&self, shard: ShardId) {
        let mut flow = self.flow();
        if let Some(of_lane) = flow.of_lane.remove(&shard) {
            for (held, gone) in flow.held.iter_mut().zip(of_lane) {
                *held -= gone;
            }
        }
    }

    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn index(kind: Kind) -> usize {
    match kind {
        Kind::Workflow => 0,
        Kind::Activity => 1,
    }
}
