//! The tables `shard` and `batch`, and what each statement does to them.
//!
//! A statement that changes a shard locks the shard's row first, so each is one step here.

use crate::faults::Faults;

/// Seconds by every clock: they all run at the same speed.
pub type Tick = u8;

/// A process; `NodeId` in `server/src/store/mod.rs`. A restart draws a new one.
pub type Process = u8;

/// How long a lease lasts; `LEASE` in `server/src/shard/lane/commits.rs`.
pub const LEASE: Tick = 2;

/// Names a write: its writer, and the how manieth of that writer it is; `CommitId`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// Who drew it.
    pub writer: Process,
    /// The how manieth.
    pub number: u8,
}

/// The shard's row of table `shard`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardRow {
    /// The owner.
    pub node: Option<Process>,
    /// Raised by each change of the owner and by each resolve.
    pub epoch: u8,
    /// When the lease runs out; `None` once it was released.
    pub lease_until: Option<Tick>,
}

/// What a batch does to the one workflow id that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// A run starts.
    Start,
    /// The open run closes.
    Close,
}

/// A row of table `batch`, and what its batch changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchRow {
    /// `commit_seq`.
    pub seq: u8,
    /// `commit_id`.
    pub id: Id,
    /// The writer's epoch.
    pub epoch: u8,
    /// `None` for a takeover or a resolve.
    pub change: Option<Change>,
}

/// `Batch` in `server/src/store/mod.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Batch {
    pub epoch: u8,
    pub seq: u8,
    pub id: Id,
    pub previous: Id,
    pub renews: bool,
    pub change: Change,
}

/// `Resolve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resolve {
    pub node: Process,
    pub epoch: u8,
    pub batch: Id,
    pub id: Id,
}

/// `Take`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Take {
    pub watched: ShardRow,
    pub node: Process,
    pub id: Id,
}

/// `Renewal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Renewal {
    pub node: Process,
    pub epoch: u8,
    pub seq: u8,
    pub id: Id,
}

/// What `Store::release` is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release {
    pub node: Process,
    pub epoch: u8,
}

/// The newest batch of an owner; `Owned` in `server/src/shard/lane/mod.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owned {
    pub epoch: u8,
    pub seq: u8,
    pub id: Id,
}

/// `Resolved`. The id in `owned` is the resolve's own, so the real answer leaves it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolved {
    Owned { owned: Owned, landed: bool },
    Fenced,
}

/// `Taken`. The id is the take's own, as above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Taken {
    Owned(Owned),
    Changed,
}

/// `Verdict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    Kept,
    Fenced,
    Rewound,
}

/// What a transaction found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Past {
    row: ShardRow,
    batches: usize,
    writer: Process,
}

/// Both tables.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Database {
    pub row: ShardRow,
    /// By `commit_seq`.
    pub batches: Vec<BatchRow>,
    /// All transactions, oldest first, while they can still be lost.
    past: Option<Vec<Past>>,
}

impl Database {
    /// `server/src/store/postgres/insert_shards.sql`. Transactions are remembered if they may be
    /// lost.
    pub fn new(can_be_rewound: bool) -> Self {
        let nobody = Id { writer: Process::MAX, number: 0 };
        Self {
            row: ShardRow { node: None, epoch: 0, lease_until: None },
            batches: vec![BatchRow { seq: 0, id: nobody, epoch: 0, change: None }],
            past: can_be_rewound.then(Vec::new),
        }
    }

    /// `server/src/store/postgres/commit.sql`: false means fenced.
    pub fn commit(&mut self, now: Tick, batch: &Batch, faults: Faults) -> bool {
        // fence
        if self.row.epoch != batch.epoch && !faults.commit_without_epoch {
            return false;
        }
        // entry: the batch before, and the primary key.
        let is_next =
            self.at(batch.seq.wrapping_sub(1)).is_some_and(|row| row.id == batch.previous);
        if !is_next && !faults.commit_without_previous || self.at(batch.seq).is_some() {
            return false;
        }
        self.begin(batch.id.writer);
        let Batch { seq, id, epoch, change, .. } = *batch;
        self.batches.push(BatchRow { seq, id, epoch, change: Some(change) });
        // lease
        if batch.renews {
            self.row.lease_until = Some(now + LEASE);
        }
        true
    }

