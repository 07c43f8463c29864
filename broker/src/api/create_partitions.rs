//! CreatePartitions (key 37): gives topics more partitions.

use super::Context;
use yuxi_controller::{ControllerError, decide::topics::NewPartitions};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::BrokerId,
    message,
    messages::{
        CreatePartitionsRequest, CreatePartitionsResponse,
        create_partitions_response::CreatePartitionsTopicResult,
    },
};

pub(super) async fn handle(
    context: Context,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let wanted = request
        .topics
        .iter()
        .map(|topic| NewPartitions {
            topic: topic.name.as_str().to_owned(),
            count: topic.count,
            assignments: topic.assignments.as_ref().map(|assignments| {
                assignments
                    .iter()
                    .map(|assignment| {
                        let ids = assignment.broker_ids.iter();
                        ids.copied().map(BrokerId::new).collect()
                    })
                    .collect()
            }),
        })
        .collect();
    let node = &context.node;
    let grown = node
        .controller
        .create_partitions(wanted, request.validate_only)
        .await;
    node.caught_up().await;
    message!(CreatePartitionsResponse {
        results: request
            .topics
            .into_iter()
            .zip(grown)
            .map(|(topic, grown)| message!(CreatePartitionsTopicResult {
                name: topic.name,
                error_code: grown
                    .as_ref()
                    .err()
                    .map_or(ErrorCode::None, ControllerError::error_code)
                    .code(),
                error_message: grown.err().map(|error| StrBytes::from(error.to_string())),
            }))
            .collect(),
    })
}
