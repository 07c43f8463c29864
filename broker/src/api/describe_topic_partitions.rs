//! DescribeTopicPartitions (key 75): topics with all that is known of their partitions,
//! page by page (KIP-966).

use super::{Context, authorized_operations};
use crate::internal_topics;
use std::{collections::BTreeSet, sync::Arc};
use yuxi_controller::{
    image::{ClusterImage, TopicImage},
    keys::PartitionState,
};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{BrokerId, PartitionId},
    message,
    messages::{
        DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse,
        describe_topic_partitions_response::{
            Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
        },
    },
};

pub(super) fn handle(
    context: &Context,
    request: &DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let image = context.node.image();
    let most = context.node.settings.max_request_partition_size_limit;
    let mut left = usize::try_from(request.response_partition_limit.clamp(1, most)).unwrap_or(1);
    let names: BTreeSet<Arc<str>> = if request.topics.is_empty() {
        image
            .topics()
            .map(|topic| Arc::clone(&topic.name))
            .collect()
    } else {
        request
            .topics
            .iter()
            .map(|topic| Arc::from(topic.name.as_str()))
            .collect()
    };
    let (from_topic, from_partition) = match &request.cursor {
        Some(cursor) => (cursor.topic_name.as_str(), cursor.partition_index),
        None => ("", 0),
    };
    let mut response = DescribeTopicPartitionsResponse::default();
    for name in names.iter().filter(|name| &***name >= from_topic) {
        let first = if **name == *from_topic {
            from_partition
        } else {
            0
        };
        if left == 0 {
            response.next_cursor = Some(cursor(name, first));
            break;
        }
        let Some(topic) = image.topic(name) else {
            // All topics were asked for when the cursor was made; one that is gone since
            // is not an error.
            if !request.topics.is_empty() {
                response.topics.push(missing(name));
            }
            continue;
        };
        let partitions: Vec<_> = topic
            .partitions()
            .filter(|(id, _)| id.value() >= first)
            .take(left)
            .map(|(id, state)| partition(id, state, &image))
            .collect();
        left -= partitions.len();
        let next = first.max(0) as usize + partitions.len();
        response.topics.push(described(topic, partitions));
        if next < topic.partition_count() {
            response.next_cursor = Some(cursor(name, next as i32));
            break;
        }
    }
    response
}

fn cursor(topic: &str, partition_index: i32) -> Cursor {
    message!(Cursor {
        topic_name: topic.into(),
        partition_index,
    })
}

fn missing(name: &str) -> DescribeTopicPartitionsResponseTopic {
    message!(DescribeTopicPartitionsResponseTopic {
        error_code: if yuxi_controller::decide::topics::check_name(name).is_ok() {
            ErrorCode::UnknownTopicOrPartition.code()
        } else {
            ErrorCode::InvalidTopic.code()
        },
        name: Some(name.into()),
        topic_authorized_operations: authorized_operations::NOT_ASKED,
    })
}

fn described(
    topic: &TopicImage,
    partitions: Vec<DescribeTopicPartitionsResponsePartition>,
) -> DescribeTopicPartitionsResponseTopic {
    message!(DescribeTopicPartitionsResponseTopic {
        error_code: ErrorCode::None.code(),
        name: Some(StrBytes::from(&*topic.name)),
        topic_id: topic.id.into(),
        is_internal: internal_topics::is_internal(&topic.name),
        partitions,
        topic_authorized_operations: authorized_operations::TOPIC,
    })
}

fn partition(
    id: PartitionId,
    state: &PartitionState,
    image: &ClusterImage,
) -> DescribeTopicPartitionsResponsePartition {
    let ids = |brokers: &[BrokerId]| brokers.iter().map(|id| id.value()).collect::<Vec<_>>();
    message!(DescribeTopicPartitionsResponsePartition {
        error_code: if state.leader == BrokerId::NONE {
            ErrorCode::LeaderNotAvailable.code()
        } else {
            ErrorCode::None.code()
        },
        partition_index: id.value(),
        leader_id: state.leader.value(),
        leader_epoch: state.leader_epoch.value(),
        replica_nodes: ids(&state.replicas),
        isr_nodes: ids(&state.isr),
        eligible_leader_replicas: Some(ids(&state.elr)),
        last_known_elr: Some(
            state
                .last_known_leader
                .iter()
                .map(|id| id.value())
                .collect(),
        ),
        offline_replicas: state
            .replicas
            .iter()
            .filter(|&&replica| image.broker(replica).is_none())
            .map(|replica| replica.value())
            .collect(),
    })
}
