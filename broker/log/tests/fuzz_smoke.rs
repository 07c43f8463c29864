//! The fuzz body of recovery over a bounded number of inputs from a fixed seed: see
//! `fuzz/src/runner.rs` for the two environment variables that change that.

#![expect(
    unreachable_pub,
    reason = "the modules below are public in the fuzz crate, which they belong to"
)]

#[path = "../../../fuzz/src/log.rs"]
mod log;
#[path = "../../../fuzz/src/runner.rs"]
mod runner;

#[test]
fn recovery_keeps_only_what_is_whole_whatever_the_segment_holds() {
    runner::run("recovery", 2_000, &log::segments(), log::recovery);
}
