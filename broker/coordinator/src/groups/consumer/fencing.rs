//! How members of a consumer group go: they leave, or are silent or slow for too long.

use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    message,
    messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse},
};

use super::{
    Current, MemberState, Partitions,
    change::Change,
    heartbeat::{Done, fenced_instance, unknown_member},
    member::LEFT_FOR_A_WHILE,
};
use crate::groups::{
    ClusterView, GroupShard,
    api::{Completion, Effects, Refused},
    timers::{Task, TimerKey},
};
use crate::time::Now;

/// What a member of a consumer group has a time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::groups) enum ConsumerTimer {
    /// To be heard from again.
    Session,
    /// To give partitions up.
    Rebalance,
    /// For a member that speaks the classic protocol: to join again.
    Join,
    /// For a member that speaks the classic protocol: to ask for its assignment.
    Sync,
}

impl ConsumerTimer {
    const ALL: [Self; 4] = [Self::Session, Self::Rebalance, Self::Join, Self::Sync];

    pub(super) fn key(self, group: &StrBytes, member: &StrBytes) -> TimerKey {
        TimerKey::Consumer {
            group: group.clone(),
            member: member.clone(),
            timer: self,
        }
    }
}

impl GroupShard {
    /// A member says that it leaves, for good or, if it is a static one, for a while.
    pub(super) fn leave_consumer_group(
        &mut self,
        request: &ConsumerGroupHeartbeatRequest,
        cluster: &dyn ClusterView,
        now: Now,
        effects: &mut Effects,
    ) -> Result<ConsumerGroupHeartbeatResponse, Refused> {
        let Some(group) = self.consumers.get(&request.group_id) else {
            return Err(self.no_consumer_group(&request.group_id));
        };
        let member_id = match &request.instance_id {
            None => {
                let found = group.members.get_key_value(&request.member_id);
                let (id, _) =
                    found.ok_or_else(|| unknown_member(&request.group_id, &request.member_id))?;
                id.clone()
            }
            Some(instance_id) => {
                let (holder, _) = group.static_member(instance_id).ok_or_else(|| {
                    Refused::new(
                        ErrorCode::UnknownMemberId,
                        format!("Instance id {} is unknown.", instance_id.as_str()),
                    )
                })?;
                if *holder != request.member_id {
                    return Err(fenced_instance(&request.member_id, instance_id, holder));
                }
                holder.clone()
            }
        };
        tracing::info!(
            group = request.group_id.as_str(),
            member = member_id.as_str(),
            epoch = request.member_epoch,
            "the member leaves the consumer group"
        );
        if request.member_epoch == LEFT_FOR_A_WHILE {
            let mut change = Change::of(&request.group_id, group);
            let member = group
                .member(&member_id)
                .map_err(|error| Refused::new(error, "the member is gone"))?;
            change.set_current(
                &member_id,
                Some(Current {
                    epoch: LEFT_FOR_A_WHILE,
                    revoking: Partitions::default(),
                    ..member.current.clone()
                }),
            );
            let done = Done::of(change);
            self.hand_over(done, effects);
        } else {
            let group_id = request.group_id.clone();
            self.fence_consumer_member(&group_id, &member_id, cluster, now, effects);
        }
        Ok(message!(ConsumerGroupHeartbeatResponse {
            member_id: Some(member_id),
            member_epoch: request.member_epoch
        }))
    }

    /// Takes a member out of its group. If only members are left that speak the classic
    /// protocol, the group may become a classic one again.
    pub(super) fn fence_consumer_member(
        &mut self,
        group_id: &StrBytes,
        member_id: &StrBytes,
        cluster: &dyn ClusterView,
        now: Now,
        effects: &mut Effects,
    ) {
        let Some((id, group)) = self.consumers.get_key_value(group_id) else {
            return;
        };
        if !group.members.contains_key(member_id) {
            return;
        }
        if self.may_become_classic_without(group, member_id) {
            let id = id.clone();
            return self.become_classic(&id, Some(member_id), cluster, now, effects);
        }
        let mut change = Change::of(id, group);
        change.remove_member(member_id);
        change.check_topics(true, cluster, now.wall_ms);
        let done = Done::of(change);
        self.hand_over(done, effects);
    }

    /// A member's time is up.
    pub(in crate::groups) fn consumer_time_out(
        &mut self,
        (group_id, member_id): (&StrBytes, &StrBytes),
        (timer, epoch): (ConsumerTimer, Option<i32>),
        cluster: &dyn ClusterView,
        now: Now,
        effects: &mut Effects,
    ) {
        let member = self
            .consumers
            .get(group_id)
            .and_then(|group| group.members.get(member_id));
        let Some(member) = member else {
            return;
        };
        if epoch.is_some_and(|epoch| epoch != member.current.epoch) {
            // It has gone on meanwhile.
            return;
        }
        tracing::info!(
            group = group_id.as_str(),
            member = member_id.as_str(),
            ?timer,
            "the member's time is up, it is fenced from the consumer group"
        );
        effects.completions.push(Completion::RearmOnFailure {
            group: group_id.clone(),
            member: member_id.clone(),
        });
        self.fence_consumer_member(group_id, member_id, cluster, now, effects);
    }

    pub(in crate::groups) fn rearm_consumer_session(
        &mut self,
        group: &StrBytes,
        member: &StrBytes,
        now: Now,
    ) {
        let timeout_ms = self.config.consumer.session_timeout_ms;
        self.arm(group, member, ConsumerTimer::Session, timeout_ms, now);
    }

    /// The timers of a member that is no more.
    pub(in crate::groups) fn cancel_consumer_timers(
        &mut self,
        group: &StrBytes,
        member: &StrBytes,
    ) {
        for timer in ConsumerTimer::ALL {
            self.timers.cancel(&timer.key(group, member));
        }
    }

    /// All records are in: members' times begin anew.
    pub(in crate::groups) fn arm_loaded_consumers(&mut self, cluster: &dyn ClusterView, now: Now) {
        let mut due = Vec::new();
        for (id, group) in &self.consumers {
            let overrides = cluster.group_overrides(id);
            for (member_id, member) in &group.members {
                let subscription = &member.subscription;
                let session_ms = match &subscription.classic {
                    Some(classic) => classic.session_timeout_ms,
                    None => self.config.consumer.session_timeout_ms(&overrides),
                };
                due.push((ConsumerTimer::Session.key(id, member_id), session_ms, None));
                if member.current.state == MemberState::UnrevokedPartitions && !member.is_classic()
                {
                    due.push((
                        ConsumerTimer::Rebalance.key(id, member_id),
                        subscription.rebalance_timeout_ms,
                        Some(member.current.epoch),
                    ));
                }
            }
        }
        for (key, timeout_ms, epoch) in due {
            self.timers
                .schedule(key, now.after(timeout_ms), Task::FenceMember { epoch });
        }
    }
}
