//! What holds of any run, whatever happens to it. The story itself checks after each step that a
//! loaded run is the same and that both folds agree.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use onward_proto::{
    RequestId, Timestamp,
    v1::{
        ActivityTimeouts, Command, Failure, HistoryEvent, RetryPolicy, WorkflowTaskFailureCause,
        history_event::Attributes,
    },
};
use proptest::{prelude::*, strategy::ValueTree as _};

use super::{
    fixture::*,
    history::{Class, HistoryFold, class},
    *,
};

/// What random stories must have met, or they prove nothing.
const MET: &[&str] = &[
    "signal:s",
    "cancel-asked",
    "COMPLETED",
    "FAILED",
    "FAILED!",
    "TERMINATED",
    "TIMED-OUT:Run",
    "-1)",
    "+more",
    "task-failed:Panic",
    "task-failed:BadCommands",
    "task-failed:WorkerLost",
    "task-failed:TimedOut",
    "call2!",
    ":Application",
    ":Exhausted",
    ":OutcomeUnknown",
    ":Refused",
    ":StartToClose",
    ":ScheduleToStart",
    ":ScheduleToClose",
    ":Heartbeat",
    "cancelled",
    "#2 ",
    "fired",
    "cancel-timer",
    "timer1 ",
    "marker1",
    "marker1!",
];

/// Something that may happen. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Op {
    Pass(i64),
    Deadline(i64),
    Signal(u8),
    CancelRequest,
    Terminate,
    UseExisting(u8),
    HandOut(u8),
    Complete { task: u8, commands: Vec<Ask>, more: bool },
    FailTask { task: u8, cause: u8 },
    Dispatch(u8, u8),
    Return(u8),
    Break(u8, bool, bool),
    Stopped(u8),
    Heartbeat(u8, bool),
    Claim(u8, u8, bool),
    SessionLost(u8),
    Reload,
}

/// A command of a worker that is sometimes right.
#[derive(Debug, Clone)]
enum Ask {
    Call(u8),
    Timer(i64),
    Marker(u8),
    CancelCall(u8),
    CancelTimer(u8),
    Wrong(u32),
    Huge,
    Complete,
    Fail,
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        6 => any::<u8>().prop_map(Ask::Call),
        4 => prop_oneof![30 => 0..secs(30), 1 => Just(-1), 1 => Just(i64::MAX)].prop_map(Ask::Timer),
        2 => (0..3_u8).prop_map(Ask::Marker),
        4 => any::<u8>().prop_map(Ask::CancelCall),
        4 => any::<u8>().prop_map(Ask::CancelTimer),
        1 => any::<u32>().prop_map(Ask::Wrong),
        1 => Just(Ask::Huge),
        1 => Just(Ask::Complete),
        1 => Just(Ask::Fail),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u8>();
    prop_oneof![
        6 => prop_oneof![0..secs(1), 0..secs(100)].prop_map(Op::Pass),
        14 => prop_oneof![0..secs(1), 0..secs(6), 0..secs(60)].prop_map(Op::Deadline),
        6 => n.prop_map(Op::Signal),
        1 => Just(Op::CancelRequest),
        1 => (0..20_u8).prop_filter_map("rare", |n| (n == 0).then_some(Op::Terminate)),
        1 => n.prop_map(Op::UseExisting),
        20 => n.prop_map(Op::HandOut),
        20 => (
            prop_oneof![9 => Just(0), 1 => n],
            prop::collection::vec(ask(), 0..5),
            prop::bool::weighted(0.1),
        )
            .prop_map(|(task, commands, more)| Op::Complete { task, commands, more }),
        3 => (n, n).prop_map(|(task, cause)| Op::FailTask { task, cause }),
        14 => (n, n).prop_map(|(a, w)| Op::Dispatch(a, w)),
        6 => n.prop_map(Op::Return),
        6 => (n, any::<bool>(), any::<bool>()).prop_map(|(a, b, c)| Op::Break(a, b, c)),
        2 => n.prop_map(Op::Stopped),
        4 => (n, any::<bool>()).prop_map(|(a, b)| Op::Heartbeat(a, b)),
        3 => (n, n, any::<bool>()).prop_map(|(a, w, b)| Op::Claim(a, w, b)),
        2 => n.prop_map(Op::SessionLost),
        2 => Just(Op::Reload),
    ]
}

/// The activity or timer that `n` means, by number.
fn pick<T: Copy>(from: &[T], n: u8) -> Option<T> {
    (!from.is_empty()).then(|| from[usize::from(n) % from.len()])
}

