//! What the machine shares with the run's own leaves: what they asked for, what has come of it,
//! and whether they may ask at all.
//!
//! No borrow of the state lives while user code runs: wakers are woken, and old ones dropped,
//! after it has ended.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::Location,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use onward_proto::v1::{
    self, WorkflowTaskFailureCause as Cause, command::Kind, history_event::Attributes,
};

use super::{
    LocalOutcome, MachineOptions, RunInfo, TaskFailure,
    report::{self, Side, task_failure},
    rng::Xoshiro,
    wake::RunWaker,
};
use crate::{failure::plain_failure, limits, payload::EncodedArgs, workflow};

/// The shared side of one run.
pub(crate) struct Core {
    pub(crate) run: RunInfo,
    pub(crate) options: MachineOptions,
    pub(crate) wake: Arc<RunWaker>,
    driving: Cell<bool>,
    pub(super) state: RefCell<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// Why the drive ends; nothing is issued any more.
    pub(super) failure: Option<TaskFailure>,
    pub(super) now_us: i64,
    pub(super) started: StartedInfo,
    /// The last number given.
    pub(super) numbers: u32,
    pub(super) phase: Phase,
    pub(super) leaves: BTreeMap<u32, Leaf>,
    /// Calls and timers dropped in this drain.
    cancels: BTreeMap<u32, Kind>,
    /// The last id given to what is no command: conditions, signal waits, sections.
    ids: u64,
    pub(super) conditions: BTreeMap<u64, Waker>,
    /// How many conditions have come true.
    pub(super) conditions_met: u64,
    mailboxes: BTreeMap<String, Mailbox>,
    /// Signals that did not decode.
    undeliverable: Vec<u64>,
    sections: BTreeMap<u64, Section>,
    /// The sections that are being polled, outermost first.
    polled_sections: Vec<u64>,
    pub(super) cancel: CancelRequest,
    /// Recorded values that wait for their drain.
    pub(super) records: VecDeque<u32>,
    /// The recorded value whose drain this is, and its place among the commands.
    pub(super) recording: Option<(u32, usize)>,
    pub(super) local_done: VecDeque<(u32, LocalOutcome)>,
    pub(super) local_cancels: Vec<u32>,
    rng: Option<Xoshiro>,
    named_rngs: BTreeMap<String, Xoshiro>,
    pub(super) notes: Vec<String>,
}

/// What event 1 says that code may ask for.
#[derive(Default)]
pub(super) struct StartedInfo {
    pub(super) task_queue: String,
    pub(super) attempt: u32,
    pub(super) seed: bytes::Bytes,
}

/// Where commands go.
#[derive(Default)]
pub(super) enum Phase {
    #[default]
    Idle,
    /// The task is completed: its commands have their events.
    Replay { recorded: VecDeque<v1::HistoryEvent>, build_id: String },
    /// The newest task: each command is new work for the server.
    Live { commands: Vec<v1::Command> },
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum CancelRequest {
    #[default]
    None,
    /// Until the outermost shield ends.
    Held,
    Delivered,
}

/// Something issued that history will answer.
pub(super) struct Leaf {
    pub(super) kind: LeafKind,
    /// Whether a handle in the code will still take the outcome.
    pub(super) owned: bool,
    pub(super) waker: Option<Waker>,
    pub(super) outcome: Option<Attributes>,
}

#[allow(clippy::large_enum_variant)] // the large ones are the rarest, and few are alive
pub(super) enum LeafKind {
    Activity,
    Timer,
    Record { site: v1::CallSite },
    Local { stage: LocalStage, hash: u64, site: v1::CallSite, name: &'static str },
}

pub(super) enum LocalStage {
    /// The task that issued it is open.
    Issued(LocalCall),
    /// That task is committed.
    Startable(LocalCall),
    Running,
}

/// What is to be run once the task is committed.
pub(super) struct LocalCall {
    pub(super) activity_type: &'static str,
    pub(super) arguments: Vec<v1::Payload>,
    pub(super) options: crate::options::ActivityOptions,
}

#[derive(Default)]
struct Mailbox {
    signals: VecDeque<Taken>,
    waiters: BTreeMap<u64, Waker>,
}

/// A signal that a task took and no code has read.
struct Taken {
    event_id: u64,
    arguments: Vec<v1::Payload>,
}

struct Section {
    parent: Option<u64>,
    is_shield: bool,
    is_cancelled: bool,
    waker: Waker,
}

/// Where a cancel request went.
pub(super) enum Delivery {
    Held,
    Sections(Vec<Waker>),
    Run,
}

/// What a recorded value's leaf has to do.
pub(crate) enum RecordTurn {
    Wait,
    /// Make the value now, and say it with [`Core::record`].
    Make,
    Recorded(Box<v1::MarkerRecorded>),
}

fn call_site(location: &Location<'_>) -> v1::CallSite {
    v1::CallSite {
        file: location.file().to_owned(),
        line: location.line(),
        column: location.column(),
    }
}

impl Core {
    pub(super) fn new(options: MachineOptions, run: RunInfo) -> Rc<Self> {
        Rc::new(Self {
            run,
            options,
            wake: Arc::default(),
            driving: Cell::new(false),
            state: RefCell::default(),
        })
    }

