//! SyncGroup, Heartbeat and LeaveGroup: what members do between joins.

use std::collections::HashMap;

use bytes::Bytes;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    message,
    messages::{
        HeartbeatRequest, LeaveGroupRequest, LeaveGroupResponse, SyncGroupRequest,
        leave_group_request::MemberIdentity, leave_group_response::MemberResponse,
    },
};

use super::{
    ClusterView, GroupShard,
    api::{self, Completion, Effects, GroupResponse, RequestContext, Ticket},
    classic::{GroupState, Parked},
    logged,
    rebalance::Turn,
};
use crate::time::Now;

/// From this version on, LeaveGroup names several members and answers for each.
const FIRST_VERSION_WITH_BATCH_LEAVE: i16 = 3;

/// From this version on, SyncGroup must say which protocol the member has in mind.
const FIRST_VERSION_WITH_MANDATORY_PROTOCOL: i16 = 5;

impl GroupShard {
    pub(super) fn sync(
        &mut self,
        context: &RequestContext,
        request: &SyncGroupRequest,
        ticket: Ticket,
        cluster: &dyn ClusterView,
        now: Now,
        effects: &mut Effects,
    ) {
        let parked = Parked {
            ticket,
            api_version: context.api_version,
        };
        let refusal = if context.api_version >= FIRST_VERSION_WITH_MANDATORY_PROTOCOL
            && (request.protocol_type.is_none() || request.protocol_name.is_none())
        {
            ErrorCode::InconsistentGroupProtocol
        } else if request.group_id.is_empty() {
            ErrorCode::InvalidGroupId
        } else if self.consumers.contains_key(&request.group_id) {
            match self.sync_consumer_group(request, cluster, now) {
                Ok(response) => return effects.reply(ticket, GroupResponse::Sync(response)),
                Err(error) => error,
            }
        } else if let Some(mut turn) = self.turn(&request.group_id, now, effects) {
            return turn.sync(request, parked);
        } else {
            ErrorCode::UnknownMemberId
        };
        effects.reply(ticket, GroupResponse::Sync(api::sync_refused(refusal)));
    }

    pub(super) fn heartbeat(
        &mut self,
        request: &HeartbeatRequest,
        now: Now,
        effects: &mut Effects,
    ) -> Result<(), ErrorCode> {
        if request.group_id.is_empty() {
            return Err(ErrorCode::InvalidGroupId);
        }
        if self.consumers.contains_key(&request.group_id) {
            return self.classic_heartbeat_to_consumer_group(request, now);
        }
        let mut turn = self
            .turn(&request.group_id, now, effects)
            .ok_or(ErrorCode::UnknownMemberId)?;
        turn.group
            .validate_member(&request.member_id, request.group_instance_id.as_ref())?;
        if request.generation_id != turn.group.generation() {
            return Err(ErrorCode::IllegalGeneration);
        }
        turn.renew_session(&request.member_id);
        match turn.group.state() {
            GroupState::PreparingRebalance => Err(ErrorCode::RebalanceInProgress),
            // Consumers send heartbeats as soon as they have their JoinGroup answer.
            GroupState::CompletingRebalance | GroupState::Stable => Ok(()),
            GroupState::Empty => Err(ErrorCode::UnknownMemberId),
        }
    }

    pub(super) fn leave(
        &mut self,
        context: &RequestContext,
        mut request: LeaveGroupRequest,
        cluster: &dyn ClusterView,
        now: Now,
        effects: &mut Effects,
    ) -> LeaveGroupResponse {
        if request.group_id.is_empty() {
            return message!(LeaveGroupResponse {
                error_code: ErrorCode::InvalidGroupId.code()
            });
        }
        let is_batch = context.api_version >= FIRST_VERSION_WITH_BATCH_LEAVE;
        let members = if is_batch {
            std::mem::take(&mut request.members)
        } else {
            let member_id = std::mem::take(&mut request.member_id);
            vec![message!(MemberIdentity {
                member_id,
                group_instance_id: None
            })]
        };
        let results = if self.consumers.contains_key(&request.group_id) {
            self.leave_consumer_group_as_classic(&request, &members, cluster, now, effects)
        } else {
            match self.turn(&request.group_id, now, effects) {
                Some(mut turn) => turn.leave(&members),
                None => vec![Err(ErrorCode::UnknownMemberId); members.len()],
            }
        };
        let code = |result: &Result<(), ErrorCode>| result.err().unwrap_or(ErrorCode::None).code();
        if !is_batch {
            return message!(LeaveGroupResponse {
                error_code: results.first().map_or(0, code)
            });
        }
        let members = members.into_iter().zip(&results).map(|(member, result)| {
            message!(MemberResponse {
                member_id: member.member_id,
                group_instance_id: member.group_instance_id,
                error_code: code(result)
            })
        });
        message!(LeaveGroupResponse {
            members: members.collect()
        })
    }
}

