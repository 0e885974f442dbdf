//! Storms of nearly valid calls; `cargo xtask fuzz --rpcs N` lets longer ones rage.

use onward_fuzzing::Storm;

#[test]
fn a_storm_of_calls_does_the_server_and_its_customers_no_harm() {
    let summary = Storm { seed: 1, rpcs: 20_000 }.rage();
    println!("{summary}");
    assert!(summary.wrong.is_empty(), "{:#?}", summary.wrong);
}

#[test]
fn the_seed_decides_all_that_is_called_and_answered() {
    let trace = |seed| {
        let summary = Storm { seed, rpcs: 1_500 }.rage();
        assert!(summary.wrong.is_empty(), "{:#?}", summary.wrong);
        (summary.trace, summary.counts)
    };
    let first = trace(7);
    assert_eq!(trace(7), first);
    assert_ne!(trace(8).0, first.0);
}
