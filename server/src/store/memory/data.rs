//! The tables of the in-memory store, with an undo log, so that a batch is whole and the newest
//! transactions can be lost again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use onward_proto::{NamespaceId, RunId, SLOTS, SeededBug, Timestamp};
use uuid::Uuid;

use super::super::{
    Batch, CommitId, Committed, DueRun, Error, JournalPage, ListRuns, Loaded, NewestRun, NodeId,
    Renewal, Renewed, Resolve, Resolved, Result, RunRow, ShardId, ShardRow, Shards, Take, Taken,
    Verdict, even_shards, row, slot_column,
};

/// How many transactions can be lost again.
const UNDO_LIMIT: usize = 256;

/// One write, as it travels.
#[derive(Debug, Clone)]
pub(super) enum Write {
    Shards(u16),
    Take(Take),
    Commit(Arc<Batch>),
    Resolve(Resolve),
    Renew(Vec<Renewal>, i64),
    Release(ShardId, NodeId, u64),
    Prune(ShardId, u32, u32),
}

impl Write {
    pub(super) fn shard_id(&self) -> Option<ShardId> {
        match self {
            Self::Take(take) => Some(take.watched.shard_id),
            Self::Commit(batch) => Some(batch.shard_id),
            Self::Resolve(resolve) => Some(resolve.shard_id),
            Self::Renew(renewals, _) => renewals.first().map(|renewal| renewal.shard_id),
            Self::Release(shard_id, ..) | Self::Prune(shard_id, ..) => Some(*shard_id),
            Self::Shards(_) => None,
        }
    }
}

/// What the database says to a write.
#[derive(Debug)]
pub(super) enum Answer {
    Shards(Shards),
    Taken(Taken),
    Committed(Committed),
    Resolved(Resolved),
    Renewed(Renewed),
    Released,
    Pruned(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct BatchRow {
    commit_id: CommitId,
    epoch: u64,
}

/// A row as it was before a transaction.
#[derive(Debug)]
enum Undo {
    Shard(ShardId, Option<ShardRow>),
    Batch((ShardId, u64), Option<BatchRow>),
    Run(RunId, Option<Arc<RunRow>>),
    Journal((RunId, u32), Option<Bytes>),
    Pending((RunId, u32), Option<Bytes>),
}

/// Since when a shard has had an owner, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Since when, by the database's clock.
    pub since: Timestamp,
    /// The shard.
    pub shard_id: ShardId,
    /// Its owner; none after it was released or stolen.
    pub node_id: Option<NodeId>,
    /// The owner's epoch.
    pub epoch: u64,
}

/// All tables and their indexes.
#[derive(Debug, Default)]
pub(super) struct Data {
    shards: BTreeMap<ShardId, ShardRow>,
    batches: BTreeMap<(ShardId, u64), BatchRow>,
    runs: BTreeMap<RunId, Arc<RunRow>>,
    journal: BTreeMap<(RunId, u32), Bytes>,
    pending: BTreeMap<(RunId, u32), Bytes>,
    open: BTreeMap<(NamespaceId, String), RunId>,
    closed: BTreeSet<(NamespaceId, String, RunId)>,
    wake: BTreeSet<(i16, i64, RunId)>,
    listed: BTreeSet<(NamespaceId, Timestamp, RunId)>,
    transaction: Vec<Undo>,
    history: VecDeque<(Timestamp, Vec<Undo>)>,
    thefts: u128,
    /// When the last transaction was applied, or lost again.
    now: Timestamp,
    /// Every change of an owner, also one that was lost again.
    owners: Vec<Ownership>,
    pub(super) read_only: bool,
    /// Runs in damaged pages: a statement that reads one of them fails as a whole.
    pub(super) damaged: BTreeSet<RunId>,
}

fn by_slot(run_id: &RunId) -> (u16, RunId) {
    (run_id.slot().get(), *run_id)
}

fn put<K: Ord + Copy, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}

impl Data {
    /// Applies one write as a whole, or not at all if it fails.
    pub(super) fn apply(&mut self, write: &Write, now: Timestamp) -> Result<Answer> {
        self.now = now;
        let answer = match write {
            Write::Shards(count) => Ok(Answer::Shards(self.shards(*count, now))),
            Write::Take(take) => Ok(Answer::Taken(self.take(take, now))),
            Write::Commit(batch) => self.commit(batch, now).map(Answer::Committed),
            Write::Resolve(resolve) => Ok(Answer::Resolved(self.resolve(resolve, now))),
            Write::Renew(renewals, lease_us) => {
                Ok(Answer::Renewed(self.renew(renewals, *lease_us, now)))
            }
            Write::Release(shard_id, node_id, epoch) => {
                self.release(*shard_id, *node_id, *epoch);
                Ok(Answer::Released)
            }
            Write::Prune(shard_id, keep, limit) => {
                Ok(Answer::Pruned(self.prune(*shard_id, *keep, *limit)))
            }
        };
        let undo = std::mem::take(&mut self.transaction);
        if answer.is_err() {
            self.roll_back(undo);
        } else if !undo.is_empty() {
            self.history.push_back((now, undo));
            if self.history.len() > UNDO_LIMIT {
                self.history.pop_front();
            }
        }
        answer
    }

