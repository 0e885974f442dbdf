//! One rule each.

use std::{cell::Cell, pin::Pin};

use onward_proto::v1::{
    ActivityFailureCause, WorkflowTaskFailureCause as Cause, history_event::Attributes,
};

use super::{super::drain::MAX_POLLS, engine::*};
use crate::{
    ActivityError, Cancelled, Elapsed, Signal, State,
    wf::{join, join_all, race, select, try_join},
};

const GO: Signal<u32> = Signal::new("go");

/// Both kinds of run: one that keeps its machine, one that is cold at every task.
fn both<W: crate::Workflow>(args: &W::Args, scenario: impl Fn(&mut Run)) -> Run {
    let mut warm = Run::new::<W>(args);
    scenario(&mut warm);
    let mut cold = Run::new::<W>(args).cold();
    scenario(&mut cold);
    assert_eq!(warm.trace, cold.trace);
    assert_eq!(warm.history, cold.history);
    warm
}

workflow!(two_steps(ctx) -> u32 {
    let a = do_work(ctx, 1).await?;
    ctx.sleep(SECOND).await;
    let b = do_work(ctx, 2).await?;
    Ok(a + b)
});

#[test]
fn steps_follow_one_another() {
    let run = both::<two_steps>(&(), |run| {
        assert_eq!(run.on([]), "work#1");
        assert_eq!(run.on([done(1, 10)]), "timer#2 1s");
        assert_eq!(run.on([fired(2)]), "work#3");
        assert_eq!(run.on([done(3, 5)]), "complete");
    });
    assert_eq!(run.result::<u32>(), 15);
}

workflow!(together(ctx) -> Vec<u32> {
    let (a, b) = join!(do_work(ctx, 1), do_work(ctx, 2));
    let more = join_all((3..43).map(|n| do_work(ctx, n))).await;
    Ok([a, b].into_iter().chain(more).map(|done| done.unwrap_or(0)).collect())
});

#[test]
fn many_calls_wait_together_and_keep_their_order() {
    let run = both::<together>(&(), |run| {
        assert_eq!(run.on([]), "work#1, work#2");
        let all: Vec<String> = (3..43).map(|n| format!("work#{n}")).collect();
        assert_eq!(run.on([done(2, 2), done(1, 1)]), all.join(", "));
        assert_eq!(run.on((3..43).rev().map(|n| done(n, n))), "complete");
    });
    assert_eq!(run.result::<Vec<u32>>(), (1..43).collect::<Vec<u32>>());
}

workflow!(first_of_three(ctx) -> String {
    let winner = select! {
        n = do_work(ctx, 1) => { format!("work {}", n?) }
        n = ctx.recv(GO) => format!("go {n}"),
        () = ctx.sleep(SECOND * 60) => "timer".to_owned(),
    };
    do_work(ctx, 2).await?;
    Ok(winner)
});

#[test]
fn the_losers_of_a_select_are_cancelled_in_number_order_before_its_branch() {
    let run = both::<first_of_three>(&(), |run| {
        assert_eq!(run.on([]), "work#1, timer#2 60s");
        assert_eq!(run.on([signal("go", 7)]), "work#3, cancel work#1, cancel timer#2");
        assert_eq!(run.on([done(1, 1), done(3, 0)]), "complete");
    });
    assert_eq!(run.result::<String>(), "go 7");
}

#[test]
fn messages_go_before_other_facts_and_history_decides_the_rest() {
    let run = both::<first_of_three>(&(), |run| {
        run.on([]);
        run.on([done(1, 1), fired(2), signal("go", 7)]);
        run.on([done(3, 0)]);
    });
    assert_eq!(run.result::<String>(), "go 7");
    let run = both::<first_of_three>(&(), |run| {
        run.on([]);
        assert_eq!(run.on([fired(2), done(1, 1)]), "work#3, cancel work#1");
        run.on([done(3, 0)]);
    });
    assert_eq!(run.result::<String>(), "timer");
}

workflow!(limited(ctx) -> String {
    match ctx.timeout(SECOND, do_work(ctx, 1)).await {
        Ok(n) => Ok(format!("{}", n?)),
        Err(Elapsed) => Ok("late".to_owned()),
    }
});

#[test]
fn a_timeout_polls_its_future_first() {
    let run = both::<limited>(&(), |run| {
        assert_eq!(run.on([]), "work#1, timer#2 1s");
        assert_eq!(run.on([fired(2)]), "cancel work#1, complete");
    });
    assert_eq!(run.result::<String>(), "late");
    let run = both::<limited>(&(), |run| {
        run.on([]);
        assert_eq!(run.on([done(1, 4)]), "cancel timer#2, complete");
    });
    assert_eq!(run.result::<String>(), "4");
}

workflow!(handles(ctx) -> u32 {
    let kept = do_work(ctx, 1).start();
    do_work(ctx, 2).detach();
    let dropped = do_work(ctx, 3).start();
    drop(dropped);
    Ok(kept.await?)
});

#[test]
fn a_started_call_runs_at_once_a_dropped_one_is_cancelled_a_detached_one_runs_on() {
    both::<handles>(&(), |run| {
        assert_eq!(run.on([]), "work#1, work#2, work#3, cancel work#3");
        assert_eq!(run.on([done(2, 0)]), "");
        assert_eq!(run.on([done(1, 0)]), "complete");
    });
}

