//! What goes into a shard and what comes out: requests, replies, markers and effects.
//!
//! Values only, free of API versions: whoever translates a client's request knows which
//! codes and fields its version has.

use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{ProducerEpoch, ProducerId},
};

use super::{Partitions, transaction::Transaction, transaction::TransactionState};
use crate::{CoordinatorRecord, groups::Ticket};

/// The level of the feature `transaction.version`, of a cluster or of one client
/// (KIP-890): from 2 on a producer's epoch rises with each transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransactionVersion(i16);

impl TransactionVersion {
    /// As it was before there were versions.
    pub const V0: Self = Self(0);
    /// Records may have fields that older brokers do not know.
    pub const V1: Self = Self(1);
    /// The epoch rises with each transaction, and produces add their partitions.
    pub const V2: Self = Self(2);

    /// The level with this number.
    pub const fn new(level: i16) -> Self {
        Self(level)
    }

    /// The number of the level.
    pub const fn level(self) -> i16 {
        self.0
    }

    /// Whether the epoch rises when a transaction ends.
    pub fn raises_epochs(self) -> bool {
        self >= Self::V2
    }
}

/// Who a producer says it is, or is told it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    /// Its number.
    pub id: ProducerId,
    /// Its life under that number.
    pub epoch: ProducerEpoch,
}

/// A request that a transaction coordinator answers. Topics and partitions in it exist,
/// as far as the caller knows: a shard knows no topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionRequest {
    /// `InitProducerId`: a producer begins its life under a transactional id.
    Init {
        /// The id.
        transactional_id: StrBytes,
        /// How long its transactions may be open.
        timeout_ms: i32,
        /// Who it was so far, if it goes on after an error (KIP-360).
        current: Option<Producer>,
    },
    /// `AddPartitionsToTxn` and `AddOffsetsToTxn`: the transaction writes there.
    Add {
        /// The id.
        transactional_id: StrBytes,
        /// Who asks.
        producer: Producer,
        /// Where it writes.
        partitions: Partitions,
    },
    /// `AddPartitionsToTxn` with `verify_only`: whether it said so before.
    Verify {
        /// The id.
        transactional_id: StrBytes,
        /// Who asks.
        producer: Producer,
        /// Where it writes.
        partitions: Partitions,
    },
    /// `EndTxn`.
    End {
        /// The id.
        transactional_id: StrBytes,
        /// Who asks.
        producer: Producer,
        /// Commit, or abort.
        commit: bool,
        /// What the client speaks: from version 2 on it is told its next epoch.
        client: TransactionVersion,
    },
    /// `DescribeTransactions`, of one id.
    Describe {
        /// The id.
        transactional_id: StrBytes,
    },
    /// `ListTransactions`.
    List(ListFilter),
}

/// Which transactions to list: those that pass all that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// In one of these states.
    pub states: Option<Vec<TransactionState>>,
    /// Of one of these producers.
    pub producer_ids: Option<Vec<ProducerId>>,
    /// Begun longer ago than this.
    pub longer_than_ms: Option<i64>,
}

/// The answer to the [`TransactionRequest`] of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionResponse {
    /// Who the producer is from now on.
    Init(Result<Producer, ErrorCode>),
    /// The partitions are in the transaction.
    Add(Result<(), ErrorCode>),
    /// Those of the partitions that are not in the transaction.
    Verify(Result<Partitions, ErrorCode>),
    /// The outcome is settled; who the producer is from now on.
    End(Result<Producer, ErrorCode>),
    /// The transaction as it is.
    Describe(Result<Description, ErrorCode>),
    /// The transactions that pass the filter.
    List(Result<Vec<Listed>, ErrorCode>),
}

/// A transactional id as operators are shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Where its transaction stands.
    pub state: TransactionState,
    /// How long a transaction may be open.
    pub timeout_ms: i32,
    /// When the last transaction began, or -1.
    pub start_ms: i64,
    /// The producer.
    pub producer: Producer,
    /// What is in the transaction; once it ends, what has yet to be marked.
    pub partitions: Partitions,
}

/// A transactional id in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The id.
    pub transactional_id: StrBytes,
    /// The producer.
    pub producer_id: ProducerId,
    /// Where its transaction stands.
    pub state: TransactionState,
}

/// An answer and whose it is.
pub type Reply = (Ticket, TransactionResponse);

