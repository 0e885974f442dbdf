//! What befalls a network, one trouble after the other, until it is left in peace.

use std::{collections::BTreeSet, time::Duration};

use futures_util::FutureExt as _;
use onward_checker::log::Snapshot;
use onward_proto::{DEFAULT_NAMESPACE, v1::WorkflowStatus};
use onward_server::store::{ListRuns, Store as _};
use onward_simulation::chance;
use turmoil::Sim;

use crate::{
    database::Way,
    hosts,
    story::{Story, Trouble},
    tcp::Knife,
    world::{TICK, World},
};

/// While something is wrong, what hangs on connections may break again after so long.
const UNREST: Duration = Duration::from_secs(5);
/// Longest way of a message on a slow network.
const SLOW: Duration = Duration::from_secs(3);

/// A server, and somebody who talks to it.
type Link = (String, String);

/// What happens at some later moment.
#[derive(Debug)]
enum Later {
    Hold(Link),
    Mend(Link),
    StartServer(usize),
    StartWorker(usize),
    Hasten,
    OpenWay(usize),
}

/// All that is to come.
pub(crate) struct Fate {
    rng: fastrand::Rng,
    troubles: Vec<Trouble>,
    every: Duration,
    next: Duration,
    end: Duration,
    later: Vec<(Duration, Later)>,
    /// Links that are in trouble.
    bad: BTreeSet<Link>,
    unrest: Duration,
}

impl Fate {
    pub(crate) fn new(story: &Story) -> Self {
        Self {
            rng: chance(story.seed, "fate"),
            troubles: story.troubles.iter().copied().collect(),
            every: story.every,
            next: TICK,
            end: story.lasts,
            later: Vec::new(),
            bad: BTreeSet::new(),
            unrest: Duration::ZERO,
        }
    }

    /// Whether all that was to come has.
    pub(crate) fn is_over(&self, net: &Sim<'_>) -> bool {
        net.elapsed() >= self.end && self.later.is_empty()
    }

    /// Lets happen what is due.
    pub(crate) fn befall(&mut self, net: &mut Sim<'_>, world: &World) {
        let now = net.elapsed();
        while let Some(at) = self.later.iter().position(|(at, _)| *at <= now) {
            let (_, later) = self.later.remove(at);
            self.happen(net, world, later);
        }
        if !self.later.is_empty() && now >= self.unrest {
            self.unrest = now + UNREST;
            world.diary.disturbed();
        }
        if now >= self.next && now < self.end {
            self.next = now + self.every.mul_f64(2.0 * self.rng.f64());
            look(world);
            if let Some(trouble) = self.pick() {
                self.begin(net, world, trouble);
            }
        }
    }

    /// Mends whatever is still broken.
    pub(crate) fn mend_all(&mut self, net: &mut Sim<'_>, world: &World) {
        for link in links(&world.story) {
            self.happen(net, world, Later::Mend(link));
        }
        self.happen(net, world, Later::Hasten);
        for place in 0..world.story.servers {
            self.happen(net, world, Later::OpenWay(place));
            if !net.is_host_running(hosts::server(place)) {
                self.happen(net, world, Later::StartServer(place));
            }
        }
        for place in 0..world.story.workers {
            if !net.is_host_running(hosts::worker(place)) {
                self.happen(net, world, Later::StartWorker(place));
            }
        }
    }