impl Turn<'_> {
    fn sync(&mut self, request: &SyncGroupRequest, parked: Parked) {
        let member_id = &request.member_id;
        if let Err(error) = self.validate_sync(request) {
            return self.reply_sync(parked, api::sync_refused(error));
        }
        match self.group.state() {
            GroupState::PreparingRebalance => {
                self.reply_sync(parked, api::sync_refused(ErrorCode::RebalanceInProgress));
            }
            GroupState::CompletingRebalance => {
                if let Some(before) = self.group.park_sync(member_id, parked) {
                    // From a connection that the client has given up.
                    self.reply_sync(before, api::sync_refused(ErrorCode::RebalanceInProgress));
                }
                self.sync_arrived(member_id);
                if self.group.is_leader(member_id) {
                    self.store_assignment(request);
                }
            }
            GroupState::Stable => {
                self.sync_arrived(member_id);
                let response = self.synced(member_id);
                self.reply_sync(parked, response);
            }
            GroupState::Empty => {
                self.reply_sync(parked, api::sync_refused(ErrorCode::UnknownMemberId));
            }
        }
    }

    fn validate_sync(&self, request: &SyncGroupRequest) -> Result<(), ErrorCode> {
        let instance_id = request.group_instance_id.as_ref();
        self.group
            .validate_member(&request.member_id, instance_id)?;
        if request.generation_id != self.group.generation() {
            return Err(ErrorCode::IllegalGeneration);
        }
        let differs = |said: Option<&StrBytes>, ours: Option<&StrBytes>| matches!((said, ours), (Some(said), Some(ours)) if said != ours);
        if differs(request.protocol_type.as_ref(), self.group.protocol_type())
            || differs(request.protocol_name.as_ref(), self.group.protocol())
        {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        Ok(())
    }

    /// The leader has decided. Its word counts once it is in the log.
    fn store_assignment(&mut self, request: &SyncGroupRequest) {
        let mut decided: HashMap<&StrBytes, &Bytes> = HashMap::new();
        for assignment in &request.assignments {
            decided.insert(&assignment.member_id, &assignment.assignment);
        }
        let members = self.group.members().keys();
        // A member that the leader forgot has nothing to do, but is not left waiting.
        let assignment: Vec<(StrBytes, Bytes)> = members
            .map(|member_id| {
                let bytes = decided.get(member_id).map_or(&[][..], |bytes| bytes);
                (member_id.clone(), Bytes::copy_from_slice(bytes))
            })
            .collect();
        let by_member: HashMap<&StrBytes, &Bytes> = assignment
            .iter()
            .map(|(member_id, bytes)| (member_id, bytes))
            .collect();
        let record = self.group.to_record(self.id, |member_id, _| {
            by_member
                .get(member_id)
                .copied()
                .cloned()
                .unwrap_or_default()
        });
        self.effects.records.push(record);
        self.effects.completions.push(Completion::Assign {
            group: self.id.clone(),
            assignment,
        });
    }

    fn leave(&mut self, members: &[MemberIdentity]) -> Vec<Result<(), ErrorCode>> {
        let members_before = self.group.members().len();
        let results: Vec<_> = members
            .iter()
            .map(|member| self.leave_one(member))
            .collect();
        match self.group.state() {
            GroupState::Stable | GroupState::CompletingRebalance => {
                // A member id that was given out and is handed back disturbs nobody.
                if self.group.members().len() < members_before {
                    self.prepare_rebalance("members left the group");
                }
            }
            GroupState::PreparingRebalance => self.complete_join_if_ready(),
            GroupState::Empty => {}
        }
        results
    }

    fn leave_one(&mut self, member: &MemberIdentity) -> Result<(), ErrorCode> {
        let instance_id = member.group_instance_id.as_ref();
        let member_id = if member.member_id.is_empty() {
            // An administrator removes a static member by its instance id.
            instance_id
                .and_then(|instance_id| self.group.static_member(instance_id).cloned())
                .ok_or(ErrorCode::UnknownMemberId)?
        } else {
            if !self.group.is_pending(&member.member_id) {
                self.group.validate_member(&member.member_id, instance_id)?;
            }
            member.member_id.clone()
        };
        tracing::info!(
            group = self.id.as_str(),
            member = member_id.as_str(),
            reason = member.reason.as_ref().map(logged),
            "the member leaves the group"
        );
        self.remove(&member_id);
        Ok(())
    }
}
