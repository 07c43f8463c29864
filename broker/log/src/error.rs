//! What can go wrong with a log.

use std::{io, path::PathBuf};

use yuxi_protocol::{
    ids::{Offset, ProducerEpoch, ProducerId, TopicId},
    record::BatchError,
};

/// Why a log cannot be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system refused.
    #[error("{path}: {error}", path = path.display())]
    Storage {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Bytes that were there before are damaged or gone: not a torn tail, which recovery
    /// cuts by itself, but data that may have been acknowledged (I15). No data has been
    /// changed. The replica must be fetched again from another one.
    #[error(
        "{path} is corrupt at byte {position}, where offset {expected_offset} is expected: {reason}",
        path = path.display()
    )]
    Corrupt {
        /// The segment's file.
        path: PathBuf,
        /// Where in the file the bytes stop making sense.
        position: u64,
        /// The offset that should be found there, at the least.
        expected_offset: Offset,
        /// What was found instead.
        reason: String,
    },
    /// The directory belongs to another topic of the same name.
    #[error("{path} has topic id {stored}, and {expected} is expected", path = path.display())]
    OtherTopic {
        /// The file `partition.metadata`.
        path: PathBuf,
        /// The id it has.
        stored: TopicId,
        /// The id of the topic now.
        expected: TopicId,
    },
}

impl LogError {
    pub(crate) fn storage(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Storage { path, error }
    }
}

/// Why a batch was not appended. Nothing of it is visible.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The batch is not the next one of its producer (`OUT_OF_ORDER_SEQUENCE_NUMBER`).
    #[error(
        "producer {producer_id} sent sequence {sequence} at offset {offset}, after {last_sequence}"
    )]
    OutOfOrderSequence {
        /// The producer.
        producer_id: ProducerId,
        /// The first sequence of the batch.
        sequence: i32,
        /// The last sequence that was stored, or -1.
        last_sequence: i32,
        /// Where the batch would have gone.
        offset: Offset,
    },
    /// A later life of the same producer has written here (`INVALID_PRODUCER_EPOCH`).
    #[error(
        "producer {producer_id} has epoch {epoch}, which {current_epoch} has taken the place of"
    )]
    InvalidProducerEpoch {
        /// The producer.
        producer_id: ProducerId,
        /// The epoch of the batch.
        epoch: ProducerEpoch,
        /// The newest epoch that was stored.
        current_epoch: ProducerEpoch,
    },
    /// An ordinary batch in the middle of its producer's transaction
    /// (`INVALID_TXN_STATE`).
    #[error(
        "producer {producer_id} sent an ordinary batch at offset {offset} within its transaction"
    )]
    NotTransactional {
        /// The producer.
        producer_id: ProducerId,
        /// Where the batch would have gone.
        offset: Offset,
    },
    /// A transaction coordinator of an earlier epoch sent the marker
    /// (`TRANSACTION_COORDINATOR_FENCED`).
    #[error(
        "a marker for producer {producer_id} has coordinator epoch {epoch}, older than {current_epoch}"
    )]
    CoordinatorFenced {
        /// The producer.
        producer_id: ProducerId,
        /// The epoch of the marker.
        epoch: i32,
        /// The newest epoch that was stored.
        current_epoch: i32,
    },
    /// All the batches of one append go into one segment, and these don't fit
    /// (`RECORD_LIST_TOO_LARGE`).
    #[error("{bytes} bytes in one append are more than a segment's {segment_bytes}")]
    LargerThanSegment {
        /// Bytes of the append.
        bytes: u64,
        /// Bytes that a segment may have.
        segment_bytes: u64,
    },
    /// A follower was given batches that don't follow on its log.
    #[error("a batch at offset {offset} does not follow on log end offset {log_end_offset}")]
    OffsetNotIncreasing {
        /// The batch's first offset.
        offset: Offset,
        /// Where the log ended.
        log_end_offset: Offset,
    },
    /// A follower was given bytes that are no valid batch, or a control batch has no
    /// valid marker.
    #[error(transparent)]
    Invalid(#[from] BatchError),
    /// The disk is full or failing (`KAFKA_STORAGE_ERROR`). The log goes on where it
    /// was, and takes appends again when there is room.
    #[error("cannot write the log: {0}")]
    Storage(#[from] io::Error),
}

/// An offset outside of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("offset {offset} is outside of the log, {log_start_offset} to {log_end_offset}")]
pub struct OffsetOutOfRange {
    /// The offset asked for.
    pub offset: Offset,
    /// The first offset there is.
    pub log_start_offset: Offset,
    /// The offset after the last.
    pub log_end_offset: Offset,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The offset is outside of the log (`OFFSET_OUT_OF_RANGE`).
    #[error(transparent)]
    OffsetOutOfRange(#[from] OffsetOutOfRange),
    /// The file cannot be opened or mapped.
    #[error("cannot read the log: {0}")]
    Storage(#[from] io::Error),
    /// What is stored is not a valid batch.
    #[error("{path} is corrupt at byte {position}: {error}", path = path.display())]
    Corrupt {
        /// The segment's file.
        path: PathBuf,
        /// Where in the file.
        position: u64,
        /// What is wrong with the batch there.
        error: BatchError,
    },
}
