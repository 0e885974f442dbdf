//! Activities and their attempts.
//!
//! ```text
//! ActivityScheduled ──▶ ready ── a worker is found ──▶ running ──▶ closed (a fact)
//!                        ▲  ▲                            │  ▲
//!                        │  └──── backing off ◀── failed ┘  │ claimed
//!                        └── grace passed ── unknown (after a load)
//! ```
//!
//! Only *scheduled* and *closed* are history. The count of ended attempts, the last failure and the
//! saved details stand in a row of `pending`; which attempt runs where is a lease in memory.
//!
//! After a load nobody knows which attempts are out. What may be out can be claimed: the attempt
//! that follows the stored count, or the one whose token is stored. So that no attempt is ever
//! mistaken for another, a token is stored before dispatch when it is the last that the policy
//! allows, and when it follows one that may have been out.

use onward_proto::{
    Timestamp,
    v1::{
        self, ActivityCancelled, ActivityCompleted, ActivityFailed, ActivityFailureCause,
        ActivityScheduled, ActivityTask, ActivityTimedOut, ActivityTimeoutKind, CancelReason,
        Failure, HistoryEvent, Limit, Payload, PendingActivity, history_event::Attributes,
    },
};
use prost::Message as _;

use super::{
    Decision, Effect, Incarnation, LeaseChange, Limits, Rejection, Run, SessionId, Token, Work,
    Worker,
    limits::{check_payloads, cut_failure, record},
};

/// What start-to-close is when nothing is set.
const DEFAULT_START_TO_CLOSE_US: i64 = 60_000_000;
/// The wait before the second attempt when nothing is set.
const DEFAULT_INITIAL_INTERVAL_US: i64 = 1_000_000;
/// The longest wait between attempts when nothing is set.
const DEFAULT_MAX_INTERVAL_US: i64 = 100_000_000;
/// Details of heartbeats are not written more often than this.
const DETAILS_INTERVAL_US: i64 = 2_000_000;

/// An activity that waits for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivityOffer<'a> {
    /// The queue that it waits in.
    pub task_queue: &'a str,
    /// The registered name of the activity function.
    pub activity_type: &'a str,
    /// Higher goes first.
    pub priority: i32,
    /// Since when it waits.
    pub since: Timestamp,
}

/// An activity that has not closed.
#[derive(Debug)]
pub(super) struct Activity {
    /// What the code called. Its arguments go to every attempt.
    pub(super) scheduled: ActivityScheduled,
    pub(super) scheduled_at: Timestamp,
    pub(super) cancel_requested: bool,
    /// Its row of `pending`, if it has one.
    pub(super) row: Option<Box<PendingActivity>>,
    /// A lease: where its attempt stands.
    pub(super) attempt: Attempt,
    /// A lease: details that the row does not have yet.
    pub(super) unsaved_details: Option<Payload>,
    /// A lease: when the row was written last.
    pub(super) saved_at: Timestamp,
}

/// Where the attempt of an activity stands.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine) enum Attempt {
    /// The next attempt waits for a worker.
    Ready {
        since: Timestamp,
        /// An attempt from before a load may run somewhere.
        may_be_out: bool,
    },
    /// The next attempt waits for its time.
    BackingOff { until: Timestamp },
    /// An attempt runs.
    Running(Box<Running>),
    /// After a load: an attempt may run somewhere, and nothing is dispatched yet.
    Unknown { since: Timestamp, claimable_until: Timestamp },
}

/// An attempt that runs.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine) struct Running {
    pub(super) token: Token,
    pub(super) session: SessionId,
    pub(super) identity: String,
    pub(super) started_at: Timestamp,
    /// The last sign of life.
    pub(super) sign_at: Timestamp,
    /// Set when its session is gone.
    pub(super) claimable_until: Option<Timestamp>,
}

/// Why an attempt ended without success.
enum Ended<'a> {
    Failed(&'a Failure),
    TimedOut(ActivityTimeoutKind),
    Lost,
}

/// What a deadline of an activity means.
enum Expired {
    /// The activity takes no more attempts.
    Closed(ActivityTimeoutKind),
    /// This attempt has ended.
    Attempt(ActivityTimeoutKind),
    /// Nobody claimed the attempt.
    Unclaimed,
    /// The next attempt may go out.
    BackoffOver,
}

impl Activity {
    fn new(scheduled: ActivityScheduled, at: Timestamp) -> Self {
        Self {
            scheduled,
            scheduled_at: at,
            cancel_requested: false,
            row: None,
            attempt: Attempt::Ready { since: at, may_be_out: false },
            unsaved_details: None,
            saved_at: Timestamp::MIN,
        }
    }

    pub(super) fn number(&self) -> u32 {
        self.scheduled.number
    }

    /// Attempts that have ended or were written off.
    pub(super) fn attempts(&self) -> u32 {
        self.row.as_ref().map_or(0, |row| row.attempts)
    }

    /// What the last attempt saved.
    pub(super) fn details(&self) -> Option<&Payload> {
        let saved = || self.row.as_ref().and_then(|row| row.heartbeat_details.as_ref());
        self.unsaved_details.as_ref().or_else(saved)
    }

    /// The row as it would be written now.
    fn current_row(&self) -> PendingActivity {
        let mut row = self.row.as_deref().cloned().unwrap_or_default();
        if let Some(details) = &self.unsaved_details {
            row.heartbeat_details = Some(details.clone());
        }
        row
    }

    fn written_token(&self) -> Option<&v1::ActivityToken> {
        self.row.as_ref().and_then(|row| row.written_token.as_ref())
    }

    /// Whether the policy allows no attempt after this one.
    fn is_last(&self, attempt: u32) -> bool {
        self.scheduled
            .retry
            .as_ref()
            .is_some_and(|retry| retry.max_attempts > 0 && attempt >= retry.max_attempts)
    }

    pub(super) fn start_to_close_us(&self) -> i64 {
        match self.timeout(|timeouts| timeouts.start_to_close_us) {
            Some(micros) => micros,
            None => DEFAULT_START_TO_CLOSE_US,
        }
    }

    fn heartbeat_us(&self) -> Option<i64> {
        self.timeout(|timeouts| timeouts.heartbeat_us)
    }

    fn timeout(&self, which: impl Fn(&v1::ActivityTimeouts) -> i64) -> Option<i64> {
        self.scheduled.timeouts.as_ref().map(which).filter(|&micros| micros > 0)
    }

