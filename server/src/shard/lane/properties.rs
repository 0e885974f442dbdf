//! What holds of a lane in whatever order letters come, the database answers and time passes, with
//! so little memory that a run leaves as soon as it can.
//!
//! The lane is the real one, turned by hand: the test decides when the database is heard.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, Waker},
};

use onward_proto::{
    DEFAULT_NAMESPACE, RequestId, SLOTS,
    v1::{
        ActivityTask, Command, CompleteWorkflow, IdConflictPolicy, IdReusePolicy, ScheduleActivity,
        StartTimer, WorkflowTask, WorkflowTaskFailureCause, command, history_event::Attributes,
        server_item,
    },
};
use proptest::prelude::*;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use uuid::Uuid;

use super::{
    super::{
        batch::read_row,
        message::{FromWorker, Target},
        node::NodeOptions,
    },
    *,
};
use crate::{
    dispatch::{Kind, Session, SessionInfo},
    engine::{Answer, Input, Limits, Signal, Start, Stop, TaskCompletion, Worker},
    env::{BootClock, Env, TokioBootClock},
    store::{MemoryStore, Store as _, Take, Taken},
};

/// Workflow ids, few so that requests meet.
const IDS: u8 = 4;

/// Something that may happen. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Op {
    Start(u8),
    Signal(u8),
    Describe(u8),
    Terminate(u8),
    /// A worker answers a task.
    Complete(u8, Ask),
    FailTask(u8),
    CompleteActivity(u8),
    /// The worker has room for so many.
    Credits(u32),
    Turn,
    /// What runs beside the lane goes on.
    Beside,
    /// The lane hears of it, if there is something.
    Hear,
    Pass(u64),
    RenewLease,
}

#[derive(Debug, Clone)]
enum Ask {
    Nothing,
    Call,
    Timer(i64),
    Close,
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u8>();
    let ask = prop_oneof![
        1 => Just(Ask::Nothing),
        3 => Just(Ask::Call),
        2 => (0..2_000_i64).prop_map(Ask::Timer),
        2 => Just(Ask::Close),
    ];
    prop_oneof![
        6 => n.prop_map(Op::Start),
        6 => n.prop_map(Op::Signal),
        3 => n.prop_map(Op::Describe),
        1 => n.prop_map(Op::Terminate),
        8 => (n, ask).prop_map(|(task, ask)| Op::Complete(task, ask)),
        2 => n.prop_map(Op::FailTask),
        6 => n.prop_map(Op::CompleteActivity),
        2 => (0..4_u32).prop_map(Op::Credits),
        20 => Just(Op::Turn),
        12 => Just(Op::Beside),
        16 => Just(Op::Hear),
        8 => prop_oneof![6 => 0..100_u64, 1 => 0..5_000_u64].prop_map(Op::Pass),
        3 => Just(Op::RenewLease),
    ]
}

/// A lane, its database, and those who talk to it.
struct Stage {
    lane: Lane,
    store: MemoryStore,
    session: Arc<Session>,
    tasks: Vec<WorkflowTask>,
    activities: Vec<ActivityTask>,
    answers: Vec<oneshot::Receiver<Result<Answer, Refusal>>>,
    signals: Vec<oneshot::Receiver<Result<Answer, Refusal>>>,
    descriptions:
        Vec<oneshot::Receiver<Result<Box<onward_proto::v1::DescribeWorkflowResponse>, Refusal>>>,
    /// Runs that have been in memory.
    known: BTreeSet<RunId>,
    drawn: u32,
    /// Keeps the background going.
    _stop: watch::Sender<bool>,
}

impl Stage {
    async fn begin() -> Self {
        Self::begin_by(Arc::new(TokioBootClock::start())).await
    }

