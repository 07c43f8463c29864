//! AddOffsetsToTxn (key 25): a transaction will commit offsets of a group.

use super::Context;
use crate::internal_topics::{CONSUMER_OFFSETS, partition_of};
use std::{collections::BTreeSet, sync::Arc};
use yuxi_coordinator::transactions::{
    Partitions, Producer, TransactionRequest, TransactionResponse,
};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{ProducerEpoch, ProducerId},
    message,
    messages::{AddOffsetsToTxnRequest, AddOffsetsToTxnResponse},
};

/// Clients know PRODUCER_FENCED from this version on.
const FENCED_FROM: i16 = 2;

pub(super) async fn handle(
    context: Context,
    request: AddOffsetsToTxnRequest,
) -> AddOffsetsToTxnResponse {
    let error = add(&context, request).await.err();
    message!(AddOffsetsToTxnResponse {
        error_code: super::fenced_as_known(
            error.unwrap_or(ErrorCode::None),
            context.version >= FENCED_FROM
        )
        .code(),
    })
}

async fn add(context: &Context, request: AddOffsetsToTxnRequest) -> Result<(), ErrorCode> {
    let node = &context.node;
    if node.image().topic(CONSUMER_OFFSETS).is_none() {
        let wanted = BTreeSet::from([Arc::from(CONSUMER_OFFSETS)]);
        node.auto_create(wanted).await;
    }
    let partition = partition_of(&node.image(), CONSUMER_OFFSETS, &request.group_id)
        .ok_or(ErrorCode::CoordinatorNotAvailable)?;
    let asked = TransactionRequest::Add {
        transactional_id: request.transactional_id,
        producer: Producer {
            id: ProducerId::new(request.producer_id),
            epoch: ProducerEpoch::new(request.producer_epoch),
        },
        partitions: Partitions::from_iter([(&StrBytes::from(CONSUMER_OFFSETS), partition)]),
    };
    match node.transactions.handle(node, asked).await {
        TransactionResponse::Add(answer) => answer,
        other => unreachable!("the coordinator answered with {other:?}"),
    }
}
