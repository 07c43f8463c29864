//! The group requests: each one call, its answer's codes made errors.

use std::collections::BTreeMap;

use bytes::BytesMut;
use yuxi_protocol::codec::{ApiVersion, DecodeLimits};
use yuxi_protocol::ids::TopicPartition;
use yuxi_protocol::message;
use yuxi_protocol::messages::consumer_protocol_assignment::TopicPartition as AssignedTopic;
use yuxi_protocol::messages::consumer_protocol_subscription::TopicPartition as OwnedTopic;
use yuxi_protocol::messages::leave_group_request::MemberIdentity;
use yuxi_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use yuxi_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use yuxi_protocol::messages::{
    ConsumerProtocolAssignment, ConsumerProtocolSubscription, HeartbeatRequest, LeaveGroupRequest,
    OffsetCommitRequest, OffsetFetchRequest, decode_consumer_protocol_assignment,
    decode_consumer_protocol_subscription, encode_consumer_protocol_assignment,
    encode_consumer_protocol_subscription,
};

use super::assignors::Member;
use crate::cluster::{Cluster, Coordinator};
use crate::connection::Connection;
use crate::error::{Error, Result, check};
use crate::metadata::{by_topic, indexes_by_topic};

/// Newer versions name topics by id.
const NEWEST_COMMIT_BY_NAME: i16 = 9;
const NEWEST_OFFSET_FETCH_BY_NAME: i16 = 9;
const PROTOCOL_VERSION: ApiVersion = ApiVersion::new(3);

/// A group's position in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next record to read.
    pub offset: i64,
    /// The leader epoch of the record before it, if it is known (KIP-320).
    pub leader_epoch: Option<i32>,
    /// Whatever the committer noted with it.
    pub metadata: String,
}

/// Who speaks for a group, and in which of its generations: what a transaction that
/// commits the group's offsets is checked by (KIP-447).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMetadata {
    /// The group.
    pub group: String,
    /// The member's id; empty for someone who is not a member.
    pub member: String,
    /// Its static name, if it has one.
    pub instance: Option<String>,
    /// The group's generation, or the member's epoch; -1 for someone who is not a member.
    pub generation: i32,
}

impl GroupMetadata {
    /// Someone who is not a member: commits for a group without members.
    pub fn outsider(group: &str) -> Self {
        Self {
            group: group.to_owned(),
            member: String::new(),
            instance: None,
            generation: -1,
        }
    }
}

/// Commits for a group that this client is not a member of.
pub(crate) async fn commit_as_outsider(
    cluster: &Cluster,
    group: &str,
    offsets: BTreeMap<TopicPartition, CommittedOffset>,
) -> Result<()> {
    let identity = GroupMetadata::outsider(group);
    commit(&mut Coordinator::of(cluster, group), &identity, &offsets).await
}

/// Commits, wherever the coordinator moves meanwhile: to commit the same again is harmless.
pub(super) async fn commit(
    coordinator: &mut Coordinator,
    identity: &GroupMetadata,
    offsets: &BTreeMap<TopicPartition, CommittedOffset>,
) -> Result<()> {
    coordinator
        .insist(|connection| commit_once(connection, identity, offsets))
        .await
}

async fn commit_once(
    coordinator: Connection,
    identity: &GroupMetadata,
    offsets: &BTreeMap<TopicPartition, CommittedOffset>,
) -> Result<()> {
    let answer = coordinator
        .call_up_to(NEWEST_COMMIT_BY_NAME, |version| {
            let mut request = OffsetCommitRequest::default();
            request.group_id = identity.group.as_str().into();
            request.generation_id_or_member_epoch = identity.generation;
            request.member_id = identity.member.as_str().into();
            if version.value() >= 7 {
                request.group_instance_id = identity.instance.as_deref().map(Into::into);
            }
            let parts = offsets.iter().map(|(partition, committed)| {
                let mut part = OffsetCommitRequestPartition::default();
                part.partition_index = partition.partition.value();
                part.committed_offset = committed.offset;
                if version.value() >= 6 {
                    part.committed_leader_epoch = committed.leader_epoch.unwrap_or(-1);
                }
                part.committed_metadata = Some(committed.metadata.as_str().into());
                (&*partition.topic, part)
            });
            request.topics = by_topic(parts)
                .map(|(name, partitions)| {
                    message!(OffsetCommitRequestTopic {
                        name: name.into(),
                        partitions
                    })
                })
                .collect();
            request
        })
        .await?;
    for topic in &answer.topics {
        for part in &topic.partitions {
            check(part.error_code, None, || {
                format!(
                    "committing the offset of {}-{} for group {}",
                    topic.name, part.partition_index, identity.group
                )
            })?;
        }
    }
    Ok(())
}

