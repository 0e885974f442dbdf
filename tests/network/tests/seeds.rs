//! A few stories for every run of the tests; `cargo xtask net` plays as many as one likes.

use onward_network::Story;
use onward_simulation::Tale as _;

#[test]
fn the_seed_decides_all_that_happens_on_a_network() {
    let trace = |seed| Story::of(seed).play().trace;
    assert_eq!(trace(3), trace(3));
    assert_ne!(trace(3).hash, trace(4).hash);
}
