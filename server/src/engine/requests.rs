//! The accepted requests of a workflow id, so that asking twice gives the first answer again.
//!
//! A window: at most so many, none older than a day. Ordered by time, the oldest leave first. A run
//! takes the window over from the run before it. Refusals are not remembered.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use onward_proto::{
    RequestId, RunId, SeededBug, Timestamp,
    v1::{AcceptedRequest, RequestLog},
};
use prost::Message as _;

use super::{Answer, Limits};

/// What a request asked for. A request id counts for one kind only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// Start a run.
    Start,
    /// Send a signal, also with a start.
    Signal,
    /// Ask a run to stop.
    Cancel,
    /// End a run.
    Terminate,
}

/// 16 bytes made of the kind of request and its id.
type Key = [u8; 16];

/// The key of a request.
fn key(kind: RequestKind, request_id: RequestId) -> Key {
    let mut key = *request_id.uuid().as_bytes();
    key[0] ^= match kind {
        RequestKind::Start => 0,
        RequestKind::Signal => 1,
        RequestKind::Cancel => 2,
        RequestKind::Terminate => 3,
    };
    key
}

/// One accepted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Accepted {
    key: Key,
    at: Timestamp,
    answer: Answer,
}

/// From so many entries on, a look-up goes by an index. Most runs have one or two requests, and
/// sleep by the million: they carry no index.
const INDEXED_FROM: usize = 32;

/// The window of accepted requests of one workflow id.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    /// Oldest first.
    accepted: VecDeque<Accepted>,
    index: Option<Box<Index>>,
}

/// Finds an entry by its key.
#[derive(Debug, Clone)]
struct Index {
    /// How many have left at the front since the index was made.
    left: u64,
    /// Place of each key, counted from the first entry that there was then.
    places: BTreeMap<Key, u64>,
}

/// The index says nothing of its own.
impl PartialEq for Requests {
    fn eq(&self, other: &Self) -> bool {
        self.accepted == other.accepted
    }
}

impl Requests {
    /// Reads the column of the row of run `own`. Entries that make no sense are left out.
    ///
    /// # Errors
    /// When the bytes are not a `RequestLog`.
    pub fn decode(column: &[u8], own: RunId) -> Result<Self, prost::DecodeError> {
        let mut requests = Self::default();
        for mut request in RequestLog::decode(column)?.requests {
            if request.run_id.is_empty() {
                request.run_id = own.to_wire();
            }
            requests.adopt(&request);
        }
        Ok(requests)
    }

    /// Writes the column of the row of run `own`, which most entries name.
    pub fn encode(&self, own: RunId) -> Bytes {
        let entry = |accepted: &Accepted| {
            let mut request = accepted.to_wire();
            if accepted.answer.run_id == own {
                request.run_id = Bytes::new();
            }
            request
        };
        let requests = self.accepted.iter().map(entry).collect();
        RequestLog { requests }.encode_to_vec().into()
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.accepted.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.accepted.is_empty()
    }

    /// The answer that a request got, if it is inside the window.
    pub fn lookup(
        &self,
        now: Timestamp,
        kind: RequestKind,
        request_id: RequestId,
        limits: &Limits,
    ) -> Option<Answer> {
        if SeededBug::DecideAgain.is_on() {
            return None;
        }
        let accepted = self.find(&key(kind, request_id))?;
        (accepted.at >= oldest(now, limits)).then_some(accepted.answer)
    }

    /// The same window without what has left it.
    #[must_use]
    pub fn pruned(&self, now: Timestamp, limits: &Limits) -> Self {
        let oldest = oldest(now, limits);
        let surplus = self.len().saturating_sub(limits.request_ids as usize);
        let mut pruned = Self::default();
        for accepted in self.accepted.iter().skip(surplus).filter(|entry| entry.at >= oldest) {
            pruned.push(*accepted);
        }
        pruned
    }

