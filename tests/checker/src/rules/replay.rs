//! The same history gives the same commands.

use crate::{
    judge::{Judge, Rule},
    log::Log,
};

pub(super) const REPLAYS: Rule =
    Rule { name: "R1", says: "the code does again what its history says", check: replays };

fn replays(log: &Log, judge: &mut Judge) {
    for replay in &log.replays {
        judge.must(replay.wrong.is_none(), || format!("{replay:?}"));
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::broken;

    #[test]
    fn a_history_that_does_not_replay_is_found() {
        broken("R1", |log| log.replays[0].wrong = Some("another activity".into()));
    }
}
