//! Starting workflows, and talking to those that run.
//!
//! Every call that changes something carries one request id over all its tries, so it takes effect
//! once, however often the connection breaks.

mod call;
mod connect;
mod handle;
pub(crate) mod rpc;

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use onward_proto::{PROTOCOL, RequestId, v1, v1::client_service_client::ClientServiceClient};
use tokio::{sync::OnceCell, time::Instant};
use tonic::{Code, Response, Status, transport::Channel};
use uuid::Uuid;

pub use self::{
    call::{ClientCall, IdConflict, IdReuse},
    connect::ClientBuilder,
    handle::WorkflowHandle,
};
use self::{
    connect::Dial,
    rpc::{Backoff, Patience, connect_failure, may_have_happened, rpc_error},
};
use crate::{
    error::{RpcError, WorkflowError},
    failure::{self, Failure, RemoteFailure},
    payload::{self, Codec},
    worker::connection::Connection,
};

/// The generated client of all client calls.
pub type RawClient = ClientServiceClient<Channel>;

/// Answers of the server may be that large: a page of history has at most 3 MiB.
const MAX_MESSAGE: usize = 16 << 20;

/// A try that lasts longer is with a server that lives: by then it would be known that nobody can be
/// reached (5 s), or that the connection is dead (10 s).
const DEAD_WITHIN: Duration = Duration::from_secs(20);

/// A way to the server. Cheap to clone; all clones share one connection.
///
/// ```no_run
/// # async fn example() -> onward::Result<()> {
/// let client = onward::Client::connect("http://127.0.0.1:7450").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    service: RawClient,
    channel: Channel,
    dial: Dial,
    address: Arc<str>,
    namespace: Arc<str>,
    identity: Arc<str>,
    codec: Codec,
    retry_for: Duration,
    /// Set once the server has said that it speaks our protocol.
    checked: OnceCell<()>,
    /// Where ids come from, if they must be repeatable.
    rng: Option<Mutex<fastrand::Rng>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.inner.address)
            .field("namespace", &self.inner.namespace)
            .finish_non_exhaustive()
    }
}

