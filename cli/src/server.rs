//! The one place that knows how the server library is started.

use std::{future::Future, io, net::SocketAddr};

use onward_server::{BuildInfo, Config, Port, Server, StartError, StoreConfig};

use crate::{
    error::{Error, Result},
    settings::{Settings, Store},
    version,
};

/// A server that holds its store and its sockets, and waits to serve.
pub(crate) struct Bound(Server);

/// Opens the store and the sockets.
pub(crate) async fn bind(settings: &Settings, store: Store) -> Result<Bound> {
    let mut config = Config::new(StoreConfig {
        url: store.url,
        unsafe_allow: store.unsafe_allow,
        pg_transaction_pooling: store.pg_transaction_pooling,
    });
    config.listen = settings.listen;
    config.http_listen = settings.http_listen;
    config.build = BuildInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: version::COMMIT.to_owned(),
    };
    Server::bind(config).await.map(Bound).map_err(|error| start_error(&error))
}

fn start_error(error: &StartError) -> Error {
    let StartError::Bind { port, addr, source } = error else {
        return Error::Failed(error.to_string());
    };
    let (what, flag) = match port {
        Port::Grpc => ("gRPC", "--listen"),
        Port::Http => ("health and metrics", "--http-listen"),
    };
    Error::Failed(match source.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {} is taken: cannot serve {what} on {addr}; choose another with {flag}",
            addr.port()
        ),
        _ => format!("cannot serve {what} on {addr}: {source}; choose another with {flag}"),
    })
}

impl Bound {
    pub(crate) fn grpc_addr(&self) -> SocketAddr {
        self.0.grpc_addr()
    }

    pub(crate) fn http_addr(&self) -> Option<SocketAddr> {
        self.0.http_addr()
    }

    pub(crate) fn store_kind(&self) -> &'static str {
        self.0.store_kind()
    }

    /// Serves until `shutdown`, then drains.
    pub(crate) async fn serve(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        self.0.serve(shutdown).await.map_err(|error| Error::Failed(error.to_string()))
    }
}
