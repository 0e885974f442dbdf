//! Nobody's shards stay nobody's.

use crate::{
    judge::{Judge, Rule},
    log::{Lack, Log, Well},
};

pub(super) const TAKEOVER: Rule = Rule {
    name: "O3",
    says: "when an owner is gone, another one has its shards within the lease and 5 s",
    check: takeover,
};

/// How long a lease lasts that nobody renews.
const LEASE_US: u64 = 3_000_000;
/// How long it may take then.
const GRACE_US: u64 = 5_000_000;

fn takeover(log: &Log, judge: &mut Judge) {
    if log.lacks.contains(&Lack::Owners) {
        return judge.skip();
    }
    for gone in &log.well {
        let Some(gone_us) = gone.to_us else { continue };
        let Some(by_us) = soonest(log, gone, gone_us) else { continue };
        for shard in shards_of(log, gone, gone_us) {
            let taken = log.owners.iter().any(|owner| {
                owner.shard == shard
                    && (gone_us..=by_us).contains(&owner.at_us)
                    && owner.node.is_some_and(|node| node != gone.node)
            });
            judge.must(taken, || {
                format!("shard {shard} was left at {gone_us}, and nobody had it by {by_us}")
            });
        }
    }
}

/// By when the shards of who is gone must be another's: the database has been well for as long, so
/// has a server that could take them, and who is gone has not come back. `None` if that never was.
fn soonest(log: &Log, gone: &Well, gone_us: u64) -> Option<u64> {
    let others = log.well.iter().filter(|other| other.node != gone.node);
    let by = others.filter_map(|other| {
        let by_us = other.from_us.max(gone_us) + LEASE_US + GRACE_US;
        other.to_us.is_none_or(|to_us| to_us >= by_us).then_some(by_us)
    });
    let by_us = by.min()?;
    let is_back = |one: &Well| one.node == gone.node && (gone_us..=by_us).contains(&one.from_us);
    let is_unwell = log.unwell.iter().any(|bad| bad.from_us <= by_us && gone_us <= bad.to_us);
    let is_known = by_us <= log.ended_us;
    (is_known && !is_unwell && !log.well.iter().any(is_back)).then_some(by_us)
}

/// The shards that it owned when it went.
fn shards_of(log: &Log, gone: &Well, gone_us: u64) -> Vec<i32> {
    let mut owned = std::collections::BTreeMap::new();
    for owner in log.owners.iter().filter(|owner| owner.at_us <= gone_us) {
        owned.insert(owner.shard, owner.node);
    }
    owned.into_iter().filter(|(_, node)| *node == Some(gone.node)).map(|(shard, _)| shard).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        fixture::{broken, good},
        judge::Report,
        log::Window,
        rules::RULES,
    };

    const SECOND: u64 = 1_000_000;

    fn report(change: impl FnOnce(&mut Log)) -> Report {
        let mut log = good();
        change(&mut log);
        let rules: Vec<_> = RULES.iter().filter(|rule| rule.name == "O3").copied().collect();
        Report::of(&log, &rules)
    }

    /// Nobody takes the shard, and nobody has to.
    fn excused(change: impl FnOnce(&mut Log)) {
        let report = report(|log| {
            log.owners.truncate(1);
            change(log);
        });
        assert_eq!(report.violations(), []);
        assert_eq!(report.looked()["O3"], 0);
    }

    #[test]
    fn a_shard_that_nobody_takes_over_is_found() {
        broken("O3", |log| log.owners.truncate(1));
        broken("O3", |log| log.owners[1].at_us = 11 * SECOND);
        broken("O3", |log| log.owners[1].node = None);
        broken("O3", |log| log.owners[1].node = log.owners[0].node);
        // Who was not there yet has as long from when it was.
        broken("O3", |log| {
            log.well[1].from_us = 4 * SECOND;
            log.owners[1].at_us = 13 * SECOND;
        });
        assert_eq!(report(|_| {}).looked()["O3"], 1);
    }

    #[test]
    fn nobody_has_to_take_what_nobody_could() {
        excused(|log| log.well.truncate(1));
        excused(|log| log.well[1].to_us = Some(9 * SECOND));
        excused(|log| log.unwell.push(Window { from_us: 6 * SECOND, to_us: 6 * SECOND }));
        excused(|log| log.ended_us = 9 * SECOND);
        excused(|log| {
            let node = log.well[0].node;
            log.well.push(Well { node, from_us: 5 * SECOND, to_us: None });
        });
        excused(|log| log.owners[0].node = Some(Uuid::from_u128(77)));
    }
}
