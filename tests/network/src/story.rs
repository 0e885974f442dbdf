//! Stories: who is on the network, and what may befall it.

use std::{collections::BTreeSet, time::Duration};

use onward_programs::Program;
use onward_simulation::{Played, Summary, Tale, chance};

use crate::world;

/// A program's timers are so many times shorter than in the simulation of nodes: here a quiet
/// minute costs as much as a busy one.
const HASTE: u64 = 10;
/// Programs that take longer by themselves are left out.
const LONGEST_MS: u64 = 90_000;

/// What may befall a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// All messages between two hosts are lost.
    Partition,
    /// The messages to a server are lost, and its own get through.
    DeafServer,
    /// The messages of a server are lost, and those to it get through.
    MuteServer,
    /// A server is cut off from everybody.
    Isolation,
    /// Messages between two hosts are held, and arrive when it is over.
    Hold,
    /// The ways of a server are held one after the other, and let go in another order.
    Clog,
    /// Messages between two hosts are lost now and then, with those that are on their way.
    Loss,
    /// Messages take long.
    SlowNetwork,
    /// Something in the middle closes a connection.
    CutConnection,
    /// A server process is killed, and another begins on its host.
    CrashServer,
    /// A server's host is without power: nobody is told. Another process begins there.
    ServerPowerCut,
    /// A server process is asked to stop, and another begins on its host.
    StopServer,
    /// A worker process is killed, and another begins on its host.
    CrashWorker,
    /// A worker's host is without power.
    WorkerPowerCut,
    /// What a server says to the database does not arrive.
    DatabaseAway,
    /// What the database says to a server does not arrive.
    DatabaseMute,
    /// The database is slow for a server.
    SlowDatabase,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Partition,
        Self::DeafServer,
        Self::MuteServer,
        Self::Isolation,
        Self::Hold,
        Self::Clog,
        Self::Loss,
        Self::SlowNetwork,
        Self::CutConnection,
        Self::CrashServer,
        Self::ServerPowerCut,
        Self::StopServer,
        Self::CrashWorker,
        Self::WorkerPowerCut,
        Self::DatabaseAway,
        Self::DatabaseMute,
        Self::SlowDatabase,
    ];
}

/// Everything about a world that a seed decides before it begins.
#[derive(Debug, Clone)]
pub struct Story {
    /// Where all chance comes from.
    pub seed: u64,
    /// Servers on the one database.
    pub servers: usize,
    /// Shards of the database.
    pub shards: u16,
    /// Hosts with a worker.
    pub workers: usize,
    /// Hosts on which customers live.
    pub offices: usize,
    /// Programs, each with a customer of its own.
    pub orders: Vec<Program>,
    /// Customers who contend for the same workflow ids.
    pub contenders: usize,
    /// Requests that no server may take.
    pub pests: usize,
    /// What may go wrong.
    pub troubles: BTreeSet<Trouble>,
    /// For how long it may.
    pub lasts: Duration,
    /// Mean time between two troubles.
    pub every: Duration,
    /// Longest way of a message.
    pub delay: Duration,
    /// How much shorter most of them are: the rate of the exponential distribution.
    pub curve: f64,
    /// Runs that a worker keeps alive.
    pub cached_workflows: usize,
}

