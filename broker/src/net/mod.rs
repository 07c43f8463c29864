//! The network: listeners accept, one task a connection reads frames, starts
//! requests in the order they came and writes the answers in that same order.
//!
//! Nothing here knows what a request means; that is [`crate::api`]. Every queue
//! is bounded: connections by count, their unanswered requests by number, and
//! request bytes by one budget over all connections.

pub(crate) mod answer;
pub(crate) mod connection;
pub(crate) mod limits;
pub(crate) mod listener;