    /// When the activity as a whole has taken too long.
    fn schedule_to_close(&self) -> Option<Timestamp> {
        let micros = self.timeout(|timeouts| timeouts.schedule_to_close_us)?;
        Some(self.scheduled_at.plus_micros(micros))
    }

    /// When the first attempt has waited too long for a worker.
    fn schedule_to_start(&self) -> Option<Timestamp> {
        let Attempt::Ready { since, may_be_out } = self.attempt else { return None };
        if self.attempts() > 0 {
            return None;
        }
        let micros = self.timeout(|timeouts| timeouts.schedule_to_start_us)?;
        // After a load the first attempt may have started long ago, so the wait counts anew.
        Some(if may_be_out { since } else { self.scheduled_at }.plus_micros(micros))
    }

    /// When an attempt that may run somewhere has certainly been dropped by its worker.
    fn dropped_by(&self, since: Timestamp) -> (Timestamp, ActivityTimeoutKind) {
        let start_to_close = since.plus_micros(self.start_to_close_us());
        match self.heartbeat_us().map(|micros| since.plus_micros(micros)) {
            Some(heartbeat) if heartbeat < start_to_close => {
                (heartbeat, ActivityTimeoutKind::Heartbeat)
            }
            _ => (start_to_close, ActivityTimeoutKind::StartToClose),
        }
    }

    /// The next deadline, and what it means.
    fn next_expiry(&self) -> Option<(Timestamp, Expired)> {
        let mut next: Option<(Timestamp, Expired)> = None;
        let mut consider = |at: Timestamp, what: Expired| {
            if next.as_ref().is_none_or(|(earliest, _)| at < *earliest) {
                next = Some((at, what));
            }
        };
        if let Some(at) = self.schedule_to_close() {
            consider(at, Expired::Closed(ActivityTimeoutKind::ScheduleToClose));
        }
        if let Some(at) = self.schedule_to_start() {
            consider(at, Expired::Closed(ActivityTimeoutKind::ScheduleToStart));
        }
        match &self.attempt {
            Attempt::Ready { .. } => {}
            Attempt::BackingOff { until } => consider(*until, Expired::BackoffOver),
            Attempt::Running(running) => {
                let end = running.started_at.plus_micros(self.start_to_close_us());
                consider(end, Expired::Attempt(ActivityTimeoutKind::StartToClose));
                if let Some(micros) = self.heartbeat_us() {
                    let end = running.sign_at.plus_micros(micros);
                    consider(end, Expired::Attempt(ActivityTimeoutKind::Heartbeat));
                }
                // What was asked to stop is not given up at the grace: an undo could overtake it.
                if let (Some(until), false) = (running.claimable_until, self.cancel_requested) {
                    consider(until, Expired::Unclaimed);
                }
            }
            Attempt::Unknown { since, claimable_until } => {
                if self.cancel_requested {
                    let (end, kind) = self.dropped_by(*since);
                    consider(end, Expired::Attempt(kind));
                } else {
                    consider(*claimable_until, Expired::Unclaimed);
                }
            }
        }
        next
    }

    /// What is due. The end of the whole activity comes before all that is smaller.
    fn expired(&self, now: Timestamp) -> Option<Expired> {
        if self.schedule_to_close().is_some_and(|at| at <= now) {
            return Some(Expired::Closed(ActivityTimeoutKind::ScheduleToClose));
        }
        self.next_expiry().filter(|(at, _)| *at <= now).map(|(_, expired)| expired)
    }

    /// When the activity needs attention.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.next_expiry().map(|(at, _)| at)
    }

    /// Whether the next attempt may be given to a worker.
    pub(super) fn ready_since(&self, now: Timestamp) -> Option<Timestamp> {
        match self.attempt {
            Attempt::Ready { since, .. } => Some(since),
            Attempt::BackingOff { until } if until <= now => Some(until),
            Attempt::BackingOff { .. } | Attempt::Running(_) | Attempt::Unknown { .. } => None,
        }
    }

    /// Whether the token names the attempt that counts: the running one, or one that may be out.
    fn counts(&self, token: Token) -> bool {
        match &self.attempt {
            Attempt::Running(running) => running.token == token,
            Attempt::Unknown { .. } | Attempt::Ready { may_be_out: true, .. } => {
                match self.written_token() {
                    Some(written) => Token::from_wire(written).is_ok_and(|known| known == token),
                    None => token.attempt == self.attempts().saturating_add(1),
                }
            }
            Attempt::Ready { may_be_out: false, .. } | Attempt::BackingOff { .. } => false,
        }
    }

    /// The attempt that runs or may run.
    fn attempt_out(&self) -> u32 {
        match &self.attempt {
            Attempt::Running(running) => running.token.attempt,
            Attempt::Unknown { .. } | Attempt::Ready { may_be_out: true, .. } => {
                self.attempts().saturating_add(1)
            }
            Attempt::Ready { may_be_out: false, .. } | Attempt::BackingOff { .. } => {
                self.attempts()
            }
        }
    }

    /// Whether no attempt is out, so that a cancel closes the activity at once.
    pub(super) fn is_at_home(&self) -> bool {
        match self.attempt {
            Attempt::Ready { may_be_out, .. } => !may_be_out,
            Attempt::BackingOff { .. } => true,
            Attempt::Running(_) | Attempt::Unknown { .. } => false,
        }
    }

    /// The wait before the attempt after this one.
    fn backoff_us(&self, attempt: u32) -> i64 {
        let retry = self.scheduled.retry.as_ref();
        let or = |micros: Option<i64>, default| micros.filter(|&m| m > 0).unwrap_or(default);
        let initial = or(retry.map(|r| r.initial_interval_us), DEFAULT_INITIAL_INTERVAL_US);
        let max = or(retry.map(|r| r.max_interval_us), DEFAULT_MAX_INTERVAL_US);
        let factor = retry.map(|r| r.backoff_coefficient).filter(|&f| f >= 1.0).unwrap_or(2.0);
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        // A float that is too large becomes the largest integer.
        let wait = (initial as f64 * factor.powi(exponent)) as i64;
        wait.clamp(0, max)
    }

    fn is_retryable(&self, failure: &Failure) -> bool {
        let policy = self.scheduled.retry.as_ref();
        !failure.non_retryable
            && !policy.is_some_and(|retry| retry.non_retryable_kinds.contains(&failure.kind))
    }

    /// Where it stands after a load.
    fn after_load(&self, now: Timestamp, work: Work, limits: &Limits) -> Attempt {
        let claimable_until = now.plus_micros(limits.reconnect_grace_us);
        let unknown = Attempt::Unknown { since: now, claimable_until };
        if self.cancel_requested {
            // It would have closed if no attempt had been out.
            return unknown;
        }
        let never_out = self.written_token().is_none() && self.is_last(self.attempts() + 1);
        let next = self.row.as_ref().map_or(0, |row| row.next_attempt_at_us);
        let next = Timestamp::from_micros(next);
        if work == Work::NoneInFlight || self.written_token().is_none() && next > now {
            Attempt::BackingOff { until: next }
        } else if never_out {
            Attempt::Ready { since: now, may_be_out: false }
        } else {
            unknown
        }
    }

    /// Bytes of memory, roughly.
    pub(super) fn memory_bytes(&self) -> usize {
        let arguments: usize =
            self.scheduled.arguments.iter().map(|payload| payload.data.len() + 80).sum();
        let row = self.row.as_ref().map_or(0, |row| size_of_val(&**row) + row.encoded_len());
        size_of::<Self>() + 128 + arguments + row
    }
}

