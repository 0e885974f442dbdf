//! The worker's side of the session protocol, against a server that does what each test says.
#![allow(clippy::unwrap_used)]

mod fake;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use fake::{Fake, Session, activity_task, first_task, run_id, task_id, token};
use onward::{
    ActivityCtx, Ctx, Env, Provide, Retry, Worker, WorkerBuilder, WorkerHandle, activity, workflow,
};
use onward_proto::v1::{
    self, CancelReason, WorkflowTaskFailureCause as Cause, command::Kind,
    server_item::Kind as ServerKind, worker_item::Kind as WorkerKind,
};
use tokio::sync::Notify;

/// Lets a test hold an activity back.
#[derive(Clone, Default)]
struct Gate(Arc<Notify>);

impl Provide<Gate> for Gate {
    fn provide(&self) -> &Gate {
        self
    }
}

impl Provide<()> for Gate {
    fn provide(&self) -> &() {
        &()
    }
}

#[activity]
async fn greet(_: &ActivityCtx, name: &str) -> onward::Result<String> {
    Ok(format!("Hello, {name}!"))
}

/// Waits for the gate.
#[activity]
async fn wait(ctx: &ActivityCtx<Gate>) -> onward::Result<u32> {
    ctx.heartbeat(&"at the gate")?;
    ctx.0.notified().await;
    Ok(ctx.attempt())
}

#[activity]
async fn tidy(ctx: &ActivityCtx) -> Result<(), onward::Cancelled> {
    let _ = ctx.heartbeat(&"tidy so far");
    ctx.cancelled().await;
    Err(onward::Cancelled)
}

#[activity]
async fn explode(_: &ActivityCtx) -> onward::Result<()> {
    panic!("boom")
}

#[workflow]
async fn whisper(_: &Ctx) -> onward::Result<()> {
    tracing::info!("psst");
    Ok(())
}

/// Two steps, one of each kind.
#[workflow]
async fn steps(ctx: &Ctx) -> onward::Result<String> {
    let first = greet(ctx, "first").await?;
    let second = greet(ctx.local(), "local").await?;
    Ok(format!("{first} {second}"))
}

/// Waits for the gate in its own worker.
#[workflow]
async fn gated(ctx: &Ctx) -> onward::Result<u32> {
    Ok(wait(ctx.local()).await?)
}

#[activity]
async fn absent(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

/// Calls in its own worker what that does not have.
#[workflow]
async fn lacks(ctx: &Ctx) -> onward::Result<()> {
    Ok(absent(ctx.local()).await?)
}

/// Calls what its worker does not have, beside a step that goes on.
#[workflow]
async fn lacks_beside(ctx: &Ctx) -> onward::Result<String> {
    let lacking = absent(ctx.local()).start();
    greet(ctx, "first").await?;
    let second = greet(ctx, "second").await?;
    lacking.await?;
    Ok(second)
}

/// One step in its own worker, with all the time there is.
#[workflow]
async fn patient(ctx: &Ctx) -> onward::Result<String> {
    let greeting = greet(ctx.local(), "local").timeout(Duration::MAX).deadline(Duration::MAX);
    Ok(greeting.await?)
}

/// Never comes back from its first poll.
#[workflow]
async fn block(_: &Ctx) -> onward::Result<()> {
    loop {
        onward::audited!(std::thread::park());
    }
}

#[workflow]
async fn panics(_: &Ctx) -> onward::Result<()> {
    panic!("not my day")
}

#[workflow]
async fn order(_: &Ctx, item: String) -> onward::Result<String> {
    Ok(format!("{item} shipped"))
}

/// Opens the gate when it is dropped.
struct OnDrop<'a>(&'a Gate);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.0.notify_one();
    }
}

/// Runs on until it is dropped.
#[activity]
async fn linger(ctx: &ActivityCtx<Gate>) -> onward::Result<()> {
    let _dropped = OnDrop(ctx);
    std::future::pending().await
}

fn builder(fake: &Fake, gate: &Gate) -> WorkerBuilder<Gate> {
    Worker::builder(fake.client.clone(), "test")
        .deps(gate.clone())
        .workflows::<(order, steps, gated, block, panics)>()
        .activities::<(greet, wait, tidy, explode)>()
}

async fn worker(fake: &mut Fake, gate: &Gate) -> (WorkerHandle, Session) {
    let worker = builder(fake, gate).spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    (worker, session)
}

fn completed(item: WorkerKind) -> (v1::ActivityToken, String) {
    let WorkerKind::ActivityCompleted(done) = item else { panic!("not completed: {item:?}") };
    let result = String::from_utf8(done.result.unwrap().data.to_vec()).unwrap();
    (done.token.unwrap(), result)
}

fn failed(item: WorkerKind) -> v1::Failure {
    let WorkerKind::ActivityFailed(failed) = item else { panic!("not failed: {item:?}") };
    failed.failure.unwrap()
}

fn ack_activity(token: v1::ActivityToken) -> ServerKind {
    ServerKind::Ack(v1::Ack { tasks: Vec::new(), activities: vec![token] })
}

fn cancel(token: v1::ActivityToken, reason: CancelReason) -> ServerKind {
    ServerKind::CancelActivity(v1::CancelActivityTask { token: Some(token), reason: reason.into() })
}

#[tokio::test]
async fn hello_says_what_the_worker_has_and_credits_how_much_it_takes() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).max_activities(3).build_id("1.4").spawn().await.unwrap();
    let (hello, in_flight, credits) = fake.session().await.welcome().await;
    assert_eq!((hello.task_queue.as_str(), hello.build_id.as_str()), ("test", "1.4"));
    assert_eq!(hello.workflow_types, ["block", "gated", "order", "panics", "steps"]);
    assert_eq!(hello.activity_types, ["explode", "greet", "tidy", "wait"]);
    assert_eq!((in_flight.slot_from, in_flight.slot_to), (0, 1024));
    assert_eq!((credits.workflow, credits.activity), (500, 3));
}

#[tokio::test]
async fn another_protocol_ends_the_worker_with_both_versions() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let mut worker = builder(&fake, &gate).spawn().await.unwrap();
    let mut session = fake.session().await;
    session.next().await;
    session.send([ServerKind::Welcome(v1::Welcome {
        version: "9.9.9".to_owned(),
        protocol: 99,
        ..Default::default()
    })]);
    let error = worker.ended().await.unwrap_err().to_string();
    assert!(error.contains("9.9.9") && error.contains("protocol 99"), "{error}");
    assert!(error.contains("protocol 1:"), "{error}");
}

