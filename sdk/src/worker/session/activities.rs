//! Activities of a session, local ones too: started, told to stop, answered for.

use std::{panic::AssertUnwindSafe, sync::Arc, task::Poll, time::Duration};

use futures_util::FutureExt;
use onward_proto::{RunId, Timestamp, v1};
use tokio::time::Instant;

use super::{Event, Running, Session};
use crate::{
    activity::attempt::{ActivityInfo, Attempt, Stop},
    machine::{LocalActivityTask, task_failure},
    worker::{
        attempts::{AttemptKey, End, Execution, deadline},
        local::LocalRun,
        outbox::Item,
        runs::Instance,
    },
};

impl Session {
    pub(super) fn on_activity_task(&mut self, task: v1::ActivityTask, now: Instant) {
        let Some(key) = task.token.as_ref().and_then(AttemptKey::of) else { return };
        if self.attempts.contains_key(&key) {
            return;
        }
        if let Some(item) = self.kept_attempts.get(&key) {
            self.out.push(item.clone());
            return;
        }
        let timeout = micros(task.start_to_close_us).unwrap_or(DEFAULT_TIMEOUT);
        let attempt = Arc::new(Attempt::new(
            ActivityInfo {
                namespace: task.namespace,
                workflow_id: task.workflow_id,
                run_id: key.run.uuid(),
                workflow_type: task.workflow_type,
                activity_type: task.activity_type,
                number: key.number,
                attempt: key.attempt,
                scheduled_at: Timestamp::from_micros(task.scheduled_at_us),
                timeout,
                heartbeat: micros(task.heartbeat_us),
                local: false,
            },
            key.incarnation,
            task.heartbeat_details,
            Some(Arc::clone(&self.listener)),
        ));
        let Some(activity) = self.registry.activity(&attempt.info.activity_type) else {
            let end = End::Returned(Err(self
                .registry
                .unknown_activity(&attempt.info.activity_type, &self.options.identity)));
            self.on_ended(key, end.into_item(&attempt, self.max_frame));
            return;
        };
        let body = (activity.start)(Arc::clone(&attempt), task.arguments);
        let until = deadline(now, timeout, self.silence_limit);
        let mut execution = Execution::new(body, Arc::clone(&attempt), until);
        let is_quick = activity.is_quick();
        let first_poll = move |execution: &mut Execution| {
            let before = Instant::now();
            let poll = execution.first_poll();
            activity.note_first_poll(before.elapsed());
            poll
        };
        if is_quick && let Poll::Ready(end) = first_poll(&mut execution) {
            self.on_ended(key, end.into_item(&attempt, self.max_frame));
            return;
        }
        if let Some(heartbeat) = attempt.info.heartbeat {
            self.beat_at = self.beat_at.min(now + heartbeat / 3);
        }
        self.attempts.insert(key, Running { attempt: Arc::clone(&attempt), beat_at: now });
        let (events, max_frame) = (self.events_sender.clone(), self.max_frame);
        self.options.env.spawn(async move {
            let polled = if is_quick { Poll::Pending } else { first_poll(&mut execution) };
            let end = match polled {
                Poll::Ready(end) => end,
                Poll::Pending => execution.await,
            };
            let item = end.into_item(&attempt, max_frame);
            let _ = events.send(Event::Ended { key, item });
        });
    }

    pub(super) fn on_ended(&mut self, key: AttemptKey, item: Option<Item>) {
        self.attempts.remove(&key);
        if let Some(item) = item {
            self.out.push(item.clone());
            self.kept_attempts.insert(key, item);
        }
    }

    pub(super) fn on_cancel_activity(&mut self, item: &v1::CancelActivityTask) {
        let Some(key) = item.token.as_ref().and_then(AttemptKey::of) else { return };
        let lost = item.reason() == v1::CancelReason::Lost;
        if lost {
            self.kept_attempts.remove(&key);
        }
        if let Some(running) = self.attempts.get(&key) {
            running.attempt.stop(if lost { Stop::Lost } else { Stop::Requested });
            if lost {
                self.attempts.remove(&key);
            }
        }
    }

    /// Stops the attempts of which the server has heard nothing for their heartbeat timeout. It will
    /// soon act as if they had ended, so they must have.
    pub(super) fn stop_unheard(&mut self, now: Instant) {
        let silence_limit = self.silence_limit;
        self.attempts.retain(|_, running| {
            let counts = running.unheard_at(silence_limit).is_none_or(|at| now < at);
            if !counts {
                running.attempt.stop(Stop::Lost);
            }
            counts
        });
    }

    pub(super) fn start_local(&mut self, run: RunId, instance: Instance, task: LocalActivityTask) {
        let number = task.number;
        let workflow = self.runs.current(run, instance).map(|run| Arc::clone(&run.info));
        let Some(workflow) = workflow else { return };
        let Some(activity) = self.registry.activity(task.activity_type) else {
            // Another worker may have it, and whoever looks at the run sees what it lacks.
            let unknown =
                self.registry.unknown_activity(task.activity_type, &self.options.identity);
            let message = unknown.failure.message;
            self.give_up(run, task_failure(v1::WorkflowTaskFailureCause::UnknownType, message));
            return;
        };
        let local = LocalRun::new(task, workflow, activity);
        self.locals.insert((instance, number), local.control());
        let events = self.events_sender.clone();
        self.options.env.spawn(async move {
            // It catches the panics of user code. One of its own must not leave the run waiting.
            let event = match AssertUnwindSafe(local.run()).catch_unwind().await {
                Ok(Some(outcome)) => {
                    Event::LocalDone { run, instance, number, outcome: Box::new(outcome) }
                }
                Ok(None) => return,
                Err(_) => {
                    let message = format!("the worker panicked in local activity {number}");
                    Event::LocalBroken { run, instance, message }
                }
            };
            let _ = events.send(event);
        });
    }

    pub(super) fn stop_locals(&mut self, instance: Option<Instance>) {
        let Some(instance) = instance else { return };
        if self.locals.is_empty() {
            return;
        }
        let numbers: Vec<_> =
            self.locals.range((instance, 0)..=(instance, u32::MAX)).map(|(key, _)| *key).collect();
        for key in numbers {
            if let Some(local) = self.locals.remove(&key) {
                local.stop(Stop::Lost);
            }
        }
    }
}

/// An activity without a timeout of its own.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(1);

/// A duration of the wire; `None` for 0, which means that there is none.
fn micros(micros: i64) -> Option<Duration> {
    u64::try_from(micros).ok().filter(|micros| *micros > 0).map(Duration::from_micros)
}
