//! Which build this is.

use serde::Serialize;

/// The commit that this binary was built from, or `unknown`.
pub(crate) const COMMIT: &str = env!("ONWARD_COMMIT");

/// Version and commit, for people.
pub(crate) const TEXT: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("ONWARD_COMMIT"),
    env!("ONWARD_DEBUG_BUILD"),
    ")"
);

/// Version and commit, for scripts.
#[derive(Serialize)]
pub(crate) struct Build {
    version: &'static str,
    commit: &'static str,
    protocol: u32,
}

impl Build {
    pub(crate) fn current() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: COMMIT,
            protocol: onward_proto::PROTOCOL,
        }
    }
}