    /// The same, with another clock of the node's own.
    async fn begin_by(boot: Arc<dyn BootClock>) -> Self {
        let dawn = Instant::now();
        let clock = move || Timestamp::from_micros(1_790_000_000_000_000) + dawn.elapsed();
        let store = MemoryStore::new(clock);
        let node = Node::new(NodeOptions {
            env: Env::seeded(boot, 1),
            store: Arc::new(store.clone()),
            limits: Limits::default(),
            cache_bytes: 0,
            waiting_bytes: 0,
            shards: 1,
        });
        let watched = store.shards(1).await.unwrap().rows.remove(0);
        let (shard, commit_id) = (watched.shard_id, CommitId(Uuid::from_u128(1)));
        let lease_us = LEASE.as_micros() as i64;
        let take = Take { watched, node_id: node.id, address: String::new(), commit_id, lease_us };
        let Taken::Owned { epoch, commit_seq, now } = store.take(take).await.unwrap() else {
            panic!("nobody else is there")
        };
        node.sync_clock(now, Duration::ZERO);
        let owned = Owned { epoch, commit_seq, commit_id };
        let (due_asks, due_asked) = mpsc::channel(1);
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(crate::background::read_due_runs(Arc::clone(&node), due_asked, stopped));
        let lease = Arc::new(Lease::new(shard, owned, Duration::ZERO));
        let session = Arc::new(Session::new(SessionInfo {
            namespace_id: DEFAULT_NAMESPACE,
            namespace: "default".to_owned(),
            task_queue: "q".to_owned(),
            workflow_types: ["order".to_owned()].into(),
            activity_types: ["charge".to_owned()].into(),
            worker: Worker {
                session: SessionId(1),
                identity: String::new(),
                build_id: String::new(),
            },
        }));
        assert!(node.dispatch.open(Arc::clone(&session)));
        let lane = Lane::new(node, shard, 0..SLOTS, lease, owned, false, due_asks);
        Self {
            lane,
            store,
            session,
            tasks: Vec::new(),
            activities: Vec::new(),
            answers: Vec::new(),
            signals: Vec::new(),
            descriptions: Vec::new(),
            known: BTreeSet::new(),
            drawn: 0,
            _stop: stop,
        }
    }

    async fn play(&mut self, op: &Op) {
        match op {
            Op::Start(n) => {
                let start = self.start(*n);
                let (answer, asked) = oneshot::channel();
                self.answers.push(asked);
                self.ask(Request::Start { start: Box::new(start), answer, outcome: None });
            }
            Op::Signal(n) => {
                let signal = Signal {
                    name: "s".to_owned(),
                    arguments: Vec::new(),
                    request_id: self.request_id(),
                    identity: String::new(),
                };
                let (answer, asked) = oneshot::channel();
                self.signals.push(asked);
                self.ask(Request::Change {
                    target: target(*n),
                    input: Input::Signal(signal),
                    answer,
                });
            }
            Op::Describe(n) => {
                let (answer, asked) = oneshot::channel();
                self.descriptions.push(asked);
                self.ask(Request::Describe { target: target(*n), answer });
            }
            Op::Terminate(n) => {
                let request_id = self.request_id();
                let stop = Stop { reason: String::new(), request_id, identity: String::new() };
                let (answer, asked) = oneshot::channel();
                self.answers.push(asked);
                let input = Input::Terminate(stop);
                self.ask(Request::Change { target: target(*n), input, answer });
            }
            Op::Complete(n, ask) => self.complete(*n, ask),
            Op::FailTask(n) => {
                let Some(task) = take(&mut self.tasks, *n) else { return };
                let task_id = TaskId::from_wire(&task.task_id.unwrap());
                let cause = WorkflowTaskFailureCause::Panic;
                let input = Input::FailTask { task_id, cause, failure: None };
                self.tell(RunId::from_wire(&task.run_id).unwrap(), input);
            }
            Op::CompleteActivity(n) => {
                let Some(activity) = take(&mut self.activities, *n) else { return };
                let token = Token::from_wire(&activity.token.unwrap()).unwrap();
                let identity = String::new();
                let input = Input::CompleteActivity { token, result: None, identity };
                self.tell(token.run_id, input);
            }
            Op::Credits(credits) => {
                self.session.set_credits(*credits, *credits);
                let dispatch = &self.lane.node.dispatch;
                let mut found = Vec::new();
                for kind in [Kind::Workflow, Kind::Activity] {
                    found.extend(std::iter::from_fn(|| dispatch.next_for(self.session.id(), kind)));
                }
                for found in found {
                    self.mail(Mail::Matched(found));
                }
            }
            Op::Turn => {
                assert_eq!(self.lane.turn(), None);
                if self.lane.withheld.is_empty() {
                    self.lane.check_budgets();
                }
            }
            Op::Beside => tokio::task::yield_now().await,
            Op::Hear => {
                if let Ok(news) = self.lane.beside.try_recv() {
                    assert_eq!(self.lane.on_beside(news), None);
                }
            }
            Op::Pass(ms) => tokio::time::advance(Duration::from_millis(*ms)).await,
            Op::RenewLease => {
                let now = self.lane.node.env.boot();
                self.lane.lease.renewed(now, now);
                self.mail(Mail::Lease(LeaseNews::Renewed));
            }
        }
        self.read_outbox();
        self.check();
    }

