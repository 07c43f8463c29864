//! JoinGroup: new members, members that come back, static members that replace
//! themselves.
//!
//! What a request says is checked and copied once, into an [`Attempt`]; nothing of the
//! request's own buffer is kept.

use std::collections::HashSet;

use bytes::Bytes;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    messages::{JoinGroupRequest, JoinGroupResponse},
};

use super::{
    ClusterView, GroupShard,
    api::{self, Completion, Effects, GroupResponse, RequestContext, Ticket},
    classic::{Applicant, Group, GroupState, Parked, Protocols},
    config::GroupConfig,
    copied, logged,
    rebalance::Turn,
};
use crate::records::MAX_STRING_BYTES;
use crate::time::Now;

/// A member that has not been answered yet cannot send heartbeats, and a connection
/// whose request is parked does not show that its client is gone. So a first JoinGroup
/// is given up after this time; a client that is still there tries again.
const NEW_MEMBER_JOIN_TIMEOUT_MS: i64 = 5 * 60 * 1_000;

/// More protocols than any client has; each costs memory for as long as its member is
/// there.
const MAX_PROTOCOLS: usize = 1_000;

/// `-` and a UUID's text, which a member id adds to the client's or the instance's id.
const MEMBER_ID_SUFFIX_BYTES: usize = 37;

/// From this version on, a client is told its member id and joins a second time with
/// it, so that a client that gives up leaves no member behind (KIP-394).
pub(super) const FIRST_VERSION_WITH_MEMBER_ID_REQUIRED: i16 = 4;

/// From this version on, a static leader that comes back can be told to leave the
/// assignment as it is (KIP-814).
const FIRST_VERSION_WITH_SKIP_ASSIGNMENT: i16 = 9;

/// A JoinGroup that is in order.
pub(super) struct Attempt {
    pub(super) group_id: StrBytes,
    /// Empty if the client has none yet.
    pub(super) member_id: StrBytes,
    pub(super) applicant: Applicant,
    reason: String,
}