workflow!(conditions(ctx) -> Vec<u32> {
    let (count, log) = (State::new(0_u32), State::new(Vec::new()));
    let reader = async {
        loop {
            let n = ctx.recv(GO).await;
            count.update(|count| *count += n);
            if n == 0 { break; }
        }
    };
    let late = async { ctx.until(|| count.get() >= 3).await; log.update(|log| log.push(3)); count.set(10); };
    let early = async { ctx.until(|| count.get() >= 1).await; log.update(|log| log.push(1)); };
    let last = async {
        let n = ctx.until(|| (count.get() >= 10).then(|| count.get())).await;
        log.update(|log| log.push(n));
    };
    join!(last, late, early, reader);
    Ok(log.get())
});

#[test]
fn conditions_are_asked_in_creation_order_until_none_comes_true() {
    let run = both::<conditions>(&(), |run| {
        assert_eq!(run.on([]), "");
        assert_eq!(run.on([signal("go", 1)]), "");
        assert_eq!(run.on([signal("go", 2), signal("go", 0)]), "complete");
    });
    assert_eq!(run.result::<Vec<u32>>(), [1, 3, 10]);
}

workflow!(one_after_the_other(ctx) -> u32 {
    let (first, second) = (State::new(false), State::new(false));
    let older = async { ctx.until(|| second.get()).await; };
    let newer = async { ctx.until(|| first.get()).await; second.set(true); };
    let begins = async { ctx.sleep(SECOND).await; first.set(true); };
    let parts: [Pin<Box<dyn Future<Output = ()>>>; 3] =
        [Box::pin(older), Box::pin(newer), Box::pin(begins)];
    // Of so many, each is polled only when it was woken itself.
    let others = (0..40).map(|_| Box::pin(async {}) as Pin<Box<dyn Future<Output = ()>>>);
    join_all(parts.into_iter().chain(others)).await;
    Ok(1)
});

#[test]
fn a_condition_that_comes_true_may_make_an_older_one_true() {
    both::<one_after_the_other>(&(), |run| {
        assert_eq!(run.on([]), "timer#1 1s");
        assert_eq!(run.on([fired(1)]), "complete");
    });
}

workflow!(hangs_behind_a_condition(ctx) -> u32 {
    let never = State::new(false);
    let _ = ctx.timeout(SECOND, ctx.until(|| never.get())).await;
    std::future::pending().await
});

#[test]
fn a_condition_that_was_dropped_is_nothing_to_wait_for() {
    let mut run = Run::new::<hangs_behind_a_condition>(&());
    assert_eq!(run.on([]), "timer#1 1s");
    run.happens(fired(1));
    assert_eq!(run.task().unwrap_err().cause, Cause::Stuck);
}

workflow!(knows_its_run(ctx) -> (String, u32) { Ok((ctx.task_queue(), ctx.attempt())) });

#[test]
fn the_code_knows_its_queue_and_its_attempt() {
    let run = both::<knows_its_run>(&(), |run| assert_eq!(run.on([]), "complete"));
    assert_eq!(run.result::<(String, u32)>(), ("orders".to_owned(), 2));
}

workflow!(says_cancelled(ctx) -> u32 { Err(Cancelled.into()) });

#[test]
fn what_was_cancelled_without_a_request_to_the_run_fails_it() {
    assert_eq!(Run::new::<says_cancelled>(&()).on([]), "fail");
    let cancelled = || {
        let closed = onward_proto::v1::ActivityCancelled { number: 1, ..Default::default() };
        Attributes::ActivityCancelled(closed)
    };
    both::<two_steps>(&(), |run| {
        assert_eq!(run.on([]), "work#1");
        assert_eq!(run.on([cancelled()]), "fail");
    });
}

workflow!(one_signal(ctx) -> u32 { Ok(ctx.recv(GO).await) });

#[test]
fn signals_that_no_code_read_are_listed_at_the_close() {
    let run = both::<one_signal>(&(), |run| {
        run.happens(signal("other", 0));
        assert_eq!(run.on([signal("go", 7), signal("go", 8)]), "complete unread [2, 4]");
    });
    assert_eq!(run.result::<u32>(), 7);
}

workflow!(many_receivers(ctx) -> Vec<u32> {
    Ok(join_all((0..40).map(|_| ctx.recv(GO))).await)
});

#[test]
fn signals_that_come_together_reach_all_who_wait_for_them() {
    let run = both::<many_receivers>(&(), |run| {
        run.on([]);
        assert_eq!(run.on((0..40).map(|n| signal("go", n))), "complete");
    });
    assert_eq!(run.result::<Vec<u32>>(), (0..40).collect::<Vec<u32>>());
}

#[test]
fn the_messages_of_a_task_go_in_together() {
    both::<one_signal>(&(), |run| {
        run.on([]);
        assert_eq!(run.on([signal("go", 7), cancel()]), "cancelled unread [3]");
    });
}

#[test]
fn a_signal_that_does_not_decode_is_skipped() {
    let run = both::<one_signal>(&(), |run| {
        run.on([]);
        assert_eq!(run.on([signal("go", "seven".to_owned())]), "");
        assert_eq!(run.on([signal("go", 7)]), "complete unread [3]");
    });
    assert_eq!(run.result::<u32>(), 7);
}