    /// Loses the newest `count` transactions, like a failover to a replica that lagged; tells when
    /// the oldest of them was applied.
    pub(super) fn rewind(&mut self, count: usize, now: Timestamp) -> Option<Timestamp> {
        self.now = now;
        let mut oldest = None;
        for _ in 0..count {
            if let Some((at, undo)) = self.history.pop_back() {
                self.roll_back(undo);
                oldest = Some(at);
            }
        }
        oldest
    }

    /// Shard, number and epoch of every batch row.
    pub(super) fn batches(&self) -> Vec<(ShardId, u64, u64)> {
        self.batches.iter().map(|((shard, seq), row)| (*shard, *seq, row.epoch)).collect()
    }

    /// Who has owned the shards since when.
    pub(super) fn owners(&self) -> Vec<Ownership> {
        self.owners.clone()
    }

    /// Another node takes the shard and gives it up again.
    pub(super) fn steal(&mut self, shard_id: ShardId, now: Timestamp) {
        let Some(row) = self.shards.get(&shard_id) else { return };
        self.now = now;
        self.thefts += 1;
        let commit_id = CommitId(Uuid::from_u128(0x7_1ef7 << 100 | self.thefts));
        let row = ShardRow {
            node_id: None,
            address: String::new(),
            epoch: row.epoch + 1,
            lease_until: None,
            ..row.clone()
        };
        let (commit_seq, _) = self.newest_batch(shard_id);
        self.set_batch((shard_id, commit_seq + 1), Some(BatchRow { commit_id, epoch: row.epoch }));
        self.set_shard(shard_id, Some(row));
        let undo = std::mem::take(&mut self.transaction);
        self.history.push_back((now, undo));
    }

    fn roll_back(&mut self, undo: Vec<Undo>) {
        for old in undo.into_iter().rev() {
            match old {
                Undo::Shard(key, value) => self.set_shard(key, value),
                Undo::Batch(key, value) => self.set_batch(key, value),
                Undo::Run(key, value) => self.set_run(key, value),
                Undo::Journal(key, value) => self.set_journal(key, value),
                Undo::Pending(key, value) => self.set_pending(key, value),
            }
        }
        self.transaction.clear();
    }

    fn set_shard(&mut self, key: ShardId, value: Option<ShardRow>) {
        let owner = |row: &Option<ShardRow>| row.as_ref().map(|row| (row.node_id, row.epoch));
        let new = owner(&value);
        let old = put(&mut self.shards, key, value);
        if let Some((node_id, epoch)) = new
            && new != owner(&old)
        {
            self.owners.push(Ownership { since: self.now, shard_id: key, node_id, epoch });
        }
        self.transaction.push(Undo::Shard(key, old));
    }

    fn set_batch(&mut self, key: (ShardId, u64), value: Option<BatchRow>) {
        let old = put(&mut self.batches, key, value);
        self.transaction.push(Undo::Batch(key, old));
    }

    fn set_journal(&mut self, key: (RunId, u32), value: Option<Bytes>) {
        let old = put(&mut self.journal, key, value);
        self.transaction.push(Undo::Journal(key, old));
    }

    fn set_pending(&mut self, key: (RunId, u32), value: Option<Bytes>) {
        let old = put(&mut self.pending, key, value);
        self.transaction.push(Undo::Pending(key, old));
    }

    fn set_run(&mut self, run_id: RunId, value: Option<Arc<RunRow>>) {
        let slot = slot_column(run_id);
        if let Some(old) = self.runs.get(&run_id).cloned() {
            let key = (old.namespace_id, old.workflow_id.clone());
            if old.closed_at.is_some() {
                self.closed.remove(&(key.0, key.1, run_id));
            } else if self.open.get(&key) == Some(&run_id) {
                self.open.remove(&key);
            }
            if let Some(wake_at) = old.wake_at.to_column() {
                self.wake.remove(&(slot, wake_at, run_id));
            }
            self.listed.remove(&(old.namespace_id, old.started_at, run_id));
        }
        if let Some(new) = &value {
            let key = (new.namespace_id, new.workflow_id.clone());
            if new.closed_at.is_some() {
                self.closed.insert((key.0, key.1, run_id));
            } else {
                self.open.insert(key, run_id);
            }
            if let Some(wake_at) = new.wake_at.to_column() {
                self.wake.insert((slot, wake_at, run_id));
            }
            self.listed.insert((new.namespace_id, new.started_at, run_id));
        }
        let old = put(&mut self.runs, run_id, value);
        self.transaction.push(Undo::Run(run_id, old));
    }

