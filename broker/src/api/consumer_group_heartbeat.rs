//! ConsumerGroupHeartbeat (key 68): a member of a consumer group tells what it reads, and
//! learns what it is to read (KIP-848).

use super::{Context, group};
use yuxi_controller::decide::features::GROUP_VERSION;
use yuxi_coordinator::groups::{GroupRequest, GroupResponse};
use yuxi_protocol::{
    error_code::ErrorCode,
    message,
    messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse},
};

/// The level of the feature from which on there are such groups; an operator can lower it.
const FIRST_GROUP_VERSION: i16 = 1;

pub(super) async fn handle(
    context: Context,
    request: ConsumerGroupHeartbeatRequest,
) -> ConsumerGroupHeartbeatResponse {
    if context.node.image().feature(GROUP_VERSION) < FIRST_GROUP_VERSION {
        return message!(ConsumerGroupHeartbeatResponse {
            error_code: ErrorCode::UnsupportedVersion.code(),
            error_message: Some("The consumer group protocol is not enabled.".into()),
        });
    }
    group::ask!(context, ConsumerHeartbeat, request)
}
