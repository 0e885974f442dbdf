//! Reading histories: pages for people, and the rest of a task's history for workers.
//!
//! Both fold durable journal rows; a page resumes where the one before ended, so none folds from
//! the start.

use bytes::Bytes;
use onward_proto::{
    RunId,
    v1::{self, GetWorkflowHistoryResponse, TaskHistoryResponse},
};
use prost::Message as _;
use tonic::Status;

use super::{
    ask::{ask, read},
    client::{ClientApi, LONG_POLL},
    page_token::{self, OfHistory},
};
use crate::{
    engine::{TaskId, history::HistoryFold},
    shard::{
        Node,
        message::{Request, Target},
    },
    store::JournalPage,
};

/// Bytes of a page, unless asked otherwise.
const PAGE_BYTES: u32 = 1 << 20;
/// Bytes of a page at most: a message holds 4 MiB, and one event may be 2 MiB.
const MAX_PAGE_BYTES: u32 = 3 << 20;
/// Journal bytes read at once.
const READ_BYTES: u32 = 1 << 20;

impl ClientApi {
    pub(super) async fn history_page(
        &self,
        mut target: Target,
        token: &[u8],
        max_bytes: u32,
        follow: bool,
    ) -> Result<GetWorkflowHistoryResponse, Status> {
        let max_bytes = match max_bytes {
            0 => PAGE_BYTES,
            bytes => bytes.min(MAX_PAGE_BYTES),
        };
        let asked = OfHistory { target: target.clone() };
        let position = asked.read(token)?;
        if let Some((run_id, _)) = &position {
            target.run_id = Some(*run_id);
        }
        let mut beyond = None;
        let deadline = tokio::time::Instant::now() + LONG_POLL;
        loop {
            let locate =
                self.ask(&target, |target, answer| Request::Locate { target, beyond, answer });
            // Dropped half-way it only stops waiting: the lane finds its reply closed.
            let Ok(located) = tokio::time::timeout_at(deadline, locate).await else {
                // Only who has read to the end knows that there is nothing more yet.
                return match beyond {
                    Some(_) => Ok(empty_page(token, target.run_id)),
                    None => Err(Status::unavailable("where the history ends cannot be told yet")),
                };
            };
            let located = located?;
            target.run_id = Some(located.run_id);
            let mut fold = position
                .as_ref()
                .map_or_else(HistoryFold::new, |(_, position)| HistoryFold::resume(position));
            let exhausted =
                self.feed(&mut fold, located.run_id, located.rows, max_bytes as usize).await?;
            let events = fold.take_page(max_bytes as usize);
            let at_end = exhausted && fold.is_drained();
            if events.is_empty() && at_end && follow && !located.closed {
                beyond = Some(located.rows);
                continue;
            }
            let next_page_token = if at_end && located.closed {
                Bytes::new()
            } else {
                asked.token(fold.position(located.run_id))
            };
            return Ok(GetWorkflowHistoryResponse {
                events,
                next_page_token,
                at_end,
                run_id: located.run_id.to_wire(),
            });
        }
    }

    /// Feeds durable rows until there is a page's worth; tells whether that were all.
    async fn feed(
        &self,
        fold: &mut HistoryFold,
        run_id: RunId,
        rows: u32,
        page_bytes: usize,
    ) -> Result<bool, Status> {
        let mut seq = fold.read_from();
        let mut bytes = 0;
        while seq < rows {
            if bytes >= page_bytes && !fold.is_drained() {
                return Ok(false);
            }
            let page = read_journal(&self.node, run_id, seq, READ_BYTES).await?;
            let before = seq;
            for (row_seq, row) in page.rows {
                if row_seq >= rows {
                    return Ok(true);
                }
                bytes += row.len();
                push(fold, row_seq, &row)?;
                seq = row_seq + 1;
            }
            if seq == before {
                break;
            }
        }
        Ok(true)
    }
}

pub(super) async fn read_journal(
    node: &Node,
    run_id: RunId,
    from: u32,
    max_bytes: u32,
) -> Result<JournalPage, Status> {
    read(node, |store| async move { store.read_journal(run_id, from, max_bytes).await }).await
}

fn push(fold: &mut HistoryFold, seq: u32, row: &[u8]) -> Result<(), Status> {
    let row = v1::JournalRow::decode(row)
        .map_err(|error| Status::data_loss(format!("journal row {seq} cannot be read: {error}")))?;
    fold.push_row(seq, &row).map_err(|error| Status::data_loss(error.to_string()))
}

fn empty_page(token: &[u8], run_id: Option<RunId>) -> GetWorkflowHistoryResponse {
    GetWorkflowHistoryResponse {
        events: Vec::new(),
        next_page_token: Bytes::copy_from_slice(token),
        at_end: true,
        run_id: run_id.map_or_else(Bytes::new, RunId::to_wire),
    }
}

/// A page of the history of a task that a worker holds: numbered events, then the facts it took.
///
/// A worker builds its workflow on it, so it must be the lane's own as all that the lane reads: it
/// counts only under one hold on the slot, from before the first read until it goes out.
pub(super) async fn task_history(
    node: &Node,
    run_id: RunId,
    task_id: TaskId,
    position: &[u8],
) -> Result<TaskHistoryResponse, Status> {
    let not_held = || Status::unavailable("the shard's lease has run out; ask again");
    let hold = node.hold(run_id.slot()).ok_or_else(not_held)?;
    let page = read_task_history(node, run_id, task_id, position).await?;
    if node.hold(run_id.slot()) == Some(hold) { Ok(page) } else { Err(not_held()) }
}

async fn read_task_history(
    node: &Node,
    run_id: RunId,
    task_id: TaskId,
    position: &[u8],
) -> Result<TaskHistoryResponse, Status> {
    let mut fold = match page_token::read_position(run_id, position)? {
        Some(position) => HistoryFold::resume(&position),
        None => HistoryFold::new(),
    };
    let mut rows = fold.read_from();
    loop {
        let page = read_journal(node, run_id, rows, READ_BYTES).await?;
        for (seq, row) in &page.rows {
            push(&mut fold, *seq, row)?;
            rows = seq + 1;
        }
        if page.more {
            if fold.is_drained() {
                continue;
            }
            return Ok(task_page(fold, run_id, false));
        }
        let of_task = |answer| Request::TaskTail { run_id, task_id, rows, answer };
        let tail = ask(node, run_id.slot(), of_task).await?;
        if tail.rows > rows {
            continue;
        }
        for (seq, row) in &tail.staged {
            fold.push_row(*seq, row).map_err(|error| Status::data_loss(error.to_string()))?;
        }
        fold.push_facts(tail.facts);
        return Ok(task_page(fold, run_id, true));
    }
}

/// A page of what a fold has numbered; `last` when nothing follows what it has.
fn task_page(mut fold: HistoryFold, run_id: RunId, last: bool) -> TaskHistoryResponse {
    let events = fold.take_page(PAGE_BYTES as usize);
    let next_position = if last && fold.is_drained() {
        Bytes::new()
    } else {
        fold.position(run_id).encode_to_vec().into()
    };
    TaskHistoryResponse { events, next_position }
}
