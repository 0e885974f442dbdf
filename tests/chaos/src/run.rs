//! One run of it: a crowd comes, trouble begins, all is well again, and everything is judged.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use onward_checker::{
    Log,
    log::{Ending, Snapshot},
};
use onward_programs::{Book, Order, evidence::why_open};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    Summary, Trouble,
    crowd::{Crowd, customer, nothing},
    evidence, now_us,
    scene::{Database, Mood, Scene},
    trouble::befall,
};

/// Troubles at the same time, at most.
const AT_ONCE: usize = 3;
/// Longest pause before the next one.
const PAUSE: Duration = Duration::from_millis(1_500);
/// How long a look into the database may take; somebody may have locked it.
const LOOK: Duration = Duration::from_secs(1);
/// Programs that must have ended before the first of them.
const WARM: u64 = 20;
/// Between two moments at which all is well.
const LULL_EVERY: Duration = Duration::from_secs(20);
/// When all is well, so many programs are served one after the other,
const SERVED: u64 = 5;
/// within this time.
const RECOVERY: Duration = Duration::from_secs(30);
/// When all is well, every program ends within this time.
const PATIENCE: Duration = Duration::from_mins(3);

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Where chance comes from.
    pub seed: u64,
    /// Where the server keeps its runs.
    pub store: Store,
    /// How long things go wrong.
    pub lasts: Duration,
    /// How long the longest trouble lasts.
    pub longest: Duration,
}

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// `onward server` on a cluster of its own.
    Postgres,
    /// `onward dev`.
    Sqlite,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
        })
    }
}

/// Does it, and judges what came of it.
///
/// # Panics
/// If a process does not start, or ends by itself.
pub async fn run(options: Options) -> Summary {
    let began = Instant::now();
    let dir = tempfile::Builder::new().prefix("onward-chaos-").tempdir().unwrap().keep();
    let summary = act(options, &dir, began).await;
    if summary.wrong().is_none() {
        fs::remove_dir_all(&dir).unwrap();
    }
    summary
}

async fn act(options: Options, dir: &Path, began: Instant) -> Summary {
    let mut rng = fastrand::Rng::with_seed(options.seed);
    let scene = Arc::new(Scene::set(options.store, Mood::Rough, dir).await);
    let book = Book::new(now_us);
    let mut crowd = Crowd::gather(&scene, &mut rng, book.clone());
    while crowd.ended() < WARM {
        sleep(Duration::from_millis(50)).await;
    }
    let mut days = Days::new(options, Arc::clone(&scene), rng).await;
    let until = Instant::now() + options.lasts;
    while Instant::now() < until {
        days.trouble(until.min(Instant::now() + LULL_EVERY)).await;
        days.recover(&book).await;
    }
    let (mut log, mut wrong) = conclude(&scene, [&mut crowd], &book).await;
    log.snapshots.append(&mut days.snapshots);
    log.disturbances = days.troubles.iter().flat_map(|(_, from, to)| [*from, *to]).collect();
    days.wrong.append(&mut wrong);
    days.wrong.extend(evidence::said(&scene.logs()));
    days.write_down(dir);
    Summary {
        options,
        report: onward_checker::check(&log),
        log,
        troubles: days.count(),
        programs: crowd.ordered(),
        recoveries: days.recoveries,
        wrong: days.wrong,
        dir: dir.to_owned(),
        wall: began.elapsed(),
    }
}

/// Waits until every program has ended, gathers what all of them left, and stops the server. Says
/// what is wrong besides what a checker finds.
pub(crate) async fn conclude<const N: usize>(
    scene: &Scene,
    mut crowds: [&mut Crowd; N],
    book: &Book,
) -> (Log, Vec<String>) {
    for crowd in &crowds {
        crowd.close();
    }
    let leave = async {
        for crowd in &mut crowds {
            crowd.leave().await;
        }
    };
    let in_time = timeout(PATIENCE, leave).await.is_ok();
    let client = scene.client_within().await;
    let (operations, reads, mut endings) = book.take();
    for workflow_id in crowds.iter().flat_map(|crowd| crowd.open()) {
        let wrong = Some(why_open(&client, &workflow_id).await);
        endings.push(Ending { workflow_id, wrong });
    }
    let mut log = evidence::gather(scene, &client).await;
    scene.server.lock().await.stop().await;
    log.operations = operations;
    log.reads = reads;
    log.endings = endings;
    let late = "not all clients came to an end".to_owned();
    (log, (!in_time).then_some(late).into_iter().collect())
}

