//! What the store has of a run, as the engine takes it.

use bytes::Bytes;
use onward_proto::{
    DEFAULT_NAMESPACE, RequestId, RunId, Slot, Timestamp,
    v1::{self, JournalRow, PendingActivity},
};
use onward_server::engine::{
    Effect, Incarnation, Input, Limits, Requests, Run, RunIdentity, SessionId, Signal, Stop,
    Stored, TaskCompletion, TaskId, Token, Wake, Work, Worker, history::HistoryFold,
};
use prost::Message;
use uuid::Uuid;

use crate::server::DAWN_US;

/// All that the store has of a run, as one input: its own fields are kept whole by a fuzzer that
/// knows nothing of them, and those within can be anything.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StoredRun {
    /// Rows of its journal.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(crate) journal: Vec<Bytes>,
    /// Rows of `pending`.
    #[prost(message, repeated, tag = "2")]
    pub(crate) pending: Vec<PendingRow>,
    /// The column of accepted requests.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) requests: Bytes,
    /// The column of the memo.
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) memo: Bytes,
    /// The column of the status, less one.
    #[prost(uint32, tag = "5")]
    pub(crate) status: u32,
    /// When it wakes; 0 is never, 1 is hot.
    #[prost(int64, tag = "6")]
    pub(crate) wake_at: i64,
    /// What its next workflow task asks for.
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub(crate) commands: Vec<Bytes>,
}

/// A row of `pending`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PendingRow {
    #[prost(uint32, tag = "1")]
    pub(crate) number: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) data: Bytes,
}

/// The run that is stored.
pub(crate) fn run_id() -> RunId {
    RunId::new(DAWN_US as u64 / 1_000, 42, Slot::of(DEFAULT_NAMESPACE, "stored"))
}

/// A run is loaded, or refused; one that is loaded takes whatever comes, and its history is read.
pub(crate) fn stored_runs(input: &[u8]) {
    let Ok(stored) = StoredRun::decode(input) else { return };
    let rows = stored.journal.iter().map(|row| JournalRow::decode(row.as_ref()));
    let Ok(journal) = rows.collect::<Result<Vec<_>, _>>() else { return };
    read_history(&journal);
    let row = |row: &PendingRow| {
        PendingActivity::decode(row.data.as_ref()).map(|pending| (row.number, pending))
    };
    let Ok(pending) = stored.pending.iter().map(row).collect::<Result<Vec<_>, _>>() else {
        return;
    };
    let Ok(requests) = Requests::decode(&stored.requests, run_id()) else { return };
    let commands =
        stored.commands.iter().filter_map(|bytes| v1::Command::decode(bytes.as_ref()).ok());
    let commands: Vec<_> = commands.take(50).collect();
    let now = Timestamp::from_micros(DAWN_US);
    for work in [Work::MayBeInFlight, Work::Unclaimed, Work::NoneInFlight] {
        let stored = Stored {
            identity: &identity(),
            journal: &journal,
            pending: &pending,
            requests: requests.clone(),
        };
        let Ok(run) = Run::load(now, now, stored, work.into(), &Limits::default()) else { return };
        Life { run, now, tokens: Vec::new() }.live(&commands, &pending);
    }
}

fn identity() -> RunIdentity {
    RunIdentity {
        run_id: run_id(),
        namespace_id: DEFAULT_NAMESPACE,
        workflow_id: "stored".to_owned(),
        workflow_type: "errand".to_owned(),
        task_queue: "q".to_owned(),
        started_at: Timestamp::from_micros(DAWN_US),
    }
}

/// All at once, and page by page: both tell the same.
fn read_history(journal: &[JournalRow]) {
    let mut whole = HistoryFold::new();
    for (seq, row) in (0..).zip(journal) {
        if whole.push_row(seq, row).is_err() {
            return;
        }
    }
    let whole = whole.drain();
    let (mut fold, mut paged) = (HistoryFold::new(), Vec::new());
    for _ in 0..=whole.len() {
        for (seq, row) in (0..).zip(journal).skip(fold.read_from() as usize) {
            fold.push_row(seq, row).expect("it could be read a moment ago");
        }
        let page = fold.take_page(100);
        if page.is_empty() {
            break;
        }
        paged.extend(page);
        fold = HistoryFold::resume(&fold.position(run_id()));
    }
    assert_eq!(paged, whole, "a history that is read page by page is another one");
}

