//! ConsumerGroupHeartbeat (key 68): a member of a consumer group tells what it reads, and
//! learns what it is to read (KIP-848).

use super::{Context, group};
use yuxi_coordinator::groups::{GroupRequest, GroupResponse};
use yuxi_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

pub(super) async fn handle(
    context: Context,
    request: ConsumerGroupHeartbeatRequest,
) -> ConsumerGroupHeartbeatResponse {
    group::ask!(context, ConsumerHeartbeat, request)
}