workflow!(interruptible(ctx) -> String {
    let kept = do_work(ctx, 1).start();
    let outer = ctx.cancellable(async {
        join!(ctx.cancellable(do_work(ctx, 2)), ctx.cancellable(ctx.sleep(SECOND)))
    });
    let (a, b) = match outer.await { Ok(both) => both, Err(Cancelled) => return Ok("outer".to_owned()) };
    let seen = format!("{} {} {}", a.is_err(), b.is_err(), ctx.cancel_requested());
    kept.await?;
    Ok(seen)
});

#[test]
fn a_cancel_request_goes_to_the_innermost_sections_once() {
    let run = both::<interruptible>(&(), |run| {
        assert_eq!(run.on([]), "work#1, work#2, timer#3 1s");
        assert_eq!(run.on([cancel()]), "cancel work#2, cancel timer#3");
        assert_eq!(run.on([cancel()]), "");
        assert_eq!(run.on([done(1, 0)]), "complete");
    });
    assert_eq!(run.result::<String>(), "true true true");
}

#[test]
fn without_a_section_the_run_is_dropped_and_closes_as_cancelled() {
    both::<two_steps>(&(), |run| {
        run.on([]);
        assert_eq!(run.on([cancel(), done(1, 1)]), "cancel work#1, cancelled");
    });
    both::<two_steps>(&(), |run| {
        assert_eq!(run.on([signal("go", 1), cancel()]), "cancelled unread [2]");
    });
}

workflow!(shielded(ctx) -> u32 {
    let done = ctx.shield(async {
        let a = do_work(ctx, 1).await?;
        ctx.shield(do_work(ctx, 2)).await.map(|b| a + b)
    }).await?;
    do_work(ctx, 3).await?;
    Ok(done)
});

#[test]
fn a_shield_holds_the_request_until_the_outermost_one_ends() {
    both::<shielded>(&(), |run| {
        run.on([]);
        assert_eq!(run.on([cancel()]), "");
        assert_eq!(run.on([done(1, 1)]), "work#2");
        assert_eq!(run.on([done(2, 1)]), "work#3, cancel work#3, cancelled");
    });
}

workflow!(gives_up(ctx) -> u32 { Err(ctx.cancellable(do_work(ctx, 1)).await.unwrap_err())? });

#[test]
fn an_error_that_is_cancelled_closes_as_cancelled() {
    both::<gives_up>(&(), |run| {
        run.on([]);
        assert_eq!(run.on([cancel()]), "cancel work#1, cancelled");
    });
}

workflow!(recorded(ctx) -> (u32, u32) {
    let value = async {
        let made = ctx.record(|| 40 + 2).await;
        do_work(ctx, made).await
    };
    let (a, b) = try_join!(value, do_work(ctx, 9))?;
    Ok((a, b))
});

#[test]
fn a_recorded_value_resolves_in_its_own_drain() {
    both::<recorded>(&(), |run| {
        assert_eq!(run.on([]), "work#2, record#1, work#3");
        assert_eq!(run.on([done(3, 1), done(2, 2)]), "complete");
    });
}

workflow!(keeps_a_record(ctx) -> u32 {
    let mut made = ctx.record(|| 5);
    let first = select! {
        n = &mut made => n,
        go = ctx.recv(GO) => { do_work(ctx, go).await? }
    };
    Ok(first + made.await)
});

#[test]
fn a_recorded_value_that_is_kept_unpolled_waits_for_the_code() {
    let run = both::<keeps_a_record>(&(), |run| {
        assert_eq!(run.on([signal("go", 2)]), "work#2, record#1");
        assert_eq!(run.on([done(2, 3)]), "complete");
    });
    assert_eq!(run.result::<u32>(), 8);
}

workflow!(drops_a_record(ctx) -> u32 {
    let mut made = ctx.record(|| 5);
    let first = select! { n = &mut made => n, go = ctx.recv(GO) => go };
    drop(made);
    do_work(ctx, first).await?;
    Ok(first)
});

#[test]
fn a_recorded_value_that_is_dropped_unseen_leaves_no_trace() {
    both::<drops_a_record>(&(), |run| {
        assert_eq!(run.on([signal("go", 2)]), "work#2");
        assert_eq!(run.on([done(2, 3)]), "complete");
    });
}

workflow!(local_steps(ctx) -> u32 {
    let a = do_local(ctx, 1).await?;
    let b = do_local(ctx, a).await?;
    Ok(do_work(ctx, b).await?)
});

#[test]
fn local_activities_start_when_the_task_that_issued_them_is_committed() {
    let mut run = Run::new::<local_steps>(&());
    assert_eq!(run.on([]), "more");
    assert!(run.running.is_empty(), "not before the commit");
    assert_eq!(run.on([]), "waiting");
    assert_eq!(run.running[0].number, 1);
    assert_eq!(run.local_done(1, local_value(5)), "local work#1, more");
    assert_eq!(run.on([]), "waiting");
    assert_eq!(run.running[0].arguments[0].data, &b"5"[..]);
    assert_eq!(run.local_done(2, local_value(6)), "local work#2, work#3");
    assert_eq!(run.on([done(3, 6)]), "complete");
    assert_eq!(run.result::<u32>(), 6);
}

