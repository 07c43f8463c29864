//! TxnOffsetCommit (key 28): remembers how far a group has come, as part of a transaction
//! (KIP-98, KIP-447), whose coordinator is asked first (I13, KIP-890).

use super::{Context, group};
use crate::{
    internal_topics::{CONSUMER_OFFSETS, partition_of},
    node::Lookup,
    partition::VerificationGuard,
    transactions::admission::Admission,
};
use yuxi_coordinator::groups::{GroupRequest, GroupResponse};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{PartitionId, ProducerEpoch, ProducerId},
    message,
    messages::{
        TxnOffsetCommitRequest, TxnOffsetCommitResponse,
        txn_offset_commit_response::{
            TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
        },
    },
    record::batch::NO_SEQUENCE,
};

/// The producer speaks transaction.version 2 from this version on.
const ADDS_FROM: i16 = 5;

/// Clients know TRANSACTION_ABORTABLE from this version on.
const ABORTABLE_FROM: i16 = 4;

pub(super) async fn handle(
    context: Context,
    mut request: TxnOffsetCommitRequest,
) -> TxnOffsetCommitResponse {
    let refused = take_unknown(&context, &mut request);
    let mut response = if request.topics.is_empty() && !refused.is_empty() {
        TxnOffsetCommitResponse::default()
    } else {
        commit(&context, request).await
    };
    for topic in refused {
        match response
            .topics
            .iter_mut()
            .find(|other| other.name == topic.name)
        {
            Some(answered) => answered.partitions.extend(topic.partitions),
            None => response.topics.push(topic),
        }
    }
    response
}

async fn commit(context: &Context, request: TxnOffsetCommitRequest) -> TxnOffsetCommitResponse {
    let asked = admit(context, &request).await;
    let request = GroupRequest::TxnOffsetCommit(request);
    let answer = match asked {
        Ok(guard) => group::verified_request(context, request, guard).await,
        Err(error) => request.refused(context.version, error),
    };
    match answer {
        GroupResponse::TxnOffsetCommit(response) => response,
        other => unreachable!("the coordinator answered with {other:?}"),
    }
}

/// Asks the coordinator of the transaction whether it knows that offsets of this group are
/// in it, or tells it so. `None`: there is nothing to ask, or this is not the place.
async fn admit(
    context: &Context,
    request: &TxnOffsetCommitRequest,
) -> Result<Option<VerificationGuard>, ErrorCode> {
    let node = &context.node;
    let Some(number) = partition_of(&node.image(), CONSUMER_OFFSETS, &request.group_id) else {
        return Ok(None);
    };
    let Lookup::Here(partition) = node.replicas.find(CONSUMER_OFFSETS, number) else {
        return Ok(None);
    };
    let producer_id = ProducerId::new(request.producer_id);
    let producer_epoch = ProducerEpoch::new(request.producer_epoch);
    let guard = || partition.needs_verification(producer_id, producer_epoch, NO_SEQUENCE);
    let first = guard();
    let add = context.version >= ADDS_FROM;
    let is_asked = add
        || node
            .live_settings()
            .transaction_partition_verification_enable;
    if first.is_none() || !is_asked {
        return Ok(first);
    }
    let asked = Admission {
        transactional_id: request.transactional_id.clone(),
        producer_id,
        producer_epoch,
        partitions: vec![(StrBytes::from(CONSUMER_OFFSETS), number)],
        add,
    };
    let (latest, errors) = node.transactions.admit(node, &asked, guard).await;
    match errors.first().copied() {
        Some(ErrorCode::None) => Ok(latest),
        Some(error) => Err(told(error, context.version >= ABORTABLE_FROM)),
        None => Err(ErrorCode::UnknownServerError),
    }
}

/// The code that a producer gets. Whatever may go well next time is one that every
/// producer tries again on.
fn told(error: ErrorCode, knows_abortable: bool) -> ErrorCode {
    match error {
        ErrorCode::ConcurrentTransactions
        | ErrorCode::CoordinatorLoadInProgress
        | ErrorCode::CoordinatorNotAvailable
        | ErrorCode::NotCoordinator
        | ErrorCode::OperationNotAttempted => ErrorCode::CoordinatorLoadInProgress,
        ErrorCode::ProducerFenced => ErrorCode::InvalidProducerEpoch,
        ErrorCode::TransactionAbortable if !knows_abortable => ErrorCode::InvalidTxnState,
        other => other,
    }
}

/// Takes the partitions that do not exist out of the request; the answers for them.
fn take_unknown(
    context: &Context,
    request: &mut TxnOffsetCommitRequest,
) -> Vec<TxnOffsetCommitResponseTopic> {
    let image = context.node.image();
    let mut refused = Vec::new();
    request.topics.retain_mut(|topic| {
        let found = image.topic(&topic.name);
        let exists = |index: i32| {
            found.is_some_and(|topic| topic.partition(PartitionId::new(index)).is_some())
        };
        let mut unknown = Vec::new();
        topic.partitions.retain(|partition| {
            let known = exists(partition.partition_index);
            if !known {
                unknown.push(message!(TxnOffsetCommitResponsePartition {
                    partition_index: partition.partition_index,
                    error_code: ErrorCode::UnknownTopicOrPartition.code(),
                }));
            }
            known
        });
        if !unknown.is_empty() {
            refused.push(message!(TxnOffsetCommitResponseTopic {
                name: topic.name.clone(),
                partitions: unknown,
            }));
        }
        !topic.partitions.is_empty()
    });
    refused
}