fn commands(story: &Story, asks: &[Ask]) -> Vec<Command> {
    let mut next = story
        .journal
        .iter()
        .flat_map(|row| &row.records)
        .filter_map(|record| match record.attributes.as_ref()? {
            Attributes::ActivityScheduled(e) => Some(e.number),
            Attributes::TimerStarted(e) => Some(e.number),
            Attributes::MarkerRecorded(e) => Some(e.number),
            _ => None,
        })
        .max()
        .unwrap_or(0)
        + 1;
    let mut number = || {
        next += 1;
        next - 1
    };
    let mut calls: Vec<u32> = story.run.activities.iter().map(|a| a.number()).collect();
    let mut timers: Vec<u32> = story.run.timers.iter().map(|t| t.number).collect();
    for fact in &story.run.inbox {
        match fact.attributes.as_ref().unwrap() {
            Attributes::TimerFired(fired) => timers.push(fired.number),
            Attributes::ActivityCompleted(e) => calls.push(e.number),
            _ => {}
        }
    }
    let mut made = Vec::new();
    for ask in asks {
        made.push(match ask {
            Ask::Call(n) => {
                let number = number();
                calls.push(number);
                let timeouts = ActivityTimeouts {
                    start_to_close_us: if n & 1 == 0 { 0 } else { secs(5) },
                    schedule_to_start_us: if n & 2 == 0 { 0 } else { secs(20) },
                    schedule_to_close_us: if n & 4 == 0 { 0 } else { secs(40) },
                    heartbeat_us: if n & 8 == 0 { 0 } else { secs(3) },
                };
                let max_attempts = u32::from(n >> 4 & 3);
                call_with(number, timeouts, RetryPolicy { max_attempts, ..RetryPolicy::default() })
            }
            Ask::Timer(duration) => {
                let number = number();
                timers.push(number);
                timer(number, *duration)
            }
            Ask::Marker(skip) => {
                for _ in 0..*skip {
                    number();
                }
                marker(number(), "v")
            }
            Ask::CancelCall(n) => match pick(&calls, *n) {
                Some(number) => cancel_call(number),
                None => continue,
            },
            Ask::CancelTimer(n) => match pick(&timers, *n) {
                Some(number) => cancel_timer(number),
                None => continue,
            },
            Ask::Wrong(number) => marker(*number, "v"),
            Ask::Huge => marker(number(), &"x".repeat(5_000)),
            Ask::Complete => complete("done"),
            Ask::Fail => fail("Broken"),
        });
    }
    made
}

fn step(mut story: Story, op: &Op) -> Story {
    let numbers: Vec<u32> = story.run.activities.iter().map(|a| a.number()).collect();
    // Mostly attempts that still count, sometimes those of activities that have closed.
    let open = story.tokens.values().filter(|token| numbers.contains(&token.number)).copied();
    let mut tokens: Vec<Token> = open.collect();
    if tokens.is_empty() {
        tokens = story.tokens.values().copied().collect();
    }
    let identity = || "w".to_owned();
    match op {
        Op::Pass(micros) => return story.after(*micros),
        Op::Deadline(micros) => {
            story = story.after(*micros);
            let before = story.run.wake();
            story.put(&Input::Deadline { due: story.now });
            if let Wake::Hot(Some(at)) | Wake::Cold(at) = before {
                let decision = story.last.as_ref().unwrap();
                assert_eq!(*decision != Decision::default(), at <= story.now, "{before:?}");
            }
            // What was due is done: nothing is due twice.
            for _ in 0..20 {
                match story.run.wake() {
                    Wake::Hot(Some(at)) | Wake::Cold(at) if at <= story.now => {
                        story.put(&Input::Deadline { due: story.now });
                    }
                    _ => return story,
                }
            }
            panic!("a deadline never passes: {:?}", story.run);
        }
        Op::Signal(n) => {
            let request_id = if n % 8 == 0 { request(5) } else { story.request() };
            if story.run.holds_signals() {
                return story;
            }
            story.put(&signal("s", request_id));
        }
        Op::CancelRequest => return story.cancel_asked(),
        Op::Terminate => return story.terminated(),
        Op::UseExisting(n) => {
            let request_id: RequestId = request(u128::from(n % 3) + 100);
            story.put(&Input::UseExisting { request_id });
        }
        Op::HandOut(n) => return story.handed_out_to(u64::from(n % 3)),
        Op::Complete { task, commands: asks, more } => {
            let tasks: Vec<TaskId> = story.handed_out.iter().rev().map(|(id, _)| *id).collect();
            let Some(task_id) = pick(&tasks, *task) else { return story };
            let commands = commands(&story, asks);
            let completion = TaskCompletion { task_id, more: *more, ..story.completion(commands) };
            story.put(&Input::CompleteTask(completion));
        }
        Op::FailTask { task, cause } => {
            let tasks: Vec<TaskId> = story.handed_out.iter().rev().map(|(id, _)| *id).collect();
            let Some(task_id) = pick(&tasks, task % 3) else { return story };
            let cause = match cause % 3 {
                0 => WorkflowTaskFailureCause::Panic,
                1 => WorkflowTaskFailureCause::NonDeterminism,
                _ => WorkflowTaskFailureCause::Stuck,
            };
            story.put(&Input::FailTask { task_id, cause, failure: Some(failure("F")) });
        }
        Op::Dispatch(a, w) => {
            let ready: Vec<u32> = story.run.ready_activities().collect();
            let from = if a % 8 == 0 { &numbers } else { &ready };
            let Some(number) = pick(from, a / 8) else { return story };
            return story.dispatched_to(number, u64::from(w % 3));
        }
        Op::Return(a) => {
            let Some(token) = pick(&tokens, *a) else { return story };
            return story.returned_by(token);
        }
        Op::Break(a, kind, later) => {
            let Some(token) = pick(&tokens, *a) else { return story };
            let failure = Failure {
                non_retryable: *kind,
                next_delay_us: later.then_some(0),
                message: "x".repeat(6_000),
                ..failure("Broken")
            };
            story.put(&Input::FailActivity { token, failure, identity: identity() });
        }
        Op::Stopped(a) => {
            let Some(token) = pick(&tokens, *a) else { return story };
            story.put(&Input::CancelledActivity { token, failure: None, identity: identity() });
        }
        Op::Heartbeat(a, details) => {
            let Some(token) = pick(&tokens, *a) else { return story };
            let details = details.then(|| payload("half way"));
            story.put(&Input::Heartbeat { token, details });
        }
        Op::Claim(a, w, wrong) => {
            let Some(mut token) = pick(&tokens, *a) else { return story };
            if *wrong {
                token.attempt += 1;
            }
            story.put(&Input::ClaimAttempt { token, worker: worker(u64::from(w % 3)) });
        }
        Op::SessionLost(n) => return story.session_lost(u64::from(n % 3)),
        Op::Reload => return story.reload(),
    }
    story
}

