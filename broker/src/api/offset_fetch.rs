//! OffsetFetch (key 9): how far groups have come.

use super::{Context, group};
use yuxi_controller::image::ClusterImage;
use yuxi_coordinator::groups::{GroupRequest, GroupResponse};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::TopicId,
    message,
    messages::{
        OffsetFetchRequest, OffsetFetchResponse,
        offset_fetch_request::OffsetFetchRequestTopics,
        offset_fetch_response::{
            OffsetFetchResponseGroup, OffsetFetchResponsePartitions, OffsetFetchResponseTopics,
        },
    },
};

/// Topics are named by their ids from this version on.
const TOPIC_IDS_FROM: i16 = 10;

pub(super) async fn handle(
    context: Context,
    mut request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    if context.version < TOPIC_IDS_FROM {
        return group::ask!(context, OffsetFetch, request);
    }
    let image = context.node.image();
    let mut unknown: Vec<(StrBytes, Vec<OffsetFetchRequestTopics>)> = Vec::new();
    for asked in &mut request.groups {
        let Some(topics) = &mut asked.topics else {
            continue;
        };
        let (known, missing) = name_topics(&image, std::mem::take(topics));
        *topics = known;
        if !missing.is_empty() {
            unknown.push((asked.group_id.clone(), missing));
        }
    }
    let mut response = group::ask!(context, OffsetFetch, request);
    for group in &mut response.groups {
        number_topics(&image, group);
        if let Some((_, missing)) = unknown.iter().find(|(id, _)| *id == group.group_id)
            && group.error_code == ErrorCode::None.code()
        {
            group.topics.extend(missing.iter().map(unknown_topic));
        }
    }
    response
}

/// Gives topics the names that belong to their ids; the others are those that do not
/// exist.
fn name_topics(
    image: &ClusterImage,
    topics: Vec<OffsetFetchRequestTopics>,
) -> (Vec<OffsetFetchRequestTopics>, Vec<OffsetFetchRequestTopics>) {
    let mut known = Vec::new();
    let mut missing = Vec::new();
    for mut topic in topics {
        match image.topic_by_id(TopicId::from(topic.topic_id)) {
            Some(found) => {
                topic.name = StrBytes::from(&*found.name);
                known.push(topic);
            }
            None => missing.push(topic),
        }
    }
    (known, missing)
}

/// Replaces names by ids. Offsets of a topic that no longer exists are left out.
fn number_topics(image: &ClusterImage, group: &mut OffsetFetchResponseGroup) {
    group.topics.retain_mut(|topic| {
        let Some(found) = image.topic(&topic.name) else {
            return false;
        };
        topic.topic_id = found.id.into();
        topic.name = StrBytes::default();
        true
    });
}

fn unknown_topic(topic: &OffsetFetchRequestTopics) -> OffsetFetchResponseTopics {
    message!(OffsetFetchResponseTopics {
        topic_id: topic.topic_id,
        partitions: topic
            .partition_indexes
            .iter()
            .map(|&partition_index| message!(OffsetFetchResponsePartitions {
                partition_index,
                committed_offset: -1,
                error_code: ErrorCode::UnknownTopicId.code(),
            }))
            .collect(),
    })
}
