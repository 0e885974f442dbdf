//! Random programs with random luck: whatever is composed, a warm, a cold and a crashing worker
//! leave histories that replay, and the first two leave the same one.

use std::pin::Pin;

use onward_proto::v1::history_event::Attributes;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::engine::*;
use crate::{
    Ctx, Signal,
    wf::{join, select},
};

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Op {
    Work,
    Sleep,
    Record,
    Local,
    Recv,
    StartAndDrop,
    Seq(Vec<Op>),
    Join(Box<Op>, Box<Op>),
    Select(Box<Op>, Box<Op>),
    Timeout(Box<Op>),
    Cancellable(Box<Op>),
    Shield(Box<Op>),
}

const GO: Signal<u32> = Signal::new("go");

fn perform<'c>(ctx: &'c Ctx, op: &'c Op) -> Pin<Box<dyn Future<Output = u64> + 'c>> {
    Box::pin(async move {
        match op {
            Op::Work => do_work(ctx, 1).await.map_or(0, u64::from),
            Op::Sleep => {
                ctx.sleep(SECOND).await;
                1
            }
            Op::Record => ctx.record(|| 5).await,
            Op::Local => do_local(ctx, 2).await.map_or(0, u64::from),
            Op::Recv => u64::from(ctx.recv(GO).await),
            Op::StartAndDrop => {
                let call = do_work(ctx, 3).start();
                ctx.sleep(SECOND).await;
                drop(call);
                3
            }
            Op::Seq(ops) => {
                let mut sum = 0;
                for op in ops {
                    sum += perform(ctx, op).await;
                }
                sum
            }
            Op::Join(a, b) => {
                let (a, b) = join!(perform(ctx, a), perform(ctx, b));
                a + 2 * b
            }
            Op::Select(a, b) => select! {
                n = perform(ctx, a) => n,
                n = perform(ctx, b) => 100 + n,
            },
            Op::Timeout(op) => ctx.timeout(SECOND, perform(ctx, op)).await.unwrap_or(1_000),
            Op::Cancellable(op) => ctx.cancellable(perform(ctx, op)).await.unwrap_or(2_000),
            Op::Shield(op) => ctx.shield(perform(ctx, op)).await,
        }
    })
}

workflow!(program(ctx, op: Op) -> u64 { Ok(perform(ctx, &op).await) });

fn ops() -> impl Strategy<Value = Op> {
    let leaf = prop_oneof![
        Just(Op::Work),
        Just(Op::Sleep),
        Just(Op::Record),
        Just(Op::Local),
        Just(Op::Recv),
        Just(Op::StartAndDrop)
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let one = || inner.clone().prop_map(Box::new);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Op::Seq),
            (one(), one()).prop_map(|(a, b)| Op::Join(a, b)),
            (one(), one()).prop_map(|(a, b)| Op::Select(a, b)),
            one().prop_map(Op::Timeout),
            one().prop_map(Op::Cancellable),
            one().prop_map(Op::Shield),
        ]
    })
}

/// Carries the program to its end: each step draws what happens next from `luck`.
fn carry(mut run: Run, mut luck: impl FnMut(usize) -> usize, crashes: bool) -> Run {
    let mut is_cancelled = false;
    for _ in 0..200 {
        if run.is_closed {
            break;
        }
        if crashes && luck(5) == 0 {
            run.crash();
        }
        if run.is_owed_a_task() {
            run.task().unwrap();
            continue;
        }
        let mut open = Vec::new();
        for event in &run.history {
            match event.attributes.as_ref().unwrap() {
                Attributes::ActivityScheduled(event) => open.push(done(event.number, event.number)),
                Attributes::TimerStarted(event) => open.push(fired(event.number)),
                Attributes::ActivityCompleted(event) => {
                    open.retain(|fact| *fact != done(event.number, event.number));
                }
                Attributes::TimerFired(event) => open.retain(|fact| *fact != fired(event.number)),
                Attributes::TimerCancelled(event) => {
                    open.retain(|fact| *fact != fired(event.number));
                }
                _ => {}
            }
        }
        open.push(signal("go", 4));
        if !is_cancelled {
            open.push(cancel());
        }
        if !run.running.is_empty() && luck(2) == 0 {
            let number = run.running[luck(run.running.len())].number;
            run.local_done(number, local_value(number));
            continue;
        }
        for _ in 0..=luck(3) {
            if open.is_empty() {
                break;
            }
            let fact = open.remove(luck(open.len()));
            is_cancelled |= fact == cancel();
            run.happens(fact);
        }
        if run.is_open {
            run.yields();
        }
    }
    run
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_replay(op in ops(), draws in prop::collection::vec(any::<u16>(), 64)) {
        let luck = || {
            let mut next = draws.clone().into_iter().cycle();
            move |n: usize| usize::from(next.next().unwrap()) % n
        };
        let new = || Run::new::<program>(&(op.clone(),));
        let warm = carry(new(), luck(), false);
        let cold = carry(new().cold(), luck(), false);
        prop_assert_eq!(&warm.trace, &cold.trace);
        prop_assert_eq!(&warm.history, &cold.history);
        // Every completed task is replayed from event 1 by the engine itself.
        carry(new(), luck(), true);
    }
}
