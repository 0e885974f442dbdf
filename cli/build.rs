//! Hands the commit to the binary, where there is one.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=ONWARD_COMMIT");
    let commit =
        env::var("ONWARD_COMMIT").ok().filter(|commit| !commit.is_empty()).or_else(of_checkout);
    println!("cargo::rustc-env=ONWARD_COMMIT={}", commit.as_deref().unwrap_or("unknown"));

    // What is shipped names its commit exactly, so it is built again after each. A debug build would be linked
    // anew at every commit for a line that hardly anyone reads: it says "or later" instead.
    let shipped = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    println!(
        "cargo::rustc-env=ONWARD_DEBUG_BUILD={}",
        if shipped { "" } else { " or later, debug build" }
    );
    if shipped {
        for name in ["HEAD", "logs/HEAD"] {
            if let Some(path) = git(&["rev-parse", "--git-path", name])
                && Path::new(&path).exists()
            {
                println!("cargo::rerun-if-changed={path}");
            }
        }
    }
}

/// The commit of our own checkout. A release unpacked somewhere inside another repository has none.
fn of_checkout() -> Option<String> {
    let own_root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.canonicalize().ok()?;
    let root = Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()?;
    (root == own_root).then(|| git(&["rev-parse", "--short=12", "HEAD"]))?
}

fn git(args: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
