//! Why a command ended early, and what the shell is told.

use std::{io, process::ExitCode};

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Error {
    /// The command itself is wrong.
    Usage(String),
    /// It was not done.
    Failed(String),
    /// It was done, but the workflow did not complete. Says how it ended, unless that is printed already.
    WorkflowFailed(Option<String>),
    /// Nobody reads on, as in `onward workflow list | head -1`: not an error.
    ClosedPipe,
}

impl Error {
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    /// What stderr says.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Usage(text) | Self::Failed(text) => Some(text),
            Self::WorkflowFailed(text) => text.as_deref(),
            Self::ClosedPipe => None,
        }
    }

    /// What the shell is told.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) => ExitCode::FAILURE,
            Self::WorkflowFailed(_) => ExitCode::from(3),
            Self::ClosedPipe => ExitCode::SUCCESS,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::Failed(error.to_string()),
        }
    }
}
