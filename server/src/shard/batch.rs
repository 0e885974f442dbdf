//! The batch that fills while the one before it commits.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use onward_proto::{
    RunId, SeededBug,
    v1::{CancelReason, DescribeWorkflowResponse, JournalRow, WorkflowOutcome},
};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};

use super::message::{Located, Refusal, Reply};
use crate::{
    dispatch::Session,
    engine::{Answer, Decision, SessionId, TaskId, Token},
};

/// Records after which a lane stops reading its mailbox until the batch before is done.
pub(crate) const MAX_RECORDS: usize = 4_096;
/// Bytes after which it does.
pub(crate) const MAX_BYTES: usize = 4 << 20;
/// What nobody waits for commits when it is this old, and not before, though other runs may: what the
/// run's worker is about to answer then shares its journal row.
pub(crate) const LAZY: Duration = Duration::from_millis(50);

/// Answers of one run whose receivers may have stopped waiting before anybody looks.
const MOST_GONE: usize = 8;

/// What was staged for one run. Its row is built from the run itself when the commit starts.
#[derive(Debug)]
pub(crate) struct Staged {
    /// Encoded `JournalRow` fields: the records.
    pub(crate) records: BytesMut,
    /// Rows of `pending`.
    pub(crate) pending: BTreeMap<u32, Option<Bytes>>,
    /// What may happen only when this is durable.
    pub(crate) deferred: Vec<Deferred>,
    /// Whether somebody waits for it.
    urgent: bool,
    /// When its first entry was staged, by the node's own clock.
    since: Duration,
    count: usize,
    bytes: usize,
}

/// Something that may happen only when all that was staged before it is durable.
#[derive(Debug)]
pub(crate) enum Deferred {
    /// Answer a request.
    Answer(Reply<Answer>, Result<Answer, Refusal>),
    /// Answer a description.
    Describe(Reply<Box<DescribeWorkflowResponse>>, Box<DescribeWorkflowResponse>),
    /// Answer where a journal stands.
    Locate(Reply<Located>, RunId),
    /// Answer the result of a closed run.
    Outcome(Reply<WorkflowOutcome>, Box<WorkflowOutcome>),
    /// Tell all who wait for a run's result.
    Closed(RunId),
    /// Offer the run's workflow task.
    OfferTask(RunId),
    /// Offer an activity.
    OfferActivity(RunId, u32),
    /// Send an attempt.
    SendActivity(Token, SessionId),
    /// Stop an attempt.
    CancelAttempt(Token, SessionId, CancelReason),
    /// Let a worker forget a workflow task's completion.
    AckTask(Arc<Session>, TaskId),
    /// Tell a worker that a workflow task's completion was not applied.
    StaleTask(Arc<Session>, RunId, TaskId),
    /// Let a worker forget an attempt's outcome.
    AckActivity(Arc<Session>, Token),
}

impl Deferred {
    /// Whether somebody waits for it; acks to workers can wait for company.
    fn is_urgent(&self) -> bool {
        match self {
            Self::Answer(..)
            | Self::Describe(..)
            | Self::Locate(..)
            | Self::Outcome(..)
            | Self::OfferTask(_)
            | Self::OfferActivity(..)
            | Self::SendActivity(..)
            | Self::CancelAttempt(..)
            | Self::StaleTask(..) => true,
            // The lane marks the batch urgent itself when somebody waits for the result.
            Self::Closed(_) | Self::AckTask(..) | Self::AckActivity(..) => false,
        }
    }

    /// Whether a seeded bug lets it go before it is durable.
    pub(crate) fn is_let_go_by_bug(&self) -> bool {
        match self {
            Self::Answer(..) => SeededBug::AnswerBeforeCommit.is_on(),
            Self::Describe(..) => SeededBug::DescribeBeforeCommit.is_on(),
            Self::OfferActivity(..) | Self::SendActivity(..) => {
                SeededBug::DispatchBeforeCommit.is_on()
            }
            Self::Locate(..)
            | Self::Outcome(..)
            | Self::Closed(_)
            | Self::OfferTask(_)
            | Self::CancelAttempt(..)
            | Self::AckTask(..)
            | Self::StaleTask(..)
            | Self::AckActivity(..) => false,
        }
    }

    /// Joins what waits for a run. Whoever asks again and again while a commit takes long leaves an
    /// answer behind each time.
    pub(crate) fn join(self, waiting: &mut Vec<Self>) {
        if waiting.len() >= MOST_GONE && waiting.len().is_power_of_two() {
            waiting.retain(|deferred| !deferred.has_gone());
        }
        waiting.push(self);
    }

