//! Members that speak the classic protocol in a consumer group: while a group migrates,
//! JoinGroup, SyncGroup, Heartbeat and LeaveGroup do for them what heartbeats do for others.
//!
//! Nobody waits for anybody here: a JoinGroup is answered at once, and a member that is to
//! give partitions up or may have more learns from its Heartbeat that it must join again.

use std::collections::BTreeSet;

use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    message,
    messages::{
        HeartbeatRequest, JoinGroupResponse, LeaveGroupRequest, SyncGroupRequest,
        SyncGroupResponse, leave_group_request::MemberIdentity,
    },
};

use super::{
    ClassicMember, ConsumerGroup, ConsumerTimer, Member, MemberState, Subscription,
    change::Change,
    heartbeat::{Done, replace_static_member},
    migration,
};
use crate::groups::{
    ClusterView, GroupShard,
    api::{self, Effects, GroupResponse},
    classic::{CONSUMER_PROTOCOL_TYPE, Parked},
    join::{Attempt, FIRST_VERSION_WITH_MEMBER_ID_REQUIRED},
    timers::Task,
};
use crate::time::Now;

impl GroupShard {
    /// A JoinGroup to a consumer group that has members. `new_member_id` is the id of one
    /// that has none.
    pub(in crate::groups) fn join_consumer_group(
        &mut self,
        attempt: &Attempt,
        new_member_id: StrBytes,
        parked: Parked,
        cluster: &dyn ClusterView,
        now: Now,
        effects: &mut Effects,
    ) {
        let response = match self.try_join(attempt, new_member_id, parked, cluster, now, effects) {
            Ok(response) => response,
            Err((member_id, error)) => api::join_refused(parked.api_version, member_id, error),
        };
        effects.reply(parked.ticket, GroupResponse::Join(response));
    }

    fn try_join(
        &mut self,
        attempt: &Attempt,
        new_member_id: StrBytes,
        parked: Parked,
        cluster: &dyn ClusterView,
        now: Now,
        effects: &mut Effects,
    ) -> Result<JoinGroupResponse, (StrBytes, ErrorCode)> {
        let has_no_id = attempt.member_id.is_empty();
        let member_id = if has_no_id {
            new_member_id
        } else {
            attempt.member_id.clone()
        };
        let refuse = |error| (attempt.member_id.clone(), error);
        let Some((id, group)) = self.consumers.get_key_value(&attempt.group_id) else {
            return Err(refuse(ErrorCode::UnknownMemberId));
        };
        let id = id.clone();
        if group.members.len() >= self.config.consumer.max_size
            && !group.members.contains_key(&member_id)
        {
            return Err((StrBytes::default(), ErrorCode::GroupMaxSizeReached));
        }
        let applicant = &attempt.applicant;
        let names: BTreeSet<&StrBytes> = applicant.protocols.iter().map(|(name, _)| name).collect();
        if applicant.protocol_type.as_str() != CONSUMER_PROTOCOL_TYPE
            || !migration::supports(group, &names)
        {
            return Err(refuse(ErrorCode::InconsistentGroupProtocol));
        }
        let instance_id = applicant.instance_id.as_ref();
        if has_no_id
            && instance_id.is_none()
            && parked.api_version >= FIRST_VERSION_WITH_MEMBER_ID_REQUIRED
        {
            return Err((member_id, ErrorCode::MemberIdRequired));
        }
        let (protocol, metadata) = applicant
            .protocols
            .first()
            .ok_or_else(|| refuse(ErrorCode::InconsistentGroupProtocol))?;
        let said = migration::read_subscription(metadata)
            .map_err(|_| refuse(ErrorCode::InconsistentGroupProtocol))?;

        let mut change = Change::of(&id, group);
        let is_new = place(&mut change, &member_id, instance_id, has_no_id).map_err(refuse)?;
        let owned = migration::owned_by(&said, cluster);
        if is_new && !has_no_id && !owned.is_empty() {
            // The group has given up a member that does not know so. Told that it is one, it
            // would give back, and commit, partitions that others have read on meanwhile.
            return Err(refuse(ErrorCode::UnknownMemberId));
        }
        let before = change
            .group
            .members
            .get(&member_id)
            .cloned()
            .unwrap_or_default();
        let subscription = Subscription {
            instance_id: applicant.instance_id.clone(),
            rack_id: said.rack_id.as_ref().map(crate::groups::copied),
            client_id: applicant.client_id.clone(),
            client_host: applicant.client_host.clone(),
            topic_names: said.topics.iter().map(crate::groups::copied).collect(),
            topic_regex: None,
            rebalance_timeout_ms: applicant.rebalance_timeout_ms,
            server_assignor: None,
            classic: Some(ClassicMember {
                session_timeout_ms: applicant.session_timeout_ms,
                protocols: applicant.protocols.clone(),
            }),
        };
        let reads_else = subscription.topic_names != before.subscription.topic_names
            || subscription.topic_regex != before.subscription.topic_regex;
        if is_new || subscription != before.subscription {
            change.set_subscription(&member_id, Some(subscription));
        }
        change.check_topics(is_new || reads_else, cluster, now.wall_ms);
        change.update_target(&self.config, cluster);
        let current = change.reconcile(&member_id, Some(&owned));
        let response = message!(JoinGroupResponse {
            member_id: member_id.clone(),
            generation_id: current.epoch,
            protocol_type: (parked.api_version >= 7).then(|| applicant.protocol_type.clone()),
            protocol_name: Some(protocol.clone())
        });
        let everybody_is_classic = change.group.members.values().all(Member::is_classic);
        if everybody_is_classic
            && self.config.consumer.migration.allows_downgrade()
            && change.group.members.len() <= self.config.max_size
        {
            change.set_current(&member_id, Some(current));
            migration::turn_classic(change, false, cluster, now.wall_ms).hand_over(effects);
            return Ok(response);
        }
        let done = Done::of(change);
        self.timers
            .cancel(&ConsumerTimer::Join.key(&id, &member_id));
        self.timers
            .cancel(&ConsumerTimer::Rebalance.key(&id, &member_id));
        let session_ms = applicant.session_timeout_ms;
        let sync_ms = applicant.rebalance_timeout_ms;
        self.arm(&id, &member_id, ConsumerTimer::Session, session_ms, now);
        self.arm(&id, &member_id, ConsumerTimer::Sync, sync_ms, now);
        self.hand_over(done, effects);
        Ok(response)
    }

