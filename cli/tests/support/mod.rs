//! The binary, run as a person or a script runs it.
#![allow(dead_code)] // each test file uses a part

use std::process::{Command, Output, Stdio};

/// The binary with no settings of the machine it is tested on.
pub(crate) fn onward() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onward"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("ONWARD_")) {
            command.env_remove(name);
        }
    }
    command.env("TZ", "UTC").stdin(Stdio::null());
    command
}

/// What it printed as its result.
pub(crate) fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).expect("stdout is UTF-8")
}

/// What it printed beside it.
pub(crate) fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).expect("stderr is UTF-8")
}