#[tokio::test]
async fn an_activity_runs_and_many_answers_share_a_frame() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let run = run_id(1, 5);
    session.send((1..=50).map(|number| {
        ServerKind::ActivityTask(activity_task(token(run, number, 1), "greet", &["\"Ada\""]))
    }));
    for number in 1..=50 {
        let (answered, result) = completed(session.next_news().await);
        assert_eq!(answered, token(run, number, 1));
        assert_eq!(result, "\"Hello, Ada!\"");
    }
}

#[tokio::test]
async fn what_is_not_acked_is_sent_again_on_a_new_stream() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let (first, second) = (token(run_id(1, 5), 1, 1), token(run_id(1, 5), 2, 1));
    session.send([
        ServerKind::ActivityTask(activity_task(first.clone(), "greet", &["\"Ada\""])),
        ServerKind::ActivityTask(activity_task(second.clone(), "greet", &["\"Bob\""])),
    ]);
    completed(session.next_news().await);
    completed(session.next_news().await);
    session.send([ack_activity(first)]);
    // The answer to a third task shows that the ack has been read.
    let third = token(run_id(1, 5), 3, 1);
    session.send([ServerKind::ActivityTask(activity_task(third.clone(), "greet", &["\"Eve\""]))]);
    completed(session.next_news().await);
    session.cut();

    let mut session = fake.session().await;
    session.welcome().await;
    assert_eq!(completed(session.next_news().await).0, second);
    assert_eq!(completed(session.next_news().await).0, third);
}

#[tokio::test]
async fn a_running_activity_outlives_its_stream_and_is_claimed_on_the_next() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let running = token(run_id(1, 5), 1, 1);
    session.send([ServerKind::ActivityTask(activity_task(running.clone(), "wait", &[]))]);
    let WorkerKind::Heartbeats(beat) = session.next().await else { panic!() };
    assert_eq!(beat.activities[0].token.as_ref().unwrap(), &running);
    session.cut();

    let mut session = fake.session().await;
    let (_, in_flight, _) = session.welcome().await;
    assert_eq!(in_flight.activities, std::slice::from_ref(&running));
    session.send([ServerKind::Claim(v1::Claim { slot_from: 0, slot_to: 5, incarnation: 8 })]);
    let WorkerKind::InFlight(elsewhere) = session.next_news().await else { panic!() };
    assert!(elsewhere.activities.is_empty());
    session.send([ServerKind::Claim(v1::Claim { slot_from: 5, slot_to: 6, incarnation: 8 })]);
    let WorkerKind::InFlight(here) = session.next_news().await else { panic!() };
    assert_eq!(
        (here.activities.as_slice(), here.slot_from, here.slot_to),
        (std::slice::from_ref(&running), 5, 6)
    );
    gate.0.notify_one();
    assert_eq!(completed(session.next_news().await), (running, "1".to_owned()));
}

#[tokio::test]
async fn details_of_a_heartbeat_reach_the_server_and_silence_is_broken() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let running = token(run_id(1, 5), 1, 1);
    session.send([ServerKind::ActivityTask(activity_task(running.clone(), "wait", &[]))]);
    let WorkerKind::Heartbeats(beat) = session.next().await else { panic!() };
    assert_eq!(beat.activities[0].details.as_ref().unwrap().data, "\"at the gate\"");
    // Nothing new to say, but the session lives.
    let WorkerKind::Heartbeats(beat) = session.next().await else { panic!() };
    assert!(beat.activities.is_empty());
}

#[tokio::test]
async fn an_attempt_with_a_heartbeat_timeout_is_kept_alive() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let running = token(run_id(1, 5), 1, 1);
    let mut task = activity_task(running.clone(), "wait", &[]);
    task.heartbeat_us = 60_000;
    session.send([ServerKind::ActivityTask(task)]);
    for _ in 0..3 {
        let WorkerKind::Heartbeats(beat) = session.next().await else { panic!() };
        assert_eq!(beat.activities[0].token.as_ref().unwrap(), &running);
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_whose_heartbeats_reach_nobody_is_dropped_before_they_are_missed() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).activities::<(linger,)>().spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    let mut task = activity_task(token(run_id(1, 5), 1, 1), "linger", &[]);
    task.heartbeat_us = 15_000_000;
    session.send([ServerKind::ActivityTask(task)]);
    // Kept alive for longer than its heartbeat timeout.
    let mut beat_at = tokio::time::Instant::now();
    let beats_end = beat_at + Duration::from_secs(30);
    while beat_at < beats_end {
        assert!(matches!(session.next().await, WorkerKind::Heartbeats(_)));
        beat_at = tokio::time::Instant::now();
    }
    session.cut();
    gate.0.notified().await;
    let lasted = beat_at.elapsed();
    assert!((10..15).contains(&lasted.as_secs()), "{lasted:?}");
}

#[tokio::test(start_paused = true)]
async fn what_runs_gives_a_sign_of_life_as_soon_as_the_worker_is_back() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let running = token(run_id(1, 5), 1, 1);
    let mut task = activity_task(running.clone(), "wait", &[]);
    task.heartbeat_us = 15_000_000;
    session.send([ServerKind::ActivityTask(task)]);
    assert!(matches!(session.next().await, WorkerKind::Heartbeats(_)));
    session.cut();

    let mut session = fake.session().await;
    session.welcome().await;
    let back_at = tokio::time::Instant::now();
    let WorkerKind::Heartbeats(beat) = session.next().await else { panic!() };
    assert_eq!(beat.activities[0].token.as_ref().unwrap(), &running);
    assert!(back_at.elapsed() < Duration::from_millis(100), "{:?}", back_at.elapsed());
}

#[tokio::test]
async fn what_is_too_large_for_the_next_server_keeps_no_worker_from_its_end() {
    let long = format!("{:?}", "x".repeat(2_000));
    let run = run_id(1, 5);
    for task in [
        ServerKind::ActivityTask(activity_task(token(run, 1, 1), "greet", &[&long])),
        ServerKind::WorkflowTask(first_task(run, 1, "order", &[&long])),
    ] {
        let (mut fake, gate) = (Fake::start(), Gate::default());
        let (worker, mut session) = worker(&mut fake, &gate).await;
        session.send([task]);
        session.next_news().await;
        session.cut();

        let mut session = fake.session().await;
        let small = v1::Welcome { max_message_bytes: 1_000, ..fake::welcome_message() };
        session.welcome_with(small).await;
        // By the real clock: a thread that works is no reason for a paused one to stand still.
        let ended = tokio::time::timeout(Duration::from_secs(9), worker.shutdown()).await;
        ended.expect("before what runs is given up").unwrap();
    }
}

