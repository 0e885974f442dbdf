//! What runs on the hosts.

use std::{io, rc::Rc, sync::Arc, time::Duration};

use onward::{Client, Env as WorkerEnv, Worker};
use onward_checker::log::Ending;
use onward_programs::{Besides, Customer, Order, Pace, Tools, interpret, notes::Notebook, work};
use onward_server::{
    BuildInfo,
    engine::Limits,
    env::{Env, TokioBootClock},
    serve_connections,
    shard::{Node, NodeOptions},
    store::Store,
};
use onward_simulation::{chance, notebook::Pen};
use tokio::{sync::watch, task::JoinSet};

use crate::{database, tcp, world::World};

const QUEUE: &str = "programs";
/// How long a server that is asked to stop has for it.
const DRAIN: Duration = Duration::from_secs(10);
/// How long most clients ask again.
pub(crate) const PATIENCE: Duration = Duration::from_hours(10);
/// How long those do who contend: what came of a request they may never learn.
const IMPATIENCE: Duration = Duration::from_secs(3);
const MEBIBYTE: usize = 1 << 20;

pub(crate) fn server(place: usize) -> String {
    format!("server-{place}")
}

pub(crate) fn worker(place: usize) -> String {
    format!("worker-{place}")
}

pub(crate) fn office(place: usize) -> String {
    format!("office-{place}")
}

/// A server process, until it is asked to stop.
pub(crate) async fn serve(world: Rc<World>, place: usize) -> turmoil::Result {
    let birth = world.next_birth();
    world.diary.write(format_args!("{} starts as {birth}", server(place)));
    let seed = chance(world.story.seed, birth).u64(..);
    let way = &world.ways[place];
    let store = database::connect(&world.database, way, &world.diary, seed, server(place));
    let store: Arc<dyn Store> = Arc::new(store);
    let node = Node::new(NodeOptions {
        env: Env::seeded(Arc::new(TokioBootClock::start()), seed),
        store,
        limits: Limits::default(),
        cache_bytes: MEBIBYTE,
        waiting_bytes: MEBIBYTE,
        shards: world.story.shards,
    });
    let (stop, mut stopped) = watch::channel(false);
    world.roads.nodes.lock().unwrap()[place] = Some((Arc::clone(&node), stop));
    let incoming = tcp::listen(world.roads.sockets(&server(place)), world.diary.clone()).await?;
    let shutdown = async move { drop(stopped.wait_for(|stop| *stop).await) };
    serve_connections(node, BuildInfo::default(), incoming, shutdown, DRAIN).await?;
    world.diary.write(format_args!("{} has stopped", server(place)));
    Ok(())
}

/// A worker process.
pub(crate) async fn run_worker(world: Rc<World>, place: usize) -> turmoil::Result {
    let birth = world.next_birth();
    let name = format!("{}-{birth}", worker(place));
    world.diary.write(format_args!("{} starts as {birth}", worker(place)));
    let seed = chance(world.story.seed, &name).u64(..);
    let pen = Pen::new(&world.diary, &world.notes, Some(place));
    world.pens.borrow_mut()[place] = Some(Arc::clone(&pen));
    let pinned = Some(place % world.story.servers);
    let client = client(&world, &worker(place), &name, pinned, PATIENCE, seed);
    Worker::builder(client, QUEUE)
        .deps(Tools { notebook: pen as Arc<dyn Notebook>, worker: name })
        .workflows::<(interpret,)>()
        .activities::<(work,)>()
        .cached_workflows(world.story.cached_workflows)
        .env(WorkerEnv::simulated(seed))
        .run()
        .await?;
    Ok(())
}

/// A host with customers, until each of them has what it came for.
pub(crate) async fn live(world: Rc<World>, place: usize) -> turmoil::Result {
    let mut customers = JoinSet::new();
    let story = &world.story;
    let here = |n: usize| n % story.offices == place;
    for (n, program) in story.orders.iter().cloned().enumerate().filter(|(n, _)| here(*n)) {
        let order = Order { workflow_id: format!("order-{n}"), program };
        let customer = customer(&world, place, format!("customer-{n}"), PATIENCE);
        let rng = chance(story.seed, &order.workflow_id);
        customers.spawn_local(async move { customer.order(order, rng).await });
    }
    for n in (0..story.contenders).filter(|n| here(*n)) {
        let customer = customer(&world, place, format!("contender-{n}"), IMPATIENCE);
        let rng = chance(story.seed, format_args!("contends {n}"));
        customers.spawn_local(async move {
            customer.contend(&["shared-0".to_owned(), "shared-1".to_owned()], 10, rng).await;
        });
    }
    for n in (0..story.pests).filter(|n| here(*n)) {
        let workflow_id = format!("pest-{n}");
        let customer = customer(&world, place, workflow_id.clone(), PATIENCE);
        let (book, rng) = (world.book.clone(), chance(story.seed, &workflow_id));
        customers.spawn_local(async move {
            let wrong = customer.pester(&workflow_id, rng).await.err();
            book.ending(Ending { workflow_id, wrong });
        });
    }
    while let Some(left) = customers.join_next().await {
        left?;
    }
    Ok(())
}