    fn complete(&mut self, n: u8, ask: &Ask) {
        let Some(task) = take(&mut self.tasks, n) else { return };
        self.drawn += 1;
        let (number, kind) = match ask {
            Ask::Nothing => (0, None),
            Ask::Call => {
                let activity_type = "charge".to_owned();
                let call = ScheduleActivity { activity_type, ..ScheduleActivity::default() };
                (self.drawn, Some(command::Kind::ScheduleActivity(call)))
            }
            Ask::Timer(ms) => {
                let timer = StartTimer { duration_us: ms * 1_000 };
                (self.drawn, Some(command::Kind::StartTimer(timer)))
            }
            Ask::Close => (0, Some(command::Kind::CompleteWorkflow(CompleteWorkflow::default()))),
        };
        let command = |kind| Command { number, kind: Some(kind), ..Command::default() };
        let completion = TaskCompletion {
            task_id: TaskId::from_wire(&task.task_id.unwrap()),
            commands: kind.map(command).into_iter().collect(),
            more: false,
            sdk_flags: Vec::new(),
            worker: self.session.info().worker.clone(),
        };
        self.tell(RunId::from_wire(&task.run_id).unwrap(), Input::CompleteTask(completion));
    }

    fn start(&mut self, n: u8) -> Start {
        Start {
            namespace_id: DEFAULT_NAMESPACE,
            workflow_id: target(n).workflow_id,
            workflow_type: "order".to_owned(),
            task_queue: "q".to_owned(),
            arguments: Vec::new(),
            request_id: self.request_id(),
            identity: String::new(),
            memo: BTreeMap::new(),
            execution_timeout_us: 0,
            run_timeout_us: 0,
            id_reuse_policy: IdReusePolicy::Allow,
            id_conflict_policy: IdConflictPolicy::Fail,
            signal: None,
        }
    }

    fn request_id(&mut self) -> RequestId {
        self.drawn += 1;
        RequestId::from_uuid(Uuid::from_u128(self.drawn.into()))
    }

    fn ask(&mut self, request: Request) {
        self.mail(Mail::Request(request));
    }

    fn tell(&mut self, run_id: RunId, input: Input) {
        let session = Arc::clone(&self.session);
        self.mail(Mail::Worker(FromWorker::Run { run_id, session, input }));
    }

    fn mail(&mut self, mail: Mail) {
        assert_eq!(self.lane.on_mail(mail), None);
    }