impl Attempt {
    fn parse(
        context: &RequestContext,
        config: &GroupConfig,
        request: &JoinGroupRequest,
    ) -> Result<Self, ErrorCode> {
        if request.group_id.is_empty() || request.group_id.len() > MAX_STRING_BYTES {
            return Err(ErrorCode::InvalidGroupId);
        }
        let allowed = config.min_session_timeout_ms..=config.max_session_timeout_ms;
        if !allowed.contains(&request.session_timeout_ms) {
            return Err(ErrorCode::InvalidSessionTimeout);
        }
        let longest_instance_id = MAX_STRING_BYTES - MEMBER_ID_SUFFIX_BYTES;
        if request
            .group_instance_id
            .as_ref()
            .is_some_and(|id| id.len() > longest_instance_id)
        {
            return Err(ErrorCode::InvalidRequest);
        }
        let names = || request.protocols.iter().map(|protocol| &protocol.name);
        if request.protocols.len() > MAX_PROTOCOLS
            || request.protocol_type.len() > MAX_STRING_BYTES
            || names().any(|name| name.len() > MAX_STRING_BYTES)
        {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        Ok(Self {
            group_id: copied(&request.group_id),
            member_id: copied(&request.member_id),
            applicant: Applicant {
                instance_id: request.group_instance_id.as_ref().map(copied),
                client_id: shortened(&context.client_id),
                client_host: shortened(&context.client_host),
                rebalance_timeout_ms: match context.api_version {
                    // Version 0 has no such field.
                    0 => request.session_timeout_ms,
                    _ => request.rebalance_timeout_ms,
                },
                session_timeout_ms: request.session_timeout_ms,
                protocol_type: copied(&request.protocol_type),
                protocols: copied_protocols(request),
            },
            reason: request.reason.as_ref().map(logged).unwrap_or_default(),
        })
    }
}

/// The text, or as much of it as leaves room for a member id made from it.
fn shortened(text: &StrBytes) -> StrBytes {
    let text = text.as_str();
    text[..text.floor_char_boundary(MAX_STRING_BYTES - MEMBER_ID_SUFFIX_BYTES)].into()
}

/// The protocols, each once: of two with one name the first counts.
fn copied_protocols(request: &JoinGroupRequest) -> Protocols {
    let mut seen = HashSet::new();
    let distinct = request
        .protocols
        .iter()
        .filter(|protocol| seen.insert(&protocol.name));
    distinct
        .map(|protocol| {
            (
                copied(&protocol.name),
                Bytes::copy_from_slice(&protocol.metadata),
            )
        })
        .collect()
}

impl GroupShard {
    pub(super) fn join(
        &mut self,
        context: &RequestContext,
        request: &JoinGroupRequest,
        ticket: Ticket,
        cluster: &dyn ClusterView,
        now: Now,
        effects: &mut Effects,
    ) {
        let parked = Parked {
            ticket,
            api_version: context.api_version,
        };
        let mut refuse = |error| {
            let refused = api::join_refused(context.api_version, request.member_id.clone(), error);
            effects.reply(ticket, GroupResponse::Join(refused));
        };
        let attempt = match Attempt::parse(context, &self.config, request) {
            Ok(attempt) => attempt,
            Err(error) => return refuse(error),
        };
        let new_member_id = new_member_id(&attempt, &mut self.uuids);
        let replaced = match self.consumers.get_key_value(&attempt.group_id) {
            None => Vec::new(),
            // A group without members may be of either kind.
            Some((id, group)) if group.members().is_empty() => group.tombstones(id),
            Some(_) => {
                return self.join_consumer_group(
                    &attempt,
                    new_member_id,
                    parked,
                    cluster,
                    now,
                    effects,
                );
            }
        };
        let is_new_group = !self.groups.contains_key(&attempt.group_id);
        if is_new_group {
            if !attempt.member_id.is_empty() {
                return refuse(ErrorCode::UnknownMemberId);
            }
            self.groups
                .insert(attempt.group_id.clone(), Group::new(now.wall_ms));
        }
        let Some(mut turn) = self.turn(&attempt.group_id, now, effects) else {
            return;
        };
        turn.join(&attempt, &new_member_id, parked);
        if !is_new_group {
            return;
        }
        if turn.group.members().is_empty() && !turn.group.has_pending() {
            // The join was refused; an id that somebody made up leaves no trace.
            self.groups.remove(&attempt.group_id);
            return;
        }
        effects.records.extend(replaced);
        let record = Group::new(now.wall_ms).to_record(&attempt.group_id, |_, _| Bytes::new());
        effects.records.push(record);
        effects.completions.push(Completion::ForgetOnFailure {
            group: attempt.group_id,
        });
    }
}

/// The id that the member will have if it is new, as Kafka forms them; none is used up
/// by a member that has one.
fn new_member_id(attempt: &Attempt, uuids: &mut super::UuidSource) -> StrBytes {
    if !attempt.member_id.is_empty() {
        return StrBytes::default();
    }
    let applicant = &attempt.applicant;
    let prefix = applicant
        .instance_id
        .as_ref()
        .unwrap_or(&applicant.client_id);
    let uuid = u128::from_be_bytes(uuids());
    format!(
        "{prefix}-{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        uuid >> 96,
        (uuid >> 80) & 0xffff,
        (uuid >> 64) & 0xffff,
        (uuid >> 48) & 0xffff,
        uuid & 0xffff_ffff_ffff,
    )
    .into()
}

impl Turn<'_> {
    fn join(&mut self, attempt: &Attempt, new_member_id: &StrBytes, parked: Parked) {
        let member_id = &attempt.member_id;
        let applicant = &attempt.applicant;
        if !self.has_room_for(member_id) {
            self.remove(member_id);
            self.refuse_join(parked, &StrBytes::default(), ErrorCode::GroupMaxSizeReached);
        } else if !self
            .group
            .supports(&applicant.protocol_type, &applicant.protocols)
        {
            self.refuse_join(parked, member_id, ErrorCode::InconsistentGroupProtocol);
        } else if !member_id.is_empty() {
            self.join_again(attempt, parked);
        } else if let Some(instance_id) = &applicant.instance_id {
            match self.group.static_member(instance_id).cloned() {
                Some(old_id) => {
                    self.replace_static_member(attempt, &old_id, new_member_id, parked);
                }
                None => self.add_member(new_member_id, attempt, parked),
            }
        } else if parked.api_version >= FIRST_VERSION_WITH_MEMBER_ID_REQUIRED {
            let deadline = self.now.after(applicant.session_timeout_ms);
            self.group.add_pending(new_member_id.clone());
            self.expire_member_at(new_member_id, deadline);
            self.refuse_join(parked, new_member_id, ErrorCode::MemberIdRequired);
        } else {
            self.add_member(new_member_id, attempt, parked);
        }
    }

    /// Whether the group may still grow by this member, or has it already. While it
    /// rebalances, only those who have joined count, so that the last to come are the
    /// ones left out when the limit was lowered.
    fn has_room_for(&self, member_id: &StrBytes) -> bool {
        let member = self.group.member(member_id);
        match self.group.state() {
            GroupState::Empty => true,
            GroupState::PreparingRebalance => {
                member.is_some_and(super::classic::Member::is_joining)
                    || self.group.awaiting_join() < self.config.max_size
            }
            GroupState::CompletingRebalance | GroupState::Stable => {
                member.is_some() || self.group.members().len() < self.config.max_size
            }
        }
    }

