//! What the database does with a call.

use std::time::Duration;

use onward_server::store::{CallKind, Fault, Plan};

use crate::story::{Story, Trouble};

/// What the database does at this moment, to all who call it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Weather {
    /// Calls meet the story's faults.
    pub(crate) rough: bool,
    pub(crate) outage: bool,
    /// Reads fail, and writes do not.
    pub(crate) unreadable: bool,
    pub(crate) slow: Duration,
    /// One server has lost the database, and the others have not.
    pub(crate) cut: Option<Cut>,
}

/// What one server alone has lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    /// The server's place among the hosts.
    pub(crate) place: usize,
    /// Whether it can still read.
    pub(crate) reads: bool,
}

impl Weather {
    /// Whether such a call of a server comes to nothing.
    fn refuses(self, kind: CallKind, place: usize) -> bool {
        let is_cut = self.cut.is_some_and(|cut| {
            cut.place == place && !(cut.reads && matches!(kind, CallKind::Read))
        });
        self.outage || is_cut || self.unreadable && kind == CallKind::Read
    }
}

/// For how long a call keeps who watches the shards from taking one in time, if it does.
pub(crate) fn unwell(
    kind: CallKind,
    place: usize,
    weather: Weather,
    plan: Plan,
) -> Option<Duration> {
    match plan.fault {
        // Whoever sent it, it may renew a lease when it arrives: with the next write behind its time.
        Some(Fault::Ghost(late)) => {
            return Some(plan.before + late.unwrap_or_default() + 2 * AT_ONCE);
        }
        // The others reach the database.
        Some(_) if weather.cut.is_some_and(|cut| cut.place == place) => return None,
        Some(_) if matches!(kind, CallKind::Shards | CallKind::Take) => return Some(plan.before),
        _ => {}
    }
    let way = plan.before + plan.after;
    (kind.is_write() && way > AT_ONCE).then_some(way)
}

/// A call that takes longer does not go on at once. The steady ones of a story are quicker.
const AT_ONCE: Duration = Duration::from_secs(1);

pub(crate) fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::Refuse => "refused",
        Fault::LoseRequest => "request lost",
        Fault::LoseReply => "reply lost",
        Fault::Ghost(_) => "ghost",
        Fault::Steal => "stolen",
        Fault::Rewind(_) => "rewound",
    }
}

/// How one call of a server to the database goes.
pub(crate) fn plan(
    kind: CallKind,
    place: usize,
    weather: Weather,
    story: &Story,
    rng: &mut fastrand::Rng,
) -> Plan {
    if kind == CallKind::Prune {
        // The checker wants to see every batch.
        return Plan::fault(Fault::Refuse);
    }
    let way = |rng: &mut fastrand::Rng| {
        Duration::from_micros(rng.u64(50..4_000)) + (story.slow + weather.slow).mul_f64(rng.f64())
    };
    let mut plan = Plan { before: way(rng), after: way(rng), fault: None };
    if kind == CallKind::Read {
        plan.after += story.slow_reads.mul_f64(rng.f64());
    }
    if weather.refuses(kind, place) {
        plan.fault = Some(Fault::Refuse);
        return plan;
    }
    if !weather.rough {
        return plan;
    }
    let odds = match kind {
        CallKind::Commit | CallKind::Resolve | CallKind::Take | CallKind::Release => story.odds,
        CallKind::Read | CallKind::Shards => 4 * story.odds,
        CallKind::Renew | CallKind::Prune => 10 * story.odds,
    };
    if rng.u32(0..odds) == 0 {
        let (trouble, fault) = match rng.u8(0..5) {
            0 => (Trouble::Refuse, Fault::Refuse),
            1 => (Trouble::LoseRequest, Fault::LoseRequest),
            2 => (Trouble::LoseReply, Fault::LoseReply),
            3 => {
                let late = Duration::from_millis(rng.u64(1..20_000));
                (Trouble::Ghost, Fault::Ghost(Some(late)))
            }
            _ => (Trouble::Steal, Fault::Steal),
        };
        plan.fault = story.has(trouble).then_some(fault);
    }
    plan
}
