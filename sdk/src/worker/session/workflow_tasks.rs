//! Workflow tasks of a session: to the threads and back.

use onward_proto::{RunId, v1};
use tokio::time::Instant;
use tonic::Status;

use super::{Event, Kept, RECONNECT_WITHIN, Session, names};
use crate::{
    activity::attempt::Stop,
    client::rpc::Backoff,
    machine::{RunInfo, Task, TaskFailure, task_failure},
    worker::{
        outbox::Item,
        registry::list,
        runs::{Admission, Gone, Instance, Reading, TaskKey},
        threads::{Begin, Job, Outcome, Report, Slow, failed_item},
    },
};

impl Session {
    pub(super) fn on_workflow_task(&mut self, task: v1::WorkflowTask, now: Instant) {
        let Some((run_id, key)) = names(&task.run_id, task.task_id) else { return };
        let Some(entry) = self.registry.workflow(&task.workflow_type) else {
            let gone = self.runs.remove(run_id);
            self.on_gone(gone);
            self.keep_task(
                run_id,
                key,
                vec![failed_item(run_id, key, self.unknown(&task), self.max_frame)],
            );
            return;
        };
        if self.threads.is_trapped(run_id) {
            // It would cost the next thread, and so on with each try.
            let message = "an earlier poll of the workflow's code has not come back on this \
                           worker: it blocks or loops";
            let error = task_failure(v1::WorkflowTaskFailureCause::Stuck, message);
            self.keep_task(run_id, key, vec![failed_item(run_id, key, error, self.max_frame)]);
            return;
        }
        let mut gone = None;
        let follows = task.follows.map(TaskKey::from);
        let (workflow_id, workflow_type) = (task.workflow_id, task.workflow_type);
        let namespace = self.connection.namespace();
        let info =
            || RunInfo { namespace: namespace.to_owned(), workflow_id, run_id, workflow_type };
        let admission = self.runs.admit(run_id, key, follows, now, info, &mut gone);
        self.on_gone(gone);
        let (instance, thread, begin) = match admission {
            Admission::NeedHistory => {
                self.need_history(run_id, key);
                return;
            }
            Admission::Continue { instance, thread } => (instance, thread, None),
            Admission::Begin { instance, thread, info } => {
                (instance, thread, Some(Box::new(Begin { entry, info })))
            }
        };
        let job = Job::Advance {
            instance,
            begin,
            task: Box::new(Task {
                task_id: key.into(),
                handed_out_at_us: task.handed_out_at_us,
                events: task.events,
            }),
        };
        if task.next_position.is_empty() {
            self.threads.stage(thread, job);
        } else {
            if let Some(open) = self.runs.open_mut(run_id, instance) {
                open.reading = Some(Reading::default());
            }
            self.read_history(run_id, instance, job, key, task.next_position);
        }
    }

    pub(super) fn on_yield(&mut self, run_id: RunId, task: TaskKey) {
        let Some(run) = self.runs.get(run_id) else { return };
        let (instance, thread) = (run.instance, run.thread);
        let Some(open) = self.runs.open_mut(run_id, instance).filter(|open| open.key == task)
        else {
            return;
        };
        match &mut open.reading {
            // The server asks once: it is said to the thread after the task.
            Some(reading) => reading.yields = true,
            None => self.threads.stage(thread, Job::Yield { instance }),
        }
    }

    /// Reads the rest of a long history apart from the session, then goes on with the task.
    pub(super) fn read_history(
        &self,
        run: RunId,
        instance: Instance,
        mut job: Job,
        task: TaskKey,
        position: bytes::Bytes,
    ) {
        let connection = self.connection.clone();
        let events = self.events_sender.clone();
        let backoff = Backoff::new(self.options.env.rng(), RECONNECT_WITHIN);
        self.options.env.spawn(async move {
            let rest = connection.read_history(run, task, position, backoff).await;
            let job = rest.map(|rest| {
                if let Job::Advance { task, .. } = &mut job {
                    task.events.extend(rest);
                }
                job
            });
            let _ = events.send(Event::History { run, instance, job });
        });
    }

    pub(super) fn on_history(&mut self, run: RunId, instance: Instance, job: Result<Job, Status>) {
        let Some(current) = self.runs.current(run, instance) else { return };
        let thread = current.thread;
        match job {
            Ok(job) => {
                self.threads.stage(thread, job);
                let open = self.runs.open_mut(run, instance);
                let reading = open.and_then(|open| open.reading.take());
                if reading.is_some_and(|reading| reading.yields) {
                    self.threads.stage(thread, Job::Yield { instance });
                }
            }
            Err(status) => {
                // Said at once: until then the task counts as one that this worker has. A server
                // that knows it no more calls the answer stale.
                let message = format!("the rest of the history cannot be read: {status}");
                self.give_up(run, task_failure(v1::WorkflowTaskFailureCause::WorkerLost, message));
            }
        }
    }

    pub(super) fn need_history(&mut self, run: RunId, task: TaskKey) {
        self.out.push(Item::new(v1::worker_item::Kind::NeedHistory(v1::NeedHistory {
            task_id: Some(task.into()),
            run_id: run.to_wire(),
        })));
    }