    /// Whether it is an answer whose receiver has stopped waiting.
    fn has_gone(&self) -> bool {
        match self {
            Self::Answer(reply, _) => reply.is_closed(),
            Self::Describe(reply, _) => reply.is_closed(),
            Self::Locate(reply, _) => reply.is_closed(),
            Self::Outcome(reply, _) => reply.is_closed(),
            Self::Closed(_)
            | Self::OfferTask(_)
            | Self::OfferActivity(..)
            | Self::SendActivity(..)
            | Self::CancelAttempt(..)
            | Self::AckTask(..)
            | Self::StaleTask(..)
            | Self::AckActivity(..) => false,
        }
    }

    /// Tells who waits that it cannot be done. What is not an answer goes with the lane.
    pub(crate) fn refuse(self, refusal: &Refusal) {
        // A receiver that is gone has stopped waiting.
        match self {
            Self::Answer(reply, _) => drop(reply.send(Err(refusal.clone()))),
            Self::Describe(reply, _) => drop(reply.send(Err(refusal.clone()))),
            Self::Locate(reply, _) => drop(reply.send(Err(refusal.clone()))),
            Self::Outcome(reply, _) => drop(reply.send(Err(refusal.clone()))),
            Self::Closed(_)
            | Self::OfferTask(_)
            | Self::OfferActivity(..)
            | Self::SendActivity(..)
            | Self::CancelAttempt(..)
            | Self::AckTask(..)
            | Self::StaleTask(..)
            | Self::AckActivity(..) => {}
        }
    }
}

/// The open batch, run by run: a run's own records stay in order, and runs do not wait for each
/// other.
#[derive(Debug, Default)]
pub(crate) struct OpenBatch {
    runs: BTreeMap<RunId, Staged>,
    urgent: usize,
    oldest: Option<Duration>,
    count: usize,
    bytes: usize,
}

impl OpenBatch {
    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether the lane has to stop reading its mailbox.
    pub(crate) fn is_full(&self) -> bool {
        self.count >= MAX_RECORDS || self.bytes >= MAX_BYTES
    }

    /// What is staged for a run.
    pub(crate) fn get(&self, run_id: RunId) -> Option<&Staged> {
        self.runs.get(&run_id)
    }

    /// Marks a run as changed, so that its row is written.
    pub(crate) fn touch(&mut self, run_id: RunId, boot: Duration) -> &mut Staged {
        self.oldest.get_or_insert(boot);
        self.runs.entry(run_id).or_insert_with(|| Staged {
            records: BytesMut::new(),
            pending: BTreeMap::new(),
            deferred: Vec::new(),
            urgent: false,
            since: boot,
            count: 0,
            bytes: 0,
        })
    }

    /// Stages what a decision writes. Tells the bytes of its largest record.
    pub(crate) fn stage(&mut self, run_id: RunId, decision: &Decision, boot: Duration) -> usize {
        if !decision.writes() {
            return 0;
        }
        let staged = self.touch(run_id, boot);
        let before = (staged.count, staged.bytes);
        let largest = staged.add(decision);
        let added = (staged.count - before.0, staged.bytes - before.1);
        self.count += added.0;
        self.bytes += added.1;
        largest
    }

    /// Lets the next commit take a run along.
    pub(crate) fn hurry(&mut self, run_id: RunId) {
        if let Some(staged) = self.runs.get_mut(&run_id)
            && !staged.urgent
        {
            staged.urgent = true;
            self.urgent += 1;
        }
    }

    /// Lets something wait for what is staged for a run. Gives it back if there is nothing.
    pub(crate) fn defer(&mut self, run_id: RunId, deferred: Deferred) -> Result<(), Deferred> {
        let urgent = deferred.is_urgent();
        match self.runs.get_mut(&run_id) {
            Some(staged) => deferred.join(&mut staged.deferred),
            None => return Err(deferred),
        }
        if urgent {
            self.hurry(run_id);
        }
        Ok(())
    }

    /// Lets an answer wait without hurrying it: its receiver waits for more.
    pub(crate) fn defer_lazily(&mut self, run_id: RunId, deferred: Deferred) {
        if let Some(staged) = self.runs.get_mut(&run_id) {
            deferred.join(&mut staged.deferred);
        }
    }

    /// Whether to commit now, or how long to wait for more.
    pub(crate) fn due_in(&self, boot: Duration) -> Option<Duration> {
        if self.is_empty() {
            return None;
        }
        if self.urgent > 0 || self.is_full() {
            return Some(Duration::ZERO);
        }
        let age = self.oldest.map_or(Duration::ZERO, |oldest| boot.saturating_sub(oldest));
        Some(LAZY.saturating_sub(age))
    }

