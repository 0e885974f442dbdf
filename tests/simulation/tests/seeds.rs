//! A few stories for every run of the tests; `cargo xtask sim` plays as many as one likes.

use onward_simulation::{Story, Suite, play};

/// Each found something once, and stays.
///
/// 4: a start that would end the open run under a policy that does not let its id be used again.
/// 60: a look that waited for a run to be read was given that run after another had replaced it.
const FOUND: [u64; 2] = [4, 60];

#[test]
fn stories_that_found_something_end_right() {
    for seed in FOUND {
        let suite = Suite { first: seed, seeds: 1, within: None, threads: 1, shrink: true };
        let summary = suite.run::<Story>();
        assert!(summary.failure.is_none(), "{}", summary.failure.unwrap());
    }
}

#[test]
fn the_seed_decides_all_that_happens() {
    let trace = |seed| play(&Story::of(seed)).trace;
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7).hash, trace(8).hash);
}