    /// A SyncGroup to a consumer group: the member's assignment, as far as it is free.
    pub(in crate::groups) fn sync_consumer_group(
        &mut self,
        request: &SyncGroupRequest,
        cluster: &dyn ClusterView,
        now: Now,
    ) -> Result<SyncGroupResponse, ErrorCode> {
        let (id, group) = self
            .consumers
            .get_key_value(&request.group_id)
            .ok_or(ErrorCode::UnknownMemberId)?;
        let instance_id = request.group_instance_id.as_ref();
        let (member_id, member) = group.classic_member(&request.member_id, instance_id)?;
        if request.generation_id != member.current.epoch {
            return Err(ErrorCode::IllegalGeneration);
        }
        let Some((protocol, metadata)) = member.classic_protocol() else {
            return Err(ErrorCode::InconsistentGroupProtocol);
        };
        let differs =
            |said: Option<&StrBytes>, ours: &str| said.is_some_and(|it| it.as_str() != ours);
        if differs(request.protocol_type.as_ref(), CONSUMER_PROTOCOL_TYPE)
            || differs(request.protocol_name.as_ref(), protocol)
        {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        let (id, member_id) = (id.clone(), member_id.clone());
        // One that is giving partitions up has joined already, and will again.
        let must_join = group.epoch.epoch > member.current.epoch
            && member.current.state != MemberState::UnrevokedPartitions;
        let (session_ms, rebalance_ms) = member.classic_times();
        let assignment = migration::assignment_bytes(&member.current.assigned, metadata, cluster);
        if must_join {
            self.arm_join(&id, &member_id, rebalance_ms, now);
            return Err(ErrorCode::RebalanceInProgress);
        }
        self.timers
            .cancel(&ConsumerTimer::Sync.key(&id, &member_id));
        self.arm(&id, &member_id, ConsumerTimer::Session, session_ms, now);
        Ok(message!(SyncGroupResponse {
            protocol_type: request.protocol_type.clone(),
            protocol_name: request.protocol_name.clone(),
            assignment
        }))
    }

    /// A Heartbeat to a consumer group: REBALANCE_IN_PROGRESS when the member has something
    /// to give up, or may have more, and so must join again.
    pub(in crate::groups) fn classic_heartbeat_to_consumer_group(
        &mut self,
        request: &HeartbeatRequest,
        now: Now,
    ) -> Result<(), ErrorCode> {
        let (id, group) = self
            .consumers
            .get_key_value(&request.group_id)
            .ok_or(ErrorCode::UnknownMemberId)?;
        let instance_id = request.group_instance_id.as_ref();
        let (member_id, member) = group.classic_member(&request.member_id, instance_id)?;
        if request.generation_id != member.current.epoch {
            return Err(ErrorCode::IllegalGeneration);
        }
        let must_join = member.current.epoch < group.epoch.epoch
            || match member.current.state {
                MemberState::Stable => false,
                MemberState::UnrevokedPartitions | MemberState::Unknown => true,
                MemberState::UnreleasedPartitions => !group.waits_for_others(member_id, member),
            };
        let (session_ms, rebalance_ms) = member.classic_times();
        let (id, member_id) = (id.clone(), member_id.clone());
        self.arm(&id, &member_id, ConsumerTimer::Session, session_ms, now);
        if must_join {
            self.arm_join(&id, &member_id, rebalance_ms, now);
            return Err(ErrorCode::RebalanceInProgress);
        }
        Ok(())
    }

    /// A LeaveGroup to a consumer group: one answer for each of `members`.
    pub(in crate::groups) fn leave_consumer_group_as_classic(
        &mut self,
        request: &LeaveGroupRequest,
        members: &[MemberIdentity],
        cluster: &dyn ClusterView,
        now: Now,
        effects: &mut Effects,
    ) -> Vec<Result<(), ErrorCode>> {
        let Some((id, group)) = self.consumers.get_key_value(&request.group_id) else {
            return vec![Err(ErrorCode::UnknownMemberId); members.len()];
        };
        let mut change = Change::of(id, group);
        let mut results = Vec::with_capacity(members.len());
        for member in members {
            let left = leaving(&change.group, member);
            if let Ok(member_id) = &left {
                change.remove_member(member_id);
            }
            results.push(left.map(|_| ()));
        }
        if results.iter().any(Result::is_ok) {
            change.check_topics(true, cluster, now.wall_ms);
        }
        let done = Done::of(change);
        self.hand_over(done, effects);
        results
    }

    /// The time to join again runs from the first time that the member is told so.
    fn arm_join(&mut self, group: &StrBytes, member: &StrBytes, timeout_ms: i32, now: Now) {
        let key = ConsumerTimer::Join.key(group, member);
        if self.timers.deadline(&key).is_none() {
            self.timers.schedule(
                key,
                now.after(timeout_ms),
                Task::FenceMember { epoch: None },
            );
        }
    }
}

/// Finds the place of a member that joins; whether it is a new one.
fn place(
    change: &mut Change<'_>,
    member_id: &StrBytes,
    instance_id: Option<&StrBytes>,
    has_no_id: bool,
) -> Result<bool, ErrorCode> {
    let Some(instance_id) = instance_id else {
        return Ok(!change.group.members.contains_key(member_id));
    };
    let holder = change
        .group
        .static_member(instance_id)
        .map(|(id, member)| (id.clone(), member.clone()));
    match holder {
        None if has_no_id => Ok(true),
        None => Err(ErrorCode::UnknownMemberId),
        Some((holder, _)) if holder == *member_id => Ok(false),
        Some((holder, member)) if has_no_id => {
            replace_static_member(change, &holder, &member, member_id);
            Ok(false)
        }
        Some(_) => Err(ErrorCode::FencedInstanceId),
    }
}

fn leaving(group: &ConsumerGroup, member: &MemberIdentity) -> Result<StrBytes, ErrorCode> {
    let instance_id = member.group_instance_id.as_ref();
    let member_id = match instance_id {
        // An administrator removes a static member by its instance id.
        Some(instance_id) if member.member_id.is_empty() => {
            let (holder, _) = group
                .static_member(instance_id)
                .ok_or(ErrorCode::UnknownMemberId)?;
            holder
        }
        _ => &member.member_id,
    };
    let (id, _) = group.classic_member(member_id, instance_id)?;
    Ok(id.clone())
}

impl ConsumerGroup {
    /// The member of these ids, which must speak the classic protocol.
    fn classic_member(
        &self,
        member_id: &StrBytes,
        instance_id: Option<&StrBytes>,
    ) -> Result<(&StrBytes, &Member), ErrorCode> {
        if let Some(instance_id) = instance_id {
            let (holder, _) = self
                .static_member(instance_id)
                .ok_or(ErrorCode::UnknownMemberId)?;
            if holder != member_id {
                return Err(ErrorCode::FencedInstanceId);
            }
        }
        self.members
            .get_key_value(member_id)
            .filter(|(_, member)| member.is_classic())
            .ok_or(ErrorCode::UnknownMemberId)
    }
}

impl Member {
    /// The session and the rebalance time-out of a member that speaks the classic protocol.
    fn classic_times(&self) -> (i32, i32) {
        let classic = self.subscription.classic.as_ref();
        (
            classic.map_or(0, |classic| classic.session_timeout_ms),
            self.subscription.rebalance_timeout_ms,
        )
    }
}
