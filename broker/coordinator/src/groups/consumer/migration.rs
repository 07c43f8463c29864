//! Classic groups that become consumer groups and the other way round, while their members
//! go on (KIP-848).
//!
//! A classic group becomes a consumer group when a member joins it that speaks the new
//! protocol; it becomes a classic one again when the last such member goes. Both are one
//! batch in the log: what was there is deleted and what takes its place is written.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use yuxi_protocol::{
    codec::{ApiVersion, DecodeError, DecodeLimits, StrBytes},
    error_code::ErrorCode,
    ids::TopicId,
    message,
    messages::{
        ConsumerProtocolAssignment, ConsumerProtocolSubscription,
        consumer_protocol_assignment::TopicPartition, decode_consumer_protocol_assignment,
        decode_consumer_protocol_subscription, encode_consumer_protocol_assignment,
    },
};

use super::{
    ClassicMember, ConsumerGroup, Current, GroupEpoch, MemberState, Partitions, Subscription,
    change::Change, fencing::ConsumerTimer,
};
use crate::groups::{
    ClusterView, GroupShard,
    api::{Completion, Effects, GroupResponse, Refused, join_refused, sync_refused},
    classic::{CONSUMER_PROTOCOL_TYPE, Group},
    records::{self, GroupMetadataValue, MemberMetadata},
};
use crate::time::Now;

/// The versions of the formats inside JoinGroup and SyncGroup that are known.
const NEWEST_EMBEDDED_VERSION: i16 = 3;

impl GroupShard {
    /// The change to a consumer group that a heartbeat makes, and whether a classic group
    /// with members becomes one by it. A group that is not there is made for who joins.
    pub(super) fn consumer_change(
        &self,
        id: &StrBytes,
        joins: bool,
        cluster: &dyn ClusterView,
    ) -> Result<(Change<'_>, bool), Refused> {
        if let Some((id, group)) = self.consumers.get_key_value(id) {
            return Ok((Change::of(id, group), false));
        }
        if !joins {
            return Err(self.no_consumer_group(id));
        }
        let mut change = Change::new(id);
        let Some(classic) = self.groups.get(id) else {
            return Ok((change, false));
        };
        if classic.members().is_empty() {
            change.records.push(records::group_tombstone(id));
            return Ok((change, false));
        }
        self.may_become_consumer_group(id, classic)?;
        change.records.push(records::group_tombstone(id));
        take_over(&mut change, classic, cluster).map_err(|problem| cannot_upgrade(id, &problem))?;
        Ok((change, true))
    }

    pub(super) fn no_consumer_group(&self, id: &StrBytes) -> Refused {
        let problem = if self.groups.contains_key(id) {
            "is not a consumer group"
        } else {
            "not found"
        };
        Refused::new(
            ErrorCode::GroupIdNotFound,
            format!("Group {} {problem}.", id.as_str()),
        )
    }

    fn may_become_consumer_group(&self, id: &StrBytes, classic: &Group) -> Result<(), Refused> {
        if !self.config.consumer.migration.allows_upgrade() {
            Err(cannot_upgrade(id, "online upgrade is disabled"))
        } else if !classic.uses_consumer_protocol() {
            Err(cannot_upgrade(
                id,
                "the group does not use the consumer embedded protocol",
            ))
        } else if classic.members().len() > self.config.consumer.max_size {
            Err(cannot_upgrade(
                id,
                "the group size exceeds the consumer group maximum size",
            ))
        } else {
            Ok(())
        }
    }

