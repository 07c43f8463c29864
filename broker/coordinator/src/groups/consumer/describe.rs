//! ConsumerGroupDescribe.

use yuxi_protocol::{
    codec::StrBytes,
    message,
    messages::{
        ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse,
        consumer_group_describe_response::{
            Assignment, DescribedGroup, Member as DescribedMember, TopicPartitions,
        },
    },
};

use super::{ConsumerGroup, Member, Partitions};
use crate::groups::{ClusterView, GroupShard, api::RequestContext};

/// From this version on, an answer says which protocol each member speaks.
const FIRST_VERSION_WITH_MEMBER_TYPE: i16 = 1;

const CLASSIC: i8 = 0;
const CONSUMER: i8 = 1;
const NOT_TOLD: i8 = -1;

impl GroupShard {
    /// Whether the client may do what is its own question to the authorizer; the caller
    /// fills in `authorized_operations` when they were asked for.
    pub(in crate::groups) fn describe_consumer_groups(
        &self,
        context: &RequestContext,
        request: ConsumerGroupDescribeRequest,
        cluster: &dyn ClusterView,
    ) -> ConsumerGroupDescribeResponse {
        let groups = request.group_ids.into_iter().map(|group_id| {
            if let Some(group) = self.consumers.get(&group_id) {
                return self.described(context, group_id, group, cluster);
            }
            let refused = self.no_consumer_group(&group_id);
            message!(DescribedGroup {
                error_code: refused.error.code(),
                error_message: Some(refused.message.into()),
                group_id
            })
        });
        message!(ConsumerGroupDescribeResponse {
            groups: groups.collect()
        })
    }

    fn described(
        &self,
        context: &RequestContext,
        group_id: StrBytes,
        group: &ConsumerGroup,
        cluster: &dyn ClusterView,
    ) -> DescribedGroup {
        let members = group.members.iter().map(|(member_id, member)| {
            let target = group.targets.get(member_id);
            described_member(context, member_id, member, target, cluster)
        });
        message!(DescribedGroup {
            group_id,
            group_state: group.state().name().into(),
            group_epoch: group.epoch.epoch,
            assignment_epoch: group.target_epoch,
            assignor_name: group.assignor(&self.config).name().into(),
            members: members.collect()
        })
    }
}

fn described_member(
    context: &RequestContext,
    member_id: &StrBytes,
    member: &Member,
    target: Option<&Partitions>,
    cluster: &dyn ClusterView,
) -> DescribedMember {
    let subscription = &member.subscription;
    message!(DescribedMember {
        member_id: member_id.clone(),
        instance_id: subscription.instance_id.clone(),
        rack_id: subscription.rack_id.clone(),
        member_epoch: member.current.epoch,
        client_id: subscription.client_id.clone(),
        client_host: subscription.client_host.clone(),
        subscribed_topic_names: subscription.topic_names.iter().cloned().collect(),
        subscribed_topic_regex: Some(subscription.topic_regex.clone().unwrap_or_default()),
        assignment: assignment(Some(&member.current.assigned), cluster),
        target_assignment: assignment(target, cluster),
        member_type: if context.api_version < FIRST_VERSION_WITH_MEMBER_TYPE {
            NOT_TOLD
        } else if member.is_classic() {
            CLASSIC
        } else {
            CONSUMER
        }
    })
}

/// Topics that are gone are left out: they have no names.
fn assignment(partitions: Option<&Partitions>, cluster: &dyn ClusterView) -> Assignment {
    let topics = partitions.into_iter().flat_map(Partitions::topics);
    let topics = topics.filter_map(|(topic, partitions)| {
        Some(message!(TopicPartitions {
            topic_id: topic.into(),
            topic_name: cluster.topic_name(topic)?,
            partitions: partitions.iter().copied().collect()
        }))
    });
    message!(Assignment {
        topic_partitions: topics.collect()
    })
}
