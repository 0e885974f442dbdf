//! Functions that take any bytes.

pub(crate) mod engine;
pub(crate) mod sdk;
pub(crate) mod serving;
mod text;

use std::time::{Duration, Instant};

use crate::panics;

/// No input may take longer.
const LIMIT: Duration = Duration::from_secs(20);

/// What a fuzzer feeds.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its file in `fuzz/fuzz_targets/`.
    pub name: &'static str,
    /// How many inputs a test of some seconds feeds it, beside the corpus.
    pub inputs: usize,
    /// Takes any bytes, and panics if something is wrong with how they were taken.
    pub take: fn(&[u8]),
}

macro_rules! targets {
    ($($module:ident :: $name:ident: $inputs:literal),* $(,)?) => {
        /// All of them.
        pub const TARGETS: &[Target] =
            &[$(Target { name: stringify!($name), inputs: $inputs, take: $module::$name }),*];
    };
}

targets!(
    serving::client_requests: 1_000,
    serving::session_frames: 300,
    serving::page_tokens: 500,
    serving::connection_bytes: 500,
    serving::parked_runs: 300,
    engine::stored_runs: 3_000,
    sdk::histories: 2_000,
    sdk::history_texts: 2_000,
    sdk::workflow_tasks: 2_000,
    sdk::server_frames: 300,
    sdk::payloads: 5_000,
    sdk::failures: 5_000,
    text::command_lines: 1_000,
    text::settings: 3_000,
    text::orders_files: 5_000,
    text::store_urls: 5_000,
);

/// The target of that name.
///
/// # Panics
/// If there is none.
pub fn target(name: &str) -> Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    *found.unwrap_or_else(|| panic!("{name} is not among the targets"))
}

impl Target {
    /// Feeds it one input.
    ///
    /// # Errors
    /// What went wrong: a panic here or in a task that it spawned, or that it took too long.
    pub fn try_take(self, input: &[u8]) -> Result<(), String> {
        let (before, began) = (panics::count(), Instant::now());
        let _ = std::panic::catch_unwind(|| (self.take)(input));
        match panics::since(before).first() {
            Some(panic) => Err(format!("{}: {panic}", self.name)),
            None if began.elapsed() > LIMIT => {
                Err(format!("{}: it took {} s", self.name, began.elapsed().as_secs()))
            }
            None => Ok(()),
        }
    }
}
