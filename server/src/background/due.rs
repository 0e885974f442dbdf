//! Reads the deadlines of sleeping runs ahead of time, for all lanes of the node at once.
//!
//! A lane asks after it has raised its horizon (`shard::lane::loads`), and all of them ask at the
//! same moments: what the questions have in common is read with one statement.

use std::{ops::Range, sync::Arc, time::Duration};

use onward_proto::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{shard::Node, store::DueRun};

/// Questions that come within this time are answered together.
const TOGETHER: Duration = Duration::from_millis(5);
/// Waits between two tries to read while the database is away.
const RETRY: Duration = Duration::from_millis(100);
/// Due runs of each slot that one statement for all slots reads.
const DUE_PER_SLOT: u32 = 100;
/// Due runs that one statement reads of a slot that has more.
const DUE_PAGE: u32 = 10_000;

/// A lane's question: which cold runs are due from `from` to `horizon`?
#[derive(Debug)]
pub(crate) struct DueAsk {
    pub(crate) slots: Range<u16>,
    pub(crate) from: Timestamp,
    pub(crate) horizon: Timestamp,
    pub(crate) answer: oneshot::Sender<Vec<DueRun>>,
}

impl DueAsk {
    fn asks_for(&self, run: &DueRun) -> bool {
        self.slots.contains(&run.run_id.slot().get())
            && (self.from..=self.horizon).contains(&run.wake_at)
    }
}

/// Answers until it is told to stop.
pub(crate) async fn read_due_runs(
    node: Arc<Node>,
    mut asks: mpsc::Receiver<DueAsk>,
    mut stop: watch::Receiver<bool>,
) {
    let mut together = Vec::new();
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            count = asks.recv_many(&mut together, usize::MAX) => if count == 0 { return },
        }
        node.env.sleep(TOGETHER).await;
        while let Ok(ask) = asks.try_recv() {
            together.push(ask);
        }
        let Some(due) = read(&node, &together, &stop).await else { return };
        for ask in together.drain(..) {
            let due = due.iter().filter(|run| ask.asks_for(run)).copied().collect();
            // A lane that has ended asks again when it is loaded.
            drop(ask.answer.send(due));
        }
    }
}

/// Reads what any of them asks for. `None` when it is time to stop.
async fn read(node: &Node, asks: &[DueAsk], stop: &watch::Receiver<bool>) -> Option<Vec<DueRun>> {
    let from = DueRun::from(asks.iter().map(|ask| ask.from).min()?);
    let horizon = asks.iter().map(|ask| ask.horizon).max()?;
    let mut due = Vec::new();
    for slots in joined(asks.iter().map(|ask| ask.slots.clone()).collect()) {
        let read = Read { node, horizon, stop };
        let first = read.page(&slots, from, DUE_PER_SLOT).await?;
        // A slot that gave all it was asked for may have more: however long nobody read, no
        // statement reads more than a page.
        for mut last in last_of_full_slots(&first) {
            let slot = last.run_id.slot().get();
            loop {
                let page = read.page(&(slot..slot + 1), last, DUE_PAGE).await?;
                last = page.last().copied().unwrap_or(last);
                let is_last = page.len() < DUE_PAGE as usize;
                due.extend(page);
                if is_last {
                    break;
                }
            }
        }
        due.extend(first);
    }
    Some(due)
}

struct Read<'a> {
    node: &'a Node,
    horizon: Timestamp,
    stop: &'a watch::Receiver<bool>,
}

impl Read<'_> {
    /// Asks until there is an answer, or until it is time to stop.
    async fn page(&self, slots: &Range<u16>, after: DueRun, limit: u32) -> Option<Vec<DueRun>> {
        loop {
            match self.node.store.due_runs(slots.clone(), after, self.horizon, limit).await {
                Ok(due) => return Some(due),
                Err(error) => tracing::warn!(%error, "cannot read due runs yet"),
            }
            if *self.stop.borrow() {
                return None;
            }
            self.node.env.sleep(RETRY).await;
        }
    }
}

/// The same slots in as few ranges as that takes.
fn joined(mut ranges: Vec<Range<u16>>) -> Vec<Range<u16>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u16>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            Some(_) | None => joined.push(range),
        }
    }
    joined
}

