//! Server, worker and driver as processes of their own, all gone when the stack is.

use std::{env, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    roles::{
        driver::{DriverTask, Said},
        worker::Question,
    },
    workloads::Progress,
};

/// How long a role has to come to an orderly end.
const GRACE: Duration = Duration::from_secs(15);

/// A role that runs. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Child {
    name: &'static str,
    process: tokio::process::Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Child {
    fn start(name: &'static str, argument: &str) -> Result<Self> {
        let program = env::current_exe().context("this program has no path")?;
        let mut process = Command::new(program)
            .args(["role", name, argument])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for us; the roles end with their input, or are killed.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        let input = process.stdin.take().context("its input is a pipe")?;
        let output = process.stdout.take().context("its output is a pipe")?;
        Ok(Self { name, process, input, output: BufReader::new(output).lines() })
    }

    pub(crate) fn pid(&self) -> u32 {
        // Only a process that was waited for has no id, and that takes the child away.
        self.process.id().unwrap_or(0)
    }

    async fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let Some(line) = self.output.next_line().await? else {
            bail!("the {} has ended: {}", self.name, self.process.wait().await?)
        };
        serde_json::from_str(&line).with_context(|| format!("the {} said {line}", self.name))
    }

    async fn ask<T: DeserializeOwned>(&mut self, question: &impl Serialize) -> Result<T> {
        let mut line = serde_json::to_string(question)?;
        line.push('\n');
        self.input.write_all(line.as_bytes()).await?;
        self.hear().await
    }

    /// Ends it in order, or at once when that takes too long.
    async fn end(self) -> Result<()> {
        let Self { name, mut process, input, .. } = self;
        drop(input);
        match timeout(GRACE, process.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            Ok(status) => bail!("the {name} ended with {}", status?),
            Err(_) => {
                process.kill().await?;
                bail!("the {name} did not end within {} s", GRACE.as_secs())
            }
        }
    }
}

/// A server and a worker of it.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) address: String,
    pub(crate) server: Child,
    pub(crate) worker: Child,
}

impl Stack {
    pub(crate) async fn start(store_url: &str) -> Result<Self> {
        let mut server = Child::start("server", store_url)?;
        let address: String = server.hear().await?;
        let worker = Child::start("worker", &address)?;
        let mut stack = Self { address, server, worker };
        stack.progress().await?; // it answers, so it has been started
        Ok(stack)
    }

    pub(crate) async fn progress(&mut self) -> Result<Progress> {
        self.worker.ask(&Question::Progress).await
    }

    pub(crate) async fn lateness(&mut self) -> Result<crate::workloads::Lateness> {
        self.worker.ask(&Question::Lateness).await
    }

    /// Ends the worker and then the server, in order.
    pub(crate) async fn end(self) -> Result<()> {
        self.worker.end().await?;
        self.server.end().await
    }
}

/// A driver that works on its task.
#[derive(Debug)]
pub(crate) struct Driver(Child);

impl Driver {
    pub(crate) fn start(task: &DriverTask) -> Result<Self> {
        Child::start("driver", &serde_json::to_string(task)?).map(Self)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    pub(crate) async fn hear(&mut self) -> Result<Said> {
        self.0.hear().await
    }
}