    /// Whether the code may act: it is being driven, and nothing has gone wrong.
    pub(crate) fn is_active(&self) -> bool {
        self.driving.get() && !workflow::is_panicking() && self.state.borrow().failure.is_none()
    }

    pub(super) fn set_driving(&self, driving: bool) {
        self.driving.set(driving);
    }

    /// Ends the drive: the first cause stands.
    pub(crate) fn fail(&self, failure: TaskFailure) {
        self.state.borrow_mut().failure.get_or_insert(failure);
    }

    /// Ends the drive because a recorded value cannot be read, or a new one not be written.
    pub(crate) fn fail_payload(&self, what: &str, error: &dyn std::fmt::Display) {
        self.fail(task_failure(Cause::Payload, format!("{what}: {error}")));
    }

    fn emit(&self, command: v1::Command) {
        let mut state = self.state.borrow_mut();
        let State { phase, failure, notes, .. } = &mut *state;
        if failure.is_some() {
            return;
        }
        match phase {
            Phase::Live { commands } => commands.push(command),
            Phase::Replay { recorded, build_id } => {
                let event = recorded.pop_front();
                let attributes = event.as_ref().and_then(|event| event.attributes.as_ref());
                let strict = self.options.strict_arguments;
                let Some((history, is_fatal)) = report::mismatch(&command, attributes, strict)
                else {
                    return;
                };
                let report = report::non_determinism(
                    &self.run,
                    &self.options,
                    event.map_or(0, |event| event.event_id),
                    build_id,
                    &history,
                    &Side::of_command(&command),
                );
                if is_fatal {
                    *failure = Some(report);
                } else {
                    notes.push(report.failure.message);
                }
            }
            Phase::Idle => {}
        }
    }

    fn next_id(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.ids += 1;
        state.ids
    }

    /// Takes the next number for something that history will answer; nothing outside a drive.
    fn begin_leaf(&self, kind: LeafKind) -> Option<u32> {
        if !self.is_active() {
            return None;
        }
        let mut state = self.state.borrow_mut();
        state.numbers += 1;
        let number = state.numbers;
        state.leaves.insert(number, Leaf { kind, owned: true, waker: None, outcome: None });
        Some(number)
    }

    // --- activities and timers

    pub(crate) fn schedule_activity(
        &self,
        call: v1::ScheduleActivity,
        arguments_hash: u64,
        summary: String,
        location: &Location<'_>,
    ) -> Option<u32> {
        let call = Kind::ScheduleActivity(call);
        self.issue(LeafKind::Activity, call, arguments_hash, summary, location)
    }

    pub(crate) fn start_timer(
        &self,
        duration_us: i64,
        summary: String,
        location: &Location<'_>,
    ) -> Option<u32> {
        let start = Kind::StartTimer(v1::StartTimer { duration_us });
        self.issue(LeafKind::Timer, start, 0, summary, location)
    }

    /// Gives a command its number and a leaf that waits for its outcome.
    fn issue(
        &self,
        leaf: LeafKind,
        command: Kind,
        arguments_hash: u64,
        summary: String,
        location: &Location<'_>,
    ) -> Option<u32> {
        let number = self.begin_leaf(leaf)?;
        self.emit(v1::Command {
            number,
            call_site: Some(call_site(location)),
            arguments_hash,
            summary,
            kind: Some(command),
        });
        Some(number)
    }