pub(crate) fn service(channel: Channel) -> RawClient {
    ClientServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

impl Client {
    /// A client of the server at `address`. It connects when it is first used.
    ///
    /// # Errors
    /// If the address cannot be read.
    #[allow(clippy::unused_async, reason = "it may look for the server one day")]
    pub async fn connect(address: impl Into<String>) -> Result<Self, RpcError> {
        Self::builder().address(address).build()
    }

    /// A client of the server that the environment names: `ONWARD_ADDRESS`, by default
    /// `http://127.0.0.1:7450`, and `ONWARD_NAMESPACE`, by default `default`.
    ///
    /// # Errors
    /// If the address cannot be read.
    #[allow(clippy::unused_async, reason = "it may look for the server one day")]
    pub async fn from_env() -> Result<Self, RpcError> {
        Self::builder().read_env().build()
    }

    /// All that can be said about a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// The server's address.
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// The namespace of all calls.
    pub fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// How this client names itself.
    pub fn identity(&self) -> &str {
        &self.inner.identity
    }

    /// The untyped calls, without check of versions and without retries: for tools.
    pub fn raw(&self) -> RawClient {
        self.inner.service.clone()
    }

    /// The connection under the calls: for tools.
    pub fn channel(&self) -> Channel {
        self.inner.channel.clone()
    }

    /// Asks the server who it is.
    ///
    /// # Errors
    /// If it cannot be reached, or speaks another protocol.
    pub async fn server_info(&self) -> Result<v1::GetServerInfoResponse, RpcError> {
        let request = v1::GetServerInfoRequest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
        };
        let info = self
            .retrying(&request, |mut service, request| async move {
                service.get_server_info(request).await
            })
            .await?;
        if info.protocol == PROTOCOL {
            return Ok(info);
        }
        Err(RpcError::new(
            Code::FailedPrecondition,
            format!(
                "the server at {} has version {} and speaks protocol {}, this client has version \
                 {} and speaks protocol {PROTOCOL}: use the same version on both sides",
                self.inner.address,
                info.version,
                info.protocol,
                env!("CARGO_PKG_VERSION"),
            ),
        ))
    }

    /// A connection of a worker's own.
    pub(crate) fn connection(&self) -> Connection {
        let inner = &self.inner;
        Connection::new(
            inner.dial.channel(),
            Arc::clone(&inner.address),
            Arc::clone(&inner.namespace),
        )
    }

    pub(crate) fn codec(&self) -> Codec {
        self.inner.codec
    }

    /// Draws an id for a request.
    pub(crate) fn request_id(&self) -> RequestId {
        RequestId::from_uuid(match &self.inner.rng {
            None => Uuid::new_v4(),
            Some(rng) => {
                let random = rng.lock().unwrap_or_else(PoisonError::into_inner).u128(..);
                uuid::Builder::from_random_bytes(random.to_le_bytes()).into_uuid()
            }
        })
    }

    /// Draws a workflow id: a UUID v7, so that ids sort by their start.
    pub(crate) fn workflow_id(&self) -> String {
        match &self.inner.rng {
            None => Uuid::now_v7(),
            Some(_) => self.request_id().uuid(),
        }
        .to_string()
    }

    fn rng(&self) -> fastrand::Rng {
        match &self.inner.rng {
            None => fastrand::Rng::new(),
            Some(rng) => {
                fastrand::Rng::with_seed(rng.lock().unwrap_or_else(PoisonError::into_inner).u64(..))
            }
        }
    }

    /// Makes an untyped call, after a look at the server's version if this is the first. A try
    /// whose outcome is unknown is repeated with the same request, so a request that changes
    /// something needs a request id.
    ///
    /// ```no_run
    /// # async fn example(client: onward::Client) -> onward::Result<()> {
    /// let request = onward_proto::v1::ListWorkflowsRequest::default();
    /// let page = client
    ///     .call(&request, |mut service, request| async move {
    ///         service.list_workflows(request).await
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What the server or the connection says.
    pub async fn call<Q, T, F, Fut>(&self, request: &Q, call: F) -> Result<T, RpcError>
    where
        Q: Clone,
        F: Fn(RawClient, Q) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        if !self.inner.checked.initialized() {
            self.inner
                .checked
                .get_or_try_init(|| async { self.server_info().await.map(drop) })
                .await?;
        }
        self.retrying(request, call).await
    }

    /// Asks again, with the same request, while the outcome is unknown and there is time. A long wait
    /// that breaks off has used none of it up, whatever went wrong before it.
    async fn retrying<Q, T, F, Fut>(&self, request: &Q, call: F) -> Result<T, RpcError>
    where
        Q: Clone,
        F: Fn(RawClient, Q) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut waits: Option<(Backoff, Patience)> = None;
        loop {
            let asked = Instant::now();
            let status = match call(self.inner.service.clone(), request.clone()).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            if asked.elapsed() > DEAD_WITHIN {
                // The server was there and let us wait: what happened before is over.
                waits = None;
            }
            let error = || rpc_error(&self.inner.address, &status);
            // A server that was never there is a mistake in the address, or not started: say so
            // at once. One that was there comes back.
            let never_seen =
                !self.inner.checked.initialized() && connect_failure(&status).is_some();
            if never_seen || !may_have_happened(status.code()) {
                return Err(error());
            }
            let (backoff, patience) = waits.get_or_insert_with(|| {
                (
                    Backoff::new(self.rng(), Duration::from_secs(2)),
                    Patience::new(self.inner.retry_for),
                )
            });
            let delay = backoff.next_delay();
            if !patience.allows(delay) {
                return Err(error());
            }
            tracing::debug!(%status, "asking again under the same request id");
            tokio::time::sleep(delay).await;
        }
    }

    /// Waits until a run has closed.
    pub(crate) async fn wait_outcome(
        &self,
        request: v1::WaitWorkflowResultRequest,
    ) -> Result<v1::WorkflowOutcome, RpcError> {
        let mut request = request;
        loop {
            let answer = self
                .call(&request, |mut service, request| async move {
                    service.wait_workflow_result(request).await
                })
                .await?;
            if let Some(outcome) = answer.outcome {
                return Ok(outcome);
            }
            // From the first answer on it is this run that is waited for, not the newest.
            request.run_id = answer.run_id;
        }
    }
}

/// Reads how a run ended as its caller's types.
pub(crate) fn typed_outcome<T, E>(outcome: v1::WorkflowOutcome) -> Result<T, WorkflowError<E>>
where
    T: serde::de::DeserializeOwned,
    E: Failure,
{
    use v1::WorkflowStatus as Status;
    let read = |failure: &v1::Failure| match failure::from_wire::<E>(failure) {
        Ok(error) => Ok(error),
        Err(remote) => Err(WorkflowError::Lost(remote)),
    };
    match outcome.status() {
        Status::Completed => {
            payload::decode(&outcome.result.unwrap_or_default()).map_err(|error| {
                WorkflowError::Lost(Box::new(RemoteFailure::from(&failure::plain_failure(
                    "PayloadError",
                    format!("the result does not decode: {error}"),
                ))))
            })
        }
        Status::Failed => {
            if let Some(limit) = outcome.refused {
                return Err(WorkflowError::Refused(limit.into()));
            }
            let failure = outcome.failure.unwrap_or_default();
            Err(WorkflowError::Failed(read(&failure)?))
        }
        Status::Cancelled => Err(WorkflowError::Cancelled(match outcome.failure {
            None => None,
            Some(failure) => Some(read(&failure)?),
        })),
        Status::Terminated => {
            Err(WorkflowError::Terminated(outcome.failure.unwrap_or_default().message))
        }
        Status::TimedOut => Err(WorkflowError::TimedOut),
        Status::Unspecified | Status::Running => Err(WorkflowError::Rpc(RpcError::new(
            Code::Internal,
            "the server answered with an outcome that is none",
        ))),
    }
}
