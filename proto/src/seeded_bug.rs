//! Bugs that can be turned on, to see that the tests find them.
//!
//! They are in builds with feature `seeded-bugs` only, which is in no default and with which the
//! binary `onward` does not start. In all other builds [`SeededBug::is_on`] is `false` to the
//! compiler as well.

/// Whether this build has them.
pub const HAS_SEEDED_BUGS: bool = cfg!(feature = "seeded-bugs");

/// A bug that somebody might make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum SeededBug {
    /// An answer leaves before the batch that it rests on is in.
    AnswerBeforeCommit = 1,
    /// A batch is written whoever owns the shard.
    CommitWithoutFence = 2,
    /// A shard is taken by who has not watched it for a lease.
    TakeAtSight = 3,
    /// An owner whose lease has run out goes on to answer and to hand out.
    ServeWithoutLease = 4,
    /// A load forgets which requests were accepted.
    ForgetRequests = 5,
    /// The horizon of deadlines that were read ahead is raised when they are here, not before.
    RaiseHorizonLate = 6,
    /// An attempt that no longer counts ends its activity.
    LateAttempt = 8,
    /// A list of hot runs that cannot be read is taken for an empty one.
    SwallowListing = 9,
    /// A run closes over signals that its code has not seen.
    CloseOverSignals = 11,
    /// A batch whose outcome is unknown is taken to be in.
    AssumeLanded = 14,
    /// Work is lost when the worker that takes it goes away.
    OfferLost = 15,
    /// Cancels of one moment come in another order at a replay.
    CancelOrder = 20,
    /// A timeout is recorded beside the completion.
    CloseTwice = 23,
    /// An activity is handed out before its batch is in.
    DispatchBeforeCommit = 25,
    /// A completion counts for whatever task is in flight.
    AnyTask = 26,
    /// A description leaves before what it shows is in.
    DescribeBeforeCommit = 27,
    /// The key of a call differs from attempt to attempt.
    KeyByAttempt = 28,
    /// The only attempt that a policy allows goes out without a note of it.
    LastAttemptUnwritten = 29,
    /// A request that comes again is decided again.
    DecideAgain = 30,
    /// A deadline is due some time before it is.
    DueEarly = 31,
    /// A failed attempt is tried again at once.
    RetryAtOnce = 32,
    /// A run whose batch was lost stays in memory.
    KeepLost = 33,
    /// A closed run leaves the rows of its activities behind.
    LeavePending = 34,
    /// The row of a run that sleeps says that nothing will wake it.
    SleepForEver = 35,
}

impl SeededBug {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::AnswerBeforeCommit,
        Self::CommitWithoutFence,
        Self::TakeAtSight,
        Self::ServeWithoutLease,
        Self::ForgetRequests,
        Self::RaiseHorizonLate,
        Self::LateAttempt,
        Self::SwallowListing,
        Self::CloseOverSignals,
        Self::AssumeLanded,
        Self::OfferLost,
        Self::CancelOrder,
        Self::CloseTwice,
        Self::DispatchBeforeCommit,
        Self::AnyTask,
        Self::DescribeBeforeCommit,
        Self::KeyByAttempt,
        Self::LastAttemptUnwritten,
        Self::DecideAgain,
        Self::DueEarly,
        Self::RetryAtOnce,
        Self::KeepLost,
        Self::LeavePending,
        Self::SleepForEver,
    ];

    /// Its short name, for example `B08`.
    pub fn code(self) -> String {
        format!("B{:02}", self as u8)
    }

    /// Whether it is turned on.
    #[cfg(not(feature = "seeded-bugs"))]
    #[inline]
    pub const fn is_on(self) -> bool {
        false
    }

    /// Whether it is turned on.
    #[cfg(feature = "seeded-bugs")]
    pub fn is_on(self) -> bool {
        on::CHOSEN.load(std::sync::atomic::Ordering::Relaxed) == self as u8
    }

    /// Turns one on, or all off, for the whole process.
    #[cfg(feature = "seeded-bugs")]
    pub fn turn_on(bug: Option<Self>) {
        let chosen = bug.map_or(0, |bug| bug as u8);
        on::CHOSEN.store(chosen, std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(feature = "seeded-bugs")]
mod on {
    use std::sync::atomic::AtomicU8;

    /// The number of the one that is on; 0 for none.
    pub(super) static CHOSEN: AtomicU8 = AtomicU8::new(0);
}