impl Run {
    /// Where the activity stands in the list.
    pub(super) fn activity_place(&self, number: u32) -> Option<usize> {
        self.activities.binary_search_by_key(&number, |activity| activity.number()).ok()
    }

    pub(super) fn activity(&self, number: u32) -> Option<&Activity> {
        self.activity_place(number).map(|place| &*self.activities[place])
    }

    pub(super) fn activity_mut(&mut self, number: u32) -> Option<&mut Activity> {
        self.activity_place(number).map(|place| &mut *self.activities[place])
    }

    /// Folds a scheduled activity in.
    pub(super) fn schedule_activity(&mut self, at: Timestamp, scheduled: &ActivityScheduled) {
        self.activities.push(Box::new(Activity::new(scheduled.clone(), at)));
    }

    /// Folds a request to stop in. An activity that has closed stays closed.
    pub(super) fn cancel_activity(&mut self, number: u32) {
        if let Some(activity) = self.activity_mut(number) {
            activity.cancel_requested = true;
            if let Attempt::Ready { since, may_be_out: true } = activity.attempt {
                activity.attempt = Attempt::Unknown { since, claimable_until: since };
            }
        }
    }

    /// Folds the end of an activity in.
    pub(super) fn end_activity(&mut self, number: u32) {
        if let Some(place) = self.activity_place(number) {
            self.activities.remove(place);
        }
    }

    /// After a load: what may be out becomes claimable.
    pub(super) fn load_attempts(&mut self, now: Timestamp, work: Work, limits: &Limits) {
        for activity in &mut self.activities {
            activity.attempt = activity.after_load(now, work, limits);
        }
    }