    pub(super) fn unknown(&self, task: &v1::WorkflowTask) -> TaskFailure {
        let message = format!(
            "worker {} has no workflow `{}`; it has: {}",
            self.options.identity,
            task.workflow_type,
            list(&self.registry.workflow_names())
        );
        task_failure(v1::WorkflowTaskFailureCause::UnknownType, message)
    }

    /// Keeps and sends the completion or failure of a task.
    pub(super) fn keep_task(&mut self, run: RunId, task: TaskKey, items: Vec<Item>) {
        self.out.extend_from_slice(&items);
        self.kept_tasks.insert(task, Kept { run, items });
    }

    pub(super) fn on_report(&mut self, report: Report) {
        let Report { run, instance, outcome, start, cancel } = report;
        if self.runs.current(run, instance).is_none() {
            return; // Evicted meanwhile; nobody waits for it.
        }
        for number in cancel {
            if let Some(local) = self.locals.get(&(instance, number)) {
                local.stop(Stop::Requested);
            }
        }
        let closes = matches!(outcome, Outcome::Completed { closed: true, .. });
        for task in start.into_iter().filter(|_| !closes) {
            self.start_local(run, instance, task);
        }
        if self.runs.current(run, instance).is_none() {
            return; // A local activity cannot be started: its task has failed.
        }
        match outcome {
            Outcome::Waiting => {}
            Outcome::Completed { task, items, closed } => {
                self.keep_task(run, task, items);
                if closed {
                    let gone = self.runs.remove(run);
                    self.stop_locals(gone.map(|gone| gone.instance));
                } else {
                    self.runs.completed(run, task);
                }
            }
            Outcome::Failed { task, item, cause, message } => {
                tracing::warn!(
                    run_id = %run,
                    cause = cause.as_str_name(),
                    "a workflow task failed: {message}"
                );
                self.keep_task(run, task, vec![item]);
                let gone = self.runs.remove(run);
                self.stop_locals(gone.map(|gone| gone.instance));
            }
        }
    }

    /// Forgets a run with which this worker cannot go on, and says why if it holds a task of it.
    pub(super) fn give_up(&mut self, run: RunId, error: TaskFailure) {
        let gone = self.runs.remove(run);
        if let Some(task) = gone.and_then(|gone| gone.open) {
            tracing::warn!(
                run_id = %run,
                cause = error.cause.as_str_name(),
                "a workflow task failed: {}",
                error.failure.message
            );
            self.keep_task(run, task, vec![failed_item(run, task, error, self.max_frame)]);
        } else {
            self.send_evicted(run);
        }
        self.on_gone(gone);
    }

    /// An instance is no longer wanted: its thread drops it, its local activities are dropped.
    pub(super) fn on_gone(&mut self, gone: Option<Gone>) {
        if let Some(gone) = gone {
            self.threads.stage(gone.thread, Job::Evict { instance: gone.instance });
            self.stop_locals(Some(gone.instance));
        }
    }

    pub(super) fn send_evicted(&mut self, run: RunId) {
        self.out
            .push(Item::new(v1::worker_item::Kind::Evicted(v1::Evicted { run_id: run.to_wire() })));
    }

    pub(super) fn trim_cache(&mut self) {
        while let Some(gone) = self.remove_excess() {
            self.send_evicted(gone.run);
            self.on_gone(Some(gone));
        }
    }

    /// A run with local activities stays: they would begin anew each time that others need the room.
    fn remove_excess(&mut self) -> Option<Gone> {
        let locals = &self.locals;
        self.runs.remove_excess(|instance| {
            locals.range((instance, 0)..=(instance, u32::MAX)).next().is_some()
        })
    }

    pub(super) fn watch(&mut self, now: Instant) {
        // The run may be forgotten by now: it holds up those that are pinned to its thread.
        for Slow { thread, instance, run, stuck } in self.threads.watch(now) {
            let (workflow, run_id) = (&run.workflow_type, run.run_id);
            if !stuck {
                tracing::warn!(workflow, %run_id, "a poll of workflow code lasts longer than 1 s");
                continue;
            }
            tracing::error!(
                workflow,
                %run_id,
                "a poll of workflow code lasts longer than 10 s; its thread is written off"
            );
            self.write_off(thread, Some(instance));
        }
    }

    /// Gives up a thread, which has the instance `stuck` in its hands or none.
    pub(super) fn write_off(&mut self, thread: usize, stuck: Option<Instance>) {
        if let Err(error) = self.threads.replace(thread) {
            tracing::error!(%error, "cannot start a workflow thread");
            return;
        }
        for gone in self.runs.remove_thread(thread) {
            self.stop_locals(Some(gone.instance));
            match gone.open {
                Some(task) if Some(gone.instance) == stuck => {
                    let message = "one poll of the workflow's code lasted longer than 10 s: it blocks or loops";
                    let error = task_failure(v1::WorkflowTaskFailureCause::Stuck, message);
                    let item = failed_item(gone.run, task, error, self.max_frame);
                    self.keep_task(gone.run, task, vec![item]);
                }
                // Its job waits behind the stuck one, or its machine is lost with the thread:
                // with the whole history it can begin again elsewhere.
                Some(task) => self.need_history(gone.run, task),
                None => self.send_evicted(gone.run),
            }
        }
    }
}
