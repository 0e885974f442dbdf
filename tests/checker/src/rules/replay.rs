//! The same history gives the same commands.

use crate::{
    judge::{Judge, Rule},
    log::{Log, Replay},
};

pub(super) const REPLAYS: Rule =
    Rule { name: "R1", says: "the code does again what its history says", check: replays };

pub(super) const REPLAYS_IN_PART: Rule = Rule {
    name: "R2",
    says: "it does so wherever a history ends with a task, as when a worker takes over a run",
    check: replays_in_part,
};

fn replays(log: &Log, judge: &mut Judge) {
    judge_all(log.replays.iter().filter(|replay| replay.part.is_none()), judge);
}

fn replays_in_part(log: &Log, judge: &mut Judge) {
    judge_all(log.replays.iter().filter(|replay| replay.part.is_some()), judge);
}

fn judge_all<'a>(replays: impl Iterator<Item = &'a Replay>, judge: &mut Judge) {
    for replay in replays {
        judge.must(replay.wrong.is_none(), || format!("{replay:?}"));
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::broken;

    #[test]
    fn a_history_that_does_not_replay_is_found() {
        broken("R1", |log| log.replays[0].wrong = Some("another activity".into()));
        broken("R2", |log| log.replays[1].wrong = Some("another activity".into()));
    }
}