    /// An activity that waits for a worker.
    pub fn activity_offer(&self, now: Timestamp, number: u32) -> Option<ActivityOffer<'_>> {
        let activity = self.activity(number)?;
        let since = activity.ready_since(now)?;
        let scheduled = &activity.scheduled;
        Some(ActivityOffer {
            task_queue: &scheduled.task_queue,
            activity_type: &scheduled.activity_type,
            priority: scheduled.priority,
            since,
        })
    }

    /// The activities that wait for a worker, by number.
    pub fn ready_activities(&self, now: Timestamp) -> impl Iterator<Item = u32> {
        self.activities
            .iter()
            .filter(move |activity| activity.ready_since(now).is_some())
            .map(|activity| activity.number())
    }

    /// What a worker gets for a running attempt. The caller fills in the namespace's name.
    pub fn activity_task(&self, token: Token) -> Option<ActivityTask> {
        let activity = self.activity(token.number)?;
        let Attempt::Running(running) = &activity.attempt else { return None };
        if running.token != token {
            return None;
        }
        let mut start_to_close_us = activity.start_to_close_us();
        if let Some(end) = activity.schedule_to_close() {
            // The worker drops the attempt no later than the activity times out as a whole.
            let left = end.since(running.started_at).as_micros() as i64;
            start_to_close_us = start_to_close_us.min(left);
        }
        Some(ActivityTask {
            token: Some(token.to_wire()),
            workflow_id: self.identity.workflow_id.clone(),
            workflow_type: self.identity.workflow_type.clone(),
            activity_type: activity.scheduled.activity_type.clone(),
            arguments: activity.scheduled.arguments.clone(),
            scheduled_at_us: activity.scheduled_at.as_micros(),
            start_to_close_us,
            heartbeat_us: activity.heartbeat_us().unwrap_or(0),
            heartbeat_details: activity.details().cloned(),
            namespace: String::new(),
        })
    }

    /// A worker has been found for the next attempt.
    pub(super) fn decide_start_attempt(
        &self,
        now: Timestamp,
        number: u32,
        worker: &Worker,
        incarnation: Incarnation,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let activity = self.activity(number).ok_or(Rejection::Stale)?;
        activity.ready_since(now).ok_or(Rejection::Stale)?;
        let may_be_out = matches!(activity.attempt, Attempt::Ready { may_be_out: true, .. });
        // What may be out and was not claimed is written off by the dispatch that follows it.
        let ended = activity.attempts() + u32::from(may_be_out);
        let token = Token { run_id: self.identity.run_id, number, incarnation, attempt: ended + 1 };
        let started_at = now.plus_micros(limits.clock_error_us);
        let running = Running {
            token,
            session: worker.session,
            identity: worker.identity.clone(),
            started_at,
            sign_at: started_at,
            claimable_until: None,
        };
        let mut decision = Decision {
            effects: vec![Effect::SendActivity { token, session: worker.session }],
            leases: vec![LeaseChange::Attempt {
                number,
                attempt: Attempt::Running(Box::new(running)),
            }],
            ..Decision::default()
        };
        if may_be_out || activity.is_last(token.attempt) {
            let row = PendingActivity {
                attempts: ended,
                written_token: Some(token.to_wire()),
                ..activity.current_row()
            };
            decision.pending.push((number, Some(row)));
        }
        Ok(decision)
    }

    /// The activity whose attempt the token names, if that attempt counts.
    ///
    /// Refusals speak of the run's newest state: like every answer they leave the server only when
    /// that is durable.
    fn counting(&self, token: Token) -> Result<&Activity, Rejection> {
        if token.run_id != self.identity.run_id {
            return Err(Rejection::Stale);
        }
        match self.activity(token.number) {
            Some(activity) if activity.counts(token) => Ok(activity),
            None if self.inbox.iter().any(|fact| closes_attempt(fact, token)) => {
                Err(Rejection::Recorded)
            }
            Some(_) | None => Err(Rejection::Stale),
        }
    }

    pub(super) fn decide_complete_activity(
        &self,
        now: Timestamp,
        token: Token,
        result: Option<&Payload>,
        identity: &str,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let activity = self.counting(token)?;
        let Token { number, attempt, .. } = token;
        let closing = match check_payloads(result, 0, limits) {
            Ok(()) => Attributes::ActivityCompleted(ActivityCompleted {
                number,
                result: result.cloned(),
                attempt,
                identity: identity.to_owned(),
            }),
            // The worker cannot make it smaller, so there is no use in another attempt.
            Err(limit) => failed(activity, attempt, None, identity, Some(limit)),
        };
        Ok(self.close_activity(now, activity, closing))
    }

    pub(super) fn decide_fail_activity(
        &self,
        now: Timestamp,
        token: Token,
        failure: &Failure,
        identity: &str,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let activity = self.counting(token)?;
        let attempt = token.attempt;
        let failure = cut_failure(failure, limits.payload_bytes);
        if !activity.is_retryable(&failure) {
            let closing = failed(activity, attempt, Some(failure), identity, None);
            return Ok(self.close_activity(now, activity, closing));
        }
        let mut decision = Decision::default();
        end_attempt(
            now,
            activity,
            attempt,
            &Ended::Failed(&failure),
            identity,
            limits,
            &mut decision,
        );
        self.offer_task_for_records(now, &mut decision);
        Ok(decision)
    }

    pub(super) fn decide_cancelled_activity(
        &self,
        now: Timestamp,
        token: Token,
        failure: Option<&Failure>,
        identity: &str,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let activity = self.counting(token)?;
        if activity.cancel_requested {
            let failure = failure.map(|failure| cut_failure(failure, limits.payload_bytes));
            let closing = cancelled(activity.number(), token.attempt, failure);
            return Ok(self.close_activity(now, activity, closing));
        }
        // Nobody asked: it is an attempt that failed, whatever the worker calls it.
        let unasked = Failure {
            kind: "onward::Cancelled".into(),
            message: "the attempt stopped without being asked to".into(),
            ..Failure::default()
        };
        let mut failure = failure.cloned().unwrap_or(unasked);
        failure.non_retryable = false;
        self.decide_fail_activity(now, token, &failure, identity, limits)
    }

    pub(super) fn decide_heartbeat(
        &self,
        now: Timestamp,
        token: Token,
        details: Option<&Payload>,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let activity = self.counting(token)?;
        let number = token.number;
        // Larger details are not kept; the sign of life counts all the same.
        let fits =
            |details: &&Payload| details.encoded_len() as u64 <= limits.heartbeat_details_bytes;
        let details = details.filter(fits).cloned();
        let mut decision = Decision::default();
        let news = details.as_ref().or(activity.unsaved_details.as_ref());
        if let Some(news) = news
            && activity.saved_at.plus_micros(DETAILS_INTERVAL_US) <= now
        {
            let row =
                PendingActivity { heartbeat_details: Some(news.clone()), ..activity.current_row() };
            decision.pending.push((number, Some(row)));
        }
        decision.leases.push(LeaseChange::Heartbeat { number, at: now, details });
        Ok(decision)
    }

    pub(super) fn decide_claim(
        &self,
        now: Timestamp,
        token: Token,
        worker: &Worker,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let activity = self.counting(token)?;
        let started_at = now.plus_micros(limits.clock_error_us);
        let mut running = match &activity.attempt {
            Attempt::Running(running) => (**running).clone(),
            // When it started is not known, only that it was before now.
            Attempt::Ready { .. } | Attempt::BackingOff { .. } | Attempt::Unknown { .. } => {
                Running {
                    token,
                    session: worker.session,
                    identity: String::new(),
                    started_at,
                    sign_at: started_at,
                    claimable_until: None,
                }
            }
        };
        running.session = worker.session;
        running.identity.clone_from(&worker.identity);
        running.claimable_until = None;
        running.sign_at = running.sign_at.max(now);

        let mut decision = Decision::default();
        if matches!(activity.attempt, Attempt::Ready { .. }) {
            decision.effects.push(Effect::WithdrawActivity { number: token.number });
        }
        if activity.cancel_requested {
            // The session that was told before is gone.
            let reason = CancelReason::Requested;
            decision.effects.push(Effect::CancelAttempt { token, session: worker.session, reason });
        }
        decision.leases.push(LeaseChange::Attempt {
            number: token.number,
            attempt: Attempt::Running(Box::new(running)),
        });
        Ok(decision)
    }

    /// What the deadlines of all activities mean.
    pub(super) fn expire_activities(
        &self,
        now: Timestamp,
        limits: &Limits,
        decision: &mut Decision,
    ) {
        for activity in &self.activities {
            let Some(expired) = activity.expired(now) else { continue };
            let number = activity.number();
            match expired {
                Expired::Closed(kind) => {
                    let attempt = activity.attempt_out();
                    drop_attempt(activity, decision);
                    let closing = timed_out(activity, kind, attempt);
                    decision.records.push(record(now, closing));
                    remove_row(activity, decision);
                }
                Expired::Attempt(kind) => {
                    drop_attempt(activity, decision);
                    let attempt = activity.attempt_out();
                    let ended = Ended::TimedOut(kind);
                    end_attempt(now, activity, attempt, &ended, "", limits, decision);
                }
                Expired::Unclaimed => match &activity.attempt {
                    Attempt::Running(running) => {
                        drop_attempt(activity, decision);
                        let attempt = running.token.attempt;
                        let identity = &running.identity;
                        end_attempt(
                            now,
                            activity,
                            attempt,
                            &Ended::Lost,
                            identity,
                            limits,
                            decision,
                        );
                    }
                    Attempt::Ready { .. }
                    | Attempt::BackingOff { .. }
                    | Attempt::Unknown { .. } => {
                        let attempt = activity.attempt_out();
                        if activity.is_last(attempt) {
                            let ended = Ended::Lost;
                            end_attempt(now, activity, attempt, &ended, "", limits, decision);
                        } else {
                            make_ready(now, number, true, decision);
                        }
                    }
                },
                Expired::BackoffOver => make_ready(now, number, false, decision),
            }
        }
    }

    /// Records the end of an activity.
    fn close_activity(&self, now: Timestamp, activity: &Activity, closing: Attributes) -> Decision {
        let mut decision = Decision { records: vec![record(now, closing)], ..Decision::default() };
        if matches!(activity.attempt, Attempt::Ready { .. }) {
            decision.effects.push(Effect::WithdrawActivity { number: activity.number() });
        }
        remove_row(activity, &mut decision);
        self.offer_task_for_facts(now, &mut decision);
        decision
    }

    /// The attempts of a lost session become claimable.
    pub(super) fn lose_attempts(&mut self, session: SessionId, until: Timestamp) {
        for activity in &mut self.activities {
            if let Attempt::Running(running) = &mut activity.attempt
                && running.session == session
            {
                running.claimable_until = Some(until);
            }
        }
    }
}