    fn pick(&mut self) -> Option<Trouble> {
        let among = self.troubles.len();
        (among > 0).then(|| self.troubles[self.rng.usize(0..among)])
    }

    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.rng.u64(1..most))
    }

    /// A link that is well so far, if there is one.
    fn any_link(&mut self, story: &Story) -> Option<Link> {
        let mut good = links(story);
        good.retain(|link| !self.bad.contains(link));
        (!good.is_empty()).then(|| good.swap_remove(self.rng.usize(0..good.len())))
    }

    /// A server, or a worker, that runs.
    fn any_running(
        &mut self,
        net: &mut Sim<'_>,
        count: usize,
        name: fn(usize) -> String,
    ) -> Option<usize> {
        let place = self.rng.usize(0..count);
        net.is_host_running(name(place)).then_some(place)
    }

    fn begin(&mut self, net: &mut Sim<'_>, world: &World, trouble: Trouble) {
        let now = net.elapsed();
        if let Some(what) = self.try_begin(net, world, trouble, now) {
            world.diary.write(format_args!("{trouble:?}: {what}"));
            world.diary.reached(format!("{trouble:?}"));
            world.diary.disturbed();
        }
    }

    /// A trouble begins, if there is something that it can befall. Gives what and for how long.
    fn try_begin(
        &mut self,
        net: &mut Sim<'_>,
        world: &World,
        trouble: Trouble,
        now: Duration,
    ) -> Option<String> {
        let story = &world.story;
        match trouble {
            Trouble::Partition
            | Trouble::DeafServer
            | Trouble::MuteServer
            | Trouble::Hold
            | Trouble::Loss => {
                let link = self.any_link(story)?;
                let lasts = self.millis(30_000);
                let (server, peer) = (link.0.as_str(), link.1.as_str());
                match trouble {
                    Trouble::DeafServer => net.partition_oneway(peer, server),
                    Trouble::MuteServer => net.partition_oneway(server, peer),
                    Trouble::Hold => net.hold(server, peer),
                    Trouble::Loss => {
                        let rate = [0.3, 0.05, 0.01][self.rng.usize(0..3)];
                        net.set_link_fail_rate(server, peer, rate);
                    }
                    _ => net.partition(server, peer),
                }
                self.bad.insert(link.clone());
                let what = format!("{link:?} for {lasts:?}");
                self.later.push((now + lasts, Later::Mend(link)));
                Some(what)
            }
            Trouble::Isolation => {
                let place = self.rng.usize(0..story.servers);
                let lasts = self.millis(20_000);
                for link in links_of(story, place) {
                    net.partition(link.0.as_str(), link.1.as_str());
                    self.bad.insert(link.clone());
                    self.later.push((now + lasts, Later::Mend(link)));
                }
                Some(format!("{} for {lasts:?}", hosts::server(place)))
            }
            Trouble::Clog => {
                let place = self.rng.usize(0..story.servers);
                for link in links_of(story, place) {
                    if self.bad.insert(link.clone()) {
                        let (from, until) = (self.millis(5_000), self.millis(10_000));
                        self.later.push((now + from, Later::Hold(link.clone())));
                        self.later.push((now + from + until, Later::Mend(link)));
                    }
                }
                Some(hosts::server(place))
            }
            Trouble::SlowNetwork => {
                let (slow, lasts) = (SLOW.mul_f64(self.rng.f64()), self.millis(15_000));
                net.set_max_message_latency(TICK + slow.max(story.delay));
                self.later.push((now + lasts, Later::Hasten));
                Some(format!("up to {slow:?} for {lasts:?}"))
            }
            Trouble::CutConnection => {
                let mut knives = world.roads.knives.lock().unwrap();
                knives.retain(Knife::is_open);
                if knives.is_empty() {
                    return None;
                }
                let at = self.rng.usize(0..knives.len());
                let knife = knives.swap_remove(at);
                let what = format!("from {} to {}", knife.from, knife.to);
                knife.cut();
                Some(what)
            }
            Trouble::CrashServer | Trouble::ServerPowerCut => {
                let place = self.any_running(net, story.servers, hosts::server)?;
                let lasts = self.millis(10_000);
                if trouble == Trouble::ServerPowerCut {
                    for link in links_of(story, place) {
                        net.partition(link.0.as_str(), link.1.as_str());
                        self.bad.insert(link);
                    }
                }
                world.roads.nodes.lock().unwrap()[place] = None;
                let server = hosts::server(place);
                world.roads.sockets(&server).die_in(|| net.crash(server.as_str()));
                self.later.push((now + lasts, Later::StartServer(place)));
                Some(format!("{} for {lasts:?}", hosts::server(place)))
            }
            Trouble::StopServer => {
                let place = self.any_running(net, story.servers, hosts::server)?;
                let nodes = world.roads.nodes.lock().unwrap();
                let (_, stop) = nodes[place].as_ref()?;
                // Somebody has asked it already.
                if stop.send_replace(true) {
                    return None;
                }
                let lasts = self.millis(20_000);
                self.later.push((now + lasts, Later::StartServer(place)));
                Some(format!("{}, another one in {lasts:?}", hosts::server(place)))
            }
            Trouble::CrashWorker | Trouble::WorkerPowerCut => {
                let place = self.any_running(net, story.workers, hosts::worker)?;
                let lasts = self.millis(5_000);
                if trouble == Trouble::WorkerPowerCut {
                    let link = (hosts::server(place % story.servers), hosts::worker(place));
                    net.partition(link.0.as_str(), link.1.as_str());
                    self.bad.insert(link);
                }
                if let Some(pen) = world.pens.borrow_mut()[place].take() {
                    pen.lay_down();
                }
                let worker = hosts::worker(place);
                world.roads.sockets(&worker).die_in(|| net.crash(worker.as_str()));
                self.later.push((now + lasts, Later::StartWorker(place)));
                Some(format!("{} for {lasts:?}", hosts::worker(place)))
            }
            Trouble::DatabaseAway | Trouble::DatabaseMute | Trouble::SlowDatabase => {
                let place = self.rng.usize(0..story.servers);
                let lasts = self.millis(15_000);
                let way = match trouble {
                    Trouble::DatabaseAway => Way::Away,
                    Trouble::DatabaseMute => Way::Mute,
                    _ => Way::Slow(self.millis(3_000)),
                };
                *world.ways[place].lock().unwrap() = way;
                self.later.push((now + lasts, Later::OpenWay(place)));
                Some(format!("{way:?} from {} for {lasts:?}", hosts::server(place)))
            }
        }
    }

    fn happen(&mut self, net: &mut Sim<'_>, world: &World, later: Later) {
        world.diary.write(format_args!("{later:?}"));
        world.diary.disturbed();
        let story = &world.story;
        match later {
            Later::Hold((server, peer)) => net.hold(server, peer),
            Later::Mend(link) => {
                net.set_link_fail_rate(link.0.as_str(), link.1.as_str(), 0.0);
                net.release(link.0.as_str(), link.1.as_str());
                self.bad.remove(&link);
            }
            Later::StartServer(place) => {
                for link in links_of(story, place) {
                    net.release(link.0.as_str(), link.1.as_str());
                    self.bad.remove(&link);
                }
                // One that was asked to stop may not have done so yet.
                let server = hosts::server(place);
                world.roads.sockets(&server).die_in(|| net.bounce(server.as_str()));
            }
            Later::StartWorker(place) => {
                let link = (hosts::server(place % story.servers), hosts::worker(place));
                net.release(link.0.as_str(), link.1.as_str());
                self.bad.remove(&link);
                net.bounce(hosts::worker(place));
            }
            Later::Hasten => net.set_max_message_latency(TICK + story.delay),
            Later::OpenWay(place) => *world.ways[place].lock().unwrap() = Way::Open,
        }
    }
}

/// Takes down which runs are open.
fn look(world: &World) {
    let list = ListRuns {
        namespace_id: DEFAULT_NAMESPACE,
        status: Some(WorkflowStatus::Running),
        before: None,
        limit: 10_000,
    };
    let store = world.database.connect();
    // Without faults a database in memory answers at once.
    let runs = store.list_runs(list).now_or_never().expect("it does not wait").unwrap_or_default();
    let open = runs.into_iter().map(|run| (run.workflow_id, run.run_id.uuid())).collect();
    world.snapshots.borrow_mut().push(Snapshot { at_us: world.diary.now_us(), open });
}

/// All links over which somebody talks.
fn links(story: &Story) -> Vec<Link> {
    (0..story.servers).flat_map(|place| links_of(story, place)).collect()
}

/// The links of a server.
fn links_of(story: &Story, place: usize) -> Vec<Link> {
    let workers = (0..story.workers).filter(|worker| worker % story.servers == place);
    let offices = (0..story.offices).map(hosts::office);
    let peers = workers.map(hosts::worker).chain(offices);
    peers.map(|peer| (hosts::server(place), peer)).collect()
}
