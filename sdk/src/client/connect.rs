//! Making a client: where the server is, and how one gets there.

use std::{
    env, fmt,
    future::Future,
    io, process,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use onward_proto::DEFAULT_PORT;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{
    Code,
    transport::{Channel, Endpoint, Uri},
};

use super::{Client, Inner};
use crate::{error::RpcError, payload::Codec};

/// Reading and writing, as a connection does.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Connector = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn Io>>> + Send + Sync>;

/// Says where the server is and how a client behaves. Every part has a default.
#[derive(Clone)]
#[must_use = "a builder does nothing until it is built"]
pub struct ClientBuilder {
    address: String,
    namespace: String,
    identity: Option<String>,
    retry_for: Duration,
    connector: Option<Connector>,
    seed: Option<u64>,
    codec: Codec,
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("address", &self.address)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

/// Enough for a full session and large results to flow without a stop at every window.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

impl ClientBuilder {
    pub(super) fn new() -> Self {
        Self {
            address: format!("http://127.0.0.1:{DEFAULT_PORT}"),
            namespace: "default".to_owned(),
            identity: None,
            retry_for: Duration::from_secs(30),
            connector: None,
            seed: None,
            codec: Codec::default(),
        }
    }

    /// Reads `ONWARD_ADDRESS` and `ONWARD_NAMESPACE`.
    pub(super) fn read_env(mut self) -> Self {
        if let Some(address) = env::var("ONWARD_ADDRESS").ok().filter(|text| !text.is_empty()) {
            self.address = address;
        }
        if let Some(namespace) = env::var("ONWARD_NAMESPACE").ok().filter(|text| !text.is_empty()) {
            self.namespace = namespace;
        }
        self
    }

    /// The server's address, `http://127.0.0.1:7450` by default. `http://` may be left out.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self
    }

    /// The namespace of all calls, `default` by default.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Names this client for people; process id and host by default.
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = Some(identity.into());
        self
    }

    /// How long a call is tried again when its outcome is unknown, counted from its first failure;
    /// 30 s by default. Every try carries the same request id, so it takes effect once.
    pub fn retry_for(mut self, retry_for: Duration) -> Self {
        self.retry_for = retry_for;
        self
    }

    /// Makes connections by `connect` in place of TCP, for example to a server in the same process.
    pub fn connector<F, Fut, S>(mut self, connect: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.connector = Some(Arc::new(move || {
            let connecting = connect();
            Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Io>) })
        }));
        self
    }

    /// Draws all ids and waits from `seed`, for a simulation that must be repeatable.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// How arguments are encoded, JSON by default.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Makes the client. It connects when it is first used.
    ///
    /// # Errors
    /// [`RpcError`] if the address cannot be read.
    ///
    /// # Panics
    /// If there is no Tokio runtime.
    pub fn build(self) -> Result<Client, RpcError> {
        let mut address = self.address.trim().to_owned();
        if !address.contains("://") {
            address.insert_str(0, "http://");
        }
        let invalid = |reason: String| {
            RpcError::new(Code::InvalidArgument, format!("`{address}` is not an address: {reason}"))
        };
        let uri: Uri = address.parse().map_err(|error| invalid(format!("{error}")))?;
        if uri.scheme_str() != Some("http") {
            return Err(invalid("it must begin with http://".to_owned()));
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(invalid("it names no host".to_owned()));
        }
        let dial = Dial { uri, connector: self.connector };
        let channel = dial.channel();
        Ok(Client {
            inner: Arc::new(Inner {
                service: super::service(channel.clone()),
                channel,
                dial,
                address: address.trim_end_matches('/').into(),
                namespace: self.namespace.into(),
                identity: self.identity.unwrap_or_else(default_identity).into(),
                codec: self.codec,
                retry_for: self.retry_for,
                checked: tokio::sync::OnceCell::new(),
                rng: self.seed.map(|seed| Mutex::new(fastrand::Rng::with_seed(seed))),
            }),
        })
    }
}

/// How to get to the server.
pub(crate) struct Dial {
    uri: Uri,
    connector: Option<Connector>,
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dial").field(&self.uri).finish()
    }
}

impl Dial {
    /// A connection of its own, made at the first call.
    pub(crate) fn channel(&self) -> Channel {
        let endpoint = Endpoint::from(self.uri.clone())
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(5))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        match &self.connector {
            None => endpoint.connect_lazy(),
            Some(connector) => {
                let connector = Arc::clone(connector);
                endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                    let connecting = connector();
                    async move { connecting.await.map(TokioIo::new) }
                }))
            }
        }
    }
}

/// `pid@host`.
fn default_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}@{}", process::id(), host.trim())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn an_address_needs_no_scheme_and_a_bad_one_is_named() {
        let client = ClientBuilder::new().address("localhost:1234").build().unwrap();
        assert_eq!(client.address(), "http://localhost:1234");
        for address in ["https://example.org", "http://", "http://a b"] {
            let error = ClientBuilder::new().address(address).build().unwrap_err();
            assert!(error.to_string().starts_with(&format!("`{address}` is not an")), "{error}");
        }
    }
}
