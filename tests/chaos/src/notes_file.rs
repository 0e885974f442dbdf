//! Notes that outlive the process that took them.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use onward_programs::notes::{Note, Notebook, Noted};

use crate::now_us;

/// A file with one note on each line. A note is with the system when it is taken: a process that is
/// killed loses none.
#[derive(Debug)]
pub struct NotesFile(File);

impl NotesFile {
    /// Opens a file, or goes on behind what it holds.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        File::options().create(true).append(true).open(path).map(Self)
    }

    /// Reads what processes have left in a file; a missing one holds nothing.
    pub(crate) fn read(path: &Path) -> Vec<Noted> {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Notebook for NotesFile {
    fn take(&self, note: Note) {
        let mut line = serde_json::to_vec(&Noted { at_us: now_us(), note }).unwrap();
        line.push(b'\n');
        // One write for the whole line: several threads share the file.
        (&self.0).write_all(&line).unwrap();
    }
}
