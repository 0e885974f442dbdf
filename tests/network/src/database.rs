//! The database, and the way of each server to it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use onward_server::store::{CallKind, Fault, MemoryStore, Plan};
use onward_simulation::{Diary, chance};

/// How long a server waits before it gives a reply up.
const PATIENCE_MS: u64 = 3_000;

/// The way of one server to the database.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    #[default]
    Open,
    /// Nothing gets there.
    Away,
    /// Nothing comes back.
    Mute,
    /// Calls take up to so long.
    Slow(Duration),
}

/// A connection to the database for a server process, on that way.
pub(crate) fn connect(
    database: &MemoryStore,
    way: &Arc<Mutex<Way>>,
    diary: &Diary,
    seed: u64,
    server: String,
) -> MemoryStore {
    let store = database.connect();
    let (way, diary) = (Arc::clone(way), diary.clone());
    let mut rng = chance(seed, "database");
    store.faults().set_planner(move |kind| {
        let way = *way.lock().unwrap();
        let plan = plan(kind, way, &mut rng);
        if way != Way::Open && kind.is_write() {
            diary.disturbed();
        }
        if let Some(fault) = plan.fault.filter(|_| kind == CallKind::Commit) {
            diary.reached(match fault {
                Fault::LoseReply => "commit reply lost",
                _ => "commit request lost",
            });
        }
        // What goes on all the time would hide the rest.
        if way != Way::Open || !matches!(kind, CallKind::Read | CallKind::Renew | CallKind::Prune) {
            diary.write(format_args!("{server}: {kind:?} {plan:?}"));
        }
        plan
    });
    store
}

/// How one call goes.
fn plan(kind: CallKind, way: Way, rng: &mut fastrand::Rng) -> Plan {
    if kind == CallKind::Prune {
        // The checker wants to see every batch.
        return Plan::fault(Fault::Refuse);
    }
    let slow = match way {
        Way::Slow(slow) => slow,
        Way::Open | Way::Away | Way::Mute => Duration::ZERO,
    };
    let mut leg = || Duration::from_micros(rng.u64(50..4_000)) + slow.mul_f64(rng.f64());
    let mut plan = Plan { before: leg(), after: leg(), fault: None };
    let lost = match way {
        Way::Open | Way::Slow(_) => return plan,
        Way::Away => Fault::LoseRequest,
        Way::Mute => Fault::LoseReply,
    };
    plan.fault = Some(lost);
    plan.after = Duration::from_millis(rng.u64(0..PATIENCE_MS));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_arrive_is_lost_and_what_does_not_come_back_is_done() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut fault = |kind, way| plan(kind, way, &mut rng).fault;
        assert_eq!(fault(CallKind::Commit, Way::Open), None);
        assert_eq!(fault(CallKind::Commit, Way::Away), Some(Fault::LoseRequest));
        assert_eq!(fault(CallKind::Commit, Way::Mute), Some(Fault::LoseReply));
        assert_eq!(fault(CallKind::Commit, Way::Slow(Duration::from_secs(1))), None);
        assert_eq!(fault(CallKind::Prune, Way::Open), Some(Fault::Refuse));
    }
}
