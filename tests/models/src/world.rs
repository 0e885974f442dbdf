//! Two nodes, one database, what can go wrong between them, and what must hold all the same.

use crate::{
    database::{
        Batch, Database, Id, Release, Renewal, Resolve, Resolved, Take, Taken, Tick, Verdict,
    },
    faults::Faults,
    node::{Lane, Node, Task, Writing},
    search::{Model, Note},
};

/// O1: along the batches of a shard the epoch never falls, and each epoch has one writer.
pub const EPOCHS: &str = "one writer an epoch, and epochs never fall";
/// H4: batches are numbered without a gap.
pub const NO_GAP: &str = "batches have no gap";
/// D1: who was told that a write is durable finds it in the database, unless a failover lost it.
pub const ACKED: &str = "what is acked is in the database";
/// D5: of a workflow id at most one run is open, and only an open one closes.
pub const ONE_RUN: &str = "one open run";
/// A batch of which a resolve has said that it is not in cannot land, unless a failover lost the
/// resolve.
pub const NO_GHOST: &str = "no batch lands after its resolve";
/// Whoever may answer owns the shard, and says what the database holds; but for a lane of which a
/// failover has lost something, until it notices.
pub const ANSWERS: &str = "only the owner answers, and what is true";

pub const TOOK_OVER: &str = "a shard was taken from an owner that was silent for a lease";
pub const TOOK_RELEASED: &str = "a released shard was taken";
pub const GHOST_FENCED: &str = "a batch came after its resolve and was fenced";
pub const LANDED: &str = "a batch of unknown outcome turned out to be in";
pub const NOT_LANDED: &str = "a batch of unknown outcome turned out not to be in";
pub const RESOLVED_TWICE: &str = "a resolve was asked again after it had been carried out";
pub const OWNER_FENCED: &str = "an owner learnt from its batch that it was one no more";
pub const REWIND_NOTICED: &str = "a lane noticed that the database had lost its newest batch";
pub const CAME_BACK: &str = "an owner whose lease had run out went on";
pub const READ_AGAIN: &str = "what was read did not count, as the lease had run out meanwhile";
pub const WITHHELD: &str = "an answer waited for the lease";

/// How much may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Seconds.
    pub ticks: u8,
    /// Changes that clients ask for, of both nodes together.
    pub changes: u8,
    /// Replies that are waited for in vain.
    pub give_ups: u8,
    /// Processes that are killed and begin again.
    pub restarts: u8,
    /// Processes that give their shard back and begin again.
    pub drains: u8,
    /// Failovers that lose transactions.
    pub rewinds: u8,
}

/// The model.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    pub bounds: Bounds,
    pub faults: Faults,
    /// Look at this property alone.
    pub only: Option<&'static str>,
}

/// A request whose sender waits for it no more. It arrives at any later time, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Ghost {
    Commit(Batch),
    Resolve(Resolve),
    Take(Take),
    Renew(Renewal),
    Release(Release),
}

/// All that there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    now: Tick,
    nodes: Vec<Node>,
    database: Database,
    /// Sorted.
    ghosts: Vec<Ghost>,
    /// Batches that a resolve, named beside, has said not to be in.
    denied: Vec<(Id, Id)>,
    /// What may still happen.
    left: Bounds,
    processes: u8,
}

