//! AlterPartition (key 56): the leader of partitions on another broker proposes in-sync
//! replica sets to this one, if it is the controller (KIP-497).

use super::Context;
use yuxi_protocol::messages::{AlterPartitionRequest, AlterPartitionResponse};

pub(super) async fn handle(
    context: Context,
    request: AlterPartitionRequest,
) -> AlterPartitionResponse {
    let controller = &context.node.controller;
    controller
        .answer_alter_partition(context.version, &request)
        .await
}
