//! A world: its servers, workers and customers, and what is known of it when all is over.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use onward::{Client, Env as WorkerEnv, Worker, WorkerHandle};
use onward_checker::{
    Report,
    log::{Ending, Snapshot, Window},
};
use onward_programs::{
    Book, Customer, Order, Pace, Program, Tools,
    evidence::why_open,
    interpret,
    notes::{self, Notebook},
    work,
};
use onward_proto::Timestamp;
use onward_server::store::{CallKind, Fault, MemoryStore, Plan};
use tokio::{
    io::DuplexStream,
    task::{JoinHandle, LocalSet},
    time::{sleep, timeout},
};

use crate::{
    diary::{Diary, Trace, chance},
    evidence, fate,
    host::Host,
    net::Link,
    notebook::{self, Notes, Pen},
    story::{Story, Trouble},
};

/// When every story begins, in microseconds since the Unix epoch.
const DAWN_US: i64 = 1_790_000_000_000_000;
/// A program that takes so much longer than its own timers, once nothing goes wrong any more, has
/// been lost.
const PATIENCE: Duration = Duration::from_mins(30);
const QUEUE: &str = "programs";

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
}

/// Plays a story in a runtime of its own, on this thread.
pub fn play(story: &Story) -> Played {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without input and output needs nothing");
    PANICS.set(0);
    let local = LocalSet::new();
    let played = local.block_on(&runtime, World::play(story.clone()));
    notebook::close();
    played
}

thread_local! {
    /// Panics on this thread since its story began.
    pub(crate) static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// What the database does at this moment, to all who call it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Weather {
    /// Calls meet the story's faults.
    pub(crate) rough: bool,
    pub(crate) outage: bool,
    pub(crate) slow: Duration,
}

/// What connections lead to.
pub(crate) struct Stage {
    story: Story,
    diary: Diary,
    pub(crate) hosts: Mutex<Vec<Option<Host>>>,
    pub(crate) links: Mutex<Vec<Link>>,
    pub(crate) weather: Mutex<Weather>,
    rng: Mutex<fastrand::Rng>,
}

impl Stage {
    /// Connects a worker to its host, or a customer to one that serves.
    fn connect(&self, pinned: Option<usize>) -> io::Result<DuplexStream> {
        let hosts = self.hosts.lock().unwrap();
        let mut rng = self.rng.lock().unwrap();
        let place = if let Some(place) = pinned {
            place
        } else {
            let ready = hosts.iter().position(|host| host.as_ref().is_some_and(Host::is_ready));
            match ready {
                Some(place) if rng.u8(0..5) > 0 => place,
                _ => rng.usize(0..hosts.len()),
            }
        };
        let Some(host) = &hosts[place] else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let (link, client, server) = Link::lay(place, self.story.delay, &mut rng);
        host.accept(server)?;
        self.diary.write(format_args!("a connection to host {place}"));
        if pinned.is_none() && hosts.len() > 1 {
            // Whoever is with a server that does not own a shard must come to the other one.
            let (link, lasts) = (link.clone(), Duration::from_millis(rng.u64(2_000..30_000)));
            tokio::spawn(async move {
                sleep(lasts).await;
                link.cut();
            });
        }
        let mut links = self.links.lock().unwrap();
        links.retain(Link::is_open);
        links.push(link);
        Ok(client)
    }

