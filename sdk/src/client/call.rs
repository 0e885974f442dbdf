//! The call of a workflow from outside: a start, or a start and the wait for the result.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    panic::Location,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use onward_proto::{RunId, v1};
use serde::Serialize;
use tonic::Code;

use super::{Client, WorkflowHandle, handle::run_id_of, typed_outcome};
use crate::{
    definition::{Workflow, WorkflowTarget},
    error::{RpcError, WorkflowError},
    payload::{self, Args, PayloadError},
    workflow::Signal,
};

/// May a workflow id be used again once its last run has closed?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum IdReuse {
    /// Yes.
    #[default]
    Allow,
    /// Only when the last run did not complete.
    AllowFailedOnly,
    /// No.
    Reject,
}

/// What happens when a run of the same workflow id is open?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum IdConflict {
    /// The start is refused with [`Code::AlreadyExists`].
    #[default]
    Fail,
    /// The open run is used.
    UseExisting,
    /// The open run is terminated, a new one starts.
    TerminateExisting,
}

/// A workflow that is about to be started.
///
/// Awaited, it starts the workflow and waits for its typed result;
/// [`start`](Self::start) only starts it and gives a handle. Options are given before that: a call
/// that gets one later, or is used once more after its end, fails with
/// [`Code::FailedPrecondition`].
#[must_use = "a workflow call does nothing until it is awaited or .start()ed"]
pub struct ClientCall<W: Workflow> {
    state: State<W>,
}

enum State<W: Workflow> {
    Built(Box<Built>),
    Running(BoxFuture<'static, Result<W::Output, WorkflowError<W::Error>>>),
    /// It was given an option too late: awaited further, it says so.
    Late,
    Done,
}

/// What a start will say.
struct Built {
    client: Client,
    start: v1::StartWorkflowRequest,
    signal: Option<(String, Vec<v1::Payload>)>,
    /// A value that could not be encoded.
    error: Option<PayloadError>,
}

impl<W: Workflow> fmt::Debug for ClientCall<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCall").field("workflow", &W::NAME).finish_non_exhaustive()
    }
}

impl<W: Workflow> WorkflowTarget<W> for &Client {
    type Call = ClientCall<W>;

    fn call(self, args: W::Args, _: &'static Location<'static>) -> ClientCall<W> {
        ClientCall::new(self, &args)
    }
}

