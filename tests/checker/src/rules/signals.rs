//! Signals come in order, and none is overlooked at the end.

use std::collections::BTreeMap;

use onward_proto::v1::{WorkflowStatus, history_event::Attributes};
use uuid::Uuid;

use crate::{
    judge::{Judge, Rule},
    log::{Call, Log, Outcome},
};

pub(super) const ORDER: Rule =
    Rule { name: "S2", says: "signals of one sender to one run come in order", check: order };

pub(super) const NOT_OVERLOOKED: Rule = Rule {
    name: "S3",
    says: "a run that ends by itself ends with no signal that its code was not shown",
    check: not_overlooked,
};

fn order(log: &Log, judge: &mut Judge) {
    let mut places = BTreeMap::new();
    for run in &log.runs {
        for event in &run.history {
            if let Some(Attributes::SignalReceived(signal)) = &event.attributes {
                let request_id = Uuid::from_slice(&signal.request_id).unwrap_or_default();
                places.insert(request_id, (run.run_id, event.event_id));
            }
        }
    }
    let mut sent = BTreeMap::<_, Vec<_>>::new();
    for operation in &log.operations {
        if let (Call::Signal { .. }, Outcome::Ok(reply), Some(request_id)) =
            (operation.call, &operation.outcome, operation.request_id)
            && let Some((_, event_id)) = places.get(&request_id)
        {
            let sender = (&operation.process, reply.run_id);
            sent.entry(sender).or_default().push((operation, *event_id));
        }
    }
    for (sender, signals) in sent {
        for (one, place) in &signals {
            for (other, later_place) in &signals {
                if one.ended_us < other.began_us {
                    judge.must(place < later_place, || {
                        format!("{sender:?}: event {later_place} was sent behind {place}")
                    });
                }
            }
        }
    }
}

fn not_overlooked(log: &Log, judge: &mut Judge) {
    for run in &log.runs {
        if matches!(
            run.status,
            WorkflowStatus::Running | WorkflowStatus::Terminated | WorkflowStatus::TimedOut
        ) {
            continue;
        }
        let last_task = run.history.iter().enumerate().rev().find_map(|(place, event)| match event
            .attributes
            .as_ref()?
        {
            Attributes::WorkflowTaskCompleted(task) => Some((place, task.untaken_facts)),
            _ => None,
        });
        let Some((place, untaken)) = last_task else { continue };
        let untaken = &run.history[place.saturating_sub(untaken as usize)..place];
        let signals = untaken
            .iter()
            .chain(&run.history[place..])
            .filter(|event| matches!(event.attributes, Some(Attributes::SignalReceived(_))));
        let overlooked: Vec<_> = signals.map(|event| event.event_id).collect();
        judge.must(overlooked.is_empty(), || {
            format!("{}: it closed over the signals {overlooked:?}", run.run_id)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::broken;

    #[test]
    fn signals_out_of_order_are_found() {
        broken("S2", |log| {
            let history = &mut log.runs[0].history;
            let signals: Vec<_> = (0..history.len())
                .filter(|at| matches!(history[*at].attributes, Some(Attributes::SignalReceived(_))))
                .collect();
            let (one, other) = (signals[0], signals[1]);
            let attributes = history[one].attributes.clone();
            history[one].attributes = history[other].attributes.clone();
            history[other].attributes = attributes;
        });
    }

    #[test]
    fn a_close_over_the_head_of_a_signal_is_found() {
        broken("S3", |log| {
            for event in log.runs[0].history.iter_mut().rev() {
                if let Some(Attributes::WorkflowTaskCompleted(task)) = &mut event.attributes {
                    task.untaken_facts = 20;
                    break;
                }
            }
        });
    }
}
