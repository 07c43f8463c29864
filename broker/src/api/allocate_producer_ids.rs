//! AllocateProducerIds (key 67): another broker asks this one, if it is the controller,
//! for a block of producer ids (KIP-730).

use super::Context;
use yuxi_protocol::messages::{AllocateProducerIdsRequest, AllocateProducerIdsResponse};

pub(super) async fn handle(
    context: Context,
    request: AllocateProducerIdsRequest,
) -> AllocateProducerIdsResponse {
    let controller = &context.node.controller;
    controller.answer_allocate_producer_ids(&request).await
}