/// H1, H5 and H6: form, causality and time of a history.
fn check_history(events: &[HistoryEvent]) {
    let mut calls: BTreeMap<u32, u32> = BTreeMap::new();
    let mut timers: BTreeMap<u32, &str> = BTreeMap::new();
    let mut fired_at: BTreeMap<u32, usize> = BTreeMap::new();
    let mut last_task = 0;
    let mut time = i64::MIN;
    for (place, event) in events.iter().enumerate() {
        assert_eq!(event.event_id, place as u64 + 1);
        assert!(event.time_us >= time, "time runs back at {}", event.event_id);
        assert!(event.received_at_us == 0 || event.received_at_us < event.time_us);
        time = event.time_us;
        let attributes = event.attributes.as_ref().unwrap();
        assert_eq!(class(attributes) == Class::Started, place == 0);
        if class(attributes) == Class::Close {
            assert_eq!(place + 1, events.len(), "something follows the close");
        }
        let mut closes = |number: u32| {
            let closed = calls.get_mut(&number).expect("closed before it was scheduled");
            *closed += 1;
            assert_eq!(*closed, 1, "activity {number} closed twice");
        };
        match attributes {
            Attributes::WorkflowTaskCompleted(_) => last_task = place,
            Attributes::ActivityScheduled(e) => {
                assert_eq!(calls.insert(e.number, 0), None);
            }
            Attributes::ActivityCancelRequested(e) => assert!(calls.contains_key(&e.number)),
            Attributes::ActivityCompleted(e) => closes(e.number),
            Attributes::ActivityFailed(e) => closes(e.number),
            Attributes::ActivityTimedOut(e) => closes(e.number),
            Attributes::ActivityCancelled(e) => closes(e.number),
            Attributes::TimerStarted(e) => {
                assert_eq!(timers.insert(e.number, "waiting"), None);
                assert_eq!(e.refused, None);
                assert!(e.fire_at_us >= event.time_us + e.duration_us);
            }
            Attributes::TimerFired(e) => {
                assert_eq!(timers.insert(e.number, "fired"), Some("waiting"), "timer {}", e.number);
                fired_at.insert(e.number, place);
            }
            Attributes::TimerCancelled(e)
                if timers.insert(e.number, "cancelled") == Some("fired") =>
            {
                // Only the task that took the firing may cancel the timer behind it.
                let is_task = |event: &HistoryEvent| {
                    matches!(event.attributes, Some(Attributes::WorkflowTaskCompleted(_)))
                };
                let fired = fired_at[&e.number];
                assert!(!events[fired..last_task].iter().any(is_task), "cancelled too late");
            }
            _ => {}
        }
    }
}