fn make_ready(now: Timestamp, number: u32, may_be_out: bool, decision: &mut Decision) {
    let attempt = Attempt::Ready { since: now, may_be_out };
    decision.leases.push(LeaseChange::Attempt { number, attempt });
    decision.effects.push(Effect::OfferActivity { number });
}

/// Tells the worker that its attempt no longer counts, or takes the offer back.
fn drop_attempt(activity: &Activity, decision: &mut Decision) {
    match &activity.attempt {
        Attempt::Running(running) => decision.effects.push(Effect::CancelAttempt {
            token: running.token,
            session: running.session,
            reason: CancelReason::Lost,
        }),
        Attempt::Ready { .. } => {
            decision.effects.push(Effect::WithdrawActivity { number: activity.number() });
        }
        Attempt::BackingOff { .. } | Attempt::Unknown { .. } => {}
    }
}

/// An attempt has ended without success: another one follows, or the activity closes.
#[allow(clippy::too_many_arguments)] // one place for one rule, called with what each caller knows
fn end_attempt(
    now: Timestamp,
    activity: &Activity,
    attempt: u32,
    ended: &Ended<'_>,
    identity: &str,
    limits: &Limits,
    decision: &mut Decision,
) {
    let number = activity.number();
    if activity.cancel_requested || activity.is_last(attempt) {
        let closing = match ended {
            Ended::TimedOut(kind) => timed_out(activity, *kind, attempt),
            Ended::Failed(failure) if activity.cancel_requested => {
                cancelled(number, attempt, Some((*failure).clone()))
            }
            Ended::Failed(failure) => Attributes::ActivityFailed(ActivityFailed {
                number,
                failure: Some((*failure).clone()),
                cause: ActivityFailureCause::Exhausted.into(),
                attempt,
                identity: identity.to_owned(),
                refused: None,
            }),
            Ended::Lost => Attributes::ActivityFailed(ActivityFailed {
                number,
                failure: None,
                cause: ActivityFailureCause::OutcomeUnknown.into(),
                attempt,
                identity: identity.to_owned(),
                refused: None,
            }),
        };
        decision.records.push(record(now, closing));
        remove_row(activity, decision);
        return;
    }

    let mut row = PendingActivity {
        attempts: attempt,
        written_token: None,
        last_timeout: 0,
        ..activity.current_row()
    };
    let mut wait = activity.backoff_us(attempt);
    match ended {
        Ended::Failed(failure) => {
            row.last_failure = Some(cut_failure(failure, limits.last_failure_bytes));
            if let Some(micros) = failure.next_delay_us {
                wait = micros.clamp(0, super::limits::MAX_DURATION_US);
            }
        }
        Ended::TimedOut(kind) => row.last_timeout = (*kind).into(),
        Ended::Lost => {
            row.last_failure = Some(Failure {
                kind: "onward::WorkerLost".into(),
                message: format!("the worker {identity} vanished"),
                ..Failure::default()
            });
        }
    }
    let until = now.plus_micros(wait);
    row.next_attempt_at_us = until.as_micros();
    decision.pending.push((number, Some(row)));
    if until <= now {
        make_ready(now, number, false, decision);
    } else {
        let attempt = Attempt::BackingOff { until };
        decision.leases.push(LeaseChange::Attempt { number, attempt });
    }
}

/// Removes the row of an activity that closes.
pub(super) fn remove_row(activity: &Activity, decision: &mut Decision) {
    if activity.row.is_some() {
        decision.pending.push((activity.number(), None));
    }
}

/// An activity that stopped because it was asked to.
pub(super) fn cancelled(number: u32, attempt: u32, failure: Option<Failure>) -> Attributes {
    Attributes::ActivityCancelled(ActivityCancelled { number, attempt, failure })
}

/// An activity whose command broke a limit.
pub(super) fn refused(number: u32, limit: Limit) -> Attributes {
    Attributes::ActivityFailed(ActivityFailed {
        number,
        failure: None,
        cause: ActivityFailureCause::Refused.into(),
        attempt: 0,
        identity: String::new(),
        refused: Some(limit),
    })
}

fn failed(
    activity: &Activity,
    attempt: u32,
    failure: Option<Failure>,
    identity: &str,
    refused: Option<Limit>,
) -> Attributes {
    let cause = match refused {
        Some(_) => ActivityFailureCause::Refused,
        None => ActivityFailureCause::Application,
    };
    Attributes::ActivityFailed(ActivityFailed {
        number: activity.number(),
        failure,
        cause: cause.into(),
        attempt,
        identity: identity.to_owned(),
        refused,
    })
}

fn timed_out(activity: &Activity, kind: ActivityTimeoutKind, attempt: u32) -> Attributes {
    Attributes::ActivityTimedOut(ActivityTimedOut {
        number: activity.number(),
        kind: kind.into(),
        last_failure: activity.row.as_ref().and_then(|row| row.last_failure.clone()),
        attempt,
    })
}

/// Whether a fact closes an activity with the attempt of this token.
fn closes_attempt(fact: &HistoryEvent, token: Token) -> bool {
    closed_activity(fact) == Some((token.number, token.attempt))
}

