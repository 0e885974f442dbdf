//! How journal records become a history: numbered, in replay order.
//!
//! The journal holds records in the order they became known, the history holds events in the order
//! workflow code saw them. Facts wait in the inbox until a task that took them completes; then they
//! get their numbers, messages first. A completed task and the events of its commands are one
//! *step*: they stand together in one journal row.
//!
//! [`Run`](super::Run) counts numbers by the same steps, without making the events.

use std::collections::VecDeque;

use onward_proto::{
    RunId,
    v1::{
        HistoryEvent, HistoryPosition, JournalRow, WorkflowTaskCompleted, history_event::Attributes,
    },
};
use prost::Message as _;

/// Why a run cannot be rebuilt from what the store has: it is parked with this reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the journal cannot be read: {reason}")]
pub struct Unreadable {
    /// For people.
    pub reason: String,
}

impl Unreadable {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

/// Length and size of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HistorySize {
    /// Numbered events.
    pub events: u64,
    /// Encoded bytes of all records.
    pub bytes: u64,
}

/// What a record is to the order of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Event 1.
    Started,
    /// A fact that workflow code gets before the others.
    Message,
    /// Any other fact.
    Fact,
    /// Gives the facts that it took their numbers.
    TaskCompleted,
    /// Numbered at once, before the facts that wait.
    TaskFailed,
    /// Numbered at once, behind its task.
    Command,
    /// The last event.
    Close,
}

/// The class of a record.
pub(super) fn class(attributes: &Attributes) -> Class {
    match attributes {
        Attributes::WorkflowExecutionStarted(_) => Class::Started,
        Attributes::SignalReceived(_) | Attributes::WorkflowExecutionCancelRequested(_) => {
            Class::Message
        }
        Attributes::ActivityCompleted(_)
        | Attributes::ActivityFailed(_)
        | Attributes::ActivityTimedOut(_)
        | Attributes::ActivityCancelled(_)
        | Attributes::TimerFired(_) => Class::Fact,
        Attributes::WorkflowTaskCompleted(_) => Class::TaskCompleted,
        Attributes::WorkflowTaskFailed(_) => Class::TaskFailed,
        Attributes::ActivityScheduled(_)
        | Attributes::ActivityCancelRequested(_)
        | Attributes::TimerStarted(_)
        | Attributes::TimerCancelled(_)
        | Attributes::MarkerRecorded(_) => Class::Command,
        Attributes::WorkflowExecutionCompleted(_)
        | Attributes::WorkflowExecutionFailed(_)
        | Attributes::WorkflowExecutionCancelled(_)
        | Attributes::WorkflowExecutionTimedOut(_)
        | Attributes::WorkflowExecutionTerminated(_) => Class::Close,
    }
}

/// Whether a fact is a message.
pub(super) fn is_message(fact: &HistoryEvent) -> bool {
    fact.attributes.as_ref().is_some_and(|attributes| class(attributes) == Class::Message)
}

/// The facts that a task takes, in the order workflow code gets them.
pub(super) fn replay_order(taken: &[HistoryEvent]) -> impl Iterator<Item = &HistoryEvent> {
    let messages = taken.iter().filter(|fact| is_message(fact));
    messages.chain(taken.iter().filter(|fact| !is_message(fact)))
}

/// Whether `fact` is the firing of this timer.
pub(super) fn is_firing_of(fact: &HistoryEvent, number: u32) -> bool {
    matches!(&fact.attributes, Some(Attributes::TimerFired(fired)) if fired.number == number)
}

/// The timers that these commands cancel.
fn cancelled_timers(commands: &[HistoryEvent]) -> impl Iterator<Item = u32> {
    commands.iter().filter_map(|event| {
        let Some(Attributes::TimerCancelled(cancelled)) = &event.attributes else { return None };
        Some(cancelled.number)
    })
}

