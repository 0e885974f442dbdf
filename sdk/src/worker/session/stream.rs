//! Opening the stream, reading its items, answering claims.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::FutureExt;
use onward_proto::{PROTOCOL, RunId, SLOTS, v1};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{COMPLAIN_EVERY, LEAVE_WITHIN, Link, Session, State, WELCOME_WITHIN, names};
use crate::{
    client::rpc::{connect_failure, may_have_happened},
    worker::{
        WorkerError,
        attempts::AttemptKey,
        outbox::{Item, Outbox},
    },
};

impl Session {
    /// A stream ended with an error, or did not begin.
    pub(super) fn on_broken(&mut self, status: &Status, now: Instant) -> Result<(), WorkerError> {
        let welcome = matches!(&self.state, State::Up(link) if link.welcome_by.is_none());
        if !welcome && connect_failure(status).is_none() && !may_have_happened(status.code()) {
            // Asking again would bring the same answer. An overloaded server is another matter.
            if status.code() != Code::ResourceExhausted {
                return Err(WorkerError::Refused(status.message().to_owned()));
            }
        }
        let reason = connect_failure(status).unwrap_or_else(|| status.message().to_owned());
        self.disconnected(&reason, now);
        Ok(())
    }

    pub(super) fn disconnected(&mut self, reason: &str, now: Instant) {
        let was_up = matches!(&self.state, State::Up(link) if link.welcome_by.is_none());
        let address = self.connection.address();
        let due = self.complained_at.is_none_or(|at| now >= at + COMPLAIN_EVERY);
        if self.is_leaving() {
            tracing::info!(address, reason, "the server has gone; connecting again");
            self.complained_at = Some(now);
        } else if was_up {
            tracing::warn!(address, reason, "lost the server; connecting again");
            self.complained_at = Some(now);
        } else if due {
            self.complained_at = Some(now);
            tracing::warn!(address, reason, "cannot reach the server; still trying");
        }
        self.out.clear();
        self.claims.clear();
        self.credits_due = false;
        self.state = State::Down { retry_at: now + self.backoff.next_delay() };
    }

