//! Running workflows and activities: one session with the server, some threads, many tasks.

mod attempts;
pub(crate) mod connection;
mod env;
mod local;
mod outbox;
mod registry;
mod runs;
mod session;
mod threads;

use std::{fmt, future::Future, io, num::NonZero, sync::Arc, thread};

use tokio::{sync::watch, task::JoinHandle};

pub use self::env::Env;
use self::{
    registry::{RegisteredActivity, Registry},
    session::Session,
    threads::ThreadKind,
};
use crate::{
    activity::Whole,
    client::Client,
    definition::{
        ActivityEntry, ActivitySet, WorkflowEntry, WorkflowSet, activity_entries, workflow_entries,
    },
    deps::Provide,
    machine::MachineOptions,
    options::ActivityOptions,
    payload::Codec,
};

/// Why a worker does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// Worker and server do not speak the same protocol.
    #[error(
        "the server has version {server_version} and speaks protocol {server_protocol}, this worker \
         has version {worker_version} and speaks protocol {worker_protocol}: use the same version \
         on both sides"
    )]
    Protocol {
        /// The server's version.
        server_version: String,
        /// The server's protocol.
        server_protocol: u32,
        /// This worker's version.
        worker_version: String,
        /// This worker's protocol.
        worker_protocol: u32,
    },
    /// The server does not take this worker, and would not the next time.
    #[error("the server refuses this worker: {0}")]
    Refused(String),
    /// The same name was registered twice.
    #[error("two {what} of this worker have the name `{name}`")]
    Duplicate {
        /// `workflows` or `activities`.
        what: &'static str,
        /// The name.
        name: &'static str,
    },
    /// There is nothing to run.
    #[error("the worker has neither workflows nor activities")]
    Nothing,
    /// The process was built to abort on panic, so one panic would take all runs with it.
    #[error("workers need `panic = \"unwind\"`: a panic in one workflow must not end the process")]
    PanicAborts,
    /// A workflow thread could not be started.
    #[error("cannot start a workflow thread")]
    Thread(#[source] io::Error),
    /// The worker itself broke down.
    #[error("the worker panicked")]
    Panicked,
}

/// What a session needs to know.
#[derive(Debug, Clone)]
pub(crate) struct WorkerOptions {
    queue: String,
    identity: String,
    build_id: String,
    cached_workflows: usize,
    max_workflow_tasks: u32,
    max_activities: u32,
    threads: usize,
    thread_kind: ThreadKind,
    machine: MachineOptions,
    env: Env,
}

/// Runs the workflows and activities of one task queue.
///
/// ```no_run
/// use onward::prelude::*;
///
/// #[activity]
/// async fn greet(_: &ActivityCtx, name: &str) -> onward::Result<String> {
///     Ok(format!("Hello, {name}!"))
/// }
///
/// #[workflow]
/// async fn hello(ctx: &Ctx, name: String) -> onward::Result<String> {
///     Ok(greet(ctx, &name).await?)
/// }
///
/// # async fn example() -> onward::Result<()> {
/// Worker::builder(Client::from_env().await?, "hello")
///     .workflows::<(hello,)>()
///     .activities::<(greet,)>()
///     .run_until(onward::shutdown_signal())
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Worker;

impl Worker {
    /// A worker of `queue`.
    pub fn builder(client: Client, queue: impl Into<String>) -> WorkerBuilder<()> {
        WorkerBuilder {
            codec: client.codec(),
            client,
            queue: queue.into(),
            deps: (),
            workflows: Vec::new(),
            activities: Vec::new(),
            identity: None,
            build_id: String::new(),
            cached_workflows: 10_000,
            max_workflow_tasks: 500,
            max_activities: 1_000,
            threads: None,
            stack_bytes: 8 << 20,
            activity_options: ActivityOptions::new(),
            env: Env::default(),
        }
    }
}

/// Says what a worker runs, and how much of it at once.
#[must_use = "a builder does nothing until it runs"]
pub struct WorkerBuilder<D> {
    client: Client,
    queue: String,
    deps: D,
    workflows: Vec<WorkflowEntry>,
    activities: Vec<ActivityEntry<D>>,
    identity: Option<String>,
    build_id: String,
    cached_workflows: usize,
    max_workflow_tasks: u32,
    max_activities: u32,
    threads: Option<usize>,
    stack_bytes: usize,
    codec: Codec,
    activity_options: ActivityOptions,
    env: Env,
}

impl<D> fmt::Debug for WorkerBuilder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder")
            .field("queue", &self.queue)
            .field("workflows", &self.workflows)
            .field("activities", &self.activities)
            .finish_non_exhaustive()
    }
}