/// A group's committed offsets: of these partitions, or of all that have one.
pub async fn committed_offsets(
    cluster: &Cluster,
    group: &str,
    partitions: Option<&[TopicPartition]>,
) -> Result<BTreeMap<TopicPartition, CommittedOffset>> {
    fetch_committed(&mut Coordinator::of(cluster, group), group, partitions).await
}

pub(super) async fn fetch_committed(
    coordinator: &mut Coordinator,
    group: &str,
    partitions: Option<&[TopicPartition]>,
) -> Result<BTreeMap<TopicPartition, CommittedOffset>> {
    coordinator
        .insist(|connection| fetch_committed_once(connection, group, partitions))
        .await
}

async fn fetch_committed_once(
    coordinator: Connection,
    group: &str,
    partitions: Option<&[TopicPartition]>,
) -> Result<BTreeMap<TopicPartition, CommittedOffset>> {
    let context = || format!("fetching the offsets of group {group}");
    let answer = coordinator
        .call_up_to(NEWEST_OFFSET_FETCH_BY_NAME, |version| {
            offset_fetch_request(version, group, partitions)
        })
        .await?;
    check(answer.error_code, None, context)?;
    let mut offsets = BTreeMap::new();
    let mut insert = |partition, code: i16, offset: i64, epoch: i32, note: Option<&str>| {
        check(code, None, context)?;
        // -1 says that nothing was committed.
        if offset >= 0 {
            let committed = CommittedOffset {
                offset,
                leader_epoch: (epoch >= 0).then_some(epoch),
                metadata: note.unwrap_or_default().to_owned(),
            };
            offsets.insert(partition, committed);
        }
        Ok::<(), Error>(())
    };
    // Up to version 7 the answer is of one group, then of several; the fields are the same.
    for topic in &answer.topics {
        for part in &topic.partitions {
            insert(
                TopicPartition::new(topic.name.as_str(), part.partition_index),
                part.error_code,
                part.committed_offset,
                part.committed_leader_epoch,
                part.metadata.as_deref(),
            )?;
        }
    }
    for group in &answer.groups {
        check(group.error_code, None, context)?;
        for topic in &group.topics {
            for part in &topic.partitions {
                insert(
                    TopicPartition::new(topic.name.as_str(), part.partition_index),
                    part.error_code,
                    part.committed_offset,
                    part.committed_leader_epoch,
                    part.metadata.as_deref(),
                )?;
            }
        }
    }
    Ok(offsets)
}

fn offset_fetch_request(
    version: ApiVersion,
    group: &str,
    partitions: Option<&[TopicPartition]>,
) -> OffsetFetchRequest {
    let by_topic = partitions.map(indexes_by_topic);
    let mut request = OffsetFetchRequest::default();
    if version.value() >= 7 {
        // An offset in a transaction still open may yet change: wait for it.
        request.require_stable = true;
    }
    if version.value() >= 8 {
        let mut one = OffsetFetchRequestGroup::default();
        one.group_id = group.into();
        one.topics = by_topic.map(|topics| {
            topics
                .into_iter()
                .map(|(name, partition_indexes)| {
                    message!(OffsetFetchRequestTopics {
                        name: name.into(),
                        partition_indexes
                    })
                })
                .collect()
        });
        request.groups = vec![one];
    } else {
        request.group_id = group.into();
        request.topics = by_topic.map(|topics| {
            topics
                .into_iter()
                .map(|(name, partition_indexes)| {
                    message!(OffsetFetchRequestTopic {
                        name: name.into(),
                        partition_indexes
                    })
                })
                .collect()
        });
    }
    request
}

