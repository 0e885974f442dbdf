//! A world: its hosts, what they share outside of the network, and what is known when all is over.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use onward_checker::{
    Log,
    log::{Ending, Lack, Snapshot},
};
use onward_programs::{Book, Program, evidence::why_open, notes};
use onward_proto::Timestamp;
use onward_server::{shard::Node, store::MemoryStore};
use onward_simulation::{
    Diary, Played, chance, evidence,
    notebook::{self, Notes, Pen},
    take_panics,
};
use tokio::sync::watch;
use turmoil::Sim;

use crate::{
    database::Way,
    fate::Fate,
    hosts,
    story::Story,
    tcp::{Knife, Sockets},
};

/// When every story begins, in microseconds since the Unix epoch.
const DAWN_US: i64 = 1_790_000_000_000_000;
/// How far the hosts' clocks go at a time. No message is faster, so none arrives before it was sent.
pub(crate) const TICK: Duration = Duration::from_millis(5);
/// A program that takes so much longer than its own timers, once nothing goes wrong any more, has
/// been lost.
const PATIENCE: Duration = Duration::from_mins(10);
/// Segments that a connection takes before its sender has to wait, and connections that wait to be
/// accepted.
const CAPACITY: usize = 256;

/// The time of the whole world. Each host has a clock of its own, up to a tick away from the others;
/// this one never goes back.
#[derive(Default)]
struct Clock {
    last_us: AtomicU64,
    /// Hosts are running, not only looked at.
    runs: AtomicBool,
}

impl Clock {
    fn now(&self) -> Duration {
        if self.runs.load(Ordering::Relaxed)
            && let Some(now) = turmoil::sim_elapsed()
        {
            self.last_us.fetch_max(now.as_micros() as u64, Ordering::Relaxed);
        }
        Duration::from_micros(self.last_us.load(Ordering::Relaxed))
    }
}

/// A server process that runs, and how to ask it to stop.
type Running = (Arc<Node>, watch::Sender<bool>);

/// How customers and workers find their server.
pub(crate) struct Roads {
    pub(crate) diary: Diary,
    pub(crate) nodes: Mutex<Vec<Option<Running>>>,
    pub(crate) knives: Mutex<Vec<Knife>>,
    /// Of each host, by its name.
    sockets: Mutex<BTreeMap<String, Arc<Sockets>>>,
    rng: Mutex<fastrand::Rng>,
}

impl Roads {
    /// The connections of a host.
    pub(crate) fn sockets(&self, host: &str) -> Arc<Sockets> {
        Arc::clone(self.sockets.lock().unwrap().entry(host.to_owned()).or_default())
    }

    /// The server to connect to, and how long a connection to it is let live at most.
    pub(crate) fn choose(&self, pinned: Option<usize>) -> (usize, Option<Duration>) {
        if let Some(place) = pinned {
            return (place, None);
        }
        let nodes = self.nodes.lock().unwrap();
        let mut rng = self.rng.lock().unwrap();
        let serves =
            |node: &Option<Running>| node.as_ref().is_some_and(|(node, _)| node.is_ready());
        let place = match nodes.iter().position(serves) {
            Some(place) if rng.u8(0..5) > 0 => place,
            _ => rng.usize(0..nodes.len()),
        };
        // Whoever is with a server that does not own a shard must come to the other one.
        let age = || Duration::from_millis(rng.u64(2_000..30_000));
        (place, (nodes.len() > 1).then(age))
    }

    pub(crate) fn remember(&self, knife: Knife) {
        let mut knives = self.knives.lock().unwrap();
        knives.retain(Knife::is_open);
        knives.push(knife);
    }
}

/// What hosts share outside of the network.
pub(crate) struct World {
    pub(crate) story: Story,
    clock: Arc<Clock>,
    pub(crate) diary: Diary,
    pub(crate) database: MemoryStore,
    /// From each server to the database.
    pub(crate) ways: Vec<Arc<Mutex<Way>>>,
    pub(crate) roads: Arc<Roads>,
    pub(crate) notes: Notes,
    /// What the worker processes that run take notes with.
    pub(crate) pens: RefCell<Vec<Option<Arc<Pen>>>>,
    pub(crate) book: Book,
    pub(crate) snapshots: RefCell<Vec<Snapshot>>,
    born: Cell<u64>,
}

/// Plays a story on this thread.
pub(crate) fn play(story: &Story) -> Played {
    take_panics();
    let world = World::new(story);
    let played = world.play();
    notebook::close();
    played
}

impl World {
    pub(crate) fn new(story: &Story) -> Rc<Self> {
        let clock = Arc::new(Clock::default());
        let now = {
            let clock = Arc::clone(&clock);
            move || clock.now()
        };
        let diary = Diary::on(now.clone());
        let notes = Notes::default();
        Pen::new(&diary, &notes, None).lend();
        let roads = Roads {
            diary: diary.clone(),
            nodes: Mutex::new((0..story.servers).map(|_| None).collect()),
            knives: Mutex::default(),
            sockets: Mutex::default(),
            rng: Mutex::new(chance(story.seed, "roads")),
        };
        Rc::new(Self {
            story: story.clone(),
            clock,
            diary,
            database: {
                let now = now.clone();
                MemoryStore::new(move || Timestamp::from_micros(DAWN_US + now().as_micros() as i64))
            },
            ways: (0..story.servers).map(|_| Arc::default()).collect(),
            roads: Arc::new(roads),
            notes,
            pens: RefCell::new((0..story.workers).map(|_| None).collect()),
            book: Book::new(move || now().as_micros() as u64),
            snapshots: RefCell::default(),
            born: Cell::new(0),
        })
    }

