//! Giving work away: offers, hand-outs, and the history that a task needs.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use onward_proto::{
    RunId, SeededBug,
    v1::{EvictRun, JournalRow, WorkflowTask, YieldTask, server_item},
};
use prost::Message as _;

use super::{
    super::{batch::read_row, message::Mail},
    Beside, Lane, LaneEnd,
    reads::RETRY,
};
use crate::{
    dispatch::{Kind, Match, Offer, OfferKind, Rank, Session},
    engine::{Effect, HandOut, Incarnation, Input, SessionId, TaskId, Token, history::HistoryFold},
    store::{self, JournalPage},
};

/// Bytes of history that a task carries; the worker reads the rest by itself.
const TASK_HISTORY_BYTES: u32 = 256 << 10;
/// Bytes of new events that a task carries for a run in the worker's cache. Beyond them the worker
/// begins anew, from a history that it reads in pages: a message has a largest size.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// What came of reading the durable journal of a run for a task.
#[derive(Debug)]
pub(in crate::shard) struct JournalRead {
    run_id: RunId,
    task_id: TaskId,
    session: SessionId,
    page: store::Result<JournalPage>,
}

impl Lane {
    /// Offers a run's workflow task; a session that takes it gets it at once.
    pub(super) fn offer_task(&mut self, run_id: RunId) {
        if self.draining {
            return;
        }
        let now = self.now();
        let Some(entry) = self.runs.get(&run_id) else { return };
        let Some(owed) = entry.run.task_offer(now) else { return };
        let identity = entry.run.identity();
        let offer = Offer {
            shard: self.shard,
            run_id,
            namespace_id: identity.namespace_id,
            task_queue: owed.task_queue.to_owned(),
            type_name: identity.workflow_type.clone(),
            kind: OfferKind::Task { sticky: owed.sticky },
            rank: Rank::new(0, !owed.in_progress),
        };
        if let Some(session) = self.node.dispatch.offer(offer) {
            self.hand_out(run_id, &session);
        }
    }

    /// Offers the next attempt of an activity; a session that takes it gets it as soon as the
    /// engine allows.
    pub(super) fn offer_activity(&mut self, run_id: RunId, number: u32) {
        if self.draining {
            return;
        }
        let Some(entry) = self.runs.get(&run_id) else { return };
        let Some(ready) = entry.run.activity_offer(number) else { return };
        let offer = Offer {
            shard: self.shard,
            run_id,
            namespace_id: entry.run.identity().namespace_id,
            task_queue: ready.task_queue.to_owned(),
            type_name: ready.activity_type.to_owned(),
            kind: OfferKind::Activity { number },
            rank: Rank::new(ready.priority, false),
        };
        if let Some(session) = self.node.dispatch.offer(offer) {
            self.start_attempt(run_id, number, &session);
        }
    }

    /// Offers that waited have found a session.
    pub(super) fn take_matches(&mut self) {
        while let Some(found) = self.matched.pop_front() {
            if self.draining {
                found.session.give_back(self.shard, found.offer.kind.kind());
            } else if self.away.contains_key(&found.offer.run_id) {
                self.load(found.offer.run_id, Mail::Matched(found));
            } else {
                self.take_match(found);
            }
        }
    }

    /// A session has taken an offer of a run in memory.
    pub(super) fn take_match(&mut self, found: Match) {
        let Match { offer, session } = found;
        match offer.kind {
            OfferKind::Task { .. } => self.hand_out(offer.run_id, &session),
            OfferKind::Activity { number } => self.start_attempt(offer.run_id, number, &session),
        }
    }

    /// The credit of a workflow task comes back, once: the worker has answered, or forgets it.
    pub(super) fn free_task(&mut self, run_id: RunId, task_id: TaskId) {
        if let Some(session) = self.tasks_out.remove(&(run_id, task_id))
            && let Some(session) = self.session(session)
        {
            self.give_back(&session, Kind::Workflow);
        }
    }

    /// The credits of all workflow tasks of a run that a session holds, because it forgets the run.
    fn free_tasks_of(&mut self, run_id: RunId, session: SessionId) {
        for (task_id, holder) in self.tasks_out_of(run_id) {
            if holder == session {
                self.free_task(run_id, task_id);
            }
        }
    }

