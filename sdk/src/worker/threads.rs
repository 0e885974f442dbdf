//! Where workflow code runs: plain threads, each with the runs that are pinned to it.
//!
//! No Tokio runtime is entered on these threads, so that a Tokio timer, task or socket in workflow
//! code panics at the user's line. Jobs come in and reports go out over channels, many at a time. A
//! thread that does not come back from a poll is written off and replaced; a stack that overflows
//! cannot be caught and ends the process.

use std::{
    collections::BTreeMap,
    io, mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use onward_proto::{RunId, v1};
use tokio::{sync::mpsc, time::Instant};

use super::{
    outbox::{Item, bounded, completion_items},
    runs::{Instance, TaskKey},
    session::Event,
};
use crate::{
    caught::caught,
    definition::WorkflowEntry,
    machine::{
        Completion, LocalActivityTask, LocalOutcome, Machine, MachineOptions, Progress, RunInfo,
        Task, TaskFailure, describe, task_failure,
    },
};

/// Largest completion in all its parts.
const MAX_COMPLETION_BYTES: usize = 32 << 20;

/// Nobody reads more of why a task failed.
const TASK_FAILURE_BYTES: usize = 64 << 10;

/// What a thread is asked to do.
pub(crate) enum Job {
    /// Advance a run; `begin` makes its instance first.
    Advance { instance: Instance, begin: Option<Box<Begin>>, task: Box<Task> },
    /// A local activity has ended.
    LocalDone { instance: Instance, number: u32, outcome: Box<LocalOutcome> },
    /// Facts wait behind the open task.
    Yield { instance: Instance },
    /// Forget an instance.
    Evict { instance: Instance },
}

/// A new instance.
pub(crate) struct Begin {
    pub(crate) entry: WorkflowEntry,
    pub(crate) info: Arc<RunInfo>,
}

/// What came of a job.
pub(crate) struct Report {
    pub(crate) run: RunId,
    pub(crate) instance: Instance,
    pub(crate) outcome: Outcome,
    /// Local activities that may start now.
    pub(crate) start: Vec<LocalActivityTask>,
    /// Local activities whose call was dropped.
    pub(crate) cancel: Vec<u32>,
}

/// How an open task stands after a job.
pub(crate) enum Outcome {
    /// It waits for local activities.
    Waiting,
    /// It is done.
    Completed { task: TaskKey, items: Vec<Item>, closed: bool },
    /// It could not be done; the instance is gone.
    Failed { task: TaskKey, item: Item, cause: v1::WorkflowTaskFailureCause, message: String },
}

/// What all threads of a worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Largest frame that the server takes.
    pub(crate) max_frame: AtomicUsize,
    /// The largest payloads of one command that the server takes.
    pub(crate) max_payload: AtomicU64,
    pub(crate) options: MachineOptions,
}

impl Shared {
    pub(crate) fn new(options: MachineOptions) -> Self {
        let max_payload = AtomicU64::new(options.max_payload_bytes);
        Self { max_frame: AtomicUsize::new(MAX_FRAME), max_payload, options }
    }
}

/// Largest frame until the server has said its own.
const MAX_FRAME: usize = 4 << 20;

/// The runs of one thread.
struct Cabinet {
    shared: Arc<Shared>,
    seats: BTreeMap<Instance, Seat>,
}

struct Seat {
    machine: Machine,
    info: Arc<RunInfo>,
    open: Option<TaskKey>,
    span: tracing::Span,
}

impl Cabinet {
    fn new(shared: Arc<Shared>) -> Self {
        Self { shared, seats: BTreeMap::new() }
    }

    /// Which instance a job is for, and of which run that is; `None` if it is not here.
    fn at(&self, job: &Job) -> Option<(Instance, Arc<RunInfo>)> {
        let info = match job {
            Job::Advance { begin: Some(begin), .. } => &begin.info,
            Job::Advance { begin: None, instance, .. }
            | Job::LocalDone { instance, .. }
            | Job::Yield { instance }
            | Job::Evict { instance } => &self.seats.get(instance)?.info,
        };
        Some((job.instance(), Arc::clone(info)))
    }

