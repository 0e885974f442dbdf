//! Runs that come and go while something else goes wrong.

use std::{
    fmt::Write as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use onward::{Client, RpcError, WorkflowHandle};
use onward_proto::v1::{History, ListWorkflowsRequest, WorkflowInfo};
use tokio::{sync::watch, task::JoinSet};
use uuid::Uuid;

use crate::{
    Ledger, QUEUE,
    check::{self, Report},
    process::within,
    workflows::{five_steps, five_steps_result},
};

/// A kill that finds fewer open runs does not count.
const OPEN_AT_LEAST: u64 = 50;
/// How many histories of open runs are read between two faults.
const LOOKS: usize = 3;

/// A run whose result is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// What it was started with.
    pub number: u64,
    /// Its workflow id.
    pub workflow_id: String,
    /// The run that the start's answer named.
    pub run_id: Uuid,
    /// What it returned.
    pub result: u64,
}

/// Keeps a number of [`five_steps`] open, until it is told to start no more.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    starters: JoinSet<()>,
    /// What readers saw of runs that were open then.
    seen: Vec<(Uuid, History)>,
    began: Instant,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    next: AtomicU64,
    acked: AtomicU64,
    stop: AtomicBool,
    open: Mutex<Vec<WorkflowHandle<five_steps>>>,
    ended: Mutex<Vec<Ended>>,
    completed: watch::Sender<u64>,
}

/// Faults that were done, and those that count.
#[derive(Debug)]
pub struct Faults {
    what: &'static str,
    asked: u32,
    counted: u32,
    done: u32,
    open: Vec<u64>,
}

impl Faults {
    /// So many faults have to count.
    pub fn asked(what: &'static str, asked: u32) -> Self {
        Self { what, asked, counted: 0, done: 0, open: Vec::new() }
    }

    /// Whether there is a fault to come. Ends, with a failed test, when too many did not count.
    pub fn more(&self) -> bool {
        assert!(
            self.done < self.asked * 2 + 4,
            "of {} {}, only {} found {OPEN_AT_LEAST} open runs: {:?}",
            self.done,
            self.what,
            self.counted,
            self.open
        );
        self.counted < self.asked
    }

    /// A fault is about to happen to so many open runs.
    pub fn strikes(&mut self, open: u64) {
        self.done += 1;
        self.open.push(open);
        if open >= OPEN_AT_LEAST {
            self.counted += 1;
        }
    }
}

impl Load {
    /// Starts runs until `open` of them are open, and a new one whenever one has ended.
    pub fn start(client: Client, open: u32) -> Self {
        let shared = Arc::new(Shared {
            client,
            next: AtomicU64::new(1),
            acked: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            open: Mutex::new(Vec::new()),
            ended: Mutex::new(Vec::new()),
            completed: watch::Sender::new(0),
        });
        let mut starters = JoinSet::new();
        for _ in 0..open {
            let shared = Arc::clone(&shared);
            starters.spawn(async move {
                while !shared.stop.load(Ordering::Acquire) {
                    if let Err(error) = shared.one_run().await {
                        panic!("a client got no answer: {error}");
                    }
                }
            });
        }
        Self { shared, starters, seen: Vec::new(), began: Instant::now() }
    }

    /// Runs whose start was acked and whose end is not known.
    pub fn open(&self) -> u64 {
        self.shared.acked.load(Ordering::Acquire) - *self.shared.completed.borrow()
    }

    /// Waits until so many more runs have completed, and enough are open for a fault to count.
    pub async fn more_completions(&mut self, more: u64) {
        // Before the wait and not behind it, where it would let runs end that the fault needs.
        self.look().await;
        let target = *self.shared.completed.borrow() + more;
        let mut completed = self.shared.completed.subscribe();
        let waited = tokio::time::timeout(std::time::Duration::from_secs(90), async {
            loop {
                if *completed.borrow_and_update() >= target && self.open() >= OPEN_AT_LEAST {
                    return;
                }
                // Starts are acked without a completion, too.
                tokio::select! {
                    _ = completed.changed() => {}
                    () = tokio::time::sleep(std::time::Duration::from_millis(5)) => {}
                    Some(ended) = self.starters.join_next() => ended.unwrap(),
                }
            }
        })
        .await;
        if waited.is_err() {
            let report = self.stuck().await;
            panic!("no {more} completions for 90 s:\n{report}");
        }
    }

