//! Rows as both SQL stores read them.

use std::collections::BTreeMap;

use bytes::Bytes;
use onward_proto::{NamespaceId, RunId, Timestamp, v1::WorkflowStatus};
use sqlx::{ColumnIndex, Decode, Row, Type};
use uuid::Uuid;

use super::{
    DueRun, Error, HistorySize, ListRuns, Loaded, LoadedRun, NewestRun, NodeId, Result, RunRow,
    ShardId, ShardRow, WakeAt,
};

/// A row of a database whose columns hold what ours hold.
///
/// It only gathers bounds that every function here needs.
pub(super) trait StoredRow<'r>: Row {
    fn int(&'r self, column: usize) -> Result<i64>;
    fn small(&'r self, column: usize) -> Result<i16>;
    fn maybe_int(&'r self, column: usize) -> Result<Option<i64>>;
    fn text(&'r self, column: usize) -> Result<String>;
    fn bytes(&'r self, column: usize) -> Result<Bytes>;
    fn uuid(&'r self, column: usize) -> Result<Uuid>;
    fn maybe_uuid(&'r self, column: usize) -> Result<Option<Uuid>>;
    fn flag(&'r self, column: usize) -> Result<bool>;
}

impl<'r, R> StoredRow<'r> for R
where
    R: Row,
    usize: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    i16: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    &'r [u8]: Decode<'r, R::Database> + Type<R::Database>,
    Uuid: Decode<'r, R::Database> + Type<R::Database>,
    bool: Decode<'r, R::Database> + Type<R::Database>,
{
    fn int(&'r self, column: usize) -> Result<i64> {
        self.try_get(column).map_err(|error| corrupt(&error))
    }

    fn small(&'r self, column: usize) -> Result<i16> {
        self.try_get(column).map_err(|error| corrupt(&error))
    }

    fn maybe_int(&'r self, column: usize) -> Result<Option<i64>> {
        self.try_get(column).map_err(|error| corrupt(&error))
    }

    fn text(&'r self, column: usize) -> Result<String> {
        self.try_get(column).map_err(|error| corrupt(&error))
    }

    fn bytes(&'r self, column: usize) -> Result<Bytes> {
        self.try_get::<&'r [u8], _>(column)
            .map(Bytes::copy_from_slice)
            .map_err(|error| corrupt(&error))
    }

    fn uuid(&'r self, column: usize) -> Result<Uuid> {
        self.try_get(column).map_err(|error| corrupt(&error))
    }

    fn maybe_uuid(&'r self, column: usize) -> Result<Option<Uuid>> {
        self.try_get(column).map_err(|error| corrupt(&error))
    }

    fn flag(&'r self, column: usize) -> Result<bool> {
        self.try_get(column).map_err(|error| corrupt(&error))
    }
}

fn corrupt(error: &sqlx::Error) -> Error {
    Error::Corrupt(error.to_string())
}

/// Reads a status.
pub(super) fn status(column: i16) -> Result<WorkflowStatus> {
    match WorkflowStatus::try_from(i32::from(column)) {
        Ok(status) if status != WorkflowStatus::Unspecified => Ok(status),
        _ => Err(Error::Corrupt(format!("{column} is no status of a run"))),
    }
}

/// Reads the columns of `read_run.sql`, the first of which is number `first`.
pub(super) fn run_row<'r, R: StoredRow<'r>>(row: &'r R, first: usize) -> Result<RunRow> {
    Ok(RunRow {
        run_id: RunId::from_uuid(row.uuid(first)?),
        namespace_id: NamespaceId::from_uuid(row.uuid(first + 1)?),
        workflow_id: row.text(first + 2)?,
        workflow_type: row.text(first + 3)?,
        task_queue: row.text(first + 4)?,
        status: status(row.small(first + 5)?)?,
        started_at: Timestamp::from_micros(row.int(first + 6)?),
        closed_at: row.maybe_int(first + 7)?.map(Timestamp::from_micros),
        wake_at: WakeAt::from_column(row.maybe_int(first + 8)?),
        history: HistorySize {
            events: row.int(first + 9)? as u64,
            bytes: row.int(first + 10)? as u64,
        },
        memo: row.bytes(first + 11)?,
        requests: row.bytes(first + 12)?,
    })
}

/// Reads a row of `find_newest_runs.sql`; its first column is the place of the id asked for.
pub(super) fn newest_run<'r, R: StoredRow<'r>>(row: &'r R) -> Result<NewestRun> {
    Ok(NewestRun {
        run_id: RunId::from_uuid(row.uuid(1)?),
        // One run that cannot be read must not hide the others that were asked for.
        status: row.small(2).and_then(status).ok(),
        requests: row.bytes(3)?,
    })
}

/// Puts the rows of `load_runs.sql` together: one answer for each run that was read.
pub(super) fn loaded_runs<R>(rows: &[R]) -> Result<Vec<Loaded>>
where
    R: for<'r> StoredRow<'r>,
{
    let mut runs = BTreeMap::<i64, Vec<&R>>::new();
    for row in rows {
        runs.entry(row.int(0)?).or_default().push(row);
    }
    let loaded = runs.into_values().map(|rows| {
        let mut run = None;
        match read_parts(&rows, &mut run) {
            Ok((journal, pending)) => loaded_run(run, journal, pending),
            Err(error) => Loaded::Corrupt { row: run.map(Box::new), reason: error.to_string() },
        }
    });
    Ok(loaded.collect())
}

/// Numbered blobs of a run.
type Parts = Vec<(u32, Bytes)>;

/// Reads the row of a run, if there is one, its journal and its pending rows.
fn read_parts<R>(rows: &[&R], run: &mut Option<RunRow>) -> Result<(Parts, Parts)>
where
    R: for<'r> StoredRow<'r>,
{
    let mut journal = Vec::new();
    let mut pending = Vec::new();
    for row in rows {
        match row.small(1)? {
            0 if row.maybe_uuid(4)?.is_none() => {}
            0 => *run = Some(run_row(*row, 4)?),
            1 => journal.push((row.int(2)? as u32, row.bytes(3)?)),
            _ => pending.push((row.int(2)? as u32, row.bytes(3)?)),
        }
    }
    journal.sort_unstable_by_key(|(seq, _)| *seq);
    pending.sort_unstable_by_key(|(number, _)| *number);
    Ok((journal, pending))
}

/// Puts a run together from its row and its journal, in order.
pub(super) fn loaded_run(
    row: Option<RunRow>,
    journal: impl IntoIterator<Item = (u32, Bytes)>,
    pending: Parts,
) -> Loaded {
    let Some(row) = row else { return Loaded::Missing };
    match whole_journal(row.run_id, journal) {
        Ok(journal) => Loaded::Run(Box::new(LoadedRun { row, journal, pending })),
        Err(error) => Loaded::Corrupt { row: Some(Box::new(row)), reason: error.to_string() },
    }
}

/// The rows of a journal that begins at 0 and has no gap.
fn whole_journal(
    run_id: RunId,
    rows: impl IntoIterator<Item = (u32, Bytes)>,
) -> Result<Vec<Bytes>> {
    let in_order = rows.into_iter().zip(0..).map(|((seq, records), place)| {
        (seq == place)
            .then_some(records)
            .ok_or_else(|| Error::Corrupt(format!("journal of run {run_id} has a gap")))
    });
    in_order.collect()
}

/// How many rows a page of a journal holds at most.
pub(super) const JOURNAL_PAGE_ROWS: i64 = 1_000;

/// The last row of a page, and whether rows follow it, from the sizes of the rows that could be on
/// it and one more. Sizes come first, so that no more is read whole than the page holds.
pub(super) fn page_end<R>(sizes: &[R], max_bytes: u32) -> Result<Option<(i64, bool)>>
where
    R: for<'r> StoredRow<'r>,
{
    let mut end = None;
    let mut bytes = 0;
    for (place, row) in sizes.iter().enumerate() {
        bytes += row.int(1)?;
        let fits = bytes <= i64::from(max_bytes) && (place as i64) < JOURNAL_PAGE_ROWS;
        if place > 0 && !fits {
            return Ok(end.map(|seq| (seq, true)));
        }
        end = Some(row.int(0)?);
    }
    Ok(end.map(|seq| (seq, false)))
}

/// Puts the rows of `read_journal.sql` together.
pub(super) fn journal_rows<R>(rows: &[R]) -> Result<Vec<(u32, Bytes)>>
where
    R: for<'r> StoredRow<'r>,
{
    rows.iter().map(|row| Ok((row.int(0)? as u32, row.bytes(1)?))).collect()
}

/// Reads the columns `shard_id, slot_from, slot_to, node_id, address, epoch, lease_until`.
pub(super) fn shard_row<'r, R: StoredRow<'r>>(row: &'r R) -> Result<ShardRow> {
    Ok(ShardRow {
        shard_id: ShardId(row.int(0)? as i32),
        slots: row.int(1)? as u16..row.int(2)? as u16,
        node_id: row.maybe_uuid(3)?.map(NodeId),
        address: row.text(4)?,
        epoch: row.int(5)? as u64,
        lease_until: row.maybe_int(6)?.map(Timestamp::from_micros),
    })
}

/// Reads the columns `wake_at, run_id`.
pub(super) fn due_run<'r, R: StoredRow<'r>>(row: &'r R) -> Result<DueRun> {
    let wake_at = Timestamp::from_micros(row.int(0)?);
    Ok(DueRun { wake_at, run_id: RunId::from_uuid(row.uuid(1)?) })
}

/// Where a list goes on. Without a mark it starts behind everything that can be.
pub(super) fn list_before(list: &ListRuns) -> (i64, Uuid) {
    list.before.map_or((i64::MAX, Uuid::max()), |(started_at, run_id)| {
        (started_at.as_micros(), run_id.uuid())
    })
}