/// Pages of any size, each from where the one before ended, are the whole history; with ever more
/// journal to read, as a follower sees it, and however many decisions a batch has.
fn check_pages(story: &Story, max_bytes: usize, step: usize, decisions: usize) {
    let whole = story.events();
    let journal = story.in_batches(decisions);
    let mut read = Vec::new();
    let mut position = HistoryFold::new().position(story.run.identity().run_id);
    for end in (0..=journal.len()).step_by(step).chain([journal.len()]) {
        loop {
            let mut fold = HistoryFold::resume(&position);
            let from = fold.read_from() as usize;
            for (seq, row) in journal.iter().enumerate().take(end).skip(from) {
                fold.push_row(seq as u32, row).unwrap();
            }
            let page = fold.take_page(max_bytes);
            position = fold.position(story.run.identity().run_id);
            if page.is_empty() {
                break;
            }
            read.extend(page);
        }
    }
    assert_eq!(tell(&read), tell(&whole));
    assert_eq!(read, whole);
}

fn tell_story(ops: &[Op], limits: Limits, run_timeout_us: i64) -> Story {
    let start = Start { run_timeout_us, ..start_request() };
    let mut story = history_of(&start, limits);
    for op in ops {
        story = step(story, op);
    }
    story
}

#[test]
fn random_stories_meet_everything() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let stories = prop::collection::vec(op(), 40..120);
    let mut met = String::new();
    let mut voids = 0;
    for n in 0..600 {
        let ops = stories.new_tree(&mut runner).unwrap().current();
        let mut limits = Limits { payload_bytes: 4_096, ..Limits::default() };
        if n % 3 == 0 {
            limits.pending_activities = 1;
            limits.history_events = 30;
        }
        let start = Start { run_timeout_us: secs(n % 5 * 300), ..start_request() };
        let mut story = history_of(&start, limits);
        for op in &ops {
            story = step(story, op);
            let effects = story.last.iter().flat_map(|decision| &decision.effects);
            voids += effects.filter(|e| matches!(e, Effect::TaskVoid { .. })).count();
        }
        met.push_str(&tell(&story.events()));
        met.push(' ');
    }
    let missing: Vec<_> = MET.iter().filter(|word| !met.contains(**word)).collect();
    assert!(missing.is_empty(), "never met: {missing:?}");
    assert!(voids > 0, "no task was ever void");
}

proptest! {
    #[test]
    fn any_story_leaves_a_sound_history(
        ops in prop::collection::vec(op(), 1..80),
        page in 1..600_usize,
        rows in 1..5_usize,
        decisions in 1..4_usize,
        tight in any::<bool>(),
        timeout in prop_oneof![4 => Just(0), 1 => secs(1)..secs(1_000)],
    ) {
        let mut limits = Limits { payload_bytes: 4_096, ..Limits::default() };
        if tight {
            limits.pending_activities = 2;
            limits.pending_timers = 2;
            limits.history_events = 40;
            limits.signals_per_run = 5;
            limits.request_ids = 8;
        }
        let story = tell_story(&ops, limits, timeout);
        check_history(&story.events());
        check_pages(&story, page, rows, decisions);
    }

    /// What a task was handed out with is what the history says later.
    #[test]
    fn event_ids_are_certain_at_hand_out(ops in prop::collection::vec(op(), 1..60)) {
        let story = tell_story(&ops, Limits::default(), 0);
        let events = story.events();
        for event in &events {
            let Some(Attributes::WorkflowTaskCompleted(completed)) = &event.attributes else {
                continue;
            };
            let task_id = TaskId::from_wire(&completed.task_id.unwrap());
            let handed_out = story.handed_out.iter().find(|(id, _)| *id == task_id).unwrap();
            for known in &handed_out.1.events {
                prop_assert_eq!(&events[known.event_id as usize - 1], known);
            }
            prop_assert!(completed.handed_out_at_us == handed_out.1.handed_out_at.as_micros());
            if completed.untaken_facts == 0 {
                prop_assert_eq!(event.event_id, handed_out.1.next_event_id);
            }
        }
        let at = |task: &TaskId| events.iter().position(|event| matches!(
            &event.attributes,
            Some(Attributes::WorkflowTaskCompleted(c)) if c.task_id == Some(task.to_wire())
        ));
        let mut last = Timestamp::MIN;
        for (task, handed_out) in &story.handed_out {
            if at(task).is_some() {
                prop_assert!(handed_out.handed_out_at >= last);
                last = handed_out.handed_out_at;
            }
        }
    }
}