    /// The workflow tasks of a run whose credit has not come back, and who holds them.
    fn tasks_out_of(&self, run_id: RunId) -> Vec<(TaskId, SessionId)> {
        let first = TaskId { incarnation: Incarnation(0), counter: 0 };
        let of_run = self.tasks_out.range((run_id, first)..);
        let of_run = of_run.take_while(|((of, _), _)| *of == run_id);
        of_run.map(|((_, task_id), holder)| (*task_id, *holder)).collect()
    }

    /// The credit of an attempt comes back, once: it has ended, or no longer counts.
    pub(super) fn free_attempt(&mut self, token: Token) {
        if let Some(session) = self.attempts_out.remove(&token)
            && let Some(session) = self.session(session)
        {
            self.give_back(&session, Kind::Activity);
        }
    }

    /// A session says that it runs an attempt: that takes a credit, unless it has taken one.
    pub(super) fn hold_attempt(&mut self, token: Token, session: &Session) {
        if self.attempts_out.get(&token) != Some(&session.id()) {
            self.free_attempt(token);
            session.hold(self.shard, Kind::Activity);
            self.attempts_out.insert(token, session.id());
        }
    }

    /// A credit comes back; the session goes on with what waits, of whatever lane.
    pub(super) fn give_back(&mut self, session: &Session, kind: Kind) {
        if let Some(found) = self.node.dispatch.release(session, self.shard, kind) {
            if found.offer.shard == self.shard {
                self.matched.push_back(found);
            } else {
                self.node.deliver_match(found);
            }
        }
    }

    fn hand_out(&mut self, run_id: RunId, session: &Arc<Session>) {
        if !self.is_serving() {
            self.withheld.push_back(super::Deferred::OfferTask(run_id));
            return self.give_back(session, Kind::Workflow);
        }
        if self.session(session.id()).is_none() {
            if SeededBug::OfferLost.is_on() {
                return;
            }
            // It ended after it was matched, and its loss may have been handled already.
            return self.offer_task(run_id);
        }
        let now = self.now();
        let task_id = TaskId { incarnation: self.incarnation, counter: self.task_counter + 1 };
        let Some(entry) = self.runs.get_mut(&run_id) else {
            return self.give_back(session, Kind::Workflow);
        };
        let worker = &session.info().worker;
        let Some(mut task) = entry.run.hand_out(now, task_id, worker, &self.node.limits) else {
            // A stale offer: the run was advanced, or closed, since.
            return self.give_back(session, Kind::Workflow);
        };
        self.task_counter += 1;
        // A worker that still has a task of this run forgets that one first.
        self.free_tasks_of(run_id, session.id());
        self.tasks_out.insert((run_id, task_id), session.id());
        let Some(entry) = self.runs.get_mut(&run_id) else { return };
        let cached = task.follows.is_none() || entry.cached_on == Some(session.id());
        let bytes: usize = task.events.iter().map(prost::Message::encoded_len).sum();
        let journal = entry.take_journal();
        if cached && bytes <= MAX_EVENT_BYTES {
            self.send_task(run_id, session, task_id, task, bytes::Bytes::new());
        } else {
            let rows = journal.map(|rows| (0..).zip(rows).collect());
            let page = rows.map(|rows| JournalPage { rows, more: false });
            let whole = page.map(|page| self.whole_history(run_id, &page, &mut task));
            if let Some(Ok(next_position)) = whole {
                self.send_task(run_id, session, task_id, task, next_position);
            } else {
                self.read_journal(run_id, task_id, session.id(), Duration::ZERO);
            }
        }
        self.settle(run_id);
        self.release_held(run_id);
    }

    fn send_task(
        &mut self,
        run_id: RunId,
        session: &Session,
        task_id: TaskId,
        task: HandOut,
        next_position: bytes::Bytes,
    ) {
        let Some(entry) = self.runs.get(&run_id) else { return };
        let identity = entry.run.identity();
        session.outbox().push(server_item::Kind::WorkflowTask(WorkflowTask {
            task_id: Some(task_id.to_wire()),
            workflow_id: identity.workflow_id.clone(),
            run_id: run_id.to_wire(),
            workflow_type: identity.workflow_type.clone(),
            handed_out_at_us: task.handed_out_at.as_micros(),
            events: task.events,
            follows: task.follows.map(TaskId::to_wire),
            speculative: self.is_staged(run_id),
            attempt: task.attempt,
            next_position,
            next_event_id: task.next_event_id,
        }));
    }

