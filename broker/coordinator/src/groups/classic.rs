//! A classic consumer group: its members, generation and state, and the changes that
//! keep these consistent. What drives the changes is in `join`, `sync` and `rebalance`.
//!
//! Owned by the shard. Invariants: `awaiting_join` counts the members whose JoinGroup
//! is parked; `votes` counts for each protocol the members that support it;
//! `static_members` names exactly the members that have an instance id; an empty group
//! has no members; no JoinGroup is parked outside of PreparingRebalance and no
//! SyncGroup outside of CompletingRebalance.
//!
//! ```text
//!             join                 all joined, or time is up          leader's assignment
//!   Empty ───────────► PreparingRebalance ───────► CompletingRebalance ───────► Stable
//!     ▲                 │          ▲                      │                       │
//!     └─ nobody joined ─┘          └── join, leave, member lost, time is up ──────┘
//! ```
//! Kafka's fifth state, Dead, is a group that is not in the shard's map.

mod member;
mod stored;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use yuxi_protocol::{codec::StrBytes, error_code::ErrorCode};

pub(super) use member::{Applicant, Member, Owed, Parked, Protocols};

/// The protocol type of consumers, whose metadata says which topics they subscribe to.
pub(super) const CONSUMER_PROTOCOL_TYPE: &str = "consumer";

/// Where a classic group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupState {
    /// No members; there may be offsets.
    Empty,
    /// Waiting for members to join the next generation.
    PreparingRebalance,
    /// Waiting for the leader's assignment.
    CompletingRebalance,
    /// Every member has its assignment.
    Stable,
}

impl GroupState {
    /// The name that DescribeGroups and ListGroups show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Group {
    state: GroupState,
    previous_state: GroupState,
    state_since_ms: Option<i64>,
    generation: i32,
    protocol_type: Option<StrBytes>,
    protocol: Option<StrBytes>,
    leader: Option<StrBytes>,
    /// A rebalance begins once this group, as it was written, is loaded or takes a consumer
    /// group's place.
    pub(super) awaits_rebalance: bool,
    members: BTreeMap<StrBytes, Member>,
    static_members: BTreeMap<StrBytes, StrBytes>,
    /// Member ids that were given out and not yet used (KIP-394).
    pending_joins: BTreeSet<StrBytes>,
    /// Members of the generation that have not sent their SyncGroup.
    pending_syncs: BTreeSet<StrBytes>,
    awaiting_join: usize,
    votes: HashMap<StrBytes, usize>,
    subscribed_topics: Option<BTreeSet<StrBytes>>,
    /// A member came while the first join phase of an empty group was under way.
    pub(super) new_member_added: bool,
}

impl Group {
    pub(super) fn new(now_ms: i64) -> Self {
        Self {
            state: GroupState::Empty,
            previous_state: GroupState::Empty,
            state_since_ms: Some(now_ms),
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            awaits_rebalance: false,
            members: BTreeMap::new(),
            static_members: BTreeMap::new(),
            pending_joins: BTreeSet::new(),
            pending_syncs: BTreeSet::new(),
            awaiting_join: 0,
            votes: HashMap::new(),
            subscribed_topics: None,
            new_member_added: false,
        }
    }

    pub(super) fn state(&self) -> GroupState {
        self.state
    }

    pub(super) fn is_first_join_phase(&self) -> bool {
        self.state == GroupState::PreparingRebalance && self.previous_state == GroupState::Empty
    }

    pub(super) fn state_since_ms(&self) -> Option<i64> {
        self.state_since_ms
    }

    pub(super) fn generation(&self) -> i32 {
        self.generation
    }

    pub(super) fn protocol_type(&self) -> Option<&StrBytes> {
        self.protocol_type.as_ref()
    }

    pub(super) fn protocol(&self) -> Option<&StrBytes> {
        self.protocol.as_ref()
    }

    pub(super) fn leader(&self) -> Option<&StrBytes> {
        self.leader.as_ref()
    }