impl<W: Workflow> ClientCall<W> {
    pub(crate) fn new(client: &Client, args: &W::Args) -> Self {
        let (arguments, error) = match args.encode(client.codec()) {
            Ok(args) => (args.payloads, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let start = v1::StartWorkflowRequest {
            namespace: client.namespace().to_owned(),
            workflow_type: W::NAME.to_owned(),
            arguments,
            request_id: client.request_id().to_wire(),
            identity: client.identity().to_owned(),
            ..Default::default()
        };
        let client = client.clone();
        Self { state: State::Built(Box::new(Built { client, start, signal: None, error })) }
    }

    fn with(mut self, change: impl FnOnce(&mut Built)) -> Self {
        match &mut self.state {
            State::Built(built) => change(built),
            State::Running(_) | State::Late | State::Done => self.state = State::Late,
        }
        self
    }

    /// The workflow id; a new UUID by default.
    pub fn id(self, workflow_id: impl Into<String>) -> Self {
        self.with(|built| built.start.workflow_id = workflow_id.into())
    }

    /// The task queue that its workers serve, `default` by default.
    pub fn queue(self, task_queue: impl Into<String>) -> Self {
        self.with(|built| built.start.task_queue = task_queue.into())
    }

    /// How long the workflow may take, all its runs together.
    pub fn execution_timeout(self, timeout: Duration) -> Self {
        self.with(|built| built.start.execution_timeout_us = wire_micros(timeout))
    }

    /// How long one run of it may take.
    pub fn run_timeout(self, timeout: Duration) -> Self {
        self.with(|built| built.start.run_timeout_us = wire_micros(timeout))
    }

    /// Whether the id may be used again once its last run has closed.
    pub fn id_reuse(self, policy: IdReuse) -> Self {
        let policy = match policy {
            IdReuse::Allow => v1::IdReusePolicy::Allow,
            IdReuse::AllowFailedOnly => v1::IdReusePolicy::AllowFailedOnly,
            IdReuse::Reject => v1::IdReusePolicy::Reject,
        };
        self.with(|built| built.start.set_id_reuse_policy(policy))
    }

    /// What happens when a run of the same id is open.
    pub fn id_conflict(self, policy: IdConflict) -> Self {
        let policy = match policy {
            IdConflict::Fail => v1::IdConflictPolicy::Fail,
            IdConflict::UseExisting => v1::IdConflictPolicy::UseExisting,
            IdConflict::TerminateExisting => v1::IdConflictPolicy::TerminateExisting,
        };
        self.with(|built| built.start.set_id_conflict_policy(policy))
    }

    /// Adds a small note that lists show.
    pub fn memo<T: Serialize + ?Sized>(self, key: impl Into<String>, value: &T) -> Self {
        self.with(|built| match payload::encode(value, built.client.codec()) {
            Ok(payload) => {
                built.start.memo.insert(key.into(), payload);
            }
            Err(error) => built.error = Some(error),
        })
    }

    /// Sends a signal with the start: an open run of the same id gets it, or a new one has it from
    /// the beginning.
    pub fn signal<T: Serialize>(self, signal: Signal<T>, value: T) -> Self {
        self.with(|built| match payload::encode(&value, built.client.codec()) {
            Ok(payload) => built.signal = Some((signal.name().to_owned(), vec![payload])),
            Err(error) => built.error = Some(error),
        })
    }

    /// Starts the workflow, and returns as soon as the start is durable.
    ///
    /// # Errors
    /// [`RpcError`] with [`Code::AlreadyExists`] if the id is taken, with
    /// [`Code::FailedPrecondition`] if the call was awaited before, and whatever else the server or
    /// the connection says.
    pub async fn start(self) -> Result<WorkflowHandle<W>, RpcError> {
        let State::Built(built) = self.state else {
            return Err(misuse::<W>("is started, but was awaited before"));
        };
        let (client, workflow_id, run) = built.start().await?;
        Ok(WorkflowHandle::new(client, workflow_id, Some(run)))
    }
}

impl Built {
    fn ready(mut self: Box<Self>) -> Result<Box<Self>, RpcError> {
        if let Some(error) = self.error.take() {
            return Err(RpcError::new(Code::InvalidArgument, error.to_string()));
        }
        if self.start.workflow_id.is_empty() {
            self.start.workflow_id = self.client.workflow_id();
        }
        Ok(self)
    }

    async fn start(self: Box<Self>) -> Result<(Client, String, RunId), RpcError> {
        let Self { client, start, signal, .. } = *self.ready()?;
        let workflow_id = start.workflow_id.clone();
        let run_id = if let Some((signal_name, arguments)) = signal {
            let request =
                v1::SignalWithStartWorkflowRequest { start: Some(start), signal_name, arguments };
            client
                .call(&request, |mut service, request| async move {
                    service.signal_with_start_workflow(request).await
                })
                .await?
                .run_id
        } else {
            client
                .call(&start, |mut service, request| async move {
                    service.start_workflow(request).await
                })
                .await?
                .run_id
        };
        Ok((client, workflow_id, run_id_of(&run_id)?))
    }

    /// Starts and waits: one call for what ends soon, further ones for what takes longer.
    async fn execute(self: Box<Self>) -> Result<v1::WorkflowOutcome, RpcError> {
        let built = self.ready()?;
        let (client, workflow_id, run_id) = if built.signal.is_some() {
            let (client, workflow_id, run) = built.start().await?;
            (client, workflow_id, run.to_wire())
        } else {
            let Self { client, start, .. } = *built;
            let workflow_id = start.workflow_id.clone();
            let request = v1::ExecuteWorkflowRequest { start: Some(start) };
            let answer = client
                .call(&request, |mut service, request| async move {
                    service.execute_workflow(request).await
                })
                .await?;
            if let Some(outcome) = answer.outcome {
                return Ok(outcome);
            }
            (client, workflow_id, answer.run_id)
        };
        let namespace = client.namespace().to_owned();
        client.wait_outcome(v1::WaitWorkflowResultRequest { namespace, workflow_id, run_id }).await
    }
}

/// Says what was done with a call that cannot be.
fn misuse<W: Workflow>(what: &str) -> RpcError {
    RpcError::new(Code::FailedPrecondition, format!("the call of workflow `{}` {what}", W::NAME))
}

impl<W: Workflow> Future for ClientCall<W> {
    type Output = Result<W::Output, WorkflowError<W::Error>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::Built(built) => {
                    let executing = async move {
                        typed_outcome(built.execute().await.map_err(WorkflowError::Rpc)?)
                    };
                    self.state = State::Running(executing.boxed());
                }
                State::Running(mut executing) => {
                    let poll = executing.poll_unpin(cx);
                    if poll.is_pending() {
                        self.state = State::Running(executing);
                    }
                    return poll;
                }
                State::Late => {
                    let error = misuse::<W>("was given an option after it was first awaited");
                    return Poll::Ready(Err(WorkflowError::Rpc(error)));
                }
                State::Done => {
                    let error = misuse::<W>("was awaited again after its end");
                    return Poll::Ready(Err(WorkflowError::Rpc(error)));
                }
            }
        }
    }
}

/// Nothing in a call is pinned: what runs is in a box of its own.
impl<W: Workflow> Unpin for ClientCall<W> {}

/// Says which workflow a handle is of; never made.
pub(crate) type Of<W> = PhantomData<fn() -> W>;

fn wire_micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