    /// Reads what is durable of a run's journal, beside the lane.
    fn read_journal(&self, run_id: RunId, task_id: TaskId, session: SessionId, wait: Duration) {
        let reader = self.reader();
        self.node.env.spawn(async move {
            if !wait.is_zero() {
                reader.node.env.sleep(wait).await;
            }
            // Of a failure the lane hears as well: the task may be gone by then.
            let store = &reader.node.store;
            let page = reader.counting(|| store.read_journal(run_id, 0, TASK_HISTORY_BYTES)).await;
            if let Some(page) = page {
                let read = JournalRead { run_id, task_id, session, page };
                reader.tell(Beside::Journal(read)).await;
            }
        });
    }

    /// The journal is here: if the task is still in flight, it goes out with its history.
    pub(super) fn on_journal(&mut self, read: JournalRead) -> Option<LaneEnd> {
        let JournalRead { run_id, task_id, session, page } = read;
        let entry = self.runs.get(&run_id)?;
        let open = entry.run.open_task().filter(|open| open.task_id == task_id)?;
        let page = match page {
            Ok(page) => page,
            Err(error) if error.is_lasting() => {
                return Some(self.park_and_reload(run_id, error.to_string()));
            }
            Err(error) => {
                tracing::warn!(%run_id, %error, "cannot read a journal yet");
                self.read_journal(run_id, task_id, session, RETRY);
                return None;
            }
        };
        let session = self.session(session)?;
        let read_rows = page.rows.last().map_or(0, |(seq, _)| seq + 1);
        if !page.more && read_rows < entry.durable_rows {
            // Rows became durable after the read was made.
            self.read_journal(run_id, task_id, session.id(), Duration::ZERO);
            return None;
        }
        let mut task = HandOut {
            events: open.events(),
            follows: open.follows(),
            handed_out_at: open.handed_out_at,
            attempt: open.attempt,
            next_event_id: open.next_event_id(),
        };
        match self.whole_history(run_id, &page, &mut task) {
            Ok(next_position) => self.send_task(run_id, &session, task_id, task, next_position),
            Err(reason) => return Some(self.park_and_reload(run_id, reason)),
        }
        None
    }

    /// Puts the run's history in front of a task's events: what is durable of it, then what is
    /// staged. Gives where the worker reads on by itself, apart from the session, if it is long.
    fn whole_history(
        &self,
        run_id: RunId,
        durable: &JournalPage,
        task: &mut HandOut,
    ) -> Result<bytes::Bytes, String> {
        let mut fold = HistoryFold::new();
        for (seq, row) in &durable.rows {
            let row = read_row(row).map_err(|error| error.to_string())?;
            fold.push_row(*seq, &row).map_err(|error| error.to_string())?;
        }
        if !durable.more {
            let read_rows = durable.rows.last().map_or(0, |(seq, _)| seq + 1);
            for (seq, row) in self.staged_rows(run_id, read_rows) {
                fold.push_row(seq, &row).map_err(|error| error.to_string())?;
            }
            fold.push_facts(std::mem::take(&mut task.events));
        }
        task.events = fold.take_page(TASK_HISTORY_BYTES as usize);
        task.follows = None;
        let is_whole = !durable.more && fold.is_drained();
        Ok(if is_whole {
            bytes::Bytes::new()
        } else {
            fold.position(run_id).encode_to_vec().into()
        })
    }

    /// The worker does not have what the task's events follow: the same task again, whole.
    pub(super) fn need_history(&mut self, run_id: RunId, task_id: TaskId, session: &Arc<Session>) {
        let Some(entry) = self.runs.get_mut(&run_id) else { return };
        let open = entry.run.open_task();
        if open.is_some_and(|open| open.task_id == task_id && open.session == session.id()) {
            entry.cached_on = None;
            self.read_journal(run_id, task_id, session.id(), Duration::ZERO);
        }
    }

