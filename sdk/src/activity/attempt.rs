//! One attempt of an activity: what it is told, what it says, and how it is stopped.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::task::AtomicWaker;
use onward_proto::{RunId, Timestamp, v1};
use tokio::sync::Notify;
use uuid::Uuid;

/// What an attempt knows about itself.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ActivityInfo {
    /// The namespace of the workflow.
    pub namespace: String,
    /// The workflow that called it.
    pub workflow_id: String,
    /// The run that called it.
    pub run_id: Uuid,
    /// The workflow's type.
    pub workflow_type: String,
    /// The activity's registered name.
    pub activity_type: String,
    /// The call's number in the run's own sequence.
    pub number: u32,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// When the workflow called it, in microseconds since the Unix epoch.
    pub scheduled_at: Timestamp,
    /// How long this attempt may take.
    pub timeout: Duration,
    /// How often it must give a sign of life, if ever.
    pub heartbeat: Option<Duration>,
    /// Whether it runs inside the workflow's own worker, as `ctx.local()` asked.
    pub local: bool,
}

/// Learns that an attempt has something to say.
pub(crate) trait Listener: Send + Sync {
    /// Called once until the details are taken.
    fn has_news(&self, attempt: &Attempt);
}

/// How an attempt is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The workflow asked for it: the answer counts.
    Requested,
    /// The attempt no longer counts.
    Lost,
}

/// What the context of an attempt and its worker share.
pub(crate) struct Attempt {
    pub(crate) info: ActivityInfo,
    /// The load of the lane that dispatched it; 0 for a local one.
    pub(crate) incarnation: u64,
    /// What the attempt before saved.
    pub(crate) last_heartbeat: Option<v1::Payload>,
    listener: Option<Arc<dyn Listener>>,
    details: Mutex<Option<v1::Payload>>,
    news: AtomicBool,
    /// Whether the code wants to be told of a cancel request, and then ends by itself.
    wants_cancel: AtomicBool,
    cancelled: AtomicBool,
    cancel: Notify,
    stop: AtomicU8,
    waker: AtomicWaker,
    direct_calls: AtomicU32,
}

const RUNNING: u8 = 0;
const STOP_REQUESTED: u8 = 1;
const STOP_LOST: u8 = 2;

impl Attempt {
    pub(crate) fn new(
        info: ActivityInfo,
        incarnation: u64,
        last_heartbeat: Option<v1::Payload>,
        listener: Option<Arc<dyn Listener>>,
    ) -> Self {
        Self {
            info,
            incarnation,
            last_heartbeat,
            listener,
            details: Mutex::new(None),
            news: AtomicBool::new(false),
            wants_cancel: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            cancel: Notify::new(),
            stop: AtomicU8::new(RUNNING),
            waker: AtomicWaker::new(),
            direct_calls: AtomicU32::new(0),
        }
    }

    /// An attempt that no worker runs, for a unit test.
    pub(crate) fn test() -> Self {
        let info = ActivityInfo {
            namespace: "default".to_owned(),
            workflow_id: "test".to_owned(),
            run_id: Uuid::nil(),
            workflow_type: "test".to_owned(),
            activity_type: "test".to_owned(),
            number: 1,
            attempt: 1,
            scheduled_at: Timestamp::from_micros(0),
            timeout: Duration::from_mins(1),
            heartbeat: None,
            local: false,
        };
        Self::new(info, 0, None, None)
    }

    pub(crate) fn run_id(&self) -> RunId {
        RunId::from_uuid(self.info.run_id)
    }

    pub(crate) fn token(&self) -> v1::ActivityToken {
        v1::ActivityToken {
            run_id: self.run_id().to_wire(),
            number: self.info.number,
            incarnation: self.incarnation,
            attempt: self.info.attempt,
        }
    }

    /// Saves what the next attempt should know.
    pub(crate) fn save(&self, details: v1::Payload) {
        *self.details.lock().unwrap_or_else(PoisonError::into_inner) = Some(details);
        self.announce();
    }

    /// Says the saved details once more, because the one who heard them may be gone.
    pub(crate) fn say_again(&self) {
        if self.saved().is_some() {
            self.news.store(true, Ordering::Release);
        }
    }

    fn announce(&self) {
        if !self.news.swap(true, Ordering::AcqRel)
            && let Some(listener) = &self.listener
        {
            listener.has_news(self);
        }
    }

    /// What was saved last.
    pub(crate) fn saved(&self) -> Option<v1::Payload> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was saved since the last call.
    pub(crate) fn take_news(&self) -> Option<v1::Payload> {
        if self.news.swap(false, Ordering::AcqRel) { self.saved() } else { None }
    }

    /// Tells the code to stop. One that did not ask for [`cancelled`](Self::cancelled) is dropped
    /// at its next await.
    pub(crate) fn stop(&self, why: Stop) {
        let stop = match why {
            Stop::Requested => {
                self.cancelled.store(true, Ordering::Release);
                self.cancel.notify_waiters();
                if self.wants_cancel.load(Ordering::Acquire) {
                    return;
                }
                STOP_REQUESTED
            }
            Stop::Lost => STOP_LOST,
        };
        self.stop.fetch_max(stop, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Whether the future must be dropped; the waker is woken when it must be.
    pub(crate) fn must_stop(&self, waker: &std::task::Waker) -> Option<Stop> {
        self.waker.register(waker);
        match self.stop.load(Ordering::Acquire) {
            RUNNING => None,
            STOP_REQUESTED => Some(Stop::Requested),
            _ => Some(Stop::Lost),
        }
    }

    /// Whether the workflow asked this attempt to stop.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// From now on a cancel request is the code's own business.
    pub(crate) fn want_cancel(&self) {
        self.wants_cancel.store(true, Ordering::Release);
    }

    /// Waits for a cancel request.
    pub(crate) async fn cancelled(&self) {
        let notified = self.cancel.notified();
        tokio::pin!(notified);
        // Enabled before the look: a request between look and wait would be missed otherwise.
        notified.as_mut().enable();
        if !self.is_cancelled() {
            notified.await;
        }
    }

    /// The number of the next direct call.
    pub(crate) fn next_direct_call(&self) -> u32 {
        self.direct_calls.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("info", &self.info).finish_non_exhaustive()
    }
}
