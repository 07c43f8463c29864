//! UnregisterBroker (key 64): the cluster forgets a broker that is gone for good. Kafka
//! takes this for a live broker too, which then registers again; here it is refused
//! with INVALID_REQUEST, because the broker's data would no longer be relied on.

use super::{Context, errors_told::of_decision};
use yuxi_protocol::{
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
    let (error_code, error_message) = of_decision(answer.as_ref().err());
    message!(UnregisterBrokerResponse {
        error_code,
        error_message,
    })
}