    /// Takes what the next commit writes. Young runs that nobody waits for stay.
    pub(crate) fn take(&mut self, boot: Duration) -> BTreeMap<RunId, Staged> {
        let full = self.is_full();
        let all = std::mem::take(self);
        let mut taken = BTreeMap::new();
        for (run_id, staged) in all.runs {
            if full || staged.urgent || boot.saturating_sub(staged.since) >= LAZY {
                taken.insert(run_id, staged);
            } else {
                self.keep(run_id, staged);
            }
        }
        taken
    }

    /// Takes one run alone.
    pub(crate) fn take_one(&mut self) -> BTreeMap<RunId, Staged> {
        let mut all = std::mem::take(self).runs;
        let taken = all.pop_first().into_iter().collect();
        for (run_id, staged) in all {
            self.keep(run_id, staged);
        }
        taken
    }

    /// Gives what waits for a run's records, which will not be written.
    pub(crate) fn forget(&mut self, run_id: RunId) -> Vec<Deferred> {
        self.runs.remove(&run_id).map(|staged| staged.deferred).unwrap_or_default()
    }

    fn keep(&mut self, run_id: RunId, staged: Staged) {
        self.oldest = Some(self.oldest.map_or(staged.since, |oldest| oldest.min(staged.since)));
        self.urgent += usize::from(staged.urgent);
        self.count += staged.count;
        self.bytes += staged.bytes;
        self.runs.insert(run_id, staged);
    }
}

impl Staged {
    /// Tells the bytes of the largest record.
    fn add(&mut self, decision: &Decision) -> usize {
        let mut largest = 0;
        for record in &decision.records {
            let bytes = encode_entry(RECORDS_FIELD, record, &mut self.records);
            self.bytes += bytes;
            largest = largest.max(bytes);
        }
        for request in &decision.requests {
            self.bytes += encode_entry(REQUESTS_FIELD, request, &mut self.records);
        }
        for (number, pending) in &decision.pending {
            let data = pending.as_ref().map(|pending| Bytes::from(pending.encode_to_vec()));
            self.bytes += data.as_ref().map_or(0, Bytes::len);
            self.pending.insert(*number, data);
        }
        self.count += decision.records.len() + decision.requests.len() + decision.pending.len();
        largest
    }
}

const RECORDS_FIELD: u32 = 3;
const REQUESTS_FIELD: u32 = 4;
const EPOCH_FIELD: u32 = 1;
const COMMIT_SEQ_FIELD: u32 = 2;

/// Appends an entry of a repeated field of `JournalRow`; tells how many bytes it took.
fn encode_entry(field: u32, entry: &impl Message, row: &mut BytesMut) -> usize {
    let before = row.len();
    encode_key(field, WireType::LengthDelimited, row);
    entry.encode_length_delimited(row).expect("a BytesMut grows as needed");
    row.len() - before
}

/// Completes a row: who wrote it stands behind the records, so that they need not be moved.
pub(crate) fn seal_row(mut records: BytesMut, epoch: u64, commit_seq: u64) -> Bytes {
    encode_key(EPOCH_FIELD, WireType::Varint, &mut records);
    encode_varint(epoch, &mut records);
    encode_key(COMMIT_SEQ_FIELD, WireType::Varint, &mut records);
    encode_varint(commit_seq, &mut records);
    records.freeze()
}

/// Reads the records of an encoded row, sealed or not.
///
/// # Errors
/// When the bytes are not such a row.
pub(crate) fn read_row(row: &[u8]) -> Result<JournalRow, prost::DecodeError> {
    JournalRow::decode(row)
}

#[cfg(test)]
mod tests {
    use onward_proto::v1::{
        AcceptedRequest, HistoryEvent, SignalReceived, TimerFired, history_event::Attributes,
    };

    use super::*;

    #[test]
    fn a_sealed_row_reads_as_it_was_staged() {
        let record = HistoryEvent {
            time_us: 7,
            attributes: Some(Attributes::TimerFired(TimerFired { number: 3 })),
            ..HistoryEvent::default()
        };
        let mut records = BytesMut::new();
        encode_entry(RECORDS_FIELD, &record, &mut records);
        encode_entry(RECORDS_FIELD, &record, &mut records);
        let row = read_row(&seal_row(records, 5, 99)).unwrap();
        assert_eq!((row.epoch, row.commit_seq), (5, 99));
        assert_eq!(row.records, vec![record.clone(), record]);
    }

