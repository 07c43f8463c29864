//! A member of a consumer group: what it told about itself, and how far it has come
//! towards its target assignment.

use std::collections::BTreeSet;

use bytes::Bytes;
use yuxi_protocol::codec::StrBytes;

use super::Partitions;

/// The epoch of a static member that has left for a while and may come back.
pub(in crate::groups) const LEFT_FOR_A_WHILE: i32 = -2;

/// What a member told about itself. It stands in the log as one record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// The name of a static member (KIP-345).
    pub instance_id: Option<StrBytes>,
    /// Where the client is, as it says itself.
    pub rack_id: Option<StrBytes>,
    /// The client's name for itself.
    pub client_id: StrBytes,
    /// The client's address, as `/127.0.0.1`.
    pub client_host: StrBytes,
    /// The topics that it wants to read, by name.
    pub topic_names: BTreeSet<StrBytes>,
    /// And those whose whole name matches this.
    pub topic_regex: Option<StrBytes>,
    /// How long the member may take to give partitions up; -1 if it never said.
    pub rebalance_timeout_ms: i32,
    /// The assignor that it prefers.
    pub server_assignor: Option<StrBytes>,
    /// There if the member speaks the classic protocol.
    pub classic: Option<ClassicMember>,
}

/// What is known of a member that speaks the classic protocol (JoinGroup and SyncGroup).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassicMember {
    /// How long it may be silent.
    pub session_timeout_ms: i32,
    /// The protocols it supports, the preferred one first, each with its metadata.
    pub protocols: Vec<(StrBytes, Bytes)>,
}

/// How far a member has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberState {
    /// It has all that it is to have in its epoch.
    #[default]
    Stable,
    /// It has been told to give partitions up and has not said that it did.
    UnrevokedPartitions,
    /// It waits for partitions that others have not given up yet.
    UnreleasedPartitions,
    /// A state that a later version wrote.
    Unknown,
}

impl MemberState {
    /// The number that its record has.
    pub(super) const fn code(self) -> i8 {
        match self {
            Self::Stable => 0,
            Self::UnrevokedPartitions => 1,
            Self::UnreleasedPartitions => 2,
            Self::Unknown => 127,
        }
    }

    pub(super) const fn from_code(code: i8) -> Self {
        match code {
            0 => Self::Stable,
            1 => Self::UnrevokedPartitions,
            2 => Self::UnreleasedPartitions,
            _ => Self::Unknown,
        }
    }
}

/// Where a member stands. It is in the log as one record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Current {
    /// The epoch that its next heartbeat must name.
    pub epoch: i32,
    /// The one before, in case the answer with the newer one was lost.
    pub previous_epoch: i32,
    /// How far it has come.
    pub state: MemberState,
    /// What it may read.
    pub assigned: Partitions,
    /// What it must give up, and has until it says that it did.
    pub revoking: Partitions,
}

/// A member of a consumer group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::groups) struct Member {
    pub(in crate::groups) subscription: Subscription,
    pub(in crate::groups) current: Current,
}

impl Member {
    pub(in crate::groups) fn is_classic(&self) -> bool {
        self.subscription.classic.is_some()
    }

    /// Whether nothing is left to do for the assignment of `epoch`.
    pub(super) fn is_reconciled_to(&self, epoch: i32) -> bool {
        self.current.state == MemberState::Stable && self.current.epoch == epoch
    }

    /// The name of the protocol that a classic member is told the group uses: the first
    /// that it supports.
    pub(super) fn classic_protocol(&self) -> Option<&(StrBytes, Bytes)> {
        self.subscription.classic.as_ref()?.protocols.first()
    }
}
