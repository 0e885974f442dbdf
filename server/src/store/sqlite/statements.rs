//! The statements of a commit: few, with many rows each.
//!
//! Every call to the driver crosses a thread, so a statement takes all rows of its table, up to
//! [`MOST_ROWS`]. To keep the set of texts small, row counts are rounded up to a power of four;
//! rows of nulls fill the rest up and every text passes over them.

use std::{collections::BTreeMap, sync::Arc};

use onward_proto::{NamespaceId, RunId, Timestamp};
use sqlx::{Arguments as _, Encode, Sqlite, sqlite::SqliteArguments};
use uuid::Uuid;

use super::super::{Batch, Error, Result, RunRow, RunUpdate, slot_column};

/// How many rows one statement takes.
pub(super) const MOST_ROWS: usize = 256;

/// Which statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    InsertBatches,
    WritePending,
    RemovePending,
    UpdateRuns,
    InsertRuns,
    InsertJournal,
    FindNewestRuns,
    LoadRuns,
}

impl Kind {
    #[cfg(test)]
    pub(super) const ALL: [Self; 8] = [
        Self::InsertBatches,
        Self::WritePending,
        Self::RemovePending,
        Self::UpdateRuns,
        Self::InsertRuns,
        Self::InsertJournal,
        Self::FindNewestRuns,
        Self::LoadRuns,
    ];

    fn columns(self) -> usize {
        match self {
            Self::InsertBatches => 4,
            Self::WritePending | Self::InsertJournal | Self::FindNewestRuns | Self::LoadRuns => 3,
            Self::RemovePending => 2,
            Self::UpdateRuns => 7,
            Self::InsertRuns => 14,
        }
    }

    fn template(self) -> &'static str {
        match self {
            Self::InsertBatches => {
                "INSERT INTO batch (shard_id, commit_seq, commit_id, epoch)
                 SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL"
            }
            Self::WritePending => {
                "INSERT INTO pending (run_id, number, data)
                 SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL
                 ON CONFLICT (run_id, number) DO UPDATE SET data = excluded.data"
            }
            Self::RemovePending => "DELETE FROM pending WHERE (run_id, number) IN (VALUES {rows})",
            Self::UpdateRuns => {
                "UPDATE run SET wake_at = change.column2, history_events = change.column3,
                     history_bytes = change.column4, status = coalesce(change.column5, status),
                     closed_at = coalesce(change.column6, closed_at),
                     requests = coalesce(change.column7, requests)
                 FROM (VALUES {rows}) AS change WHERE run.run_id = change.column1"
            }
            Self::InsertRuns => {
                "INSERT INTO run (run_id, slot, namespace_id, workflow_id, workflow_type,
                     task_queue, status, started_at, closed_at, wake_at, history_events,
                     history_bytes, memo, requests)
                 SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL"
            }
            Self::InsertJournal => {
                "INSERT INTO journal (run_id, seq, records)
                 SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL"
            }
            Self::FindNewestRuns => include_str!("find_newest_runs.sql"),
            Self::LoadRuns => include_str!("load_runs.sql"),
        }
    }

    /// The whole text for `rows` rows.
    pub(super) fn text(self, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns()].join(", "));
        self.template().replace("{rows}", &vec![row; rows].join(", "))
    }
}

/// The counts of rows that texts exist for.
pub(super) fn row_counts() -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |count| Some(count * 4)).take_while(|count| *count <= MOST_ROWS)
}

/// A statement with its values.
pub(super) struct Statement {
    pub(super) kind: Kind,
    rows: usize,
    arguments: SqliteArguments,
}

/// The texts used so far.
#[derive(Default)]
pub(super) struct Texts(BTreeMap<(Kind, usize, bool), Arc<str>>);

impl Texts {
    /// The text of `statement` and its values. The first statement of a transaction begins it, the
    /// last one commits it: each way to the database that is saved is a tenth of a millisecond.
    pub(super) fn join(&mut self, statement: Statement, last: bool) -> (Arc<str>, SqliteArguments) {
        let Statement { kind, rows, arguments } = statement;
        let text = self.0.entry((kind, rows, last)).or_insert_with(|| {
            let begin = if kind == Kind::InsertBatches { "BEGIN IMMEDIATE; " } else { "" };
            let commit = if last { "; COMMIT" } else { "" };
            format!("{begin}{}{commit}", kind.text(rows)).into()
        });
        (text.clone(), arguments)
    }
}

/// Cuts `rows` into statements and binds them.
fn statements<T>(
    kind: Kind,
    rows: &[T],
    bind: impl Fn(&mut Values, &T) -> Result<()>,
) -> Result<Vec<Statement>> {
    rows.chunks(MOST_ROWS)
        .map(|chunk| {
            let count = row_counts().find(|count| *count >= chunk.len()).unwrap_or(MOST_ROWS);
            let mut values = Values(SqliteArguments::default());
            for row in chunk {
                bind(&mut values, row)?;
            }
            for _ in 0..(count - chunk.len()) * kind.columns() {
                values.add(None::<i64>)?;
            }
            Ok(Statement { kind, rows: count, arguments: values.0 })
        })
        .collect()
}

