//! What the machine shares with the run's own leaves: what they asked for, what has come of it,
//! and whether they may ask at all.
//!
//! No borrow of the state lives while user code runs: wakers are cloned before it begins, woken,
//! and dropped, after it has ended. What is to be woken more than once is shared, not cloned.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::Arc,
    task::{Context, Waker},
};

use onward_proto::v1::{
    self, WorkflowTaskFailureCause as Cause, command::Kind, history_event::Attributes,
};

use super::{
    LocalOutcome, MachineOptions, RunInfo, TaskFailure,
    leaf::Leaf,
    report::{self, Side, task_failure},
    rng::Xoshiro,
    section::{CancelRequest, Section},
    signal::Mailbox,
    wake::{self, RunWaker},
};
use crate::workflow;

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
    pub(super) cancels: BTreeMap<u32, Kind>,
    /// The last id given to what is no command: conditions, signal waits, sections.
    ids: u64,
    pub(super) conditions: BTreeMap<u64, Rc<Waker>>,
    /// How many conditions have come true.
    pub(super) conditions_met: u64,
    pub(super) mailboxes: BTreeMap<String, Mailbox>,
    /// Signals that did not decode.
    pub(super) undeliverable: Vec<u64>,
    pub(super) sections: BTreeMap<u64, Section>,
    /// The sections that are being polled, outermost first.
    pub(super) polled_sections: Vec<u64>,
    pub(super) cancel: CancelRequest,
    /// Recorded values that wait for their drain.
    pub(super) records: VecDeque<u32>,
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

    /// Whether the code may act: it is being driven, and nothing has gone wrong. A value that is
    /// being made may not: that ends the drive.
    pub(crate) fn is_active(&self) -> bool {
        self.refuse_while_making();
        self.driving.get() && !workflow::is_panicking() && self.state.borrow().failure.is_none()
    }

    /// What a recorded value does beside itself would be missing at a replay, which does not make
    /// it again.
    fn refuse_while_making(&self) {
        if wake::is_making() && self.driving.get() && !workflow::is_panicking() {
            let text = "the workflow acts inside ctx.record(..): calls, waits and the run's own \
                        randomness belong outside, where a replay finds them";
            self.fail(task_failure(Cause::BadCommands, text));
        }
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

    pub(super) fn emit(&self, command: v1::Command) {
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
                    if closed_by_timer(&command, attributes) {
                        // What the code asked for behind it was never made.
                        *phase = Phase::Idle;
                    }
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

    /// Whether this is new work, not the past.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Live { .. })
    }

    pub(super) fn next_id(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.ids += 1;
        state.ids
    }

    // --- conditions

    /// Registers a pending condition; the first time it gets its place in the order.
    pub(crate) fn wait_condition(&self, id: Option<u64>, cx: &Context<'_>) -> Option<u64> {
        if !self.is_active() {
            return id;
        }
        let id = id.unwrap_or_else(|| self.next_id());
        let waker = Rc::new(cx.waker().clone());
        let old = self.state.borrow_mut().conditions.insert(id, waker);
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

    // --- time, randomness, identity

    pub(crate) fn now_us(&self) -> i64 {
        self.state.borrow().now_us
    }

    pub(crate) fn with_rng<T>(
        &self,
        name: Option<&str>,
        draw: impl FnOnce(&mut Xoshiro) -> T,
    ) -> T {
        self.refuse_while_making();
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

/// Whether the run ended here because this timer broke a limit: the code did not mean to end.
fn closed_by_timer(command: &v1::Command, event: Option<&Attributes>) -> bool {
    matches!(command.kind, Some(Kind::StartTimer(_)))
        && matches!(event, Some(Attributes::WorkflowExecutionFailed(_)))
}

impl State {
    /// Whether anything is left that the server can deliver to the code.
    pub(super) fn waits_for_something(&self) -> bool {
        self.leaves.values().any(|leaf| leaf.owned && leaf.outcome.is_none())
            || !self.conditions.is_empty()
            || self.mailboxes.values().any(|mailbox| !mailbox.waiters.is_empty())
    }
}
