//! OffsetCommit (key 8): remembers how far a group has come.

use super::{Context, Unanswerable, group};
use std::collections::HashMap;
use yuxi_coordinator::groups::{GroupRequest, GroupResponse};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{PartitionId, TopicId},
    message,
    messages::{
        OffsetCommitRequest, OffsetCommitResponse,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
    },
};

/// Topics are named by their ids from this version on.
const TOPIC_IDS_FROM: i16 = 10;

/// Over a connection that is older than the coordinator's term nothing is committed. It is
/// closed, and with it goes whatever else is late; a client that still waits connects anew.
pub(super) async fn handle(
    context: Context,
    mut request: OffsetCommitRequest,
) -> Result<OffsetCommitResponse, Unanswerable> {
    let group_id = request.group_id.clone();
    let mut known = Vec::new();
    let mut refused = Vec::new();
    for topic in std::mem::take(&mut request.topics) {
        let (found, missing) = sort_out(&context, topic);
        known.extend(found);
        refused.extend(missing);
    }
    request.topics = known;
    let mut response = if request.topics.is_empty() && !refused.is_empty() {
        OffsetCommitResponse::default()
    } else {
        group::ask!(context, OffsetCommit, request)
    };
    let groups = &context.node.groups;
    if groups.may_be_late(&context.node, &group_id, context.connected) {
        return Err(Unanswerable::MayBeLate);
    }
    add_refused(&mut response.topics, refused);
    if context.version >= TOPIC_IDS_FROM {
        for topic in &mut response.topics {
            topic.name = StrBytes::default();
        }
    }
    Ok(response)
}

/// Splits a topic's partitions into those that exist, under the topic's name, and the
/// answers for the others.
fn sort_out(
    context: &Context,
    mut topic: OffsetCommitRequestTopic,
) -> (
    Option<OffsetCommitRequestTopic>,
    Option<OffsetCommitResponseTopic>,
) {
    let by_id = context.version >= TOPIC_IDS_FROM;
    let image = context.node.image();
    let found = if by_id {
        image.topic_by_id(TopicId::from(topic.topic_id))
    } else {
        image.topic(&topic.name)
    };
    let (known, unknown): (Vec<_>, Vec<_>) = topic.partitions.into_iter().partition(|asked| {
        found.is_some_and(|topic| {
            topic
                .partition(PartitionId::new(asked.partition_index))
                .is_some()
        })
    });
    if let Some(found) = found {
        topic.name = StrBytes::from(&*found.name);
    }
    let error = if by_id && found.is_none() {
        ErrorCode::UnknownTopicId
    } else {
        ErrorCode::UnknownTopicOrPartition
    };
    let refused = (!unknown.is_empty()).then(|| {
        message!(OffsetCommitResponseTopic {
            name: topic.name.clone(),
            topic_id: topic.topic_id,
            partitions: unknown
                .iter()
                .map(|asked: &OffsetCommitRequestPartition| message!(
                    OffsetCommitResponsePartition {
                        partition_index: asked.partition_index,
                        error_code: error.code(),
                    }
                ),)
                .collect(),
        })
    });
    topic.partitions = known;
    ((!topic.partitions.is_empty()).then_some(topic), refused)
}

/// A topic stands once in the answer, with all its partitions.
fn add_refused(
    topics: &mut Vec<OffsetCommitResponseTopic>,
    refused: Vec<OffsetCommitResponseTopic>,
) {
    let mut at: HashMap<(StrBytes, TopicId), usize> = topics
        .iter()
        .enumerate()
        .map(|(at, topic)| ((topic.name.clone(), TopicId::from(topic.topic_id)), at))
        .collect();
    for topic in refused {
        let key = (topic.name.clone(), TopicId::from(topic.topic_id));
        if let Some(&at) = at.get(&key) {
            topics[at].partitions.extend(topic.partitions);
        } else {
            at.insert(key, topics.len());
            topics.push(topic);
        }
    }
}
