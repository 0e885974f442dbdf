//! What befalls a world, one trouble after the other, until it is left in peace.

use std::{rc::Rc, sync::atomic::Ordering, time::Duration};

use onward_checker::log::{Snapshot, Window};
use onward_proto::{DEFAULT_NAMESPACE, v1::WorkflowStatus};
use onward_server::store::{ListRuns, Store as _};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    diary::chance, evidence, net::Link, notebook::Happening, story::Trouble, weather::Weather,
    world::World,
};

/// Lets the story's troubles happen for as long as it lasts, then mends everything.
pub(crate) async fn befall(world: &Rc<World>) {
    let mut rng = chance(world.story.seed, "fate");
    // What is lost in the last of all troubles no later one brings back.
    let (power, workers) = (Some(Trouble::PowerCut), Some(Trouble::CutWorker));
    let last = [None, power, power, workers][rng.usize(0..4)];
    let last = last.filter(|trouble| world.story.has(*trouble));
    let lasts = world.story.lasts;
    let lasts = if last.is_some() { lasts.mul_f64(0.1 + 0.5 * rng.f64()) } else { lasts };
    let end = Instant::now() + lasts;
    let troubles: Vec<_> = world.story.troubles.iter().copied().collect();
    let mut under_way = Vec::new();
    while Instant::now() < end {
        sleep(world.story.every.mul_f64(2.0 * rng.f64())).await;
        look(world).await;
        if !troubles.is_empty() {
            let trouble = troubles[rng.usize(0..troubles.len())];
            under_way.extend(befalls(world, trouble, &mut rng));
        }
    }
    for trouble in under_way {
        drop(trouble.await);
    }
    match last {
        Some(Trouble::PowerCut) => lose_power(world, &mut rng).await,
        Some(_) => lose_workers(world, &mut rng).await,
        None => {}
    }
    *world.stage.weather.lock().unwrap() = Weather::default();
    world.stage.note_health();
    world.database.set_read_only(false);
    world.stage.shaky_workers.lock().unwrap().clear();
    let places = world.stage.hosts.lock().unwrap().len();
    for place in 0..places {
        world.start_host(place);
    }
    for place in 0..world.story.workers {
        world.start_worker(place).await;
    }
}

/// What happens when somebody is at work happens within this time all the same.
const AT_WORK: Duration = Duration::from_secs(20);

/// Everything but the database is killed at once and begins again.
async fn lose_power(world: &World, rng: &mut fastrand::Rng) {
    let (dark, unreadable) = (Duration::from_millis(rng.u64(1..3_000)), rng.u8(0..8) > 0);
    at_work(world, rng, false).await;
    world.diary.write(format_args!("the power fails for {dark:?}"));
    world.diary.reached("PowerCut");
    world.diary.disturbed();
    for place in 0..world.story.hosts {
        let host = world.stage.hosts.lock().unwrap()[place].take();
        if let Some(host) = host {
            host.kill();
        }
        world.stage.cut_off(place);
    }
    world.stage.note_health();
    for hand in world.hands.borrow_mut().iter_mut() {
        drop(hand.take());
    }
    world.stage.weather.lock().unwrap().unreadable = unreadable;
    sleep(dark).await;
    for place in 0..world.story.hosts {
        world.start_host(place);
    }
    for place in 0..world.story.workers {
        world.start_worker(place).await;
    }
    // Until the shards have been taken again, and some time longer.
    sleep(Duration::from_millis(rng.u64(6_000..10_000))).await;
    world.stage.weather.lock().unwrap().unreadable = false;
    world.diary.disturbed();
}

/// A worker that is at work reaches no server for a while, or none does.
async fn cut_workers(world: &World, rng: &mut fastrand::Rng) {
    let workers = world.story.workers;
    let places = if rng.u8(0..4) == 0 {
        0..workers
    } else {
        let worker = at_work(world, rng, false).await;
        let place = worker.unwrap_or_else(|| rng.usize(0..workers));
        place..place + 1
    };
    // Half of them just longer than what is out waits for its worker.
    let lasts = if rng.bool() { 10_000..15_000 } else { 1..30_000 };
    let lasts = Duration::from_millis(rng.u64(lasts));
    world.diary.write(format_args!("workers {places:?} reach nobody for {lasts:?}"));
    world.diary.reached("CutWorker");
    world.diary.disturbed();
    places.clone().for_each(|place| world.stage.cut_worker(place, true));
    sleep(lasts).await;
    places.for_each(|place| world.stage.cut_worker(place, false));
    world.diary.disturbed();
}

/// No worker reaches a server for some time. What waits for them then is handed out when they come
/// back, and not to all of them for long.
async fn lose_workers(world: &World, rng: &mut fastrand::Rng) {
    let places = 0..world.story.workers;
    at_work(world, rng, false).await;
    world.diary.write("no worker reaches a server");
    world.diary.disturbed();
    places.clone().for_each(|place| world.stage.cut_worker(place, true));
    sleep(Duration::from_millis(rng.u64(1_000..15_000))).await;
    places.for_each(|place| world.stage.cut_worker(place, false));
    sleep(Duration::from_secs(10)).await;
    world.diary.disturbed();
}

