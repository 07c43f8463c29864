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
pub mod seal;
pub mod tags;
pub mod topic_regex;

pub use kafka_wire as messages;
pub use kafka_wire_core as codec;

/// Builds a message with these fields and the protocol's defaults for all others. The
/// messages are `#[non_exhaustive]`, so a struct expression would not do.
#[macro_export]
macro_rules! message {
    (@field $message:ident, $field:ident) => { $message.$field = $field; };
    (@field $message:ident, $field:ident, $value:expr) => { $message.$field = $value; };
    ($type:path { $($field:ident $(: $value:expr)?),* $(,)? }) => {{
        let mut message = <$type>::default();
        $($crate::message!(@field message, $field $(, $value)?);)*
        message
    }};
}