    pub(super) fn connect(&mut self, now: Instant) {
        let hello = Item::new(v1::worker_item::Kind::Hello(v1::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            namespace: self.connection.namespace().to_owned(),
            task_queue: self.options.queue.clone(),
            identity: self.options.identity.clone(),
            build_id: self.options.build_id.clone(),
            workflow_types: self.registry.workflow_names(),
            activity_types: self.registry.activity_names(),
            cached_workflows: self.options.cached_workflows as u32,
        }));
        let (outbox, frames) = Outbox::new(self.max_frame);
        outbox.send(&mut vec![hello]);
        let welcome_by = now + WELCOME_WITHIN;
        let connection = self.connection.clone();
        let opening = async move {
            let opened = connection.open(frames);
            let frames = tokio::time::timeout_at(welcome_by, opened)
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded("the server does not answer")))?;
            Ok(Box::new(Link { frames, outbox, welcome_by: Some(welcome_by), leave_by: None }))
        };
        self.state = State::Connecting { opening: opening.boxed() };
    }

    pub(super) fn is_welcome(&self) -> bool {
        matches!(&self.state, State::Up(link) if link.welcome_by.is_none())
    }

    /// Whether the server of the open stream has said that it goes away.
    fn is_leaving(&self) -> bool {
        matches!(&self.state, State::Up(link) if link.leave_by.is_some())
    }

    /// Sends what this turn brought forth, in one go.
    pub(super) fn flush(&mut self) {
        match &self.state {
            State::Up(link) if link.welcome_by.is_none() => link.outbox.send(&mut self.out),
            // What must arrive is kept apart; the rest means nothing to another stream.
            State::Down { .. } | State::Connecting { .. } | State::Up(_) => self.out.clear(),
        }
    }

    pub(super) fn on_item(
        &mut self,
        kind: v1::server_item::Kind,
        now: Instant,
    ) -> Result<(), WorkerError> {
        use v1::server_item::Kind;
        match kind {
            Kind::Welcome(welcome) => self.on_welcome(&welcome, now)?,
            Kind::Claim(claim) => self.on_claim(&claim),
            Kind::WorkflowTask(task) => self.on_workflow_task(task, now),
            Kind::Yield(item) => {
                if let Some((run, task)) = names(&item.run_id, item.task_id) {
                    self.on_yield(run, task);
                }
            }
            Kind::Stale(item) => {
                if let Some((run, task)) = names(&item.run_id, item.task_id) {
                    self.kept_tasks.remove(&task);
                    let gone = self.runs.remove_stale(run, task);
                    self.on_gone(gone);
                }
            }
            Kind::ActivityTask(task) => self.on_activity_task(task, now),
            Kind::CancelActivity(item) => self.on_cancel_activity(&item),
            Kind::Ack(ack) => {
                for task in ack.tasks {
                    self.kept_tasks.remove(&task.into());
                }
                for token in &ack.activities {
                    if let Some(key) = AttemptKey::of(token) {
                        self.kept_attempts.remove(&key);
                    }
                }
            }
            Kind::Evict(item) => {
                if let Ok(run) = RunId::from_wire(&item.run_id) {
                    let gone = self.runs.remove(run);
                    self.on_gone(gone);
                }
            }
            Kind::Drain(v1::Drain {}) => self.on_drain(now),
        }
        Ok(())
    }

    /// The server goes away: no more is asked of it. What runs here goes on and is answered for, on
    /// this stream or, as far as it is not acked, where the worker connects next.
    fn on_drain(&mut self, now: Instant) {
        if let State::Up(link) = &mut self.state
            && link.leave_by.is_none()
        {
            tracing::info!("the server is going away; connecting again when it has");
            link.leave_by = Some(now + LEAVE_WITHIN);
            self.send_credits();
        }
    }

    pub(super) fn on_welcome(
        &mut self,
        welcome: &v1::Welcome,
        now: Instant,
    ) -> Result<(), WorkerError> {
        if welcome.protocol != PROTOCOL {
            return Err(WorkerError::Protocol {
                server_version: welcome.version.clone(),
                server_protocol: welcome.protocol,
                worker_version: env!("CARGO_PKG_VERSION").to_owned(),
                worker_protocol: PROTOCOL,
            });
        }
        if let Ok(micros) = u64::try_from(welcome.silence_limit_us)
            && micros > 0
        {
            self.silence_limit = Duration::from_micros(micros);
        }
        if let Ok(bytes) = usize::try_from(welcome.max_message_bytes)
            && bytes > 0
        {
            self.max_frame = bytes;
            self.shared.max_frame.store(bytes, Ordering::Relaxed);
        }
        // What another server took may be too large for this one.
        let max_frame = self.max_frame;
        self.kept_tasks.retain(|_, kept| kept.items.iter().all(|item| item.fits(max_frame)));
        self.kept_attempts.retain(|_, item| item.fits(max_frame));
        if welcome.max_payload_bytes > 0 {
            self.shared.max_payload.store(welcome.max_payload_bytes, Ordering::Relaxed);
        }
        if let State::Up(link) = &mut self.state {
            link.welcome_by = None;
            link.outbox.set_max_frame(self.max_frame);
        }
        if self.ever_welcome || self.complained_at.is_some() {
            tracing::info!(address = self.connection.address(), "connected to the server");
        }
        self.ever_welcome = true;
        self.complained_at = None;
        self.backoff.reset();
        // What runs gives a sign of life at once: its last one may be long ago.
        let silence =
            if self.attempts.is_empty() { self.silence_limit / 3 } else { Duration::ZERO };
        self.beat_at = now + silence;
        for running in self.attempts.values() {
            running.attempt.say_again();
        }
        if self.draining_until.is_some() {
            self.out.push(Item::new(v1::worker_item::Kind::Draining(v1::Draining {})));
        }
        self.claims.push(0..u32::from(SLOTS));
        self.credits_due = true;
        Ok(())
    }

    pub(super) fn send_credits(&mut self) {
        let takes_none = self.draining_until.is_some() || self.is_leaving();
        let takes =
            |registered: usize, limit| if registered == 0 || takes_none { 0 } else { limit };
        let workflow = takes(self.registry.workflows.len(), self.options.max_workflow_tasks);
        let activity = takes(self.registry.activities.len(), self.options.max_activities);
        self.out
            .push(Item::new(v1::worker_item::Kind::Credits(v1::Credits { workflow, activity })));
    }

    /// A lane has loaded: whatever another load handed out is forgotten.
    pub(super) fn on_claim(&mut self, claim: &v1::Claim) {
        let slots = claim.slot_from..claim.slot_to.min(u32::from(SLOTS));
        for gone in self.runs.remove_claimed(&slots, claim.incarnation) {
            self.on_gone(Some(gone));
        }
        self.claims.push(slots);
    }

    /// Says what runs here and what is not acked, for each claim of this frame. The welcome counts
    /// as a claim of every slot, unless real ones came with it.
    pub(super) fn answer_claims(&mut self) {
        if self.claims.len() > 1 && self.claims[0].len() == usize::from(SLOTS) {
            self.claims.remove(0);
        }
        for slots in std::mem::take(&mut self.claims) {
            let within = |run: RunId| slots.contains(&u32::from(run.slot().get()));
            self.out.push(Item::new(v1::worker_item::Kind::InFlight(v1::InFlight {
                activities: self
                    .attempts
                    .keys()
                    .filter(|key| within(key.run))
                    .map(|key| key.token())
                    .collect(),
                slot_from: slots.start,
                slot_to: slots.end,
            })));
            for kept in self.kept_tasks.values().filter(|kept| within(kept.run)) {
                self.out.extend_from_slice(&kept.items);
            }
            for (_, item) in self.kept_attempts.iter().filter(|(key, _)| within(key.run)) {
                self.out.push(item.clone());
            }
        }
        // Only now: what is claimed should be known before more work is handed out.
        if std::mem::take(&mut self.credits_due) {
            self.send_credits();
        }
    }
}