    /// Bytes of memory, roughly.
    pub(super) fn memory_bytes(&self) -> usize {
        let index = self.index.as_ref().map_or(0, |index| index.places.len() * 40);
        self.accepted.capacity() * size_of::<Accepted>() + index
    }

    /// Remembers an accepted request.
    pub(super) fn accept(
        &mut self,
        now: Timestamp,
        kind: RequestKind,
        request_id: RequestId,
        answer: Answer,
    ) {
        self.push(Accepted { key: key(kind, request_id), at: now, answer });
    }

    /// Remembers a request as a row or record tells it.
    pub(super) fn adopt(&mut self, request: &AcceptedRequest) {
        let key = Key::try_from(&*request.key);
        if let (Ok(key), Ok(run_id)) = (key, RunId::from_wire(&request.run_id)) {
            self.push(Accepted {
                key,
                at: Timestamp::from_micros(request.accepted_at_us),
                answer: Answer { run_id, started: request.started },
            });
        }
    }

    /// Lets go of what has left the window.
    pub(super) fn prune(&mut self, now: Timestamp, limits: &Limits) {
        let oldest = oldest(now, limits);
        while let Some(first) = self.accepted.front() {
            if first.at >= oldest && self.accepted.len() as u64 <= limits.request_ids {
                break;
            }
            if let Some(index) = &mut self.index {
                index.places.remove(&first.key);
                index.left += 1;
            }
            self.accepted.pop_front();
        }
    }

    /// Appends unless it is there. Time never runs back in the window, so that the oldest is first.
    fn push(&mut self, mut accepted: Accepted) {
        if self.find(&accepted.key).is_some() {
            return;
        }
        if let Some(last) = self.accepted.back() {
            accepted.at = accepted.at.max(last.at);
        }
        if let Some(index) = &mut self.index {
            index.places.insert(accepted.key, index.left + self.accepted.len() as u64);
        }
        if self.accepted.capacity() == 0 {
            self.accepted.reserve_exact(1);
        }
        self.accepted.push_back(accepted);
        if self.index.is_none() && self.accepted.len() >= INDEXED_FROM {
            let places = self.accepted.iter().enumerate();
            let places = places.map(|(place, entry)| (entry.key, place as u64)).collect();
            self.index = Some(Box::new(Index { left: 0, places }));
        }
    }

    fn find(&self, key: &Key) -> Option<&Accepted> {
        match &self.index {
            Some(index) => {
                let place = index.places.get(key)? - index.left;
                self.accepted.get(place as usize)
            }
            None => self.accepted.iter().find(|accepted| accepted.key == *key),
        }
    }
}

/// A request as a journal row keeps it when no record tells of it.
pub(super) fn to_wire(
    now: Timestamp,
    kind: RequestKind,
    request_id: RequestId,
    answer: Answer,
) -> AcceptedRequest {
    Accepted { key: key(kind, request_id), at: now, answer }.to_wire()
}

impl Accepted {
    fn to_wire(self) -> AcceptedRequest {
        AcceptedRequest {
            key: Bytes::copy_from_slice(&self.key),
            accepted_at_us: self.at.as_micros(),
            run_id: self.answer.run_id.to_wire(),
            started: self.answer.started,
        }
    }
}

