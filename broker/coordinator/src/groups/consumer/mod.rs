//! Consumer groups of the new kind (KIP-848): the coordinator decides who reads what, and
//! each member is brought there by its own heartbeats.
//!
//! A `ConsumerGroup` belongs to its shard and is exactly what its records in the log say:
//! a request turns into records, and they change the group once they are written. Only
//! timers and the time of the last look at the topics are not in the log. Three things
//! move, each following the one before:
//!
//! 1. the *group epoch* is raised when a member or a topic changes;
//! 2. the *target assignment* is computed for that epoch, at once;
//! 3. each member's *current assignment* goes there in steps (`reconcile`).
//!
//! Invariants: `owners` names for each partition the one member that has it, assigned or
//! being revoked; `static_members` names the members that have an instance id; epochs never
//! go back while the group exists.

mod assignor;
mod change;
mod classic_members;
mod describe;
mod fencing;
mod heartbeat;
mod member;
mod migration;
mod partitions;
mod reconcile;
pub mod records;
mod subscriptions;

use std::collections::{BTreeMap, HashMap};

use yuxi_protocol::{codec::StrBytes, error_code::ErrorCode, ids::TopicId};

use super::copied;

pub use assignor::Assignor;
pub(super) use fencing::ConsumerTimer;
pub(super) use member::Member;
pub use member::{ClassicMember, Current, MemberState, Subscription};
pub use partitions::Partitions;
pub use records::{ConsumerRecord, GroupEpoch, ResolvedRegex};

/// Where a consumer group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConsumerGroupState {
    /// No members; there may be offsets.
    Empty,
    /// The target assignment is older than the group epoch.
    Assigning,
    /// Some member does not have its target assignment yet.
    Reconciling,
    /// Every member has its target assignment.
    Stable,
}

impl ConsumerGroupState {
    /// The name that ConsumerGroupDescribe and ListGroups show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Assigning => "Assigning",
            Self::Reconciling => "Reconciling",
            Self::Stable => "Stable",
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct ConsumerGroup {
    epoch: GroupEpoch,
    target_epoch: i32,
    members: BTreeMap<StrBytes, Member>,
    static_members: BTreeMap<StrBytes, StrBytes>,
    targets: BTreeMap<StrBytes, Partitions>,
    owners: HashMap<(TopicId, i32), StrBytes>,
    regexes: BTreeMap<StrBytes, ResolvedRegex>,
    /// A record of an older version is in the log, to be deleted with the group.
    has_partition_metadata: bool,
    /// The version of the cluster's topics that the epoch is known to be right for.
    checked_version: Option<i64>,
}

impl ConsumerGroup {
    pub(super) fn state(&self) -> ConsumerGroupState {
        if self.members.is_empty() {
            ConsumerGroupState::Empty
        } else if self.epoch.epoch > self.target_epoch {
            ConsumerGroupState::Assigning
        } else if self
            .members
            .values()
            .all(|member| member.is_reconciled_to(self.target_epoch))
        {
            ConsumerGroupState::Stable
        } else {
            ConsumerGroupState::Reconciling
        }
    }

    pub(super) fn members(&self) -> &BTreeMap<StrBytes, Member> {
        &self.members
    }

    fn member(&self, member_id: &StrBytes) -> Result<&Member, ErrorCode> {
        self.members
            .get(member_id)
            .ok_or(ErrorCode::UnknownMemberId)
    }

    fn static_member(&self, instance_id: &StrBytes) -> Option<(&StrBytes, &Member)> {
        let member_id = self.static_members.get(instance_id)?;
        self.members.get_key_value(member_id)
    }

    fn target(&self, member_id: &StrBytes) -> Partitions {
        self.targets.get(member_id).cloned().unwrap_or_default()
    }

    fn is_free(&self, topic: TopicId, partition: i32) -> bool {
        !self.owners.contains_key(&(topic, partition))
    }

    fn classic_member_count(&self) -> usize {
        self.members
            .values()
            .filter(|member| member.is_classic())
            .count()
    }

    /// Whether the group's members read `topic`.
    pub(super) fn is_subscribed_to(&self, topic: &StrBytes) -> bool {
        self.members.values().any(|member| {
            let subscription = &member.subscription;
            subscription.topic_names.contains(topic)
                || subscription
                    .topic_regex
                    .as_ref()
                    .and_then(|regex| self.regexes.get(regex))
                    .is_some_and(|resolved| resolved.topics.binary_search(topic).is_ok())
        })
    }

    /// The member that commits an offset; its epoch is for the caller to validate. An
    /// administrator, or a consumer that assigns partitions to itself, has epoch -1 and may
    /// when the group has no members.
    pub(super) fn committing_member(
        &self,
        member_id: &StrBytes,
        epoch: i32,
    ) -> Result<Option<&Member>, ErrorCode> {
        if epoch < 0 && self.members.is_empty() {
            return Ok(None);
        }
        self.member(member_id).map(Some)
    }