#[tokio::test]
async fn a_cancel_request_drops_an_attempt_or_lets_it_tidy_up() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let run = run_id(1, 5);
    for (number, name) in [(1, "wait"), (2, "tidy")] {
        let token = token(run, number, 1);
        session.send([ServerKind::ActivityTask(activity_task(token.clone(), name, &[]))]);
        // Its details show that the code runs.
        while !matches!(session.next().await, WorkerKind::Heartbeats(it) if !it.activities.is_empty())
        {
        }
        session.send([cancel(token.clone(), CancelReason::Requested)]);
        let WorkerKind::ActivityCancelled(cancelled) = session.next_news().await else { panic!() };
        assert_eq!(cancelled.token.unwrap(), token);
        assert_eq!(cancelled.failure.is_some(), name == "tidy");
    }
}

#[tokio::test]
async fn a_lost_attempt_is_not_answered() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let run = run_id(1, 5);
    session.send([
        ServerKind::ActivityTask(activity_task(token(run, 1, 1), "wait", &[])),
        cancel(token(run, 1, 1), CancelReason::Lost),
        ServerKind::ActivityTask(activity_task(token(run, 2, 1), "greet", &["\"Ada\""])),
    ]);
    assert_eq!(completed(session.next_news().await).0, token(run, 2, 1));
    session.cut();
    let (_, in_flight, _) = fake.session().await.welcome().await;
    assert!(in_flight.activities.is_empty());
}

#[tokio::test]
async fn an_activity_that_cannot_run_fails_and_says_why() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let run = run_id(1, 5);
    let mut ask = async |number, name, arguments: &[&str]| {
        let task = activity_task(token(run, number, 1), name, arguments);
        session.send([ServerKind::ActivityTask(task)]);
        failed(session.next_news().await)
    };
    let unknown = ask(1, "gret", &[]).await;
    assert_eq!(
        unknown.message,
        "worker tester has no activity `gret`; it has: explode, greet, tidy, wait"
    );
    assert!(!unknown.non_retryable);
    let unreadable = ask(2, "greet", &["7"]).await;
    assert!(unreadable.message.contains("cannot decode"), "{}", unreadable.message);
    assert!(!unreadable.non_retryable);
    assert!(ask(3, "greet", &["\"a\"", "\"b\""]).await.message.contains("2 arguments for 1"));
    let panicked = ask(4, "explode", &[]).await;
    assert_eq!(panicked.kind, "Panic");
    let (place, words) = panicked.message.rsplit_once(": ").unwrap();
    assert!(place.starts_with("panicked at ") && place.contains("session.rs:"), "{place}");
    assert_eq!(words, "boom");
    assert!(!panicked.non_retryable);
}

#[tokio::test]
async fn a_workflow_that_the_worker_does_not_have_fails_its_task_with_the_workers_own_list() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    session.send([ServerKind::WorkflowTask(first_task(run_id(1, 5), 1, "oder", &[]))]);
    let WorkerKind::TaskFailed(failed) = session.next_news().await else { panic!() };
    assert_eq!(failed.cause(), Cause::UnknownType);
    let message = failed.failure.unwrap().message;
    assert_eq!(
        message,
        "worker tester has no workflow `oder`; it has: block, gated, order, panics, steps"
    );
}

#[tokio::test]
async fn a_task_whose_base_is_not_here_asks_for_the_history() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let run = run_id(1, 5);
    let task = v1::WorkflowTask {
        follows: Some(task_id(1)),
        events: Vec::new(),
        ..first_task(run, 2, "order", &["\"lamp\""])
    };
    session.send([ServerKind::WorkflowTask(task)]);
    let WorkerKind::NeedHistory(need) = session.next_news().await else { panic!() };
    assert_eq!(need.task_id.unwrap(), task_id(2));
}

/// Makes a call with an argument of so many bytes.
#[workflow]
async fn shout(ctx: &Ctx, bytes: usize) -> onward::Result<String> {
    Ok(greet(ctx, &"x".repeat(bytes)).await?)
}

#[tokio::test]
async fn a_call_that_fits_into_no_message_goes_without_its_arguments_as_refused() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).workflows::<(shout,)>().spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    session.send([ServerKind::WorkflowTask(first_task(run_id(1, 5), 1, "shout", &["5000000"]))]);
    let WorkerKind::TaskCompleted(completed) = session.next_news().await else { panic!() };
    let [command] = &completed.commands[..] else { panic!("{completed:?}") };
    let Some(Kind::ScheduleActivity(schedule)) = &command.kind else { panic!("{command:?}") };
    assert_eq!((&*schedule.activity_type, schedule.arguments.len()), ("greet", 0));
    let broken = command.refused.as_ref().unwrap();
    assert_eq!((&*broken.name, broken.limit), ("payload_bytes_per_command", 2 << 20));
    assert!((5_000_000..5_000_100).contains(&broken.value), "{}", broken.value);
}

#[tokio::test]
async fn details_of_many_heartbeats_come_in_items_that_fit() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).spawn().await.unwrap();
    let mut session = fake.session().await;
    let small = v1::Welcome { max_message_bytes: 300, ..fake::welcome_message() };
    session.welcome_with(small).await;
    let tasks = (1..=9).map(|n| activity_task(token(run_id(n, 5), 1, 1), "wait", &[]));
    session.send(tasks.map(ServerKind::ActivityTask));
    let mut named = 0;
    while named < 9 {
        let WorkerKind::Heartbeats(beat) = session.next().await else { panic!() };
        // Two have about 100 bytes together; a fourth would be more than half a message.
        assert!(beat.activities.len() <= 3, "{beat:?}");
        named += beat.activities.len();
    }
}

