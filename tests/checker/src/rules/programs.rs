//! Whole programs.

use crate::{
    judge::{Judge, Rule},
    log::Log,
};

pub(super) const ENDS_RIGHT: Rule =
    Rule { name: "P1", says: "every program ends, and as it says itself", check: ends_right };

fn ends_right(log: &Log, judge: &mut Judge) {
    for ending in &log.endings {
        judge.must(ending.wrong.is_none() || !log.kept_all(), || {
            format!("{}: {}", ending.workflow_id, ending.wrong.as_deref().unwrap_or_default())
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::broken;

    #[test]
    fn a_program_that_ended_wrongly_is_found() {
        broken("P1", |log| log.endings[0].wrong = Some("5 instead of 4".into()));
    }
}
