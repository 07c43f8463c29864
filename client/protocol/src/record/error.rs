//! What can be wrong with a record batch.

use super::compression::{Compression, CompressionError};
use crate::error_code::ErrorCode;

/// Why bytes are not a valid record batch. The bytes come from a peer or a disk, so
/// each of these is an ordinary answer and none is a bug.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end before the batch does: a torn tail, or an answer that was cut
    /// at its size limit.
    #[error("the batch needs {needed} bytes and {available} are there")]
    Truncated {
        /// Bytes that the header or the declared length asks for.
        needed: usize,
        /// Bytes that are there.
        available: usize,
    },
    /// The declared length is negative or smaller than the rest of the header.
    #[error("batch length {0} is impossible")]
    InvalidLength(i32),
    /// A message format other than version 2.
    #[error("message format {0} is not supported: only version 2 is")]
    UnsupportedMagic(i8),
    /// The low three bits of the attributes name no codec.
    #[error("compression codec {0} is unknown")]
    UnknownCompression(u8),
    /// The checksum does not match the bytes.
    #[error("the batch's checksum is {stored:#010x} but its bytes make {computed:#010x}")]
    WrongCrc {
        /// What the header says.
        stored: u32,
        /// What the bytes make.
        computed: u32,
    },
    /// The header's counts are negative or would overflow an offset.
    #[error(
        "a batch of {record_count} records with last offset delta {last_offset_delta} is impossible"
    )]
    InvalidCounts {
        /// The header's record count.
        record_count: i32,
        /// The header's last offset delta.
        last_offset_delta: i32,
    },
    /// The payload could not be decompressed.
    #[error("{codec} payload: {error}")]
    Compression {
        /// The codec that the attributes name.
        codec: Compression,
        /// What was wrong.
        error: CompressionError,
    },
    /// A record is malformed: its length, a varint, or a field that runs past its end.
    #[error("record {index}: {what}")]
    InvalidRecord {
        /// The record's place in the batch, from 0.
        index: i32,
        /// What was wrong with it.
        what: &'static str,
    },
    /// The payload goes on after the last record that the header counts.
    #[error("{0} bytes follow the last record")]
    TrailingBytes(usize),
    /// Offsets do not run from 0 in steps of one.
    #[error("record {index} has offset delta {delta}")]
    WrongOffsetDelta {
        /// The record's place in the batch, from 0.
        index: i32,
        /// The delta it carries.
        delta: i32,
    },
    /// A record has no key although the topic is compacted.
    #[error("record {index} has no key, which a compacted topic needs")]
    MissingKey {
        /// The record's place in the batch, from 0.
        index: i32,
    },
    /// A client sent a control batch, which only a broker may write.
    #[error("control batches are written by brokers only")]
    ControlBatch,
    /// A batch without records was produced.
    #[error("the batch has no records")]
    NoRecords,
    /// The batch names a producer but no sequence number of its.
    #[error("the batch of producer {producer_id} has no sequence number")]
    MissingSequence {
        /// The producer that the batch names.
        producer_id: i64,
    },
}

impl BatchError {
    /// What a client is told that produced such a batch.
    pub fn error_code(&self) -> ErrorCode {
        match self {
            Self::Truncated { .. }
            | Self::InvalidLength(_)
            | Self::UnknownCompression(_)
            | Self::WrongCrc { .. }
            | Self::Compression {
                error: CompressionError::Corrupt(_),
                ..
            } => ErrorCode::CorruptMessage,
            Self::Compression {
                error: CompressionError::TooLarge { .. },
                ..
            } => ErrorCode::MessageTooLarge,
            Self::UnsupportedMagic(_) => ErrorCode::UnsupportedForMessageFormat,
            Self::InvalidCounts { .. }
            | Self::InvalidRecord { .. }
            | Self::TrailingBytes(_)
            | Self::WrongOffsetDelta { .. }
            | Self::MissingKey { .. }
            | Self::ControlBatch
            | Self::NoRecords
            | Self::MissingSequence { .. } => ErrorCode::InvalidRecord,
        }
    }

    /// The place in the batch of the record that is at fault, if one is: what a Produce
    /// answer names in `record_errors` from version 8 on (KIP-467).
    pub fn record_index(&self) -> Option<i32> {
        match self {
            Self::InvalidRecord { index, .. }
            | Self::WrongOffsetDelta { index, .. }
            | Self::MissingKey { index } => Some(*index),
            Self::Truncated { .. }
            | Self::InvalidLength(_)
            | Self::UnsupportedMagic(_)
            | Self::UnknownCompression(_)
            | Self::WrongCrc { .. }
            | Self::InvalidCounts { .. }
            | Self::Compression { .. }
            | Self::TrailingBytes(_)
            | Self::ControlBatch
            | Self::NoRecords
            | Self::MissingSequence { .. } => None,
        }
    }
}