/// The last run of each slot that has as many as were asked for. Those of a slot stand together.
fn last_of_full_slots(due: &[DueRun]) -> Vec<DueRun> {
    due.chunk_by(|one, next| one.run_id.slot() == next.run_id.slot())
        .filter(|of_slot| of_slot.len() >= DUE_PER_SLOT as usize)
        .filter_map(|of_slot| of_slot.last().copied())
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;
    use onward_proto::{DEFAULT_NAMESPACE, RunId, Slot, v1::WorkflowStatus};

    use super::{super::fixture::Owner, *};
    use crate::store::{CallKind, Fault, HistorySize, MemoryStore, Plan, RunRow, WakeAt};

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    /// A run of this slot that sleeps until `wake_at`.
    fn sleeper(slot: u16, wake_at: i64) -> RunRow {
        RunRow {
            run_id: RunId::new(1, wake_at as u64, Slot::new(slot)),
            namespace_id: DEFAULT_NAMESPACE,
            workflow_id: format!("{slot} at {wake_at}"),
            workflow_type: "sleep".into(),
            task_queue: "q".into(),
            status: WorkflowStatus::Running,
            started_at: at(1),
            closed_at: None,
            wake_at: WakeAt::At(at(wake_at)),
            history: HistorySize::default(),
            memo: Bytes::new(),
            requests: Bytes::new(),
        }
    }

    /// A database with these runs, and a node on it.
    async fn node_with(runs: Vec<RunRow>) -> (MemoryStore, Arc<Node>) {
        let mut owner = Owner::new().await;
        owner.commit(runs).await;
        let node = owner.node();
        (owner.store, node)
    }

    /// The reader of a node, and how to stop it.
    fn reader(node: Arc<Node>) -> (mpsc::Sender<DueAsk>, watch::Sender<bool>) {
        let (asks, receiver) = mpsc::channel(8);
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(read_due_runs(node, receiver, stopped));
        (asks, stop)
    }

    async fn ask(
        asks: &mpsc::Sender<DueAsk>,
        slots: Range<u16>,
        from: i64,
        horizon: i64,
    ) -> Vec<i64> {
        let (answer, due) = oneshot::channel();
        let ask = DueAsk { slots, from: at(from), horizon: at(horizon), answer };
        asks.send(ask).await.unwrap();
        due.await.unwrap().into_iter().map(|run| run.wake_at.as_micros()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_that_ask_together_are_answered_with_one_statement_each_with_its_own() {
        let runs = [(0, 10), (0, 30), (511, 20), (512, 15), (1023, 40)];
        let (store, node) =
            node_with(runs.map(|(slot, wake_at)| sleeper(slot, wake_at)).to_vec()).await;
        let (asks, _stop) = reader(node);
        let before = store.faults().calls();
        let answers = tokio::join!(ask(&asks, 512..1024, 1, 39), ask(&asks, 0..512, 11, 30));
        assert_eq!(answers, (vec![15], vec![30, 20]));
        assert_eq!(store.faults().calls(), before + 1);
        // Nobody asks for the slots between: they are not read.
        let answers = tokio::join!(ask(&asks, 0..1, 1, 99), ask(&asks, 1023..1024, 1, 99));
        assert_eq!(answers, (vec![10, 30], vec![40]));
        assert_eq!(store.faults().calls(), before + 3);
    }

    #[tokio::test(start_paused = true)]
    async fn more_runs_of_one_slot_than_one_statement_reads_are_all_found() {
        let many = i64::from(DUE_PER_SLOT + DUE_PAGE) + 1;
        let (store, node) = node_with((0..many).map(|n| sleeper(7, n)).collect()).await;
        let (asks, _stop) = reader(node);
        let before = store.faults().calls();
        let mut found = ask(&asks, 0..1024, 0, many).await;
        found.sort_unstable();
        assert_eq!(found, (0..many).collect::<Vec<_>>());
        assert_eq!(store.faults().calls(), before + 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_database_that_is_away_is_asked_again_until_the_node_stops() {
        let (store, node) = node_with(vec![sleeper(7, 10)]).await;
        let (asks, stop) = reader(node);
        for _ in 0..3 {
            store.faults().push(CallKind::Read, Fault::Refuse);
        }
        assert_eq!(ask(&asks, 0..1024, 0, 99).await, [10]);
        store.faults().set_planner(|_| Plan::fault(Fault::Refuse));
        let (answer, due) = oneshot::channel();
        let ask = DueAsk { slots: 0..1024, from: at(0), horizon: at(99), answer };
        asks.send(ask).await.unwrap();
        stop.send(true).unwrap();
        asks.closed().await;
        assert!(due.await.is_err());
    }

    #[test]
    fn slots_that_touch_or_overlap_are_read_as_one_range() {
        assert_eq!(joined(vec![512..1024, 0..256, 256..512, 2000..2001]), [0..1024, 2000..2001]);
        assert_eq!(joined(vec![0..10, 5..8, 11..12]), [0..10, 11..12]);
        assert_eq!(joined(Vec::new()), []);
    }
}
