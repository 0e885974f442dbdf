//! The worker, with the settings it has by itself.

use anyhow::Result;
use onward::{Client, Worker};
use serde::{Deserialize, Serialize};

use super::{lines, say};
use crate::workloads::{self, QUEUE, long, sleeps, step, w0, w1, w1_inline, w5, w5_inline, waits};

/// What a worker is asked.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Question {
    /// How far it has come: `Progress`.
    Progress,
    /// How late sleeps ended: `Lateness`.
    Lateness,
}

/// Works until the input ends, and answers what it is asked.
pub(super) async fn run(address: String) -> Result<()> {
    let client = Client::connect(address).await?;
    let worker = Worker::builder(client, QUEUE)
        .workflows::<(w0, w1, w5, w1_inline, w5_inline, long, sleeps, waits)>()
        .activities::<(step,)>();
    worker.run_until(answer()).await?;
    Ok(())
}

async fn answer() {
    let mut questions = lines();
    while let Some(line) = questions.recv().await {
        let said = match serde_json::from_str(&line) {
            Ok(Question::Progress) => say(&workloads::progress()),
            Ok(Question::Lateness) => say(&workloads::lateness()),
            Err(_) => break,
        };
        if said.is_err() {
            break;
        }
    }
}