fn customer(world: &World, place: usize, name: String, patience: Duration) -> Customer {
    let seed = chance(world.story.seed, &name).u64(..);
    Customer {
        client: client(world, &office(place), &name, None, patience, seed),
        name,
        queue: QUEUE.to_owned(),
        book: world.book.clone(),
        besides: Besides::default(),
        pace: Pace {
            start: world.story.lasts / 2,
            next: world.story.lasts / 8,
            again: world.story.lasts / 16,
            look: Duration::from_secs(2),
        },
    }
}

/// A client on a host, with one server or with whichever serves.
pub(crate) fn client(
    world: &World,
    host: &str,
    name: &str,
    pinned: Option<usize>,
    patience: Duration,
    seed: u64,
) -> Client {
    let (roads, host) = (Arc::clone(&world.roads), host.to_owned());
    Client::builder()
        .address(format!("http://onward:{}", tcp::PORT))
        .connector(move || {
            let (roads, host) = (Arc::clone(&roads), host.clone());
            async move {
                let (place, age) = roads.choose(pinned);
                let (sockets, diary) = (roads.sockets(&host), roads.diary.clone());
                let (wire, knife) = tcp::connect(sockets, diary, host, server(place), age).await?;
                roads.remember(knife);
                io::Result::Ok(wire)
            }
        })
        .identity(name)
        .retry_for(patience)
        .seed(seed)
        .build()
        .expect("the address is ours")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use onward_simulation::{Tale as _, notebook};
    use turmoil::Sim;

    use super::*;
    use crate::story::Story;

    /// A server with one worker, which are connected.
    fn pair() -> (Rc<World>, Sim<'static>) {
        let (troubles, orders) = (BTreeSet::new(), Vec::new());
        let (servers, workers) = (1, 1);
        let story =
            Story { troubles, orders, servers, workers, contenders: 0, pests: 0, ..Story::of(1) };
        let world = World::new(&story);
        let mut net = world.build();
        pass(&world, &mut net, 10);
        assert_eq!(connections(&world), (1, 1));
        (world, net)
    }

    fn pass(world: &World, net: &mut Sim<'static>, seconds: u64) {
        let end = net.elapsed() + Duration::from_secs(seconds);
        while net.elapsed() < end {
            world.step(net).unwrap();
        }
    }

    fn connections(world: &World) -> (usize, usize) {
        let count = |host: String| world.roads.sockets(&host).count();
        (count(server(0)), count(worker(0)))
    }

    /// Both ends ask for a sign of life; neither can count on being told.
    #[test]
    fn both_ends_let_go_of_a_connection_that_nothing_gets_through() {
        let (world, mut net) = pair();
        net.partition(server(0), worker(0));
        pass(&world, &mut net, 30);
        assert_eq!(connections(&world), (0, 0));
        net.repair(server(0), worker(0));
        pass(&world, &mut net, 10);
        assert_eq!(connections(&world), (1, 1));
        notebook::close();
    }

    #[test]
    fn a_server_lets_go_of_a_worker_that_it_cannot_hear() {
        let (world, mut net) = pair();
        net.partition_oneway(worker(0), server(0));
        pass(&world, &mut net, 30);
        assert_eq!(connections(&world).0, 0);
        notebook::close();
    }

    /// A lost segment is never sent again, so what comes behind it does not arrive.
    #[test]
    fn both_ends_let_go_of_a_connection_with_a_gap() {
        let (world, mut net) = pair();
        net.partition(server(0), worker(0));
        pass(&world, &mut net, 7);
        net.repair(server(0), worker(0));
        pass(&world, &mut net, 40);
        assert_eq!(connections(&world), (1, 1), "the old one is gone, a new one is there");
        notebook::close();
    }
}
