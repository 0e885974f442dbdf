//! The server, with the settings it has by itself.

use std::net::SocketAddr;

use anyhow::Result;
use onward_server::{Config, Server, StoreConfig};

use super::{end_of_input, say};

/// Serves until the input ends. Its one message is the address.
pub(super) async fn run(store: String) -> Result<()> {
    let mut config = Config::new(StoreConfig::new(store));
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.http_listen = None;
    let server = Server::bind(config).await?;
    say(&format!("http://{}", server.grpc_addr()))?;
    server.serve(end_of_input()).await?;
    Ok(())
}