    fn newest_batch(&self, shard_id: ShardId) -> (u64, Option<CommitId>) {
        self.batches
            .range((shard_id, 0)..=(shard_id, u64::MAX))
            .next_back()
            .map_or((0, None), |((_, commit_seq), row)| (*commit_seq, Some(row.commit_id)))
    }

    /// The number of the batch `commit_id`, if it is in and written under `epoch` when one is given.
    fn find_batch(
        &self,
        shard_id: ShardId,
        commit_id: CommitId,
        epoch: Option<u64>,
    ) -> Option<u64> {
        self.batches
            .range((shard_id, 0)..=(shard_id, u64::MAX))
            .rev()
            .find(|(_, row)| {
                row.commit_id == commit_id && epoch.is_none_or(|epoch| row.epoch == epoch)
            })
            .map(|((_, commit_seq), _)| *commit_seq)
    }

    fn shards(&mut self, default_count: u16, now: Timestamp) -> Shards {
        if self.shards.is_empty() {
            for row in even_shards(default_count) {
                let first = BatchRow { commit_id: CommitId(Uuid::nil()), epoch: 0 };
                self.set_batch((row.shard_id, 0), Some(first));
                self.set_shard(row.shard_id, Some(row));
            }
        }
        Shards { rows: self.shards.values().cloned().collect(), now }
    }

    fn take(&mut self, take: &Take, now: Timestamp) -> Taken {
        let shard_id = take.watched.shard_id;
        let Some(row) = self.shards.get(&shard_id).cloned() else { return Taken::Changed };
        let epoch = take.watched.epoch + 1;
        if row != take.watched {
            let own = row.epoch == epoch && row.node_id == Some(take.node_id);
            return match self.find_batch(shard_id, take.commit_id, Some(epoch)) {
                Some(commit_seq) if own => Taken::Owned { epoch, commit_seq, now },
                _ => Taken::Changed,
            };
        }
        let commit_seq = self.newest_batch(shard_id).0 + 1;
        self.set_batch((shard_id, commit_seq), Some(BatchRow { commit_id: take.commit_id, epoch }));
        let taken = ShardRow {
            node_id: Some(take.node_id),
            address: take.address.clone(),
            epoch,
            lease_until: Some(now.plus_micros(take.lease_us)),
            ..row
        };
        self.set_shard(shard_id, Some(taken));
        Taken::Owned { epoch, commit_seq, now }
    }

    fn commit(&mut self, batch: &Batch, now: Timestamp) -> Result<Committed> {
        let Some(shard) = self.shards.get(&batch.shard_id).cloned() else {
            return Ok(Committed::Fenced);
        };
        let newest = self.newest_batch(batch.shard_id);
        let commit_seq =
            if SeededBug::CommitWithoutFence.is_on() { newest.0 + 1 } else { batch.commit_seq };
        let follows = newest == (batch.commit_seq.wrapping_sub(1), Some(batch.previous));
        let is_owned = shard.epoch == batch.epoch && follows;
        if !is_owned && !SeededBug::CommitWithoutFence.is_on() {
            return Ok(Committed::Fenced);
        }
        batch.check_text()?;
        let row = BatchRow { commit_id: batch.commit_id, epoch: batch.epoch };
        self.set_batch((batch.shard_id, commit_seq), Some(row));
        if let Some(lease_us) = batch.renew_lease_us {
            let lease_until = Some(now.plus_micros(lease_us));
            self.set_shard(batch.shard_id, Some(ShardRow { lease_until, ..shard }));
        }
        for update in &batch.run_updates {
            let Some(row) = self.runs.get(&update.run_id) else { continue };
            let mut row = RunRow::clone(row);
            row.wake_at = update.wake_at.stored();
            row.history = update.history;
            if let Some(close) = &update.close {
                row.status = close.status;
                row.closed_at = Some(close.closed_at);
                row.requests = close.requests.clone();
            }
            self.set_run(update.run_id, Some(Arc::new(row)));
        }
        for new in &batch.new_runs {
            let key = (new.namespace_id, new.workflow_id.clone());
            if self.runs.contains_key(&new.run_id) {
                return Err(Error::Refused(format!("run {} exists", new.run_id)));
            }
            if new.closed_at.is_none() && self.open.contains_key(&key) {
                let message = format!("workflow id of run {} has an open run", new.run_id);
                return Err(Error::Refused(message));
            }
            let row = RunRow { wake_at: new.wake_at.stored(), ..new.clone() };
            self.set_run(new.run_id, Some(Arc::new(row)));
        }
        for insert in &batch.journal {
            let key = (insert.run_id, insert.seq);
            if self.journal.contains_key(&key) {
                let message = format!("journal row {} of run {} exists", insert.seq, insert.run_id);
                return Err(Error::Refused(message));
            }
            self.set_journal(key, Some(insert.records.clone()));
        }
        for write in &batch.pending {
            self.set_pending((write.run_id, write.number), write.data.clone());
        }
        Ok(Committed::Committed { now })
    }