/// Waits until an activity, or a local one, begins on a worker, and a moment longer. Tells on which.
async fn at_work(world: &World, rng: &mut fastrand::Rng, local: bool) -> Option<usize> {
    let mut happens = world.notes.listen();
    let begins = async {
        loop {
            // Of those that were missed none is waited for.
            if let Ok(Happening { worker: Some(worker), local: is_local, .. }) =
                happens.recv().await
                && (is_local || !local)
            {
                return worker;
            }
        }
    };
    let worker = timeout(AT_WORK, begins).await.ok();
    sleep(Duration::from_micros(rng.u64(1..30_000))).await;
    worker
}

/// The connection of a worker breaks when an activity has begun there.
async fn break_worker(world: &World, rng: &mut fastrand::Rng) {
    let local = rng.u8(0..3) > 0;
    let Some(worker) = at_work(world, rng, local).await else { return };
    if local {
        // A task that is open for long is given to another worker, who is shown more.
        sleep(Duration::from_millis(rng.u64(1..2_000))).await;
    }
    world.diary.write(format_args!("the connections of worker {worker} break"));
    world.diary.disturbed();
    let links = world.stage.links.lock().unwrap();
    links.iter().filter(|link| link.way.worker == Some(worker)).for_each(Link::cut);
}

/// Takes down which runs are open.
async fn look(world: &World) {
    let list = ListRuns {
        namespace_id: DEFAULT_NAMESPACE,
        status: Some(WorkflowStatus::Running),
        before: None,
        limit: 10_000,
    };
    if let Ok(runs) = world.database.connect().list_runs(list).await {
        let open = runs.into_iter().map(|run| (run.workflow_id, run.run_id.uuid())).collect();
        world.snapshots.borrow_mut().push(Snapshot { at_us: world.diary.now_us(), open });
    }
}

