//! UnregisterBroker (key 64): the cluster forgets a broker that is gone for good. Kafka
//! takes this for a live broker too, which then registers again; here it is refused
//! with INVALID_REQUEST, because the broker's data would no longer be relied on.

use super::Context;
use yuxi_controller::ControllerError;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::BrokerId,
    message,
    messages::{UnregisterBrokerRequest, UnregisterBrokerResponse},
};

pub(super) async fn handle(
    context: Context,
    request: UnregisterBrokerRequest,
) -> UnregisterBrokerResponse {
    let node = &context.node;
    let broker = BrokerId::new(request.broker_id);
    let answer = node.controller.unregister_broker(broker).await;
    node.caught_up().await;
    message!(UnregisterBrokerResponse {
        error_code: answer
            .as_ref()
            .err()
            .map_or(ErrorCode::None, ControllerError::error_code)
            .code(),
        error_message: answer.err().map(|error| StrBytes::from(error.to_string())),
    })
}
