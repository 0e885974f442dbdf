//! Durable execution for Rust: write workflows as async functions that survive crashes.
//!
//! A *workflow* is an async function whose every step is recorded; if the process, the machine or
//! the database dies, it carries on behind the last completed step. What touches the world goes
//! into *activities*. The first argument of a call says where it runs: `&Ctx` in a workflow,
//! `ctx.local()`, `&ActivityCtx` in an activity or test, `&Client` outside.

mod audited;
mod caught;
mod definition;
mod deps;
mod error;
mod failure;
mod forward;
mod limits;
mod options;
pub mod payload;

pub mod machine;
mod replayer;
pub mod trace;
mod workflow;

mod activity;
mod client;
mod worker;

pub use activity::{ActivityCtx, ActivityInfo, DirectCall};
pub use client::{
    Client, ClientBuilder, ClientCall, IdConflict, IdReuse, RawClient, WorkflowHandle,
};
pub use definition::{
    Activity, ActivityReturn, ActivitySet, ActivityTarget, CtxParam, OnPanic, Workflow,
    WorkflowSet, WorkflowTarget,
};
pub use deps::Provide;
pub use error::{
    ActivityError, Cancelled, Elapsed, Error, FailureExt, Limit, Result, ResultExt, RpcError,
    TimeoutKind, WorkflowError,
};
pub use failure::{Failure, RemoteFailure, RetryHint};
pub use onward_macros::{Deps, Failure, activity, workflow};
pub use options::{ActivityOptions, Retry};
pub use payload::{Bin, Codec};
pub use replayer::{ReplayError, Replayer};
pub use worker::{Env, Worker, WorkerBuilder, WorkerError, WorkerHandle, shutdown_signal};
pub use workflow::{
    Call, Cancellable, Condition, Ctx, LocalCall, LocalCtx, Record, Recv, Rng, Shield, Signal,
    Sleep, State, Timeout, Until, wf,
};

/// What a refused or failed call says: the code of [`RpcError`].
pub use tonic::Code;

/// What most files need.
pub mod prelude {
    pub use std::time::Duration;

    pub use onward_macros::{Deps, activity, workflow};

    pub use crate::{
        Activity, ActivityCtx, ActivityError, Bin, Cancelled, Client, Ctx, Elapsed, Failure,
        FailureExt as _, ResultExt as _, Retry, RetryHint, Signal, State, Worker, Workflow,
        WorkflowError,
    };
}

/// What the macros' output names. Not part of the API.
#[doc(hidden)]
pub mod __ {
    pub use crate::{
        definition::{
            ActivityEntry, ActivityReturn, ActivityTarget, CtxParam, Forward, ForwardFailure,
            ForwardNothing, Names, WorkflowTarget,
        },
        forward::{ForwardCauses, ForwardNoCauses},
    };
}
