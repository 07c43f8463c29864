//! What a whole log does, on real files.

mod append;
mod compacted_producers;
mod compaction;
mod compaction_model;
mod crash;
mod model;
mod producers;
mod retention;
mod support;
mod transactions;
