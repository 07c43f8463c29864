//! AlterPartitionReassignments (key 45): gives partitions other replicas while they serve
//! (KIP-455), or stops doing so.

use super::{Context, errors_told::of_decision};
use yuxi_controller::{
    ControllerError,
    decide::reassignment::{Reassignment, Reassignments},
};
use yuxi_protocol::{
    ids::{BrokerId, PartitionId},
    message,
    messages::{
        AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse,
        alter_partition_reassignments_response::{
            ReassignablePartitionResponse, ReassignableTopicResponse,
        },
    },
};

/// Whether the number of replicas may change can be said from this version on; before, it
/// may.
const FIXED_FACTOR_FROM: i16 = 1;

pub(super) async fn handle(
    context: Context,
    request: AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    let may_resize = context.version < FIXED_FACTOR_FROM || request.allow_replication_factor_change;
    let partitions = request
        .topics
        .iter()
        .flat_map(|topic| topic.partitions.iter().map(move |part| (topic, part)))
        .map(|(topic, part)| Reassignment {
            topic: topic.name.as_str().to_owned(),
            partition: PartitionId::new(part.partition_index),
            replicas: part.replicas.as_ref().map(|replicas| {
                let ids = replicas.iter().copied();
                ids.map(BrokerId::new).collect()
            }),
        })
        .collect();
    let node = &context.node;
    let reassignments = Reassignments {
        partitions,
        allow_replication_factor_change: may_resize,
    };
    let controller = node.controller.within(request.timeout_ms);
    let answers = controller.alter_reassignments(reassignments).await;
    node.caught_up().await;
    let mut answers = answers.into_iter();
    let responses = request
        .topics
        .into_iter()
        .map(|topic| {
            let partitions = topic.partitions.iter().map(|part| part.partition_index);
            message!(ReassignableTopicResponse {
                name: topic.name,
                partitions: partitions
                    .zip(answers.by_ref())
                    .map(|(index, answer)| partition(index, answer.err().as_ref()))
                    .collect(),
            })
        })
        .collect();
    let mut response = message!(AlterPartitionReassignmentsResponse { responses });
    if context.version >= FIXED_FACTOR_FROM {
        response.allow_replication_factor_change = may_resize;
    }
    response
}

fn partition(
    partition_index: i32,
    refused: Option<&ControllerError>,
) -> ReassignablePartitionResponse {
    let (error_code, error_message) = of_decision(refused);
    message!(ReassignablePartitionResponse {
        partition_index,
        error_code,
        error_message,
    })
}