    fn work(&mut self, job: Job) -> Option<Report> {
        match job {
            Job::Advance { instance, begin, task } => {
                let key = TaskKey::from(task.task_id);
                if let Some(begin) = begin {
                    let Begin { entry, info } = *begin;
                    let options = MachineOptions {
                        max_payload_bytes: self.shared.max_payload.load(Ordering::Relaxed),
                        ..self.shared.options.clone()
                    };
                    let machine = Machine::new(&entry, options, RunInfo::clone(&info));
                    let span = tracing::info_span!(
                        "workflow",
                        name = %info.workflow_type,
                        workflow_id = %info.workflow_id,
                        run_id = %info.run_id,
                    );
                    self.seats.insert(instance, Seat { machine, info, open: None, span });
                }
                let seat = self.seats.get_mut(&instance)?;
                seat.open = Some(key);
                self.drive(instance, |machine| machine.run_task(*task))
            }
            Job::LocalDone { instance, number, outcome } => {
                self.drive(instance, |machine| machine.local_activity_done(number, *outcome))
            }
            Job::Yield { instance } => {
                // The task may have completed while the request was on its way.
                self.seats.get(&instance)?.open?;
                self.drive(instance, Machine::yield_task)
            }
            Job::Evict { instance } => {
                self.evict(instance);
                None
            }
        }
    }

    fn drive(
        &mut self,
        instance: Instance,
        step: impl FnOnce(&mut Machine) -> Result<Progress, TaskFailure>,
    ) -> Option<Report> {
        let seat = self.seats.get_mut(&instance)?;
        let run = seat.info.run_id;
        let entered = seat.span.clone().entered();
        // The machine catches the panics of user code; what arrives here is a bug of its own, and
        // must not take the other runs of the thread with it.
        let progress = caught(|| step(&mut seat.machine))
            .unwrap_or_else(|panic| {
                let message = format!("the worker {panic}");
                Err(task_failure(v1::WorkflowTaskFailureCause::Panic, message))
            })
            .and_then(|progress| match progress {
                Progress::Waiting => Ok(Outcome::Waiting),
                Progress::Completed(completion) => {
                    let task = TaskKey::from(completion.task_id);
                    let closed = completion.closed;
                    let max_frame = self.shared.max_frame.load(Ordering::Relaxed);
                    let items = encode(run, completion, max_frame)?;
                    Ok(Outcome::Completed { task, items, closed })
                }
            });
        drop(entered);
        let outcome = match progress {
            Ok(outcome) => outcome,
            Err(error) => {
                let task = seat.open.take()?;
                self.evict(instance);
                let (cause, message) = (error.cause, error.failure.message.clone());
                let max_frame = self.shared.max_frame.load(Ordering::Relaxed);
                let item = failed_item(run, task, error, max_frame);
                let outcome = Outcome::Failed { task, item, cause, message };
                return Some(Report {
                    run,
                    instance,
                    outcome,
                    start: Vec::new(),
                    cancel: Vec::new(),
                });
            }
        };
        let seat = self.seats.get_mut(&instance)?;
        for note in seat.machine.take_notes() {
            tracing::warn!(run_id = %run, "{note}");
        }
        let (start, cancel) =
            (seat.machine.take_local_activities(), seat.machine.take_local_cancels());
        if let Outcome::Completed { closed, .. } = &outcome {
            seat.open = None;
            if *closed {
                self.evict(instance);
            }
        }
        Some(Report { run, instance, outcome, start, cancel })
    }

    fn evict(&mut self, instance: Instance) {
        self.seats.remove(&instance);
    }
}

impl Drop for Cabinet {
    fn drop(&mut self) {
        while let Some((instance, _)) = self.seats.first_key_value() {
            self.evict(*instance);
        }
    }
}

/// Encodes a completion, on the thread that made it.
fn encode(run: RunId, completion: Completion, max_frame: usize) -> Result<Vec<Item>, TaskFailure> {
    let too_large =
        |message: String| task_failure(v1::WorkflowTaskFailureCause::BadCommands, message);
    let items = completion_items(
        v1::TaskCompleted {
            task_id: Some(completion.task_id),
            run_id: run.to_wire(),
            commands: completion.commands,
            more: completion.more,
            part: 0,
            parts: 0,
            sdk_flags: completion.sdk_flags,
        },
        max_frame,
    )
    .map_err(|error| {
        too_large(format!(
            "{} has {} bytes; no message may have more than {max_frame}",
            describe(&error.command),
            error.bytes
        ))
    })?;
    let bytes: usize = items.iter().map(Item::framed_len).sum();
    if bytes > MAX_COMPLETION_BYTES {
        return Err(too_large(format!(
            "the commands of one task have {bytes} bytes together; the limit is \
             {MAX_COMPLETION_BYTES}"
        )));
    }
    Ok(items)
}