    /// Reads histories of open runs: what a reader has seen must stand there for ever.
    async fn look(&mut self) {
        let oldest: Vec<_> = self.shared.open.lock().unwrap().iter().take(LOOKS).cloned().collect();
        for handle in oldest {
            let run_id = handle.run_id().expect("a handle of a start names its run");
            let history = within(60, "a history is read", handle.history()).await.unwrap();
            self.seen.push((run_id, history));
        }
    }

    /// Starts no more, waits for the runs that are open, and gives all.
    pub async fn finish(mut self) -> Vec<Ended> {
        self.shared.stop.store(true, Ordering::Release);
        let all = async {
            while let Some(ended) = self.starters.join_next().await {
                ended.unwrap();
            }
        };
        if tokio::time::timeout(std::time::Duration::from_secs(90), all).await.is_err() {
            let report = self.stuck().await;
            panic!("runs are open 90 s after the last fault:\n{report}");
        }
        let ended = std::mem::take(&mut *self.shared.ended.lock().unwrap());
        assert_eq!(ended.len() as u64, self.shared.acked.load(Ordering::Acquire));
        ended
    }

    /// Ends the load after the last fault, and checks all that it has done.
    pub async fn finish_and_check(mut self, faults: &Faults, dir: &Path) -> Report {
        assert_eq!(faults.counted, faults.asked, "{} that count", faults.what);
        let (client, began) = (self.shared.client.clone(), self.began);
        let seen = std::mem::take(&mut self.seen);
        let ended = self.finish().await;
        let effects = Ledger::open(&dir.join("ledger.db")).await.unwrap().effects().await.unwrap();
        let histories = within(120, "all histories are read", read(&client, &ended)).await;
        let mut report = check::five_steps(&ended, &histories, &effects);
        check::append_only(&ended, &histories, &seen, &mut report);
        let listed = within(60, "all runs are listed", list(&client)).await;
        check::listed(&ended, &histories, &listed, &mut report);
        println!(
            "{} of {} {} counted, open at each {:?}; {report}, {:.1} s",
            faults.counted,
            faults.done,
            faults.what,
            faults.open,
            began.elapsed().as_secs_f64()
        );
        assert_eq!(report.violations, [""; 0], "{} violations", report.violations.len());
        report
    }

    /// What the server says of runs that do not move.
    async fn stuck(&self) -> String {
        let open: Vec<_> = self.shared.open.lock().unwrap().clone();
        let mut text = format!("{} runs are open\n", open.len());
        for handle in open.iter().take(8) {
            let described =
                tokio::time::timeout(std::time::Duration::from_secs(5), handle.describe());
            let _ = match described.await {
                Ok(Ok(run)) => writeln!(text, "{}: {:?} {:?}", handle.id(), run.waits_for, run),
                Ok(Err(error)) => writeln!(text, "{}: {error}", handle.id()),
                Err(_) => writeln!(text, "{}: describe does not answer", handle.id()),
            };
        }
        text
    }
}

/// All runs that the server knows.
async fn list(client: &Client) -> Vec<WorkflowInfo> {
    let mut request = ListWorkflowsRequest::default();
    let mut runs = Vec::new();
    loop {
        let page = client.raw().list_workflows(request.clone()).await.unwrap().into_inner();
        runs.extend(page.workflows);
        if page.next_page_token.is_empty() {
            return runs;
        }
        request.page_token = page.next_page_token;
    }
}

/// Reads the histories of the runs, in their order.
async fn read(client: &Client, ended: &[Ended]) -> Vec<History> {
    let mut histories = Vec::new();
    for run in ended {
        let handle = client.handle::<five_steps>(&run.workflow_id).run(run.run_id);
        histories.push(handle.history().await.unwrap());
    }
    histories
}

impl Shared {
    async fn one_run(&self) -> Result<(), RpcError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = five_steps(&self.client, number)
            .id(format!("five-steps-{number}"))
            .queue(QUEUE)
            .start()
            .await?;
        self.acked.fetch_add(1, Ordering::AcqRel);
        self.open.lock().unwrap().push(handle.clone());
        let result = match handle.result().await {
            Ok(result) => result,
            Err(onward::WorkflowError::Rpc(error)) => return Err(error),
            Err(other) => panic!("{}: {other}", handle.id()),
        };
        assert_eq!(result, five_steps_result(number), "{}", handle.id());
        self.open.lock().unwrap().retain(|open| open.id() != handle.id());
        self.ended.lock().unwrap().push(Ended {
            number,
            workflow_id: handle.id().to_owned(),
            run_id: handle.run_id().expect("a handle of a start names its run"),
            result,
        });
        self.completed.send_modify(|completed| *completed += 1);
        Ok(())
    }
}