/// Node numbers are places in `World::nodes`.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    /// Time passes, for all. A node that does nothing meanwhile is one that is paused.
    Tick,
    /// A node looks at the shard's row, and asks for the shard if it may.
    Look(usize),
    /// The database gets its lane's question for the workflow id's newest run.
    Read(usize),
    /// It gets what it has read.
    AnswerRead(usize),
    /// Its lane decides something for a client.
    Change(usize),
    /// It asks to renew its lease.
    Renew(usize),
    /// The database gets what a node asks for the shard or for its batch.
    Arrive(usize),
    /// The node gets the answer.
    Answer(usize),
    /// The same for a renewal.
    ArriveRenewal(usize),
    AnswerRenewal(usize),
    /// The node's connection breaks: its request may still arrive, an answer will not.
    GiveUp(usize),
    /// A request arrives whose connection broke.
    ArriveLate(usize),
    /// The process is killed.
    Restart(usize),
    /// The process gives its shard back and ends.
    Drain(usize),
    /// The newest transactions are lost.
    Rewind(usize),
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn start(&self) -> World {
        let mut world = World {
            now: 0,
            nodes: vec![Node::new(0), Node::new(1)],
            database: Database::new(self.bounds.rewinds > 0),
            ghosts: Vec::new(),
            denied: Vec::new(),
            left: self.bounds,
            processes: 2,
        };
        // The nodes are alike: the first one comes first.
        for action in [Action::Look(0), Action::Arrive(0), Action::Answer(0)] {
            self.step(&mut world, action, &mut Vec::new());
        }
        world
    }

    fn actions(&self, world: &World) -> Vec<Action> {
        let World { now, left, .. } = *world;
        let mut actions = Vec::new();
        let mut may = |is_possible: bool, action| actions.extend(is_possible.then_some(action));
        may(left.ticks > 0, Action::Tick);
        for (n, node) in world.nodes.iter().enumerate() {
            let (asks, has_answer) = node.call();
            may(asks && !has_answer, Action::Arrive(n));
            may(asks && has_answer, Action::Answer(n));
            may(asks && left.give_ups > 0, Action::GiveUp(n));
            may(left.restarts > 0, Action::Restart(n));
            match &node.task {
                Task::Watching(_) => may(true, Action::Look(n)),
                Task::Taking(..) => {}
                Task::Serving(lane) => {
                    // A lane asks under its lease, but the question may arrive after that.
                    let (to_read, reads) = lane.reads();
                    may(to_read, Action::Read(n));
                    may(reads, Action::AnswerRead(n));
                    may(left.changes > 0 && lane.takes_changes(), Action::Change(n));
                    may(lane.is_to_renew(now), Action::Renew(n));
                    let answered = lane.renewing.map(|call| call.answer.is_some());
                    may(answered == Some(false), Action::ArriveRenewal(n));
                    may(answered == Some(true), Action::AnswerRenewal(n));
                    may(left.drains > 0 && lane.is_durable(), Action::Drain(n));
                }
            }
        }
        for (n, ghost) in world.ghosts.iter().enumerate() {
            may(n == 0 || world.ghosts[n - 1] != *ghost, Action::ArriveLate(n));
        }
        if left.rewinds > 0 {
            actions.extend((1..=world.database.past()).map(Action::Rewind));
        }
        actions
    }

    fn step(&self, world: &mut World, action: Action, notes: &mut Vec<Note>) {
        let now = world.now;
        match action {
            Action::Tick => {
                world.left.ticks -= 1;
                world.now += 1;
                world.nodes.iter_mut().for_each(|node| node.age(now + 1));
            }
            Action::Look(n) => world.nodes[n].look(now, world.database.row, self.faults),
            Action::Read(n) => {
                let is_open = world.database.open_runs().map(|open| open > 0);
                world.nodes[n].read(is_open);
            }
            Action::AnswerRead(n) => {
                let came_back = world.nodes[n].reads_over_a_gap();
                world.nodes[n].on_read(now, self.faults);
                notes.extend(came_back.then_some(Note::Saw(READ_AGAIN)));
            }
            Action::Change(n) => {
                world.left.changes -= 1;
                let acked = world.nodes[n].change(now, self.faults);
                self.ack(world, n, acked.as_slice(), notes);
            }
            Action::Renew(n) => world.nodes[n].renew(now),
            Action::Arrive(n) => self.arrive(world, n, notes),
            Action::Answer(n) => self.answer(world, n, notes),
            Action::ArriveRenewal(n) => {
                if let Task::Serving(Lane { renewing: Some(call), .. }) = &mut world.nodes[n].task {
                    call.answer = Some(world.database.renew(now, &call.request));
                }
            }
            Action::AnswerRenewal(n) => {
                let before = world.nodes[n].clone();
                let acked = world.nodes[n].on_renewed(now, self.faults);
                self.ack(world, n, &acked, notes);
                notes.extend(note_renewal(&before, &world.nodes[n], now).map(Note::Saw));
            }
            Action::GiveUp(n) => {
                world.left.give_ups -= 1;
                let before = world.nodes[n].clone();
                world.haunt(before.ghost());
                world.nodes[n].give_up(now, self.faults);
                world.leave_behind(&before, n);
            }
            Action::ArriveLate(n) => {
                let ghost = world.ghosts.remove(n);
                self.arrive_late(world, ghost, notes);
            }
            Action::Restart(n) => {
                world.left.restarts -= 1;
                world.begin_anew(n);
            }
            Action::Drain(n) => {
                world.left.drains -= 1;
                // `Store::release`: whether it arrives does not matter to a process that ends.
                let (node, lane) = (world.nodes[n].id, world.nodes[n].lane());
                let release = lane.map(|lane| Release { node, epoch: lane.owned.epoch });
                world.haunt(release.map(Ghost::Release));
                world.begin_anew(n);
            }
            Action::Rewind(count) => {
                world.left.rewinds -= 1;
                world.rewind(count);
            }
        }
        self.judge(world, notes);
        if !self.faults.commit_without_epoch {
            world.lay_ghosts();
        }
    }
}