/// The activity that a fact closes, and the attempt that did it.
pub(super) fn closed_activity(fact: &HistoryEvent) -> Option<(u32, u32)> {
    match fact.attributes.as_ref()? {
        Attributes::ActivityCompleted(closed) => Some((closed.number, closed.attempt)),
        Attributes::ActivityFailed(closed) => Some((closed.number, closed.attempt)),
        Attributes::ActivityTimedOut(closed) => Some((closed.number, closed.attempt)),
        Attributes::ActivityCancelled(closed) => Some((closed.number, closed.attempt)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use onward_proto::v1::{ActivityTimeouts, PendingActivityState, RetryPolicy};

    use super::super::{fixture::*, *};

    fn timeouts(which: &str, micros: i64) -> ActivityTimeouts {
        let mut timeouts = ActivityTimeouts::default();
        *match which {
            "start-to-close" => &mut timeouts.start_to_close_us,
            "schedule-to-start" => &mut timeouts.schedule_to_start_us,
            "schedule-to-close" => &mut timeouts.schedule_to_close_us,
            "heartbeat" => &mut timeouts.heartbeat_us,
            _ => panic!(),
        } = micros;
        timeouts
    }

    /// One call with this timeout.
    fn limited(which: &str, micros: i64, max_attempts: u32) -> Story {
        let retry = RetryPolicy { max_attempts, ..RetryPolicy::default() };
        history().task([call_with(1, timeouts(which, micros), retry)])
    }

    #[test]
    fn scheduling_and_starting_an_attempt_write_nothing_but_the_event() {
        given(history().task([call(1)]))
            .then_effects("offer1")
            .dispatched(1)
            .then_effects("send1#1")
            .then_pending(1, None)
            .dispatched(1)
            .then_rejected(&Rejection::Stale)
            .returned(1)
            .then_effects("offer-task")
            .task([])
            .then_history("started task(0) call1 returned1#1 task(1)");
    }

    #[test]
    fn a_worker_gets_what_the_code_called() {
        let story = limited("heartbeat", secs(3), 0).dispatched(1);
        let task = story.run.activity_task(story.tokens[&1]).unwrap();
        assert_eq!(task.activity_type, "charge");
        assert_eq!(
            (task.workflow_id.as_str(), task.workflow_type.as_str()),
            ("order-42", "checkout")
        );
        assert_eq!((task.start_to_close_us, task.heartbeat_us), (secs(60), secs(3)));
        assert_eq!(task.arguments, [payload("1")]);
        // An attempt is told no more time than the activity as a whole has.
        let story = limited("schedule-to-close", secs(9), 0).after(secs(2)).dispatched(1);
        let task = story.run.activity_task(story.tokens[&1]).unwrap();
        assert_eq!(task.start_to_close_us, secs(7));
    }

    #[test]
    fn a_failed_attempt_is_repeated_after_a_wait_that_doubles_up_to_its_maximum() {
        let mut story = history().task([call(1)]);
        for (attempt, wait) in (1..).zip([1, 2, 4, 8, 16, 32, 64, 100, 100]) {
            story = story.dispatched(1).broke(1, "Flaky").then_effects("");
            let due = story.wake_in(secs(wait));
            story = story.then_pending(1, Some(attempt)).then_wakes(Wake::Cold(due));
            story = story.passes(secs(wait) - 1).then_effects("");
            assert_eq!(story.run.activity_offer(story.now, 1), None);
            story = story.passes(1).then_effects("offer1");
            assert_eq!(story.run.has_incident(&story.limits), attempt >= 10);
        }
        story = story.dispatched(1).then_effects("send1#10").then_pending(1, Some(9));
        story = story.broke(1, "Flaky");
        assert!(story.run.has_incident(&story.limits));
        let story = story.passes(secs(100)).dispatched(1).returned(1).then_pending(1, None);
        assert!(!story.run.has_incident(&story.limits));
        story.then_inbox("returned1#11");
    }

    #[test]
    fn what_is_not_retryable_closes_the_activity() {
        let failures = [Failure { non_retryable: true, ..failure("Declined") }, failure("Fatal")];
        for failure in failures {
            let retry =
                RetryPolicy { non_retryable_kinds: vec!["Fatal".into()], ..RetryPolicy::default() };
            given(history().task([call_with(1, ActivityTimeouts::default(), retry)]))
                .dispatched(1)
                .broke_with(1, failure)
                .then_effects("offer-task")
                .then_inbox("broke1#1:Application");
        }
    }

    #[test]
    fn a_failure_may_name_the_wait_itself() {
        let retry_at_once = Failure { next_delay_us: Some(0), ..failure("Busy") };
        let later = Failure { next_delay_us: Some(secs(7)), ..failure("Busy") };
        let story = history().task([call(1)]).dispatched(1).broke_with(1, retry_at_once);
        let story = story.then_effects("offer1").dispatched(1).broke_with(1, later);
        let due = story.wake_in(secs(7));
        story.then_wakes(Wake::Cold(due));
    }

    #[test]
    fn the_last_failure_is_kept_short_beside_the_history_and_whole_in_it() {
        let long = Failure { message: "x".repeat(10_000), ..failure("Flaky") };
        let story = history().task([call_times(1, 2)]).dispatched(1).broke_with(1, long.clone());
        assert!(story.pending[&1].last_failure.as_ref().unwrap().encoded_len() <= 4_096);
        let story = story.passes(secs(1)).dispatched(1).broke_with(1, long.clone());
        let story = story.then_inbox("broke1#2:Exhausted").then_pending(1, None);
        let Some(Attributes::ActivityFailed(failed)) = &story.run.inbox[0].attributes else {
            panic!()
        };
        assert_eq!(failed.failure.as_ref(), Some(&long));
    }

    #[test]
    fn the_last_allowed_attempt_is_on_record_before_it_goes_out() {
        let story = history().task([call_times(1, 1)]).dispatched(1).then_pending(1, Some(0));
        let written = story.pending[&1].written_token.clone().unwrap();
        assert_eq!(Token::from_wire(&written).unwrap(), story.tokens[&1]);
        let story = history().task([call_times(1, 2)]).dispatched(1).then_pending(1, None);
        let story = story.broke(1, "Flaky").passes(secs(1));
        assert_eq!(story.pending[&1].written_token, None);
        let story = story.dispatched(1).then_pending(1, Some(1));
        assert_eq!(story.pending[&1].written_token.as_ref().unwrap().attempt, 2);
    }

    #[test]
    fn an_unclaimed_last_attempt_is_never_repeated() {
        given(history().task([call_times(1, 1)]).dispatched(1).reload())
            .passes(secs(10) - 1)
            .then_inbox("")
            .passes(1)
            .then_effects("offer-task")
            .then_inbox("broke1#1:OutcomeUnknown")
            .then_pending(1, None);
        // The same when its session is lost.
        given(history().task([call_times(1, 1)]).dispatched(1).session_lost(1))
            .passes(secs(10))
            .then_inbox("broke1#1:OutcomeUnknown");
    }

    #[test]
    fn a_last_attempt_without_a_written_token_was_never_out() {
        let story = history().task([call_times(1, 1)]).reload();
        assert_eq!(story.run.ready_activities(story.now).collect::<Vec<_>>(), [1]);
        story.dispatched(1).then_effects("send1#1").returned(1).then_inbox("returned1#1");
    }

    #[test]
    fn after_a_load_what_may_be_out_can_be_claimed_or_answered() {
        for max_attempts in [0, 1, 3] {
            let story = history().task([call_times(1, max_attempts)]).dispatched(1).reload();
            assert_eq!(story.run.ready_activities(story.now).count(), 0);
            let story = story.after(secs(5)).claimed(1, 2).then_effects("").passes(secs(20));
            let info = &story.run.describe(story.now, &|_| 1, &story.limits).pending_activities;
            assert_eq!(info[0].state(), PendingActivityState::Running);
            story.returned(1).then_inbox("returned1#1");
            let story = history().task([call_times(1, max_attempts)]).dispatched(1).reload();
            story.returned(1).then_inbox("returned1#1").then_pending(1, None);
        }
    }

    #[test]
    fn what_nobody_claims_goes_out_as_the_next_attempt_with_its_token_on_record() {
        let story = history().task([call(1)]).dispatched(1).reload().passes(secs(10));
        let story = story.then_effects("offer1").then_pending(1, None);
        let first = story.tokens[&1];
        let story = story.dispatched_to(1, 2).then_effects("send1#2").then_pending(1, Some(1));
        assert_eq!(story.pending[&1].written_token.as_ref().unwrap().attempt, 2);
        // The first attempt comes too late now, whatever it says.
        let worker = worker(1);
        let story = story.when(&Input::ClaimAttempt { token: first, worker });
        let story = story.then_rejected(&Rejection::Stale);
        let story = story.returned_by(first).then_rejected(&Rejection::Stale);
        // The written token is found again after another load, and only that one.
        let story = story.reload().returned_by(first).then_rejected(&Rejection::Stale);
        let other = Token { incarnation: Incarnation(99), ..story.tokens[&1] };
        let story = story.returned_by(other).then_rejected(&Rejection::Stale);
        story.returned(1).then_inbox("returned1#2").then_pending(1, None);
    }

    #[test]
    fn a_claim_counts_after_the_grace_as_long_as_nothing_was_dispatched() {
        given(history().task([call(1)]).dispatched(1).reload().passes(secs(10)))
            .claimed(1, 2)
            .then_effects("withdraw1")
            .dispatched(1)
            .then_rejected(&Rejection::Stale)
            .returned(1)
            .then_inbox("returned1#1");
    }

    #[test]
    fn the_first_claim_wins() {
        let story = history().task([call(1)]).dispatched(1).reload().claimed(1, 2);
        let token = Token { incarnation: Incarnation(99), ..story.tokens[&1] };
        let worker = worker(3);
        story.when(&Input::ClaimAttempt { token, worker }).then_rejected(&Rejection::Stale);
    }

    #[test]
    fn after_a_load_a_wait_between_attempts_goes_on() {
        let story = history().task([call(1)]).dispatched(1).broke(1, "Flaky");
        let due = story.wake_in(secs(1));
        let story = story.after(400_000).reload().then_wakes(Wake::Cold(due));
        story.passes(600_000).dispatched(1).then_effects("send1#2").then_pending(1, Some(1));
    }

    #[test]
    fn a_lost_sessions_attempt_may_be_claimed_for_a_while_and_is_then_written_off() {
        let story = history().task([call(1)]).dispatched(1).session_lost(1);
        let story = story.passes(secs(5)).then_effects("").claimed(1, 2).passes(secs(20));
        let story = story.then_pending(1, None).session_lost(2).passes(secs(10));
        let story = story.then_effects("cancel1#1:Lost").then_pending(1, Some(1));
        let story = story.claimed(1, 3).then_rejected(&Rejection::Stale);
        let story = story.returned(1).then_rejected(&Rejection::Stale);
        story.passes(secs(1)).dispatched(1).then_effects("send1#2");
    }

    #[test]
    fn a_completion_that_came_before_says_recorded_or_stale() {
        let story = history().task([call(1)]).dispatched(1).returned(1).returned(1);
        let story = story.then_rejected(&Rejection::Recorded);
        let later = Token { attempt: 2, ..story.tokens[&1] };
        let story = story.returned_by(later).then_rejected(&Rejection::Stale);
        story.task([]).returned(1).then_rejected(&Rejection::Stale);
    }

    #[test]
    fn start_to_close_ends_one_attempt() {
        let story = limited("start-to-close", secs(5), 2).after(secs(2)).dispatched(1);
        let story = story.passes(secs(5) - 1).then_effects("").passes(1);
        let story = story.then_effects("cancel1#1:Lost").then_pending(1, Some(1));
        let story = story.passes(secs(1)).dispatched(1).passes(secs(5));
        story.then_inbox("timed-out1#2:StartToClose").then_pending(1, None);
    }

    #[test]
    fn start_to_close_is_a_minute_when_nothing_is_set() {
        let story = history().task([call(1)]).dispatched(1);
        let end = story.wake_in(secs(60));
        story.then_wakes(Wake::Hot(Some(end))).passes(secs(60)).then_pending(1, Some(1));
    }

    #[test]
    fn heartbeats_keep_an_attempt_alive() {
        let story = limited("heartbeat", secs(3), 1).dispatched(1).after(secs(2));
        let story = story.heartbeat(1, None).passes(secs(2)).then_inbox("");
        story.passes(secs(1)).then_inbox("timed-out1#1:Heartbeat");
    }

    #[test]
    fn details_go_to_the_next_attempt_and_are_written_now_and_then() {
        let story = history().task([call(1)]).dispatched(1);
        let story = story.heartbeat(1, Some("one")).then_pending(1, Some(0)).after(secs(1));
        let saved = |story: &Story| story.pending[&1].heartbeat_details.clone().unwrap();
        let story = story.heartbeat(1, Some("two"));
        assert_eq!(saved(&story), payload("one"), "not that often");
        let story = story.after(secs(1)).heartbeat(1, None);
        assert_eq!(saved(&story), payload("two"));
        let story = story.heartbeat(1, Some("three")).broke(1, "Flaky");
        assert_eq!(saved(&story), payload("three"));
        let story = story.passes(secs(1)).dispatched(1);
        let task = story.run.activity_task(story.tokens[&1]).unwrap();
        assert_eq!(task.heartbeat_details, Some(payload("three")));
        // What is too large is not kept, the sign of life counts.
        let story = story.after(secs(9)).heartbeat(1, Some(&"x".repeat(70_000)));
        assert!(story.last.is_ok());
        assert_eq!(saved(&story), payload("three"));
    }

    #[test]
    fn schedule_to_start_closes_what_no_worker_took() {
        given(limited("schedule-to-start", secs(5), 0))
            .passes(secs(5))
            .then_effects("withdraw1 offer-task")
            .then_inbox("timed-out1#0:ScheduleToStart");
        given(limited("schedule-to-start", secs(5), 0).dispatched(1).passes(secs(6)))
            .then_inbox("")
            .broke(1, "Flaky")
            .passes(secs(20))
            .then_inbox("");
    }

    #[test]
    fn schedule_to_close_ends_all_attempts_and_the_waits_between() {
        let running = limited("schedule-to-close", secs(5), 0).dispatched(1).passes(secs(5));
        running
            .then_effects("cancel1#1:Lost offer-task")
            .then_inbox("timed-out1#1:ScheduleToClose");
        let waiting = limited("schedule-to-close", secs(5), 0).dispatched(1).broke(1, "Flaky");
        let waiting = waiting.passes(secs(1)).dispatched(1).broke(1, "Flaky").passes(secs(4));
        waiting.then_inbox("timed-out1#2:ScheduleToClose").then_pending(1, None);
    }

    #[test]
    fn cancelling_closes_at_once_only_what_never_left_the_server() {
        let waiting = || history().task([call(1)]).signal("a").handed_out();
        given(waiting().completed([cancel_call(1)]))
            .then_effects("withdraw1 offer-task")
            .then_inbox("cancelled1#0");
        given(history().task([call(1), cancel_call(1)]))
            .then_effects("offer-task")
            .then_history("started task(0) call1 cancel-call1")
            .then_inbox("cancelled1#0");
        let backing_off = history().task([call(1)]).dispatched(1).broke(1, "Flaky").signal("a");
        given(backing_off.task([cancel_call(1)])).then_inbox("cancelled1#1").then_pending(1, None);
        given(waiting().dispatched(1).completed([cancel_call(1)]))
            .then_effects("cancel1#1:Requested")
            .then_inbox("");
    }

    /// A running attempt that was asked to stop.
    fn asked_to_stop() -> Story {
        let retry = RetryPolicy::default();
        let command = call_with(1, timeouts("heartbeat", secs(5)), retry);
        history().task([command]).dispatched(1).signal("a").task([cancel_call(1)])
    }

    #[test]
    fn what_was_asked_to_stop_closes_when_its_attempt_ends() {
        asked_to_stop().returned(1).then_inbox("returned1#1");
        asked_to_stop().broke(1, "Flaky").then_inbox("cancelled1#1").then_pending(1, None);
        let fatal = Failure { non_retryable: true, ..failure("Declined") };
        asked_to_stop().broke_with(1, fatal).then_inbox("broke1#1:Application");
        let story = asked_to_stop();
        let token = story.tokens[&1];
        let stopped = Input::CancelledActivity { token, failure: None, identity: "w".into() };
        story.when(&stopped).then_inbox("cancelled1#1");
        // Not asked, it is a failed attempt.
        let story = history().task([call(1)]).dispatched(1).when(&stopped);
        story.then_inbox("").then_pending(1, Some(1));
    }

    #[test]
    fn what_was_asked_to_stop_outlives_the_grace_but_not_its_timeouts() {
        let lost = asked_to_stop().session_lost(1);
        lost.passes(secs(5) - 1).then_inbox("").passes(1).then_inbox("timed-out1#1:Heartbeat");
        let retry = RetryPolicy { max_attempts: 1, ..RetryPolicy::default() };
        let command = call_with(1, ActivityTimeouts::default(), retry);
        for reload in [false, true] {
            let story = history().task([command.clone()]).dispatched(1).signal("a");
            let story = story.task([cancel_call(1)]);
            let story = if reload { story.reload() } else { story.session_lost(1) };
            let story = story.passes(secs(59)).then_inbox("").passes(secs(1));
            story.then_inbox("timed-out1#1:StartToClose");
        }
    }

    #[test]
    fn a_claimed_attempt_is_told_again_that_it_was_asked_to_stop() {
        asked_to_stop().session_lost(1).claimed(1, 2).then_effects("cancel1#1:Requested");
        asked_to_stop().reload().claimed(1, 2).then_effects("cancel1#1:Requested");
    }

    #[test]
    fn what_may_be_out_is_not_dispatched_again_once_it_was_asked_to_stop() {
        let story = history().task([call(1)]).dispatched(1).reload().passes(secs(10));
        let story = story.signal("a").task([cancel_call(1)]).then_effects("withdraw1");
        let story = story.dispatched(1).then_rejected(&Rejection::Stale);
        story.passes(secs(60)).then_inbox("timed-out1#1:StartToClose");
    }

    #[test]
    fn cancelling_what_has_closed_changes_nothing() {
        given(history().task([call(1)]).dispatched(1).signal("a").handed_out().returned(1))
            .completed([cancel_call(1)])
            .then_history("started task(0) call1 signal:a task(1) cancel-call1")
            .then_inbox("returned1#1");
        given(history().task([call(1)]).dispatched(1).returned(1).task([cancel_call(1)]))
            .then_history("started task(0) call1 returned1#1 task(1) cancel-call1");
    }

    #[test]
    fn a_result_that_is_too_large_closes_the_activity_as_refused() {
        let limits = Limits { payload_bytes: 100, ..Limits::default() };
        let story = history_of(&start_request(), limits).task([call(1)]).dispatched(1);
        let token = story.tokens[&1];
        let result = Some(payload(&"x".repeat(101)));
        let input = Input::CompleteActivity { token, result, identity: "w".into() };
        story.when(&input).then_inbox("broke1#1:Refused");
    }

    use onward_proto::v1::{Failure, history_event::Attributes};
    use prost::Message as _;
}