#[tokio::test]
async fn a_drained_worker_takes_no_more_and_ends_when_all_is_acked() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (worker, mut session) = worker(&mut fake, &gate).await;
    let running = token(run_id(1, 5), 1, 1);
    session.send([ServerKind::ActivityTask(activity_task(running.clone(), "wait", &[]))]);
    assert!(matches!(session.next().await, WorkerKind::Heartbeats(_)));

    let ending = tokio::spawn(worker.shutdown());
    assert!(matches!(session.next_news().await, WorkerKind::Draining(_)));
    let WorkerKind::Credits(credits) = session.next_news().await else { panic!() };
    assert_eq!((credits.workflow, credits.activity), (0, 0));
    gate.0.notify_one();
    completed(session.next_news().await);
    assert!(!ending.is_finished());
    session.send([ack_activity(running)]);
    // Only heartbeats until the end of the stream.
    while let Some(item) = session.try_next().await {
        assert!(matches!(item, WorkerKind::Heartbeats(_)), "{item:?}");
    }
    drop(session);
    tokio::time::timeout(Duration::from_secs(5), ending).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_goes_away_is_asked_for_no_more_and_hears_the_rest_when_it_is_back() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let (running, unacked) = (token(run_id(1, 5), 1, 1), token(run_id(1, 5), 2, 1));
    session.send([
        ServerKind::ActivityTask(activity_task(running.clone(), "wait", &[])),
        ServerKind::Drain(v1::Drain {}),
        // It was on its way already.
        ServerKind::ActivityTask(activity_task(unacked.clone(), "greet", &["\"Ada\""])),
        ServerKind::Drain(v1::Drain {}),
    ]);
    let WorkerKind::Credits(credits) = session.next_news().await else { panic!() };
    assert_eq!((credits.workflow, credits.activity), (0, 0));
    assert_eq!(completed(session.next_news().await).0, unacked);
    session.end();

    let mut session = fake.session().await;
    let (_, in_flight, credits) = session.welcome().await;
    assert_eq!(in_flight.activities, std::slice::from_ref(&running));
    assert_eq!((credits.workflow, credits.activity), (500, 1_000));
    assert_eq!(completed(session.next_news().await).0, unacked);
    gate.0.notify_one();
    assert_eq!(completed(session.next_news().await).0, running);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_it_goes_away_and_stays_is_left() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    session.send([ServerKind::Drain(v1::Drain {})]);
    // The signs of life go on until the worker has left.
    let left = async { while session.try_next().await.is_some() {} };
    tokio::time::timeout(Duration::from_mins(1), left).await.expect("it leaves");
    let (_, _, credits) = fake.session().await.welcome().await;
    assert_eq!((credits.workflow, credits.activity), (500, 1_000));
}

/// What a test's own thread logs.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// From now on, while what is given back lives.
    fn are_logged(&self) -> impl Sized {
        let writer = self.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        // Were there one alone, what a test beside this one says first would be off for ever.
        let another = tracing::Dispatch::new(tracing_subscriber::fmt().finish());
        (tracing::subscriber::set_default(lines.finish()), another)
    }

    fn count(&self, what: &str) -> usize {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().matches(what).count()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_is_tried_often_and_named_once_a_minute() {
    let lines = Lines::default();
    let _logging = lines.are_logged();

    let (mut fake, gate) = (Fake::start(), Gate::default());
    fake.reachable.store(false, Ordering::Relaxed);
    let _worker = builder(&fake, &gate).spawn().await.unwrap();
    while lines.count("cannot reach the server; still trying") == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(lines.count("connection refused"), 1);
    tokio::time::sleep(Duration::from_mins(10)).await;
    // A try comes every 2 s at the latest, so a complaint is up to 2 s late.
    let complaints = lines.count("cannot reach the server; still trying");
    assert!((10..=11).contains(&complaints), "{complaints}");
    assert!(fake.tries.load(Ordering::Relaxed) > 300);

    fake.reachable.store(true, Ordering::Relaxed);
    fake.session().await.welcome().await;
    assert_eq!(lines.count("connected to the server"), 1);
}

#[tokio::test]
async fn a_worker_without_work_ends_at_once() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (worker, session) = worker(&mut fake, &gate).await;
    drop(session);
    worker.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_has_nothing_or_one_name_twice_does_not_start() {
    let fake = Fake::start();
    let nothing = Worker::builder(fake.client.clone(), "test").spawn().await.unwrap_err();
    assert!(matches!(nothing, onward::WorkerError::Nothing));
    let twice = Worker::builder(fake.client.clone(), "test")
        .activities::<(greet,)>()
        .activities::<(greet,)>()
        .spawn()
        .await
        .unwrap_err();
    assert_eq!(twice.to_string(), "two activities of this worker have the name `greet`");
}

fn done(item: WorkerKind) -> v1::TaskCompleted {
    let WorkerKind::TaskCompleted(done) = item else { panic!("not completed: {item:?}") };
    done
}

fn command(completed: &v1::TaskCompleted, index: usize) -> &v1::command::Kind {
    completed.commands[index].kind.as_ref().unwrap()
}

/// What the server records of a completion, with event ids from `event_id` on.
fn recorded(
    completed: &v1::TaskCompleted,
    event_id: u64,
    facts_taken: u32,
) -> Vec<v1::HistoryEvent> {
    use v1::{command::Kind, history_event::Attributes};
    let mut events = vec![Attributes::WorkflowTaskCompleted(v1::WorkflowTaskCompleted {
        task_id: completed.task_id,
        handed_out_at_us: 1_790_000_000_000_000,
        facts_taken,
        command_events: completed.commands.len() as u32,
        more: completed.more,
        sdk_flags: completed.sdk_flags.clone(),
        ..Default::default()
    })];
    for command in &completed.commands {
        events.push(match command.kind.clone().unwrap() {
            Kind::ScheduleActivity(call) => Attributes::ActivityScheduled(v1::ActivityScheduled {
                number: command.number,
                activity_type: call.activity_type,
                arguments: call.arguments,
                arguments_hash: command.arguments_hash,
                ..Default::default()
            }),
            other => panic!("not in these tests: {other:?}"),
        });
    }
    (event_id..).zip(events).map(|(id, attributes)| fake::event(id, attributes)).collect()
}

/// What follows a recorded completion in the next task of the same run.
fn next_task(
    first: &v1::WorkflowTask,
    follows: u64,
    counter: u64,
    mut recorded: Vec<v1::HistoryEvent>,
    fact: Option<v1::history_event::Attributes>,
) -> v1::WorkflowTask {
    let next = recorded.last().map_or(2, |event| event.event_id + 1);
    recorded.extend(fact.map(|fact| fake::event(next, fact)));
    v1::WorkflowTask {
        task_id: Some(task_id(counter)),
        events: recorded,
        follows: Some(task_id(follows)),
        ..first.clone()
    }
}

fn greeted(number: u32) -> v1::history_event::Attributes {
    v1::history_event::Attributes::ActivityCompleted(v1::ActivityCompleted {
        number,
        result: Some(fake::json("\"hi\"")),
        attempt: 1,
        ..Default::default()
    })
}

fn ack_task(counter: u64) -> ServerKind {
    ServerKind::Ack(v1::Ack { tasks: vec![task_id(counter)], activities: Vec::new() })
}

#[tokio::test]
async fn a_workflow_that_ends_in_its_first_task_is_one_completion() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let task = first_task(run_id(1, 5), 1, "order", &["\"lamp\""]);
    session.send([ServerKind::WorkflowTask(task)]);
    let completed = done(session.next_news().await);
    let v1::command::Kind::CompleteWorkflow(close) = command(&completed, 0) else { panic!() };
    assert_eq!(close.result.as_ref().unwrap().data, "\"lamp shipped\"");
}

