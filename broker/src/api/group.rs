//! The APIs that the group coordinator answers as they are asked: JoinGroup (11),
//! Heartbeat (12), LeaveGroup (13), SyncGroup (14), DescribeGroups (15), ListGroups (16),
//! DeleteGroups (42) and OffsetDelete (47). In one file, because nothing is translated
//! for any of them.

use super::{Context, authorized_operations};
use crate::partition::VerificationGuard;
use yuxi_coordinator::groups::{GroupRequest, GroupResponse, RequestContext};
use yuxi_protocol::{codec::StrBytes, messages};

/// Asks the coordinator and takes the answer of the same kind.
macro_rules! ask {
    ($context:expr, $kind:ident, $request:expr) => {
        match $crate::api::group::request(&$context, GroupRequest::$kind($request)).await {
            GroupResponse::$kind(response) => response,
            other => unreachable!("the coordinator answered with {other:?}"),
        }
    };
}
pub(super) use ask;

pub(super) async fn request(context: &Context, request: GroupRequest) -> GroupResponse {
    verified_request(context, request, None).await
}

/// Asks for something that is part of a transaction, with the guard with which that one's
/// coordinator was asked.
pub(super) async fn verified_request(
    context: &Context,
    request: GroupRequest,
    guard: Option<VerificationGuard>,
) -> GroupResponse {
    let asker = RequestContext {
        api_version: context.version,
        client_id: context.client_id.clone().unwrap_or_default(),
        client_host: StrBytes::from(format!("/{}", context.peer.ip())),
    };
    let node = &context.node;
    node.groups
        .handle(node, request, &asker, guard, context.connected)
        .await
}

macro_rules! as_asked {
    ($($handle:ident: $kind:ident, $request:ident => $response:ident;)+) => {
        $(pub(super) async fn $handle(
            context: Context,
            request: messages::$request,
        ) -> messages::$response {
            ask!(context, $kind, request)
        })+
    };
}

as_asked! {
    join: Join, JoinGroupRequest => JoinGroupResponse;
    heartbeat: Heartbeat, HeartbeatRequest => HeartbeatResponse;
    leave: Leave, LeaveGroupRequest => LeaveGroupResponse;
    sync: Sync, SyncGroupRequest => SyncGroupResponse;
    list: ListGroups, ListGroupsRequest => ListGroupsResponse;
    delete: DeleteGroups, DeleteGroupsRequest => DeleteGroupsResponse;
    delete_offsets: OffsetDelete, OffsetDeleteRequest => OffsetDeleteResponse;
}

pub(super) async fn describe(
    context: Context,
    request: messages::DescribeGroupsRequest,
) -> messages::DescribeGroupsResponse {
    let operations = if request.include_authorized_operations {
        authorized_operations::GROUP
    } else {
        authorized_operations::NOT_ASKED
    };
    let mut response = ask!(context, DescribeGroups, request);
    for group in &mut response.groups {
        group.authorized_operations = operations;
    }
    response
}
