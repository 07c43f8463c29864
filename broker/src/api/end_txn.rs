//! EndTxn (key 26): a producer commits or aborts its transaction. It is answered when that
//! is settled; the partitions hear of it afterwards.

use super::Context;
use yuxi_coordinator::transactions::{
    Producer, TransactionRequest, TransactionResponse, TransactionVersion,
};
use yuxi_protocol::{
    ids::{ProducerEpoch, ProducerId},
    message,
    messages::{EndTxnRequest, EndTxnResponse},
};

/// Clients know PRODUCER_FENCED from this version on.
const FENCED_FROM: i16 = 2;

/// Clients take their next epoch from the answer from this version on (KIP-890).
const NEXT_EPOCH_FROM: i16 = 5;

pub(super) async fn handle(context: Context, request: EndTxnRequest) -> EndTxnResponse {
    let raises = context.version >= NEXT_EPOCH_FROM;
    let asked = TransactionRequest::End {
        transactional_id: request.transactional_id,
        producer: Producer {
            id: ProducerId::new(request.producer_id),
            epoch: ProducerEpoch::new(request.producer_epoch),
        },
        commit: request.committed,
        client: if raises {
            TransactionVersion::V2
        } else {
            TransactionVersion::V0
        },
    };
    let node = &context.node;
    match node.transactions.handle(node, asked).await {
        TransactionResponse::End(Ok(producer)) if raises => message!(EndTxnResponse {
            producer_id: producer.id.value(),
            producer_epoch: producer.epoch.value(),
        }),
        TransactionResponse::End(Ok(_)) => EndTxnResponse::default(),
        TransactionResponse::End(Err(error)) => message!(EndTxnResponse {
            error_code: super::fenced_as_known(error, context.version >= FENCED_FROM).code(),
        }),
        other => unreachable!("the coordinator answered with {other:?}"),
    }
}