#[tokio::test]
async fn completions_are_sent_again_until_they_are_acked() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    for n in 1..=2 {
        let task = first_task(run_id(n, 5), n, "order", &["\"lamp\""]);
        session.send([ack_task(n - 1), ServerKind::WorkflowTask(task)]);
        done(session.next_news().await);
    }
    session.cut();

    let mut session = fake.session().await;
    session.welcome().await;
    let again = done(session.next_news().await);
    assert_eq!(again.task_id.unwrap(), task_id(2));
    // A claim of its slot asks for it once more; one of another slot does not.
    for slot in [6, 5] {
        session.send([ServerKind::Claim(v1::Claim {
            slot_from: slot,
            slot_to: slot + 1,
            incarnation: 8,
        })]);
        assert!(matches!(session.next_news().await, WorkerKind::InFlight(_)));
    }
    assert_eq!(done(session.next_news().await), again);
}

#[tokio::test]
async fn a_cached_run_goes_on_through_a_local_activity_to_its_end() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let first = first_task(run_id(1, 5), 1, "steps", &[]);
    session.send([ServerKind::WorkflowTask(first.clone())]);
    let scheduled = done(session.next_news().await);
    assert!(!scheduled.more);
    assert!(matches!(command(&scheduled, 0), v1::command::Kind::ScheduleActivity(_)));

    // The result makes the code ask for the local step: it starts after this task's commit.
    let events = recorded(&scheduled, 2, 0);
    session.send([ServerKind::WorkflowTask(next_task(&first, 1, 2, events, Some(greeted(1))))]);
    let asked = done(session.next_news().await);
    assert!(asked.more && asked.commands.is_empty());

    let events = recorded(&asked, 5, 1);
    session.send([ServerKind::WorkflowTask(next_task(&first, 2, 3, events, None))]);
    let closed = done(session.next_news().await);
    assert!(matches!(command(&closed, 0), v1::command::Kind::RecordMarker(_)));
    let v1::command::Kind::CompleteWorkflow(close) = command(&closed, 1) else { panic!() };
    assert_eq!(close.result.as_ref().unwrap().data, "\"hi Hello, local!\"");
}

#[tokio::test]
async fn a_local_activity_may_have_all_the_time_there_is() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).workflows::<(patient,)>().spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    let first = first_task(run_id(1, 5), 1, "patient", &[]);
    session.send([ServerKind::WorkflowTask(first.clone())]);
    let asked = done(session.next_news().await);
    let events = recorded(&asked, 2, 0);
    session.send([ServerKind::WorkflowTask(next_task(&first, 1, 2, events, None))]);
    let closed = done(session.next_news().await);
    assert!(matches!(command(&closed, 1), Kind::CompleteWorkflow(_)));
}

#[tokio::test]
async fn a_local_activity_that_the_worker_does_not_have_fails_the_task_with_the_workers_list() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).workflows::<(lacks,)>().spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    let first = first_task(run_id(1, 5), 1, "lacks", &[]);
    session.send([ServerKind::WorkflowTask(first.clone())]);
    let asked = done(session.next_news().await);
    let events = recorded(&asked, 2, 0);
    session.send([ServerKind::WorkflowTask(next_task(&first, 1, 2, events, None))]);
    let WorkerKind::TaskFailed(failed) = session.next_news().await else { panic!() };
    assert_eq!((failed.task_id.unwrap(), failed.cause()), (task_id(2), Cause::UnknownType));
    assert_eq!(
        failed.failure.unwrap().message,
        "worker tester has no activity `absent`; it has: explode, greet, tidy, wait"
    );
}

#[tokio::test]
async fn a_task_that_failed_for_a_local_activity_is_not_completed_too() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).workflows::<(lacks_beside,)>().spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    let first = first_task(run_id(1, 5), 1, "lacks_beside", &[]);
    session.send([ServerKind::WorkflowTask(first.clone())]);
    let asked = done(session.next_news().await);
    let events = recorded(&asked, 2, 0);
    session.send([ServerKind::WorkflowTask(next_task(&first, 1, 2, events, Some(greeted(2))))]);
    let WorkerKind::TaskFailed(failed) = session.next_news().await else { panic!() };
    assert_eq!((failed.task_id.unwrap(), failed.cause()), (task_id(2), Cause::UnknownType));
    let other = token(run_id(2, 5), 1, 1);
    session.send([ServerKind::ActivityTask(activity_task(other.clone(), "greet", &["\"Ada\""]))]);
    assert_eq!(completed(session.next_news().await).0, other);
}

/// Waits at a closed gate, as long as it may.
#[workflow]
async fn too_late(ctx: &Ctx, has_deadline: bool) -> onward::Result<String> {
    let call = wait(ctx.local());
    let call = if has_deadline {
        call.deadline(Duration::from_millis(20))
    } else {
        let retry = Retry::attempts(2).initial(Duration::from_millis(1));
        call.timeout(Duration::from_millis(10)).retry(retry)
    };
    Ok(format!("{:?}", call.await.unwrap_err()))
}

#[tokio::test]
async fn a_local_activity_that_takes_too_long_says_which_of_its_times_has_passed() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).workflows::<(too_late,)>().spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    for (n, has_deadline, kind) in [(1, "true", "ScheduleToClose"), (2, "false", "StartToClose")] {
        let first = first_task(run_id(n, 5), 2 * n, "too_late", &[has_deadline]);
        session.send([ServerKind::WorkflowTask(first.clone())]);
        let asked = done(session.next_news().await);
        let events = recorded(&asked, 2, 0);
        let second = next_task(&first, 2 * n, 2 * n + 1, events, None);
        session.send([ServerKind::WorkflowTask(second)]);
        let closed = done(session.next_news().await);
        let v1::command::Kind::CompleteWorkflow(close) = command(&closed, 1) else { panic!() };
        let said = format!("\"TimedOut {{ kind: {kind}, last: None }}\"");
        assert_eq!(close.result.as_ref().unwrap().data, said);
    }
}

/// Records so many bytes.
#[workflow]
async fn remember(ctx: &Ctx, bytes: usize) -> onward::Result<usize> {
    Ok(ctx.record(|| "x".repeat(bytes)).await.len())
}

