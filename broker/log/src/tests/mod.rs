//! What a whole log does, on real files.

mod append;
mod crash;
mod model;
mod producers;
mod retention;
mod support;
mod transactions;
