//! The worker's side of a session: one stream, its tasks one way and its completions the other.
//!
//! One task owns everything here, so there are no locks and no order to get wrong. What it knows
//! outlives the stream: running attempts go on, and completions are kept until they are acked, while
//! it connects again. It never waits for user code: workflow code runs on its own threads, activity
//! code in tasks of its own, except for the first poll of an activity that may need no more, and whose
//! first polls have been short so far.

mod activities;
mod stream;
mod workflow_tasks;

use std::{collections::BTreeMap, ops::Range, sync::Arc, sync::atomic::Ordering, time::Duration};

use futures_util::{StreamExt, future::BoxFuture};
use onward_proto::{RunId, v1};
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tonic::{Status, Streaming};

use super::{
    WorkerError, WorkerOptions,
    attempts::{AttemptKey, deadline},
    connection::Connection,
    local::LocalControl,
    outbox::{Item, Outbox},
    registry::Registry,
    runs::{Instance, Runs, TaskKey},
    threads::{Job, Report, Shared, ThreadKind, Threads},
};
use crate::{
    activity::attempt::{Attempt, Listener, Stop},
    client::rpc::Backoff,
    machine::{LocalOutcome, task_failure},
};

/// What the session hears from its threads and tasks.
pub(crate) enum Event {
    /// Workflow tasks moved.
    Reports(Vec<Report>),
    /// An attempt ended; there is an item unless nobody is told.
    Ended { key: AttemptKey, item: Option<Item> },
    /// An attempt has details to save.
    News,
    /// A local activity ended.
    LocalDone { run: RunId, instance: Instance, number: u32, outcome: Box<LocalOutcome> },
    /// The task that runs a local activity broke down.
    LocalBroken { run: RunId, instance: Instance, message: String },
    /// The rest of a task's history was read, or could not be.
    History { run: RunId, instance: Instance, job: Result<Job, Status> },
}

/// Hands news of attempts to the session.
struct News(mpsc::UnboundedSender<Event>);

impl Listener for News {
    fn has_news(&self, _: &Attempt) {
        let _ = self.0.send(Event::News);
    }
}

/// The stream that is open now.
struct Link {
    frames: Streaming<v1::SessionResponse>,
    outbox: Outbox,
    /// By when the server must have said welcome; `None` once it has.
    welcome_by: Option<Instant>,
    /// The server has said that it goes away; by then the stream is left, should it not end itself.
    leave_by: Option<Instant>,
}