#[tokio::test]
async fn what_the_server_would_refuse_fails_by_the_limit_that_it_has_named() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).workflows::<(remember,)>().spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome_with(v1::Welcome { max_payload_bytes: 100, ..fake::welcome_message() }).await;
    session.send([ServerKind::WorkflowTask(first_task(run_id(1, 5), 1, "remember", &["50"]))]);
    assert_eq!(done(session.next_news().await).commands.len(), 2);
    session.send([ServerKind::WorkflowTask(first_task(run_id(2, 5), 2, "remember", &["100"]))]);
    let WorkerKind::TaskFailed(failed) = session.next_news().await else { panic!() };
    assert_eq!(failed.cause(), Cause::Payload);
    let message = failed.failure.unwrap().message;
    assert!(message.ends_with("payload_bytes_per_command is 106, the limit is 100"), "{message}");
}

/// A step that fails, and waits before it tries again as long as may be.
#[workflow]
async fn no_time_left(ctx: &Ctx) -> onward::Result<String> {
    let retry = Retry::attempts(3).initial(Duration::MAX).max_interval(Duration::MAX);
    let call = explode(ctx.local()).deadline(Duration::from_mins(1)).retry(retry);
    Ok(format!("{:?}", call.await.unwrap_err()))
}

#[tokio::test]
async fn a_local_activity_whose_next_attempt_would_come_too_late_says_so_and_how_the_last_one_failed()
 {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).workflows::<(no_time_left,)>().spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    let first = first_task(run_id(1, 5), 1, "no_time_left", &[]);
    session.send([ServerKind::WorkflowTask(first.clone())]);
    let asked = done(session.next_news().await);
    let events = recorded(&asked, 2, 0);
    session.send([ServerKind::WorkflowTask(next_task(&first, 1, 2, events, None))]);
    let closed = done(session.next_news().await);
    let Kind::CompleteWorkflow(close) = command(&closed, 1) else { panic!() };
    let said = String::from_utf8(close.result.as_ref().unwrap().data.to_vec()).unwrap();
    assert!(said.contains("kind: ScheduleToClose, last: Some(") && said.contains("boom"), "{said}");
}

fn yields(run: onward_proto::RunId, counter: u64) -> ServerKind {
    ServerKind::Yield(v1::YieldTask { task_id: Some(task_id(counter)), run_id: run.to_wire() })
}

#[tokio::test]
async fn a_yield_completes_the_open_task_while_its_local_activity_runs_on() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let run = run_id(1, 5);
    let first = first_task(run, 1, "gated", &[]);
    session.send([ServerKind::WorkflowTask(first.clone())]);
    let issued = done(session.next_news().await);
    assert!(issued.more);

    // The local activity runs and holds the second task open until the server asks for it.
    let second = next_task(&first, 1, 2, recorded(&issued, 2, 0), None);
    session.send([ServerKind::WorkflowTask(second), yields(run, 2)]);
    let yielded = done(session.next_news().await);
    assert_eq!((yielded.task_id, yielded.more), (Some(task_id(2)), true));
    assert!(yielded.commands.is_empty());

    // A yield of a task that is done already is no yield of the open one.
    let third = next_task(&first, 2, 3, recorded(&yielded, 3, 0), None);
    let other = token(run_id(2, 5), 1, 1);
    session.send([
        ServerKind::WorkflowTask(third),
        yields(run, 2),
        ServerKind::ActivityTask(activity_task(other.clone(), "greet", &["\"Ada\""])),
    ]);
    assert_eq!(completed(session.next_news().await).0, other);
    gate.0.notify_one();
    let closed = done(session.next_news().await);
    assert_eq!((closed.task_id, closed.more), (Some(task_id(3)), false));
    assert!(matches!(command(&closed, 0), v1::command::Kind::RecordMarker(_)));
    let v1::command::Kind::CompleteWorkflow(close) = command(&closed, 1) else { panic!() };
    assert_eq!(close.result.as_ref().unwrap().data, "1");
}

#[tokio::test]
async fn a_yield_that_comes_while_the_history_is_read_is_not_lost() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let run = run_id(1, 5);
    let first = first_task(run, 1, "gated", &[]);
    session.send([ServerKind::WorkflowTask(first.clone())]);
    let issued = done(session.next_news().await);

    let mut second = next_task(&first, 1, 2, recorded(&issued, 2, 0), None);
    let events = std::mem::take(&mut second.events);
    second.next_position = "here".into();
    let page = v1::TaskHistoryResponse { events, next_position: "".into() };
    fake.script.lock().unwrap().history_pages.push_back(Ok(page));
    session.send([ServerKind::WorkflowTask(second), yields(run, 2)]);
    let yielded = done(session.next_news().await);
    assert_eq!((yielded.task_id, yielded.more), (Some(task_id(2)), true));
}

/// A worker that has sent the first completion of a `steps` run.
async fn with_cached_run(
    fake: &mut Fake,
) -> (WorkerHandle, Session, v1::WorkflowTask, v1::TaskCompleted) {
    let (worker, mut session) = worker(fake, &Gate::default()).await;
    let first = first_task(run_id(1, 5), 1, "steps", &[]);
    session.send([ServerKind::WorkflowTask(first.clone())]);
    let scheduled = done(session.next_news().await);
    (worker, session, first, scheduled)
}

async fn expect_need_history(session: &mut Session, counter: u64) {
    let item = session.next_news().await;
    let WorkerKind::NeedHistory(need) = item else { panic!("{item:?}") };
    assert_eq!(need.task_id.unwrap(), task_id(counter));
}

#[tokio::test]
async fn stale_evict_and_a_claim_of_another_load_forget_the_cached_run() {
    let run = run_id(1, 5);
    for forget in [
        ServerKind::Stale(v1::StaleTask { task_id: Some(task_id(1)), run_id: run.to_wire() }),
        ServerKind::Evict(v1::EvictRun { run_id: run.to_wire() }),
        ServerKind::Claim(v1::Claim { slot_from: 0, slot_to: 1024, incarnation: 8 }),
    ] {
        let mut fake = Fake::start();
        let (_worker, mut session, first, scheduled) = with_cached_run(&mut fake).await;
        let is_claim = matches!(forget, ServerKind::Claim(_));
        session.send([forget]);
        if is_claim {
            assert!(matches!(session.next_news().await, WorkerKind::InFlight(_)));
            assert_eq!(done(session.next_news().await), scheduled);
        }
        let events = recorded(&scheduled, 2, 0);
        let next = next_task(&first, 1, 2, events, Some(greeted(1)));
        session.send([ServerKind::WorkflowTask(next.clone())]);
        expect_need_history(&mut session, 2).await;

        // The same task again, with the whole history.
        let events = first.events.iter().cloned().chain(next.events.clone()).collect();
        session.send([ServerKind::WorkflowTask(v1::WorkflowTask {
            events,
            follows: None,
            ..next
        })]);
        assert!(done(session.next_news().await).more);
    }
}

