//! Renews the leases of idle shards, all in one statement a second.
//!
//! A lane with traffic renews inside one of its own batches and is left out.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    shard::{
        LEASE, Node,
        message::{LeaseNews, Mail},
    },
    store::{ShardId, Verdict},
};

/// How often.
const RENEW: Duration = Duration::from_secs(1);
/// A lease that was renewed more lately is left alone.
const FRESH: Duration = Duration::from_millis(900);

/// Renews until it is told to stop.
pub(crate) async fn renew_leases(node: Arc<Node>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            () = node.env.sleep(RENEW) => {}
        }
        let boot = node.env.boot();
        let leases: BTreeMap<ShardId, _> = node.leases().clone();
        let renewals: Vec<_> =
            leases.values().filter_map(|(lease, _)| lease.to_renew(boot, FRESH)).collect();
        if renewals.is_empty() {
            continue;
        }
        let sent = node.env.boot();
        let result = node.store.renew(renewals.clone(), LEASE.as_micros() as i64).await;
        let renewed = match result {
            Ok(renewed) => renewed,
            Err(error) => {
                tracing::warn!(%error, "leases could not be renewed");
                continue;
            }
        };
        node.sync_clock(renewed.now, sent);
        let heard = node.env.boot();
        for (shard, verdict) in renewed.verdicts {
            let Some((lease, mail)) = leases.get(&shard) else { continue };
            let Some(renewal) = renewals.iter().find(|renewal| renewal.shard_id == shard) else {
                continue;
            };
            let news = match verdict {
                Verdict::Kept => {
                    lease.renewed(sent, heard);
                    LeaseNews::Renewed
                }
                Verdict::Fenced | Verdict::Rewound if lease.is_at(renewal) => LeaseNews::Lost,
                Verdict::Fenced | Verdict::Rewound => continue,
            };
            // A lane that has ended, or has a full mailbox, learns it from its next batch.
            drop(mail.try_put(Mail::Lease(news)));
        }
    }
}
