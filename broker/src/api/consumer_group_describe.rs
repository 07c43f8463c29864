//! ConsumerGroupDescribe (key 69): consumer groups with their members, what these have and
//! what they are to have (KIP-848).

use super::{Context, authorized_operations, group};
use yuxi_coordinator::groups::{GroupRequest, GroupResponse};
use yuxi_protocol::messages::{ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse};

pub(super) async fn handle(
    context: Context,
    request: ConsumerGroupDescribeRequest,
) -> ConsumerGroupDescribeResponse {
    let operations = if request.include_authorized_operations {
        authorized_operations::GROUP
    } else {
        authorized_operations::NOT_ASKED
    };
    let mut response = group::ask!(context, ConsumerDescribe, request);
    for group in &mut response.groups {
        group.authorized_operations = operations;
    }
    response
}