/// What happens to a run that is loaded.
struct Life {
    run: Run,
    now: Timestamp,
    tokens: Vec<Token>,
}

impl Life {
    fn live(mut self, commands: &[v1::Command], pending: &[(u32, PendingActivity)]) {
        let limits = Limits::default();
        let request = |n: u128| RequestId::from_uuid(Uuid::from_u128(n));
        self.look();
        for written in pending.iter().filter_map(|(_, row)| row.written_token.as_ref()) {
            if let Ok(token) = Token::from_wire(written) {
                self.happens(&Input::ClaimAttempt { token, worker: worker() });
                self.tokens.push(token);
            }
        }
        self.happens(&Input::Signal(Signal {
            name: "go".to_owned(),
            arguments: Vec::new(),
            request_id: request(1),
            identity: String::new(),
        }));
        self.wakes();
        let task_id = TaskId { incarnation: Incarnation(9), counter: 1 };
        if self.run.hand_out(self.now, task_id, &worker(), &limits).is_some() {
            self.happens(&Input::CompleteTask(TaskCompletion {
                task_id,
                commands: commands.to_vec(),
                more: false,
                sdk_flags: vec![1],
                worker: worker(),
            }));
        }
        let ready: Vec<_> = self.run.ready_activities().take(4).collect();
        for number in ready {
            let _ = self.run.activity_offer(number);
            let incarnation = Incarnation(9);
            self.happens(&Input::StartAttempt { number, worker: worker(), incarnation });
        }
        for (place, token) in std::mem::take(&mut self.tokens).into_iter().enumerate() {
            drop(self.run.activity_task(token));
            self.happens(&Input::Heartbeat { token, details: None });
            let (failure, identity) = (v1::Failure::default(), String::new());
            self.happens(&match place % 3 {
                0 => Input::FailActivity { token, failure, identity },
                1 => Input::CompleteActivity { token, result: None, identity },
                _ => Input::CancelledActivity { token, failure: None, identity },
            });
        }
        let stop =
            |n| Stop { reason: String::new(), request_id: request(n), identity: String::new() };
        self.happens(&Input::RequestCancel(stop(2)));
        self.happens(&Input::UseExisting { request_id: request(3) });
        let task_id = TaskId { counter: 2, ..task_id };
        if self.run.hand_out(self.now, task_id, &worker(), &limits).is_some() {
            let cause = v1::WorkflowTaskFailureCause::Panic;
            self.happens(&Input::FailTask { task_id, cause, failure: None });
        }
        self.happens(&Input::SessionLost { session: SessionId(1) });
        self.wakes();
        let _ = self.run.can_leave();
        self.happens(&Input::Terminate(stop(4)));
        self.look();
    }

    /// Its deadlines pass, a few of them.
    fn wakes(&mut self) {
        for _ in 0..4 {
            let (Wake::Hot(Some(due)) | Wake::Cold(due)) = self.run.wake() else { return };
            self.now = self.now.max(due);
            self.happens(&Input::Deadline { due });
        }
    }

    fn happens(&mut self, input: &Input) {
        let limits = Limits::default();
        if let Ok(decision) = self.run.decide(self.now, input, &limits) {
            self.run.apply(self.now, &decision, &limits);
            self.tokens.extend(decision.effects.iter().filter_map(|effect| match effect {
                Effect::SendActivity { token, .. } => Some(*token),
                _ => None,
            }));
        }
        self.look();
    }

    fn look(&self) {
        drop(self.run.describe(self.now, &|_| 0, &Limits::default()));
        let _ = (self.run.memory_bytes(), self.run.history_size(), self.run.outcome());
    }
}

fn worker() -> Worker {
    Worker { session: SessionId(1), identity: "w".to_owned(), build_id: "b".to_owned() }
}
