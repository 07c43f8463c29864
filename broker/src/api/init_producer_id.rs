//! InitProducerId (key 22): a number and an epoch for an idempotent producer (KIP-98),
//! or a new epoch for one that lost track of its sequences (KIP-360).

use super::Context;
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{ProducerEpoch, ProducerId},
    message,
    messages::{InitProducerIdRequest, InitProducerIdResponse},
};

pub(super) async fn handle(
    context: Context,
    request: InitProducerIdRequest,
) -> InitProducerIdResponse {
    if request.transactional_id.is_some() {
        // There is no transaction coordinator; the client's error names the cause.
        return failed(ErrorCode::UnsupportedForMessageFormat);
    }
    let (id, epoch) = (
        ProducerId::new(request.producer_id),
        ProducerEpoch::new(request.producer_epoch),
    );
    let both_or_neither = (id == ProducerId::NONE) == (epoch == ProducerEpoch::NONE);
    if !both_or_neither || id < ProducerId::NONE || epoch < ProducerEpoch::NONE {
        return failed(ErrorCode::InvalidRequest);
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