/// Markers that are to be written to all of `partitions`, again and again until each
/// has its own or is gone. Every success is told to the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkerOrder {
    /// The shard's number for this order, which goes back with each success.
    pub order: u64,
    /// The transaction.
    pub transactional_id: StrBytes,
    /// Who the marker is for; its epoch fences whoever wrote with a lower one.
    pub producer: Producer,
    /// Commit, or abort.
    pub commit: bool,
    /// By which protocol the transaction ended.
    pub version: TransactionVersion,
    /// Where.
    pub partitions: Partitions,
}

/// One marker of an order is committed in its partition, or the partition is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkerWritten {
    /// The order's number.
    pub order: u64,
    /// The transaction.
    pub transactional_id: StrBytes,
    /// The topic.
    pub topic: StrBytes,
    /// The partition.
    pub partition: i32,
}

/// What became of a request.
#[derive(Debug)]
#[must_use = "effects must be carried out"]
pub enum Handled {
    /// It was dealt with.
    Done(Effects),
    /// Nothing was done: it is to be handled again with a producer id that nobody has.
    NeedsProducerId(TransactionRequest),
}

/// What a call to the shard wants written, and what it answers once that is done.
#[derive(Debug, Default)]
#[must_use = "records must be written and answers sent"]
pub struct Effects {
    /// To append to the shard's partition as one batch. When there are any, the shard
    /// must next be told how that went, by `written` or `write_failed`.
    pub records: Vec<CoordinatorRecord>,
    /// To send, but only once the records and all earlier ones of the shard are below
    /// the high watermark.
    pub replies: Vec<Reply>,
    /// What the records say: none means that the id is forgotten.
    pub(super) changes: Vec<(StrBytes, Option<Transaction>)>,
}

/// What may go out once all that the shard has had written is below the high watermark.
#[derive(Debug, Default)]
#[must_use = "answers and markers must be sent"]
pub struct Released {
    /// Answers.
    pub replies: Vec<Reply>,
    /// Markers.
    pub markers: Vec<MarkerOrder>,
}

impl TransactionRequest {
    /// The transactional id that it is about; listing is about all.
    pub fn transactional_id(&self) -> Option<&StrBytes> {
        match self {
            Self::Init {
                transactional_id, ..
            }
            | Self::Add {
                transactional_id, ..
            }
            | Self::Verify {
                transactional_id, ..
            }
            | Self::End {
                transactional_id, ..
            }
            | Self::Describe { transactional_id } => Some(transactional_id),
            Self::List(_) => None,
        }
    }

    /// The answer that refuses the request with `error`.
    pub fn refused(&self, error: ErrorCode) -> TransactionResponse {
        match self {
            Self::Init { .. } => TransactionResponse::Init(Err(error)),
            Self::Add { .. } => TransactionResponse::Add(Err(error)),
            Self::Verify { .. } => TransactionResponse::Verify(Err(error)),
            Self::End { .. } => TransactionResponse::End(Err(error)),
            Self::Describe { .. } => TransactionResponse::Describe(Err(error)),
            Self::List(_) => TransactionResponse::List(Err(error)),
        }
    }
}

impl TransactionResponse {
    /// The answer that takes this one's place when the records it rests on could not be
    /// written, so that nothing is reported as done.
    #[must_use]
    pub fn failed(self, error: ErrorCode) -> Self {
        match self {
            Self::Init(_) => Self::Init(Err(error)),
            Self::Add(_) => Self::Add(Err(error)),
            Self::Verify(_) => Self::Verify(Err(error)),
            Self::End(_) => Self::End(Err(error)),
            Self::Describe(_) => Self::Describe(Err(error)),
            Self::List(_) => Self::List(Err(error)),
        }
    }
}

/// What clients are told when the append of records failed with `error`, as Kafka
/// translates it: only codes that they retry on, or give up on, sensibly.
pub(super) fn write_error(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::UnknownTopicOrPartition
        | ErrorCode::NotEnoughReplicas
        | ErrorCode::NotEnoughReplicasAfterAppend
        | ErrorCode::RequestTimedOut => ErrorCode::CoordinatorNotAvailable,
        ErrorCode::NotLeaderOrFollower | ErrorCode::KafkaStorageError => ErrorCode::NotCoordinator,
        ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge => ErrorCode::UnknownServerError,
        other => other,
    }
}