    fn read_outbox(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(message)) = self.session.outbox().poll_message(&mut context) {
            for item in message.items {
                match item.kind.unwrap() {
                    server_item::Kind::WorkflowTask(task) => {
                        self.tasks.retain(|open| open.run_id != task.run_id);
                        self.tasks.push(task);
                    }
                    server_item::Kind::Evict(evict) => {
                        self.tasks.retain(|open| open.run_id != evict.run_id);
                    }
                    server_item::Kind::ActivityTask(task) => self.activities.push(task),
                    server_item::Kind::CancelActivity(cancel) => {
                        self.activities.retain(|open| open.token != cancel.token);
                    }
                    _ => {}
                }
            }
        }
    }

    /// What must hold at any time.
    fn check(&mut self) {
        let lane = &self.lane;
        self.known.extend(lane.runs.keys());
        for run_id in &self.known {
            if lane.is_staged(*run_id) {
                assert!(lane.runs.contains_key(run_id), "{run_id} left with what is not durable");
            }
        }
        for (run_id, entry) in &lane.runs {
            assert!(!lane.away.contains_key(run_id), "{run_id} is here and away");
            let deadline = entry.deadline.map(|deadline| (deadline, *run_id));
            assert!(deadline.is_none_or(|deadline| lane.deadlines.contains(&deadline)));
        }
        let looking = lane.looking.values().map(Vec::len).sum::<usize>();
        let loading = lane.loading.values().map(Vec::len).sum::<usize>();
        assert_eq!(lane.waiting, looking + loading, "what waits for reads is counted");
        lane.check_places();
    }

    fn is_quiet(&self) -> bool {
        let lane = &self.lane;
        let reads = lane.looking.is_empty() && lane.loading.is_empty() && lane.beside.is_empty();
        let writes = lane.open.is_empty() && lane.committing.is_none();
        reads && writes && lane.withheld.is_empty()
    }

    /// Goes on until nothing is under way.
    async fn settle(&mut self) {
        for _ in 0..2_000 {
            for op in [Op::RenewLease, Op::Turn, Op::Beside, Op::Hear, Op::Turn, Op::Pass(5)] {
                self.play(&op).await;
            }
            if self.is_quiet() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Ends all, and looks what became of everything that was asked.
    async fn end(mut self) {
        self.settle().await;
        for n in 0..IDS {
            self.play(&Op::Terminate(n)).await;
        }
        self.settle().await;
        for asked in &mut self.answers {
            drop(asked.try_recv().expect("each request is answered, once"));
        }
        for asked in &mut self.descriptions {
            drop(asked.try_recv().expect("each question is answered, once"));
        }
        let mut expected = BTreeMap::<RunId, usize>::new();
        for asked in &mut self.signals {
            if let Ok(answer) = asked.try_recv().expect("each signal is answered, once") {
                *expected.entry(answer.run_id).or_default() += 1;
            }
        }
        for (run_id, acked) in expected {
            let loaded = self.store.load_runs(vec![run_id], u32::MAX).await.unwrap().remove(0);
            let Loaded::Run(run) = loaded else { panic!("{run_id} is gone") };
            let rows = run.journal.iter().map(|row| read_row(row).unwrap());
            let is_signal = |attributes: &Option<Attributes>| {
                matches!(attributes, Some(Attributes::SignalReceived(_)))
            };
            let records = rows.flat_map(|row| row.records);
            let stored = records.filter(|record| is_signal(&record.attributes)).count();
            assert_eq!(stored, acked, "the journal of {run_id} has the signals that were acked");
        }
    }
}

fn target(n: u8) -> Target {
    Target {
        namespace_id: DEFAULT_NAMESPACE,
        namespace: "default".to_owned(),
        workflow_id: format!("w{}", n % IDS),
        run_id: None,
    }
}

fn take<T>(from: &mut Vec<T>, n: u8) -> Option<T> {
    (!from.is_empty()).then(|| from.remove(usize::from(n) % from.len()))
}

/// A clock that is read after longer and longer pauses.
struct Halting(AtomicU64);

impl BootClock for Halting {
    fn boot(&self) -> Duration {
        let reads = self.0.fetch_add(1, Ordering::Relaxed);
        Duration::from_millis(reads * reads)
    }
}

/// Otherwise a timer could fire, on record, before its time: by as long as the thread was halted
/// between two looks at the clock.
#[tokio::test(start_paused = true)]
async fn what_is_due_is_never_ahead_of_what_goes_on_record() {
    let stage = Stage::begin_by(Arc::new(Halting(AtomicU64::new(0)))).await;
    let node = &stage.lane.node;
    node.sync_clock(Timestamp::from_micros(1_790_000_000_000_000), node.env.boot());
    let (now, due) = stage.lane.times();
    assert!(due <= now, "due {due:?}, on record {now:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn runs_leave_memory_in_any_order_and_nobody_loses_anything(
        ops in prop::collection::vec(op(), 1..300),
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut stage = Stage::begin().await;
            stage.play(&Op::Credits(3)).await;
            for op in &ops {
                stage.play(op).await;
            }
            stage.end().await;
        });
    }
}