pub(super) async fn heartbeat(coordinator: Connection, identity: &GroupMetadata) -> Result<()> {
    let answer = coordinator
        .call(|version| {
            let mut request = HeartbeatRequest::default();
            request.group_id = identity.group.as_str().into();
            request.generation_id = identity.generation;
            request.member_id = identity.member.as_str().into();
            if version.value() >= 3 {
                request.group_instance_id = identity.instance.as_deref().map(Into::into);
            }
            request
        })
        .await?;
    check(answer.error_code, None, || {
        format!("heartbeat in group {}", identity.group)
    })
}

pub(super) async fn leave(coordinator: Connection, identity: &GroupMetadata) -> Result<()> {
    let answer = coordinator
        .call(|version| {
            let mut request = LeaveGroupRequest::default();
            request.group_id = identity.group.as_str().into();
            if version.value() >= 3 {
                let mut member = MemberIdentity::default();
                member.member_id = identity.member.as_str().into();
                request.members = vec![member];
            } else {
                request.member_id = identity.member.as_str().into();
            }
            request
        })
        .await?;
    check(answer.error_code, None, || {
        format!("leaving group {}", identity.group)
    })
}

/// What a member tells the group of itself when it joins.
pub(super) fn encode_subscription<'a>(
    topics: impl Iterator<Item = &'a str>,
    owned: &[TopicPartition],
    generation: i32,
) -> Result<bytes::Bytes> {
    let mut subscription = ConsumerProtocolSubscription::default();
    subscription.topics = topics.map(Into::into).collect();
    subscription.generation_id = generation;
    subscription.owned_partitions = indexes_by_topic(owned)
        .into_iter()
        .map(|(name, partitions)| {
            message!(OwnedTopic {
                topic: name.into(),
                partitions
            })
        })
        .collect();
    let mut bytes = BytesMut::new();
    encode_consumer_protocol_subscription(&mut bytes, &subscription, PROTOCOL_VERSION).map_err(
        |source| Error::Encode {
            what: "subscription",
            source,
        },
    )?;
    Ok(bytes.freeze())
}

/// A member as its subscription describes it.
pub(super) fn decode_member(
    id: &str,
    instance: Option<&str>,
    metadata: bytes::Bytes,
) -> Result<Member> {
    let (_, subscription) =
        decode_consumer_protocol_subscription(metadata, DecodeLimits::default())
            .map_err(|source| Error::decode("subscription", id, &source))?;
    let owned = subscription.owned_partitions.iter().flat_map(|topic| {
        let name: std::sync::Arc<str> = topic.topic.as_str().into();
        topic
            .partitions
            .iter()
            .map(move |p| TopicPartition::new(name.clone(), *p))
    });
    Ok(Member {
        id: id.to_owned(),
        instance: instance.map(ToOwned::to_owned),
        topics: subscription
            .topics
            .iter()
            .map(|topic| topic.as_str().into())
            .collect(),
        owned: owned.collect(),
        generation: subscription.generation_id,
    })
}

pub(super) fn encode_assignment(partitions: &[TopicPartition]) -> Result<bytes::Bytes> {
    let mut assignment = ConsumerProtocolAssignment::default();
    assignment.assigned_partitions = indexes_by_topic(partitions)
        .into_iter()
        .map(|(name, partitions)| {
            message!(AssignedTopic {
                topic: name.into(),
                partitions
            })
        })
        .collect();
    let mut bytes = BytesMut::new();
    encode_consumer_protocol_assignment(&mut bytes, &assignment, ApiVersion::new(1)).map_err(
        |source| Error::Encode {
            what: "assignment",
            source,
        },
    )?;
    Ok(bytes.freeze())
}

/// The partitions that a SyncGroup answer, or a group's description, assigns.
pub(crate) fn decode_assignment(group: &str, bytes: bytes::Bytes) -> Result<Vec<TopicPartition>> {
    // A member that got nothing may get no bytes at all.
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let (_, assignment) = decode_consumer_protocol_assignment(bytes, DecodeLimits::default())
        .map_err(|source| Error::decode("assignment", group, &source))?;
    let partitions = assignment.assigned_partitions.iter().flat_map(|topic| {
        let name: std::sync::Arc<str> = topic.topic.as_str().into();
        topic
            .partitions
            .iter()
            .map(move |p| TopicPartition::new(name.clone(), *p))
    });
    Ok(partitions.collect())
}