    /// Whoever waits in a classic group that is about to be a consumer group joins again,
    /// and finds that. Who is not heard from within its session is gone.
    pub(super) fn convert_members(&mut self, id: &StrBytes, now: Now, effects: &mut Effects) {
        let Some(classic) = self.groups.get_mut(id) else {
            return;
        };
        let members = classic.members().iter();
        let sessions: Vec<(StrBytes, i32)> = members
            .map(|(member_id, member)| (member_id.clone(), member.session_timeout_ms))
            .collect();
        for (member_id, _) in &sessions {
            let error = ErrorCode::RebalanceInProgress;
            if let Some(parked) = classic.take_join(member_id) {
                let refused = join_refused(parked.api_version, member_id.clone(), error);
                effects.reply(parked.ticket, GroupResponse::Join(refused));
            }
            if let Some(parked) = classic.take_sync(member_id) {
                effects.reply(parked.ticket, GroupResponse::Sync(sync_refused(error)));
            }
        }
        for (member_id, session_ms) in sessions {
            self.arm(id, &member_id, ConsumerTimer::Session, session_ms, now);
        }
    }

    /// Whether without this member all that are left speak the classic protocol, and the
    /// group may be one of that kind.
    pub(super) fn may_become_classic_without(
        &self,
        group: &ConsumerGroup,
        member_id: &StrBytes,
    ) -> bool {
        let goes = group.members.get(member_id);
        let left = group.members.len() - usize::from(goes.is_some());
        let speaks_new = goes.is_some_and(|member| !member.is_classic());
        speaks_new
            && left > 0
            && group.classic_member_count() == left
            && self.config.consumer.migration.allows_downgrade()
            && left <= self.config.max_size
    }

    /// Makes a classic group of a consumer group whose members all speak that protocol, but
    /// for the one that goes with this.
    pub(super) fn become_classic(
        &self,
        id: &StrBytes,
        goes: Option<&StrBytes>,
        cluster: &dyn ClusterView,
        now: Now,
        effects: &mut Effects,
    ) {
        let Some((id, group)) = self.consumers.get_key_value(id) else {
            return;
        };
        let mut change = Change::of(id, group);
        if let Some(member_id) = goes {
            change.remove_member(member_id);
        }
        turn_classic(change, goes.is_some(), cluster, now.wall_ms).hand_over(effects);
    }
}

/// A consumer group that is to be a classic one.
pub(super) struct TurnedClassic {
    id: StrBytes,
    records: Vec<crate::CoordinatorRecord>,
    group: Group,
}

impl TurnedClassic {
    /// Has it written; the group is a classic one once that is done.
    pub(super) fn hand_over(self, effects: &mut Effects) {
        tracing::info!(
            group = self.id.as_str(),
            "the consumer group becomes a classic one"
        );
        effects.records.extend(self.records);
        effects.completions.push(Completion::BecameClassic {
            group: self.id,
            rebalance: self.group.awaits_rebalance,
            classic: Box::new(self.group),
        });
    }
}

/// Deletes the consumer group and makes the classic one that takes its place. It rebalances
/// if it must, because a member goes, or because not everybody has what it should.
pub(super) fn turn_classic(
    mut change: Change<'_>,
    must_rebalance: bool,
    cluster: &dyn ClusterView,
    now_ms: i64,
) -> TurnedClassic {
    let epoch = change.group.epoch.epoch;
    let mut members = change.group.members.values();
    let rebalances = must_rebalance || !members.all(|member| member.is_reconciled_to(epoch));
    let mut value = classic_value(&change.group, cluster, now_ms);
    if rebalances {
        // Whoever loads this is told so by there being no leader.
        value.leader = None;
    }
    change.delete();
    let mut records = change.records;
    records.push(records::group_metadata(&change.id, &value));
    let group = Group::from_record(&change.id, value)
        .expect("the members of a consumer group have ids and instance ids of their own");
    TurnedClassic {
        id: change.id,
        records,
        group,
    }
}

fn cannot_upgrade(id: &StrBytes, problem: &str) -> Refused {
    Refused::new(
        ErrorCode::GroupIdNotFound,
        format!(
            "Cannot upgrade classic group {} to consumer group because {problem}.",
            id.as_str()
        ),
    )
}