#[test]
fn a_local_activity_starts_again_after_a_crash() {
    let mut run = Run::new::<local_steps>(&());
    run.on([]);
    run.on([]);
    run.crash();
    assert_eq!(run.on([]), "waiting");
    assert_eq!(run.running[0].number, 1);
    assert_eq!(run.local_done(1, local_value(5)), "local work#1, more");
}

workflow!(local_beside_signal(ctx) -> u32 {
    let local = do_local(ctx, 1).start();
    let go = ctx.recv(GO).await;
    let n = select! { n = local => n?, () = ctx.sleep(SECOND) => 0 };
    Ok(n + go)
});

#[test]
fn a_yield_lets_facts_in_while_a_local_activity_runs() {
    let mut run = Run::new::<local_beside_signal>(&());
    assert_eq!(run.on([]), "more");
    assert_eq!(run.on([]), "waiting");
    assert_eq!(run.yields(), "more");
    assert_eq!(run.local_done(1, local_value(5)), "", "between tasks it waits for the next");
    assert_eq!(run.on([signal("go", 2)]), "timer#2 1s, local work#1, cancel timer#2, complete");
    assert_eq!(run.result::<u32>(), 7);
}

#[test]
fn a_dropped_local_activity_is_stopped_and_leaves_no_trace() {
    let mut run = Run::new::<local_beside_signal>(&());
    run.on([]);
    run.on([]);
    run.yields();
    assert_eq!(run.on([signal("go", 2)]), "timer#2 1s, more");
    assert_eq!(run.on([]), "waiting");
    run.yields();
    assert_eq!(run.on([fired(2)]), "complete");
    assert!(run.running.is_empty());
    assert_eq!(run.result::<u32>(), 2);
}

workflow!(pays_beside_a_slow_step(ctx) -> u32 {
    let paid = async { let a = do_local(ctx, 1).await?; do_work(ctx, a).await };
    let (paid, slow) = try_join!(paid, do_local(ctx, 2))?;
    Ok(paid + slow)
});

#[test]
fn what_the_code_asks_of_the_server_does_not_wait_for_a_local_activity() {
    let mut run = Run::new::<pays_beside_a_slow_step>(&());
    assert_eq!(run.on([]), "more");
    assert_eq!(run.on([]), "waiting");
    assert_eq!(run.local_done(1, local_value(5)), "local work#1, work#3, more");
    assert_eq!(run.on([]), "waiting", "nothing is left to say");
    run.yields();
    assert_eq!(run.on([done(3, 7)]), "waiting");
    assert_eq!(run.local_done(2, local_value(6)), "local work#2, complete");
    assert_eq!(run.result::<u32>(), 13);
}

#[test]
fn a_local_activity_that_is_done_waits_with_its_marker_for_another_that_runs() {
    let mut run = Run::new::<two_local_steps>(&());
    run.on([]);
    run.on([]);
    assert_eq!(run.local_done(2, local_value(6)), "waiting");
    assert_eq!(run.local_done(1, local_value(5)), "local work#2, local work#1, complete");
}

workflow!(two_local_steps(ctx) -> u32 {
    let (a, b) = try_join!(do_local(ctx, 1), do_local(ctx, 2))?;
    Ok(a + b)
});

workflow!(typed_errors(ctx) -> Vec<String> {
    let mut seen = Vec::new();
    for n in 0..4 {
        seen.push(match do_work(ctx, n).await {
            Err(ActivityError::Failed(error)) => format!("failed {error}"),
            Err(ActivityError::Exhausted { last, attempts }) => format!("exhausted {last} {attempts}"),
            Err(ActivityError::OutcomeUnknown { attempt }) => format!("unknown {attempt}"),
            other => format!("{other:?}"),
        });
    }
    Ok(seen)
});

#[test]
fn an_activity_fails_with_its_own_type() {
    let error = || crate::Error::msg("no money");
    let run = both::<typed_errors>(&(), |run| {
        run.on([]);
        run.on([failed(1, error(), ActivityFailureCause::Application)]);
        run.on([failed(2, error(), ActivityFailureCause::Exhausted)]);
        run.on([failed(3, error(), ActivityFailureCause::OutcomeUnknown)]);
        run.on([done(4, 4)]);
    });
    let expected = ["failed no money", "exhausted no money 3", "unknown 3", "Ok(4)"];
    assert_eq!(run.result::<Vec<String>>(), expected);
}

workflow!(local_too_late(ctx) -> String { Ok(format!("{:?}", do_local(ctx, 1).await)) });

#[test]
fn a_local_activity_that_took_too_long_says_which_of_its_times_and_how_the_attempt_before_failed() {
    use onward_proto::v1::LocalActivityFailureCause as Late;
    let seen = |cause, failure: Option<onward_proto::v1::Failure>| {
        let mut run = Run::new::<local_too_late>(&());
        run.on([]);
        run.on([]);
        let outcome = crate::machine::LocalOutcome::Failed { failure, cause, attempts: 2 };
        assert_eq!(run.local_done(1, outcome), "local work#1, complete");
        run.result::<String>()
    };
    let before = crate::failure::plain_failure("Error", "no money");
    let text = seen(Late::DeadlinePassed, Some(before));
    assert_eq!(text, "Err(TimedOut { kind: ScheduleToClose, last: Some(no money) })");
    let text = seen(Late::TimedOut, None);
    assert_eq!(text, "Err(TimedOut { kind: StartToClose, last: None })");
}

