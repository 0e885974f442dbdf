//! What all of them left.

use std::{path::Path, sync::Arc};

use onward::Client;
use onward_checker::log::{Batch, Lack, Log, Snapshot};
use onward_programs::{evidence, notes};
use onward_server::store::{OpenOptions, PostgresStore, SqliteStore, Store};
use onward_system_tests::{Runs, postgres_batches, sqlite_batches};
use sqlx::{Connection as _, PgConnection, Row as _};
use uuid::Uuid;

use crate::{
    NotesFile, now_us,
    scene::{Database, Scene},
};

/// What no log of ours may say: a bug that somebody caught.
const NEVER_SAID: [&str; 4] = ["panicked at", "25P02", "25001", "poisoned"];

/// Everything that is durable, each history as a reader gets it, and what workers noted. The server
/// stops for it and starts again.
pub(crate) async fn gather(scene: &Scene, client: &Client) -> Log {
    let mut server = scene.server.lock().await;
    let database = scene.database.lock().await;
    server.stop().await;
    let store = database.open().await;
    let shards = store.shards(1).await.unwrap().rows;
    let at_us = now_us();
    let (mut loaded, mut open) = (Vec::new(), Vec::new());
    for row in evidence::rows(&*store).await {
        loaded.push(evidence::load(&*store, row.run_id).await);
        if row.closed_at.is_none() {
            open.push((row.workflow_id, row.run_id.uuid()));
        }
    }
    store.close().await;
    drop(store);
    let batches = match &*database {
        Database::Sqlite(dir) => sqlite_batches(dir, Runs::SomeOpen).await,
        Database::Postgres(postgres) => postgres_batches(&postgres.url, Runs::SomeOpen).await,
    };
    server.start_again().await;
    let mut runs = Vec::new();
    for run in loaded {
        let history = evidence::history(client, &run.row.workflow_id, run.row.run_id).await;
        runs.push(evidence::run(*run, &shards, history));
    }
    let batches = batches.into_iter().map(|batch| Batch {
        shard: batch.shard_id as i32,
        commit_seq: batch.commit_seq as u64,
        epoch: batch.epoch as u64,
    });
    let noted = scene.notes().into_iter().flat_map(|path| NotesFile::read(&path));
    let mut noted: Vec<_> = noted.collect();
    noted.sort_by_key(|noted| noted.at_us);
    let (executions, waits) = notes::assemble(noted);
    Log {
        batches: batches.collect(),
        listed: evidence::list(client).await,
        replays: runs.iter().flat_map(evidence::replays).collect(),
        runs,
        executions,
        waits,
        snapshots: vec![Snapshot { at_us, open }],
        // Nothing that was committed is lost here, and who owned what is not looked at.
        lacks: vec![Lack::Owners, Lack::LostCommits, Lack::Held],
        ..Log::default()
    }
}

impl Database {
    async fn open(&self) -> Arc<dyn Store> {
        let options = OpenOptions { unsafe_allow: true, ..OpenOptions::default() };
        match self {
            Self::Sqlite(dir) => {
                Arc::new(SqliteStore::open(&dir.join("onward.db"), &options).await.unwrap())
            }
            Self::Postgres(postgres) => {
                Arc::new(PostgresStore::open(&postgres.url, options).await.unwrap())
            }
        }
    }
}

/// The open runs of the database at this moment, past the server.
pub(crate) async fn look(url: &str) -> Option<Snapshot> {
    let at_us = now_us();
    let mut connection = PgConnection::connect(url).await.ok()?;
    let open = sqlx::query("SELECT workflow_id, run_id FROM run WHERE closed_at IS NULL");
    let rows = open.fetch_all(&mut connection).await.ok()?;
    let open = rows.iter().map(|row| (row.get(0), row.get::<Uuid, _>(1))).collect();
    Some(Snapshot { at_us, open })
}

/// Lines of logs that should not be there.
pub(crate) fn said(logs: &[impl AsRef<Path>]) -> Vec<String> {
    said_of(logs, &NEVER_SAID)
}

/// Lines of logs that should not be there when nothing goes wrong.
pub(crate) fn said_in_peace(logs: &[impl AsRef<Path>]) -> Vec<String> {
    said_of(logs, &[NEVER_SAID.as_slice(), &["ERROR"]].concat())
}

fn said_of(logs: &[impl AsRef<Path>], words: &[&str]) -> Vec<String> {
    let mut said = Vec::new();
    for log in logs {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines = text.lines().filter(|line| words.iter().any(|word| says(line, word)));
        said.extend(lines.map(|line| format!("{}: {line}", log.as_ref().display())));
    }
    said
}

/// Whether a line holds a word as it stands: digits of another number are no code of an error.
fn says(line: &str, word: &str) -> bool {
    let is_apart = |end: Option<char>| end.is_none_or(|end| !end.is_alphanumeric());
    line.match_indices(word).any(|(at, _)| {
        is_apart(line[..at].chars().next_back()) && is_apart(line[at + word.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_another_number_are_no_code_of_an_error() {
        assert!(says("error: 25001: active transaction", "25001"));
        assert!(says("thread 'main' panicked at src/x.rs:1", "panicked at"));
        assert!(says("2026-11-30T23:33:06Z ERROR onward_server: a run is parked", "ERROR"));
        assert!(!says("acquired_after_secs=3.573525001", "25001"));
        assert!(!says("after 0.250013 s", "25001"));
    }
}
