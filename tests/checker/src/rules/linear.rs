//! Requests about one workflow id look as if they had been carried out one after the other.
//!
//! What took effect is on record, so only the order is searched for: an order of all requests that
//! keeps what was over before something else began, and in which every answer is right for the
//! state it finds. The search is that of Wing and Gong with Lowe's memory of states seen.

use std::collections::{BTreeMap, BTreeSet};

use onward_proto::v1::WorkflowStatus;
use uuid::Uuid;

use super::acks::{Effect, effects, replaced_by};
use crate::{
    judge::{Judge, Rule},
    log::{Call, Conflict, Log, Outcome, Refusal, Reuse, Run},
};

pub(super) const LINEARIZABLE: Rule = Rule {
    name: "D4",
    says: "starts, ends, signals and looks of one workflow id are linearizable",
    check: linearizable,
};

/// More requests about one id are not searched: the set of those that are done is one word.
const MOST: usize = 64;

/// One of the runs of a workflow id, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Nth(usize);

/// What a request does to the state, or finds in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Start(Nth, Reuse, Conflict),
    Join(Nth),
    Close(Nth),
    Touch(Nth),
    Look(Nth, WorkflowStatus),
    LookInVain,
    Exists(Reuse, Conflict),
    NotOpen(Option<Nth>),
}

#[derive(Debug, Clone, Copy)]
struct Item {
    step: Step,
    began_us: u64,
    ended_us: u64,
}

/// How many runs have started, and whether the last is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct State {
    started: usize,
    open: bool,
}

fn linearizable(log: &Log, judge: &mut Judge) {
    let effects = effects(log);
    let mut ids = BTreeMap::<&str, BTreeSet<&str>>::new();
    for operation in &log.operations {
        ids.entry(&operation.workflow_id).or_default().insert(&operation.process);
    }
    for (workflow_id, processes) in ids {
        let waived = log.operations.iter().any(|operation| {
            operation.workflow_id == workflow_id
                && log.is_waived(operation.began_us, operation.ended_us)
        });
        if processes.len() < 2 || waived {
            continue;
        }
        let runs = runs_in_order(log, workflow_id);
        let items = items(log, workflow_id, &runs, &effects);
        if items.len() > MOST {
            continue;
        }
        let statuses: Vec<_> = runs.iter().map(|run| run.status).collect();
        let search = Search { items: &items, statuses: &statuses };
        judge.must(search.succeeds(), || {
            let mut items = items.clone();
            items.sort_by_key(|item| item.began_us);
            format!("{workflow_id}: {statuses:?} have no order for {items:#?}")
        });
    }
}

/// The runs of an id. Their ids rise, so they tell those apart that one batch began; and beyond a
/// failover it is the batch that tells.
fn runs_in_order<'a>(log: &'a Log, workflow_id: &str) -> Vec<&'a Run> {
    let mut runs: Vec<_> = log.runs.iter().filter(|run| run.workflow_id == workflow_id).collect();
    runs.sort_by_key(|run| (run.journal.first().map_or(0, |row| row.commit_seq), run.run_id));
    runs
}

