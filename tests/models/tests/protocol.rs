//! What holds of the protocol in every order of its steps, and what each of its rules is there for.

use onward_models::{
    faults::Faults,
    search::search,
    world::{
        ACKED, ANSWERS, Bounds, CAME_BACK, EPOCHS, GHOST_FENCED, LANDED, NO_GAP, NO_GHOST,
        NOT_LANDED, ONE_RUN, OWNER_FENCED, Protocol, READ_AGAIN, RESOLVED_TWICE, REWIND_NOTICED,
        TOOK_OVER, TOOK_RELEASED, WITHHELD,
    },
};

/// Nothing happens.
const QUIET: Bounds =
    Bounds { ticks: 0, changes: 0, give_ups: 0, restarts: 0, drains: 0, rewinds: 0 };

/// Nothing is broken in any order, and what must be met, or the search proves nothing, is.
fn holds(bounds: Bounds, faults: Faults, met: &[&str]) {
    let found = search(&Protocol { bounds, faults, only: None });
    println!("{} states within {bounds:?}", found.states);
    if let Some(broken) = &found.broken {
        panic!("{faults:?}: {broken}");
    }
    let missing: Vec<_> = met.iter().filter(|met| !found.seen.contains(*met)).collect();
    assert!(missing.is_empty(), "never met: {missing:?}");
}

/// A property breaks, and the rules that were taken out make the difference.
fn breaks(property: &'static str, bounds: Bounds, faults: Faults) {
    let found = search(&Protocol { bounds, faults, only: Some(property) });
    let broken = found.broken.unwrap_or_else(|| panic!("{property}: holds all the same"));
    println!("{} states until {broken}", found.states);
    holds(bounds, Faults::NONE, &[]);
}

#[test]
fn promises_hold_whatever_is_lost_or_late() {
    let met = [TOOK_OVER, LANDED, NOT_LANDED, RESOLVED_TWICE, OWNER_FENCED, CAME_BACK, WITHHELD];
    holds(Bounds { ticks: 3, changes: 3, give_ups: 2, ..QUIET }, Faults::NONE, &met);
}

#[test]
fn promises_hold_though_a_shard_goes_back_and_forth() {
    let bounds = Bounds { ticks: 6, changes: 1, give_ups: 1, ..QUIET };
    holds(bounds, Faults::NONE, &[TOOK_OVER, OWNER_FENCED]);
}

#[test]
fn promises_hold_though_processes_are_killed_and_drained() {
    let bounds = Bounds { ticks: 3, changes: 1, give_ups: 1, restarts: 1, drains: 1, rewinds: 0 };
    holds(bounds, Faults::NONE, &[TOOK_OVER, TOOK_RELEASED, LANDED, NOT_LANDED]);
}

#[test]
fn promises_hold_though_a_failover_loses_batches() {
    let bounds = Bounds { changes: 3, give_ups: 1, drains: 1, rewinds: 1, ..QUIET };
    let met = [REWIND_NOTICED, GHOST_FENCED, LANDED, NOT_LANDED, TOOK_RELEASED];
    holds(bounds, Faults::NONE, &met);
}

#[test]
fn promises_hold_though_a_failover_loses_a_takeover() {
    holds(
        Bounds { ticks: 3, changes: 1, give_ups: 1, rewinds: 1, ..QUIET },
        Faults::NONE,
        &[REWIND_NOTICED, GHOST_FENCED, TOOK_OVER, CAME_BACK],
    );
    let bounds = Bounds { ticks: 3, changes: 2, rewinds: 1, ..QUIET };
    holds(bounds, Faults::NONE, &[REWIND_NOTICED, TOOK_OVER, READ_AGAIN]);
}

#[test]
fn what_is_read_without_a_lease_may_be_taken_back_by_a_failover() {
    let bounds = Bounds { ticks: 3, changes: 2, rewinds: 1, ..QUIET };
    for faults in [
        Faults { read_without_lease: true, ..Faults::NONE },
        Faults { read_over_a_gap: true, ..Faults::NONE },
    ] {
        breaks(ONE_RUN, bounds, faults);
    }
}