impl WorkerBuilder<()> {
    /// What the activities need. Give it before the activities are named: the compiler checks that
    /// it provides what they ask for.
    pub fn deps<D: Send + Sync + 'static>(self, deps: D) -> WorkerBuilder<D> {
        assert!(
            self.activities.is_empty(),
            "call .deps(..) before .activities(..): they are checked against it"
        );
        WorkerBuilder {
            client: self.client,
            queue: self.queue,
            deps,
            workflows: self.workflows,
            activities: Vec::new(),
            identity: self.identity,
            build_id: self.build_id,
            cached_workflows: self.cached_workflows,
            max_workflow_tasks: self.max_workflow_tasks,
            max_activities: self.max_activities,
            threads: self.threads,
            stack_bytes: self.stack_bytes,
            codec: self.codec,
            activity_options: self.activity_options,
            env: self.env,
        }
    }
}

impl<D: Send + Sync + 'static> WorkerBuilder<D> {
    /// Adds workflows.
    pub fn workflows<S: WorkflowSet>(mut self) -> Self {
        self.workflows.extend(workflow_entries::<S>());
        self
    }

    /// Adds activities. Two of one name in a tuple do not compile:
    ///
    /// ```
    /// # use onward::prelude::*;
    /// #[activity]
    /// async fn charge(_: &ActivityCtx, cents: u64) -> onward::Result<u64> {
    ///     Ok(cents)
    /// }
    ///
    /// #[activity(name = "refund")]
    /// async fn undo(_: &ActivityCtx, cents: u64) -> onward::Result<u64> {
    ///     Ok(cents)
    /// }
    ///
    /// fn worker(client: Client) -> onward::WorkerBuilder<()> {
    ///     Worker::builder(client, "orders").activities::<(charge, undo)>()
    /// }
    /// # drop(None::<Client>.map(worker));
    /// ```
    ///
    /// ```compile_fail
    /// # use onward::prelude::*;
    /// #[activity]
    /// async fn charge(_: &ActivityCtx, cents: u64) -> onward::Result<u64> {
    ///     Ok(cents)
    /// }
    ///
    /// #[activity(name = "charge")]
    /// async fn undo(_: &ActivityCtx, cents: u64) -> onward::Result<u64> {
    ///     Ok(cents)
    /// }
    ///
    /// fn worker(client: Client) -> onward::WorkerBuilder<()> {
    ///     Worker::builder(client, "orders").activities::<(charge, undo)>()
    /// }
    /// # drop(None::<Client>.map(worker));
    /// ```
    pub fn activities<S: ActivitySet<D>>(mut self) -> Self {
        self.activities.extend(activity_entries::<D, S>());
        self
    }

    /// Names the build of this code, in histories and reports.
    pub fn build_id(mut self, build_id: impl Into<String>) -> Self {
        self.build_id = build_id.into();
        self
    }

    /// Names this worker for people; the client's identity by default.
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = Some(identity.into());
        self
    }

    /// How many runs are kept alive between their tasks, 10,000 by default. One that is not kept is
    /// carried on from its history.
    pub fn cached_workflows(mut self, runs: usize) -> Self {
        self.cached_workflows = runs;
        self
    }

    /// How many activities may be with this worker at once, 1,000 by default.
    pub fn max_activities(mut self, activities: u32) -> Self {
        self.max_activities = activities;
        self
    }

    /// How many workflow tasks may be with this worker at once, 500 by default.
    pub fn max_workflow_tasks(mut self, tasks: u32) -> Self {
        self.max_workflow_tasks = tasks;
        self
    }

    /// How many threads run workflow code, by default one for each two cores.
    pub fn workflow_threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// The stack of each workflow thread, 8 MiB by default. A stack that overflows cannot be
    /// caught: it ends the process, and the run is carried on elsewhere.
    pub fn workflow_stack(mut self, bytes: usize) -> Self {
        self.stack_bytes = bytes;
        self
    }

    /// How values are encoded, the client's choice by default. Values are decoded by what was
    /// recorded with them, so it can change at any time.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Options of the activities that this worker's workflows call, where neither the call nor the
    /// activity says otherwise.
    pub fn activity_options(mut self, options: ActivityOptions) -> Self {
        self.activity_options = options;
        self
    }

    /// The worker's surroundings, the real world by default.
    pub fn env(mut self, env: Env) -> Self {
        self.env = env;
        self
    }

    /// Runs until the process ends.
    ///
    /// # Errors
    /// If the worker cannot run at all. A server that cannot be reached is waited for.
    pub async fn run(self) -> Result<(), WorkerError> {
        self.run_until(std::future::pending()).await
    }

    /// Runs until `shutdown` resolves, and then until what runs has come to its end, for at most
    /// 10 s.
    ///
    /// # Errors
    /// If the worker cannot run at all. A server that cannot be reached is waited for.
    ///
    /// # Cancel safety
    /// Dropping the future ends the worker at once; the server hands its work to another.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
        let mut handle = self.begin()?;
        tokio::select! {
            biased;
            ended = handle.session.ended() => return ended,
            () = shutdown => {}
        }
        handle.stop.send_replace(true);
        handle.session.ended().await
    }

    /// Runs in the background.
    ///
    /// # Errors
    /// If the worker cannot run at all.
    #[allow(clippy::unused_async, reason = "it may wait for the server's welcome one day")]
    pub async fn spawn(self) -> Result<WorkerHandle, WorkerError> {
        self.begin()
    }

    fn begin(self) -> Result<WorkerHandle, WorkerError> {
        if cfg!(panic = "abort") {
            return Err(WorkerError::PanicAborts);
        }
        let registry = registry(self.workflows, self.activities, self.deps, self.codec)?;
        let threads = self.threads.unwrap_or_else(|| {
            thread::available_parallelism().map_or(1, NonZero::get).div_euclid(2).max(1)
        });
        let (threads, thread_kind) = if self.env.is_simulated() {
            (1, ThreadKind::Local)
        } else {
            (threads.max(1), ThreadKind::Os { stack_bytes: self.stack_bytes })
        };
        let options = WorkerOptions {
            identity: self.identity.unwrap_or_else(|| self.client.identity().to_owned()),
            queue: self.queue,
            cached_workflows: self.cached_workflows,
            max_workflow_tasks: self.max_workflow_tasks,
            max_activities: self.max_activities,
            threads,
            thread_kind,
            machine: MachineOptions {
                codec: self.codec,
                build_id: self.build_id.clone(),
                activity: self.activity_options,
                ..MachineOptions::default()
            },
            build_id: self.build_id,
            env: self.env,
        };
        let session = Session::new(options, Arc::new(registry), self.client.connection())
            .map_err(WorkerError::Thread)?;
        let (stop, stopped) = watch::channel(false);
        let session = SessionTask(tokio::spawn(session.run(stopped)));
        Ok(WorkerHandle { stop, session })
    }
}

