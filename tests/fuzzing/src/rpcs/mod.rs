//! A storm of nearly valid calls, and customers in the middle of it who must not feel anything.
//!
//! Which methods there are is read from the descriptors of the services: one that nothing good is
//! known for, that never succeeds, or that is of a kind nobody here can call, fails the storm. It
//! all happens in one thread, on a virtual clock and from one seed.

pub(crate) mod draw;
mod forge;
mod villain;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    rc::Rc,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use onward::{Env as WorkerEnv, Worker};
use onward_checker::log::Log;
use onward_programs::{
    Besides, Book, Customer, Order, Pace, Program, Tools, interpret,
    notes::{self, Note, Notebook, Noted},
    work,
};
use onward_server::store::{CallKind, Fault, Plan};
use onward_simulation::evidence;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use tokio::{task::spawn_local, time};

use self::forge::Lore;
use crate::{
    panics,
    server::{Server, database, runtime},
};

/// Those who call at the same time.
const VILLAINS: usize = 16;
/// Longest pause between two calls of one of them. Virtual time passes in pauses only.
const PAUSE: Duration = Duration::from_millis(40);
/// How long customers may take when the storm is over, beside what their programs sleep.
const PATIENCE: Duration = Duration::from_mins(30);
/// The queue of the customers' programs.
const QUEUE: &str = "programs";
/// Rules that hold for every run, whoever started it. The others compare with what was asked for,
/// and of the storm nobody kept a record.
const SOUND: &[&str] = &["H1", "H3", "H4", "H5", "H6", "H7", "O1", "T1", "S3", "K3", "K4", "K5"];

/// Which storm.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    /// Where all chance comes from.
    pub seed: u64,
    /// Calls, and frames of sessions.
    pub rpcs: u64,
}

/// What came of a storm.
#[derive(Debug, Default)]
pub struct Summary {
    /// Calls, and frames of sessions.
    pub rpcs: u64,
    /// How often each method gave which code, and how often each kind of item was sent.
    pub counts: BTreeMap<String, u64>,
    /// Programs of customers.
    pub customers: usize,
    /// All runs in the store.
    pub runs: usize,
    /// The most processor time that passed between a call and its answer, others' included.
    pub slowest: Duration,
    /// What should not have happened.
    pub wrong: Vec<String>,
    /// Stands for all answers, in order.
    pub trace: u64,
    virtual_time: Duration,
    wall: Duration,
}

impl Summary {
    /// How often a method gave this code.
    fn count(&self, method: &str, code: &str) -> u64 {
        self.counts.get(&format!("{method} {code}")).copied().unwrap_or(0)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |end: &str| -> u64 {
            self.counts.iter().filter(|(name, _)| name.ends_with(end)).map(|(_, count)| count).sum()
        };
        write!(
            f,
            "RPCS rpcs={} ok={} invalid={} not_found={} runs={} customers={} vtime={:.0}s \
             slowest_cpu={}ms wrong={} wall={:.0}s",
            self.rpcs,
            sum(" Ok"),
            sum(" InvalidArgument"),
            sum(" NotFound"),
            self.runs,
            self.customers,
            self.virtual_time.as_secs_f64(),
            self.slowest.as_millis(),
            self.wrong.len(),
            self.wall.as_secs_f64()
        )
    }
}

impl Storm {
    /// Lets it rage, and looks at what it left behind.
    pub fn rage(self) -> Summary {
        let began = Instant::now();
        let before = panics::count();
        let (runtime, local) = runtime();
        let mut summary = local.block_on(&runtime, World::play(self));
        NOTEBOOK.replace(None);
        for panic in panics::since(before) {
            summary.wrong.push(format!("seed={} {panic}", self.seed));
        }
        summary.wall = began.elapsed();
        summary
    }
}

/// The descriptors of everything on the wire.
fn descriptors() -> DescriptorPool {
    DescriptorPool::decode(onward_proto::FILE_DESCRIPTOR_SET)
        .expect("our own descriptors are valid")
}

/// All methods of all services.
fn methods(pool: &DescriptorPool) -> Vec<MethodDescriptor> {
    pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
}

/// Whether a method is a worker's session: the one stream that can be played here.
fn is_session(method: &MethodDescriptor) -> bool {
    method.full_name() == "onward.v1.WorkerService.Session"
}

