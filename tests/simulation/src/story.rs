//! Stories: what is run in a world, and what may befall it.

use std::{collections::BTreeSet, time::Duration};

use onward_programs::{Finish, Program};

use crate::diary::chance;

/// What may befall a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// A database call is refused.
    Refuse,
    /// A database call never arrives, and nobody knows.
    LoseRequest,
    /// A database call is carried out, and nobody knows.
    LoseReply,
    /// A database call arrives long after its connection broke.
    Ghost,
    /// Somebody takes a shard and gives it up again.
    Steal,
    /// Database calls are slow for a while.
    SlowStore,
    /// All database calls fail for a while.
    Outage,
    /// The database takes no writes for a while.
    ReadOnly,
    /// A server process is killed, and another begins.
    CrashHost,
    /// A server process stands still for a while, maybe past its lease.
    FreezeHost,
    /// A worker process is killed, and another begins.
    CrashWorker,
    /// A connection breaks.
    BreakLink,
    /// Nothing comes through a connection, in one direction or both.
    StallLink,
    /// The database's clock steps.
    StepClock,
    /// The database loses its newest commits.
    Rewind,
    /// A server loses the database for a while, and its clients do not lose the server.
    CutHost,
    /// A worker process reaches no server for a while.
    CutWorker,
    /// The database answers no reads for a while.
    Unreadable,
    /// All servers and workers are killed at once, and the database takes its time to come back.
    PowerCut,
}

impl Trouble {
    /// Those that were there from the beginning.
    pub const ALL: [Self; 15] = [
        Self::Refuse,
        Self::LoseRequest,
        Self::LoseReply,
        Self::Ghost,
        Self::Steal,
        Self::SlowStore,
        Self::Outage,
        Self::ReadOnly,
        Self::CrashHost,
        Self::FreezeHost,
        Self::CrashWorker,
        Self::BreakLink,
        Self::StallLink,
        Self::StepClock,
        Self::Rewind,
    ];
    /// Those that came later.
    pub const LATER: [Self; 4] = [Self::CutHost, Self::CutWorker, Self::Unreadable, Self::PowerCut];
}

/// Everything about a world that a seed decides before it begins.
#[derive(Debug, Clone)]
pub struct Story {
    /// Where all chance comes from.
    pub seed: u64,
    /// Servers on the one database.
    pub hosts: usize,
    /// Shards of the database.
    pub shards: u16,
    /// Worker processes.
    pub workers: usize,
    /// Programs, each with a customer of its own.
    pub orders: Vec<Program>,
    /// Customers who contend for the same workflow ids.
    pub contenders: usize,
    /// Of a hundred customers whose programs need nobody, so many say nothing after the start.
    pub away: u8,
    /// Requests that no server may take.
    pub pests: usize,
    /// What may go wrong.
    pub troubles: BTreeSet<Trouble>,
    /// For how long it may.
    pub lasts: Duration,
    /// Mean time between two troubles of the world; those of database calls have odds of their own.
    pub every: Duration,
    /// One in so many database calls goes wrong.
    pub odds: u32,
    /// How much longer each call of the database takes at most, also when all is well.
    pub slow: Duration,
    /// How much longer the reply of a read takes at most, also when all is well.
    pub slow_reads: Duration,
    /// Longest way of a message.
    pub delay: Duration,
    /// Bytes of idle runs that a lane keeps in memory.
    pub cache_bytes: usize,
    /// Bytes of runs that wait for workers that a lane keeps in memory.
    pub waiting_bytes: usize,
    /// Runs that a worker keeps alive.
    pub cached_workflows: usize,
}

