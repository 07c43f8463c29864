//! The Kafka wire protocol and record format: ids, error codes, frames and
//! record batches. No I/O: bytes in, values out, and back.
//!
//! The messages themselves are `kafka-wire`'s, generated from Kafka's schemas;
//! they are re-exported as [`messages`] so that every crate uses one version.

pub mod error_code;
pub mod frame;
pub mod ids;
pub mod partitioner;
pub mod record;

pub use kafka_wire as messages;
pub use kafka_wire_core as codec;