impl Protocol {
    /// A node's request reaches the database.
    fn arrive(&self, world: &mut World, n: usize, notes: &mut Vec<Note>) {
        let (now, database) = (world.now, &mut world.database);
        match &mut world.nodes[n].task {
            Task::Taking(call, _) => {
                let before = database.row;
                let taken = database.take(now, &call.request, self.faults);
                if let Taken::Owned(_) = taken {
                    let released = before.lease_until.is_none() && before.epoch > 0;
                    let others = before.node.is_some_and(|node| node != call.request.node);
                    let silent = others && before != database.row;
                    notes.extend(released.then_some(Note::Saw(TOOK_RELEASED)));
                    notes.extend(silent.then_some(Note::Saw(TOOK_OVER)));
                }
                call.answer = Some(taken);
            }
            Task::Serving(Lane { writing: Some(Writing::Committing(call)), .. }) => {
                call.answer = Some(database.commit(now, &call.request, self.faults));
            }
            Task::Serving(Lane { writing: Some(Writing::Resolving(_, call)), .. }) => {
                if database.find(call.request.id).is_some() {
                    notes.push(Note::Saw(RESOLVED_TWICE));
                }
                let resolved = database.resolve(now, &call.request, self.faults);
                call.answer = Some(resolved);
                let request = call.request;
                world.deny(request, resolved);
            }
            Task::Watching(_) | Task::Serving(_) => {}
        }
    }

    /// The same for a request whose sender does not wait any more.
    fn arrive_late(&self, world: &mut World, ghost: Ghost, notes: &mut Vec<Note>) {
        let (now, database) = (world.now, &mut world.database);
        match ghost {
            Ghost::Commit(batch) => {
                let landed = database.commit(now, &batch, self.faults);
                let denied = world.denied.iter().any(|(denied, _)| *denied == batch.id);
                notes.extend((denied && !landed).then_some(Note::Saw(GHOST_FENCED)));
            }
            Ghost::Resolve(resolve) => {
                let resolved = database.resolve(now, &resolve, self.faults);
                world.deny(resolve, resolved);
            }
            Ghost::Take(take) => {
                database.take(now, &take, self.faults);
            }
            Ghost::Renew(renewal) => {
                database.renew(now, &renewal);
            }
            Ghost::Release(release) => database.release(&release, self.faults),
        }
    }