fn items(
    log: &Log,
    workflow_id: &str,
    runs: &[&Run],
    effects: &BTreeMap<Uuid, Vec<(Uuid, Effect)>>,
) -> Vec<Item> {
    let nth = |run_id: Uuid| runs.iter().position(|run| run.run_id == run_id).map(Nth);
    let mut items = Vec::new();
    let mut closed_by_request = BTreeSet::new();
    let mut requests = BTreeMap::new();
    for operation in log.operations.iter().filter(|one| one.workflow_id == workflow_id) {
        let own = operation.request_id.and_then(|id| effects.get(&id));
        let effect = |wanted: Effect| {
            let own = own.into_iter().flatten().find(|(_, effect)| *effect == wanted);
            own.and_then(|(run_id, _)| nth(*run_id))
        };
        let step = match (operation.call, &operation.outcome) {
            (_, Outcome::Refused(Refusal::Invalid | Refusal::Busy)) => continue,
            (Call::Start { reuse, conflict }, Outcome::Refused(_)) => Step::Exists(reuse, conflict),
            (Call::Describe, Outcome::Refused(_)) => Step::LookInVain,
            (
                Call::Signal { run_id } | Call::Cancel { run_id } | Call::Terminate { run_id },
                Outcome::Refused(_),
            ) => match run_id {
                None => Step::NotOpen(None),
                // A run that never was is not open either.
                Some(run_id) => match nth(run_id) {
                    Some(nth) => Step::NotOpen(Some(nth)),
                    None => continue,
                },
            },
            (Call::Start { reuse, conflict }, outcome) => {
                match (effect(Effect::Started), outcome) {
                    (Some(run), _) => {
                        if effect(Effect::Terminated).is_some() {
                            closed_by_request.insert(run.0 - 1);
                        }
                        Step::Start(run, reuse, conflict)
                    }
                    (None, Outcome::Ok(reply)) => match nth(reply.run_id) {
                        Some(run) => Step::Join(run),
                        None => continue,
                    },
                    (None, _) => continue,
                }
            }
            (Call::Terminate { .. }, _) => match effect(Effect::Terminated) {
                Some(run) => {
                    closed_by_request.insert(run.0);
                    Step::Close(run)
                }
                None => continue,
            },
            (Call::Describe, Outcome::Ok(reply)) => match (nth(reply.run_id), reply.shown) {
                (Some(run), Some(shown)) => Step::Look(run, shown.status),
                _ => continue,
            },
            (Call::Signal { .. } | Call::Cancel { .. }, Outcome::Ok(reply)) => {
                match nth(reply.run_id) {
                    Some(run) => Step::Touch(run),
                    None => continue,
                }
            }
            (Call::Describe | Call::Signal { .. } | Call::Cancel { .. }, Outcome::Unknown) => {
                continue;
            }
        };
        let ended_us = match operation.outcome {
            Outcome::Unknown => u64::MAX,
            Outcome::Ok(_) | Outcome::Refused(_) => operation.ended_us,
        };
        let item = Item { step, began_us: operation.began_us, ended_us };
        // A request that is sent again is one request: it happened by its first answer. One that was
        // refused has left nothing behind, and may be taken when it comes again.
        let taken = operation.request_id.filter(|_| !is_refused(&operation.outcome));
        let known = taken.and_then(|id| requests.get(&id).copied());
        if let Some(known) = known {
            let first: &mut Item = &mut items[known];
            first.began_us = first.began_us.min(item.began_us);
            first.ended_us = first.ended_us.min(item.ended_us);
            continue;
        }
        requests.extend(taken.map(|id| (id, items.len())));
        items.push(item);
    }
    // Runs that end by themselves do so at any moment.
    for (place, run) in runs.iter().enumerate() {
        let replaced = run.status == WorkflowStatus::Terminated
            && !closed_by_request.contains(&place)
            && replaced_by(log, run.run_id).is_some();
        if run.status != WorkflowStatus::Running && !replaced && !closed_by_request.contains(&place)
        {
            let began_us = 0;
            items.push(Item { step: Step::Close(Nth(place)), began_us, ended_us: u64::MAX });
        }
    }
    items
}

fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(_))
}

struct Search<'a> {
    items: &'a [Item],
    statuses: &'a [WorkflowStatus],
}