    /// Each process is another one, also one on a host where there was one before.
    pub(crate) fn next_birth(&self) -> u64 {
        self.born.set(self.born.get() + 1);
        self.born.get()
    }

    /// The network with all hosts on it.
    pub(crate) fn build(self: &Rc<Self>) -> Sim<'static> {
        let mut net = turmoil::Builder::new()
            .rng_seed(chance(self.story.seed, "network").u64(..))
            .epoch(SystemTime::UNIX_EPOCH)
            .simulation_duration(Duration::MAX)
            .tick_duration(TICK)
            .min_message_latency(TICK)
            .max_message_latency(TICK + self.story.delay)
            .tcp_capacity(CAPACITY)
            .enable_random_order()
            .build();
        net.set_message_latency_curve(self.story.curve);
        for place in 0..self.story.servers {
            let own = Rc::clone(self);
            net.host(hosts::server(place), move || hosts::serve(Rc::clone(&own), place));
        }
        for place in 0..self.story.workers {
            let own = Rc::clone(self);
            net.host(hosts::worker(place), move || hosts::run_worker(Rc::clone(&own), place));
        }
        for place in 0..self.story.offices {
            net.client(hosts::office(place), hosts::live(Rc::clone(self), place));
        }
        net
    }

    fn play(self: &Rc<Self>) -> Played {
        let mut net = self.build();
        let wrong = self.live(&mut net).err();
        let log = if wrong.is_none() { self.gather(&mut net) } else { Err(String::new()) };
        let mut log = log.unwrap_or_else(|also| {
            let wrong = wrong.or(Some(also));
            let ending = Ending { workflow_id: "?".to_owned(), wrong };
            Log { endings: vec![ending], ..Log::default() }
        });
        log.snapshots = self.snapshots.take();
        log.disturbances = self.diary.disturbances();
        evidence::take_down(&log, &self.diary);
        Played {
            report: onward_checker::check(&log),
            trace: self.diary.trace(),
            counts: self.diary.counts(),
            virtual_time: net.elapsed(),
            panics: take_panics(),
        }
    }

    /// Lets the story happen, until every customer has what it came for.
    fn live(&self, net: &mut Sim<'static>) -> Result<(), String> {
        let mut fate = Fate::new(&self.story);
        while !fate.is_over(net) {
            fate.befall(net, self);
            self.step(net)?;
        }
        fate.mend_all(net, self);
        self.diary.write("all is well again");
        let lasts = self.story.orders.iter().map(Program::lasts_ms).max().unwrap_or(0);
        let end = net.elapsed() + PATIENCE + Duration::from_millis(lasts);
        while !self.step(net)? && net.elapsed() < end {}
        Ok(())
    }

    /// Lets a tick pass. Says whether every customer has left.
    pub(crate) fn step(&self, net: &mut Sim<'static>) -> Result<bool, String> {
        self.clock.runs.store(true, Ordering::Relaxed);
        let all_left = net.step();
        self.clock.runs.store(false, Ordering::Relaxed);
        self.clock.last_us.fetch_max(net.elapsed().as_micros() as u64, Ordering::Relaxed);
        all_left.map_err(|error| format!("a host has failed: {error}"))
    }

    /// Puts together what the checker reads.
    fn gather(self: &Rc<Self>, net: &mut Sim<'static>) -> Result<Log, String> {
        let found: Rc<RefCell<Option<Log>>> = Rc::default();
        let (own, judged) = (Rc::clone(self), Rc::clone(&found));
        net.client("judge", async move {
            judged.replace(Some(own.judge().await));
            Ok(())
        });
        let end = net.elapsed() + PATIENCE;
        while found.borrow().is_none() {
            if net.elapsed() > end {
                return Err("nobody can read what is left".to_owned());
            }
            self.step(net)?;
        }
        let mut log = found.take().expect("the loop ends with it");
        // Runs that still go on have their notes as well: these are read last.
        (log.executions, log.waits) = notes::assemble(self.notes.drain());
        Ok(log)
    }

    /// What there is to read for somebody on the network.
    async fn judge(&self) -> Log {
        let (operations, reads, mut endings) = self.book.take();
        let client = hosts::client(self, "judge", "judge", None, hosts::PATIENCE, 0);
        for place in 0..self.story.orders.len() {
            let workflow_id = format!("order-{place}");
            if endings.iter().all(|ending| ending.workflow_id != workflow_id) {
                let wrong = Some(why_open(&client, &workflow_id).await);
                endings.push(Ending { workflow_id, wrong });
            }
        }
        let mut log = evidence::store(&self.database.connect(), &client).await;
        (log.operations, log.reads, log.endings) = (operations, reads, endings);
        // This database loses nothing, and messages may be held for long.
        log.lacks = vec![Lack::Owners, Lack::LostCommits, Lack::Held];
        log
    }
}