/// What goes wrong, and what is seen of it.
struct Days {
    options: Options,
    scene: Arc<Scene>,
    rng: fastrand::Rng,
    /// What will happen next, the last one first.
    bag: Vec<Trouble>,
    /// Kind, from, to.
    troubles: Vec<(Trouble, u64, u64)>,
    recoveries: Vec<Duration>,
    /// Straight to Postgres.
    url: Option<String>,
    snapshots: Vec<Snapshot>,
    wrong: Vec<String>,
}

impl Days {
    async fn new(options: Options, scene: Arc<Scene>, rng: fastrand::Rng) -> Self {
        let url = match &*scene.database.lock().await {
            Database::Postgres(postgres) => Some(postgres.url.clone()),
            Database::Sqlite(_) => None,
        };
        Self {
            options,
            scene,
            rng,
            bag: Vec::new(),
            troubles: Vec::new(),
            recoveries: Vec::new(),
            url,
            snapshots: Vec::new(),
            wrong: Vec::new(),
        }
    }

    /// What can happen here.
    fn kinds(&self) -> Vec<Trouble> {
        let mut all = Trouble::all(self.options.store);
        all.retain(|trouble| *trouble != Trouble::FullDisk || self.scene.disk.is_some());
        all
    }

    /// One trouble after the other and beside each other until then, and until each has passed.
    async fn trouble(&mut self, until: Instant) {
        let mut happening = JoinSet::new();
        while Instant::now() < until {
            if self.bag.is_empty() {
                self.bag = self.kinds();
                self.rng.shuffle(&mut self.bag);
            }
            let trouble = self.bag.pop().expect("there is always something");
            let (scene, mut rng) = (Arc::clone(&self.scene), self.rng.fork());
            let longest = self.options.longest;
            happening.spawn(async move {
                let from = now_us();
                let happened = befall(&scene, trouble, longest, &mut rng).await;
                (trouble, happened.map(|()| (from, now_us())))
            });
            sleep(PAUSE.mul_f64(self.rng.f64())).await;
            if let Some(url) = &self.url
                && let Ok(Some(snapshot)) = timeout(LOOK, evidence::look(url)).await
            {
                self.snapshots.push(snapshot);
            }
            while happening.len() >= AT_ONCE {
                let happened = happening.join_next().await.expect("some do").unwrap();
                self.happened(happened);
            }
        }
        while let Some(happened) = happening.join_next().await {
            self.happened(happened.unwrap());
        }
    }

    fn happened(&mut self, (trouble, when): (Trouble, Option<(u64, u64)>)) {
        match when {
            Some((from, to)) => self.troubles.push((trouble, from, to)),
            // It is the next one, as soon as what it is about is free.
            None => self.bag.push(trouble),
        }
    }

    /// All is well: somebody is served soon.
    async fn recover(&mut self, book: &Book) {
        let well = Instant::now();
        let client = self.scene.client_within().await;
        let (lull, mut rng) = (self.recoveries.len(), self.rng.fork());
        let mut recovered = None;
        let served = async {
            for n in 0..SERVED {
                let name = format!("probe-{lull}-{n}");
                let order = Order { workflow_id: name.clone(), program: nothing() };
                customer(name, client.clone(), book.clone()).order(order, rng.fork()).await;
                recovered.get_or_insert_with(|| well.elapsed());
            }
        };
        if timeout(RECOVERY, served).await.is_err() {
            self.wrong.push(format!("all was well, and nobody was served for {RECOVERY:?}"));
        }
        self.recoveries.push(recovered.unwrap_or(RECOVERY));
    }

    /// How often each thing happened that can.
    fn count(&self) -> BTreeMap<Trouble, u64> {
        let mut count: BTreeMap<_, _> = self.kinds().into_iter().map(|kind| (kind, 0)).collect();
        for (trouble, ..) in &self.troubles {
            *count.entry(*trouble).or_default() += 1;
        }
        count
    }

    /// For who looks at the logs.
    fn write_down(&self, dir: &Path) {
        let mut text = String::new();
        for (trouble, from, to) in &self.troubles {
            let _ = writeln!(text, "{from} {to} {trouble:?}");
        }
        fs::write(dir.join("troubles.txt"), text).unwrap();
    }
}