fn registry<D: Send + Sync + 'static>(
    workflows: Vec<WorkflowEntry>,
    activities: Vec<ActivityEntry<D>>,
    deps: D,
    codec: Codec,
) -> Result<Registry, WorkerError> {
    let mut registry = Registry::default();
    for entry in workflows {
        if registry.workflows.insert(entry.name, entry).is_some() {
            return Err(WorkerError::Duplicate { what: "workflows", name: entry.name });
        }
    }
    let deps: Arc<dyn Provide<D>> = Arc::new(Whole(deps));
    for entry in activities {
        let activity = Arc::new(RegisteredActivity::new(entry, Arc::clone(&deps), codec));
        if registry.activities.insert(entry.name, activity).is_some() {
            return Err(WorkerError::Duplicate { what: "activities", name: entry.name });
        }
    }
    if registry.workflows.is_empty() && registry.activities.is_empty() {
        return Err(WorkerError::Nothing);
    }
    Ok(registry)
}

/// The session's own task. Dropping it ends the session.
#[derive(Debug)]
struct SessionTask(JoinHandle<Result<(), WorkerError>>);

impl SessionTask {
    async fn ended(&mut self) -> Result<(), WorkerError> {
        match (&mut self.0).await {
            Ok(ended) => ended,
            Err(error) if error.is_panic() => Err(WorkerError::Panicked),
            // Only the end of the runtime cancels it.
            Err(_) => Ok(()),
        }
    }
}

impl Drop for SessionTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A worker that runs in the background. Dropping it ends the worker at once.
#[derive(Debug)]
pub struct WorkerHandle {
    stop: watch::Sender<bool>,
    session: SessionTask,
}

impl WorkerHandle {
    /// Takes no more work, and waits until what runs has come to its end, for at most 10 s.
    ///
    /// # Errors
    /// If the worker had ended before, why.
    pub async fn shutdown(mut self) -> Result<(), WorkerError> {
        self.stop.send_replace(true);
        self.session.ended().await
    }

    /// Waits until the worker ends by itself, which it does only if it cannot run.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn ended(&mut self) -> Result<(), WorkerError> {
        self.session.ended().await
    }
}

/// Resolves at Ctrl-C or SIGTERM: what [`run_until`](WorkerBuilder::run_until) waits for. A second
/// one ends the process at once, with exit code 130.
///
/// # Panics
/// If the process may not listen for signals.
pub async fn shutdown_signal() {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .expect("a process may listen for SIGTERM");
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
        .expect("a process may listen for SIGINT");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
}
