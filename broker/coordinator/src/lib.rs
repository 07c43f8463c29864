//! Group coordination as a pure state machine: handle, replay, tick.
//!
//! No clock, no I/O, no tokio, no randomness: time and member-id entropy are passed
//! in, records to append and answers to send are passed out. [`groups`] says who calls
//! what in which order. Transactions will stand beside it.

pub mod groups;
