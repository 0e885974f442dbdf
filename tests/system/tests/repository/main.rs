//! Rules about the repository itself, which no compiler checks: what may be depended on, who may
//! depend on whom, what the pure parts must not touch, and what the documents say.
#![allow(clippy::unwrap_used)]

mod dependencies;
mod documents;
mod packages;
mod purity;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Runs cargo at the root and returns what it prints. Never online: what is not downloaded by now
/// is not part of the build either.
fn cargo(args: &[&str]) -> String {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(args)
        .args(["--locked", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {}: {complaint}", args.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// A crate of the workspace, as `cargo metadata` describes it.
#[derive(Debug, Deserialize)]
struct Member {
    name: String,
    description: Option<String>,
    license: Option<String>,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

/// One line of a crate's dependency tables.
#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `None` for a normal one, else `dev` or `build`.
    kind: Option<String>,
    /// Set for crates of the workspace.
    path: Option<PathBuf>,
}

impl Member {
    fn dir(&self) -> &Path {
        self.manifest_path.parent().unwrap()
    }
}

/// All crates of the workspace.
fn members() -> Vec<Member> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Member>,
    }
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    serde_json::from_str::<Metadata>(&metadata).unwrap().packages
}

/// All Rust files below `dir`, in order of their paths.
fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