    pub(super) fn is_leader(&self, member_id: &StrBytes) -> bool {
        self.leader.as_ref() == Some(member_id)
    }

    pub(super) fn members(&self) -> &BTreeMap<StrBytes, Member> {
        &self.members
    }

    pub(super) fn member(&self, member_id: &StrBytes) -> Option<&Member> {
        self.members.get(member_id)
    }

    pub(super) fn member_ids(&self) -> Vec<StrBytes> {
        self.members.keys().cloned().collect()
    }

    pub(super) fn static_member(&self, instance_id: &StrBytes) -> Option<&StrBytes> {
        self.static_members.get(instance_id)
    }

    pub(super) fn uses_consumer_protocol(&self) -> bool {
        self.protocol_type
            .as_ref()
            .is_some_and(|kind| kind.as_str() == CONSUMER_PROTOCOL_TYPE)
    }

    pub(super) fn knows_subscribed_topics(&self) -> bool {
        self.subscribed_topics.is_some()
    }

    /// Whether the group's members read `topic`. A group of consumers whose metadata
    /// cannot be read is taken to.
    pub(super) fn is_subscribed_to(&self, topic: &StrBytes) -> bool {
        match &self.subscribed_topics {
            Some(topics) => topics.contains(topic),
            None => self.uses_consumer_protocol(),
        }
    }

    /// How long members may take to rejoin: as long as the slowest asks for.
    pub(super) fn rebalance_timeout_ms(&self) -> i64 {
        let slowest = self
            .members
            .values()
            .map(|member| member.rebalance_timeout_ms)
            .max();
        i64::from(slowest.unwrap_or(0).max(0))
    }

    pub(super) fn awaiting_join(&self) -> usize {
        self.awaiting_join
    }

    pub(super) fn has_all_members_joined(&self) -> bool {
        self.members.len() == self.awaiting_join && self.pending_joins.is_empty()
    }

    /// Whether a member with these protocols can be part of the group: at least one of
    /// them must be supported by every member.
    pub(super) fn supports(&self, protocol_type: &StrBytes, protocols: &Protocols) -> bool {
        if self.state == GroupState::Empty {
            return !protocol_type.is_empty() && !protocols.is_empty();
        }
        self.protocol_type.as_ref() == Some(protocol_type)
            && protocols
                .iter()
                .any(|(name, _)| self.is_supported_by_all(name))
    }

    /// Whether the pair of ids is that of a member. A known instance id under another
    /// member id means that a newer process has taken its place.
    pub(super) fn validate_member(
        &self,
        member_id: &StrBytes,
        instance_id: Option<&StrBytes>,
    ) -> Result<(), ErrorCode> {
        if let Some(instance_id) = instance_id {
            match self.static_members.get(instance_id) {
                None => return Err(ErrorCode::UnknownMemberId),
                Some(current) if current != member_id => {
                    return Err(ErrorCode::FencedInstanceId);
                }
                Some(_) => {}
            }
        }
        if self.members.contains_key(member_id) {
            Ok(())
        } else {
            Err(ErrorCode::UnknownMemberId)
        }
    }

    pub(super) fn is_pending(&self, member_id: &StrBytes) -> bool {
        self.pending_joins.contains(member_id)
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.pending_joins.is_empty()
    }

    pub(super) fn pending_joins(&self) -> &BTreeSet<StrBytes> {
        &self.pending_joins
    }

    pub(super) fn add_pending(&mut self, member_id: StrBytes) {
        self.pending_joins.insert(member_id);
    }

    /// Adds a member whose JoinGroup is parked.
    pub(super) fn add(&mut self, member_id: StrBytes, applicant: Applicant, parked: Parked) {
        if self.members.is_empty() {
            self.protocol_type = Some(applicant.protocol_type);
        }
        if self.leader.is_none() {
            self.leader = Some(member_id.clone());
        }
        self.pending_joins.remove(&member_id);
        self.insert(
            member_id,
            Member {
                instance_id: applicant.instance_id,
                client_id: applicant.client_id,
                client_host: applicant.client_host,
                rebalance_timeout_ms: applicant.rebalance_timeout_ms,
                session_timeout_ms: applicant.session_timeout_ms,
                protocols: applicant.protocols,
                assignment: Bytes::new(),
                is_new: true,
                joining: Some(parked),
                syncing: None,
            },
        );
    }

