//! `onward`: the server, the development server and the workflow tool.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 error, 2 wrong usage, 3 the
//! workflow that was waited for did not complete, 130 stopped by a second Ctrl-C.

mod args;
mod connection;
mod error;
mod input;
mod output;
mod serve;
mod server;
mod settings;
mod text;
mod version;
mod workflow;

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

use crate::{
    args::{Cli, Command},
    error::Result,
    output::Out,
};

/// Does what this process was called for.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(text) = error.text() {
                // There is nobody left to tell when stderr is closed.
                let _ = writeln!(io::stderr(), "{text}");
            }
            error.exit_code()
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Dev(args) => {
            serve::run(&args.serve, |file| settings::dev_store(args.data_dir, file))
        }
        Command::Server(args) => {
            serve::run(&args.serve, |file| settings::server_store(args.store, file))
        }
        Command::Workflow(args) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(workflow::run(args))
        }
        Command::Version(args) => {
            let mut out = Out::new();
            if args.json {
                out.json(&version::Build::current())?;
            } else {
                out.line(format_args!("onward {}", version::TEXT))?;
            }
            out.flush()
        }
    }
}

/// Reads a command line, the name of the program first, and forgets it. For a fuzzer.
///
/// # Errors
/// What the user would be told.
#[doc(hidden)]
pub fn check_command_line(words: impl IntoIterator<Item = OsString>) -> Result<(), String> {
    Cli::try_parse_from(words).map(drop).map_err(|error| error.to_string())
}

/// Reads the text of a file of settings, and forgets it. For a fuzzer.
///
/// # Errors
/// What the user would be told.
#[doc(hidden)]
pub fn check_settings(text: &str) -> Result<(), String> {
    settings::File::parse(text).map(drop)
}

#[doc(hidden)]
pub use settings::without_secrets;