    /// Rows that are not durable yet, from `from` on: the one that commits, then the open one.
    pub(super) fn staged_rows(&self, run_id: RunId, from: u32) -> Vec<(u32, JournalRow)> {
        let committing = self.committing.as_ref().and_then(|committing| committing.row(run_id));
        let committing = committing.map(|(seq, row)| (seq, row.as_ref()));
        let open = self.open.get(run_id).zip(self.runs.get(&run_id));
        let open = open.map(|(staged, entry)| (entry.next_seq, staged.records.as_ref()));
        committing
            .into_iter()
            .chain(open)
            .filter(|(seq, _)| *seq >= from)
            .map(|(seq, row)| (seq, read_row(row).expect("the lane encoded this row itself")))
            .collect()
    }

    pub(super) fn start_attempt(&mut self, run_id: RunId, number: u32, session: &Arc<Session>) {
        if !self.is_serving() {
            self.withheld.push_back(super::Deferred::OfferActivity(run_id, number));
            return self.give_back(session, Kind::Activity);
        }
        if self.session(session.id()).is_none() {
            // It ended after it was matched, and its loss may have been handled already.
            return self.offer_activity(run_id, number);
        }
        let now = self.now();
        let input = Input::StartAttempt {
            number,
            worker: session.info().worker.clone(),
            incarnation: self.incarnation,
        };
        let decided = self.runs.get(&run_id).and_then(|entry| {
            entry.run.activity_offer(number)?;
            entry.run.decide(now, &input, &self.node.limits).ok()
        });
        match decided {
            Some(decision) => {
                let sent = decision.effects.iter().find_map(|effect| match effect {
                    Effect::SendActivity { token, .. } => Some(*token),
                    _ => None,
                });
                self.attempts_out.extend(sent.map(|token| (token, session.id())));
                self.apply(now, run_id, decision);
            }
            // A stale offer: the activity was cancelled, timed out, or started elsewhere.
            None => self.give_back(session, Kind::Activity),
        }
    }

    pub(super) fn send_activity(&mut self, token: Token, session: SessionId) {
        let Some(entry) = self.runs.get(&token.run_id) else { return };
        // A session that is gone has its attempts written off by its own loss.
        let Some(session) = self.session(session) else { return };
        if let Some(mut task) = entry.run.activity_task(token) {
            task.namespace.clone_from(&session.info().namespace);
            session.outbox().push(server_item::Kind::ActivityTask(task));
        } else {
            self.free_attempt(token);
        }
    }

    /// The run needs no workflow task any more: the workers that hold one, or have the run in their
    /// cache, forget the run.
    pub(super) fn withdraw_task(&mut self, run_id: RunId) {
        self.node.dispatch.withdraw(run_id, None);
        let Some(entry) = self.runs.get_mut(&run_id) else { return };
        let cached_on = entry.cached_on.take();
        let holders = self.tasks_out_of(run_id).into_iter().map(|(_, holder)| holder);
        let holders: BTreeSet<SessionId> = holders.chain(cached_on).collect();
        for session in holders {
            if let Some(session) = self.session(session) {
                let evict = EvictRun { run_id: run_id.to_wire() };
                session.outbox().push(server_item::Kind::Evict(evict));
                self.free_tasks_of(run_id, session.id());
            }
        }
    }

    /// Facts have waited behind open tasks for long enough: their workers let the facts in.
    pub(super) fn send_yields(&mut self) {
        let now = self.due_now();
        while let Some((at, run_id)) = self.yields.first().copied()
            && at <= now
        {
            self.yields.pop_first();
            let Some(entry) = self.runs.get_mut(&run_id) else { continue };
            entry.yield_at = None;
            let Some(open) = entry.run.open_task() else { continue };
            let (task_id, session) = (open.task_id, open.session);
            entry.yielded = Some(task_id);
            if let Some(session) = self.session(session) {
                session.outbox().push(server_item::Kind::Yield(YieldTask {
                    task_id: Some(task_id.to_wire()),
                    run_id: run_id.to_wire(),
                }));
            }
        }
    }
}
