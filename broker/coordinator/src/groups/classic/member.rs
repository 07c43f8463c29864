//! A member of a classic group, and what it may be waiting for.

use bytes::Bytes;
use yuxi_protocol::codec::StrBytes;

use crate::groups::api::Ticket;

/// A request that waits for something to happen in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::groups) struct Parked {
    pub(in crate::groups) ticket: Ticket,
    pub(in crate::groups) api_version: i16,
}

/// The protocols a member supports, the preferred one first, each with its metadata.
pub(in crate::groups) type Protocols = Vec<(StrBytes, Bytes)>;

#[derive(Clone, Debug)]
pub(in crate::groups) struct Member {
    pub(in crate::groups) instance_id: Option<StrBytes>,
    pub(in crate::groups) client_id: StrBytes,
    pub(in crate::groups) client_host: StrBytes,
    pub(in crate::groups) rebalance_timeout_ms: i32,
    pub(in crate::groups) session_timeout_ms: i32,
    pub(in crate::groups) protocols: Protocols,
    pub(in crate::groups) assignment: Bytes,
    /// The member has not had its first JoinGroup answer, so it cannot send heartbeats.
    pub(in crate::groups) is_new: bool,
    pub(super) joining: Option<Parked>,
    pub(super) syncing: Option<Parked>,
}

impl Member {
    /// The metadata that the member sent for `protocol`.
    pub(in crate::groups) fn metadata(&self, protocol: Option<&StrBytes>) -> Bytes {
        self.protocols
            .iter()
            .find(|(name, _)| Some(name) == protocol)
            .map(|(_, metadata)| metadata.clone())
            .unwrap_or_default()
    }

    pub(in crate::groups) fn is_joining(&self) -> bool {
        self.joining.is_some()
    }

    /// Whether the member need not be heard from: one that waits for an answer of ours
    /// is not silent, unless it has never been answered and may be long gone.
    pub(in crate::groups) fn is_excused_from_heartbeats(&self) -> bool {
        !self.is_new && (self.joining.is_some() || self.syncing.is_some())
    }
}

/// A member about to be, as its JoinGroup describes it.
#[derive(Clone, Debug)]
pub(in crate::groups) struct Applicant {
    pub(in crate::groups) instance_id: Option<StrBytes>,
    pub(in crate::groups) client_id: StrBytes,
    pub(in crate::groups) client_host: StrBytes,
    pub(in crate::groups) rebalance_timeout_ms: i32,
    pub(in crate::groups) session_timeout_ms: i32,
    pub(in crate::groups) protocol_type: StrBytes,
    pub(in crate::groups) protocols: Protocols,
}

/// The answers still owed to a member that is no more.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::groups) struct Owed {
    pub(in crate::groups) join: Option<Parked>,
    pub(in crate::groups) sync: Option<Parked>,
}
