//! DescribeGroups, ListGroups and DeleteGroups.

use std::collections::BTreeSet;

use bytes::Bytes;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    message,
    messages::{
        DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
        ListGroupsRequest, ListGroupsResponse,
        delete_groups_response::DeletableGroupResult,
        describe_groups_response::{DescribedGroup, DescribedGroupMember},
        list_groups_response::ListedGroup,
    },
};

use super::{
    GroupShard,
    api::{Effects, RequestContext},
    classic::{CONSUMER_PROTOCOL_TYPE, Group, GroupState},
    records,
};

/// The state that DescribeGroups shows for a group that is not there.
const DEAD: &str = "Dead";

/// The types that ListGroups shows (KIP-848).
const CLASSIC: &str = "classic";
const CONSUMER: &str = "consumer";

/// From this version on, describing a group that is not there is an error (KIP-1043).
const FIRST_DESCRIBE_VERSION_WITH_GROUP_ID_NOT_FOUND: i16 = 6;

impl GroupShard {
    /// Whether the client may do what is its own question to the authorizer; the
    /// caller fills in `authorized_operations` when they were asked for.
    pub(super) fn describe(
        &self,
        context: &RequestContext,
        request: DescribeGroupsRequest,
    ) -> DescribeGroupsResponse {
        let groups = request.groups.into_iter().map(|group_id| {
            if let Some(group) = self.groups.get(&group_id) {
                return described(group_id, group);
            }
            let problem = if self.consumers.contains_key(&group_id) {
                "is not a classic group"
            } else {
                "not found"
            };
            not_found(group_id, problem, context.api_version)
        });
        message!(DescribeGroupsResponse {
            groups: groups.collect()
        })
    }

    pub(super) fn list(&self, request: &ListGroupsRequest) -> ListGroupsResponse {
        let lower_case = |names: &[StrBytes]| -> BTreeSet<String> {
            names
                .iter()
                .map(|name| name.trim().to_lowercase())
                .collect()
        };
        let states = lower_case(&request.states_filter);
        let types = lower_case(&request.types_filter);
        let is_wanted = |state: &str, kind: &str| {
            (states.is_empty() || states.contains(&state.to_lowercase()))
                && (types.is_empty() || types.contains(kind))
        };
        let classic = self
            .groups
            .iter()
            .filter(|(_, group)| is_wanted(group.state().name(), CLASSIC))
            .map(|(group_id, group)| {
                message!(ListedGroup {
                    group_id: group_id.clone(),
                    protocol_type: group.protocol_type().cloned().unwrap_or_default(),
                    group_state: group.state().name().into(),
                    group_type: CLASSIC.into()
                })
            });
        let consumer = self
            .consumers
            .iter()
            .filter(|(_, group)| is_wanted(group.state().name(), CONSUMER))
            .map(|(group_id, group)| {
                message!(ListedGroup {
                    group_id: group_id.clone(),
                    protocol_type: CONSUMER_PROTOCOL_TYPE.into(),
                    group_state: group.state().name().into(),
                    group_type: CONSUMER.into()
                })
            });
        let groups = classic.chain(consumer);
        message!(ListGroupsResponse {
            groups: groups.collect()
        })
    }

    pub(super) fn delete(
        &self,
        request: DeleteGroupsRequest,
        effects: &mut Effects,
    ) -> DeleteGroupsResponse {
        let mut seen = BTreeSet::new();
        let distinct = request
            .groups_names
            .into_iter()
            .filter(|id| seen.insert(id.clone()));
        let results = distinct.map(|group_id| {
            let error = match self.groups.get(&group_id).map(Group::state) {
                None => self.delete_consumer_group(&group_id, effects),
                Some(GroupState::Empty) => {
                    effects.records.extend(self.tombstones_of(&group_id));
                    effects.records.push(records::group_tombstone(&group_id));
                    ErrorCode::None
                }
                Some(
                    GroupState::PreparingRebalance
                    | GroupState::CompletingRebalance
                    | GroupState::Stable,
                ) => ErrorCode::NonEmptyGroup,
            };
            message!(DeletableGroupResult {
                group_id,
                error_code: error.code()
            })
        });
        message!(DeleteGroupsResponse {
            results: results.collect()
        })
    }
}

impl GroupShard {
    fn delete_consumer_group(&self, group_id: &StrBytes, effects: &mut Effects) -> ErrorCode {
        match self.consumers.get(group_id) {
            None => ErrorCode::GroupIdNotFound,
            Some(group) if group.members().is_empty() => {
                effects.records.extend(self.tombstones_of(group_id));
                effects.records.extend(group.tombstones(group_id));
                ErrorCode::None
            }
            Some(_) => ErrorCode::NonEmptyGroup,
        }
    }
}

fn described(group_id: StrBytes, group: &Group) -> DescribedGroup {
    // What members sent is only shown while they agree on what it means.
    let protocol = (group.state() == GroupState::Stable)
        .then(|| group.protocol())
        .flatten();
    let members = group.members().iter().map(|(member_id, member)| {
        message!(DescribedGroupMember {
            member_id: member_id.clone(),
            group_instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            member_metadata: protocol.map_or_else(Bytes::new, |name| member.metadata(Some(name))),
            member_assignment: member.assignment.clone()
        })
    });
    message!(DescribedGroup {
        group_id,
        group_state: group.state().name().into(),
        protocol_type: group.protocol_type().cloned().unwrap_or_default(),
        protocol_data: protocol.cloned().unwrap_or_default(),
        members: members.collect()
    })
}

fn not_found(group_id: StrBytes, problem: &str, api_version: i16) -> DescribedGroup {
    let mut group = message!(DescribedGroup {
        group_state: DEAD.into()
    });
    if api_version >= FIRST_DESCRIBE_VERSION_WITH_GROUP_ID_NOT_FOUND {
        group.error_code = ErrorCode::GroupIdNotFound.code();
        group.error_message = Some(format!("Group {group_id} {problem}.").into());
    }
    group.group_id = group_id;
    group
}