/// How the session stands with the server.
enum State {
    /// Not connected; tries again then.
    Down { retry_at: Instant },
    /// On the way.
    Connecting { opening: BoxFuture<'static, Result<Box<Link>, Status>> },
    /// A stream is open.
    Up(Box<Link>),
}

/// A completion of a workflow task that is not known to be durable.
struct Kept {
    run: RunId,
    items: Vec<Item>,
}

/// An attempt that runs here.
struct Running {
    attempt: Arc<Attempt>,
    /// When the server last heard of it, if it heard what was sent on a stream that was up.
    beat_at: Instant,
}

impl Running {
    /// When it no longer counts unless the server hears of it; `None` if it need not say anything.
    fn unheard_at(&self, silence_limit: Duration) -> Option<Instant> {
        let heartbeat = self.attempt.info.heartbeat?;
        Some(deadline(self.beat_at, heartbeat, silence_limit))
    }
}

/// Items taken from the threads and tasks in one turn.
const EVENTS_PER_TURN: usize = 256;
/// The server says welcome within this time, or the stream is given up.
const WELCOME_WITHIN: Duration = Duration::from_secs(10);
/// At least this often it is tried to connect.
const RECONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How often it is said that there is no server.
const COMPLAIN_EVERY: Duration = Duration::from_mins(1);
/// How often the threads are looked at.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// How long new details of attempts are gathered.
const GATHER_NEWS: Duration = Duration::from_millis(200);
/// A task that takes longer is named in heartbeats, so that its deadline moves.
const LONG_TASK: Duration = Duration::from_secs(2);
/// How long what runs may go on after a shutdown was asked for.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// A server that goes away ends the stream within this time, or the worker does.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);
/// What silence means until the server has said it.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);

pub(crate) struct Session {
    options: WorkerOptions,
    registry: Arc<Registry>,
    connection: Connection,
    state: State,
    backoff: Backoff,
    complained_at: Option<Instant>,
    ever_welcome: bool,
    silence_limit: Duration,
    max_frame: usize,
    shared: Arc<Shared>,
    threads: Threads,
    runs: Runs,
    attempts: BTreeMap<AttemptKey, Running>,
    locals: BTreeMap<(Instance, u32), Arc<LocalControl>>,
    kept_tasks: BTreeMap<TaskKey, Kept>,
    kept_attempts: BTreeMap<AttemptKey, Item>,
    /// Slots whose kept completions are due on the stream.
    claims: Vec<Range<u32>>,
    credits_due: bool,
    out: Vec<Item>,
    events: mpsc::UnboundedReceiver<Event>,
    events_sender: mpsc::UnboundedSender<Event>,
    listener: Arc<dyn Listener>,
    beat_at: Instant,
    task_beat_at: Instant,
    watch_at: Instant,
    draining_until: Option<Instant>,
}

impl Session {
    pub(crate) fn new(
        options: WorkerOptions,
        registry: Arc<Registry>,
        connection: Connection,
    ) -> std::io::Result<Self> {
        let now = Instant::now();
        let (events_sender, events) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(options.machine.clone()));
        let threads = Threads::start(
            options.threads,
            options.thread_kind,
            Arc::clone(&shared),
            events_sender.clone(),
        )?;
        Ok(Self {
            runs: Runs::new(options.cached_workflows, threads.len()),
            backoff: Backoff::new(options.env.rng(), RECONNECT_WITHIN),
            max_frame: shared.max_frame.load(Ordering::Relaxed),
            listener: Arc::new(News(events_sender.clone())),
            options,
            registry,
            connection,
            state: State::Down { retry_at: now },
            complained_at: None,
            ever_welcome: false,
            silence_limit: SILENCE_LIMIT,
            shared,
            threads,
            attempts: BTreeMap::new(),
            locals: BTreeMap::new(),
            kept_tasks: BTreeMap::new(),
            kept_attempts: BTreeMap::new(),
            claims: Vec::new(),
            credits_due: false,
            out: Vec::new(),
            events,
            events_sender,
            beat_at: now,
            task_beat_at: now,
            watch_at: now + WATCH_EVERY,
            draining_until: None,
        })
    }

