//! The database's clock, as a node knows it between two replies.

use std::time::Duration;

use onward_proto::Timestamp;

/// What is known of the database's clock: the earliest that it can show now, and the latest.
///
/// A reply carries the database's time. True time at the receipt is that time at least, and that
/// time plus the round trip at most; from then on the node's own clock counts.
#[derive(Debug, Clone, Copy)]
pub struct DatabaseClock {
    database: Timestamp,
    received: Duration,
    error: Duration,
    floor: Timestamp,
}

/// How much the age of a sync may add to the error: own clocks drift, so an older sync says less.
const DRIFT_PER_MILLION: u32 = 200;

impl DatabaseClock {
    /// The clock after its first sync.
    pub fn new(database: Timestamp, sent: Duration, received: Duration) -> Self {
        let error = received.saturating_sub(sent);
        Self { database, received, error, floor: database }
    }

    /// Takes a newer reply in.
    pub fn sync(&mut self, database: Timestamp, sent: Duration, received: Duration) {
        self.floor = self.earliest(received);
        self.database = database;
        self.received = received;
        self.error = received.saturating_sub(sent);
    }

    /// True time is this or later. It never runs back.
    pub fn earliest(&self, boot: Duration) -> Timestamp {
        let age = boot.saturating_sub(self.received);
        (self.database + age.saturating_sub(drift(age))).max(self.floor)
    }

    /// True time is this or earlier. A better reply may take it back by the error that is gone; a
    /// run keeps its own records in order.
    pub fn latest(&self, boot: Duration) -> Timestamp {
        let age = boot.saturating_sub(self.received);
        (self.database + age + self.error + drift(age)).max(self.floor)
    }
}

fn drift(age: Duration) -> Duration {
    age * DRIFT_PER_MILLION / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_micros(ms * 1_000)
    }

    #[test]
    fn a_reply_tells_the_time_but_for_its_round_trip() {
        let clock = DatabaseClock::new(at(1_000), ms(10), ms(14));
        assert_eq!(clock.earliest(ms(14)), at(1_000));
        assert_eq!(clock.latest(ms(14)), at(1_004));
    }

    #[test]
    fn an_older_sync_says_less_because_own_clocks_drift() {
        let clock = DatabaseClock::new(at(1_000), ms(10), ms(14));
        // A second later: 0.2 ms to either side, and the round trip.
        assert_eq!(clock.earliest(ms(1_014)), Timestamp::from_micros(1_999_800));
        assert_eq!(clock.latest(ms(1_014)), Timestamp::from_micros(2_004_200));
    }

    #[test]
    fn it_never_runs_back() {
        let mut clock = DatabaseClock::new(at(1_000), ms(0), ms(0));
        let before = clock.earliest(ms(500));
        clock.sync(at(1_100), ms(500), ms(500));
        assert!(clock.earliest(ms(500)) >= before);
    }
}