/// Writes the classic group's members as those of a consumer group, in the epoch of the
/// generation, with what they were assigned.
fn take_over(
    change: &mut Change<'_>,
    classic: &Group,
    cluster: &dyn ClusterView,
) -> Result<(), String> {
    let malformed =
        |error: DecodeError| format!("the embedded consumer protocol is malformed ({error})");
    let epoch = classic.generation();
    let mut taken = Partitions::default();
    let mut members = Vec::with_capacity(classic.members().len());
    for (member_id, member) in classic.members() {
        let metadata = match classic.protocol() {
            Some(name) => member.metadata(Some(name)),
            None => member
                .protocols
                .first()
                .map(|(_, metadata)| metadata.clone())
                .unwrap_or_default(),
        };
        let said = read_subscription(&metadata).map_err(malformed)?;
        let mut assigned = Partitions::default();
        if !member.assignment.is_empty() {
            let (_, assignment) = decode_consumer_protocol_assignment(
                member.assignment.clone(),
                limits(&member.assignment),
            )
            .map_err(malformed)?;
            if assignment
                .user_data
                .as_ref()
                .is_some_and(|data| !data.is_empty())
            {
                return Err(
                    "an unsupported custom assignor is in use. Please refer to the \
                            documentation or switch to a default assignor before re-attempting \
                            the upgrade"
                        .to_owned(),
                );
            }
            for topic in &assignment.assigned_partitions {
                let Some(found) = cluster.topic(&topic.topic) else {
                    continue;
                };
                for &partition in &topic.partitions {
                    // A leader that gave a partition to two is not followed in that.
                    if !taken.contains(found.id, partition) {
                        taken.insert(found.id, partition);
                        assigned.insert(found.id, partition);
                    }
                }
            }
        }
        members.push((member_id, member, said, assigned));
    }
    for (member_id, member, said, mut assigned) in members {
        // A rebalance that begins anew has taken assignments back of which cooperative members
        // read on. And who was just told to give something up may not have done so yet.
        for (topic, partition) in owned_by(&said, cluster).iter() {
            if !taken.contains(topic, partition) {
                taken.insert(topic, partition);
                assigned.insert(topic, partition);
            }
        }
        change.set_subscription(
            member_id,
            Some(Subscription {
                instance_id: member.instance_id.clone(),
                rack_id: said.rack_id.clone(),
                client_id: member.client_id.clone(),
                client_host: member.client_host.clone(),
                topic_names: said.topics.iter().map(crate::groups::copied).collect(),
                topic_regex: None,
                rebalance_timeout_ms: member.rebalance_timeout_ms,
                server_assignor: None,
                classic: Some(ClassicMember {
                    session_timeout_ms: member.session_timeout_ms,
                    protocols: member.protocols.clone(),
                }),
            }),
        );
        change.set_target(member_id, Some(assigned.clone()));
        change.set_current(
            member_id,
            Some(Current {
                epoch,
                previous_epoch: epoch,
                state: MemberState::Stable,
                assigned,
                revoking: Partitions::default(),
            }),
        );
    }
    change.set_epoch(Some(GroupEpoch {
        epoch,
        metadata_hash: 0,
    }));
    change.set_target_epoch(Some(epoch));
    Ok(())
}

/// The record of the classic group that takes the consumer group's place. Its members are
/// assigned what they may be reading, and not what they were to have: should the group
/// become a consumer group again at once, that is what nobody else may be given.
fn classic_value(
    group: &ConsumerGroup,
    cluster: &dyn ClusterView,
    now_ms: i64,
) -> GroupMetadataValue {
    let protocol = common_protocol(group);
    let members = group.members.iter().filter_map(|(member_id, member)| {
        let classic = member.subscription.classic.as_ref()?;
        let metadata = classic
            .protocols
            .iter()
            .find(|(name, _)| Some(name) == protocol.as_ref())
            .map(|(_, metadata)| metadata.clone())
            .unwrap_or_default();
        let Current {
            assigned, revoking, ..
        } = &member.current;
        let held = assigned.iter().chain(revoking.iter()).collect();
        Some(MemberMetadata {
            member_id: member_id.clone(),
            group_instance_id: member.subscription.instance_id.clone(),
            client_id: member.subscription.client_id.clone(),
            client_host: member.subscription.client_host.clone(),
            rebalance_timeout_ms: member.subscription.rebalance_timeout_ms,
            session_timeout_ms: classic.session_timeout_ms,
            assignment: assignment_bytes(&held, &metadata, cluster),
            subscription: metadata,
        })
    });
    let members: Vec<MemberMetadata> = members.collect();
    GroupMetadataValue {
        protocol_type: CONSUMER_PROTOCOL_TYPE.into(),
        generation: group.epoch.epoch,
        leader: members.first().map(|member| member.member_id.clone()),
        protocol,
        current_state_timestamp_ms: now_ms,
        members,
    }
}

