//! Who uses the system meanwhile.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use onward::Client;
use onward_checker::log::Ending;
use onward_programs::{Besides, Book, Customer, Finish, Order, Pace, Program};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    QUEUE,
    scene::{CLIENTS, Scene},
};

/// Orders of one client that are open at once.
const OPEN: usize = 8;
/// The same, of one in a hurry.
const OPEN_IN_HASTE: usize = 96;
/// A program's timers are so many times shorter than in a simulation.
const HASTE: u64 = 60;
/// Programs that take longer by themselves are left out.
const LONGEST_MS: u64 = 15_000;
/// Customers who contend for the same ids.
const CONTENDERS: usize = 3;

/// All clients.
pub(crate) struct Crowd {
    book: Book,
    tasks: JoinSet<()>,
    closed: Arc<AtomicBool>,
    ordered: Arc<AtomicU64>,
    /// Workflow ids of programs that have not ended.
    open: Arc<Mutex<BTreeSet<String>>>,
}

impl Crowd {
    fn new(book: Book) -> Self {
        Self {
            book,
            tasks: JoinSet::new(),
            closed: Arc::default(),
            ordered: Arc::default(),
            open: Arc::default(),
        }
    }

    /// Customers in a hurry: they order much, as long as it is open.
    pub(crate) fn rush(scene: &Scene, rng: &mut fastrand::Rng, book: Book) -> Self {
        let mut crowd = Self::new(book);
        for n in 0..CLIENTS {
            crowd.customer(format!("hasty-{n}"), OPEN_IN_HASTE, scene.client(n), rng.fork());
        }
        crowd
    }

    /// Clients come, and order as long as it is open.
    pub(crate) fn gather(scene: &Scene, rng: &mut fastrand::Rng, book: Book) -> Self {
        let mut crowd = Self::new(book);
        for n in 0..CLIENTS {
            crowd.customer(format!("customer-{n}"), OPEN, scene.client(n), rng.fork());
        }
        for n in 0..CONTENDERS {
            crowd.contender(n, scene.client(n), rng.fork());
        }
        crowd.pest(scene.client(0), rng.fork());
        crowd
    }

    /// Programs that were ordered.
    pub(crate) fn ordered(&self) -> u64 {
        self.ordered.load(Ordering::Relaxed)
    }

    /// Programs that have ended.
    pub(crate) fn ended(&self) -> u64 {
        let ordered = self.ordered();
        ordered.saturating_sub(self.open.lock().unwrap().len() as u64)
    }

    /// Workflow ids of those that have not ended.
    pub(crate) fn open(&self) -> BTreeSet<String> {
        self.open.lock().unwrap().clone()
    }

    /// Nobody orders any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether nobody orders any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Waits until all have left.
    pub(crate) async fn leave(&mut self) {
        while let Some(left) = self.tasks.join_next().await {
            left.unwrap();
        }
    }

    fn customer(&mut self, who: String, at_once: usize, client: Client, mut rng: fastrand::Rng) {
        let (book, closed) = (self.book.clone(), Arc::clone(&self.closed));
        let (ordered, open) = (Arc::clone(&self.ordered), Arc::clone(&self.open));
        self.tasks.spawn(async move {
            let mut orders = JoinSet::new();
            for number in 0.. {
                if closed.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("{who}-{number}");
                let order = Order { workflow_id: name.clone(), program: program(&mut rng) };
                let customer = customer(name.clone(), client.clone(), book.clone());
                ordered.fetch_add(1, Ordering::Relaxed);
                open.lock().unwrap().insert(name.clone());
                let (rng, open) = (rng.fork(), Arc::clone(&open));
                orders.spawn(async move {
                    customer.order(order, rng).await;
                    open.lock().unwrap().remove(&name);
                });
                if orders.len() == at_once {
                    orders.join_next().await.expect("some are open").unwrap();
                }
            }
            while let Some(ended) = orders.join_next().await {
                ended.unwrap();
            }
        });
    }

    /// Contends for ids, a pair at a time: what may have become of an id has to be searched.
    fn contender(&mut self, n: usize, client: Client, mut rng: fastrand::Rng) {
        let (book, closed) = (self.book.clone(), Arc::clone(&self.closed));
        self.tasks.spawn(async move {
            let customer = customer(format!("contender-{n}"), client, book);
            let mut pair = 0;
            while !closed.load(Ordering::Relaxed) {
                let ids = [format!("shared-{pair}-a"), format!("shared-{pair}-b")];
                customer.contend(&ids, 8, rng.fork()).await;
                pair += 1;
            }
        });
    }

    fn pest(&mut self, client: Client, mut rng: fastrand::Rng) {
        let (book, closed) = (self.book.clone(), Arc::clone(&self.closed));
        self.tasks.spawn(async move {
            for number in 0.. {
                if closed.load(Ordering::Relaxed) {
                    break;
                }
                let workflow_id = format!("pest-{number}");
                let pest = customer(workflow_id.clone(), client.clone(), book.clone());
                let wrong = pest.pester(&workflow_id, rng.fork()).await.err();
                book.ending(Ending { workflow_id, wrong });
                sleep(pest.pace.next).await;
            }
        });
    }
}

/// A customer who does not wait long.
pub(crate) fn customer(name: String, client: Client, book: Book) -> Customer {
    let pace = Pace {
        start: Duration::ZERO,
        next: Duration::from_secs(1),
        look: Duration::from_millis(300),
        again: Duration::from_millis(300),
    };
    let besides = Besides::default();
    Customer { name, client, queue: QUEUE.to_owned(), book, pace, besides }
}

fn program(rng: &mut fastrand::Rng) -> Program {
    loop {
        let program = Program::random(rng).hastened(HASTE);
        if program.lasts_ms() <= LONGEST_MS {
            return program;
        }
    }
}

/// A program that does nothing.
pub(crate) fn nothing() -> Program {
    Program { steps: Vec::new(), finish: Finish::Return, unread: 0 }
}