    /// Whether offsets may be read by whoever says to be this member.
    pub(super) fn validate_fetch(
        &self,
        member_id: Option<&StrBytes>,
        epoch: i32,
    ) -> Result<(), ErrorCode> {
        match member_id {
            None if epoch < 0 => Ok(()),
            None => Err(ErrorCode::UnknownMemberId),
            Some(member_id) => self.member(member_id)?.validate_epoch(epoch),
        }
    }

    fn set_subscription(&mut self, member_id: &StrBytes, subscription: Subscription) {
        let member = self.members.entry(copied(member_id)).or_default();
        if let Some(before) = member.subscription.instance_id.take()
            && self.static_members.get(&before) == Some(member_id)
        {
            self.static_members.remove(&before);
        }
        if let Some(instance_id) = &subscription.instance_id {
            self.static_members
                .insert(instance_id.clone(), copied(member_id));
        }
        member.subscription = subscription;
    }

    fn set_current(&mut self, member_id: &StrBytes, current: Current) {
        self.release(member_id);
        let member_id = copied(member_id);
        for owned in current.assigned.iter().chain(current.revoking.iter()) {
            self.owners.insert(owned, member_id.clone());
        }
        self.members.entry(member_id).or_default().current = current;
    }

    /// Nothing is the member's any more. What another has taken since is left to that one.
    fn release(&mut self, member_id: &StrBytes) {
        let Some(member) = self.members.get(member_id) else {
            return;
        };
        let current = &member.current;
        for owned in current.assigned.iter().chain(current.revoking.iter()) {
            if self.owners.get(&owned) == Some(member_id) {
                self.owners.remove(&owned);
            }
        }
    }

    fn remove_member(&mut self, member_id: &StrBytes) {
        self.release(member_id);
        let Some(member) = self.members.remove(member_id) else {
            return;
        };
        if let Some(instance_id) = &member.subscription.instance_id
            && self.static_members.get(instance_id) == Some(member_id)
        {
            self.static_members.remove(instance_id);
        }
    }

    /// Takes in a record about the group, other than one that deletes the group.
    pub(super) fn apply(&mut self, record: ConsumerRecord) {
        match record {
            ConsumerRecord::Epoch { value, .. } => self.epoch = value.unwrap_or_default(),
            ConsumerRecord::PartitionMetadata { is_tombstone, .. } => {
                self.has_partition_metadata = !is_tombstone;
            }
            ConsumerRecord::Member { member, value, .. } => match value {
                Some(subscription) => self.set_subscription(&member, subscription),
                None => self.remove_member(&member),
            },
            ConsumerRecord::TargetEpoch { value, .. } => {
                self.target_epoch = value.unwrap_or_default();
            }
            ConsumerRecord::Target { member, value, .. } => {
                match value {
                    Some(target) => self.targets.insert(copied(&member), target),
                    None => self.targets.remove(&member),
                };
            }
            ConsumerRecord::Current { member, value, .. } => match value {
                Some(current) => self.set_current(&member, current),
                None if self.members.contains_key(&member) => {
                    self.set_current(&member, Current::default());
                }
                None => {}
            },
            ConsumerRecord::Regex { regex, value, .. } => {
                match value {
                    Some(resolved) => self.regexes.insert(copied(&regex), resolved),
                    None => self.regexes.remove(&regex),
                };
            }
        }
    }
}

impl Member {
    pub(super) fn validate_epoch(&self, epoch: i32) -> Result<(), ErrorCode> {
        if epoch == self.current.epoch {
            Ok(())
        } else if self.is_classic() {
            Err(ErrorCode::IllegalGeneration)
        } else {
            Err(ErrorCode::StaleMemberEpoch)
        }
    }
}

impl ConsumerRecord {
    /// The group that the record is about.
    pub fn group(&self) -> &StrBytes {
        match self {
            Self::Epoch { group, .. }
            | Self::PartitionMetadata { group, .. }
            | Self::Member { group, .. }
            | Self::TargetEpoch { group, .. }
            | Self::Target { group, .. }
            | Self::Current { group, .. }
            | Self::Regex { group, .. } => group,
        }
    }

    pub(super) fn is_tombstone(&self) -> bool {
        match self {
            Self::Epoch { value, .. } => value.is_none(),
            Self::PartitionMetadata { is_tombstone, .. } => *is_tombstone,
            Self::Member { value, .. } => value.is_none(),
            Self::TargetEpoch { value, .. } => value.is_none(),
            Self::Target { value, .. } => value.is_none(),
            Self::Current { value, .. } => value.is_none(),
            Self::Regex { value, .. } => value.is_none(),
        }
    }
}
