//! Consumer groups: list, describe, delete, move their offsets.

use std::collections::BTreeMap;

use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::TopicPartition;
use yuxi_protocol::message;
use yuxi_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use yuxi_protocol::messages::{
    ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, DeleteGroupsRequest,
    DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse, ListGroupsRequest,
    ListGroupsResponse, OffsetDeleteRequest, OffsetDeleteResponse,
};

use super::Admin;
use crate::consumer::{self, CommittedOffset};
use crate::error::{Error, Result, check};
use crate::metadata::indexes_by_topic;

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    /// Its name.
    pub group: String,
    /// What its members are, "consumer" for most.
    pub protocol_type: String,
    /// Its state, if the broker tells.
    pub state: String,
    /// classic, consumer or share, if the broker tells.
    pub kind: String,
}

/// A group, its members and what they read.
#[derive(Clone, Debug)]
pub struct GroupDescription {
    /// Its name.
    pub group: String,
    /// Its state.
    pub state: String,
    /// The assignor that the members agreed on.
    pub assignor: String,
    /// Its members.
    pub members: Vec<MemberDescription>,
}

/// A member of a group.
#[derive(Clone, Debug)]
pub struct MemberDescription {
    /// The id that the coordinator gave it.
    pub id: String,
    /// Its static name, if it has one.
    pub instance: Option<String>,
    /// Its `client.id`.
    pub client_id: String,
    /// Where it connects from.
    pub host: String,
    /// What it was assigned.
    pub assignment: Vec<TopicPartition>,
}

impl Admin {
    /// The groups of every broker.
    pub async fn list_groups(&self) -> Result<Vec<GroupListing>> {
        let metadata = self.cluster.refresh(&[], false).await?;
        let mut groups = Vec::new();
        for &broker in metadata.brokers.keys() {
            let answer: ListGroupsResponse = self
                .cluster
                .broker(broker)
                .await?
                .call(|_| ListGroupsRequest::default())
                .await?;
            check(answer.error_code, None, || {
                format!("listing the groups of broker {broker}")
            })?;
            groups.extend(answer.groups.iter().map(|group| GroupListing {
                group: group.group_id.to_string(),
                protocol_type: group.protocol_type.to_string(),
                state: group.group_state.to_string(),
                kind: group.group_type.to_string(),
            }));
        }
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        groups.dedup();
        Ok(groups)
    }

    /// A group with its members. One that does not exist is described as "Dead".
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription> {
        match self.describe_classic_group(group).await {
            // As brokers say of the groups whose coordinator assigns (KIP-848).
            Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => {
                match self.describe_consumer_group(group).await {
                    Err(Error::Unsupported { .. }) => Err(error),
                    described => described,
                }
            }
            described => described,
        }
    }

    async fn describe_consumer_group(&self, group: &str) -> Result<GroupDescription> {
        let answer: ConsumerGroupDescribeResponse = self
            .cluster
            .group_coordinator(group)
            .await?
            .call(|_| {
                message!(ConsumerGroupDescribeRequest {
                    group_ids: vec![group.into()]
                })
            })
            .await?;
        let described = asked_for("ConsumerGroupDescribe answer", group, answer.groups)?;
        let message = described.error_message.as_deref();
        check(described.error_code, message, || {
            format!("describing group {group}")
        })?;
        let members = described.members.iter().map(|member| {
            let topics = member.assignment.topic_partitions.iter();
            let assignment = topics.flat_map(|topic| {
                let indexes = topic.partitions.iter();
                indexes.map(|index| TopicPartition::new(topic.topic_name.as_str(), *index))
            });
            MemberDescription {
                id: member.member_id.to_string(),
                instance: member.instance_id.as_ref().map(ToString::to_string),
                client_id: member.client_id.to_string(),
                host: member.client_host.to_string(),
                assignment: assignment.collect(),
            }
        });
        Ok(GroupDescription {
            group: group.to_owned(),
            state: described.group_state.to_string(),
            assignor: described.assignor_name.to_string(),
            members: members.collect(),
        })
    }