    fn resolve(&mut self, resolve: &Resolve, now: Timestamp) -> Resolved {
        let shard_id = resolve.shard_id;
        let Some(row) = self.shards.get(&shard_id).cloned() else { return Resolved::Fenced };
        let landed = self.find_batch(shard_id, resolve.commit_id, None).is_some();
        let epoch = resolve.epoch + 1;
        let own = row.node_id == Some(resolve.node_id);
        if row.epoch == resolve.epoch && own {
            let commit_seq = self.newest_batch(shard_id).0 + 1;
            let batch = BatchRow { commit_id: resolve.resolve_id, epoch };
            self.set_batch((shard_id, commit_seq), Some(batch));
            let lease_until = Some(now.plus_micros(resolve.lease_us));
            self.set_shard(shard_id, Some(ShardRow { epoch, lease_until, ..row }));
            return Resolved::Owned { epoch, commit_seq, landed, now };
        }
        let own = own && row.epoch == epoch;
        match self.find_batch(shard_id, resolve.resolve_id, Some(epoch)) {
            Some(commit_seq) if own => Resolved::Owned { epoch, commit_seq, landed, now },
            _ => Resolved::Fenced,
        }
    }

    fn renew(&mut self, renewals: &[Renewal], lease_us: i64, now: Timestamp) -> Renewed {
        let mut verdicts = Vec::new();
        for renewal in renewals {
            let Some(row) = self.shards.get(&renewal.shard_id).cloned() else { continue };
            let known = self.batches.get(&(renewal.shard_id, renewal.commit_seq));
            let verdict = if row.epoch != renewal.epoch {
                Verdict::Fenced
            } else if known.is_none_or(|batch| batch.commit_id != renewal.commit_id) {
                Verdict::Rewound
            } else {
                let lease_until = Some(now.plus_micros(lease_us));
                self.set_shard(renewal.shard_id, Some(ShardRow { lease_until, ..row }));
                Verdict::Kept
            };
            verdicts.push((renewal.shard_id, verdict));
        }
        Renewed { now, verdicts }
    }

    fn release(&mut self, shard_id: ShardId, node_id: NodeId, epoch: u64) {
        let Some(row) = self.shards.get(&shard_id).cloned() else { return };
        if row.epoch == epoch && row.node_id == Some(node_id) {
            let address = String::new();
            let row = ShardRow { node_id: None, address, lease_until: None, ..row };
            self.set_shard(shard_id, Some(row));
        }
    }

    fn prune(&mut self, shard_id: ShardId, keep: u32, limit: u32) -> u64 {
        let (newest, _) = self.newest_batch(shard_id);
        let Some(last) = newest.checked_sub(u64::from(keep)) else { return 0 };
        let old: Vec<_> = self
            .batches
            .range((shard_id, 0)..=(shard_id, last))
            .take(limit as usize)
            .map(|(key, _)| *key)
            .collect();
        for key in &old {
            self.set_batch(*key, None);
        }
        old.len() as u64
    }

    fn check_page(&self, run_id: RunId) -> Result<()> {
        if self.damaged.contains(&run_id) {
            return Err(Error::Corrupt(format!("the page of run {run_id} is damaged")));
        }
        Ok(())
    }