workflow!(fails_with_nul(ctx) -> u32 { Err(crate::Error::msg("no\0money")) });

#[test]
fn a_failure_is_said_in_texts_that_the_server_takes() {
    let run = both::<fails_with_nul>(&(), |run| assert_eq!(run.on([]), "fail"));
    let Some(Attributes::WorkflowExecutionFailed(failed)) = &run.history.last().unwrap().attributes
    else {
        panic!()
    };
    let failure = failed.failure.as_ref().unwrap();
    assert_eq!(failure.message, "no\u{fffd}money");
    let typed: crate::Error = crate::failure::from_wire(failure).unwrap();
    assert_eq!(typed.to_string(), "no\0money", "the value is as it was");
}

workflow!(sleeps_for_ever(ctx) -> u32 {
    do_work(ctx, 1).summary("to\0pay").detach();
    ctx.sleep(std::time::Duration::MAX).summary("too\0long").await;
    Ok(0)
});

#[test]
fn no_sleep_and_no_summary_is_refused() {
    let run = both::<sleeps_for_ever>(&(), |run| drop(run.on([])));
    let Some(Attributes::ActivityScheduled(call)) = &run.history[2].attributes else { panic!() };
    assert_eq!(call.summary, "to\u{fffd}pay");
    let Some(Attributes::TimerStarted(timer)) = &run.history[3].attributes else { panic!() };
    assert_eq!(timer.summary, "too\u{fffd}long");
    assert_eq!(timer.duration_us, onward_proto::MAX_DURATION_US);
}

workflow!(goes_on_beside_a_timer(ctx) -> u32 {
    let _kept = do_work(ctx, 1).start();
    let goes_on = async {
        let n = ctx.record(|| 5).await;
        do_work(ctx, n).await
    };
    let ((), n) = join!(ctx.sleep(SECOND), goes_on);
    Ok(n?)
});

#[test]
fn a_run_that_a_timer_closed_replays() {
    let mut run = Run::new::<goes_on_beside_a_timer>(&());
    assert_eq!(run.on([]), "work#1, timer#2 1s, record#3, work#4");
    // The server never made what stands behind the timer.
    run.history.truncate(4);
    run.history[3].attributes =
        Some(Attributes::WorkflowExecutionFailed(onward_proto::v1::WorkflowExecutionFailed {
            refused: Some(onward_proto::v1::Limit::default()),
            ..Default::default()
        }));
    if let Some(Attributes::WorkflowTaskCompleted(done)) = &mut run.history[1].attributes {
        done.command_events = 2;
    }
    run.replay().unwrap();
    let other = run.replay_as::<two_steps>().failure.message;
    assert!(other.contains("WorkflowExecutionFailed"), "{other}");
}

#[test]
fn code_ends_a_run_within_a_task_only() {
    let mut run = both::<fails_with_nul>(&(), |run| drop(run.on([])));
    run.history.remove(1);
    let report = run.replay().unwrap_err().failure.message;
    assert!(report.ends_with("is out of place: WorkflowExecutionFailed"), "{report}");
}

workflow!(time_and_chance(ctx) -> Vec<String> {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let at = ctx.now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let roll = (ctx.rng().range(0..1000), ctx.rng_named("other").range(0..1000));
        seen.push(format!("{at:?} {} {roll:?}", ctx.uuid()));
        ctx.sleep(SECOND).await;
    }
    Ok(seen)
});

#[test]
fn time_and_randomness_are_the_same_at_every_replay() {
    let run = both::<time_and_chance>(&(), |run| {
        run.on([]);
        (1..4).for_each(|n| drop(run.on([fired(n)])));
    });
    let seen = run.result::<Vec<String>>();
    assert!(seen[0].starts_with("1s ") && seen[2].starts_with("3s "), "{seen:?}");
    assert_eq!(seen[0].as_bytes()[3 + 14], b'4', "a UUID of version 4");
    assert_eq!(seen, GOLDEN_CHANCE);
}

const GOLDEN_CHANCE: [&str; 3] = [
    "1s 8a8a8a8a-8a8a-4a8a-b070-707070707070 (54, 743)",
    "2s e4e5a5a4-a464-4aaa-9416-16c068e21209 (333, 60)",
    "3s 03496841-3e5e-46c2-b4bd-5de0a20c19d1 (30, 39)",
];

// --- what fails a task

workflow!(timer_first(ctx) -> u32 { ctx.sleep(SECOND * 259_200).await; Ok(0) });

#[test]
fn a_mismatch_is_reported_with_both_sides() {
    let mut run = Run::new::<two_steps>(&());
    run.on([]);
    let failure = run.replay_as::<timer_first>();
    assert_eq!(failure.cause, Cause::NonDeterminism);
    let text = &failure.failure.message;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "non-determinism in timer_first order-42 at event 3");
    assert!(lines[1].starts_with("  history   ActivityScheduled work(#1)  recorded at "), "{text}");
    assert!(lines[1].contains("rules.rs:") && lines[1].ends_with(", build 1.4.0"), "{text}");
    assert!(lines[2].starts_with("  code now  TimerStarted 72h(#1)        issued   at "), "{text}");
    assert!(lines[2].ends_with(", build 1.5.0"), "{text}");
}

