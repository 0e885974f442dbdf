//! Real servers, workers and databases, killed while runs go through.
#![allow(clippy::unwrap_used)]

// `scripts/test --quick` knows by this name in their paths which tests kill processes.
#[path = "."]
mod crash {
    mod database;
    mod input;
    mod kill;
    mod owners;
    mod sessions;
}

use std::path::Path;

use onward_system_tests::{Server, StoreUrl, WorkerProcess};
use onward_test_postgres::{Cluster, Durability};
use tempfile::TempDir;

/// A directory of a test's own. It is kept when the test fails, for a look at the logs.
struct Scene {
    dir: Option<TempDir>,
}

impl Scene {
    fn new() -> Self {
        Self { dir: Some(tempfile::Builder::new().prefix("onward-crash-").tempdir().unwrap()) }
    }

    fn dir(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    fn sqlite(&self) -> StoreUrl {
        StoreUrl::Sqlite(self.dir().join("data"))
    }

    fn workers(&self, server: &Server, count: usize) -> Vec<WorkerProcess> {
        (0..count)
            .map(|n| WorkerProcess::start(&server.address(), self.dir(), &format!("w{n}")))
            .collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("logs and data are in {}", dir.keep().display());
        }
    }
}

/// A Postgres that keeps what it commits over a crash of its own.
fn crashing_postgres() -> Cluster {
    Cluster::start(onward_test_postgres::ClusterOptions::from(Durability::Durable).tcp()).unwrap()
}