    fn insert(&mut self, member_id: StrBytes, member: Member) {
        self.count_votes(&member.protocols);
        self.awaiting_join += usize::from(member.is_joining());
        if let Some(instance_id) = &member.instance_id {
            self.static_members
                .insert(instance_id.clone(), member_id.clone());
        }
        let before = self.members.insert(member_id, member);
        assert!(before.is_none(), "a member is added once");
    }

    /// Takes a member, or a member id that was given out, out of the group. The
    /// leadership goes to another member.
    pub(super) fn remove(&mut self, member_id: &StrBytes) -> Owed {
        self.pending_joins.remove(member_id);
        self.pending_syncs.remove(member_id);
        let Some(member) = self.take(member_id) else {
            return Owed::default();
        };
        if self.is_leader(member_id) {
            self.leader = self.members.keys().next().cloned();
        }
        Owed {
            join: member.joining,
            sync: member.syncing,
        }
    }

    /// Undoes `insert`.
    fn take(&mut self, member_id: &StrBytes) -> Option<Member> {
        let member = self.members.remove(member_id)?;
        self.uncount_votes(&member.protocols);
        self.awaiting_join -= usize::from(member.is_joining());
        if let Some(instance_id) = &member.instance_id {
            self.static_members.remove(instance_id);
        }
        Some(member)
    }

    /// Gives the static member `old_id` the new id of the process that took its place.
    /// Everything else about it stays.
    pub(super) fn replace(&mut self, old_id: &StrBytes, new_id: StrBytes) -> Owed {
        let Some(mut member) = self.take(old_id) else {
            return Owed::default();
        };
        let owed = Owed {
            join: member.joining.take(),
            sync: member.syncing.take(),
        };
        if self.is_leader(old_id) {
            self.leader = Some(new_id.clone());
        }
        self.pending_syncs.remove(old_id);
        member.is_new = false;
        self.insert(new_id, member);
        owed
    }

    /// Takes over what a member says about itself when it joins again.
    pub(super) fn update(&mut self, member_id: &StrBytes, applicant: &Applicant) {
        let Some(mut member) = self.take(member_id) else {
            return;
        };
        member.protocols.clone_from(&applicant.protocols);
        member.rebalance_timeout_ms = applicant.rebalance_timeout_ms;
        member.session_timeout_ms = applicant.session_timeout_ms;
        self.insert(member_id.clone(), member);
    }

    /// Parks a member's JoinGroup; hands back the one that was parked before.
    pub(super) fn park_join(&mut self, member_id: &StrBytes, parked: Parked) -> Option<Parked> {
        let member = self.members.get_mut(member_id)?;
        let before = member.joining.replace(parked);
        self.awaiting_join += usize::from(before.is_none());
        before
    }

    pub(super) fn take_join(&mut self, member_id: &StrBytes) -> Option<Parked> {
        let parked = self.members.get_mut(member_id)?.joining.take();
        self.awaiting_join -= usize::from(parked.is_some());
        parked
    }

    /// Parks a member's SyncGroup; hands back the one that was parked before.
    pub(super) fn park_sync(&mut self, member_id: &StrBytes, parked: Parked) -> Option<Parked> {
        self.members.get_mut(member_id)?.syncing.replace(parked)
    }

    pub(super) fn take_sync(&mut self, member_id: &StrBytes) -> Option<Parked> {
        self.members.get_mut(member_id)?.syncing.take()
    }

    pub(super) fn clear_assignments(&mut self) {
        for member in self.members.values_mut() {
            member.assignment = Bytes::new();
        }
    }