impl Search<'_> {
    fn succeeds(&self) -> bool {
        self.go_on(0, State::default(), &mut BTreeSet::new())
    }

    fn go_on(&self, done: u64, state: State, seen: &mut BTreeSet<(u64, State)>) -> bool {
        let left = || self.items.iter().enumerate().filter(move |(at, _)| done & (1 << at) == 0);
        let Some(first_end) = left().map(|(_, item)| item.ended_us).min() else { return true };
        if !seen.insert((done, state)) {
            return false;
        }
        left().filter(|(_, item)| item.began_us <= first_end).any(|(at, item)| {
            self.apply(state, item.step).is_some_and(|next| self.go_on(done | 1 << at, next, seen))
        })
    }

    /// The state behind a step, if it is right in this one.
    fn apply(&self, state: State, step: Step) -> Option<State> {
        let current = |run: Nth| state.started == run.0 + 1;
        let reusable = |reuse| match (reuse, state.started.checked_sub(1)) {
            (Reuse::Allow, _) | (_, None) => true,
            (Reuse::AllowFailedOnly, Some(last)) => {
                self.statuses[last] != WorkflowStatus::Completed
            }
            (Reuse::Reject, Some(_)) => false,
        };
        // The run that it ends is one that did not complete.
        let takes_over =
            |reuse, conflict| conflict == Conflict::TerminateExisting && reuse != Reuse::Reject;
        let right = match step {
            Step::Start(run, reuse, conflict) => {
                let free = if state.open { takes_over(reuse, conflict) } else { reusable(reuse) };
                let next = State { started: state.started + 1, open: true };
                return (state.started == run.0 && free).then_some(next);
            }
            Step::Close(run) => {
                return (current(run) && state.open).then_some(State { open: false, ..state });
            }
            Step::Join(run) | Step::Touch(run) => current(run) && state.open,
            Step::Look(run, status) => {
                current(run)
                    && if state.open {
                        status == WorkflowStatus::Running
                    } else {
                        status == self.statuses[run.0]
                    }
            }
            Step::LookInVain => state.started == 0,
            Step::Exists(reuse, conflict) => {
                if state.open {
                    conflict != Conflict::UseExisting && !takes_over(reuse, conflict)
                } else {
                    !reusable(reuse)
                }
            }
            Step::NotOpen(None) => !state.open,
            Step::NotOpen(Some(run)) => !(current(run) && state.open),
        };
        right.then_some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixture::{broken, good},
        log::Operation,
    };

    fn of_process<'a>(log: &'a mut Log, process: &str) -> &'a mut Operation {
        log.operations.iter_mut().find(|one| one.process == process).unwrap()
    }

    #[test]
    fn a_good_log_has_an_order() {
        let mut judge = Judge::default();
        linearizable(&good(), &mut judge);
        assert_eq!(
            format!("{judge:?}"),
            format!("Judge {{ looked: 1, skips: false, broken: [] }}")
        );
    }

    #[test]
    fn runs_that_began_and_closed_in_one_batch_stand_in_the_order_of_their_ids() {
        let mut log = good();
        let ended = log.runs.iter().find(|run| run.workflow_id == "ended").unwrap();
        let later = Run { run_id: Uuid::from_u128(5), ..ended.clone() };
        log.runs.insert(0, later);
        let ids: Vec<_> = runs_in_order(&log, "ended").iter().map(|run| run.run_id).collect();
        assert_eq!(ids, [4, 5].map(Uuid::from_u128));
    }

    #[test]
    fn answers_without_an_order_are_found() {
        // A start that was refused while nothing was there yet.
        broken("D4", |log| {
            let refused = of_process(log, "refused");
            (refused.began_us, refused.ended_us) = (1, 2);
        });
        // A look that shows a run as open after somebody was told of its end.
        broken("D4", |log| {
            let late = of_process(log, "looks");
            (late.began_us, late.ended_us) = (5_000, 5_001);
        });
        // A signal that reached a run after its end.
        broken("D4", |log| {
            let signal = of_process(log, "signals");
            (signal.began_us, signal.ended_us) = (5_000, 5_001);
        });
        // A start that took over the open run although it was told not to.
        broken("D4", |log| {
            let takes = of_process(log, "takes over");
            takes.call = Call::Start { reuse: Reuse::Allow, conflict: Conflict::Fail };
        });
    }

    #[test]
    fn a_request_without_an_answer_may_have_happened_late() {
        let mut log = good();
        let refused = of_process(&mut log, "takes over");
        refused.outcome = Outcome::Unknown;
        let mut judge = Judge::default();
        linearizable(&log, &mut judge);
        assert_eq!(
            format!("{judge:?}"),
            format!("Judge {{ looked: 1, skips: false, broken: [] }}")
        );
    }

    #[test]
    fn a_request_that_was_refused_may_be_taken_when_it_comes_again() {
        let mut log = good();
        let again = of_process(&mut log, "takes over").request_id;
        let place = log.operations.iter().position(|one| one.process == "refused").unwrap();
        let mut refused = log.operations.remove(place);
        refused.request_id = again;
        log.operations.insert(0, refused);
        let mut judge = Judge::default();
        linearizable(&log, &mut judge);
        assert_eq!(
            format!("{judge:?}"),
            format!("Judge {{ looked: 1, skips: false, broken: [] }}")
        );
    }
}
