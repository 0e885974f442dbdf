//! Signs of life.
//!
//! A heartbeat renews a lease in memory. What it says to the next attempt is written now and then,
//! and at the latest when the attempt ends.

use onward_proto::{
    Timestamp,
    v1::{Payload, PendingActivity},
};
use prost::Message as _;

use super::super::{Decision, LeaseChange, Limits, Rejection, Run, Token, run::detached};

/// Details of heartbeats are not written more often than this.
const DETAILS_INTERVAL_US: i64 = 2_000_000;

impl Run {
    pub(in crate::engine) fn decide_heartbeat(
        &self,
        now: Timestamp,
        token: Token,
        details: Option<&Payload>,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let activity = self.counting(token)?;
        let number = token.number;
        // Larger details are not kept; the sign of life counts all the same.
        let fits =
            |details: &&Payload| details.encoded_len() as u64 <= limits.heartbeat_details_bytes;
        let details = details.filter(fits).map(detached);
        let mut decision = Decision::default();
        let news = details.as_ref().or(activity.unsaved_details.as_ref());
        if let Some(news) = news
            && activity.saved_at.plus_micros(DETAILS_INTERVAL_US) <= now
        {
            let row =
                PendingActivity { heartbeat_details: Some(news.clone()), ..activity.current_row() };
            decision.pending.push((number, Some(row)));
        }
        decision.leases.push(LeaseChange::Heartbeat { number, at: now, details });
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::super::fixture::*;

    #[test]
    fn heartbeats_keep_an_attempt_alive() {
        let story = limited("heartbeat", secs(3), 1).dispatched(1).after(secs(2));
        let story = story.heartbeat(1, None).passes(secs(2)).then_inbox("");
        story.passes(secs(1)).then_inbox("timed-out1#1:Heartbeat");
    }

    #[test]
    fn details_go_to_the_next_attempt_and_are_written_now_and_then() {
        let story = history().task([call(1)]).dispatched(1);
        let story = story.heartbeat(1, Some("one")).then_pending(1, Some(0)).after(secs(1));
        let saved = |story: &Story| story.pending[&1].heartbeat_details.clone().unwrap();
        let story = story.heartbeat(1, Some("two"));
        assert_eq!(saved(&story), payload("one"), "not that often");
        let story = story.after(secs(1)).heartbeat(1, None);
        assert_eq!(saved(&story), payload("two"));
        let story = story.heartbeat(1, Some("three")).broke(1, "Flaky");
        assert_eq!(saved(&story), payload("three"));
        let story = story.passes(secs(1)).dispatched(1);
        let task = story.run.activity_task(story.tokens[&1]).unwrap();
        assert_eq!(task.heartbeat_details, Some(payload("three")));
        // What is too large is not kept, the sign of life counts.
        let story = story.after(secs(9)).heartbeat(1, Some(&"x".repeat(70_000)));
        assert!(story.last.is_ok());
        assert_eq!(saved(&story), payload("three"));
    }
}
