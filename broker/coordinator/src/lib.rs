//! The coordination of groups and of transactions as pure state machines: handle, replay,
//! tick.
//!
//! No clock, no I/O, no tokio, no randomness: time and member-id entropy are passed
//! in, records to append and answers to send are passed out. [`groups`] and
//! [`transactions`] say who calls what in which order.

pub mod groups;
mod phase;
mod records;
pub mod time;
pub mod transactions;

pub use records::CoordinatorRecord;