    /// Gives each member its assignment and the group its peace.
    pub(super) fn assign(&mut self, assignment: Vec<(StrBytes, Bytes)>, now_ms: i64) {
        self.clear_assignments();
        for (member_id, bytes) in assignment {
            if let Some(member) = self.members.get_mut(&member_id) {
                member.assignment = bytes;
            }
        }
        self.transition(GroupState::Stable, now_ms);
    }

    /// The member has had its first answer and is in the new generation; its
    /// SyncGroup is awaited.
    pub(super) fn expect_sync(&mut self, member_id: &StrBytes) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.is_new = false;
            self.pending_syncs.insert(member_id.clone());
        }
    }

    pub(super) fn sync_arrived(&mut self, member_id: &StrBytes) {
        self.pending_syncs.remove(member_id);
    }

    pub(super) fn pending_syncs(&self) -> &BTreeSet<StrBytes> {
        &self.pending_syncs
    }

    pub(super) fn clear_pending_syncs(&mut self) {
        self.pending_syncs.clear();
    }

    /// Leaves the leadership with a member that has joined; false if none has.
    pub(super) fn elect_joined_leader(&mut self) -> bool {
        let leader_joined = self
            .leader
            .as_ref()
            .and_then(|leader| self.members.get(leader))
            .is_some_and(Member::is_joining);
        if leader_joined {
            return true;
        }
        match self.members.iter().find(|(_, member)| member.is_joining()) {
            Some((member_id, _)) => {
                self.leader = Some(member_id.clone());
                true
            }
            None => false,
        }
    }

    /// Begins the next generation with the members that are there. After the last
    /// number that a generation can have, the count begins again at 1: 0 and -1 mean
    /// that there was none.
    pub(super) fn begin_generation(&mut self, now_ms: i64) {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.protocol = self.select_protocol();
        self.subscribed_topics = self.compute_subscribed_topics();
        self.pending_syncs.clear();
        let state = if self.members.is_empty() {
            GroupState::Empty
        } else {
            GroupState::CompletingRebalance
        };
        self.transition(state, now_ms);
    }

    pub(super) fn transition(&mut self, state: GroupState, now_ms: i64) {
        let may_follow = match state {
            GroupState::PreparingRebalance => self.state != GroupState::PreparingRebalance,
            GroupState::Empty | GroupState::CompletingRebalance => {
                self.state == GroupState::PreparingRebalance
            }
            GroupState::Stable => self.state == GroupState::CompletingRebalance,
        };
        assert!(may_follow, "{state:?} does not follow {:?}", self.state);
        self.previous_state = self.state;
        self.state = state;
        self.state_since_ms = Some(now_ms);
    }

    /// The protocol that most members prefer among those that all support; the one
    /// that sorts first if there are several. None in an empty group.
    pub(super) fn select_protocol(&self) -> Option<StrBytes> {
        let mut preferred: BTreeMap<&StrBytes, usize> = BTreeMap::new();
        for member in self.members.values() {
            let choice = member
                .protocols
                .iter()
                .find(|(name, _)| self.is_supported_by_all(name));
            if let Some((name, _)) = choice {
                *preferred.entry(name).or_default() += 1;
            }
        }
        let most = preferred.values().copied().max()?;
        preferred
            .into_iter()
            .find(|(_, votes)| *votes == most)
            .map(|(name, _)| name.clone())
    }

    fn is_supported_by_all(&self, protocol: &StrBytes) -> bool {
        self.votes.get(protocol).copied().unwrap_or(0) == self.members.len()
    }

    fn count_votes(&mut self, protocols: &Protocols) {
        for (name, _) in protocols {
            *self.votes.entry(name.clone()).or_default() += 1;
        }
    }

    fn uncount_votes(&mut self, protocols: &Protocols) {
        for (name, _) in protocols {
            if let Some(votes) = self.votes.get_mut(name) {
                *votes -= 1;
                if *votes == 0 {
                    self.votes.remove(name);
                }
            }
        }
    }
}
