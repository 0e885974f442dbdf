//! The replay corpus: workflows that between them use all of the SDK, and how each one's history was
//! recorded. The histories are in `tests/histories`, and current code must replay them for ever.
//!
//! A workflow here never changes what it does: its histories are saved. What the SDK learns goes
//! into a new workflow. One file holds the workflows of one theme, and beside each of them the story
//! that plays it: a whole server and workers in one thread, on a virtual clock.
#![allow(clippy::unwrap_used)]

/// Stories of workflows that need nothing but a worker: each is played under its own name.
macro_rules! by_itself {
    ($($name:ident),+ $(,)?) => {$(
        pub(crate) async fn $name(stage: &crate::stage::Stage) -> onward_proto::v1::History {
            let _worker = stage.worker().await;
            let start = super::$name(&stage.client).id(stringify!($name)).queue(crate::stage::QUEUE);
            stage.ended(&start.start().await.unwrap()).await
        }
    )+};
}

pub mod activities;
pub mod seen;

pub mod calls;
pub mod cancels;
pub mod chance;
pub mod ends;
pub mod locals;
pub mod mends;
pub mod payloads;
pub mod signals;
pub mod timers;
pub mod untaken;
pub mod waits;

mod files;
mod puppet;
mod stage;

use std::{future::Future, pin::Pin};

use onward::{
    Replayer, WorkflowSet,
    machine::{MachineOptions, WorkflowEntry},
};
use onward_proto::v1;

pub use files::{Difference, histories, read, record_all, root, text};
use stage::Stage;

/// Every workflow that has a history.
pub type Workflows = (
    calls::Workflows,
    cancels::Workflows,
    chance::Workflows,
    ends::Workflows,
    locals::Workflows,
    mends::Workflows,
    payloads::Workflows,
    signals::Workflows,
    timers::Workflows,
    untaken::Workflows,
    waits::Workflows,
);

/// How one history comes about.
#[derive(Debug, Clone, Copy)]
pub struct Story {
    /// The name of its file.
    pub name: &'static str,
    play: Play,
}

type Play = for<'a> fn(&'a Stage) -> Pin<Box<dyn Future<Output = v1::History> + 'a>>;

macro_rules! stories {
    ($($theme:ident: $($name:ident)*;)*) => {
        &[$($(Story {
            name: concat!(stringify!($theme), "_", stringify!($name)),
            play: |stage| Box::pin($theme::play::$name(stage)),
        },)*)*]
    };
}

/// All stories.
pub const STORIES: &[Story] = stories! {
    calls: outcomes options started vanished heartbeats direct refused;
    cancels: dropped section shield asked calls late unread error;
    chance: random recorded identity;
    ends: unit text values options causes plain_error terminated replaced run_timeout
        execution_timeout untaken refused_close unread unread_failure full too_large;
    locals: outcomes chained beside dropped cancelled refused;
    mends: blocked;
    payloads: binary compact;
    signals: received together with_start skipped named;
    timers: sleeps timeouts dropped taken_back refused;
    untaken: failure cancel terminated timed_out;
    waits: state select join race;
};

impl Story {
    /// Plays it: the same code gives the same history.
    pub fn record(&self) -> v1::History {
        stage::play(self.name, self.play)
    }
}

/// The entry of a workflow, by its registered name.
pub fn entry(workflow_type: &str) -> Option<WorkflowEntry> {
    let mut entries = Vec::new();
    Workflows::collect(&mut entries);
    entries.into_iter().find(|entry| entry.name == workflow_type)
}

/// What the workers of this workflow are told beside their code.
pub fn options(workflow_type: &str) -> MachineOptions {
    if workflow_type == payloads::COMPACT { payloads::options() } else { MachineOptions::default() }
}

/// A replayer for the histories of this workflow, to which changed arguments are a mismatch.
pub fn replayer(workflow_type: &str) -> Replayer {
    Replayer::new().workflows::<Workflows>().codec(options(workflow_type).codec).strict()
}