/// What happens at once in a journal.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'a> {
    /// Event 1.
    Started(&'a HistoryEvent),
    /// A fact joins the inbox.
    Arrived(&'a HistoryEvent),
    /// A task has completed.
    Completed {
        /// The record.
        event: &'a HistoryEvent,
        /// What it says.
        completed: &'a WorkflowTaskCompleted,
        /// The events of its commands.
        commands: &'a [HistoryEvent],
    },
    /// A task has failed.
    Failed(&'a HistoryEvent),
    /// The run has closed without a task.
    Closed(&'a HistoryEvent),
}

impl<'a> Step<'a> {
    /// How many records it is made of.
    fn records(&self) -> u32 {
        match self {
            Self::Completed { commands, .. } => commands.len() as u32 + 1,
            Self::Started(_) | Self::Arrived(_) | Self::Failed(_) | Self::Closed(_) => 1,
        }
    }

    /// Whether the run is closed after it.
    pub(super) fn closes(&self) -> bool {
        match self {
            Self::Completed { commands, .. } => commands
                .last()
                .and_then(|event| event.attributes.as_ref())
                .is_some_and(|attributes| class(attributes) == Class::Close),
            Self::Closed(_) => true,
            Self::Started(_) | Self::Arrived(_) | Self::Failed(_) => false,
        }
    }

    /// Removes what this step takes back: the untaken firings of the timers it cancels.
    pub(super) fn remove_late<T>(
        commands: &[HistoryEvent],
        inbox: &mut Vec<T>,
        taken: usize,
        fact: impl Fn(&T) -> &HistoryEvent,
    ) {
        for number in cancelled_timers(commands) {
            let untaken = inbox.iter().skip(taken);
            if let Some(place) =
                untaken.enumerate().find(|(_, entry)| is_firing_of(fact(entry), number))
            {
                inbox.remove(taken + place.0);
            }
        }
    }

    /// Reads the first step of `records`.
    fn first(records: &'a [HistoryEvent]) -> Result<Self, Unreadable> {
        let event = &records[0];
        let Some(attributes) = &event.attributes else {
            return Err(Unreadable::new("a record of a kind that this version does not know"));
        };
        Ok(match class(attributes) {
            Class::Started => Self::Started(event),
            Class::Message | Class::Fact => Self::Arrived(event),
            Class::TaskCompleted => {
                let Attributes::WorkflowTaskCompleted(completed) = attributes else {
                    return Err(Unreadable::new("a completed task that is none"));
                };
                let Some(commands) = records.get(1..=completed.command_events as usize) else {
                    return Err(Unreadable::new("a completed task without all of its events"));
                };
                Self::Completed { event, completed, commands }
            }
            Class::TaskFailed => Self::Failed(event),
            Class::Command => return Err(Unreadable::new("a command's event without its task")),
            Class::Close => Self::Closed(event),
        })
    }
}

/// The steps of some whole records.
pub(super) fn steps(
    mut records: &[HistoryEvent],
) -> impl Iterator<Item = Result<Step<'_>, Unreadable>> {
    std::iter::from_fn(move || {
        if records.is_empty() {
            return None;
        }
        let step = Step::first(records);
        match &step {
            Ok(step) => records = &records[step.records() as usize..],
            Err(_) => records = &[],
        }
        Some(step)
    })
}

/// A place in a run's journal: row and record.
type Place = (u32, u32);

/// Where a fold stands between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    /// The oldest fact without a number; where to look for one if there is none.
    fact: Place,
    /// The next record.
    next: Place,
    next_event_id: u64,
    last_time_us: i64,
}

/// A numbered event that nobody has taken yet.
#[derive(Debug, Clone)]
struct Numbered {
    event: HistoryEvent,
    /// Before the step that numbered it.
    before: Standing,
    /// Its place among the events that the step numbered.
    index: u32,
}

/// Turns journal rows into numbered events, from the start or from where a page ended.
#[derive(Debug, Clone)]
pub struct HistoryFold {
    /// What arrived before this place waits no more, or is in the inbox. It is before `next` as
    /// long as the rows between the two have not been fed again.
    from: Place,
    /// Rows before this one are done.
    next: Place,
    next_event_id: u64,
    last_time_us: i64,
    /// Facts without a number, in arrival order.
    inbox: Vec<(Place, HistoryEvent)>,
    /// Numbered, in order.
    numbered: VecDeque<Numbered>,
    /// Events of the next step that an earlier page has returned.
    skip: u32,
}

impl Default for HistoryFold {
    fn default() -> Self {
        Self::new()
    }
}

impl HistoryFold {
    /// From the start of a run's journal.
    pub fn new() -> Self {
        Self {
            from: (0, 0),
            next: (0, 0),
            next_event_id: 1,
            last_time_us: i64::MIN,
            inbox: Vec::new(),
            numbered: VecDeque::new(),
            skip: 0,
        }
    }

    /// From where a page ended. Feed the journal from row [`HistoryFold::read_from`] on.
    pub fn resume(position: &HistoryPosition) -> Self {
        Self {
            from: (position.fact_seq, position.fact_index),
            next: (position.next_seq, position.next_index),
            next_event_id: position.next_event_id,
            last_time_us: position.last_time_us,
            skip: position.skip,
            ..Self::new()
        }
    }

    /// The first journal row to feed.
    pub fn read_from(&self) -> u32 {
        self.from.0.min(self.next.0)
    }

    /// Feeds the next journal row.
    ///
    /// # Errors
    /// When it makes no sense behind what came before.
    pub fn push_row(&mut self, seq: u32, row: &JournalRow) -> Result<(), Unreadable> {
        if seq > self.next.0 {
            return Err(Unreadable::new(format!("journal row {} is missing", self.next.0)));
        }
        let mut index = 0;
        for step in steps(&row.records) {
            let step = step?;
            let place = (seq, index);
            index += step.records();
            if place >= self.next {
                self.number(place, &step)?;
                self.next = (seq, index);
                // From here on the inbox alone tells which facts wait.
                self.from = self.next;
            } else if place >= self.from {
                self.collect(place, &step);
            }
        }
        let behind = (seq.saturating_add(1), 0);
        if self.from == self.next {
            self.from = self.from.max(behind);
        }
        self.next = self.next.max(behind);
        Ok(())
    }

    /// Adds the facts that an open task took, which are numbered behind all that the journal
    /// numbers. What the journal has numbered itself, or an earlier page returned, is passed over.
    pub fn push_facts(&mut self, facts: Vec<HistoryEvent>) {
        let standing = self.standing(self.next);
        for event in facts {
            if event.event_id >= self.next_event_id {
                let before = Standing { next_event_id: event.event_id, ..standing };
                self.numbered.push_back(Numbered { event, before, index: 0 });
            }
        }
    }

    /// Whether nothing numbered waits to be taken.
    pub fn is_drained(&self) -> bool {
        self.numbered.is_empty()
    }

    /// Takes numbered events, in order: about `max_bytes` of them, but at least one if there is
    /// one.
    pub fn take_page(&mut self, max_bytes: usize) -> Vec<HistoryEvent> {
        let mut page = Vec::new();
        let mut bytes = 0;
        while let Some(numbered) = self.numbered.front() {
            bytes += numbered.event.encoded_len() + 8;
            if bytes > max_bytes && !page.is_empty() {
                break;
            }
            page.extend(self.numbered.pop_front().map(|numbered| numbered.event));
        }
        page
    }

    /// Takes all numbered events, in order.
    pub fn drain(&mut self) -> Vec<HistoryEvent> {
        self.numbered.drain(..).map(|numbered| numbered.event).collect()
    }

    /// Facts without a number yet, in arrival order.
    pub fn inbox(&self) -> impl Iterator<Item = &HistoryEvent> {
        self.inbox.iter().map(|(_, fact)| fact)
    }

    /// Where the next page goes on: behind all events that were taken.
    pub fn position(&self, run_id: RunId) -> HistoryPosition {
        let (standing, skip) = match self.numbered.front() {
            Some(numbered) => (numbered.before, numbered.index),
            None => (self.standing(self.next), self.skip),
        };
        HistoryPosition {
            run_id: run_id.to_wire(),
            fact_seq: standing.fact.0,
            fact_index: standing.fact.1,
            next_seq: standing.next.0,
            next_index: standing.next.1,
            next_event_id: standing.next_event_id,
            last_time_us: standing.last_time_us,
            skip,
        }
    }

    /// Where the fold stands before the record at `next`.
    fn standing(&self, next: Place) -> Standing {
        Standing {
            fact: self.inbox.first().map_or(self.from, |(place, _)| *place),
            next,
            next_event_id: self.next_event_id,
            last_time_us: self.last_time_us,
        }
    }

    /// Learns from a step before the position which facts wait there.
    fn collect(&mut self, place: Place, step: &Step<'_>) {
        match step {
            Step::Arrived(fact) => self.inbox.push((place, (*fact).clone())),
            Step::Completed { commands, .. } => {
                Step::remove_late(commands, &mut self.inbox, 0, |(_, fact)| fact);
            }
            Step::Started(_) | Step::Failed(_) | Step::Closed(_) => {}
        }
    }

    /// Folds a step in.
    fn number(&mut self, place: Place, step: &Step<'_>) -> Result<(), Unreadable> {
        let before = self.standing(place);
        let mut events: Vec<HistoryEvent> = Vec::new();
        match step {
            Step::Arrived(fact) => self.inbox.push((place, (*fact).clone())),
            Step::Started(event) | Step::Failed(event) => events.push((*event).clone()),
            Step::Completed { event, completed, commands } => {
                let taken = completed.facts_taken as usize;
                if taken > self.inbox.len() {
                    return Err(Unreadable::new("a completed task took facts that never came"));
                }
                Step::remove_late(commands, &mut self.inbox, taken, |(_, fact)| fact);
                let untaken = self.inbox.split_off(taken);
                let mut others = Vec::new();
                for (_, fact) in self.inbox.drain(..) {
                    if is_message(&fact) {
                        events.push(fact);
                    } else {
                        others.push(fact);
                    }
                }
                events.append(&mut others);
                if step.closes() {
                    events.extend(untaken.into_iter().map(|(_, fact)| fact));
                } else {
                    self.inbox = untaken;
                }
                events.push((*event).clone());
                events.extend_from_slice(commands);
            }
            Step::Closed(event) => {
                events.extend(self.inbox.drain(..).map(|(_, fact)| fact));
                events.push((*event).clone());
            }
        }
        let skip = std::mem::take(&mut self.skip);
        for (index, mut event) in events.into_iter().enumerate() {
            stamp(&mut event, &mut self.next_event_id, &mut self.last_time_us);
            if index as u32 >= skip {
                self.numbered.push_back(Numbered { event, before, index: index as u32 });
            }
        }
        Ok(())
    }
}

/// Gives a record its number and its time in the history.
pub(super) fn stamp(event: &mut HistoryEvent, next_event_id: &mut u64, last_time_us: &mut i64) {
    event.event_id = *next_event_id;
    *next_event_id += 1;
    if event.time_us < *last_time_us {
        event.received_at_us = event.time_us;
        event.time_us = *last_time_us;
    }
    *last_time_us = event.time_us;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::{HistoryEvent, JournalRow, WorkflowTaskFailureCause, command::Kind};
    use prost::Message as _;

    use super::{
        super::{fixture::*, *},
        HistoryFold,
    };

    #[test]
    fn messages_stand_before_the_other_facts_of_a_task_each_in_arrival_order() {
        given(history().task([call(1), timer(2, secs(1))]))
            .dispatched(1)
            .returned(1)
            .signal("a")
            .passes(secs(1))
            .cancel_asked()
            .signal("b")
            .then_inbox("returned1#1 signal:a fired2 cancel-asked signal:b")
            .handed_out()
            .then_handed_out("signal:a cancel-asked signal:b returned1#1 fired2")
            .completed([])
            .then_history(
                "started task(0) call1 timer2 \
                 signal:a cancel-asked signal:b returned1#1 fired2 task(5)",
            );
    }

    #[test]
    fn the_start_is_event_1_and_stands_before_the_messages_of_the_first_task() {
        given(history().signal("a"))
            .then_history("started")
            .handed_out()
            .then_handed_out("started signal:a")
            .completed([])
            .then_history("started signal:a task(1)");
    }

    #[test]
    fn what_arrives_while_a_task_runs_waits_behind_its_output() {
        given(history().handed_out().signal("a"))
            .completed([call(1)])
            .then_effects("offer1 offer-task")
            .then_history("started task(0) call1")
            .then_inbox("signal:a")
            .handed_out()
            .then_handed_out("signal:a");
    }

    #[test]
    fn an_event_is_never_older_than_the_one_before_it_and_says_when_it_was_received() {
        let story =
            history().task([call(1)]).dispatched(1).returned(1).after(5).signal("a").task([]);
        let events = story.events();
        let at = |place: usize| (events[place].time_us - BEGIN, events[place].received_at_us);
        assert_eq!(tell(&events), "started task(0) call1 signal:a returned1#1 task(2)");
        assert_eq!(at(3), (5, 0));
        assert_eq!(at(4), (5, BEGIN), "it came before the signal, and stands behind it");
    }

    #[test]
    fn facts_that_no_task_took_stand_before_the_task_that_closes() {
        given(history().task([call(1), call(2)]).dispatched(1).dispatched(2).returned(1))
            .handed_out()
            .returned(2)
            .cancel_asked()
            .completed([complete("done")])
            .then_history(
                "started task(0) call1 call2 returned1#1 returned2#1 cancel-asked task(1-2) \
                 COMPLETED",
            );
    }

    #[test]
    fn facts_that_no_task_took_stand_in_arrival_order_before_a_close_without_a_task() {
        given(history().task([call(1)]).dispatched(1).returned(1).signal("a").handed_out())
            .signal("b")
            .terminated()
            .then_history("started task(0) call1 returned1#1 signal:a signal:b TERMINATED")
            .then_effects("withdraw-task closed");
    }

    #[test]
    fn an_unknown_record_or_a_gap_is_unreadable() {
        let story = history().task([call(1)]);
        let load = |journal: &[JournalRow]| {
            let identity = story.run.identity();
            let stored = Stored { identity, journal, pending: &[], requests: Requests::default() };
            Run::load(story.now, story.now, stored, Work::MayBeInFlight.into(), &story.limits)
        };
        assert!(load(&story.journal).is_ok());
        assert!(load(&story.journal[1..]).is_err(), "the start is missing");
        assert!(load(&[]).is_err());
        let mut unknown = story.journal.clone();
        unknown[1].records[0].attributes = None;
        assert!(load(&unknown).is_err());
        let mut short = story.journal.clone();
        short[1].records.pop();
        assert!(load(&short).is_err(), "a command's event is missing");
        let mut fold = HistoryFold::new();
        assert!(fold.push_row(1, &story.journal[1]).is_err(), "row 0 is missing");
    }

    /// A long story in which much goes on between the steps that number events.
    fn rich() -> Story {
        let Input::Signal(first) = signal("first", request(0)) else { panic!() };
        let start = Start { signal: Some(first), ..start_request() };
        let limits = Limits { payload_bytes: 1_000, ..Limits::default() };
        let mut big = call(3);
        let Some(Kind::ScheduleActivity(schedule)) = &mut big.kind else { panic!() };
        schedule.arguments = vec![payload(&"x".repeat(1_001))];
        let story = history_of(&start, limits).task([call(1), timer(2, 30), big, timer(4, 30)]);
        let story = story.dispatched(1).signal("a").handed_out().passes(30).signal("b");
        let story = story.after(5).completed([cancel_timer(4), call(5)]);
        let story = story.when(&Input::UseExisting { request_id: request(1) }).dispatched(5);
        let story = story.handed_out().task_failed(WorkflowTaskFailureCause::Panic).broke(5, "No");
        let story = story.passes(secs(1)).signal("c").handed_out().returned(1).cancel_asked();
        let story = story.completed([marker(6, "v")]).signal("d").handed_out().signal("e");
        story.completed([marker(7, "w")])
    }

    fn feed(fold: &mut HistoryFold, journal: &[JournalRow]) {
        for (seq, row) in journal.iter().enumerate().skip(fold.read_from() as usize) {
            fold.push_row(seq as u32, row).unwrap();
        }
    }

    /// Reads page after page, each from the position behind the one before, and behind the journal
    /// the facts that an open task took.
    fn pages(
        journal: &[JournalRow],
        facts: &[HistoryEvent],
        bytes: usize,
    ) -> Vec<Vec<HistoryEvent>> {
        let mut pages = Vec::new();
        let mut position = HistoryFold::new().position(run_id(1));
        for _ in 0..100 {
            let mut fold = HistoryFold::resume(&position);
            feed(&mut fold, journal);
            fold.push_facts(facts.to_vec());
            pages.push(fold.take_page(bytes));
            if fold.is_drained() {
                return pages;
            }
            position = fold.position(run_id(1));
        }
        panic!("reading never ends");
    }

    #[test]
    fn pages_of_any_size_are_the_whole_history_and_each_holds_what_fits() {
        let story = rich();
        let whole = story.events();
        let encoded = |event: &HistoryEvent| event.encoded_len() + 8;
        // What so many events take, and a byte less and more.
        let ends = (0..=whole.len()).map(|count| whole[..count].iter().map(encoded).sum());
        let sizes: Vec<usize> =
            ends.flat_map(|end: usize| [end.max(1) - 1, end, end + 1]).collect();
        for decisions in 1..5 {
            let journal = story.in_batches(decisions);
            for &bytes in &sizes {
                let pages = pages(&journal, &[], bytes);
                assert_eq!(tell(&pages.concat()), tell(&whole));
                assert_eq!(pages.concat(), whole);
                for (page, next) in pages.iter().zip(&pages[1..]) {
                    let size: usize = page.iter().map(encoded).sum();
                    assert!(size <= bytes || page.len() == 1, "{size} bytes for {bytes}");
                    assert!(size + encoded(&next[0]) > bytes, "the next would have fitted");
                }
            }
        }
    }

    #[test]
    fn the_facts_of_an_open_task_stand_behind_the_journal_and_are_read_once() {
        // The events of the second task begin with some that the journal has numbered as well.
        for story in [rich().handed_out(), {
            let story = history().task([]).signal("a").signal("b").handed_out();
            let story = story.task_failed(WorkflowTaskFailureCause::Panic).passes(secs(1));
            story.signal("c").handed_out().signal("d")
        }] {
            let facts = story.run.open_task().unwrap().events();
            let journal = story.in_batches(2);
            let done = story.completed([]);
            let mut whole = done.events();
            let task = whole.pop().unwrap();
            assert!(tell(&[task]).starts_with("task"));
            for bytes in (0..500).step_by(7) {
                let read = pages(&journal, &facts, bytes).concat();
                assert_eq!(tell(&read), tell(&whole));
                assert_eq!(read, whole);
            }
        }
    }

    #[test]
    fn a_position_names_the_first_row_to_read_again() {
        let story = history().task([timer(1, 30)]).signal("a").signal("b").handed_out();
        let story = story.signal("c").completed([marker(2, "v")]);
        let row_of = |word: &str| {
            let holds = |row: &JournalRow| tell(&row.records).starts_with(word);
            story.journal.iter().position(holds).unwrap() as u32
        };
        let reads_from = |journal: &[JournalRow], events: usize| {
            let mut fold = HistoryFold::new();
            feed(&mut fold, journal);
            for _ in 0..events {
                assert_eq!(fold.take_page(0).len(), 1);
            }
            HistoryFold::resume(&fold.position(run_id(1))).read_from()
        };
        let whole = &story.journal[..];
        assert_eq!(
            tell(&story.events()),
            "started task(0) timer1 signal:a signal:b task(2) marker2"
        );
        assert_eq!(reads_from(whole, 0), 0);
        assert_eq!(reads_from(whole, 2), 1, "it ends within the first task's row");
        assert_eq!(reads_from(whole, 3), row_of("signal:a"), "the facts that wait there");
        assert_eq!(reads_from(whole, 6), row_of("signal:a"), "they are not all read");
        assert_eq!(reads_from(whole, 7), row_of("signal:c"), "the fact that waits there");
        // Nothing waits: what was read is not read again, nor are rows that number nothing.
        let story = story.handed_out().completed([]);
        let (events, rows) = (story.events().len(), story.journal.len() as u32);
        assert_eq!(reads_from(&story.journal, events), rows);
        let story = story.when(&Input::UseExisting { request_id: request(1) });
        assert_eq!(reads_from(&story.journal, events), rows + 1);
    }
}