/// The paths of all methods that take and give one message.
#[cfg(test)]
pub(crate) fn unary_paths() -> Vec<String> {
    methods(&descriptors()).iter().filter(|method| !is_session(method)).map(path).collect()
}

/// The path of a method.
fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

thread_local! {
    /// Where workflow code of this thread's customers takes notes.
    static NOTEBOOK: RefCell<Option<Arc<dyn Notebook>>> = const { RefCell::new(None) };
}

/// Notes of what the customers' worker runs.
struct Pen {
    dawn: time::Instant,
    notes: Arc<Mutex<Vec<Noted>>>,
}

impl Notebook for Pen {
    fn take(&self, note: Note) {
        let at_us = self.dawn.elapsed().as_micros() as u64;
        self.notes.lock().unwrap().push(Noted { at_us, note });
    }
}

/// What villains share.
struct World {
    seed: u64,
    server: Server,
    methods: Vec<MethodDescriptor>,
    lore: RefCell<Lore>,
    left: Cell<u64>,
    summary: RefCell<Summary>,
}

impl World {
    async fn play(storm: Storm) -> Summary {
        let store = database();
        store.faults().set_planner(|kind| match kind {
            // The checker wants to see every batch.
            CallKind::Prune => Plan::fault(Fault::Refuse),
            _ => Plan::default(),
        });
        let pool = descriptors();
        let world = Rc::new(Self {
            seed: storm.seed,
            server: Server::start(store, storm.seed, 2, 1 << 20).await,
            methods: methods(&pool),
            lore: RefCell::default(),
            left: Cell::new(storm.rpcs),
            summary: RefCell::default(),
        });
        world.know_every_method();
        let dawn = time::Instant::now();
        let notes: Arc<Mutex<Vec<Noted>>> = Arc::default();
        let pen: Arc<dyn Notebook> = Arc::new(Pen { dawn, notes: Arc::clone(&notes) });
        NOTEBOOK.replace(Some(Arc::clone(&pen)));
        notes::open_with(|| NOTEBOOK.with_borrow(Clone::clone));
        let worker = Worker::builder(world.server.client("worker", storm.seed), QUEUE)
            .deps(Tools { notebook: pen, worker: "worker".to_owned() })
            .workflows::<(interpret,)>()
            .activities::<(work,)>()
            .env(WorkerEnv::simulated(storm.seed))
            .spawn()
            .await
            .expect("a worker with something to run runs");
        let book = Book::new(move || dawn.elapsed().as_micros() as u64);
        let mut rng = fastrand::Rng::with_seed(storm.seed);

        let lasts = PAUSE.mul_f64(storm.rpcs as f64 / VILLAINS as f64 / 2.0);
        let customers = 8 + storm.rpcs / 2_000;
        let mut patience = PATIENCE;
        let mut served = Vec::new();
        for n in 0..customers {
            let order =
                Order { workflow_id: format!("order-{n}"), program: Program::random(&mut rng) };
            patience = patience.max(PATIENCE + Duration::from_millis(order.program.lasts_ms()));
            world.lore.borrow_mut().orders.push(order.workflow_id.clone());
            let customer = world.customer(&format!("customer-{n}"), &book, lasts, &mut rng);
            let rng = rng.fork();
            served.push(spawn_local(async move { customer.order(order, rng).await }));
        }
        let villains: Vec<_> = (0..VILLAINS)
            .map(|_| spawn_local(villain::rage(Rc::clone(&world), rng.fork())))
            .collect();
        for villain in villains {
            if villain.await.is_err() {
                world.wrong("a villain has died");
            }
        }
        let all = async {
            for customer in served {
                drop(customer.await);
            }
            // Who comes when it is over is served as well.
            let quiet = Program::random(&mut rng);
            let order = Order { workflow_id: "order-last".to_owned(), program: quiet };
            let last = world.customer("last", &book, Duration::ZERO, &mut rng);
            last.order(order, rng.fork()).await;
        };
        if time::timeout(2 * patience, all).await.is_err() {
            world.wrong("a customer still waits");
        }
        world.judge(&book, &notes).await;
        drop(worker);
        let mut summary = world.summary.take();
        summary.rpcs = storm.rpcs - world.left.get();
        summary.customers = customers as usize + 1;
        summary.virtual_time = dawn.elapsed();
        world.look_for_silence(&summary).into_iter().for_each(|wrong| summary.wrong.push(wrong));
        summary
    }

