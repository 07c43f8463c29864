//! The course of a rebalance: begun, joined, assigned, or given up in time.
//!
//! A [`Turn`] is one call's hold on one group of the shard: it changes the group, arms
//! and cancels its timers, and collects what is to be written and answered. Every
//! parked request of a member is answered when the member goes.

use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    message,
    messages::{
        JoinGroupResponse, SyncGroupResponse, join_group_response::JoinGroupResponseMember,
    },
};

use super::{
    api::{self, Effects, GroupResponse},
    classic::{Group, GroupState, Owed, Parked},
    config::GroupConfig,
    timers::{Task, TimerKey, Timers},
};
use crate::time::{Monotonic, Now};

/// How long a join phase that nobody joined is put off at least, so that members who
/// ask for no time at all do not make the shard spin.
const SHORTEST_POSTPONEMENT_MS: i64 = 100;

pub(super) struct Turn<'a> {
    pub(super) id: &'a StrBytes,
    pub(super) group: &'a mut Group,
    pub(super) timers: &'a mut Timers,
    pub(super) config: &'a GroupConfig,
    pub(super) effects: &'a mut Effects,
    pub(super) now: Now,
}

impl Turn<'_> {
    /// Begins a rebalance; if one is in its join phase, ends that when it can.
    pub(super) fn rebalance(&mut self, reason: &str) {
        match self.group.state() {
            GroupState::Empty | GroupState::CompletingRebalance | GroupState::Stable => {
                self.prepare_rebalance(reason);
            }
            GroupState::PreparingRebalance => self.complete_join_if_ready(),
        }
    }

    /// Begins a rebalance of a group that is not in a join phase.
    pub(super) fn prepare_rebalance(&mut self, reason: &str) {
        if self.group.state() == GroupState::CompletingRebalance {
            self.fail_assignment(ErrorCode::RebalanceInProgress);
        }
        self.group.clear_pending_syncs();
        self.timers.cancel(&self.sync_key());
        tracing::info!(
            group = self.id.as_str(),
            generation = self.group.generation(),
            state = self.group.state().name(),
            reason,
            "preparing to rebalance the group"
        );
        let is_first = self.group.state() == GroupState::Empty;
        self.group
            .transition(GroupState::PreparingRebalance, self.now.wall_ms);
        if is_first {
            // More members are likely to be on their way to a new group.
            let delay_ms = i64::from(self.config.initial_rebalance_delay_ms.max(0));
            let remaining_ms = (self.group.rebalance_timeout_ms() - delay_ms).max(0);
            self.schedule_join(
                delay_ms,
                Task::InitialJoin {
                    delay_ms,
                    remaining_ms,
                },
            );
        } else if self.group.has_all_members_joined() {
            self.complete_join();
        } else {
            self.schedule_join(self.group.rebalance_timeout_ms(), Task::CompleteJoin);
        }
    }

    /// Ends the join phase when everybody is there, unless it is the first one of an
    /// empty group, which runs its time.
    pub(super) fn complete_join_if_ready(&mut self) {
        if self.group.state() == GroupState::PreparingRebalance
            && !self.group.is_first_join_phase()
            && self.group.has_all_members_joined()
        {
            self.complete_join();
        }
    }

    /// The delay before the first generation of an empty group has passed.
    pub(super) fn initial_join_delay_passed(&mut self, delay_ms: i64, remaining_ms: i64) {
        if self.group.new_member_added && remaining_ms != 0 {
            self.group.new_member_added = false;
            let next_delay_ms =
                i64::from(self.config.initial_rebalance_delay_ms.max(0)).min(remaining_ms);
            let remaining_ms = (remaining_ms - delay_ms).max(0);
            self.schedule_join(
                next_delay_ms,
                Task::InitialJoin {
                    delay_ms: next_delay_ms,
                    remaining_ms,
                },
            );
        } else {
            self.complete_join();
        }
    }

    /// Ends the join phase: dynamic members that are not back are out, the others are
    /// the next generation and learn about it.
    pub(super) fn complete_join(&mut self) {
        if self.group.state() != GroupState::PreparingRebalance {
            return;
        }
        self.timers.cancel(&self.join_key());
        for member_id in self.group.member_ids() {
            let missing = self
                .group
                .member(&member_id)
                .is_some_and(|member| !member.is_joining() && member.instance_id.is_none());
            if missing {
                self.remove(&member_id);
            }
        }
        if !self.group.elect_joined_leader() && !self.group.members().is_empty() {
            // Only static members are left and none is back: wait until their
            // sessions end or one returns.
            let wait_ms = self
                .group
                .rebalance_timeout_ms()
                .max(SHORTEST_POSTPONEMENT_MS);
            self.schedule_join(wait_ms, Task::CompleteJoin);
            return;
        }
        self.group.new_member_added = false;
        self.group.begin_generation(self.now.wall_ms);
        tracing::info!(
            group = self.id.as_str(),
            generation = self.group.generation(),
            members = self.group.members().len(),
            "the group has a new generation"
        );
        if self.group.members().is_empty() {
            // If this cannot be written, the log still shows the generation before,
            // whose members will be found dead after a reload: no harm, nothing to undo.
            let record = self
                .group
                .to_record(self.id, |_, member| member.assignment.clone());
            self.effects.records.push(record);
            return;
        }
        for member_id in self.group.member_ids() {
            if let Some(parked) = self.group.take_join(&member_id) {
                let answer = self.joined(&member_id, parked.api_version);
                self.reply_join(parked, answer);
            }
            self.group.expect_sync(&member_id);
            self.renew_session(&member_id);
        }
        self.timers.schedule(
            self.sync_key(),
            self.now.after(self.group.rebalance_timeout_ms()),
            Task::ExpireSync {
                generation: self.group.generation(),
            },
        );
    }

    /// Members that have not sent their SyncGroup in time are out.
    pub(super) fn expire_sync(&mut self, generation: i32) {
        if generation != self.group.generation() || self.group.pending_syncs().is_empty() {
            return;
        }
        match self.group.state() {
            GroupState::Empty | GroupState::PreparingRebalance => {}
            GroupState::CompletingRebalance | GroupState::Stable => {
                for member_id in self.group.pending_syncs().clone() {
                    self.remove(&member_id);
                }
                self.prepare_rebalance("members did not send their SyncGroup in time");
            }
        }
    }

    /// A member was silent for too long, or a member id given out was not used.
    pub(super) fn expire_member(&mut self, member_id: &StrBytes) {
        if self.group.is_pending(member_id) {
            self.remove(member_id);
            if self.group.state() == GroupState::PreparingRebalance
                && self.group.has_all_members_joined()
            {
                self.complete_join();
            }
            return;
        }
        let lost = self
            .group
            .member(member_id)
            .is_some_and(|member| !member.is_excused_from_heartbeats());
        if !lost {
            return;
        }
        tracing::info!(
            group = self.id.as_str(),
            member = member_id.as_str(),
            "the member's session has expired"
        );
        self.remove(member_id);
        match self.group.state() {
            GroupState::Stable | GroupState::CompletingRebalance => {
                self.prepare_rebalance("a member's session has expired");
            }
            GroupState::PreparingRebalance if self.group.has_all_members_joined() => {
                self.complete_join();
            }
            GroupState::PreparingRebalance | GroupState::Empty => {}
        }
    }

    /// Takes a member out and answers what it is owed.
    pub(super) fn remove(&mut self, member_id: &StrBytes) {
        let owed = self.group.remove(member_id);
        self.timers.cancel(&self.member_key(member_id));
        // An unknown member id makes the client begin anew, if it is still there.
        self.settle(owed, &StrBytes::default(), ErrorCode::UnknownMemberId);
    }

    /// Answers what a member that is no more is owed.
    pub(super) fn settle(&mut self, owed: Owed, member_id: &StrBytes, error: ErrorCode) {
        if let Some(parked) = owed.join {
            let refused = api::join_refused(parked.api_version, member_id.clone(), error);
            self.reply_join(parked, refused);
        }
        if let Some(parked) = owed.sync {
            self.reply_sync(parked, api::sync_refused(error));
        }
    }

    /// The assignment is in the log: the group is stable, and its members learn theirs.
    pub(super) fn assigned(&mut self, assignment: Vec<(StrBytes, bytes::Bytes)>) {
        if self.group.state() != GroupState::CompletingRebalance {
            return;
        }
        self.group.assign(assignment, self.now.wall_ms);
        self.answer_syncs(Self::synced);
    }

    /// There will be no assignment in this generation: the members that wait for one
    /// are told so.
    pub(super) fn fail_assignment(&mut self, error: ErrorCode) {
        self.group.clear_assignments();
        self.answer_syncs(|_, _| api::sync_refused(error));
    }

    fn answer_syncs(&mut self, answer: impl Fn(&Self, &StrBytes) -> SyncGroupResponse) {
        for member_id in self.group.member_ids() {
            if let Some(parked) = self.group.take_sync(&member_id) {
                let response = answer(self, &member_id);
                self.reply_sync(parked, response);
                // While the member waited for us its session may have run out unheeded.
                self.renew_session(&member_id);
            }
        }
    }

    /// The member was heard from: its session begins anew.
    pub(super) fn renew_session(&mut self, member_id: &StrBytes) {
        // The group's own copy of the id goes into the timer, not the request's, which
        // would keep the whole request in memory.
        if let Some((member_id, member)) = self.group.members().get_key_value(member_id) {
            let deadline = self.now.after(member.session_timeout_ms);
            let key = self.member_key(member_id);
            self.timers.schedule(key, deadline, Task::ExpireMember);
        }
    }

    pub(super) fn expire_member_at(&mut self, member_id: &StrBytes, deadline: Monotonic) {
        self.timers
            .schedule(self.member_key(member_id), deadline, Task::ExpireMember);
    }

    /// A member's SyncGroup has come; when all have, the sync phase is over.
    pub(super) fn sync_arrived(&mut self, member_id: &StrBytes) {
        self.group.sync_arrived(member_id);
        if self.group.pending_syncs().is_empty() {
            self.timers.cancel(&self.sync_key());
        }
    }

    /// The JoinGroup answer that puts a member into the current generation. The leader
    /// learns who the members are.
    pub(super) fn joined(&self, member_id: &StrBytes, api_version: i16) -> JoinGroupResponse {
        let group = &*self.group;
        message!(JoinGroupResponse {
            generation_id: group.generation(),
            protocol_type: group.protocol_type().cloned(),
            protocol_name: api::protocol_name(group.protocol(), api_version),
            leader: group.leader().cloned().unwrap_or_default(),
            member_id: member_id.clone(),
            members: if group.is_leader(member_id) {
                self.members_for_the_leader()
            } else {
                Vec::new()
            }
        })
    }

    fn members_for_the_leader(&self) -> Vec<JoinGroupResponseMember> {
        let describe = |(member_id, member): (&StrBytes, &super::classic::Member)| {
            message!(JoinGroupResponseMember {
                member_id: member_id.clone(),
                group_instance_id: member.instance_id.clone(),
                metadata: member.metadata(self.group.protocol())
            })
        };
        self.group.members().iter().map(describe).collect()
    }

    /// The SyncGroup answer with the member's current assignment.
    pub(super) fn synced(&self, member_id: &StrBytes) -> SyncGroupResponse {
        let assignment = self
            .group
            .member(member_id)
            .map(|member| member.assignment.clone());
        message!(SyncGroupResponse {
            protocol_type: self.group.protocol_type().cloned(),
            protocol_name: self.group.protocol().cloned(),
            assignment: assignment.unwrap_or_default()
        })
    }

    pub(super) fn reply_join(&mut self, parked: Parked, response: JoinGroupResponse) {
        self.effects
            .reply(parked.ticket, GroupResponse::Join(response));
    }

    pub(super) fn reply_sync(&mut self, parked: Parked, response: SyncGroupResponse) {
        self.effects
            .reply(parked.ticket, GroupResponse::Sync(response));
    }

    fn schedule_join(&mut self, delay_ms: i64, task: Task) {
        self.timers
            .schedule(self.join_key(), self.now.after(delay_ms), task);
    }

    pub(super) fn member_key(&self, member_id: &StrBytes) -> TimerKey {
        TimerKey::Member {
            group: self.id.clone(),
            member: member_id.clone(),
        }
    }

    fn join_key(&self) -> TimerKey {
        TimerKey::Join {
            group: self.id.clone(),
        }
    }

    fn sync_key(&self) -> TimerKey {
        TimerKey::Sync {
            group: self.id.clone(),
        }
    }

    /// Cancels every timer of the group, which is about to go.
    pub(super) fn cancel_timers(&mut self) {
        self.timers.cancel(&self.join_key());
        self.timers.cancel(&self.sync_key());
        for member_id in self
            .group
            .members()
            .keys()
            .chain(self.group.pending_joins())
        {
            self.timers.cancel(&TimerKey::Member {
                group: self.id.clone(),
                member: member_id.clone(),
            });
        }
    }
}