#[tokio::test]
async fn a_claim_of_the_same_load_and_a_stale_of_another_task_keep_the_cached_run() {
    let mut fake = Fake::start();
    let (_worker, mut session, first, scheduled) = with_cached_run(&mut fake).await;
    session.send([
        ServerKind::Claim(v1::Claim { slot_from: 0, slot_to: 1024, incarnation: 7 }),
        ServerKind::Stale(v1::StaleTask {
            task_id: Some(task_id(9)),
            run_id: run_id(1, 5).to_wire(),
        }),
    ]);
    assert!(matches!(session.next_news().await, WorkerKind::InFlight(_)));
    assert_eq!(done(session.next_news().await), scheduled);
    let events = recorded(&scheduled, 2, 0);
    session.send([ServerKind::WorkflowTask(next_task(&first, 1, 2, events, Some(greeted(1))))]);
    assert!(done(session.next_news().await).more);
}

#[tokio::test]
async fn a_task_that_follows_another_completion_asks_for_the_history() {
    let mut fake = Fake::start();
    let (_worker, mut session, first, scheduled) = with_cached_run(&mut fake).await;
    let events = recorded(&scheduled, 2, 0);
    session.send([ServerKind::WorkflowTask(next_task(&first, 4, 5, events, Some(greeted(1))))]);
    expect_need_history(&mut session, 5).await;
}

#[tokio::test]
async fn a_full_cache_lets_the_longest_idle_run_go_and_says_so() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).cached_workflows(1).spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    session.send([ServerKind::WorkflowTask(first_task(run_id(1, 5), 1, "steps", &[]))]);
    done(session.next_news().await);
    session.send([ServerKind::WorkflowTask(first_task(run_id(2, 5), 2, "steps", &[]))]);
    // The first run is idle and goes when the second comes; the second stays.
    let WorkerKind::Evicted(evicted) = session.next_news().await else { panic!() };
    assert_eq!(evicted.run_id, run_id(1, 5).to_wire());
    done(session.next_news().await);
}

#[tokio::test]
async fn a_run_with_a_running_local_activity_stays_in_a_full_cache() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).cached_workflows(0).spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    let run = run_id(1, 5);
    let first = first_task(run, 1, "gated", &[]);
    session.send([ServerKind::WorkflowTask(first.clone())]);
    let issued = done(session.next_news().await);
    let WorkerKind::Evicted(_) = session.next_news().await else { panic!() };
    let whole = |counter, recorded: Vec<_>| {
        let mut task = next_task(&first, 1, counter, recorded, None);
        task.events = first.events.iter().cloned().chain(task.events).collect();
        task.follows = None;
        ServerKind::WorkflowTask(task)
    };
    session.send([whole(2, recorded(&issued, 2, 0)), yields(run, 2)]);
    let yielded = done(session.next_news().await);
    assert!(yielded.more);
    // Nothing more is evicted: the next task goes on with what is there.
    let third = next_task(&first, 2, 3, recorded(&yielded, 3, 0), None);
    let other = token(run_id(2, 5), 1, 1);
    session.send([
        ServerKind::WorkflowTask(third),
        ServerKind::ActivityTask(activity_task(other.clone(), "greet", &["\"Ada\""])),
    ]);
    assert_eq!(completed(session.next_news().await).0, other);
    gate.0.notify_one();
    let closed = done(session.next_news().await);
    assert_eq!((closed.task_id, closed.more), (Some(task_id(3)), false));
}

#[tokio::test]
async fn the_rest_of_a_long_history_is_read_before_the_task_runs() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let mut task = first_task(run_id(1, 5), 1, "order", &["\"lamp\""]);
    let events = std::mem::take(&mut task.events);
    task.next_position = "here".into();
    let page = |events, next: &str| {
        Ok(v1::TaskHistoryResponse { events, next_position: next.to_owned().into() })
    };
    fake.script.lock().unwrap().history_pages.extend([
        page(Vec::new(), "there"),
        Err(tonic::Status::unavailable("once more")),
        page(events, ""),
    ]);
    session.send([ServerKind::WorkflowTask(task)]);
    done(session.next_news().await);
    let script = fake.script.lock().unwrap();
    let positions: Vec<_> = script.history_reads.iter().map(|read| &read.position[..]).collect();
    assert_eq!(positions, [&b"here"[..], b"there", b"there"]);
}

#[tokio::test]
async fn a_task_whose_history_cannot_be_read_fails_at_once() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    let mut task = first_task(run_id(1, 5), 1, "order", &["\"lamp\""]);
    task.events.clear();
    task.next_position = "here".into();
    let answer = Err(tonic::Status::not_found("not this task"));
    fake.script.lock().unwrap().history_pages.push_back(answer);
    session.send([ServerKind::WorkflowTask(task)]);
    let WorkerKind::TaskFailed(failed) = session.next_news().await else { panic!() };
    assert_eq!((failed.task_id.unwrap(), failed.cause()), (task_id(1), Cause::WorkerLost));
    let message = failed.failure.unwrap().message;
    assert!(message.contains("not this task"), "{message}");
}

#[tokio::test]
async fn a_panic_fails_the_task_and_the_next_hand_out_begins_anew() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let (_worker, mut session) = worker(&mut fake, &gate).await;
    for counter in 1..=2 {
        session.send([ServerKind::WorkflowTask(first_task(run_id(1, 5), counter, "panics", &[]))]);
        let WorkerKind::TaskFailed(failed) = session.next_news().await else { panic!() };
        assert_eq!(failed.task_id.unwrap(), task_id(counter));
        assert_eq!(failed.cause(), Cause::Panic);
        let message = failed.failure.unwrap().message;
        assert!(message.starts_with("the workflow panicked at "), "{message}");
        assert!(message.contains("session.rs:") && message.ends_with(": not my day"), "{message}");
    }
}

/// Panics with more words than fit into a message.
#[workflow]
async fn rants(_: &Ctx) -> onward::Result<()> {
    panic!("{}", "no! ".repeat(5 << 18))
}