    fn join_again(&mut self, attempt: &Attempt, parked: Parked) {
        let member_id = &attempt.member_id;
        let instance_id = attempt.applicant.instance_id.as_ref();
        if self.group.is_pending(member_id) {
            match instance_id {
                None => self.add_member(member_id, attempt, parked),
                // Static members are not given an id to come back with.
                Some(_) => self.refuse_join(parked, member_id, ErrorCode::UnknownMemberId),
            }
            return;
        }
        if let Err(error) = self.group.validate_member(member_id, instance_id) {
            return self.refuse_join(parked, member_id, error);
        }
        let says_the_same = self
            .group
            .member(member_id)
            .is_some_and(|member| member.protocols == attempt.applicant.protocols);
        match self.group.state() {
            // The member may not have had our first answer.
            GroupState::CompletingRebalance if says_the_same => {
                let response = self.joined(member_id, parked.api_version);
                self.reply_join(parked, response);
            }
            // A follower that repeats itself; the leader joins again when it wants a
            // rebalance for a reason of its own, such as new partitions.
            GroupState::Stable if says_the_same && !self.group.is_leader(member_id) => {
                let response = self.joined(member_id, parked.api_version);
                self.reply_join(parked, response);
            }
            GroupState::PreparingRebalance
            | GroupState::CompletingRebalance
            | GroupState::Stable => {
                self.group.update(member_id, &attempt.applicant);
                self.park_join(member_id, parked);
                self.rebalance(&format!("a member joined again: {}", attempt.reason));
            }
            GroupState::Empty => {
                self.refuse_join(parked, member_id, ErrorCode::UnknownMemberId);
            }
        }
    }

    fn add_member(&mut self, member_id: &StrBytes, attempt: &Attempt, parked: Parked) {
        if self.group.is_first_join_phase() {
            self.group.new_member_added = true;
        }
        self.group
            .add(member_id.clone(), attempt.applicant.clone(), parked);
        self.expire_member_at(member_id, self.now.after(NEW_MEMBER_JOIN_TIMEOUT_MS));
        self.rebalance(&format!("a member joined: {}", attempt.reason));
    }

    /// A static member's process is back without its member id: it takes its old place
    /// under a new one, and whoever still uses the old one is fenced.
    fn replace_static_member(
        &mut self,
        attempt: &Attempt,
        old_id: &StrBytes,
        new_id: &StrBytes,
        parked: Parked,
    ) {
        let before = (self.group.state() == GroupState::Stable).then(|| self.group.clone());
        let old_leader = self.group.leader().cloned();
        let owed = self.group.replace(old_id, new_id.clone());
        self.settle(owed, old_id, ErrorCode::FencedInstanceId);
        self.timers.cancel(&self.member_key(old_id));
        self.group.update(new_id, &attempt.applicant);
        self.renew_session(new_id);
        let protocol_stays = self.group.select_protocol().as_ref() == self.group.protocol();
        match (self.group.state(), before) {
            (GroupState::Stable, Some(before)) if protocol_stays => {
                // Nothing changes for the others: the assignment stays, under the new
                // id, and only that needs to be written.
                let record = self
                    .group
                    .to_record(self.id, |_, member| member.assignment.clone());
                self.effects.records.push(record);
                self.effects.completions.push(Completion::RestoreOnFailure {
                    group: self.id.clone(),
                    before: Box::new(before),
                    replaced: old_id.clone(),
                    by: new_id.clone(),
                });
                let response = self.replaced(new_id, old_leader, parked.api_version);
                self.reply_join(parked, response);
            }
            (GroupState::Stable, _) => {
                self.park_join(new_id, parked);
                self.prepare_rebalance("a static member came back with other protocols");
            }
            // The leader may be assigning to the old id at this moment.
            (GroupState::CompletingRebalance, _) => {
                self.park_join(new_id, parked);
                self.prepare_rebalance("a static member came back");
            }
            (GroupState::PreparingRebalance | GroupState::Empty, _) => {
                self.park_join(new_id, parked);
                self.complete_join_if_ready();
            }
        }
    }

    /// The answer to a static member that took its old place in a stable group. A
    /// leader must not assign again: newer clients are told so, older ones are made to
    /// believe that they are followers by the leader's id of before.
    fn replaced(
        &self,
        member_id: &StrBytes,
        old_leader: Option<StrBytes>,
        api_version: i16,
    ) -> JoinGroupResponse {
        let mut response = self.joined(member_id, api_version);
        if api_version >= FIRST_VERSION_WITH_SKIP_ASSIGNMENT {
            response.skip_assignment = self.group.is_leader(member_id);
        } else {
            response.leader = old_leader.unwrap_or_default();
            response.members.clear();
        }
        response
    }

    /// Parks the JoinGroup of a member. One that was parked already is from a
    /// connection that the client has given up.
    fn park_join(&mut self, member_id: &StrBytes, parked: Parked) {
        if let Some(before) = self.group.park_join(member_id, parked) {
            self.refuse_join(before, member_id, ErrorCode::RebalanceInProgress);
        }
    }

    fn refuse_join(&mut self, parked: Parked, member_id: &StrBytes, error: ErrorCode) {
        let refused = api::join_refused(parked.api_version, member_id.clone(), error);
        self.reply_join(parked, refused);
    }
}
