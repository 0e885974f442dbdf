//! A history that is too long to keep, made when it is needed.

use std::time::{Duration, Instant};

use onward::{Replayer, machine::MachineOptions, payload, prelude::*};
use onward_proto::v1::{
    ActivityCompleted, ActivityScheduled, History, HistoryEvent, MarkerKind, MarkerRecorded,
    TaskId, TimerFired, TimerStarted, WorkflowExecutionCompleted, WorkflowExecutionStarted,
    WorkflowTaskCompleted, history_event::Attributes,
};

/// Nothing but its name is called.
#[activity]
async fn step(_: &ActivityCtx, round: u32) -> onward::Result<u32> {
    Ok(round)
}

/// So many rounds of a call, a recorded value and a timer.
#[workflow]
async fn long(ctx: &Ctx, rounds: u32) -> onward::Result<u32> {
    let mut sum = 0_u32;
    for round in 0..rounds {
        sum = sum.wrapping_add(step(ctx, round).await?);
        sum = sum.wrapping_add(ctx.record(|| round).await);
        ctx.sleep(Duration::from_secs(1)).await;
    }
    Ok(sum)
}

/// What a server writes of a run of `long`.
fn history(rounds: u32) -> History {
    let encode = |value: u32| payload::encode(&value, MachineOptions::default().codec).ok();
    let mut events = vec![Attributes::WorkflowExecutionStarted(WorkflowExecutionStarted {
        workflow_type: long::NAME.to_owned(),
        arguments: encode(rounds).into_iter().collect(),
        seed: vec![1; 32].into(),
        ..Default::default()
    })];
    let mut counter = 0;
    let mut task = |command_events| {
        counter += 1;
        Attributes::WorkflowTaskCompleted(WorkflowTaskCompleted {
            task_id: Some(TaskId { incarnation: 1, counter }),
            command_events,
            ..Default::default()
        })
    };
    for round in 0..rounds {
        let [number, marker, timer] = [1, 2, 3].map(|place| 3 * round + place);
        events.extend([
            task(1),
            Attributes::ActivityScheduled(ActivityScheduled {
                number,
                activity_type: step::NAME.to_owned(),
                ..Default::default()
            }),
            Attributes::ActivityCompleted(ActivityCompleted {
                number,
                result: encode(round),
                ..Default::default()
            }),
            task(2),
            Attributes::MarkerRecorded(MarkerRecorded {
                number: marker,
                kind: MarkerKind::RecordedValue.into(),
                result: encode(round),
                ..Default::default()
            }),
            Attributes::TimerStarted(TimerStarted { number: timer, ..Default::default() }),
            Attributes::TimerFired(TimerFired { number: timer }),
        ]);
    }
    let result = WorkflowExecutionCompleted { result: encode(0), ..Default::default() };
    events.extend([task(1), Attributes::WorkflowExecutionCompleted(result)]);
    let event = |(event_id, attributes)| HistoryEvent {
        event_id,
        attributes: Some(attributes),
        ..Default::default()
    };
    History { events: (1..).zip(events).map(event).collect() }
}

/// The quickest of some replays: the machine may be busy with other things.
fn replay_time(history: &History) -> Duration {
    let replayer = Replayer::new().workflows::<(long,)>();
    let once = || {
        let begun = Instant::now();
        replayer.replay(history).unwrap();
        begun.elapsed()
    };
    (0..5).map(|_| once()).min().unwrap()
}

#[test]
fn four_times_the_history_is_four_times_the_work() {
    let [short, large] = [1_500, 6_000].map(history);
    assert!(short.events.len() > 10_000 && large.events.len() > 40_000);
    let [quick, slow] = [&short, &large].map(replay_time);
    println!("{} events: {quick:?}, {} events: {slow:?}", short.events.len(), large.events.len());
    // A quadratic replay would take 16 times as long.
    assert!(slow < 8 * quick, "{quick:?} became {slow:?}");
    assert!(slow < Duration::from_secs(5), "{slow:?}");
}

#[test]
fn a_mismatch_at_the_end_of_a_long_history_is_noticed() {
    let mut history = history(1_500);
    let last_timer =
        history.events.iter_mut().rev().find_map(|event| match &mut event.attributes {
            Some(Attributes::TimerStarted(timer)) => Some(timer),
            _ => None,
        });
    last_timer.unwrap().number += 1;
    let report = Replayer::new().workflows::<(long,)>().replay(&history).unwrap_err().to_string();
    assert!(report.contains("non-determinism in long"), "{report}");
}