    #[test]
    fn staging_tells_the_size_of_the_largest_record_alone() {
        let record = |bytes: usize| HistoryEvent {
            attributes: Some(Attributes::SignalReceived(SignalReceived {
                signal_name: "x".repeat(bytes),
                ..SignalReceived::default()
            })),
            ..HistoryEvent::default()
        };
        let mut batch = OpenBatch::default();
        let mut stage = |records| {
            let mut decision = Decision::default();
            decision.records = records;
            batch.stage(run(1), &decision, Duration::ZERO)
        };
        assert_eq!(stage(vec![]), 0);
        let largest = stage(vec![record(10), record(1_000), record(600)]);
        assert!((1_000..1_050).contains(&largest), "{largest}");
        let largest = stage(vec![record(20)]);
        assert!((20..70).contains(&largest), "{largest}");
    }

    fn run(number: u64) -> RunId {
        RunId::new(number, 0, onward_proto::Slot::new(0))
    }

    fn answer() -> Deferred {
        let (reply, _answer) = tokio::sync::oneshot::channel();
        Deferred::Answer(reply, Err(Refusal::Unavailable(String::new())))
    }

    #[test]
    fn acks_wait_for_company_and_answers_do_not() {
        let mut batch = OpenBatch::default();
        batch.touch(run(1), Duration::ZERO);
        assert_eq!(batch.due_in(Duration::ZERO), Some(LAZY));
        assert_eq!(batch.due_in(LAZY), Some(Duration::ZERO));
        batch.defer(run(1), answer()).unwrap();
        assert_eq!(batch.due_in(Duration::ZERO), Some(Duration::ZERO));
    }

    #[test]
    fn a_batch_is_full_of_requests_that_no_record_tells_of_as_of_records() {
        let mut batch = OpenBatch::default();
        let mut decision = Decision::default();
        decision.requests.resize(MAX_RECORDS / 2, AcceptedRequest::default());
        batch.stage(run(1), &decision, Duration::ZERO);
        assert!(!batch.is_full());
        batch.stage(run(2), &decision, Duration::ZERO);
        assert!(batch.is_full());
    }

    #[test]
    fn answers_that_nobody_waits_for_any_more_do_not_pile_up() {
        let mut batch = OpenBatch::default();
        batch.touch(run(1), Duration::ZERO);
        let (reply, _waits) = tokio::sync::oneshot::channel();
        let refusal = Refusal::Unavailable(String::new());
        batch.defer(run(1), Deferred::Answer(reply, Err(refusal))).unwrap();
        for _ in 0..1_000 {
            batch.defer(run(1), answer()).unwrap();
        }
        let waiting = &batch.get(run(1)).unwrap().deferred;
        assert!(waiting.len() <= MOST_GONE, "{}", waiting.len());
        assert!(!waiting[0].has_gone());
    }

    #[test]
    fn a_commit_leaves_young_runs_behind_that_nobody_waits_for() {
        let mut batch = OpenBatch::default();
        batch.touch(run(1), Duration::ZERO);
        batch.touch(run(2), Duration::ZERO);
        batch.touch(run(3), LAZY);
        batch.defer(run(2), answer()).unwrap();
        let taken: Vec<RunId> = batch.take(LAZY / 2).into_keys().collect();
        assert_eq!(taken, [run(2)]);
        batch.defer(run(3), answer()).unwrap();
        let taken: Vec<RunId> = batch.take(LAZY).into_keys().collect();
        assert_eq!(taken, [run(1), run(3)]);
        assert!(batch.is_empty() && batch.due_in(LAZY).is_none());
    }

    #[test]
    fn what_a_commit_leaves_behind_fills_the_batch_as_before() {
        let mut batch = OpenBatch::default();
        let mut decision = Decision::default();
        decision.requests.resize(MAX_RECORDS / 2, AcceptedRequest::default());
        for number in 1..=3 {
            batch.stage(run(number), &decision, Duration::ZERO);
        }
        assert_eq!(batch.take_one().into_keys().collect::<Vec<_>>(), [run(1)]);
        assert!(batch.is_full());
        batch.take_one();
        assert!(!batch.is_full());
    }

    #[test]
    fn old_runs_are_reason_enough_to_commit() {
        let mut batch = OpenBatch::default();
        batch.touch(run(1), Duration::ZERO);
        batch.touch(run(2), LAZY);
        let taken: Vec<RunId> = batch.take(LAZY).into_keys().collect();
        assert_eq!(taken, [run(1)]);
        assert_eq!(batch.due_in(LAZY), Some(LAZY));
    }
}
