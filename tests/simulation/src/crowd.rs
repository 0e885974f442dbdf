//! Who asks the servers.

use std::{rc::Rc, sync::Arc, time::Duration};

use crate::{
    diary::chance,
    notebook::Notes,
    stage::Caller,
    weather::Cut,
    world::{QUEUE, World},
};
use onward_checker::log::Ending;
use onward_programs::{Besides, Cue, Customer, Order, Pace};
use tokio::{
    sync::broadcast::error::RecvError,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

/// Questions to a server that has lost the database, in one such time.
const PROBES: u32 = 12;

impl World {
    fn customer(&self, name: String, caller: Caller) -> Customer {
        let own = chance(self.story.seed, &name).u64(..);
        Customer {
            client: self.client(&name, caller, own),
            name,
            queue: QUEUE.to_owned(),
            book: self.book.clone(),
            pace: Pace {
                start: self.story.lasts / 2,
                next: self.story.lasts / 8,
                look: Duration::from_secs(5),
                again: self.story.lasts / 16,
            },
            besides: Besides { cue: Some(cue(self.notes.clone())), ..Besides::default() },
        }
    }

    pub(crate) fn customers(self: &Rc<Self>) -> Vec<JoinHandle<()>> {
        let seed = self.story.seed;
        let customer = |name: String| self.customer(name, Caller::Anybody);
        let mut tasks = Vec::new();
        for (place, program) in self.story.orders.iter().cloned().enumerate() {
            let workflow_id = format!("order-{place}");
            let mut customer = customer(format!("customer-{place}"));
            let mut rng = chance(seed, &workflow_id);
            if rng.u8(0..100) < self.story.away && program.needs_nobody() {
                self.diary.reached("away");
                customer.besides.away = Some(Arc::new(self.database.connect()));
            }
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

    /// A server loses the database, and its clients do not lose the server. If somebody is with it,
    /// about a run that ends elsewhere meanwhile, it must not tell of what no longer is so.
    pub(crate) async fn cut_host(&self, lasts: Duration) {
        let birth = self.next_birth();
        let mut rng = chance(self.story.seed, format_args!("cut {birth}"));
        let first = rng.usize(0..self.story.hosts);
        let witness = |place, what: &str| {
            let name = format!("witness-{birth}-{what}-{place}");
            let mut witness = self.customer(name, Caller::Guest { host: place });
            witness.besides.patience = Some(2 * Duration::from_secs(1) + 4 * self.story.slow);
            witness.pace.again = Duration::from_millis(500);
            witness
        };
        let mut inside = witness(first, "inside");
        let mut place = first;
        let mut workflow_id = format!("witness-{birth}-{first}");
        if !inside.settle_in(&workflow_id, &mut rng).await {
            // The run's shard may be the other one's.
            place = (first + 1) % self.story.hosts;
            inside = witness(place, "inside");
            workflow_id = format!("witness-{birth}-{place}");
            if !inside.settle_in(&workflow_id, &mut rng).await {
                return;
            }
        }
        let cut = Cut { place, reads: rng.bool() };
        {
            let mut weather = self.stage.weather.lock().unwrap();
            if weather.cut.is_some() {
                return;
            }
            weather.cut = Some(cut);
        }
        self.stage.note_health();
        self.diary.write(format_args!("{cut:?} for {lasts:?}"));
        self.diary.reached("CutHost");
        self.diary.disturbed();
        let end = Instant::now() + lasts;
        let outside = witness((place + 1) % self.story.hosts, "outside");
        let mut outside_rng = rng.fork();
        let ends = async {
            while Instant::now() < end && !outside.end(&workflow_id, &mut outside_rng).await {
                sleep(Duration::from_millis(300)).await;
            }
        };
        let asks = async {
            for _ in 0..PROBES {
                if Instant::now() >= end {
                    break;
                }
                sleep((lasts / PROBES).mul_f64(2.0 * rng.f64())).await;
                inside.probe(&workflow_id, &mut rng).await;
            }
        };
        tokio::join!(ends, asks);
        sleep_until(end).await;
        self.stage.weather.lock().unwrap().cut = None;
        self.stage.note_health();
        self.diary.disturbed();
    }
}

/// Comes when a worker takes the next note of a run.
fn cue(notes: Notes) -> Cue {
    Cue::new(move |run_id| {
        let mut happens = notes.listen();
        async move {
            loop {
                match happens.recv().await {
                    Ok(happening) if happening.run_id != run_id => {}
                    // Of those that were missed one may have been this run.
                    Ok(_) | Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        }
    })
}