    async fn describe_classic_group(&self, group: &str) -> Result<GroupDescription> {
        let answer: DescribeGroupsResponse = self
            .cluster
            .group_coordinator(group)
            .await?
            .call(|_| {
                message!(DescribeGroupsRequest {
                    groups: vec![group.into()]
                })
            })
            .await?;
        let described = asked_for("DescribeGroups answer", group, answer.groups)?;
        check(
            described.error_code,
            described.error_message.as_deref(),
            || format!("describing group {group}"),
        )?;
        let members = described.members.iter().map(|member| {
            Ok(MemberDescription {
                id: member.member_id.to_string(),
                instance: member.group_instance_id.as_ref().map(ToString::to_string),
                client_id: member.client_id.to_string(),
                host: member.client_host.to_string(),
                assignment: match described.protocol_type.as_str() {
                    "consumer" => {
                        consumer::decode_assignment(group, member.member_assignment.clone())?
                    }
                    // Another kind of member: its assignment is its own affair.
                    _ => Vec::new(),
                },
            })
        });
        Ok(GroupDescription {
            group: group.to_owned(),
            state: described.group_state.to_string(),
            assignor: described.protocol_data.to_string(),
            members: members.collect::<Result<_>>()?,
        })
    }

    /// Deletes a group and its offsets. It must have no members.
    pub async fn delete_group(&self, group: &str) -> Result<()> {
        let answer: DeleteGroupsResponse = self
            .cluster
            .group_coordinator(group)
            .await?
            .call(|_| {
                message!(DeleteGroupsRequest {
                    groups_names: vec![group.into()]
                })
            })
            .await?;
        for result in &answer.results {
            check(result.error_code, result.error_message.as_deref(), || {
                format!("deleting group {group}")
            })?;
        }
        Ok(())
    }

    /// A group's committed offsets.
    pub async fn group_offsets(
        &self,
        group: &str,
    ) -> Result<BTreeMap<TopicPartition, CommittedOffset>> {
        consumer::committed_offsets(&self.cluster, group, None).await
    }

    /// Moves a group's offsets. It must have no members.
    pub async fn set_group_offsets(
        &self,
        group: &str,
        offsets: &BTreeMap<TopicPartition, i64>,
    ) -> Result<()> {
        let offsets = offsets
            .iter()
            .map(|(partition, offset)| {
                let committed = CommittedOffset {
                    offset: *offset,
                    leader_epoch: None,
                    metadata: String::new(),
                };
                (partition.clone(), committed)
            })
            .collect();
        consumer::commit_as_outsider(&self.cluster, group, offsets).await
    }

    /// Makes a group forget its offsets of these partitions.
    pub async fn delete_group_offsets(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<()> {
        let topics = indexes_by_topic(partitions);
        let answer: OffsetDeleteResponse = self
            .cluster
            .group_coordinator(group)
            .await?
            .call(|_| {
                let mut request = OffsetDeleteRequest::default();
                request.group_id = group.into();
                for (name, indexes) in &topics {
                    let mut topic = OffsetDeleteRequestTopic::default();
                    topic.name = (*name).into();
                    for index in indexes {
                        let mut part = OffsetDeleteRequestPartition::default();
                        part.partition_index = *index;
                        topic.partitions.push(part);
                    }
                    request.topics.push(topic);
                }
                request
            })
            .await?;
        check(answer.error_code, None, || {
            format!("deleting offsets of group {group}")
        })?;
        for topic in &answer.topics {
            for part in &topic.partitions {
                check(part.error_code, None, || {
                    format!(
                        "deleting the offset of {}-{} of group {group}",
                        topic.name, part.partition_index
                    )
                })?;
            }
        }
        Ok(())
    }
}

/// One group was asked for, and the answer tells of that one.
fn asked_for<T>(what: &'static str, group: &str, described: Vec<T>) -> Result<T> {
    described
        .into_iter()
        .next()
        .ok_or_else(|| Error::Malformed {
            what,
            address: group.to_owned(),
            detail: "the group is missing from it".to_owned(),
        })
}