impl Story {
    /// The story of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = chance(seed, "story");
        let hosts = if rng.u8(0..3) == 0 { 2 } else { 1 };
        // Each seed turns on some of the troubles, so that quiet and violent worlds both occur.
        let share = rng.u8(0..=100);
        let mut troubles: BTreeSet<_> =
            Trouble::ALL.into_iter().filter(|_| rng.u8(0..100) < share).collect();
        // What was thought of later has a chance of its own, so that old seeds stay what they were.
        let mut later = chance(seed, "later");
        troubles.extend(Trouble::LATER.into_iter().filter(|_| later.u8(0..100) < share.max(40)));
        // These change what the others mean, so they are rarer.
        for (rare, one_in) in [(Trouble::StepClock, 4), (Trouble::Rewind, 6)] {
            if rng.u8(0..one_in) != 0 {
                troubles.remove(&rare);
            }
        }
        if troubles.contains(&Trouble::Rewind) {
            troubles.remove(&Trouble::StepClock);
        }
        let mut orders: Vec<_> = (0..rng.usize(1..14)).map(|_| Program::random(&mut rng)).collect();
        if troubles.contains(&Trouble::Rewind) {
            // What a client has sent once may be gone, and it will not send it again.
            orders
                .retain(|program| program.receives() == 0 && program.waits_for_cancel().is_none());
            for program in &mut orders {
                program.finish = Finish::Return;
                program.unread = 0;
            }
        }
        let bytes = |rng: &mut fastrand::Rng| [0, 4 << 10, 1 << 20][rng.usize(0..3)];
        let mut story = Self {
            seed,
            hosts,
            shards: rng.u16(1..4),
            workers: rng.usize(hosts..4),
            orders,
            contenders: if rng.u8(0..3) == 0 { rng.usize(2..5) } else { 0 },
            away: [0, 50, 100, 100][later.usize(0..4)],
            pests: rng.usize(0..3),
            troubles,
            lasts: Duration::from_secs(rng.u64(30..600)),
            every: Duration::from_secs(rng.u64(3..60)),
            odds: [6, 20, 100][rng.usize(0..3)],
            slow: Duration::from_millis([0, 0, 50, 400][later.usize(0..4)]),
            slow_reads: Duration::from_millis([0, 0, 3_000][later.usize(0..3)]),
            delay: Duration::from_micros([100, 2_000, 20_000][rng.usize(0..3)]),
            cache_bytes: bytes(&mut rng),
            waiting_bytes: bytes(&mut rng),
            cached_workflows: [0, 1, 4, 1_000][rng.usize(0..4)],
        };
        if story.has(Trouble::CutHost) && later.bool() {
            story.hosts = 2;
            story.workers = story.workers.max(2);
        }
        story
    }

    /// Whether it knows this trouble.
    pub fn has(&self, trouble: Trouble) -> bool {
        self.troubles.contains(&trouble)
    }

    /// Stories in which a little less happens.
    pub fn simpler(&self) -> Vec<Self> {
        let mut all = Vec::new();
        if self.orders.len() > 1 {
            let (front, back) = self.orders.split_at(self.orders.len() / 2);
            for orders in [front, back] {
                all.push(Self { orders: orders.to_vec(), ..self.clone() });
            }
        }
        for at in 0..self.orders.len() {
            let mut orders = self.orders.clone();
            orders.remove(at);
            all.push(Self { orders, ..self.clone() });
        }
        for trouble in &self.troubles {
            let mut troubles = self.troubles.clone();
            troubles.remove(trouble);
            all.push(Self { troubles, ..self.clone() });
        }
        if self.contenders > 0 {
            all.push(Self { contenders: 0, ..self.clone() });
        }
        if self.away > 0 {
            all.push(Self { away: 0, ..self.clone() });
        }
        if !self.slow_reads.is_zero() {
            all.push(Self { slow_reads: Duration::ZERO, ..self.clone() });
        }
        if !self.slow.is_zero() {
            all.push(Self { slow: Duration::ZERO, ..self.clone() });
        }
        if self.pests > 0 {
            all.push(Self { pests: 0, ..self.clone() });
        }
        if self.hosts > 1 {
            all.push(Self { hosts: 1, ..self.clone() });
        }
        if self.workers > self.hosts {
            all.push(Self { workers: self.hosts, ..self.clone() });
        }
        if self.shards > 1 {
            all.push(Self { shards: 1, ..self.clone() });
        }
        for (at, program) in self.orders.iter().enumerate() {
            for simpler in program.simpler() {
                let mut orders = self.orders.clone();
                orders[at] = simpler;
                all.push(Self { orders, ..self.clone() });
            }
        }
        all
    }
}