/// The report of a task that failed, in a message that the server takes.
pub(crate) fn failed_item(run: RunId, task: TaskKey, error: TaskFailure, max_frame: usize) -> Item {
    Item::new(v1::worker_item::Kind::TaskFailed(v1::TaskFailed {
        task_id: Some(task.into()),
        run_id: run.to_wire(),
        cause: error.cause.into(),
        failure: Some(bounded(*error.failure, max_frame.min(TASK_FAILURE_BYTES))),
    }))
}

/// What the watchdog sees of a thread.
#[derive(Default)]
struct Pulse {
    /// Goes up when a job begins and when it ends: odd while one runs.
    turns: AtomicU64,
    /// Whose job runs, or ran last.
    at: Mutex<Option<(Instance, Arc<RunInfo>)>>,
    /// What came of earlier jobs and is not handed over. The session takes it when a job is long.
    reports: Mutex<Vec<Report>>,
    /// The thread was written off: whatever it still has is nobody's.
    abandoned: AtomicBool,
}

impl Pulse {
    fn enter(&self, at: Option<(Instance, Arc<RunInfo>)>) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn at(&self) -> Option<(Instance, Arc<RunInfo>)> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what came of a job; gives how many reports wait to be handed over.
    fn report(&self, report: Option<Report>) -> usize {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.extend(report);
        reports.len()
    }

    /// Hands over what is reported, in its order: both sides send while they hold the list.
    fn hand_over(&self, events: &mpsc::UnboundedSender<Event>) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        if !reports.is_empty() {
            let _ = events.send(Event::Reports(mem::take(&mut reports)));
        }
    }
}

/// One workflow thread, as the session sees it.
struct Thread {
    jobs: mpsc::UnboundedSender<Vec<Job>>,
    staged: Vec<Job>,
    pulse: Arc<Pulse>,
    seen_turns: u64,
    seen_at: Instant,
    warned: bool,
}

/// A thread that was written off, until it comes back from its poll and ends.
struct Abandoned {
    pulse: Arc<Pulse>,
    turns: u64,
    run: RunId,
}

/// The workflow threads of one worker.
pub(crate) struct Threads {
    crew: Vec<Thread>,
    abandoned: Vec<Abandoned>,
    shared: Arc<Shared>,
    events: mpsc::UnboundedSender<Event>,
    kind: ThreadKind,
    started: usize,
}

/// What carries workflow code.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ThreadKind {
    /// A `std::thread` with a stack of so many bytes.
    Os { stack_bytes: usize },
    /// A local task of the caller's single-threaded executor.
    Local,
}

/// A poll that lasts longer is reported.
pub(crate) const LONG_POLL: Duration = Duration::from_secs(1);
/// A poll that lasts longer costs the thread.
pub(crate) const STUCK_POLL: Duration = Duration::from_secs(10);

/// A thread that does not come back from a poll.
#[derive(Debug)]
pub(crate) struct Slow {
    pub(crate) thread: usize,
    pub(crate) instance: Instance,
    /// The session may have forgotten it.
    pub(crate) run: Arc<RunInfo>,
    /// Longer than [`STUCK_POLL`].
    pub(crate) stuck: bool,
}

impl Threads {
    pub(crate) fn start(
        count: usize,
        kind: ThreadKind,
        shared: Arc<Shared>,
        events: mpsc::UnboundedSender<Event>,
    ) -> io::Result<Self> {
        let mut threads =
            Self { crew: Vec::new(), abandoned: Vec::new(), shared, events, kind, started: 0 };
        for _ in 0..count.max(1) {
            let thread = threads.start_one()?;
            threads.crew.push(thread);
        }
        Ok(threads)
    }

    pub(crate) fn len(&self) -> usize {
        self.crew.len()
    }

    fn start_one(&mut self) -> io::Result<Thread> {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let pulse = Arc::new(Pulse::default());
        self.started += 1;
        let (shared, events) = (Arc::clone(&self.shared), self.events.clone());
        match self.kind {
            ThreadKind::Os { stack_bytes } => {
                let pulse = Arc::clone(&pulse);
                thread::Builder::new()
                    .name(format!("workflow-{}", self.started))
                    .stack_size(stack_bytes)
                    .spawn(move || serve(inbox, &events, &pulse, shared))?;
            }
            ThreadKind::Local => {
                tokio::task::spawn_local(serve_locally(inbox, events, shared));
            }
        }
        Ok(Thread {
            jobs,
            staged: Vec::new(),
            pulse,
            seen_turns: 0,
            seen_at: Instant::now(),
            warned: false,
        })
    }

    /// Puts a job on a thread's list.
    pub(crate) fn stage(&mut self, thread: usize, job: Job) {
        self.crew[thread].staged.push(job);
    }

