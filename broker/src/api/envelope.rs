//! Envelope (key 58): another broker passes on what only the controller may decide
//! (KIP-590), in a form of our own.

use super::Context;
use yuxi_protocol::messages::{EnvelopeRequest, EnvelopeResponse};

pub(super) async fn handle(context: Context, request: EnvelopeRequest) -> EnvelopeResponse {
    context.node.controller.answer_envelope(&request).await
}