struct Values(SqliteArguments);

impl Values {
    fn add<'t, T: Encode<'t, Sqlite> + sqlx::Type<Sqlite>>(
        &mut self,
        value: T,
    ) -> Result<&mut Self> {
        self.0.add(value).map_err(|error| Error::Refused(error.to_string()))?;
        Ok(self)
    }

    fn id(&mut self, id: Uuid) -> Result<&mut Self> {
        self.add(id)
    }

    fn run_id(&mut self, run_id: RunId) -> Result<&mut Self> {
        self.add(run_id.uuid())
    }
}

/// All statements of one transaction that applies `batches`, at least one. Rows of the same table
/// go together; removals and updates come before inserts, so that a run can close and its workflow
/// id start again.
pub(super) fn of_batches(batches: &[&Batch]) -> Result<Vec<Statement>> {
    let mut all = statements(Kind::InsertBatches, batches, |values, batch| {
        values.add(i64::from(batch.shard_id.0))?.add(batch.commit_seq as i64)?;
        values.id(batch.commit_id.0)?.add(batch.epoch as i64)?;
        Ok(())
    })?;
    if all.len() > 1 {
        return Err(Error::Refused(format!("{} batches are too many at once", batches.len())));
    }
    let updates: Vec<&RunUpdate> = batches.iter().flat_map(|batch| &batch.run_updates).collect();
    all.extend(statements(Kind::UpdateRuns, &updates, |values, update| {
        let close = update.close.as_ref();
        values.run_id(update.run_id)?.add(update.wake_at.to_column())?;
        values.add(update.history.events as i64)?.add(update.history.bytes as i64)?;
        values.add(close.map(|close| close.status as i64))?;
        values.add(close.map(|close| close.closed_at.as_micros()))?;
        values.add(close.map(|close| close.requests.to_vec()))?;
        Ok(())
    })?);
    let runs: Vec<&RunRow> = batches.iter().flat_map(|batch| &batch.new_runs).collect();
    all.extend(statements(Kind::InsertRuns, &runs, |values, run| {
        values.run_id(run.run_id)?.add(i64::from(slot_column(run.run_id)))?;
        values.id(run.namespace_id.uuid())?.add(run.workflow_id.clone())?;
        values.add(run.workflow_type.clone())?.add(run.task_queue.clone())?;
        values.add(run.status as i64)?.add(run.started_at.as_micros())?;
        values.add(run.closed_at.map(Timestamp::as_micros))?.add(run.wake_at.to_column())?;
        values.add(run.history.events as i64)?.add(run.history.bytes as i64)?;
        values.add(run.memo.to_vec())?.add(run.requests.to_vec())?;
        Ok(())
    })?);
    let (written, removed): (Vec<_>, Vec<_>) =
        batches.iter().flat_map(|batch| &batch.pending).partition(|pending| pending.data.is_some());
    all.extend(statements(Kind::WritePending, &written, |values, pending| {
        values.run_id(pending.run_id)?.add(i64::from(pending.number))?;
        values.add(pending.data.as_ref().map(|data| data.to_vec()))?;
        Ok(())
    })?);
    all.extend(statements(Kind::RemovePending, &removed, |values, pending| {
        values.run_id(pending.run_id)?.add(i64::from(pending.number))?;
        Ok(())
    })?);
    let journal: Vec<_> = batches.iter().flat_map(|batch| &batch.journal).collect();
    all.extend(statements(Kind::InsertJournal, &journal, |values, row| {
        values.run_id(row.run_id)?.add(i64::from(row.seq))?.add(row.records.to_vec())?;
        Ok(())
    })?);
    Ok(all)
}

/// The statements that find the newest runs of `ids`; their column `n` counts through all of them.
pub(super) fn of_ids(ids: &[(NamespaceId, String)]) -> Result<Vec<Statement>> {
    let numbered: Vec<_> = ids.iter().zip(0_i64..).collect();
    statements(Kind::FindNewestRuns, &numbered, |values, ((namespace_id, workflow_id), n)| {
        values.add(*n)?.id(namespace_id.uuid())?.add(workflow_id.clone())?;
        Ok(())
    })
}

/// The statement that loads the first of `run_ids`, as many as one statement takes.
pub(super) fn of_runs(run_ids: &[RunId], most_bytes: u32) -> Result<Option<Statement>> {
    let numbered: Vec<_> = run_ids.iter().zip(1_i64..).take(MOST_ROWS).collect();
    let all = statements(Kind::LoadRuns, &numbered, |values, (run_id, n)| {
        values.add(*n)?.run_id(**run_id)?.add(i64::from(most_bytes))?;
        Ok(())
    })?;
    Ok(all.into_iter().next())
}

impl Statement {
    /// The text and the values of a statement outside a transaction.
    pub(super) fn alone(self) -> (String, SqliteArguments) {
        (self.kind.text(self.rows), self.arguments)
    }
}