/// One trouble begins. What has to end later is done by the task that is given back.
fn befalls(world: &Rc<World>, trouble: Trouble, rng: &mut fastrand::Rng) -> Option<JoinHandle<()>> {
    let diary = &world.diary;
    let millis = |rng: &mut fastrand::Rng, most| Duration::from_millis(rng.u64(1..most));
    let own = Rc::clone(world);
    match trouble {
        // Those of single calls happen by themselves.
        Trouble::Refuse
        | Trouble::LoseRequest
        | Trouble::LoseReply
        | Trouble::Ghost
        | Trouble::Steal => return None,
        Trouble::SlowStore => {
            let (slow, lasts) = (millis(rng, 3_000), millis(rng, 20_000));
            diary.write(format_args!("the database takes up to {slow:?} for {lasts:?}"));
            own.stage.weather.lock().unwrap().slow = slow;
            diary.reached(format!("{trouble:?}"));
            return Some(tokio::task::spawn_local(async move {
                sleep(lasts).await;
                own.stage.weather.lock().unwrap().slow = Duration::ZERO;
            }));
        }
        Trouble::Outage => {
            let lasts = millis(rng, 15_000);
            diary.write(format_args!("the database is away for {lasts:?}"));
            own.stage.weather.lock().unwrap().outage = true;
            diary.reached(format!("{trouble:?}"));
            diary.disturbed();
            return Some(tokio::task::spawn_local(async move {
                sleep(lasts).await;
                own.stage.weather.lock().unwrap().outage = false;
                own.diary.disturbed();
            }));
        }
        Trouble::Unreadable => {
            let lasts = millis(rng, 10_000);
            diary.write(format_args!("the database answers no reads for {lasts:?}"));
            own.stage.weather.lock().unwrap().unreadable = true;
            diary.reached(format!("{trouble:?}"));
            diary.disturbed();
            return Some(tokio::task::spawn_local(async move {
                sleep(lasts).await;
                own.stage.weather.lock().unwrap().unreadable = false;
                own.diary.disturbed();
            }));
        }
        Trouble::CutHost => {
            if world.story.hosts < 2 {
                return None;
            }
            // Long enough for another to take over, or not quite.
            let lasts = Duration::from_millis(rng.u64(2_000..20_000));
            return Some(tokio::task::spawn_local(async move { own.cut_host(lasts).await }));
        }
        Trouble::PowerCut => {
            let mut rng = rng.fork();
            return Some(tokio::task::spawn_local(async move { lose_power(&own, &mut rng).await }));
        }
        Trouble::CutWorker => {
            let mut rng = rng.fork();
            return Some(tokio::task::spawn_local(async move {
                cut_workers(&own, &mut rng).await;
            }));
        }
        Trouble::ReadOnly => {
            let lasts = millis(rng, 10_000);
            diary.write(format_args!("the database is read-only for {lasts:?}"));
            own.database.set_read_only(true);
            diary.is_unwell(lasts);
            diary.reached(format!("{trouble:?}"));
            diary.disturbed();
            return Some(tokio::task::spawn_local(async move {
                sleep(lasts).await;
                own.database.set_read_only(false);
                own.diary.disturbed();
            }));
        }
        Trouble::CrashHost => {
            let place = rng.usize(0..world.story.hosts);
            let lasts = millis(rng, 10_000);
            let host = own.stage.hosts.lock().unwrap()[place].take()?;
            diary.write(format_args!("host {place} is killed"));
            diary.reached(format!("{trouble:?}"));
            diary.disturbed();
            host.kill();
            own.stage.cut_off(place);
            own.stage.note_health();
            return Some(tokio::task::spawn_local(async move {
                sleep(lasts).await;
                own.start_host(place);
                own.diary.disturbed();
            }));
        }
        Trouble::FreezeHost => {
            let place = rng.usize(0..world.story.hosts);
            let lasts = millis(rng, 10_000);
            let mut hosts = own.stage.hosts.lock().unwrap();
            let host = hosts[place].as_mut().filter(|host| !host.frozen)?;
            diary.write(format_args!("host {place} stands still for {lasts:?}"));
            diary.reached(format!("{trouble:?}"));
            diary.disturbed();
            host.freeze();
            drop(hosts);
            own.stage.note_health();
            diary.is_held(lasts);
            return Some(tokio::task::spawn_local(async move {
                sleep(lasts).await;
                // It may have been killed, and be another one by now.
                if let Some(host) = &mut own.stage.hosts.lock().unwrap()[place] {
                    host.thaw();
                }
                own.stage.note_health();
                own.diary.disturbed();
            }));
        }
        Trouble::CrashWorker => {
            let place = rng.usize(0..world.story.workers);
            let lasts = millis(rng, 5_000);
            let hand = own.hands.borrow_mut()[place].take()?;
            diary.write(format_args!("worker {place} is killed"));
            diary.reached(format!("{trouble:?}"));
            diary.disturbed();
            drop(hand);
            return Some(tokio::task::spawn_local(async move {
                sleep(lasts).await;
                own.start_worker(place).await;
            }));
        }
        Trouble::BreakLink => {
            let links = own.stage.links.lock().unwrap();
            let open: Vec<_> = links.iter().filter(|link| link.is_open()).collect();
            if !open.is_empty() {
                diary.reached(format!("{trouble:?}"));
                let link = open[rng.usize(0..open.len())].clone();
                match rng.u8(0..4) {
                    0 => link.cut_behind(rng.u32(1..4)),
                    1 => {
                        diary.write("a connection breaks");
                        diary.disturbed();
                        link.cut();
                    }
                    _ => {
                        // That of somebody who is at work.
                        drop(links);
                        let mut rng = rng.fork();
                        return Some(tokio::task::spawn_local(async move {
                            break_worker(&own, &mut rng).await;
                        }));
                    }
                }
            }
        }
        Trouble::StallLink => {
            let links = own.stage.links.lock().unwrap();
            let open: Vec<_> = links.iter().filter(|link| link.is_open()).collect();
            if open.is_empty() {
                return None;
            }
            let link = open[rng.usize(0..open.len())].clone();
            let (there, back) = [(true, true), (true, false), (false, true)][rng.usize(0..3)];
            let lasts = millis(rng, 30_000);
            diary.write(format_args!("a connection stalls ({there}, {back}) for {lasts:?}"));
            diary.reached(format!("{trouble:?}"));
            diary.disturbed();
            link.stall(there, back);
            diary.is_held(lasts);
            drop(links);
            return Some(tokio::task::spawn_local(async move {
                sleep(lasts).await;
                link.stall(false, false);
                own.diary.disturbed();
            }));
        }
        Trouble::StepClock => {
            let step = rng.i64(-20_000_000..20_000_000);
            diary.write(format_args!("the database's clock steps by {step} µs"));
            diary.reached(format!("{trouble:?}"));
            diary.disturbed();
            own.clock_offset.fetch_add(step, Ordering::Relaxed);
        }
        Trouble::Rewind => {
            let count = rng.usize(1..10);
            let to_us = diary.now_us();
            if let Some(oldest) = own.database.rewind(count) {
                let since = own.database.now().as_micros() - oldest.as_micros();
                let from_us = to_us.saturating_sub(since.unsigned_abs());
                diary.write(format_args!("the database loses {count} commits, {since} µs"));
                diary.reached(format!("{trouble:?}"));
                diary.disturbed();
                // Until a server has noticed, it may tell what it still believes.
                let noticed = Duration::from_mins(1).as_micros() as u64;
                own.lost.borrow_mut().push(Window { from_us, to_us: to_us + noticed });
                own.left.borrow_mut().extend(evidence::newest_batches(&own.database));
            }
        }
    }
    None
}
