//! Activities: what ran, and what counted.

use std::collections::{BTreeMap, BTreeSet};

use onward_proto::v1::{
    ActivityFailureCause, ActivityScheduled, ActivityTimeoutKind, HistoryEvent,
    history_event::Attributes,
};
use uuid::Uuid;

use crate::{
    judge::{Judge, Rule},
    log::{End, Execution, Log},
};

pub(super) const RAN: Rule = Rule {
    name: "A1",
    says: "what completed or failed did run, in that attempt and to that end",
    check: ran,
};

pub(super) const LAST_ATTEMPT: Rule = Rule {
    name: "A2",
    says: "an attempt runs once, and none runs behind the one that counted",
    check: last_attempt,
};

pub(super) const KEY: Rule = Rule {
    name: "A3",
    says: "the idempotency key is the same in all attempts of a call and in no other call",
    check: key,
};

pub(super) const POLICY: Rule = Rule {
    name: "A5",
    says: "attempts keep to the retry policy, and no timeout comes before its time",
    check: policy,
};

/// A call: the run, and its number in it.
type Call = (Uuid, u32);

/// The attempts that workers ran for the server, in the order in which they began.
fn executions(log: &Log) -> BTreeMap<Call, Vec<&Execution>> {
    let mut executions = BTreeMap::<_, Vec<_>>::new();
    for execution in log.executions.iter().filter(|execution| !execution.local) {
        executions.entry((execution.run_id, execution.number)).or_default().push(execution);
    }
    for attempts in executions.values_mut() {
        attempts.sort_by_key(|execution| execution.began_us);
    }
    executions
}

fn ran(log: &Log, judge: &mut Judge) {
    let executions = executions(log);
    for (run_id, event) in records(log) {
        let (number, attempt, ends): (_, _, &[End]) = match event.attributes.as_ref() {
            Some(Attributes::ActivityCompleted(event)) => {
                (event.number, event.attempt, &[End::Value])
            }
            Some(Attributes::ActivityFailed(event)) => match event.cause() {
                ActivityFailureCause::Application => {
                    (event.number, event.attempt, &[End::Terminal])
                }
                ActivityFailureCause::Exhausted => {
                    (event.number, event.attempt, &[End::Failed, End::Terminal])
                }
                ActivityFailureCause::Unspecified
                | ActivityFailureCause::OutcomeUnknown
                | ActivityFailureCause::Refused => continue,
            },
            _ => continue,
        };
        let attempts = executions.get(&(run_id, number)).map(Vec::as_slice).unwrap_or_default();
        let found = attempts.iter().any(|execution| {
            execution.attempt == attempt
                && execution.ended.is_some_and(|(_, end)| ends.contains(&end))
        });
        judge.must(found || !log.kept_all(), || format!("{run_id}: {event:?}, ran: {attempts:?}"));
    }
}

fn last_attempt(log: &Log, judge: &mut Judge) {
    if !log.kept_all() {
        // Who was handed out an attempt whose reason is gone runs it; the next owner does not know.
        return;
    }
    let executions = executions(log);
    for ((run_id, number), attempts) in &executions {
        let mut seen = BTreeSet::new();
        for execution in attempts {
            judge.must(seen.insert(execution.attempt), || {
                format!("{run_id}: attempt {} of {number} ran twice", execution.attempt)
            });
        }
    }
    for (run_id, event) in records(log) {
        let Some((number, attempt)) = event.attributes.as_ref().and_then(closes) else { continue };
        let attempts = executions.get(&(run_id, number)).into_iter().flatten();
        for later in attempts.filter(|execution| execution.attempt > attempt) {
            judge.say(format!("{run_id}: {later:?} ran behind the one that counted: {event:?}"));
        }
    }
}

/// The number of the call that an event closes, and its last attempt.
pub(super) fn closes(attributes: &Attributes) -> Option<(u32, u32)> {
    Some(match attributes {
        Attributes::ActivityCompleted(event) => (event.number, event.attempt),
        Attributes::ActivityFailed(event) => (event.number, event.attempt),
        Attributes::ActivityTimedOut(event) => (event.number, event.attempt),
        Attributes::ActivityCancelled(event) => (event.number, event.attempt),
        _ => return None,
    })
}

fn key(log: &Log, judge: &mut Judge) {
    let mut calls = BTreeMap::<&str, Call>::new();
    let mut keys = BTreeMap::<Call, &str>::new();
    for execution in &log.executions {
        let call = (execution.run_id, execution.number);
        judge.look();
        if *calls.entry(&execution.key).or_insert(call) != call {
            judge.say(format!("{} is the key of two calls: {execution:?}", execution.key));
        }
        if *keys.entry(call).or_insert(&execution.key) != execution.key {
            judge.say(format!("{call:?} has two keys: {execution:?}"));
        }
    }
}

