//! Histories as files, in the form that `onward workflow history --json` prints.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use onward_proto::{json, v1};

use crate::STORIES;

/// Where the histories of all versions are.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../histories")
}

/// The histories of all versions, by their files.
///
/// # Panics
/// If a folder cannot be read, or a file is no history.
pub fn histories() -> Vec<(PathBuf, v1::History)> {
    let mut files = Vec::new();
    for version in fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()) {
        if version.is_dir() {
            files.extend(fs::read_dir(version).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    files.sort();
    let read = |path: PathBuf| {
        let history = read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path, history)
    };
    files.into_iter().map(read).collect()
}

/// Reads a history.
///
/// # Errors
/// If the file cannot be read, or is none.
pub fn read(path: &Path) -> io::Result<v1::History> {
    json::from_str(&fs::read_to_string(path)?).map_err(io::Error::other)
}

/// The text of a history: one event a line.
pub fn text(history: &v1::History) -> String {
    let events: Vec<String> = history.events.iter().map(json::to_string).collect();
    format!("{{\"events\":[\n{}\n]}}\n", events.join(",\n"))
}

/// What recording found in place of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// There was none: it is written.
    New,
    /// It says something else, and stays as it is.
    Kept,
    /// It said something else, and was written over.
    Replaced,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Kept => "differs and is kept",
            Self::Replaced => "replaced",
        })
    }
}

/// Records every story into a folder for this version, and tells what is not as it was. Files that
/// are there stay, unless they are to be replaced.
///
/// # Errors
/// If a file cannot be read or written.
pub fn record_all(out: &Path, replace: bool) -> io::Result<Vec<(&'static str, Difference)>> {
    let folder = out.join(env!("CARGO_PKG_VERSION"));
    fs::create_dir_all(&folder)?;
    let mut differences = Vec::new();
    for story in STORIES {
        let path = folder.join(story.name).with_extension("json");
        let text = text(&story.record());
        let difference = match fs::read_to_string(&path) {
            Ok(before) if before == text => continue,
            Ok(_) if replace => Difference::Replaced,
            Ok(_) => Difference::Kept,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Difference::New,
            Err(error) => return Err(error),
        };
        if difference != Difference::Kept {
            fs::write(&path, text)?;
        }
        differences.push((story.name, difference));
    }
    Ok(differences)
}