    /// A node gets an answer.
    fn answer(&self, world: &mut World, n: usize, notes: &mut Vec<Note>) {
        let now = world.now;
        let before = world.nodes[n].clone();
        match &before.task {
            Task::Watching(_) => {}
            Task::Taking(..) => world.nodes[n].on_taken(now, self.faults),
            Task::Serving(lane) => {
                match lane.writing {
                    Some(Writing::Committing(call)) if call.answer == Some(false) => {
                        let is_ours = call.request.epoch == world.database.row.epoch;
                        notes.push(Note::Saw(if is_ours { REWIND_NOTICED } else { OWNER_FENCED }));
                    }
                    Some(Writing::Resolving(_, call)) => match call.answer {
                        Some(Resolved::Owned { landed: true, .. }) => notes.push(Note::Saw(LANDED)),
                        Some(Resolved::Owned { .. }) => notes.push(Note::Saw(NOT_LANDED)),
                        Some(Resolved::Fenced) | None => {}
                    },
                    Some(Writing::Committing(_)) | None => {}
                }
                let acked = world.nodes[n].on_written(now, self.faults);
                self.ack(world, n, &acked, notes);
                let withholds = world.nodes[n].lane().is_some_and(Lane::withholds);
                notes.extend(withholds.then_some(Note::Saw(WITHHELD)));
                world.leave_behind(&before, n);
            }
        }
    }

    /// Clients are told. What is in the database leaves it by a rewind only, so now is the time to
    /// look.
    fn ack(&self, world: &World, n: usize, acked: &[Id], notes: &mut Vec<Note>) {
        let is_lost = |id: &Id| world.database.find(*id).is_none() && !world.nodes[n].rewound;
        self.must(ACKED, !acked.iter().any(is_lost), notes);
    }

    /// What holds of every state.
    fn judge(&self, world: &World, notes: &mut Vec<Note>) {
        let batches = &world.database.batches;
        let mut pairs = batches.windows(2).map(|pair| (pair[0], pair[1]));
        let one_writer = pairs.all(|(before, after)| {
            before.epoch < after.epoch
                || before.epoch == after.epoch && before.id.writer == after.id.writer
        });
        self.must(EPOCHS, one_writer, notes);
        self.must(NO_GAP, batches.windows(2).all(|pair| pair[0].seq + 1 == pair[1].seq), notes);
        let open = world.database.open_runs();
        self.must(ONE_RUN, open.is_some_and(|open| open <= 1), notes);
        let ghost = world.denied.iter().any(|(batch, _)| world.database.find(*batch).is_some());
        self.must(NO_GHOST, !ghost, notes);
        for node in &world.nodes {
            let Some(lane) = node.lane() else { continue };
            if lane.is_serving(world.now) && !node.rewound {
                let knows = lane.memory.filter(|_| lane.is_durable());
                let is_true = knows.is_none_or(|is_open| open == Some(u8::from(is_open)));
                let is_owner = world.database.row.node == Some(node.id);
                self.must(ANSWERS, is_owner && is_true, notes);
            }
        }
    }

    fn must(&self, property: &'static str, holds: bool, notes: &mut Vec<Note>) {
        if !holds && self.only.is_none_or(|only| only == property) {
            notes.push(Note::Broke(property));
        }
    }
}

impl World {
    /// A resolve was carried out.
    fn deny(&mut self, resolve: Resolve, resolved: Resolved) {
        let denial = (resolve.batch, resolve.id);
        if let Resolved::Owned { landed: false, .. } = resolved
            && !self.denied.contains(&denial)
        {
            self.denied.push(denial);
            self.denied.sort_unstable();
        }
    }

    /// A failover: to a replica that lacks the newest `count` transactions.
    fn rewind(&mut self, count: usize) {
        let had = self.database.batches.clone();
        let writers = self.database.rewind(count);
        for node in &mut self.nodes {
            let rests_on_some = match &node.task {
                Task::Watching(_) => false,
                Task::Taking(call, _) => call.answer.is_some(),
                Task::Serving(_) => true,
            };
            node.rewound |= rests_on_some && writers.contains(&node.id);
        }
        let lost = |id: Id| had.iter().any(|row| row.id == id) && self.database.find(id).is_none();
        self.denied.retain(|(_, resolve)| !lost(*resolve));
        if self.left.rewinds == 0 {
            self.database.forget_past();
        }
    }

