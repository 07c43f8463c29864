//! ListPartitionReassignments (key 46): which partitions are getting other replicas. Every
//! broker knows, so that nothing is waited for and the request's time-out has nothing to end.

use super::Context;
use yuxi_controller::{image::TopicImage, keys::PartitionState};
use yuxi_protocol::{
    codec::StrBytes,
    ids::{BrokerId, PartitionId},
    message,
    messages::{
        ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
        list_partition_reassignments_response::{
            OngoingPartitionReassignment, OngoingTopicReassignment,
        },
    },
};

pub(super) fn handle(
    context: &Context,
    request: &ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    let image = context.node.image();
    let topics = match &request.topics {
        None => image
            .topics()
            .filter_map(|topic| ongoing(topic, topic.partitions()))
            .collect(),
        // What does not exist is not being reassigned, which is no error.
        Some(asked) => asked
            .iter()
            .filter_map(|asked| {
                let topic = image.topic(&asked.name)?;
                let ids = asked.partition_indexes.iter().copied();
                let named = ids
                    .map(PartitionId::new)
                    .filter_map(|id| Some((id, topic.partition(id)?)));
                ongoing(topic, named)
            })
            .collect(),
    };
    message!(ListPartitionReassignmentsResponse { topics })
}

fn ongoing<'a>(
    topic: &TopicImage,
    partitions: impl Iterator<Item = (PartitionId, &'a PartitionState)>,
) -> Option<OngoingTopicReassignment> {
    let ids = |brokers: &[BrokerId]| brokers.iter().map(|id| id.value()).collect::<Vec<_>>();
    let partitions: Vec<_> = partitions
        .filter(|(_, state)| state.is_reassigning())
        .map(|(id, state)| {
            message!(OngoingPartitionReassignment {
                partition_index: id.value(),
                replicas: ids(&state.replicas),
                adding_replicas: ids(&state.adding_replicas),
                removing_replicas: ids(&state.removing_replicas),
            })
        })
        .collect();
    (!partitions.is_empty()).then(|| {
        message!(OngoingTopicReassignment {
            name: StrBytes::from(&*topic.name),
            partitions,
        })
    })
}
