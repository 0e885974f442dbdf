//! What users see of the macros and of the traits behind them: each mistake is a case with its
//! expected text. What must compile is in `compiles/`: with a case that passes, each of these would
//! build all dependencies, not only check them. For the same reason what only code generation
//! notices (two activities of one name) is a case of `WorkerBuilder::activities`.
//!
//! `TRYBUILD=overwrite cargo test -p onward --test ui` writes the texts anew.

#[test]
fn mistakes_are_told_where_they_are_made() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
