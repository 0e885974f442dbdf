//! What users see of the macros and of the traits behind them: every message is a case with its
//! expected text, and what must compile compiles.
//!
//! `TRYBUILD=overwrite cargo test -p onward --test ui` writes the texts anew.

#[test]
fn mistakes_are_told_where_they_are_made() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/fail/*.rs");
}
