//! InitProducerId (key 22): a number and an epoch for an idempotent producer (KIP-98), or
//! a new epoch for one that lost track of its sequences (KIP-360). One with a transactional
//! id gets them from its coordinator, and fences who had them before.

use super::Context;
use yuxi_coordinator::transactions::{Producer, TransactionRequest, TransactionResponse};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{ProducerEpoch, ProducerId},
    message,
    messages::{InitProducerIdRequest, InitProducerIdResponse},
};

/// Clients know PRODUCER_FENCED from this version on.
const FENCED_FROM: i16 = 4;

pub(super) async fn handle(
    context: Context,
    request: InitProducerIdRequest,
) -> InitProducerIdResponse {
    let (id, epoch) = (
        ProducerId::new(request.producer_id),
        ProducerEpoch::new(request.producer_epoch),
    );
    let both_or_neither = (id == ProducerId::NONE) == (epoch == ProducerEpoch::NONE);
    if !both_or_neither || id < ProducerId::NONE || epoch < ProducerEpoch::NONE {
        return failed(ErrorCode::InvalidRequest);
    }
    if let Some(transactional_id) = request.transactional_id {
        let asked = TransactionRequest::Init {
            transactional_id,
            timeout_ms: request.transaction_timeout_ms,
            current: (id != ProducerId::NONE).then_some(Producer { id, epoch }),
        };
        let node = &context.node;
        return match node.transactions.handle(node, asked).await {
            TransactionResponse::Init(Ok(producer)) => message!(InitProducerIdResponse {
                producer_id: producer.id.value(),
                producer_epoch: producer.epoch.value(),
            }),
            TransactionResponse::Init(Err(error)) => failed(super::fenced_as_known(
                error,
                context.version >= FENCED_FROM,
            )),
            other => unreachable!("the coordinator answered with {other:?}"),
        };
    }
    // A producer without a transactional id has its epoch raised by itself (KIP-360), so
    // whatever it had, it gets a number that nobody used before.
    match context.node.producer_ids.next(&context.node).await {
        Ok(id) => message!(InitProducerIdResponse {
            producer_id: id.value(),
            producer_epoch: 0,
        }),
        Err(error) => {
            tracing::warn!(%error, "no producer id could be given out");
            failed(ErrorCode::CoordinatorNotAvailable)
        }
    }
}

fn failed(error: ErrorCode) -> InitProducerIdResponse {
    message!(InitProducerIdResponse {
        error_code: error.code(),
        producer_id: ProducerId::NONE.value(),
        producer_epoch: ProducerEpoch::NONE.value(),
    })
}