#[test]
fn a_stale_owner_is_fenced_by_its_epoch_and_by_the_batch_row_of_its_successor() {
    let bounds = Bounds { ticks: 3, changes: 2, give_ups: 1, ..QUIET };
    let neither =
        Faults { commit_without_epoch: true, owner_change_without_batch_row: true, ..Faults::NONE };
    breaks(ANSWERS, bounds, neither);
    // Either is enough, as long as the database loses nothing.
    for one in [
        Faults { commit_without_epoch: false, ..neither },
        Faults { owner_change_without_batch_row: false, ..neither },
    ] {
        holds(bounds, one, &[OWNER_FENCED]);
    }
}

#[test]
fn after_a_failover_an_older_epoch_would_follow_a_newer_one() {
    let faults =
        Faults { commit_without_epoch: true, commit_without_previous: true, ..Faults::NONE };
    breaks(EPOCHS, Bounds { ticks: 3, changes: 2, rewinds: 1, ..QUIET }, faults);
}

#[test]
fn a_batch_asks_for_the_one_before_it_because_a_failover_may_have_lost_that() {
    let faults = Faults { commit_without_previous: true, ..Faults::NONE };
    let bounds = Bounds { changes: 3, rewinds: 1, ..QUIET };
    breaks(NO_GAP, bounds, faults);
    breaks(ONE_RUN, bounds, faults);
}

#[test]
fn a_resolve_that_only_reads_says_nothing_about_what_is_still_on_its_way() {
    let faults = Faults { resolve_only_reads: true, ..Faults::NONE };
    breaks(NO_GHOST, Bounds { changes: 1, give_ups: 1, ..QUIET }, faults);
}

#[test]
fn a_batch_without_a_reply_is_not_taken_for_lost() {
    let faults = Faults { guess_instead_of_resolve: true, ..Faults::NONE };
    breaks(ANSWERS, Bounds { changes: 1, give_ups: 1, ..QUIET }, faults);
}

#[test]
fn nobody_is_told_before_the_commit() {
    let faults = Faults { ack_before_commit: true, ..Faults::NONE };
    breaks(ACKED, Bounds { changes: 1, ..QUIET }, faults);
}

#[test]
fn a_thief_watches_a_whole_lease_and_trusts_no_clock() {
    let faults = Faults { take_by_own_clock: true, ..Faults::NONE };
    breaks(ANSWERS, Bounds { ticks: 2, ..QUIET }, faults);
}

#[test]
fn a_lease_counts_from_when_its_renewal_was_sent() {
    let faults = Faults { lease_from_reply: true, ..Faults::NONE };
    breaks(ANSWERS, Bounds { ticks: 4, ..QUIET }, faults);
}

#[test]
fn a_lease_counts_from_the_first_attempt_that_may_have_renewed_it() {
    let faults = Faults { lease_from_last_attempt: true, ..Faults::NONE };
    breaks(ANSWERS, Bounds { ticks: 4, changes: 1, give_ups: 2, ..QUIET }, faults);
}

#[test]
fn a_lane_that_a_failover_has_overtaken_forgets_its_runs() {
    let faults = Faults { keep_memory: true, ..Faults::NONE };
    breaks(ANSWERS, Bounds { ticks: 1, changes: 2, rewinds: 1, ..QUIET }, faults);
}

#[test]
fn a_resolve_is_for_the_owner_though_a_failover_let_an_epoch_come_twice() {
    let faults = Faults { resolve_of_any_owner: true, ..Faults::NONE };
    breaks(ANSWERS, Bounds { changes: 2, give_ups: 1, rewinds: 1, ..QUIET }, faults);
}

#[test]
fn a_release_is_for_the_owner_though_a_failover_let_an_epoch_come_twice() {
    let faults = Faults { release_of_any_owner: true, ..Faults::NONE };
    breaks(ANSWERS, Bounds { drains: 1, rewinds: 1, ..QUIET }, faults);
}
