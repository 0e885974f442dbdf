//! One node, one worker, one client, and what befalls them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use onward::{Client, Env as WorkerEnv, Replayer, Worker};
use onward_proto::{
    DEFAULT_NAMESPACE, Timestamp,
    v1::{GetWorkflowHistoryRequest, History, WorkflowStatus, history_event::Attributes},
};
use onward_server::{
    BuildInfo,
    engine::Limits,
    env::{Env, TokioBootClock},
    serve_connections,
    shard::{Node, NodeOptions},
    store::{CallKind, Fault, ListRuns, MemoryStore, Plan as CallPlan, Store},
};
use tokio::{
    io::{DuplexStream, copy_bidirectional, duplex},
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::shop::{APPROVED, Ledger, Plan, Shop, Step, Work, order, work};

/// Runs in one story.
const RUNS: u64 = 20;
/// A story that lasts longer has lost something.
const PATIENCE: Duration = Duration::from_hours(12);
/// When the story begins, in microseconds since the Unix epoch.
const DAWN_US: i64 = 1_790_000_000_000_000;
/// How long a connection lives, in seconds. A client gives up after 30 s of trouble, by its default,
/// so most of the time there is none.
const CONNECTION_LIVES: std::ops::Range<u64> = 60..900;
/// Room in a pipe.
const PIPE: usize = 64 << 10;

/// All that happened, one line each, in the order in which it did; and what is on record of it.
pub(crate) struct Trace {
    seed: u64,
    pub(crate) lines: Vec<String>,
}

impl Trace {
    /// Whether something of this name has happened.
    pub(crate) fn tells_of(&self, name: &str) -> bool {
        self.lines.iter().any(|line| line.contains(name))
    }

    /// # Panics
    /// With the first difference, if the two are not the same story.
    pub(crate) fn assert_same(&self, other: &Self) {
        let seed = self.seed;
        for (at, (one, two)) in self.lines.iter().zip(&other.lines).enumerate() {
            assert_eq!(one, two, "seed {seed}: two passes differ in line {at}");
        }
        assert_eq!(self.lines.len(), other.lines.len(), "seed {seed}: one pass goes on for longer");
    }
}

/// What happened so far, with the virtual time of it.
#[derive(Clone)]
struct Diary {
    origin: Instant,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Diary {
    fn begin() -> Self {
        Self { origin: Instant::now(), lines: Arc::default() }
    }

    fn write(&self, line: impl std::fmt::Display) {
        let line = format!("{:?} {line}", self.origin.elapsed());
        self.lines.lock().unwrap().push(line);
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

/// A source of chance for each part of a world: how often one is asked does not shift another.
fn chance(seed: u64, part: &str) -> fastrand::Rng {
    let mut hasher = DefaultHasher::new();
    (seed, part).hash(&mut hasher);
    fastrand::Rng::with_seed(hasher.finish())
}

/// A node, its database, its worker and a client.
pub(crate) struct World {
    seed: u64,
    diary: Diary,
    store: MemoryStore,
    client: Client,
    ledger: Ledger,
}

impl World {
    /// Plays the whole story of a seed in a runtime of its own.
    pub(crate) fn simulate(seed: u64) -> Trace {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let story = async {
            timeout(PATIENCE, Self::story(seed))
                .await
                .unwrap_or_else(|_| panic!("seed {seed}: not at its end after {PATIENCE:?}"))
        };
        LocalSet::new().block_on(&runtime, story)
    }

    async fn story(seed: u64) -> Trace {
        let diary = Diary::begin();
        let store = database(&diary);
        misfortune(seed, &store, &diary);
        let node = Node::new(NodeOptions {
            env: Env::seeded(Arc::new(TokioBootClock::start()), seed),
            store: Arc::new(store.clone()),
            limits: Limits::default(),
            cache_bytes: 16 << 10,
            waiting_bytes: 1 << 20,
            shards: 2,
        });
        let (connections, incoming) = mpsc::unbounded_channel::<io::Result<DuplexStream>>();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve_connections(
            node,
            BuildInfo::default(),
            UnboundedReceiverStream::new(incoming),
            async move { drop(stopped.await) },
            Duration::from_secs(10),
        ));
        let client = client(seed, connections, &diary);
        let ledger = Ledger::default();
        let worker = Worker::builder(client.clone(), "orders")
            .deps(Shop { ledger: ledger.clone() })
            .workflows::<(order,)>()
            .activities::<(work,)>()
            .cached_workflows(8)
            .env(WorkerEnv::simulated(seed))
            .spawn()
            .await
            .unwrap();

        let world = Self { seed, diary, store, client, ledger };
        let plans = world.run_all().await;
        world.store.faults().clear();
        world.check_histories(&plans).await;
        worker.shutdown().await.unwrap();
        stop.send(()).unwrap();
        let (diary, store, ledger) = (world.diary, world.store, world.ledger);
        drop(world.client);
        server.await.unwrap().unwrap();
        let mut lines = diary.lines();
        lines.extend(ledger.lines());
        lines.extend(records(&store).await);
        Trace { seed, lines }
    }

    /// Starts the runs, one after the other, and waits until each has ended right.
    async fn run_all(&self) -> BTreeMap<String, Plan> {
        let plans = Rc::new(RefCell::new(BTreeMap::new()));
        let mut rng = chance(self.seed, "orders");
        let mut customers = Vec::new();
        for n in 0..RUNS {
            let (id, plan) = (format!("order-{n}"), plan(&mut rng));
            plans.borrow_mut().insert(id.clone(), plan.clone());
            let rng = rng.fork();
            customers.push(tokio::task::spawn_local(customer(
                self.seed,
                self.client.clone(),
                self.diary.clone(),
                id,
                plan,
                rng,
            )));
        }
        for customer in customers {
            customer.await.unwrap();
        }
        plans.take()
    }

    /// A history tells of each call once, and today's code does what it says.
    async fn check_histories(&self, plans: &BTreeMap<String, Plan>) {
        let seed = self.seed;
        let replayer = Replayer::new().workflows::<(order,)>().strict();
        let mut calls = 0;
        for (id, plan) in plans {
            let events = self.history(id).await;
            let mut ended = Vec::new();
            let mut approvals = 0;
            for event in events.iter().filter_map(|event| event.attributes.as_ref()) {
                match event {
                    Attributes::ActivityCompleted(done) => ended.push(done.number),
                    Attributes::ActivityFailed(_) | Attributes::ActivityTimedOut(_) => {
                        panic!("seed {seed}, {id}: an activity was given up: {event:?}")
                    }
                    Attributes::SignalReceived(_) => approvals += 1,
                    _ => {}
                }
            }
            let count = ended.len();
            assert_eq!(count, plan.handed_out(), "seed {seed}, {id}: {events:#?}");
            ended.sort_unstable();
            ended.dedup();
            assert_eq!(ended.len(), count, "seed {seed}, {id}: an activity ended twice");
            assert_eq!(approvals, plan.approvals().len(), "seed {seed}, {id}: approvals");
            calls += plan.handed_out() + plan.local();
            replayer
                .replay(&History { events })
                .unwrap_or_else(|error| panic!("seed {seed}, {id}: {error}"));
        }
        assert_eq!(self.ledger.keys(), calls, "seed {seed}: a call has no key of its own");
    }

    async fn history(&self, id: &str) -> Vec<onward_proto::v1::HistoryEvent> {
        let mut request =
            GetWorkflowHistoryRequest { workflow_id: id.to_owned(), ..Default::default() };
        let mut events = Vec::new();
        loop {
            let page = self
                .client
                .call(&request, |mut service, request| async move {
                    service.get_workflow_history(request).await
                })
                .await
                .unwrap();
            events.extend(page.events);
            if page.next_page_token.is_empty() {
                return events;
            }
            request.page_token = page.next_page_token;
        }
    }
}

/// Somebody who places one order, approves it when asked to, and waits for it.
async fn customer(
    seed: u64,
    client: Client,
    diary: Diary,
    id: String,
    plan: Plan,
    mut rng: fastrand::Rng,
) {
    sleep(Duration::from_millis(rng.u64(0..60_000))).await;
    let began = Instant::now();
    let started = order(&client, plan.clone()).id(&id).queue("orders").start().await;
    let handle = started.unwrap_or_else(|error| panic!("seed {seed}, {id}: {error}"));
    diary.write(format_args!("{id} started"));
    for value in plan.approvals() {
        sleep(Duration::from_millis(rng.u64(0..600_000))).await;
        let sent = handle.signal(APPROVED, value).await;
        sent.unwrap_or_else(|error| panic!("seed {seed}, {id}: {error}"));
        diary.write(format_args!("{id} approved"));
    }
    let total = handle.result().await;
    let total = total.unwrap_or_else(|error| panic!("seed {seed}, {id}: {error:?}"));
    diary.write(format_args!("{id} returned {total}"));
    assert_eq!(total, plan.total(), "seed {seed}, {id}");
    assert!(began.elapsed() >= plan.sleeps(), "seed {seed}, {id}: a timer fired early");
}

fn plan(rng: &mut fastrand::Rng) -> Plan {
    let one = |rng: &mut fastrand::Rng| Work {
        value: rng.u64(1..1_000),
        fails: rng.u32(0..6).saturating_sub(2),
        takes_ms: rng.u64(0..4_000).saturating_sub(1_000),
    };
    let steps = (0..rng.usize(2..7)).map(|_| match rng.u8(0..7) {
        0 | 1 => Step::Work(one(rng)),
        2 => Step::Both(one(rng), one(rng)),
        3 => Step::Quick(one(rng)),
        4 => Step::Sleep { secs: rng.u64(1..20) },
        5 => Step::Sleep { secs: rng.u64(60..300) },
        _ => Step::Approval { value: rng.u64(1..1_000) },
    });
    let mut steps: Vec<_> = steps.collect();
    if rng.u8(0..4) == 0 {
        steps.push(Step::Sleep { secs: rng.u64(3_000..4_000) });
        steps.push(Step::Work(one(rng)));
    }
    Plan { steps }
}

fn database(diary: &Diary) -> MemoryStore {
    let origin = diary.origin;
    MemoryStore::new(move || {
        Timestamp::from_micros(DAWN_US).plus_micros(origin.elapsed().as_micros() as i64)
    })
}

/// The database is slow, refuses, and loses requests and replies, as the seed has it.
fn misfortune(seed: u64, store: &MemoryStore, diary: &Diary) {
    let mut rng = chance(seed, "database");
    let diary = diary.clone();
    store.faults().set_planner(move |kind| {
        let millis = |rng: &mut fastrand::Rng| Duration::from_millis(rng.u64(0..6));
        let mut plan = CallPlan { before: millis(&mut rng), after: millis(&mut rng), fault: None };
        let odds = match kind {
            CallKind::Commit | CallKind::Resolve | CallKind::Take | CallKind::Release => 8,
            CallKind::Read | CallKind::Shards => 40,
            CallKind::Renew | CallKind::Prune => 200,
        };
        if rng.u32(0..odds) == 0 {
            plan.fault = Some(match rng.u8(0..8) {
                0 | 1 => Fault::Refuse,
                2 | 3 => Fault::LoseRequest,
                4 | 5 => Fault::LoseReply,
                6 => Fault::Ghost(Some(Duration::from_millis(rng.u64(1..400)))),
                _ => Fault::Steal,
            });
        }
        diary.write(format_args!("{kind:?} {plan:?}"));
        plan
    });
}

/// A client whose connections break or stall when the seed says so.
fn client(
    seed: u64,
    connections: mpsc::UnboundedSender<io::Result<DuplexStream>>,
    diary: &Diary,
) -> Client {
    let rng = Arc::new(Mutex::new(chance(seed, "network")));
    let diary = diary.clone();
    let connect = move || {
        let (lasts, stalls) = {
            let mut rng = rng.lock().unwrap();
            let lasts = Duration::from_secs(rng.u64(CONNECTION_LIVES));
            // Half of them end at once, of the others nobody hears for a while.
            (lasts, Duration::from_secs(rng.u64(0..40).saturating_sub(20)))
        };
        diary.write("connecting");
        let (near, mut from) = duplex(PIPE);
        let (mut to, far) = duplex(PIPE);
        let diary = diary.clone();
        tokio::spawn(async move {
            if timeout(lasts, copy_bidirectional(&mut from, &mut to)).await.is_err() {
                diary.write("a connection breaks");
                sleep(stalls).await;
            }
        });
        let sent = connections.send(Ok(far));
        async move { sent.map(|()| near).map_err(io::Error::other) }
    };
    Client::builder().connector(connect).identity("simulated").seed(seed).build().unwrap()
}

/// What is on record at the end: every run closed, its row and its journal.
async fn records(store: &MemoryStore) -> Vec<String> {
    let store = store.connect();
    let list = ListRuns {
        namespace_id: DEFAULT_NAMESPACE,
        status: None,
        before: None,
        limit: 10 * RUNS as u32,
    };
    let runs = store.list_runs(list).await.unwrap();
    assert_eq!(runs.len() as u64, RUNS, "a start has made two runs, or none");
    let mut lines = Vec::new();
    for run in runs {
        assert_eq!(run.status, WorkflowStatus::Completed, "{run:?}");
        let journal = store.read_journal(run.run_id, 0, u32::MAX).await.unwrap();
        assert!(!journal.more, "{run:?}");
        for (seq, row) in journal.rows {
            let mut hasher = DefaultHasher::new();
            row.hash(&mut hasher);
            lines.push(format!("{} row {seq}: {:x}", run.workflow_id, hasher.finish()));
        }
        lines.push(format!("{run:?}"));
    }
    lines
}