    pub(super) fn find_newest_runs(
        &self,
        ids: &[(NamespaceId, String)],
    ) -> Result<Vec<Option<NewestRun>>> {
        let find = |(namespace_id, workflow_id): &(NamespaceId, String)| {
            let key = (*namespace_id, workflow_id.clone());
            let closed = || {
                let first = (key.0, key.1.clone(), RunId::from_uuid(Uuid::nil()));
                let last = (key.0, key.1.clone(), RunId::from_uuid(Uuid::max()));
                self.closed.range(first..=last).next_back().map(|(_, _, run_id)| *run_id)
            };
            let Some(run_id) = self.open.get(&key).copied().or_else(closed) else {
                return Ok(None);
            };
            self.check_page(run_id)?;
            Ok(self.runs.get(&run_id).map(|row| NewestRun {
                run_id,
                status: Some(row.status),
                requests: row.requests.clone(),
            }))
        };
        ids.iter().map(find).collect()
    }

    pub(super) fn read_run(&self, run_id: RunId) -> Option<RunRow> {
        self.runs.get(&run_id).map(|row| RunRow::clone(row))
    }

    pub(super) fn load_runs(&self, run_ids: &[RunId], most_bytes: u32) -> Result<Vec<Loaded>> {
        let mut loaded = Vec::new();
        let mut bytes = 0;
        for run_id in run_ids {
            if !loaded.is_empty() && bytes >= most_bytes as usize {
                break;
            }
            self.check_page(*run_id)?;
            let rows = (*run_id, 0)..=(*run_id, u32::MAX);
            let journal = self.journal.range(rows.clone());
            let journal = journal.map(|((_, seq), records)| (*seq, records.clone()));
            bytes += journal.clone().map(|(_, records)| records.len()).sum::<usize>();
            let pending = self.pending.range(rows);
            let pending = pending.map(|((_, number), data)| (*number, data.clone())).collect();
            loaded.push(row::loaded_run(self.read_run(*run_id), journal, pending));
        }
        Ok(loaded)
    }

    pub(super) fn read_journal(
        &self,
        run_id: RunId,
        from_seq: u32,
        max_bytes: u32,
    ) -> Result<JournalPage> {
        self.check_page(run_id)?;
        let rows = self.journal.range((run_id, from_seq)..=(run_id, u32::MAX));
        let rows = rows.map(|((_, seq), records)| (*seq, records.clone()));
        Ok(super::super::journal_page(rows, max_bytes))
    }

    pub(super) fn hot_runs(&self, slots: std::ops::Range<u16>, after: Option<RunId>) -> Vec<RunId> {
        let mut hot: Vec<_> = slots
            .filter(|slot| *slot < SLOTS)
            .flat_map(|slot| {
                let slot = slot as i16;
                let first = (slot, i64::MIN, RunId::from_uuid(Uuid::nil()));
                let end = (slot, i64::MIN + 1, RunId::from_uuid(Uuid::nil()));
                self.wake.range(first..end).map(|(_, _, run_id)| *run_id)
            })
            .filter(|run_id| after.is_none_or(|after| by_slot(run_id) > by_slot(&after)))
            .collect();
        hot.sort_unstable_by_key(by_slot);
        hot
    }

    pub(super) fn due_runs(
        &self,
        slots: std::ops::Range<u16>,
        after: DueRun,
        horizon: Timestamp,
        limit_per_slot: u32,
    ) -> Vec<DueRun> {
        // The smallest value marks hot runs.
        let after = after.max(DueRun::from(Timestamp::from_micros(i64::MIN + 1)));
        let (from, horizon) = (after.wake_at.as_micros(), horizon.as_micros());
        slots
            .filter(|_| from <= horizon)
            .flat_map(|slot| {
                let first = (slot as i16, from, after.run_id);
                let last = (slot as i16, horizon, RunId::from_uuid(Uuid::max()));
                let range = (Bound::Excluded(first), Bound::Included(last));
                self.wake.range(range).take(limit_per_slot as usize)
            })
            .map(|(_, wake_at, run_id)| DueRun {
                wake_at: Timestamp::from_micros(*wake_at),
                run_id: *run_id,
            })
            .collect()
    }

    pub(super) fn list_runs(&self, list: &ListRuns) -> Vec<RunRow> {
        let namespace_id = list.namespace_id;
        let first = (namespace_id, Timestamp::MIN, RunId::from_uuid(Uuid::nil()));
        let last = (namespace_id, Timestamp::MAX, RunId::from_uuid(Uuid::max()));
        let end = list.before.map_or(Bound::Included(last), |(started_at, run_id)| {
            Bound::Excluded((namespace_id, started_at, run_id))
        });
        if matches!(&end, Bound::Excluded(end) if *end <= first) {
            return Vec::new();
        }
        self.listed
            .range((Bound::Included(first), end))
            .rev()
            .filter_map(|(_, _, run_id)| self.runs.get(run_id))
            .filter(|row| list.status.is_none_or(|status| row.status == status))
            .take(list.limit as usize)
            .map(|row| RunRow::clone(row))
            .collect()
    }
}