workflow!(nothing_more(ctx) -> u32 { do_work(ctx, 1).await?; Ok(0) });
workflow!(one_more(ctx) -> u32 {
    let (a, _) = try_join!(do_work(ctx, 1), do_work(ctx, 7))?;
    Ok(a)
});
workflow!(other_argument(ctx) -> u32 { do_work(ctx, 8).await?; ctx.sleep(SECOND).await; Ok(0) });

#[test]
fn a_removed_an_added_and_a_changed_step_are_mismatches() {
    let run = || {
        let mut run = Run::new::<two_steps>(&());
        run.on([]);
        run.on([done(1, 1)]);
        run
    };
    let removed = run().replay_as::<nothing_more>().failure.message;
    assert!(
        removed.contains("TimerStarted 1s(#2)") && removed.contains("WorkflowExecutionCompleted"),
        "{removed}"
    );
    let added = run().replay_as::<one_more>().failure.message;
    assert!(added.contains("the task ended here") && added.contains("work(#2)"), "{added}");
    let changed = run().replay_as::<other_argument>().failure.message;
    assert!(changed.contains("with other arguments"), "{changed}");
}

#[test]
fn a_fact_about_a_call_that_the_code_has_not_made_is_a_mismatch() {
    let mut run = Run::new::<two_steps>(&());
    run.on([]);
    run.happens(done(2, 1));
    let failure = run.task().unwrap_err();
    assert_eq!(failure.cause, Cause::NonDeterminism);
    let text = &failure.failure.message;
    assert!(text.contains("ActivityCompleted #2") && text.contains("no command #2"), "{text}");
}

fn fails<W: crate::Workflow<Args = ()>>() -> (Cause, String) {
    let failure = Run::new::<W>(&()).task().unwrap_err();
    (failure.cause, failure.failure.message.clone())
}

workflow!(panics(ctx) -> u32 { do_work(ctx, 1).start().detach(); panic!("boom {}", 1) });
workflow!(hangs(ctx) -> u32 { do_work(ctx, 1).detach(); std::future::pending().await });
workflow!(spins(ctx) -> u32 {
    std::future::poll_fn(|cx| { cx.waker().wake_by_ref(); std::task::Poll::<()>::Pending }).await;
    Ok(0)
});
/// Comes to rest with this poll.
async fn turns(polls: u32) -> crate::Result<u32> {
    let mut polled = 0;
    std::future::poll_fn(|cx| {
        polled += 1;
        cx.waker().wake_by_ref();
        if polled < polls { std::task::Poll::Pending } else { std::task::Poll::Ready(Ok(polled)) }
    })
    .await
}
workflow!(turns_often(ctx) -> u32 { turns(MAX_POLLS).await });
workflow!(turns_too_often(ctx) -> u32 { turns(MAX_POLLS + 1).await });
workflow!(foreign(ctx) -> u32 {
    let mut is_first = true;
    std::future::poll_fn(|cx| {
        if std::mem::take(&mut is_first) {
            let waker = cx.waker().clone();
            std::thread::spawn(move || waker.wake()).join().expect("it only wakes");
        }
        std::task::Poll::<()>::Pending
    }).await;
    Ok(0)
});
workflow!(local_at_most_once(ctx) -> u32 { Ok(do_local(ctx, 1).retry(crate::Retry::attempts(1)).await?) });

#[test]
fn what_cannot_go_on_fails_the_task_at_once() {
    let (cause, panic) = fails::<panics>();
    assert_eq!(cause, Cause::Panic);
    assert!(panic.starts_with("the workflow panicked at "), "{panic}");
    assert!(panic.contains("rules.rs:") && panic.ends_with(": boom 1"), "{panic}");
    assert_eq!(fails::<hangs>().0, Cause::Stuck);
    assert_eq!(fails::<spins>().0, Cause::Stuck);
    assert_eq!(Run::new::<turns_often>(&()).on([]), "complete");
    assert_eq!(fails::<turns_too_often>().0, Cause::Stuck);
    assert_eq!(fails::<foreign>().0, Cause::ForeignWake);
    assert_eq!(fails::<local_at_most_once>().0, Cause::BadCommands);
}

workflow!(@OnPanic::Fail fails_by_panic(ctx) -> u32 {
    let _guard = do_work(ctx, 1).start();
    do_work(ctx, 2).await?;
    panic!("boom {}", 2)
});
workflow!(@OnPanic::Fail fails_in_a_section(ctx) -> u32 {
    ctx.cancellable(async { panic!("boom") }).await?
});
workflow!(@OnPanic::Fail fails_in_a_record(ctx) -> u32 { Ok(ctx.record(|| panic!("boom")).await) });
workflow!(@OnPanic::Fail fails_after_a_request(ctx) -> u32 {
    let _ = ctx.cancellable(do_work(ctx, 1)).await;
    panic!("boom")
});
workflow!(@OnPanic::Fail mends(ctx) -> u32 { Ok(do_work(ctx, 1).await?) });