    fn customer(
        &self,
        name: &str,
        book: &Book,
        lasts: Duration,
        rng: &mut fastrand::Rng,
    ) -> Customer {
        Customer {
            client: self.server.client(name, rng.u64(..)),
            name: name.to_owned(),
            queue: QUEUE.to_owned(),
            book: book.clone(),
            pace: Pace {
                start: lasts,
                next: lasts / 8,
                look: Duration::from_secs(1),
                again: lasts / 8,
            },
            besides: Besides::default(),
        }
    }

    fn wrong(&self, what: impl fmt::Display) {
        self.summary.borrow_mut().wrong.push(format!("seed={} {what}", self.seed));
    }

    /// One more call or frame, if there is one left: its number.
    fn ticket(&self) -> Option<u64> {
        let left = self.left.get();
        self.left.set(left.checked_sub(1)?);
        Some(left)
    }

    fn reached(&self, what: String) {
        *self.summary.borrow_mut().counts.entry(what).or_default() += 1;
    }

    /// A method can be called here, and something good is known for each of its fields.
    fn know_every_method(&self) {
        for method in &self.methods {
            let name = method.full_name();
            let streams = method.is_client_streaming() || method.is_server_streaming();
            if streams != is_session(method) {
                self.wrong(format_args!("{name}: nobody here knows how to call it"));
            }
            for field in forge::strangers(&method.input()) {
                self.wrong(format_args!("{name}: nothing good is known for {field}"));
            }
        }
    }

    /// A method that never did anything, or a kind of item that was never sent, proves nothing. A
    /// storm of a few calls need not reach all.
    fn look_for_silence(&self, summary: &Summary) -> Vec<String> {
        let mut silent = Vec::new();
        if summary.rpcs < 5_000 {
            return silent;
        }
        for method in &self.methods {
            let name = path(method);
            if summary.count(&name, "Ok") == 0 {
                silent.push(format!("VOID: {name} never succeeded"));
            }
            if !is_session(method) {
                continue;
            }
            let items = method.input().get_field_by_name("items");
            let prost_reflect::Kind::Message(item) = items.expect("frames have items").kind()
            else {
                panic!("items are messages")
            };
            for kind in item.fields() {
                if summary.count("item", kind.name()) == 0 {
                    silent.push(format!("VOID: no item {} was sent", kind.name()));
                }
            }
        }
        silent
    }

    /// Puts what the customers saw, and what is in the store, before the checker.
    async fn judge(&self, book: &Book, notes: &Mutex<Vec<Noted>>) {
        let client = self.server.client("judge", 0);
        if let Err(error) = client.server_info().await {
            self.wrong(format_args!("the server does not answer any more: {error}"));
        }
        let parked = self.server.metric("onward_parked_runs_total");
        if parked != 0.0 {
            self.wrong(format_args!("{parked} runs are parked"));
        }
        let all = evidence::store(&self.server.store.connect(), &client).await;
        self.summary.borrow_mut().runs = all.runs.len();
        for violation in onward_checker::check(&all).violations() {
            if SOUND.contains(&violation.rule) {
                self.wrong(violation);
            }
        }
        let (operations, reads, endings) = book.take();
        let noted = std::mem::take(&mut *notes.lock().unwrap());
        let (executions, waits) = notes::assemble(noted);
        let is_order = |run: &onward_checker::log::Run| run.workflow_id.starts_with("order-");
        let runs: Vec<_> = all.runs.into_iter().filter(is_order).collect();
        let known = |run_id| runs.iter().any(|run| run.run_id == run_id);
        let executions = executions.into_iter().filter(|one| known(one.run_id)).collect();
        let waits = waits.into_iter().filter(|one| known(one.run_id)).collect();
        let listed = all.listed.into_iter().filter(|one| known(one.run_id)).collect();
        let replays = all.replays.into_iter().filter(|one| known(one.run_id)).collect();
        let log = Log {
            operations,
            reads,
            endings,
            executions,
            waits,
            runs,
            batches: all.batches,
            listed,
            replays,
            ..Log::default()
        };
        for violation in onward_checker::check(&log).violations() {
            self.wrong(violation);
        }
    }
}
