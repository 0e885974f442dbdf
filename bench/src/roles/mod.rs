//! What the binary starts itself as: server, worker, driver.
//!
//! A role is told what to do by its arguments and by lines on its standard input, and answers with
//! lines of JSON. It ends when its input does, so it never outlives the one that started it.

pub(crate) mod driver;
mod server;
pub(crate) mod worker;

use std::{
    io::{self, Write as _},
    pin::pin,
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::sync::mpsc;

/// A role with what it needs to know.
#[derive(Debug)]
pub(crate) enum Role {
    Server { store: String },
    Worker { address: String },
    Driver { task: driver::DriverTask },
}

impl Role {
    /// Runs the role to its end.
    pub(crate) fn run(self) -> Result<()> {
        tracing_subscriber::fmt()
            .with_env_filter(
                tracing_subscriber::EnvFilter::try_from_env("ONWARD_LOG")
                    .unwrap_or_else(|_| "warn".into()),
            )
            .with_writer(io::stderr)
            .with_ansi(false)
            .init();
        let mut runtime = match self {
            // Server and worker run as they do in production, the driver as cheaply as it can.
            Self::Server { .. } | Self::Worker { .. } => {
                tokio::runtime::Builder::new_multi_thread()
            }
            Self::Driver { .. } => tokio::runtime::Builder::new_current_thread(),
        };
        let runtime = runtime.enable_all().build()?;
        let done = runtime.block_on(async {
            match self {
                Self::Server { store } => server::run(store).await,
                Self::Worker { address } => worker::run(address).await,
                Self::Driver { task } => {
                    let mut over = pin!(end_of_input());
                    tokio::select! {
                        // It stays until it has been looked at.
                        done = driver::run(task) => {
                            done?;
                            over.await;
                            Ok(())
                        }
                        // Whoever gave the task is gone; what runs is the server's affair.
                        () = &mut over => Ok(()),
                    }
                }
            }
        });
        // A thread that reads the standard input cannot be waited for.
        runtime.shutdown_background();
        done
    }
}

/// Says something to the one that started us.
fn say(message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).context("nobody listens")
}

/// The lines of the standard input; closed when it is.
fn lines() -> mpsc::UnboundedReceiver<String> {
    let (lines, received) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    received
}

/// Waits for the end of the standard input.
async fn end_of_input() {
    let mut lines = lines();
    while lines.recv().await.is_some() {}
}
