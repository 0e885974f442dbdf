//! A world: its servers, workers and customers, and what is known of it when all is over.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use crate::{
    diary::{Diary, Trace, chance},
    evidence, fate,
    host::Host,
    notebook::{self, Notes, Pen},
    stage::{Caller, Stage},
    story::Story,
    weather::{Weather, name, plan, unwell},
};
use onward::{Client, Env as WorkerEnv, Worker, WorkerHandle};
use onward_checker::{
    Report,
    log::{Batch, Ending, Snapshot, Window},
};
use onward_programs::{
    Book, Program, Tools,
    evidence::why_open,
    interpret,
    notes::{self, Notebook},
    work,
};
use onward_proto::Timestamp;
use onward_server::store::MemoryStore;
use tokio::{
    task::LocalSet,
    time::{sleep, timeout},
};

/// When every story begins, in microseconds since the Unix epoch.
const DAWN_US: i64 = 1_790_000_000_000_000;
/// A program that takes so much longer than its own timers, once nothing goes wrong any more, has
/// been lost.
const PATIENCE: Duration = Duration::from_mins(30);
/// Once nobody waits for an answer any more, nothing is under way after this time.
const SETTLES: Duration = Duration::from_secs(30);
pub(crate) const QUEUE: &str = "programs";

/// What came of a story.
#[derive(Debug)]
pub struct Played {
    /// What the checker says.
    pub report: Report,
    /// What happened.
    pub trace: Trace,
    /// How often what happened.
    pub counts: BTreeMap<String, u64>,
    /// How long it took there.
    pub virtual_time: Duration,
    /// Where and why anything panicked.
    pub panics: Vec<String>,
}

/// Plays a story in a runtime of its own, on this thread.
pub fn play(story: &Story) -> Played {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without input and output needs nothing");
    PANICS.take();
    let local = LocalSet::new();
    let played = local.block_on(&runtime, World::play(story.clone()));
    notebook::close();
    played
}

thread_local! {
    /// Where and why something panicked on this thread since its story began.
    pub(crate) static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// One worker process.
pub(crate) struct Hand {
    _worker: WorkerHandle,
    pen: Arc<Pen>,
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.pen.lay_down();
    }
}

pub(crate) struct World {
    pub(crate) story: Story,
    pub(crate) diary: Diary,
    pub(crate) database: MemoryStore,
    pub(crate) clock_offset: Arc<AtomicI64>,
    pub(crate) stage: Arc<Stage>,
    pub(crate) hands: RefCell<Vec<Option<Hand>>>,
    pub(crate) notes: Notes,
    /// How many servers, workers and witnesses there were so far: each is another one.
    born: Cell<u64>,
    pub(crate) snapshots: RefCell<Vec<Snapshot>>,
    pub(crate) lost: RefCell<Vec<Window>>,
    /// The newest batches that were left then.
    pub(crate) left: RefCell<Vec<Batch>>,
    pub(crate) book: Book,
}

impl World {
    fn new(story: Story) -> Rc<Self> {
        let diary = Diary::begin();
        let clock_offset = Arc::new(AtomicI64::new(0));
        let database = {
            let (diary, offset) = (diary.clone(), Arc::clone(&clock_offset));
            MemoryStore::new(move || {
                let passed = diary.now_us() as i64 + offset.load(Ordering::Relaxed);
                Timestamp::from_micros(DAWN_US + passed)
            })
        };
        let stage = Stage {
            diary: diary.clone(),
            hosts: Mutex::default(),
            links: Mutex::default(),
            cut_workers: Mutex::default(),
            shaky_workers: Mutex::default(),
            weather: Mutex::new(Weather { rough: true, ..Weather::default() }),
            rng: Mutex::new(chance(story.seed, "network")),
            story: story.clone(),
        };
        let notes = Notes::default();
        Pen::new(&diary, &notes, None).lend();
        let book = {
            let diary = diary.clone();
            Book::new(move || diary.now_us())
        };
        Rc::new(Self {
            diary,
            database,
            clock_offset,
            stage: Arc::new(stage),
            hands: RefCell::default(),
            notes,
            born: Cell::new(0),
            snapshots: RefCell::default(),
            lost: RefCell::default(),
            left: RefCell::default(),
            book,
            story,
        })
    }

    async fn play(story: Story) -> Played {
        let world = Self::new(story);
        for place in 0..world.story.hosts {
            world.stage.hosts.lock().unwrap().push(None);
            world.start_host(place);
        }
        for place in 0..world.story.workers {
            world.hands.borrow_mut().push(None);
            world.start_worker(place).await;
        }
        let customers = world.customers();
        fate::befall(&world).await;
        world.diary.write("all is well again");
        let lasts = world.story.orders.iter().map(Program::lasts_ms).max();
        let patience = PATIENCE + Duration::from_millis(lasts.unwrap_or(0));
        let all = async {
            for customer in customers {
                drop(customer.await);
            }
        };
        let in_time = timeout(patience, all).await.is_ok();
        // What somebody has given up on may still be carried out.
        sleep(SETTLES).await;
        let played = world.judge(in_time).await;
        world.hands.borrow_mut().clear();
        for host in world.stage.hosts.lock().unwrap().drain(..).flatten() {
            host.kill();
        }
        played
    }