impl Tale for Story {
    const LAYER: &'static str = "net";
    const MANY: u64 = 40;
    const SOMETIMES: &'static [&'static str] = SOMETIMES;
    const TWICE: u64 = 10;

    fn of(seed: u64) -> Self {
        let mut rng = chance(seed, "network story");
        let servers = rng.usize(1..3);
        // Each seed turns on some of the troubles, so that quiet and violent worlds both occur.
        let share = rng.u8(0..=100);
        let mut troubles: BTreeSet<_> =
            Trouble::ALL.into_iter().filter(|_| rng.u8(0..100) < share).collect();
        // What comes of it is not the same each time.
        if rng.u8(0..3) != 0 {
            troubles.remove(&Trouble::StopServer);
        }
        Self {
            seed,
            servers,
            shards: rng.u16(1..4),
            workers: rng.usize(servers..4),
            offices: rng.usize(1..3),
            orders: (0..rng.usize(1..10)).map(|_| program(&mut rng)).collect(),
            contenders: if rng.u8(0..3) == 0 { rng.usize(2..5) } else { 0 },
            pests: rng.usize(0..2),
            troubles,
            lasts: Duration::from_secs(rng.u64(20..150)),
            every: Duration::from_secs(rng.u64(2..20)),
            delay: Duration::from_millis([10, 50, 200][rng.usize(0..3)]),
            curve: [1.0, 5.0][rng.usize(0..2)],
            cached_workflows: [0, 1, 4, 1_000][rng.usize(0..4)],
        }
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn simpler(&self) -> Vec<Self> {
        let mut all = Vec::new();
        if self.orders.len() > 1 {
            let (front, back) = self.orders.split_at(self.orders.len() / 2);
            for orders in [front, back] {
                all.push(Self { orders: orders.to_vec(), ..self.clone() });
            }
        }
        for trouble in &self.troubles {
            let mut troubles = self.troubles.clone();
            troubles.remove(trouble);
            all.push(Self { troubles, ..self.clone() });
        }
        if self.contenders > 0 {
            all.push(Self { contenders: 0, ..self.clone() });
        }
        if self.pests > 0 {
            all.push(Self { pests: 0, ..self.clone() });
        }
        if self.servers > 1 {
            all.push(Self { servers: 1, ..self.clone() });
        }
        if self.workers > self.servers {
            all.push(Self { workers: self.servers, ..self.clone() });
        }
        if self.offices > 1 {
            all.push(Self { offices: 1, ..self.clone() });
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

    fn play(&self) -> Played {
        world::play(self)
    }

    fn repeats(&self) -> bool {
        // Whether a connection or the signal that it has to close is looked at first is drawn by
        // tonic's server itself.
        !self.troubles.contains(&Trouble::StopServer)
    }

    fn sum_up(summary: &Summary<Self>) -> String {
        let hours = summary.virtual_time.as_secs_f64() / 3_600.0;
        let ratio = summary.virtual_time.as_secs_f64() / summary.wall.as_secs_f64().max(0.001);
        let happened = |troubles: &[Trouble]| {
            summary.count(|name| troubles.iter().any(|trouble| format!("{trouble:?}") == name))
        };
        format!(
            "seeds={} vtime={hours:.2}h ratio={ratio:.0}x runs={} events={} acks={} unknown={} \
             connections={} resets={} refused={} partitions={} oneway={} holds={} losses={} \
             crashes={} power_cuts={} stops={} database={} sometimes={}/{} determinism={}/{} \
             violations={} stuck={} wall={:.0}s",
            summary.seeds,
            summary.count(|name| name.starts_with("run ")),
            summary.count(|name| name == "record"),
            summary.count(|name| name == "ack"),
            summary.count(|name| name == "unknown"),
            summary.count(|name| name == "connected"),
            summary.count(|name| name == "reset"),
            summary.count(|name| name == "connect refused"),
            happened(&[Trouble::Partition, Trouble::Isolation]),
            happened(&[Trouble::DeafServer, Trouble::MuteServer]),
            happened(&[Trouble::Hold, Trouble::Clog]),
            happened(&[Trouble::Loss]),
            happened(&[Trouble::CrashServer, Trouble::CrashWorker]),
            happened(&[Trouble::ServerPowerCut, Trouble::WorkerPowerCut]),
            happened(&[Trouble::StopServer]),
            happened(&[Trouble::DatabaseAway, Trouble::DatabaseMute, Trouble::SlowDatabase]),
            SOMETIMES.len() - summary.missed().len(),
            SOMETIMES.len(),
            summary.twice,
            summary.twice,
            summary.report.violations().len(),
            summary.stuck(),
            summary.wall.as_secs_f64()
        )
    }
}

fn program(rng: &mut fastrand::Rng) -> Program {
    loop {
        let program = Program::random(rng).hastened(HASTE);
        if program.lasts_ms() <= LONGEST_MS {
            return program;
        }
    }
}

/// What must have happened in a suite of some size, or the rest says little.
const SOMETIMES: &[&str] = &[
    "Clog",
    "CrashServer",
    "CrashWorker",
    "CutConnection",
    "DatabaseAway",
    "DatabaseMute",
    "DeafServer",
    "Hold",
    "Isolation",
    "Loss",
    "MuteServer",
    "Partition",
    "ServerPowerCut",
    "SlowDatabase",
    "SlowNetwork",
    "StopServer",
    "WorkerPowerCut",
    "commit reply lost",
    "commit request lost",
    "connect refused",
    "event WorkflowTaskFailed WorkerLost",
    "reset",
    "retry",
    "run Completed",
    "unknown",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_and_violent_worlds_are_drawn_and_every_trouble_is() {
        let stories: Vec<_> = (0..200).map(Story::of).collect();
        let drawn: BTreeSet<_> = stories.iter().flat_map(|story| &story.troubles).collect();
        assert_eq!(drawn.len(), Trouble::ALL.len());
        assert!(stories.iter().any(|story| story.troubles.is_empty()));
        assert!(stories.iter().any(|story| story.troubles.len() > 12));
        assert!(stories.iter().all(|story| story.workers >= story.servers));
    }

    #[test]
    fn a_simpler_story_ends_at_the_simplest() {
        let mut story = Story::of(1);
        while let Some(simpler) = story.simpler().pop() {
            story = simpler;
        }
        assert_eq!((story.servers, story.workers, story.offices), (1, 1, 1));
        assert_eq!((story.orders.len(), story.troubles.len()), (1, 0));
    }
}
