//! ElectLeaders (key 43): an operator has leaders elected, the preferred ones or any
//! (KIP-460).

use super::{Context, errors_told::of_decision};
use yuxi_controller::{
    ControllerError,
    decide::elections::{ElectionKind, Elections},
};
use yuxi_protocol::{
    ids::PartitionId,
    message,
    messages::{
        ElectLeadersRequest, ElectLeadersResponse,
        elect_leaders_response::{PartitionResult, ReplicaElectionResult},
    },
};

/// The answer has an error of its own from this version on.
const ERROR_FROM: i16 = 1;

pub(super) async fn handle(context: Context, request: ElectLeadersRequest) -> ElectLeadersResponse {
    let Some(kind) = ElectionKind::from_code(request.election_type) else {
        let error = ControllerError::InvalidRequest(format!(
            "Unknown election type {}",
            request.election_type
        ));
        return failed(&context, &request, &error);
    };
    let partitions = request.topic_partitions.as_ref().map(|topics| {
        topics
            .iter()
            .flat_map(|topic| topic.partitions.iter().map(move |&part| (topic, part)))
            .map(|(topic, part)| (topic.topic.as_str().to_owned(), PartitionId::new(part)))
            .collect()
    });
    let node = &context.node;
    let answers = node
        .controller
        .within(request.timeout_ms)
        .elect_leaders(Elections { kind, partitions })
        .await;
    node.caught_up().await;
    let answers = match answers {
        Ok(answers) => answers,
        Err(error) => return failed(&context, &request, &error),
    };
    let mut results: Vec<ReplicaElectionResult> = Vec::new();
    for (topic, partition, answer) in answers {
        let result = result(partition.value(), answer.err().as_ref());
        match results.last_mut().filter(|last| *last.topic == topic) {
            Some(last) => last.partition_result.push(result),
            None => results.push(message!(ReplicaElectionResult {
                topic: topic.into(),
                partition_result: vec![result],
            })),
        }
    }
    message!(ElectLeadersResponse {
        replica_election_results: results,
    })
}

/// What befell the whole request befell each partition, which is all that version 0 can say.
fn failed(
    context: &Context,
    request: &ElectLeadersRequest,
    error: &ControllerError,
) -> ElectLeadersResponse {
    let topics = request.topic_partitions.iter().flatten();
    let mut response = message!(ElectLeadersResponse {
        replica_election_results: topics
            .map(|topic| message!(ReplicaElectionResult {
                topic: topic.topic.clone(),
                partition_result: topic
                    .partitions
                    .iter()
                    .map(|&partition| result(partition, Some(error)))
                    .collect(),
            }))
            .collect(),
    });
    if context.version >= ERROR_FROM {
        response.error_code = error.error_code().code();
    }
    response
}

fn result(partition_id: i32, error: Option<&ControllerError>) -> PartitionResult {
    let (error_code, error_message) = of_decision(error);
    message!(PartitionResult {
        partition_id,
        error_code,
        error_message,
    })
}