#[tokio::test]
async fn a_panic_with_more_words_than_fit_into_a_message_fails_the_task_with_the_first() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).workflows::<(rants,)>().spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    session.send([ServerKind::WorkflowTask(first_task(run_id(1, 5), 1, "rants", &[]))]);
    let WorkerKind::TaskFailed(failed) = session.next_news().await else { panic!() };
    assert_eq!((failed.task_id.unwrap(), failed.cause()), (task_id(1), Cause::Panic));
    let message = failed.failure.unwrap().message;
    assert!(message.contains(": no! no! ") && message.len() < 64 << 10, "{}", message.len());
    // Nothing stands in the way of the next.
    let task = first_task(run_id(2, 5), 2, "order", &["\"lamp\""]);
    session.send([ServerKind::WorkflowTask(task)]);
    done(session.next_news().await);
}

#[tokio::test]
async fn a_workflow_that_blocks_its_thread_costs_only_its_own_task() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).workflow_threads(1).spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    session.send([
        ServerKind::WorkflowTask(first_task(run_id(1, 5), 1, "block", &[])),
        ServerKind::WorkflowTask(first_task(run_id(2, 5), 2, "order", &["\"lamp\""])),
    ]);
    // Only the thread that stands still is waited for.
    tokio::time::pause();
    let WorkerKind::TaskFailed(failed) = session.next_news().await else { panic!() };
    assert_eq!((failed.task_id.unwrap(), failed.cause()), (task_id(1), Cause::Stuck));
    expect_need_history(&mut session, 2).await;
    tokio::time::resume();
    // The same task again: it runs on the thread that took the other's place.
    let task = first_task(run_id(2, 5), 2, "order", &["\"lamp\""]);
    session.send([ServerKind::WorkflowTask(task)]);
    done(session.next_news().await);
}

#[tokio::test]
async fn a_thread_that_is_stuck_in_a_forgotten_run_is_replaced_too() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).workflow_threads(1).spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    let forgotten = run_id(1, 5);
    session.send([
        ServerKind::WorkflowTask(first_task(forgotten, 1, "block", &[])),
        ServerKind::Evict(v1::EvictRun { run_id: forgotten.to_wire() }),
        ServerKind::WorkflowTask(first_task(run_id(2, 5), 2, "order", &["\"lamp\""])),
    ]);
    tokio::time::pause();
    expect_need_history(&mut session, 2).await;
    tokio::time::resume();
    let task = first_task(run_id(2, 5), 2, "order", &["\"lamp\""]);
    session.send([ServerKind::WorkflowTask(task)]);
    done(session.next_news().await);
}

static LETS_GO: AtomicBool = AtomicBool::new(false);
static TIMES_ENTERED: AtomicU32 = AtomicU32::new(0);

/// Does not come back from its first poll until a test lets it go.
#[workflow]
async fn dawdle(_: &Ctx) -> onward::Result<()> {
    TIMES_ENTERED.fetch_add(1, Ordering::SeqCst);
    while !LETS_GO.load(Ordering::SeqCst) {
        onward::audited!(std::thread::yield_now());
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_holds_an_abandoned_thread_gets_no_other_until_it_lets_go() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker =
        builder(&fake, &gate).workflows::<(dawdle,)>().workflow_threads(1).spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    let mut counter = 0;
    let mut offer = async || {
        counter += 1;
        let task = first_task(run_id(1, 5), counter, "dawdle", &[]);
        session.send([ServerKind::WorkflowTask(task)]);
        session.next_news().await
    };
    let was_stuck = |item| {
        let WorkerKind::TaskFailed(failed) = item else { return false };
        assert_eq!(failed.cause(), Cause::Stuck);
        true
    };
    tokio::time::pause();
    assert!(was_stuck(offer().await));
    tokio::time::resume();
    assert!(was_stuck(offer().await));
    assert_eq!(TIMES_ENTERED.load(Ordering::SeqCst), 1);

    LETS_GO.store(true, Ordering::SeqCst);
    let mut answer = offer().await;
    while was_stuck(answer.clone()) {
        answer = offer().await;
    }
    done(answer);
    assert_eq!(TIMES_ENTERED.load(Ordering::SeqCst), 2);
}

static MAY_GO_ON: AtomicBool = AtomicBool::new(false);

/// Does not come back from its first poll until a test lets it.
#[activity]
async fn hog(_: &ActivityCtx) -> onward::Result<()> {
    while !MAY_GO_ON.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_activity_that_blocks_its_first_poll_holds_nothing_else_up() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).activities::<(hog,)>().spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    let (hog, greet) = (token(run_id(1, 5), 1, 1), token(run_id(1, 5), 2, 1));
    session.send([
        ServerKind::ActivityTask(activity_task(hog.clone(), "hog", &[])),
        ServerKind::ActivityTask(activity_task(greet.clone(), "greet", &["\"Ada\""])),
    ]);
    assert_eq!(completed(session.next_news().await).0, greet);
    MAY_GO_ON.store(true, Ordering::SeqCst);
    assert_eq!(completed(session.next_news().await).0, hog);
}

#[tokio::test]
async fn what_was_done_before_a_poll_that_never_ends_is_answered() {
    let (mut fake, gate) = (Fake::start(), Gate::default());
    let _worker = builder(&fake, &gate).workflow_threads(1).spawn().await.unwrap();
    let mut session = fake.session().await;
    session.welcome().await;
    session.send([
        ServerKind::WorkflowTask(first_task(run_id(1, 5), 1, "order", &["\"lamp\""])),
        ServerKind::WorkflowTask(first_task(run_id(2, 5), 2, "block", &[])),
    ]);
    tokio::time::pause();
    assert_eq!(done(session.next_news().await).task_id.unwrap(), task_id(1));
    let WorkerKind::TaskFailed(failed) = session.next_news().await else { panic!() };
    assert_eq!((failed.task_id.unwrap(), failed.cause()), (task_id(2), Cause::Stuck));
}

#[tokio::test]
async fn what_workflow_code_logs_names_its_run() {
    let lines = Lines::default();
    let _logging = lines.are_logged();

    let (mut fake, gate) = (Fake::start(), Gate::default());
    let run = run_id(1, 5);
    // Simulated, so that the code runs on the thread that has the subscriber.
    let logs = async {
        let worker = builder(&fake, &gate).workflows::<(whisper,)>().env(Env::simulated(7));
        let _worker = worker.spawn().await.unwrap();
        let mut session = fake.session().await;
        session.welcome().await;
        session.send([ServerKind::WorkflowTask(first_task(run, 1, "whisper", &[]))]);
        done(session.next_news().await);
    };
    tokio::task::LocalSet::new().run_until(logs).await;
    let line = format!("workflow{{name=whisper workflow_id=order-1 run_id={run}}}");
    assert_eq!(lines.count(&line), 1);
}
