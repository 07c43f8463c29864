//! CreatePartitions (key 37): gives topics more partitions.

use super::{Context, errors_told::of_decision};
use yuxi_controller::decide::topics::NewPartitions;
use yuxi_protocol::{
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
        .within(request.timeout_ms)
        .create_partitions(wanted, request.validate_only)
        .await;
    node.caught_up().await;
    message!(CreatePartitionsResponse {
        results: request
            .topics
            .into_iter()
            .zip(grown)
            .map(|(topic, grown)| {
                let (error_code, error_message) = of_decision(grown.as_ref().err());
                message!(CreatePartitionsTopicResult {
                    name: topic.name,
                    error_code,
                    error_message,
                })
            })
            .collect(),
    })
}