    /// Hands the lists over, each with one wake. Gives the threads that are dead.
    pub(crate) fn flush(&mut self) -> Vec<usize> {
        let mut dead = Vec::new();
        for (index, thread) in self.crew.iter_mut().enumerate() {
            if !thread.staged.is_empty() && thread.jobs.send(mem::take(&mut thread.staged)).is_err()
            {
                dead.push(index);
            }
        }
        dead
    }

    /// Finds threads that are in a poll for long. Each is named once as slow and once as stuck.
    pub(crate) fn watch(&mut self, now: Instant) -> Vec<Slow> {
        let mut slow = Vec::new();
        for (index, thread) in self.crew.iter_mut().enumerate() {
            let turns = thread.pulse.turns.load(Ordering::Acquire);
            if turns != thread.seen_turns || turns.is_multiple_of(2) {
                thread.seen_turns = turns;
                thread.seen_at = now;
                thread.warned = false;
                continue;
            }
            // What it finished before must neither wait for this poll nor be lost with the thread.
            thread.pulse.hand_over(&self.events);
            let lasted = now.saturating_duration_since(thread.seen_at);
            let stuck = lasted >= STUCK_POLL;
            if (stuck || lasted >= LONG_POLL && !thread.warned)
                && let Some((instance, run)) = thread.pulse.at()
            {
                thread.warned = true;
                slow.push(Slow { thread: index, instance, run, stuck });
            }
        }
        slow
    }

    /// Whether a thread has been in one poll for so long that nothing of it is to be hoped for.
    pub(crate) fn is_stuck(&self, thread: usize, now: Instant) -> bool {
        let thread = &self.crew[thread];
        let turns = thread.pulse.turns.load(Ordering::Acquire);
        turns == thread.seen_turns
            && !turns.is_multiple_of(2)
            && now.saturating_duration_since(thread.seen_at) >= STUCK_POLL
    }

    /// Gives up on a thread and starts another in its place.
    pub(crate) fn replace(&mut self, thread: usize) -> io::Result<()> {
        let fresh = self.start_one()?;
        let old = mem::replace(&mut self.crew[thread], fresh);
        old.pulse.abandoned.store(true, Ordering::Release);
        let turns = old.pulse.turns.load(Ordering::Acquire);
        if let Some((_, run)) = old.pulse.at()
            && !turns.is_multiple_of(2)
        {
            self.abandoned.push(Abandoned { pulse: old.pulse, turns, run: run.run_id });
        }
        Ok(())
    }

    /// Whether a thread that was written off has still not come back from this run's code.
    pub(crate) fn is_trapped(&mut self, run: RunId) -> bool {
        self.abandoned.retain(|thread| thread.pulse.turns.load(Ordering::Acquire) == thread.turns);
        self.abandoned.iter().any(|thread| thread.run == run)
    }
}

/// Reports are handed over one list at a time: when there is no more work, or at so many.
const REPORTS_PER_LIST: usize = 16;

fn serve(
    mut inbox: mpsc::UnboundedReceiver<Vec<Job>>,
    events: &mpsc::UnboundedSender<Event>,
    pulse: &Pulse,
    shared: Arc<Shared>,
) {
    let mut cabinet = Cabinet::new(shared);
    while let Some(jobs) = inbox.blocking_recv() {
        for job in jobs {
            if pulse.abandoned.load(Ordering::Acquire) {
                return;
            }
            pulse.enter(cabinet.at(&job));
            pulse.turns.fetch_add(1, Ordering::AcqRel);
            let waiting = pulse.report(cabinet.work(job));
            pulse.turns.fetch_add(1, Ordering::AcqRel);
            if waiting >= REPORTS_PER_LIST {
                pulse.hand_over(events);
            }
        }
        if inbox.is_empty() {
            pulse.hand_over(events);
        }
    }
}

async fn serve_locally(
    mut inbox: mpsc::UnboundedReceiver<Vec<Job>>,
    events: mpsc::UnboundedSender<Event>,
    shared: Arc<Shared>,
) {
    let mut cabinet = Cabinet::new(shared);
    while let Some(jobs) = inbox.recv().await {
        let reports: Vec<_> = jobs.into_iter().filter_map(|job| cabinet.work(job)).collect();
        if !reports.is_empty() {
            let _ = events.send(Event::Reports(reports));
        }
    }
}

impl Job {
    fn instance(&self) -> Instance {
        match self {
            Self::Advance { instance, .. }
            | Self::LocalDone { instance, .. }
            | Self::Yield { instance }
            | Self::Evict { instance } => *instance,
        }
    }
}