    pub(crate) fn next_birth(&self) -> u64 {
        self.born.set(self.born.get() + 1);
        self.born.get()
    }

    /// A server process begins, unless there is one.
    pub(crate) fn start_host(&self, place: usize) {
        if self.stage.hosts.lock().unwrap()[place].is_some() {
            return;
        }
        let birth = self.next_birth();
        let store = self.database.connect();
        let mut rng = chance(self.story.seed, format_args!("store {birth}"));
        let (stage, diary, story) =
            (Arc::clone(&self.stage), self.diary.clone(), self.story.clone());
        store.faults().set_planner(move |kind| {
            let weather = *stage.weather.lock().unwrap();
            let plan = plan(kind, place, weather, &story, &mut rng);
            if let Some(lasts) = unwell(kind, place, weather, plan) {
                diary.is_unwell(lasts);
            }
            if let Some(fault) = plan.fault {
                diary.reached(format!("{kind:?} {}", name(fault)));
                if kind.is_write() {
                    diary.disturbed();
                }
            }
            diary.write(format_args!("host {place}: {kind:?} {plan:?}"));
            plan
        });
        let host = Host::start(&self.story, &store, chance(self.story.seed, birth).u64(..));
        self.stage.hosts.lock().unwrap()[place] = Some(host);
        self.stage.note_health();
        self.diary.write(format_args!("host {place} starts as {birth}"));
    }

    /// A worker process begins, unless there is one.
    pub(crate) async fn start_worker(&self, place: usize) {
        if self.hands.borrow()[place].is_some() {
            return;
        }
        let birth = self.next_birth();
        let seed = chance(self.story.seed, format_args!("worker {birth}")).u64(..);
        let name = format!("worker-{place}-{birth}");
        let pen = Pen::new(&self.diary, &self.notes, Some(place));
        let caller = Caller::Worker { host: place % self.story.hosts, place };
        let client = self.client(&name, caller, seed);
        let worker = Worker::builder(client, QUEUE)
            .deps(Tools { notebook: Arc::clone(&pen) as Arc<dyn Notebook>, worker: name })
            .workflows::<(interpret,)>()
            .activities::<(work,)>()
            .cached_workflows(self.story.cached_workflows)
            .env(WorkerEnv::simulated(seed))
            .spawn()
            .await
            .expect("a worker with something to run runs");
        self.hands.borrow_mut()[place] = Some(Hand { _worker: worker, pen });
        self.diary.write(format_args!("worker {place} starts as {birth}"));
    }

    pub(crate) fn client(&self, name: &str, caller: Caller, seed: u64) -> Client {
        let stage = Arc::clone(&self.stage);
        Client::builder()
            .connector(move || {
                let connected = stage.connect(caller);
                async move { connected }
            })
            .identity(name)
            .retry_for(Duration::from_hours(10))
            .seed(seed)
            .build()
            .expect("the address is ours")
    }

    /// Puts everything before the checker.
    async fn judge(&self, in_time: bool) -> Played {
        let (operations, reads, mut endings) = self.book.take();
        let client = self.client("judge", Caller::Anybody, 0);
        if !in_time {
            for place in 0..self.story.orders.len() {
                let workflow_id = format!("order-{place}");
                if endings.iter().all(|ending| ending.workflow_id != workflow_id) {
                    let wrong = Some(why_open(&client, &workflow_id).await);
                    endings.push(Ending { workflow_id, wrong });
                }
            }
            if endings.iter().all(|ending| ending.wrong.is_none()) {
                let wrong = Some("a client never got an answer".to_owned());
                endings.push(Ending { workflow_id: "?".to_owned(), wrong });
            }
        }
        let mut log = evidence::store(&self.database.connect(), &client).await;
        // Runs that still go on have their notes as well: these are read last.
        let (executions, waits) = notes::assemble(self.notes.drain());
        log.operations = operations;
        log.reads = reads;
        log.endings = endings;
        log.executions = executions;
        log.waits = waits;
        log.snapshots = self.snapshots.take();
        log.lost = self.lost.take();
        log.left = self.left.take();
        log.disturbances = self.diary.disturbances();
        log.clock_stepped = self.clock_offset.load(Ordering::Relaxed) != 0;
        (log.well, log.unwell, log.held) = self.diary.health();
        if !log.clock_stepped {
            log.owners = evidence::owners(&self.database, DAWN_US);
            log.ended_us = self.diary.now_us();
        }
        evidence::take_down(&log, &self.diary);
        Played {
            report: onward_checker::check(&log),
            trace: self.diary.trace(),
            counts: self.diary.counts(),
            virtual_time: Duration::from_micros(self.diary.now_us()),
            panics: PANICS.take(),
        }
    }
}
