//! Why a partition refuses, and the one mapping of that to Kafka's error codes.

use yuxi_log::{AppendError, LogError, ReadError};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{BrokerId, LeaderEpoch, Offset, ProducerId},
};

/// Why a partition refuses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartitionError {
    #[error("this broker does not lead the partition")]
    NotLeader,
    #[error("broker {0} has no replica of the partition")]
    NotAReplica(BrokerId),
    #[error("the high watermark has not reached the start of this leader's epoch")]
    OffsetNotAvailable,
    #[error("the request's leader epoch {requested} is older than {current}")]
    FencedLeaderEpoch {
        requested: LeaderEpoch,
        current: LeaderEpoch,
    },
    #[error("the request's leader epoch {requested} is newer than {current}")]
    UnknownLeaderEpoch {
        requested: LeaderEpoch,
        current: LeaderEpoch,
    },
    #[error("{in_sync} replicas are in sync, min.insync.replicas={needed}")]
    NotEnoughReplicas { in_sync: usize, needed: usize },
    #[error("offset {requested} is outside of {start} to {end}")]
    OffsetOutOfRange {
        requested: Offset,
        start: Offset,
        end: Offset,
    },
    #[error(
        "the batch of producer {producer_id} belongs to no transaction that is open here, nor to \
         one that its coordinator was asked about since the last one ended"
    )]
    NotVerified { producer_id: ProducerId },
    #[error(
        "the coordinator was asked about the transaction of producer {producer_id}, but a \
         marker or another leader came in between"
    )]
    VerifiedTooEarly { producer_id: ProducerId },
    #[error(
        "producer {producer_id} sent sequence {sequence} while sequence {expected} waits for \
         its transaction's coordinator"
    )]
    Overtakes {
        producer_id: ProducerId,
        sequence: i32,
        expected: i32,
    },
    #[error("the partition is being deleted")]
    Deleted,
    #[error("the log directory failed and takes no more writes")]
    Offline,
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl PartitionError {
    /// The code that clients get.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::NotLeader | Self::NotAReplica(_) => ErrorCode::NotLeaderOrFollower,
            Self::OffsetNotAvailable => ErrorCode::OffsetNotAvailable,
            Self::FencedLeaderEpoch { .. } => ErrorCode::FencedLeaderEpoch,
            Self::UnknownLeaderEpoch { .. } => ErrorCode::UnknownLeaderEpoch,
            // Every producer tries again on this one, and then its coordinator is asked again:
            // it may have been a marker of the transaction before, which says nothing of this.
            Self::NotEnoughReplicas { .. } | Self::VerifiedTooEarly { .. } => {
                ErrorCode::NotEnoughReplicas
            }
            Self::OffsetOutOfRange { .. } | Self::Read(ReadError::OffsetOutOfRange(_)) => {
                ErrorCode::OffsetOutOfRange
            }
            Self::NotVerified { .. } => ErrorCode::InvalidTxnState,
            Self::Overtakes { .. } => ErrorCode::OutOfOrderSequenceNumber,
            Self::Deleted => ErrorCode::UnknownTopicOrPartition,
            Self::Append(error) => append_code(error),
            Self::Offline | Self::Read(ReadError::Storage(_)) | Self::Log(_) => {
                ErrorCode::KafkaStorageError
            }
            Self::Read(ReadError::Corrupt { .. }) => ErrorCode::CorruptMessage,
        }
    }
}

fn append_code(error: &AppendError) -> ErrorCode {
    match error {
        AppendError::OutOfOrderSequence { .. } => ErrorCode::OutOfOrderSequenceNumber,
        AppendError::InvalidProducerEpoch { .. } => ErrorCode::InvalidProducerEpoch,
        AppendError::NotTransactional { .. } => ErrorCode::InvalidTxnState,
        AppendError::CoordinatorFenced { .. } => ErrorCode::TransactionCoordinatorFenced,
        AppendError::LargerThanSegment { .. } => ErrorCode::RecordListTooLarge,
        AppendError::OffsetNotIncreasing { .. } | AppendError::Invalid(_) => {
            ErrorCode::CorruptMessage
        }
        AppendError::Storage(_) => ErrorCode::KafkaStorageError,
    }
}