/// The protocol that most members prefer among those that all support.
fn common_protocol(group: &ConsumerGroup) -> Option<StrBytes> {
    let offers: Vec<Vec<&StrBytes>> = group
        .members
        .values()
        .filter_map(|member| member.subscription.classic.as_ref())
        .map(|classic| classic.protocols.iter().map(|(name, _)| name).collect())
        .collect();
    let mut votes: BTreeMap<&StrBytes, usize> = BTreeMap::new();
    for offer in &offers {
        let choice = offer
            .iter()
            .find(|name| offers.iter().all(|other| other.contains(name)));
        if let Some(name) = choice {
            *votes.entry(name).or_default() += 1;
        }
    }
    let most = votes.values().copied().max()?;
    votes
        .into_iter()
        .find(|(_, count)| *count == most)
        .map(|(name, _)| name.clone())
}

/// A member's partitions as SyncGroup carries them, in the version that the member speaks.
pub(super) fn assignment_bytes(
    partitions: &Partitions,
    metadata: &Bytes,
    cluster: &dyn ClusterView,
) -> Bytes {
    let spoken = metadata
        .first_chunk()
        .map_or(0, |version| i16::from_be_bytes(*version))
        .clamp(0, NEWEST_EMBEDDED_VERSION);
    let topics = partitions.topics().filter_map(|(topic, partitions)| {
        Some(message!(TopicPartition {
            topic: cluster.topic_name(topic)?,
            partitions: partitions.iter().copied().collect()
        }))
    });
    let assignment = message!(ConsumerProtocolAssignment {
        assigned_partitions: topics.collect()
    });
    let mut buffer = BytesMut::new();
    let written =
        encode_consumer_protocol_assignment(&mut buffer, &assignment, ApiVersion::new(spoken));
    // Topic names are short, so that there is nothing that could not be written.
    debug_assert!(written.is_ok(), "{written:?}");
    buffer.freeze()
}

/// A consumer's subscription from its JoinGroup.
pub(super) fn read_subscription(
    metadata: &Bytes,
) -> Result<ConsumerProtocolSubscription, DecodeError> {
    let (_, subscription) =
        decode_consumer_protocol_subscription(metadata.clone(), limits(metadata))?;
    Ok(subscription)
}

/// The partitions that a classic member says it owns.
pub(super) fn owned_by(
    subscription: &ConsumerProtocolSubscription,
    cluster: &dyn ClusterView,
) -> Partitions {
    let topics = subscription.owned_partitions.iter();
    topics
        .filter_map(|topic| Some((cluster.topic(&topic.topic)?.id, &topic.partitions)))
        .flat_map(|(id, partitions): (TopicId, _)| partitions.iter().map(move |&at| (id, at)))
        .collect()
}

fn limits(bytes: &Bytes) -> DecodeLimits {
    let mut limits = DecodeLimits::default();
    limits.max_array_elements = bytes.len();
    limits
}

/// The names of protocols that every classic member supports.
pub(super) fn supports(group: &ConsumerGroup, names: &BTreeSet<&StrBytes>) -> bool {
    let classic: Vec<&ClassicMember> = group
        .members
        .values()
        .filter_map(|member| member.subscription.classic.as_ref())
        .collect();
    names.iter().any(|name| {
        classic
            .iter()
            .all(|member| member.protocols.iter().any(|(known, _)| known == *name))
    })
}
