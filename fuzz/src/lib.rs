//! What is fuzzed, as plain functions from bytes, so that two drivers can share them:
//! libFuzzer (`fuzz_targets/`, nightly) and the short runs of fixed seed that are part of
//! the ordinary tests (`tests/fuzz_smoke.rs` of the crate that is fuzzed includes the
//! modules here by path). A module per crate, and [`runner`], which mutates.

pub mod log;
pub mod protocol;
pub mod runner;