fn policy(log: &Log, judge: &mut Judge) {
    let executions = executions(log);
    let mut scheduled = BTreeMap::<Call, (&ActivityScheduled, i64)>::new();
    for (run_id, event) in records(log) {
        match event.attributes.as_ref() {
            Some(Attributes::ActivityScheduled(activity)) => {
                scheduled.insert((run_id, activity.number), (activity, event.time_us));
            }
            Some(Attributes::ActivityTimedOut(timed_out)) => {
                let Some((activity, since)) = scheduled.get(&(run_id, timed_out.number)) else {
                    continue; // H5 says so
                };
                let timeouts = activity.timeouts.unwrap_or_default();
                let least = match timed_out.kind() {
                    ActivityTimeoutKind::StartToClose if timeouts.start_to_close_us == 0 => {
                        60_000_000
                    }
                    ActivityTimeoutKind::StartToClose => timeouts.start_to_close_us,
                    ActivityTimeoutKind::ScheduleToStart => timeouts.schedule_to_start_us,
                    ActivityTimeoutKind::ScheduleToClose => timeouts.schedule_to_close_us,
                    ActivityTimeoutKind::Heartbeat => timeouts.heartbeat_us,
                    ActivityTimeoutKind::Unspecified => i64::MAX,
                };
                judge.must(event.time_us - since >= least || log.clock_stepped, || {
                    format!(
                        "{run_id}: {timed_out:?} {} µs after {activity:?}",
                        event.time_us - since
                    )
                });
            }
            _ => {}
        }
    }
    for ((run_id, number), attempts) in &executions {
        let Some((activity, _)) = scheduled.get(&(*run_id, *number)) else { continue };
        let policy = activity.retry.clone().unwrap_or_default();
        let numbers: BTreeSet<_> = attempts.iter().map(|execution| execution.attempt).collect();
        let most = policy.max_attempts as usize;
        judge.must(most == 0 || numbers.len() <= most || !log.kept_all(), || {
            format!("{run_id}: {} attempts of {activity:?}", numbers.len())
        });
        for pair in attempts.windows(2) {
            let Some((ended_us, end)) = pair[0].ended else { continue };
            if pair[1].attempt != pair[0].attempt + 1 {
                continue;
            }
            // A failure that did not get through in time is written off: the next one waits for that.
            let grace_us = 15_000_000;
            let disturbed = log.disturbances.iter().any(|at| {
                pair[0].began_us.saturating_sub(grace_us) <= *at && *at <= pair[1].began_us
            });
            match end {
                End::Failed if disturbed || log.clock_stepped => {}
                End::Failed => {
                    let wait = pair[1].began_us.saturating_sub(ended_us);
                    let least = backoff_us(&policy, pair[0].attempt);
                    judge.must(wait >= least, || {
                        format!("{run_id}: {wait} µs between {pair:?}, not {least}")
                    });
                }
                End::Terminal if log.kept_all() && !disturbed => {
                    judge.say(format!("{run_id}: another attempt cannot help: {pair:?}"));
                }
                End::Terminal | End::Value | End::Cancelled => {}
            }
        }
    }
}

/// How long the attempt behind this one waits at least.
fn backoff_us(policy: &onward_proto::v1::RetryPolicy, attempt: u32) -> u64 {
    let or = |value: i64, default: f64| if value == 0 { default } else { value as f64 };
    let factor = if policy.backoff_coefficient == 0.0 { 2.0 } else { policy.backoff_coefficient };
    let first = or(policy.initial_interval_us, 1e6);
    let longest = or(policy.max_interval_us, 1e8);
    (first * factor.powi(attempt as i32 - 1)).min(longest) as u64
}

fn records(log: &Log) -> impl Iterator<Item = (Uuid, &HistoryEvent)> {
    log.runs.iter().flat_map(|run| {
        let records = run.journal.iter().flat_map(|row| &row.records);
        records.map(|record| (run.run_id, record))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::broken;

    fn record(log: &mut Log, is: fn(&Attributes) -> bool) -> &mut HistoryEvent {
        let rows = log.runs.iter_mut().flat_map(|run| &mut run.journal);
        rows.flat_map(|row| &mut row.records)
            .find(|record| record.attributes.as_ref().is_some_and(is))
            .unwrap()
    }

    #[test]
    fn results_from_nowhere_are_found() {
        broken("A1", |log| log.executions[1].ended = None);
        broken("A1", |log| log.executions[1].attempt = 3);
        broken("A1", |log| log.executions[1].ended = Some((600, End::Failed)));
    }

    #[test]
    fn attempts_that_run_twice_or_too_late_are_found() {
        broken("A2", |log| log.executions.push(log.executions[0].clone()));
        broken("A2", |log| {
            let late = Execution { attempt: 3, ..log.executions[1].clone() };
            log.executions.push(late);
        });
    }

    #[test]
    fn keys_that_change_or_are_shared_are_found() {
        broken("A3", |log| log.executions[1].key = "another".into());
        broken("A3", |log| log.executions[2].key = log.executions[0].key.clone());
    }

    #[test]
    fn attempts_against_the_policy_are_found() {
        broken("A5", |log| log.executions[1].began_us = log.executions[0].began_us + 1);
        broken("A5", |log| {
            log.executions[0].ended = log.executions[0].ended.map(|(at, _)| (at, End::Terminal));
        });
        broken("A5", |log| {
            let scheduled = record(log, |event| matches!(event, Attributes::ActivityScheduled(_)));
            let Some(Attributes::ActivityScheduled(activity)) = &mut scheduled.attributes else {
                panic!("that is what was looked for");
            };
            activity.retry.as_mut().unwrap().max_attempts = 1;
        });
        broken("A5", |log| {
            record(log, |event| matches!(event, Attributes::ActivityTimedOut(_))).time_us = 0;
        });
    }
}
