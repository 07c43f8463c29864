//! What a whole log does, on real files.

mod append;
mod compaction;
mod compaction_model;
mod crash;
mod model;
mod producers;
mod retention;
mod support;
mod transactions;
