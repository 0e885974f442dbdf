//! What connections lead to: the servers, and what lies between.

use std::{collections::BTreeSet, io, sync::Mutex, time::Duration};

use tokio::{io::DuplexStream, time::sleep};

use crate::{
    diary::Diary,
    host::Host,
    net::{Link, Way},
    story::{Story, Trouble},
    weather::Weather,
};

/// Packets until a worker has said that it is there, and for how much it has room.
const UNTIL_READY: u32 = 4;

/// Who connects.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Caller {
    /// Somebody who asks whichever server serves.
    Anybody,
    /// Somebody who stays with a server, by its place among the hosts.
    Guest { host: usize },
    /// A worker, by its place among the workers.
    Worker { host: usize, place: usize },
}

/// What connections lead to.
pub(crate) struct Stage {
    pub(crate) story: Story,
    pub(crate) diary: Diary,
    pub(crate) hosts: Mutex<Vec<Option<Host>>>,
    pub(crate) links: Mutex<Vec<Link>>,
    pub(crate) weather: Mutex<Weather>,
    /// Workers who reach no server, by their places.
    pub(crate) cut_workers: Mutex<BTreeSet<usize>>,
    /// Workers who have just come back: what they are connected by breaks at once.
    pub(crate) shaky_workers: Mutex<BTreeSet<usize>>,
    pub(crate) rng: Mutex<fastrand::Rng>,
}

impl Stage {
    /// Connects somebody to a server.
    pub(crate) fn connect(&self, caller: Caller) -> io::Result<DuplexStream> {
        let hosts = self.hosts.lock().unwrap();
        let mut rng = self.rng.lock().unwrap();
        let (place, worker) = match caller {
            Caller::Guest { host } => (host, None),
            Caller::Worker { host, place } => (host, Some(place)),
            Caller::Anybody => {
                let ready = hosts.iter().position(|host| host.as_ref().is_some_and(Host::is_ready));
                match ready {
                    Some(place) if rng.u8(0..5) > 0 => (place, None),
                    _ => (rng.usize(0..hosts.len()), None),
                }
            }
        };
        let is_cut = worker.is_some_and(|place| self.cut_workers.lock().unwrap().contains(&place));
        let (Some(host), false) = (&hosts[place], is_cut) else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let way = Way { host: place, worker };
        let (link, client, server) = Link::lay(way, self.story.delay, &self.diary, &mut rng);
        host.accept(server)?;
        self.diary.write(format_args!("a connection to host {place}"));
        if let Some(worker) = worker
            && self.is_shaky(worker, &mut rng)
        {
            // Most often just when the worker is about to get what has waited for it.
            link.cut_behind(if rng.bool() { UNTIL_READY } else { rng.u32(1..8) });
        }
        if matches!(caller, Caller::Anybody) && hosts.len() > 1 {
            // Whoever is with a server that does not own a shard must come to the other one.
            let (link, lasts) = (link.clone(), Duration::from_millis(rng.u64(2_000..30_000)));
            tokio::spawn(async move {
                sleep(lasts).await;
                link.cut();
            });
        }
        let mut links = self.links.lock().unwrap();
        links.retain(Link::is_open);
        links.push(link);
        Ok(client)
    }

    /// Takes down which servers run and reach the database, whenever that may have changed.
    pub(crate) fn note_health(&self) {
        let cut = self.weather.lock().unwrap().cut;
        let hosts = self.hosts.lock().unwrap();
        let is_well = |(place, host): (usize, &Option<Host>)| {
            let host = host.as_ref().filter(|host| !host.frozen)?;
            cut.is_none_or(|cut| cut.place != place).then(|| host.id())
        };
        let well: Vec<_> = hosts.iter().enumerate().filter_map(is_well).collect();
        self.diary.are_well(&well);
    }

    /// Breaks all connections to a host.
    pub(crate) fn cut_off(&self, host: usize) {
        for link in self.links.lock().unwrap().iter().filter(|link| link.way.host == host) {
            link.cut();
        }
    }

    fn is_shaky(&self, worker: usize, rng: &mut fastrand::Rng) -> bool {
        let mut shaky = self.shaky_workers.lock().unwrap();
        if shaky.contains(&worker) {
            if rng.u8(0..3) == 0 {
                shaky.remove(&worker);
            }
            return true;
        }
        let is_rough = self.weather.lock().unwrap().rough;
        is_rough && self.story.has(Trouble::BreakLink) && rng.u8(0..3) == 0
    }

    /// From now on a worker reaches no server, or does so again.
    pub(crate) fn cut_worker(&self, place: usize, is_cut: bool) {
        let mut cut = self.cut_workers.lock().unwrap();
        if is_cut {
            cut.insert(place);
            let links = self.links.lock().unwrap();
            links.iter().filter(|link| link.way.worker == Some(place)).for_each(Link::cut);
        } else {
            cut.remove(&place);
            self.shaky_workers.lock().unwrap().insert(place);
        }
    }
}
