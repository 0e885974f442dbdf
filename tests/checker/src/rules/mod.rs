//! The invariants, by what they are about.

mod acks;
mod activities;
mod history;
mod linear;
mod looks;
mod ownership;
mod programs;
mod replay;
mod signals;
mod stale;
mod state;
mod takeover;
mod timers;

#[cfg(test)]
pub(crate) use history::closes;

use crate::judge::Rule;

/// All invariants.
pub const RULES: &[Rule] = &[
    history::CONTIGUOUS,
    history::PREFIX,
    history::FOLLOWED,
    history::CAUSALITY,
    history::TIME,
    history::NOTHING_MISSING,
    ownership::EPOCHS,
    ownership::BATCHES,
    ownership::FENCE,
    stale::NO_STALE_ANSWER,
    takeover::TAKEOVER,
    ownership::GOES_ON,
    acks::NO_LOST_ACK,
    acks::NO_GHOST,
    acks::ONCE,
    linear::LINEARIZABLE,
    acks::ONE_OPEN_RUN,
    acks::READ_YOUR_WRITE,
    looks::STANDS,
    activities::RAN,
    activities::LAST_ATTEMPT,
    activities::KEY,
    activities::POLICY,
    timers::NEVER_EARLY,
    timers::NEVER_EARLY_FOR_THE_CODE,
    signals::ORDER,
    signals::NOT_OVERLOOKED,
    state::ROW,
    state::WAKEABLE,
    state::CLOSED_IS_CLOSED,
    state::LISTED,
    replay::REPLAYS,
    replay::REPLAYS_IN_PART,
    programs::ENDS_RIGHT,
];
