//! A classic group as its record shows it, there and back; and what can be read from
//! its members' metadata.

use std::collections::BTreeSet;

use bytes::Bytes;
use yuxi_protocol::codec::{DecodeError, DecodeLimits, Decoder, StrBytes};

use super::{Group, GroupState, Member};
use crate::{
    CoordinatorRecord,
    groups::records::{self, GroupMetadataValue, MemberMetadata, RecordError},
};

impl Group {
    /// The group that a record describes: Stable if it has members, else Empty. Members
    /// without a leader are those of a consumer group that was, and are to rebalance.
    pub(in crate::groups) fn from_record(
        id: &StrBytes,
        value: GroupMetadataValue,
    ) -> Result<Self, RecordError> {
        let inconsistent = |problem| {
            Err(RecordError::Inconsistent {
                group: id.clone(),
                problem,
            })
        };
        let state = if value.members.is_empty() {
            GroupState::Empty
        } else {
            GroupState::Stable
        };
        let mut group = Self {
            state,
            previous_state: state,
            state_since_ms: Some(value.current_state_timestamp_ms).filter(|since| *since != -1),
            generation: value.generation,
            protocol_type: Some(value.protocol_type).filter(|kind| !kind.is_empty()),
            protocol: value.protocol,
            awaits_rebalance: value.leader.is_none() && !value.members.is_empty(),
            leader: value.leader,
            ..Self::new(0)
        };
        for member in value.members {
            let Some(protocol) = group.protocol.clone() else {
                return inconsistent("it has members but no protocol");
            };
            if group.members.contains_key(&member.member_id) {
                return inconsistent("a member id is there twice");
            }
            if member
                .group_instance_id
                .as_ref()
                .is_some_and(|instance| group.static_members.contains_key(instance))
            {
                return inconsistent("a group instance id is there twice");
            }
            let rebalance_timeout_ms = match member.rebalance_timeout_ms {
                -1 => member.session_timeout_ms,
                timeout => timeout,
            };
            group.insert(
                member.member_id,
                Member {
                    instance_id: member.group_instance_id,
                    client_id: member.client_id,
                    client_host: member.client_host,
                    rebalance_timeout_ms,
                    session_timeout_ms: member.session_timeout_ms,
                    protocols: vec![(protocol, member.subscription)],
                    assignment: member.assignment,
                    is_new: false,
                    joining: None,
                    syncing: None,
                },
            );
        }
        if !group
            .leader
            .as_ref()
            .is_some_and(|leader| group.members.contains_key(leader))
        {
            group.leader = group.members.keys().next().cloned();
        }
        group.subscribed_topics = group.compute_subscribed_topics();
        Ok(group)
    }

    /// The record that describes the group with `assignment` as the members' own.
    pub(in crate::groups) fn to_record(
        &self,
        id: &StrBytes,
        assignment: impl Fn(&StrBytes, &Member) -> Bytes,
    ) -> CoordinatorRecord {
        let members = self
            .members
            .iter()
            .map(|(member_id, member)| MemberMetadata {
                member_id: member_id.clone(),
                group_instance_id: member.instance_id.clone(),
                client_id: member.client_id.clone(),
                client_host: member.client_host.clone(),
                rebalance_timeout_ms: member.rebalance_timeout_ms,
                session_timeout_ms: member.session_timeout_ms,
                subscription: member.metadata(self.protocol.as_ref()),
                assignment: assignment(member_id, member),
            });
        let value = GroupMetadataValue {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            current_state_timestamp_ms: self.state_since_ms.unwrap_or(-1),
            members: members.collect(),
        };
        records::group_metadata(id, &value)
    }

    /// The topics that the members subscribe to, as far as that can be known: only
    /// consumers say, and only in metadata that we can read.
    pub(super) fn compute_subscribed_topics(&self) -> Option<BTreeSet<StrBytes>> {
        if !self.uses_consumer_protocol() {
            return None;
        }
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            let metadata = member.metadata(Some(self.protocol.as_ref()?));
            topics.extend(subscribed_topics(&metadata).ok()?);
        }
        Some(topics)
    }
}

/// The topics of a consumer's subscription. Every version of that format begins as
/// version 0 does: version, topics, user data.
fn subscribed_topics(metadata: &Bytes) -> Result<Vec<StrBytes>, DecodeError> {
    let mut limits = DecodeLimits::default();
    limits.max_array_elements = metadata.len();
    let mut decoder = Decoder::new(metadata.clone(), limits)?;
    decoder.read_i16()?;
    let count = decoder.read_array_len()?;
    let topics = decoder.read_vec(count, Decoder::read_string)?;
    decoder.read_nullable_bytes()?;
    Ok(topics)
}