#[test]
fn a_panic_fails_the_run_if_the_workflow_says_so() {
    let mut run = Run::new::<fails_by_panic>(&());
    assert_eq!(run.on([]), "work#1, work#2");
    assert_eq!(run.on([done(2, 2)]), "fail");
    let Some(Attributes::WorkflowExecutionFailed(failed)) = &run.history.last().unwrap().attributes
    else {
        panic!()
    };
    let failure = failed.failure.as_ref().unwrap();
    assert_eq!(failure.kind, "Panic");
    assert!(failure.message.starts_with("the workflow panicked at "), "{}", failure.message);
    assert!(failure.message.ends_with(": boom 2"), "{}", failure.message);
    assert_eq!(Run::new::<fails_in_a_section>(&()).on([]), "fail");
    let mut run = Run::new::<fails_after_a_request>(&());
    run.on([]);
    assert_eq!(
        run.on([cancel()]),
        "cancel work#1, fail",
        "it did not stop because it was asked to"
    );
    // A replay would find no trace of what the closure did.
    assert_eq!(fails::<fails_in_a_record>().0, Cause::Panic);
    let mut run = Run::new::<mends>(&());
    run.on([]);
    assert_eq!(run.on([done(1, 7)]), "complete");
    // A mismatch is no panic: the run stays open.
    assert_eq!(run.replay_as::<fails_by_panic>().cause, Cause::NonDeterminism);
}

workflow!(draws_in_a_record(ctx) -> u64 { Ok(ctx.record(|| ctx.rng().range(0..9)).await) });
workflow!(names_in_a_record(ctx) -> String { Ok(ctx.record(|| ctx.uuid().to_string()).await) });
workflow!(calls_in_a_record(ctx) -> u32 {
    Ok(ctx.record(|| { do_work(ctx, 1).detach(); 1 }).await)
});
workflow!(drops_in_a_record(ctx) -> u32 {
    let call = do_work(ctx, 1).start();
    Ok(ctx.record(move || { drop(call); 1 }).await)
});
workflow!(sets_in_a_record(ctx) -> u32 {
    let seen = State::new(0);
    ctx.record(|| seen.set(1)).await;
    Ok(seen.get())
});
workflow!(reads_in_a_record(ctx) -> u32 {
    let seen = State::new(3);
    Ok(ctx.record(|| seen.get() + u32::from(ctx.cancel_requested())).await)
});

#[test]
fn what_makes_a_recorded_value_may_look_at_the_run_and_not_act_in_it() {
    let expected = "inside ctx.record(..)";
    for (cause, text) in [
        fails::<draws_in_a_record>(),
        fails::<names_in_a_record>(),
        fails::<calls_in_a_record>(),
        fails::<drops_in_a_record>(),
    ] {
        assert_eq!(cause, Cause::BadCommands, "{text}");
        assert!(text.contains(expected), "{text}");
    }
    let (cause, text) = fails::<sets_in_a_record>();
    assert_eq!(cause, Cause::Panic);
    assert!(text.contains(expected), "{text}");
    let run = both::<reads_in_a_record>(&(), |run| drop(run.on([])));
    assert_eq!(run.result::<u32>(), 3);
}

workflow!(options_too_late(ctx) -> u32 { Ok(do_work(ctx, 1).start().timeout(SECOND).await?) });
workflow!(local_options_too_late(ctx) -> u32 {
    Ok(do_local(ctx, 1).start().timeout(SECOND).await?)
});

#[test]
fn options_of_a_call_that_is_out_already_are_refused() {
    for (cause, text) in [fails::<options_too_late>(), fails::<local_options_too_late>()] {
        assert_eq!(cause, Cause::Panic);
        assert!(text.ends_with("options are set before a call is issued"), "{text}");
    }
}

#[test]
fn a_result_that_does_not_decode_fails_the_task() {
    let mut run = Run::new::<two_steps>(&());
    run.on([]);
    let mut wrong = done(1, 1);
    if let Attributes::ActivityCompleted(event) = &mut wrong {
        event.result.as_mut().unwrap().data = bytes::Bytes::from_static(b"\"x\"");
    }
    run.happens(wrong);
    let failure = run.task().unwrap_err();
    assert_eq!(failure.cause, Cause::Payload);
    assert!(failure.failure.message.starts_with("the result of work(#1): "));
}

#[test]
fn an_unknown_event_or_flag_is_handed_back() {
    let mut run = Run::new::<two_steps>(&());
    run.on([]);
    let known = run.history.clone();
    run.history[2].attributes = None;
    run.history.push(known[2].clone());
    if let Some(Attributes::WorkflowTaskCompleted(done)) = &mut run.history[1].attributes {
        done.sdk_flags.push(999);
    }
    assert_eq!(run.replay().unwrap_err().cause, Cause::Unsupported);
    run.history = known;
    run.history.push(onward_proto::v1::HistoryEvent::default());
    assert_eq!(run.replay().unwrap_err().cause, Cause::Unsupported);
}

thread_local!(static DROPS: Cell<u32> = const { Cell::new(0) });

struct CallsOnDrop<'c>(&'c crate::Ctx);

impl Drop for CallsOnDrop<'_> {
    fn drop(&mut self) {
        DROPS.set(DROPS.get() + 1);
        do_work(self.0, 9).detach();
        let _ = (self.0.now(), self.0.uuid());
    }
}

workflow!(drops(ctx) -> u32 {
    let _guard = CallsOnDrop(ctx);
    Ok(do_work(ctx, 1).await?)
});
workflow!(panics_with_guard(ctx) -> u32 {
    let _guard = CallsOnDrop(ctx);
    let _call = do_work(ctx, 1).start();
    panic!("boom")
});