    /// Breaks all connections to a host.
    pub(crate) fn cut_off(&self, place: usize) {
        for link in self.links.lock().unwrap().iter().filter(|link| link.host == place) {
            link.cut();
        }
    }
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
    notes: Notes,
    /// How many servers and workers there were so far: each is another one.
    born: Cell<u64>,
    pub(crate) snapshots: RefCell<Vec<Snapshot>>,
    pub(crate) lost: RefCell<Vec<Window>>,
    book: Book,
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
            weather: Mutex::new(Weather { rough: true, ..Weather::default() }),
            rng: Mutex::new(chance(story.seed, "network")),
            story: story.clone(),
        };
        let notes = Notes::default();
        Pen::new(&diary, &notes).lend();
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
        let played = world.judge(in_time).await;
        world.hands.borrow_mut().clear();
        for host in world.stage.hosts.lock().unwrap().drain(..).flatten() {
            host.kill();
        }
        played
    }

    fn next_birth(&self) -> u64 {
        self.born.set(self.born.get() + 1);
        self.born.get()
    }

    /// A server process begins.
    pub(crate) fn start_host(&self, place: usize) {
        let birth = self.next_birth();
        let store = self.database.connect();
        let mut rng = chance(self.story.seed, format_args!("store {birth}"));
        let (stage, diary, story) =
            (Arc::clone(&self.stage), self.diary.clone(), self.story.clone());
        store.faults().set_planner(move |kind| {
            let weather = *stage.weather.lock().unwrap();
            let plan = plan(kind, weather, &story, &mut rng);
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
        self.diary.write(format_args!("host {place} starts as {birth}"));
    }

    /// A worker process begins.
    pub(crate) async fn start_worker(&self, place: usize) {
        let birth = self.next_birth();
        let seed = chance(self.story.seed, format_args!("worker {birth}")).u64(..);
        let name = format!("worker-{place}-{birth}");
        let pen = Pen::new(&self.diary, &self.notes);
        let client = self.client(&name, Some(place % self.story.hosts), seed);
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

    pub(crate) fn client(&self, name: &str, pinned: Option<usize>, seed: u64) -> Client {
        let stage = Arc::clone(&self.stage);
        Client::builder()
            .connector(move || {
                let connected = stage.connect(pinned);
                async move { connected }
            })
            .identity(name)
            .retry_for(Duration::from_hours(10))
            .seed(seed)
            .build()
            .expect("the address is ours")
    }

    fn customers(self: &Rc<Self>) -> Vec<JoinHandle<()>> {
        let seed = self.story.seed;
        let customer = |name: String| {
            let own = chance(seed, &name).u64(..);
            Customer {
                client: self.client(&name, None, own),
                name,
                queue: QUEUE.to_owned(),
                book: self.book.clone(),
                pace: Pace {
                    start: self.story.lasts / 2,
                    next: self.story.lasts / 8,
                    look: Duration::from_secs(5),
                },
            }
        };
        let mut tasks = Vec::new();
        for (place, program) in self.story.orders.iter().cloned().enumerate() {
            let workflow_id = format!("order-{place}");
            let customer = customer(format!("customer-{place}"));
            let rng = chance(seed, &workflow_id);
            let order = Order { workflow_id, program };
            tasks.push(tokio::task::spawn_local(async move { customer.order(order, rng).await }));
        }
        let shared: Vec<_> = (0..2).map(|n| format!("shared-{n}")).collect();
        for place in 0..self.story.contenders {
            let customer = customer(format!("contender-{place}"));
            let (shared, rng) = (shared.clone(), chance(seed, format_args!("contends {place}")));
            tasks.push(tokio::task::spawn_local(async move {
                customer.contend(&shared, 10, rng).await;
            }));
        }
        for place in 0..self.story.pests {
            let customer = customer(format!("pest-{place}"));
            let (book, rng) = (self.book.clone(), chance(seed, format_args!("pest {place}")));
            tasks.push(tokio::task::spawn_local(async move {
                let workflow_id = format!("pest-{place}");
                let wrong = customer.pester(&workflow_id, rng).await.err();
                book.ending(Ending { workflow_id, wrong });
            }));
        }
        tasks
    }

    /// Puts everything before the checker.
    async fn judge(&self, in_time: bool) -> Played {
        let (operations, reads, mut endings) = self.book.take();
        let client = self.client("judge", None, 0);
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
        let panics = PANICS.get();
        if panics > 0 {
            let wrong = Some(format!("{panics} panics"));
            endings.push(Ending { workflow_id: "?".to_owned(), wrong });
        }
        let mut log = evidence::store(&self.database.connect(), &client).await;
        // Runs that still go on have their notes as well: these are read last.
        let (executions, waits) = notes::assemble(self.notes.lock().unwrap().drain(..));
        log.operations = operations;
        log.reads = reads;
        log.endings = endings;
        log.executions = executions;
        log.waits = waits;
        log.snapshots = self.snapshots.take();
        log.lost = self.lost.take();
        log.disturbances = self.diary.disturbances();
        log.clock_stepped = self.clock_offset.load(Ordering::Relaxed) != 0;
        for run in &log.runs {
            self.diary.write(format_args!(
                "{} {} {:?}: {} rows, {} events",
                run.workflow_id,
                run.run_id,
                run.status,
                run.journal.len(),
                run.history.len()
            ));
        }
        evidence::count(&log, &self.diary);
        Played {
            report: onward_checker::check(&log),
            trace: self.diary.trace(),
            counts: self.diary.counts(),
            virtual_time: Duration::from_micros(self.diary.now_us()),
        }
    }
}

fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::Refuse => "refused",
        Fault::LoseRequest => "request lost",
        Fault::LoseReply => "reply lost",
        Fault::Ghost(_) => "ghost",
        Fault::Steal => "stolen",
        Fault::Rewind(_) => "rewound",
    }
}

/// How one call of the database goes.
fn plan(kind: CallKind, weather: Weather, story: &Story, rng: &mut fastrand::Rng) -> Plan {
    if kind == CallKind::Prune {
        // The checker wants to see every batch.
        return Plan::fault(Fault::Refuse);
    }
    let way = |rng: &mut fastrand::Rng| {
        Duration::from_micros(rng.u64(50..4_000)) + weather.slow.mul_f64(rng.f64())
    };
    let mut plan = Plan { before: way(rng), after: way(rng), fault: None };
    if weather.outage {
        plan.fault = Some(Fault::Refuse);
        return plan;
    }
    if !weather.rough {
        return plan;
    }
    let odds = match kind {
        CallKind::Commit | CallKind::Resolve | CallKind::Take | CallKind::Release => story.odds,
        CallKind::Read | CallKind::Shards => 4 * story.odds,
        CallKind::Renew | CallKind::Prune => 10 * story.odds,
    };
    if rng.u32(0..odds) == 0 {
        let (trouble, fault) = match rng.u8(0..5) {
            0 => (Trouble::Refuse, Fault::Refuse),
            1 => (Trouble::LoseRequest, Fault::LoseRequest),
            2 => (Trouble::LoseReply, Fault::LoseReply),
            3 => {
                let late = Duration::from_millis(rng.u64(1..20_000));
                (Trouble::Ghost, Fault::Ghost(Some(late)))
            }
            _ => (Trouble::Steal, Fault::Steal),
        };
        plan.fault = story.has(trouble).then_some(fault);
    }
    plan
}