    /// What history said about a command, once it has.
    pub(crate) fn poll_leaf(&self, number: u32, cx: &Context<'_>) -> Poll<Attributes> {
        let mut state = self.state.borrow_mut();
        let Some(leaf) = state.leaves.get_mut(&number) else { return Poll::Pending };
        if leaf.outcome.is_some() {
            let leaf = state.leaves.remove(&number);
            drop(state);
            return match leaf.and_then(|leaf| leaf.outcome) {
                Some(outcome) => Poll::Ready(outcome),
                None => Poll::Pending,
            };
        }
        let old = register(&mut leaf.waker, cx);
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// The code no longer waits for it, and asks it to stop.
    pub(crate) fn drop_leaf(&self, number: u32) {
        if !self.is_active() {
            return;
        }
        let mut state = self.state.borrow_mut();
        let leaf = state.leaves.remove(&number);
        if let Some(leaf) = &leaf
            && leaf.outcome.is_none()
        {
            match &leaf.kind {
                LeafKind::Activity => {
                    state.cancels.insert(number, Kind::CancelActivity(v1::CancelActivity {}));
                }
                LeafKind::Timer => {
                    state.cancels.insert(number, Kind::CancelTimer(v1::CancelTimer {}));
                }
                LeafKind::Local { stage: LocalStage::Running, .. } => {
                    state.local_cancels.push(number);
                }
                LeafKind::Local { .. } => {}
                LeafKind::Record { .. } => state.records.retain(|waiting| *waiting != number),
            }
        }
        drop(state);
        drop(leaf);
    }

    /// Nobody will take the outcome, but it is to run on.
    pub(crate) fn detach_leaf(&self, number: u32) {
        if let Some(leaf) = self.state.borrow_mut().leaves.get_mut(&number) {
            leaf.owned = false;
        }
    }

    pub(super) fn flush_cancels(&self) {
        let cancels = std::mem::take(&mut self.state.borrow_mut().cancels);
        for (number, kind) in cancels {
            self.emit(v1::Command { number, kind: Some(kind), ..Default::default() });
        }
    }

    /// Gives a command its outcome and wakes who waits for it.
    pub(super) fn resolve(&self, event_id: u64, number: u32, outcome: Attributes) {
        let mut state = self.state.borrow_mut();
        if number > state.numbers {
            let build_id = match &state.phase {
                Phase::Replay { build_id, .. } => build_id.clone(),
                Phase::Idle | Phase::Live { .. } => String::new(),
            };
            let failure = report::non_determinism(
                &self.run,
                &self.options,
                event_id,
                &build_id,
                &Side::of_event(&outcome),
                &Side::none(&format!("no command #{number}")),
            );
            state.failure.get_or_insert(failure);
            return;
        }
        // A call that the code has dropped may still close.
        let Some(leaf) = state.leaves.get_mut(&number) else { return };
        let waker = if leaf.owned {
            leaf.outcome = Some(outcome);
            leaf.waker.take()
        } else {
            state.leaves.remove(&number).and_then(|leaf| leaf.waker)
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    // --- local activities and recorded values

    pub(crate) fn issue_local(
        &self,
        name: &'static str,
        args: EncodedArgs,
        options: crate::options::ActivityOptions,
        location: &Location<'_>,
    ) -> Option<u32> {
        let call = LocalCall { activity_type: name, arguments: args.payloads, options };
        self.begin_leaf(LeafKind::Local {
            stage: LocalStage::Issued(call),
            hash: args.hash,
            site: call_site(location),
            name,
        })
    }

    pub(crate) fn issue_record(&self, location: &Location<'_>) -> Option<u32> {
        let number = self.begin_leaf(LeafKind::Record { site: call_site(location) })?;
        self.state.borrow_mut().records.push_back(number);
        Some(number)
    }

    pub(crate) fn poll_record(&self, number: u32, cx: &Context<'_>) -> RecordTurn {
        let is_its_drain =
            self.state.borrow().recording.is_some_and(|(recording, _)| recording == number);
        if is_its_drain && self.is_active() {
            return RecordTurn::Make;
        }
        match self.poll_leaf(number, cx) {
            Poll::Ready(Attributes::MarkerRecorded(marker)) => {
                RecordTurn::Recorded(Box::new(marker))
            }
            Poll::Ready(_) | Poll::Pending => RecordTurn::Wait,
        }
    }

    /// Fills the place that was kept for a recorded value. Ends the drive if the server would not
    /// take it: the code must not go on with what a replay would not find.
    pub(crate) fn record(&self, number: u32, value: v1::Payload) {
        if let Err(limit) = limits::check_payload(&value, self.options.max_payload_bytes) {
            self.fail_payload(&format!("recorded value #{number}"), &limit);
            return;
        }
        let mut state = self.state.borrow_mut();
        let State { recording, phase, leaves, .. } = &mut *state;
        let Some((_, place)) = recording.take_if(|(recording, _)| *recording == number) else {
            return;
        };
        if let Phase::Live { commands } = phase
            && let Some(Kind::RecordMarker(marker)) = commands[place].kind.as_mut()
        {
            marker.result = Some(value);
        }
        let leaf = leaves.remove(&number);
        drop(state);
        drop(leaf);
    }

    /// Keeps the next place among the commands for this recorded value and wakes its leaf.
    pub(super) fn begin_recording(&self, number: u32) {
        let mut state = self.state.borrow_mut();
        let Some(leaf) = state.leaves.get_mut(&number) else { return };
        let LeafKind::Record { site } = &leaf.kind else { return };
        let (site, waker) = (site.clone(), leaf.waker.take());
        if let Phase::Live { commands } = &mut state.phase {
            let place = commands.len();
            commands.push(v1::Command {
                number,
                call_site: Some(site),
                kind: Some(Kind::RecordMarker(v1::RecordMarker {
                    kind: v1::MarkerKind::RecordedValue as i32,
                    ..Default::default()
                })),
                ..Default::default()
            });
            state.recording = Some((number, place));
        }
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the drain of a recorded value. Its place stays empty if the code dropped it unseen.
    pub(super) fn end_recording(&self) {
        let mut state = self.state.borrow_mut();
        if let Some((number, _)) = state.recording.take()
            && state.leaves.contains_key(&number)
        {
            state.failure.get_or_insert(task_failure(
                Cause::Stuck,
                format!("recorded value #{number} was woken but not polled"),
            ));
        }
    }

    /// An outcome that the server takes: a result that is too large is a failure instead. It is the
    /// recorded one that counts, live as well as at a replay.
    fn fit_outcome(&self, name: &str, outcome: LocalOutcome) -> LocalOutcome {
        let max_bytes = self.options.max_payload_bytes;
        match outcome {
            LocalOutcome::Completed { result, attempts } => {
                let Err(limit) = limits::check_payload(&result, max_bytes) else {
                    return LocalOutcome::Completed { result, attempts };
                };
                let mut failure =
                    plain_failure("ResultTooLarge", format!("the result of {name}: {limit}"));
                failure.non_retryable = true;
                let cause = v1::LocalActivityFailureCause::Application;
                LocalOutcome::Failed { failure, cause, attempts }
            }
            LocalOutcome::Failed { failure, cause, attempts } => {
                let failure = limits::fit_failure(failure, max_bytes);
                LocalOutcome::Failed { failure, cause, attempts }
            }
        }
    }

    /// Writes the marker of a local activity and wakes its leaf. A dropped one leaves no trace.
    pub(super) fn finish_local(&self, number: u32, outcome: LocalOutcome) -> bool {
        let marker = {
            let state = self.state.borrow();
            let Some(Leaf { kind: LeafKind::Local { hash, site, name, .. }, .. }) =
                state.leaves.get(&number)
            else {
                return false;
            };
            let (result, failure, cause, attempts) = match self.fit_outcome(name, outcome) {
                LocalOutcome::Completed { result, attempts } => {
                    (Some(result), None, v1::LocalActivityFailureCause::Unspecified, attempts)
                }
                LocalOutcome::Failed { failure, cause, attempts } => {
                    (None, Some(failure), cause, attempts)
                }
            };
            v1::MarkerRecorded {
                number,
                kind: v1::MarkerKind::LocalActivity as i32,
                name: (*name).to_owned(),
                result,
                failure,
                cause: cause as i32,
                attempts,
                call_site: Some(site.clone()),
                arguments_hash: *hash,
                refused: None,
            }
        };
        self.emit(v1::Command {
            number,
            call_site: marker.call_site.clone(),
            arguments_hash: marker.arguments_hash,
            summary: String::new(),
            kind: Some(Kind::RecordMarker(v1::RecordMarker {
                kind: marker.kind,
                name: marker.name.clone(),
                result: marker.result.clone(),
                failure: marker.failure.clone(),
                cause: marker.cause,
                attempts: marker.attempts,
            })),
        });
        self.resolve(0, number, Attributes::MarkerRecorded(marker));
        true
    }

    /// Whether the code waits for a marker of this kind and name under this number, and then the
    /// command that it stands for.
    pub(super) fn expects_marker(&self, marker: &v1::MarkerRecorded) -> Option<v1::Command> {
        let mut state = self.state.borrow_mut();
        let leaf = state.leaves.get(&marker.number)?;
        let (kind, name, hash, site) = match &leaf.kind {
            LeafKind::Record { site } => (v1::MarkerKind::RecordedValue, "", 0, site.clone()),
            LeafKind::Local { hash, site, name, .. } => {
                (v1::MarkerKind::LocalActivity, *name, *hash, site.clone())
            }
            LeafKind::Activity | LeafKind::Timer => return None,
        };
        state.records.retain(|waiting| *waiting != marker.number);
        Some(v1::Command {
            number: marker.number,
            call_site: Some(site),
            arguments_hash: hash,
            summary: String::new(),
            kind: Some(Kind::RecordMarker(v1::RecordMarker {
                kind: kind as i32,
                name: name.to_owned(),
                ..Default::default()
            })),
        })
    }

    pub(super) fn issue_command(&self, command: v1::Command) {
        self.emit(command);
    }

    // --- conditions

    /// Registers a pending condition; the first time it gets its place in the order.
    pub(crate) fn wait_condition(&self, id: Option<u64>, cx: &Context<'_>) -> Option<u64> {
        if !self.is_active() {
            return id;
        }
        let id = id.unwrap_or_else(|| self.next_id());
        let old = self.state.borrow_mut().conditions.insert(id, cx.waker().clone());
        drop(old);
        Some(id)
    }

    /// A condition has come true.
    pub(crate) fn meet_condition(&self, id: u64) {
        self.state.borrow_mut().conditions_met += 1;
        self.end_condition(id);
    }

    pub(crate) fn end_condition(&self, id: u64) {
        let old = self.state.borrow_mut().conditions.remove(&id);
        drop(old);
    }

    // --- signals

    pub(super) fn deliver_signal(&self, event_id: u64, signal: v1::SignalReceived) {
        let mut state = self.state.borrow_mut();
        let mailbox = state.mailboxes.entry(signal.signal_name).or_default();
        mailbox.signals.push_back(Taken { event_id, arguments: signal.arguments });
        let waiters: Vec<Waker> = mailbox.waiters.values().cloned().collect();
        drop(state);
        waiters.iter().for_each(Waker::wake_by_ref);
    }

    /// The oldest unread signal of this name, with its event.
    pub(crate) fn take_signal(&self, name: &str) -> Option<(u64, Vec<v1::Payload>)> {
        if !self.is_active() {
            return None;
        }
        let mut state = self.state.borrow_mut();
        let taken = state.mailboxes.get_mut(name)?.signals.pop_front()?;
        Some((taken.event_id, taken.arguments))
    }

    /// Skips a signal that does not decode. It counts as unread.
    pub(crate) fn skip_signal(&self, event_id: u64, name: &str, error: &dyn std::fmt::Display) {
        let mut state = self.state.borrow_mut();
        state.undeliverable.push(event_id);
        state.notes.push(format!("signal {name} (event {event_id}) was skipped: {error}"));
    }

    pub(crate) fn wait_signal(&self, name: &str, id: Option<u64>, cx: &Context<'_>) -> Option<u64> {
        if !self.is_active() {
            return id;
        }
        let id = id.unwrap_or_else(|| self.next_id());
        let mut state = self.state.borrow_mut();
        if !state.mailboxes.contains_key(name) {
            state.mailboxes.insert(name.to_owned(), Mailbox::default());
        }
        let mailbox = state.mailboxes.get_mut(name);
        let old = mailbox.and_then(|mailbox| mailbox.waiters.insert(id, cx.waker().clone()));
        drop(state);
        drop(old);
        Some(id)
    }

    pub(crate) fn end_signal_wait(&self, name: &str, id: u64) {
        let mut state = self.state.borrow_mut();
        let old = state.mailboxes.get_mut(name).and_then(|mailbox| mailbox.waiters.remove(&id));
        drop(state);
        drop(old);
    }

    pub(super) fn unread_signals(&self) -> Vec<u64> {
        let state = self.state.borrow();
        let unread = state.mailboxes.values().flat_map(|mailbox| &mailbox.signals);
        let unread: BTreeSet<u64> =
            unread.map(|taken| taken.event_id).chain(state.undeliverable.iter().copied()).collect();
        unread.into_iter().collect()
    }

    // --- cancellation

    /// Makes a section live: a child of the one that is being polled.
    pub(crate) fn enter_section(
        &self,
        id: Option<u64>,
        is_shield: bool,
        cx: &Context<'_>,
    ) -> SectionTurn {
        if !self.is_active() {
            return SectionTurn::Inert;
        }
        let new_id = id.unwrap_or_else(|| self.next_id());
        let waker = cx.waker().clone();
        let mut state = self.state.borrow_mut();
        let State { sections, polled_sections, .. } = &mut *state;
        let parent = polled_sections.last().copied();
        let old = match sections.get_mut(&new_id) {
            Some(section) if section.is_cancelled => {
                let section = sections.remove(&new_id);
                drop(state);
                drop((section, waker));
                return SectionTurn::Cancelled;
            }
            Some(section) => Some(std::mem::replace(&mut section.waker, waker)),
            None => {
                sections.insert(new_id, Section { parent, is_shield, is_cancelled: false, waker });
                None
            }
        };
        polled_sections.push(new_id);
        drop(state);
        drop(old);
        SectionTurn::Poll(new_id)
    }

    /// Ends the poll of a section.
    pub(crate) fn leave_section(&self, id: u64, is_done: bool) {
        let mut state = self.state.borrow_mut();
        let old = is_done.then(|| state.sections.remove(&id));
        state.polled_sections.retain(|polled| *polled != id);
        drop(state);
        drop(old);
    }

    pub(crate) fn drop_section(&self, id: u64) {
        if self.is_active() {
            let old = self.state.borrow_mut().sections.remove(&id);
            drop(old);
        }
    }

    pub(crate) fn is_cancel_requested(&self) -> bool {
        self.state.borrow().cancel != CancelRequest::None
    }

    /// Whether a held request has become due.
    pub(super) fn is_cancel_due(&self) -> bool {
        let state = self.state.borrow();
        state.cancel == CancelRequest::Held
            && !state.sections.values().any(|section| section.is_shield)
    }

    /// Gives the request to the innermost live sections, in creation order.
    pub(super) fn deliver_cancel(&self) -> Delivery {
        let mut state = self.state.borrow_mut();
        if state.sections.values().any(|section| section.is_shield) {
            state.cancel = CancelRequest::Held;
            return Delivery::Held;
        }
        state.cancel = CancelRequest::Delivered;
        if state.sections.is_empty() {
            return Delivery::Run;
        }
        let parents: BTreeSet<u64> =
            state.sections.values().filter_map(|section| section.parent).collect();
        let innermost = state.sections.iter_mut().filter(|(id, _)| !parents.contains(id));
        let wakers = innermost.map(|(_, section)| {
            section.is_cancelled = true;
            section.waker.clone()
        });
        Delivery::Sections(wakers.collect())
    }

    // --- time, randomness, identity

    pub(crate) fn now_us(&self) -> i64 {
        self.state.borrow().now_us
    }

    pub(crate) fn with_rng<T>(
        &self,
        name: Option<&str>,
        draw: impl FnOnce(&mut Xoshiro) -> T,
    ) -> T {
        let mut state = self.state.borrow_mut();
        let State { rng, named_rngs, started, .. } = &mut *state;
        let rng = match name {
            None => rng.get_or_insert_with(|| Xoshiro::new(&started.seed)),
            Some(name) => named_rngs
                .entry(name.to_owned())
                .or_insert_with(|| Xoshiro::named(&started.seed, name)),
        };
        draw(rng)
    }

    pub(crate) fn task_queue(&self) -> String {
        self.state.borrow().started.task_queue.clone()
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.state.borrow().started.attempt
    }
}

/// What a section has to do.
pub(crate) enum SectionTurn {
    /// Poll what is inside, then leave.
    Poll(u64),
    /// A cancel request was for it.
    Cancelled,
    /// The run is not being driven.
    Inert,
}

impl State {
    /// Whether anything is left that the server can deliver to the code.
    pub(super) fn waits_for_something(&self) -> bool {
        self.leaves.values().any(|leaf| leaf.owned && leaf.outcome.is_none())
            || !self.conditions.is_empty()
            || self.mailboxes.values().any(|mailbox| !mailbox.waiters.is_empty())
    }
}

/// Stores the waker unless it is there already. The caller drops the old one without a borrow.
fn register(slot: &mut Option<Waker>, cx: &Context<'_>) -> Option<Waker> {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => None,
        Some(_) | None => slot.replace(cx.waker().clone()),
    }
}