    /// `resolve` in `server/src/store/postgres/owner.rs`.
    pub fn resolve(&mut self, now: Tick, resolve: &Resolve, faults: Faults) -> Resolved {
        let landed = self.find(resolve.batch).is_some();
        let epoch = resolve.epoch + 1;
        let is_own = self.row.node == Some(resolve.node);
        if self.row.epoch != resolve.epoch || !is_own && !faults.resolve_of_any_owner {
            return match self.find(resolve.id) {
                Some(row) if self.row.epoch == epoch && is_own => {
                    Resolved::Owned { owned: Owned { epoch, seq: row.seq, id: row.id }, landed }
                }
                _ => Resolved::Fenced,
            };
        }
        if faults.resolve_only_reads {
            return Resolved::Owned { owned: self.owned(), landed };
        }
        self.change_owner(now, self.row.node, epoch, resolve.id, faults);
        Resolved::Owned { owned: self.owned(), landed }
    }

    /// `take` in `server/src/store/postgres/owner.rs`.
    pub fn take(&mut self, now: Tick, take: &Take, faults: Faults) -> Taken {
        let epoch = take.watched.epoch + 1;
        if self.row != take.watched {
            let is_own = self.row.node == Some(take.node);
            return match self.find(take.id) {
                Some(row) if self.row.epoch == epoch && is_own => {
                    Taken::Owned(Owned { epoch, seq: row.seq, id: row.id })
                }
                _ => Taken::Changed,
            };
        }
        self.change_owner(now, Some(take.node), epoch, take.id, faults);
        Taken::Owned(self.owned())
    }

    /// `server/src/store/postgres/change_owner.sql`.
    fn change_owner(
        &mut self,
        now: Tick,
        node: Option<Process>,
        epoch: u8,
        id: Id,
        faults: Faults,
    ) {
        self.begin(id.writer);
        if !faults.owner_change_without_batch_row {
            let seq = self.newest().seq + 1;
            self.batches.push(BatchRow { seq, id, epoch, change: None });
        }
        self.row = ShardRow { node, epoch, lease_until: Some(now + LEASE) };
    }

    /// `server/src/store/postgres/renew.sql`.
    pub fn renew(&mut self, now: Tick, renewal: &Renewal) -> Verdict {
        if self.row.epoch != renewal.epoch {
            Verdict::Fenced
        } else if self.at(renewal.seq).is_none_or(|row| row.id != renewal.id) {
            Verdict::Rewound
        } else {
            self.begin(renewal.node);
            self.row.lease_until = Some(now + LEASE);
            Verdict::Kept
        }
    }

    /// `release` in `server/src/store/postgres/mod.rs`.
    pub fn release(&mut self, release: &Release, faults: Faults) {
        let is_own = self.row.node == Some(release.node) || faults.release_of_any_owner;
        if self.row.epoch == release.epoch && is_own {
            self.begin(release.node);
            self.row = ShardRow { node: None, lease_until: None, ..self.row };
        }
    }

    /// Loses the newest `count` transactions, like a failover to a replica that lagged; tells
    /// whose.
    pub fn rewind(&mut self, count: usize) -> Vec<Process> {
        let Some(past) = self.past.as_mut() else { return Vec::new() };
        let lost = past.split_off(past.len() - count);
        self.row = lost[0].row;
        self.batches.truncate(lost[0].batches);
        lost.into_iter().map(|past| past.writer).collect()
    }

    /// Nothing can be lost any more.
    pub fn forget_past(&mut self) {
        self.past = None;
    }

    /// How many transactions can be lost.
    pub fn past(&self) -> usize {
        self.past.as_ref().map_or(0, Vec::len)
    }

    /// How many runs of the workflow id are open, and whether none was closed that was not.
    pub fn open_runs(&self) -> Option<u8> {
        self.batches.iter().try_fold(0_u8, |open, row| match row.change {
            Some(Change::Start) => Some(open + 1),
            Some(Change::Close) => open.checked_sub(1),
            None => Some(open),
        })
    }

    /// Where a batch is, if it is in.
    pub fn find(&self, id: Id) -> Option<&BatchRow> {
        self.batches.iter().find(|row| row.id == id)
    }

    /// The newest batch.
    pub fn newest(&self) -> &BatchRow {
        self.batches.last().expect("a shard is made with row 0")
    }

    fn owned(&self) -> Owned {
        let BatchRow { seq, id, .. } = *self.newest();
        Owned { epoch: self.row.epoch, seq, id }
    }

    fn at(&self, seq: u8) -> Option<&BatchRow> {
        self.batches.iter().find(|row| row.seq == seq)
    }

    fn begin(&mut self, writer: Process) {
        let (row, batches) = (self.row, self.batches.len());
        if let Some(past) = &mut self.past {
            past.push(Past { row, batches, writer });
        }
    }
}