#[test]
fn drop_code_is_inert_at_eviction_and_while_panicking_but_not_in_a_drive() {
    let mut run = Run::new::<drops>(&());
    run.on([]);
    run.crash();
    assert_eq!(DROPS.replace(0), 2, "the replay check drops one too");
    assert_eq!(run.on([done(1, 1)]), "work#2, complete");
    assert_eq!(fails::<panics_with_guard>().0, Cause::Panic);
}

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("a destructor of the user's");
    }
}

workflow!(ends_badly(ctx) -> u32 {
    let _guard = PanicsOnDrop;
    Ok(do_work(ctx, 1).await?)
});

#[test]
fn code_that_panics_when_it_is_dropped_fails_its_own_task_and_nothing_else() {
    let mut run = Run::new::<ends_badly>(&());
    assert_eq!(run.on([]), "work#1");
    run.crash();
    run.happens(done(1, 1));
    assert_eq!(run.task().unwrap_err().cause, Cause::Panic);
}

workflow!(racing(ctx) -> u32 { Ok(race((1..4).map(|n| do_work(ctx, n))).await?) });

#[test]
fn a_race_has_one_winner() {
    let run = both::<racing>(&(), |run| {
        assert_eq!(run.on([]), "work#1, work#2, work#3");
        assert_eq!(run.on([done(2, 2), done(1, 1)]), "cancel work#1, cancel work#3, complete");
    });
    assert_eq!(run.result::<u32>(), 2);
}

workflow!(large_record(ctx) -> u32 { Ok(ctx.record(|| "x".repeat(2_000)).await.len() as u32) });

#[test]
fn a_recorded_value_that_is_too_large_fails_its_task_and_is_not_seen() {
    let (cause, text) = fails::<large_record>();
    assert_eq!(cause, Cause::Payload);
    let expected = "recorded value #1: payload_bytes_per_command is 2006, the limit is 1000";
    assert_eq!(text, expected);
}

workflow!(refused_record(ctx) -> u32 {
    let made = ctx.record(|| "x".repeat(2_000)).await;
    ctx.sleep(SECOND).await;
    Ok(made.len() as u32)
});

#[test]
fn a_recorded_value_that_the_server_refuses_fails_live_code_and_replay_alike() {
    let mut run = Run::new::<refused_record>(&()).believing(1 << 20).unchecked();
    assert_eq!(run.on([]), "record#1, timer#2 1s");
    let limit = "payload_bytes_per_command is 2002, the limit is 1000";
    // The worker went on with its value until it heard of the refusal.
    let failure = run.with_own_events([fired(2)]).unwrap_err();
    assert_eq!(failure.cause, Cause::Payload);
    let text = format!("event 3, MarkerRecorded value(#1), was refused: {limit}");
    assert_eq!(failure.failure.message, text);
    let failure = run.replay().unwrap_err();
    assert_eq!(failure.cause, Cause::Payload);
    assert_eq!(failure.failure.message, format!("recorded value #1: {limit}"));
}

workflow!(large_local(ctx) -> String {
    let seen = match do_local_write(ctx).await {
        Ok(text) => format!("{} bytes", text.len()),
        Err(error) => error.to_string(),
    };
    ctx.sleep(SECOND).await;
    Ok(seen)
});

#[test]
fn a_local_result_that_is_too_large_is_the_same_failure_live_and_at_replay() {
    let mut run = Run::new::<large_local>(&());
    run.on([]);
    run.on([]);
    assert_eq!(run.local_done(1, local_text(&"x".repeat(2_000))), "local write#1, timer#2 1s");
    let found = run.history.iter().find_map(|event| match &event.attributes {
        Some(Attributes::MarkerRecorded(marker)) => marker.failure.as_ref(),
        _ => None,
    });
    assert!(found.unwrap().non_retryable, "it is as large every time");
    run.on([fired(2)]);
    assert_eq!(
        run.result::<String>(),
        "the result of write: payload_bytes_per_command is 2006, the limit is 1000"
    );
}

#[test]
fn a_local_failure_that_is_too_large_is_cut() {
    let mut run = Run::new::<large_local>(&());
    run.on([]);
    run.on([]);
    let failure = crate::failure::plain_failure("Large", "x".repeat(2_000));
    let cause = onward_proto::v1::LocalActivityFailureCause::Application;
    let failure = Some(failure);
    let outcome = crate::machine::LocalOutcome::Failed { failure, cause, attempts: 1 };
    assert_eq!(run.local_done(1, outcome), "local write#1, timer#2 1s");
    run.on([fired(2)]);
    let seen = run.result::<String>().len();
    assert!((800..1_000).contains(&seen), "{seen}");
}

#[test]
fn a_local_result_that_the_server_refuses_takes_the_run_from_its_worker() {
    let mut run = Run::new::<large_local>(&()).believing(1 << 20).unchecked();
    run.on([]);
    run.on([]);
    assert_eq!(run.local_done(1, local_text(&"x".repeat(2_000))), "local write#1, timer#2 1s");
    let failure = run.with_own_events([fired(2)]).unwrap_err();
    assert!(failure.failure.message.contains("local write(#1), was refused"), "{failure:?}");
    // From its history the run goes on with what was recorded.
    run.on([]);
    assert_eq!(
        run.result::<String>(),
        "the call was refused: payload_bytes_per_command is 2002, the limit is 1000"
    );
}