    /// A new process in the place of one that has ended.
    fn begin_anew(&mut self, n: usize) {
        let before = std::mem::replace(&mut self.nodes[n], Node::new(self.processes));
        self.processes += 1;
        self.haunt(before.ghost());
        self.leave_behind(&before, n);
    }

    /// A renewal that is under way outlives its lane.
    fn leave_behind(&mut self, before: &Node, n: usize) {
        let renewing = before.lane().and_then(|lane| lane.renewing);
        let still = self.nodes[n].lane().and_then(|lane| lane.renewing);
        let left = renewing.filter(|call| call.answer.is_none() && still.is_none());
        self.haunt(left.map(|call| Ghost::Renew(call.request)));
    }

    /// Forgets what can come to nothing any more: an epoch that has passed comes back by a failover
    /// only.
    fn lay_ghosts(&mut self) {
        if self.left.rewinds == 0 && self.database.past() == 0 {
            let epoch = self.database.row.epoch;
            self.ghosts.retain(|ghost| ghost.epoch() >= epoch);
            let ghosts = &self.ghosts;
            self.denied.retain(|(denied, _)| {
                ghosts
                    .iter()
                    .any(|ghost| matches!(ghost, Ghost::Commit(batch) if batch.id == *denied))
            });
        }
    }

    fn haunt(&mut self, ghost: Option<Ghost>) {
        self.ghosts.extend(ghost);
        self.ghosts.sort_unstable();
    }
}

impl Ghost {
    /// The epoch under which alone it changes anything.
    fn epoch(&self) -> u8 {
        match self {
            Self::Commit(batch) => batch.epoch,
            Self::Resolve(resolve) => resolve.epoch,
            Self::Take(take) => take.watched.epoch,
            Self::Renew(renewal) => renewal.epoch,
            Self::Release(release) => release.epoch,
        }
    }
}

impl Node {
    /// Whether something was asked for the shard or for a batch, and whether it has an answer.
    fn call(&self) -> (bool, bool) {
        match &self.task {
            Task::Watching(_) | Task::Serving(Lane { writing: None, .. }) => (false, false),
            Task::Taking(call, _) => (true, call.answer.is_some()),
            Task::Serving(Lane { writing: Some(writing), .. }) => match writing {
                Writing::Committing(call) => (true, call.answer.is_some()),
                Writing::Resolving(_, call) => (true, call.answer.is_some()),
            },
        }
    }

    /// What becomes of the request when nobody waits for its answer any more.
    fn ghost(&self) -> Option<Ghost> {
        let (_, has_answer) = self.call();
        let ghost = match &self.task {
            Task::Taking(call, _) => Ghost::Take(call.request),
            Task::Serving(Lane { writing: Some(Writing::Committing(call)), .. }) => {
                Ghost::Commit(call.request)
            }
            Task::Serving(Lane { writing: Some(Writing::Resolving(_, call)), .. }) => {
                Ghost::Resolve(call.request)
            }
            Task::Watching(_) | Task::Serving(Lane { writing: None, .. }) => return None,
        };
        (!has_answer).then_some(ghost)
    }
}

/// What an answer to a renewal shows.
fn note_renewal(before: &Node, after: &Node, now: Tick) -> Option<&'static str> {
    let serves = |node: &Node| node.lane().is_some_and(|lane| lane.is_serving(now));
    match before.lane()?.renewing?.answer? {
        Verdict::Kept => (!serves(before) && serves(after)).then_some(CAME_BACK),
        Verdict::Rewound => after.lane().is_none().then_some(REWIND_NOTICED),
        Verdict::Fenced => None,
    }
}
