//! TxnOffsetCommit (key 28): remembers how far a group has come, as part of a transaction
//! (KIP-98, KIP-447).

use super::{Context, group};
use yuxi_coordinator::groups::{GroupRequest, GroupResponse};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::PartitionId,
    message,
    messages::{
        TxnOffsetCommitRequest, TxnOffsetCommitResponse,
        txn_offset_commit_response::{
            TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
        },
    },
};

pub(super) async fn handle(
    context: Context,
    mut request: TxnOffsetCommitRequest,
) -> TxnOffsetCommitResponse {
    let refused = take_unknown(&context, &mut request);
    let mut response = if request.topics.is_empty() && !refused.is_empty() {
        TxnOffsetCommitResponse::default()
    } else {
        group::ask!(context, TxnOffsetCommit, request)
    };
    for topic in refused {
        match response
            .topics
            .iter_mut()
            .find(|other| other.name == topic.name)
        {
            Some(answered) => answered.partitions.extend(topic.partitions),
            None => response.topics.push(topic),
        }
    }
    response
}

/// Takes the partitions that do not exist out of the request; the answers for them.
fn take_unknown(
    context: &Context,
    request: &mut TxnOffsetCommitRequest,
) -> Vec<TxnOffsetCommitResponseTopic> {
    let image = context.node.image();
    let mut refused = Vec::new();
    request.topics.retain_mut(|topic| {
        let found = image.topic(&topic.name);
        let exists = |index: i32| {
            found.is_some_and(|topic| topic.partition(PartitionId::new(index)).is_some())
        };
        let mut unknown = Vec::new();
        topic.partitions.retain(|partition| {
            let known = exists(partition.partition_index);
            if !known {
                unknown.push(message!(TxnOffsetCommitResponsePartition {
                    partition_index: partition.partition_index,
                    error_code: ErrorCode::UnknownTopicOrPartition.code(),
                }));
            }
            known
        });
        if !unknown.is_empty() {
            refused.push(message!(TxnOffsetCommitResponseTopic {
                name: topic.name.clone(),
                partitions: unknown,
            }));
        }
        !topic.partitions.is_empty()
    });
    refused
}