    /// Serves until `stop` says so and what runs has come to its end.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), WorkerError> {
        let timer = sleep_until(Instant::now());
        tokio::pin!(timer);
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let mut last_turn = Instant::now();
        loop {
            let wake = self.next_wake();
            if timer.deadline() != wake {
                timer.as_mut().reset(wake);
            }
            // Every branch may be dropped half-way: receiving from a channel or stream loses
            // nothing, the opening of a stream lives in the state.
            let turn = tokio::select! {
                biased;
                Ok(()) = stop.changed(), if self.draining_until.is_none() => Turn::Stop,
                turn = next_turn(&mut self.state) => turn,
                _ = self.events.recv_many(&mut events, EVENTS_PER_TURN) => Turn::Events,
                () = &mut timer => Turn::Timer,
            };
            let now = Instant::now();
            if self.is_welcome() && now.duration_since(last_turn) > self.silence_limit {
                // This process stood still. What the stream still holds may be long outdated, and
                // the server has given the session up.
                self.disconnected("this worker stood still", now);
            } else {
                self.take(turn, now)?;
            }
            last_turn = now;
            if events.is_empty() {
                while events.len() < EVENTS_PER_TURN
                    && let Ok(event) = self.events.try_recv()
                {
                    events.push(event);
                }
            }
            for event in events.drain(..) {
                self.on_event(event, now);
            }
            if *stop.borrow() && self.draining_until.is_none() {
                self.drain(now);
            }
            self.on_time(now);
            for thread in self.threads.flush() {
                tracing::error!("a workflow thread has died; another takes its place");
                self.write_off(thread, None);
            }
            self.flush();
            if self.is_done(now) {
                break;
            }
        }
        self.finish().await;
        Ok(())
    }

    fn take(&mut self, turn: Turn, now: Instant) -> Result<(), WorkerError> {
        match turn {
            Turn::Opened(Ok(link)) => self.state = State::Up(link),
            Turn::Frame(Some(Ok(frame))) => {
                for item in frame.items {
                    if let Some(kind) = item.kind {
                        self.on_item(kind, now)?;
                    }
                }
                self.answer_claims();
                self.trim_cache();
            }
            Turn::Opened(Err(status)) | Turn::Frame(Some(Err(status))) => {
                self.on_broken(&status, now)?;
            }
            Turn::Frame(None) => self.disconnected("the server ended the stream", now),
            Turn::Stop | Turn::Events | Turn::Timer => {}
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Reports(reports) => {
                for report in reports {
                    self.on_report(report);
                }
                self.trim_cache();
            }
            Event::Ended { key, item } => {
                // One that was lost meanwhile is not answered for.
                if self.attempts.contains_key(&key) {
                    self.on_ended(key, item);
                }
            }
            Event::News => self.beat_at = self.beat_at.min(now + GATHER_NEWS),
            Event::LocalDone { run, instance, number, outcome } => {
                self.locals.remove(&(instance, number));
                if let Some(run) = self.runs.current(run, instance) {
                    let job = Job::LocalDone { instance, number, outcome };
                    self.threads.stage(run.thread, job);
                }
            }
            Event::LocalBroken { run, instance, message } => {
                if self.runs.current(run, instance).is_some() {
                    self.give_up(run, task_failure(v1::WorkflowTaskFailureCause::Panic, message));
                }
            }
            Event::History { run, instance, job } => {
                self.on_history(run, instance, job);
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_hours(1);
        let mut wake = match &self.state {
            State::Down { retry_at } => *retry_at,
            State::Connecting { .. } => far,
            State::Up(link) => {
                let next = link.welcome_by.unwrap_or(self.beat_at);
                link.leave_by.map_or(next, |leave_by| leave_by.min(next))
            }
        };
        if !self.is_welcome() {
            let unheard = self.attempts.values().filter_map(|it| it.unheard_at(self.silence_limit));
            wake = unheard.fold(wake, Instant::min);
        }
        if self.watches() {
            wake = wake.min(self.watch_at);
        }
        if let Some(until) = self.draining_until {
            wake = wake.min(until);
        }
        wake
    }

    /// Whether threads may be stuck: only while they have tasks, so that an idle worker sleeps.
    fn watches(&self) -> bool {
        self.runs.open() > 0 && matches!(self.options.thread_kind, ThreadKind::Os { .. })
    }

    fn on_time(&mut self, now: Instant) {
        match &self.state {
            State::Down { retry_at } if now >= *retry_at => self.connect(now),
            State::Up(link) if link.welcome_by.is_some_and(|by| now >= by) => {
                self.disconnected("the server does not say welcome", now);
            }
            State::Up(link) if link.leave_by.is_some_and(|by| now >= by) => {
                self.disconnected("the server said that it goes away, and does not end", now);
            }
            State::Up(link) if link.welcome_by.is_none() && now >= self.beat_at => self.beat(now),
            State::Down { .. } | State::Connecting { .. } | State::Up(_) => {}
        }
        if !self.is_welcome() {
            self.stop_unheard(now);
        }
        if now >= self.watch_at {
            if self.watches() {
                self.watch(now);
            }
            self.watch_at = now + WATCH_EVERY;
        }
    }

    /// Signs of life: of the session, of attempts, of tasks that take longer than usual.
    fn beat(&mut self, now: Instant) {
        let mut next = self.silence_limit / 3;
        let mut activities = Vec::new();
        let mut item_bytes = 0;
        for (key, running) in &mut self.attempts {
            running.beat_at = now;
            let details = running.attempt.take_news();
            if let Some(heartbeat) = running.attempt.info.heartbeat {
                next = next.min(heartbeat / 3);
            }
            if details.is_some() || running.attempt.info.heartbeat.is_some() {
                let heartbeat = v1::ActivityHeartbeat { token: Some(key.token()), details };
                let bytes = heartbeat.encoded_len();
                // No item may be larger than a frame.
                if item_bytes + bytes > self.max_frame / 2 && !activities.is_empty() {
                    let activities = std::mem::take(&mut activities);
                    self.out.push(heartbeats(activities, Vec::new()));
                    item_bytes = 0;
                }
                item_bytes += bytes;
                activities.push(heartbeat);
            }
        }
        next = next.max(Duration::from_millis(10));
        let mut tasks = Vec::new();
        if now >= self.task_beat_at {
            let since = now.checked_sub(LONG_TASK).unwrap_or(now);
            let name = |(run, task): (RunId, TaskKey)| v1::RunTask {
                task_id: Some(task.into()),
                run_id: run.to_wire(),
            };
            // A thread that is stuck and could not be replaced must not hold its tasks here.
            let open = self.runs.open_since(since, |thread| !self.threads.is_stuck(thread, now));
            tasks.extend(open.into_iter().map(name));
            self.task_beat_at = now + LONG_TASK;
        }
        self.out.push(heartbeats(activities, tasks));
        self.beat_at = now + next;
    }

    fn drain(&mut self, now: Instant) {
        tracing::info!("no more work is taken; what runs comes to its end");
        self.draining_until = Some(now + DRAIN_WITHIN);
        if self.is_welcome() {
            self.out.push(Item::new(v1::worker_item::Kind::Draining(v1::Draining {})));
            self.send_credits();
        }
    }

    fn is_done(&self, now: Instant) -> bool {
        let Some(until) = self.draining_until else { return false };
        let idle = self.runs.open() == 0
            && self.attempts.is_empty()
            && self.kept_tasks.is_empty()
            && self.kept_attempts.is_empty();
        if !idle && now >= until {
            tracing::warn!(
                workflow_tasks = self.runs.open(),
                activities = self.attempts.len(),
                unacked = self.kept_tasks.len() + self.kept_attempts.len(),
                "stopped before all work had come to its end"
            );
        }
        idle || now >= until
    }

    async fn finish(&mut self) {
        let now = Instant::now();
        if let State::Up(link) = std::mem::replace(&mut self.state, State::Down { retry_at: now }) {
            // The end of our side, then the server's: a stream that is dropped at once would take
            // what is still queued with it.
            let Link { mut frames, outbox, .. } = *link;
            drop(outbox);
            let ended = async { while let Some(Ok(_)) = frames.next().await {} };
            let _ = tokio::time::timeout(Duration::from_millis(500), ended).await;
        }
    }
}

impl Drop for Session {
    /// However the session ends, no code runs on for nobody.
    fn drop(&mut self) {
        for running in self.attempts.values() {
            running.attempt.stop(Stop::Lost);
        }
        for local in self.locals.values() {
            local.stop(Stop::Lost);
        }
    }
}

/// Why the session's loop turns.
enum Turn {
    Opened(Result<Box<Link>, Status>),
    Frame(Option<Result<v1::SessionResponse, Status>>),
    Events,
    Stop,
    Timer,
}

async fn next_turn(state: &mut State) -> Turn {
    match state {
        State::Down { .. } => std::future::pending().await,
        State::Connecting { opening } => Turn::Opened(opening.await),
        State::Up(link) => Turn::Frame(link.frames.next().await),
    }
}

fn heartbeats(activities: Vec<v1::ActivityHeartbeat>, tasks: Vec<v1::RunTask>) -> Item {
    Item::new(v1::worker_item::Kind::Heartbeats(v1::Heartbeats { activities, tasks }))
}

fn names(run_id: &[u8], task_id: Option<v1::TaskId>) -> Option<(RunId, TaskKey)> {
    Some((RunId::from_wire(run_id).ok()?, task_id?.into()))
}
