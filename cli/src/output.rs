//! Stdout: buffered, never panicking, coloured only for people.

use std::{
    fmt,
    io::{self, BufWriter, IsTerminal, Stdout, Write},
};

use comfy_table::{Table, presets};
use onward_proto::v1::WorkflowStatus;
use serde::Serialize;

use crate::error::{Error, Result};

/// Stdout. Every write may say that nobody reads on, which ends the command quietly.
pub(crate) struct Out {
    stdout: BufWriter<Stdout>,
    colours: bool,
}

/// What a colour means.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Paint {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    Busy,
}

impl Paint {
    /// How a run of this status is painted.
    pub(crate) fn of(status: WorkflowStatus) -> Self {
        match status {
            WorkflowStatus::Unspecified => Self::Plain,
            WorkflowStatus::Running => Self::Busy,
            WorkflowStatus::Completed => Self::Good,
            WorkflowStatus::Failed | WorkflowStatus::TimedOut => Self::Bad,
            WorkflowStatus::Cancelled | WorkflowStatus::Terminated => Self::Dim,
        }
    }

    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\x1b[1m",
            Self::Dim => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[31m",
            Self::Busy => "\x1b[36m",
        }
    }
}

/// Whether this stream is read by a person who likes colours.
pub(crate) fn wants_colours(stream: &impl IsTerminal) -> bool {
    let asked_not = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !asked_not && !dumb
}

impl Out {
    pub(crate) fn new() -> Self {
        let stdout = io::stdout();
        let colours = wants_colours(&stdout);
        Self { stdout: BufWriter::new(stdout), colours }
    }

    /// Writes a line.
    pub(crate) fn line(&mut self, line: impl fmt::Display) -> Result<()> {
        Ok(writeln!(self.stdout, "{line}")?)
    }

    /// Writes text without a line end.
    pub(crate) fn text(&mut self, text: impl fmt::Display) -> Result<()> {
        Ok(write!(self.stdout, "{text}")?)
    }

    /// Writes a JSON document.
    pub(crate) fn json(&mut self, document: &impl Serialize) -> Result<()> {
        serde_json::to_writer_pretty(&mut self.stdout, document).map_err(json_error)?;
        Ok(writeln!(self.stdout)?)
    }

    /// Writes a JSON document on one line, without a line end.
    pub(crate) fn compact_json(&mut self, document: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.stdout, document).map_err(json_error)
    }

    /// Writes a table, its columns as wide as they need: ids are for copying.
    pub(crate) fn table<const N: usize>(
        &mut self,
        header: [&str; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) -> Result<()> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header.map(str::to_uppercase));
        for row in rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.line(table.trim_fmt())
    }

    /// Lends `text` a colour, if it is for people.
    pub(crate) fn paint(&self, paint: Paint, text: impl fmt::Display) -> String {
        match paint {
            Paint::Plain => text.to_string(),
            _ if !self.colours => text.to_string(),
            _ => format!("{}{text}\x1b[0m", paint.code()),
        }
    }

    /// Hands over what is buffered.
    pub(crate) fn flush(&mut self) -> Result<()> {
        Ok(self.stdout.flush()?)
    }
}

fn json_error(error: serde_json::Error) -> Error {
    if error.is_io() { io::Error::from(error).into() } else { Error::Failed(error.to_string()) }
}

/// Tells people something beside the result.
pub(crate) fn note(text: impl fmt::Display) {
    // Whoever closed stderr does not want notes.
    let _ = writeln!(io::stderr(), "{text}");
}
