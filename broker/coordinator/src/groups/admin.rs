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
    classic::{Group, GroupState},
    records,
};

/// The state that DescribeGroups shows for a group that is not there.
const DEAD: &str = "Dead";

/// The type that ListGroups shows for these groups (KIP-848).
const CLASSIC: &str = "classic";

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
        let groups = request
            .groups
            .into_iter()
            .map(|group_id| match self.groups.get(&group_id) {
                Some(group) => described(group_id, group),
                None => not_found(group_id, context.api_version),
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
        let is_wanted = |group: &Group| {
            (states.is_empty() || states.contains(&group.state().name().to_lowercase()))
                && (types.is_empty() || types.contains(CLASSIC))
        };
        let groups = self.groups.iter().filter(|(_, group)| is_wanted(group));
        let groups = groups.map(|(group_id, group)| {
            message!(ListedGroup {
                group_id: group_id.clone(),
                protocol_type: group.protocol_type().cloned().unwrap_or_default(),
                group_state: group.state().name().into(),
                group_type: CLASSIC.into()
            })
        });
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
                None => ErrorCode::GroupIdNotFound,
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

fn not_found(group_id: StrBytes, api_version: i16) -> DescribedGroup {
    let mut group = message!(DescribedGroup {
        group_state: DEAD.into()
    });
    if api_version >= FIRST_DESCRIBE_VERSION_WITH_GROUP_ID_NOT_FOUND {
        group.error_code = ErrorCode::GroupIdNotFound.code();
        group.error_message = Some(format!("Group {group_id} not found.").into());
    }
    group.group_id = group_id;
    group
}
