//! The real `onward` server as a process.

use std::path::{Path, PathBuf};

use onward::Client;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use crate::{
    Process, free_port,
    process::{panics_in, program, within},
};

/// Where a server keeps its runs.
#[derive(Debug, Clone)]
pub enum StoreUrl {
    /// `onward dev` with this data directory.
    Sqlite(PathBuf),
    /// `onward server` with this url.
    Postgres(String),
}

/// A server that keeps its port over restarts.
#[derive(Debug)]
pub struct Server {
    store: StoreUrl,
    port: u16,
    /// Where it serves its metrics, if it does.
    http_port: Option<u16>,
    log: PathBuf,
    process: Option<Process>,
}

impl Server {
    /// Starts a server; its log goes to a file in `dir`.
    pub async fn start(store: StoreUrl, dir: &Path) -> Self {
        Self::start_on(store, None, dir).await
    }

    /// Starts a server that serves its metrics as well.
    pub async fn start_with_metrics(store: StoreUrl, dir: &Path) -> Self {
        Self::start_on(store, Some(free_port()), dir).await
    }

    async fn start_on(store: StoreUrl, http_port: Option<u16>, dir: &Path) -> Self {
        let port = free_port();
        let log = dir.join(format!("server-{port}.log"));
        let mut server = Self { store, port, http_port, log, process: None };
        server.start_again().await;
        server
    }

    fn args(&self) -> Vec<String> {
        let mut args: Vec<String> = match &self.store {
            StoreUrl::Sqlite(dir) => {
                vec!["dev".into(), "--data-dir".into(), dir.display().to_string()]
            }
            StoreUrl::Postgres(url) => {
                vec!["server".into(), "--unsafe-allow".into(), "--store".into(), url.clone()]
            }
        };
        let http = self.http_port.map_or_else(|| "off".into(), |port| format!("127.0.0.1:{port}"));
        args.extend(["--http-listen".into(), http]);
        args.extend(["--listen".into(), format!("127.0.0.1:{}", self.port)]);
        args
    }

    /// Starts it again on its old data, and waits until it says what it serves.
    pub async fn start_again(&mut self) {
        let mut process = Process::start(&program("onward"), &self.args(), &self.log);
        let mut lines = BufReader::new(process.stdout()).lines();
        let served = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.trim_start().starts_with("grpc") {
                    // Read on, so that the server never writes into a closed pipe.
                    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                    return true;
                }
            }
            false
        };
        let served = within(60, "the server says what it serves", served).await;
        assert!(served, "the server did not start:\n{}", self.log());
        self.process = Some(process);
    }

    /// Ends it with SIGKILL.
    pub async fn kill(&mut self) {
        let mut process = self.process.take().expect("the server runs");
        assert!(process.is_running(), "the server has ended by itself:\n{}", self.log());
        process.kill().await;
    }

    /// Ends it with SIGTERM, in order.
    pub async fn stop(&mut self) {
        let mut process = self.process.take().expect("the server runs");
        let status = process.terminate().await;
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    /// The running process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the server runs")
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        let mut process = self.process.take().expect("the server runs");
        process.ended().await
    }

    /// Where it serves.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// One of its metrics, if it serves them.
    pub async fn metric(&self, name: &str) -> Option<u64> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http_port?)).await.ok()?;
        let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
        answer.lines().find_map(value)
    }

    /// A client that asks again for longer than any fault of a test lasts.
    pub fn client(&self) -> Client {
        client_of(&self.address())
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A server never panics, whatever happens around it.
    pub fn assert_no_panics(&self) {
        assert_eq!(panics_in(&self.log), [""; 0], "in {}", self.log.display());
    }
}

/// A client that asks again for longer than any fault of a test lasts.
pub fn client_of(address: &str) -> Client {
    Client::builder().address(address).retry_for(std::time::Duration::from_mins(3)).build().unwrap()
}