/// The oldest time inside the window.
fn oldest(now: Timestamp, limits: &Limits) -> Timestamp {
    now.plus_micros(-limits.request_window_us)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::Slot;
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> RequestId {
        RequestId::from_uuid(Uuid::from_u128(n << 8))
    }

    fn answer(n: u64) -> Answer {
        Answer { run_id: RunId::new(1, n, Slot::new(3)), started: true }
    }

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn a_request_is_found_by_kind_and_id_while_it_is_inside_the_window() {
        let limits = Limits { request_window_us: 100, ..Limits::default() };
        let mut requests = Requests::default();
        requests.accept(at(1_000), RequestKind::Start, id(1), answer(1));
        let find = |now, kind, n| requests.lookup(at(now), kind, id(n), &limits);
        assert_eq!(find(1_000, RequestKind::Start, 1), Some(answer(1)));
        assert_eq!(find(1_100, RequestKind::Start, 1), Some(answer(1)));
        assert_eq!(find(1_101, RequestKind::Start, 1), None);
        assert_eq!(find(1_000, RequestKind::Signal, 1), None);
        assert_eq!(find(1_000, RequestKind::Start, 2), None);
        assert_eq!(requests.pruned(at(1_100), &limits).len(), 1);
        assert!(!requests.is_empty() && requests.pruned(at(1_101), &limits).is_empty());
    }

    #[test]
    fn a_request_id_counts_for_one_kind_only() {
        use RequestKind::{Cancel, Signal, Start, Terminate};
        let id = RequestId::from_uuid(Uuid::from_u128(u128::MAX));
        let keys = [Start, Signal, Cancel, Terminate].map(|kind| key(kind, id));
        assert!((1..4).all(|n| !keys[..n].contains(&keys[n])));
    }

    #[test]
    fn a_closed_run_that_is_loaded_keeps_the_window_of_its_close() {
        use super::super::{Rejection, fixture::*};

        let limits = Limits { request_ids: 3, ..Limits::default() };
        let story = history_of(&start_request(), limits).task([]);
        let story = (1..=4).fold(story, |story, n| story.when(&signal("a", request(n))));
        // The newest three: two signals, and what ended the run.
        let mut story = story.terminated().reload();
        let day = story.limits.request_window_us;
        for (passed, known) in [(0, [false, false, true, true]), (day + 1, [false; 4])] {
            story = story.after(passed);
            for (n, known) in (1..=4).zip(known) {
                story = story.when(&signal("a", request(n)));
                let repeated = matches!(story.last, Err(Rejection::Repeated(_)));
                assert_eq!(repeated, known, "signal {n} after {passed}");
            }
        }
    }

    #[test]
    fn few_requests_carry_no_index() {
        let bytes = |count: u128| {
            let mut requests = Requests::default();
            for n in 0..count {
                requests.accept(at(0), RequestKind::Start, id(n), answer(0));
            }
            requests.memory_bytes()
        };
        assert_eq!(bytes(1), size_of::<Accepted>());
        assert!(bytes(31) < 40 * size_of::<Accepted>());
        let indexed = 100 * (size_of::<Accepted>() + size_of::<(Key, u64)>());
        assert!((indexed..2 * indexed).contains(&bytes(100)));
    }

    #[test]
    fn the_oldest_leave_first_also_when_there_is_an_index() {
        let limits = Limits { request_ids: 50, ..Limits::default() };
        let mut requests = Requests::default();
        for n in 0..200 {
            requests.accept(at(n), RequestKind::Signal, id(n as u128), answer(n as u64));
            requests.prune(at(n), &limits);
        }
        assert_eq!(requests.len(), 50);
        for n in 0..200_i64 {
            let found = requests.lookup(at(200), RequestKind::Signal, id(n as u128), &limits);
            assert_eq!(found, (n >= 150).then(|| answer(n as u64)), "{n}");
        }
        assert_eq!(requests.pruned(at(200), &Limits { request_ids: 7, ..limits }).len(), 7);
    }

    #[test]
    fn the_column_keeps_everything_and_the_same_request_counts_once() {
        let mut requests = Requests::default();
        for n in 0..100 {
            requests.accept(at(n), RequestKind::Cancel, id(n as u128), answer(n as u64));
            requests.accept(at(n), RequestKind::Cancel, id(n as u128), answer(0));
        }
        assert_eq!(requests.len(), 100);
        for own in [answer(0).run_id, answer(50).run_id, answer(999).run_id] {
            assert_eq!(Requests::decode(&requests.encode(own), own).unwrap(), requests);
        }
        assert_ne!(Requests::default(), requests);
    }
}
