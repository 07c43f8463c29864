//! Whom a client should have asked (KIP-951): the leaders of what is not led here, and
//! how to reach them.
//!
//! Read from the newest image that the controller has shown, though the partitions here may
//! not follow it yet: a broker that has just lost a leadership knows who has it now. The
//! new leader may be a moment behind as well; it lets the client wait that moment
//! ([`Node::arriving`](crate::node::Node::arriving)).

use super::Context;
use crate::node::{self, Endpoint, TopicName};
use std::{collections::BTreeSet, sync::Arc};
use yuxi_controller::image::ClusterImage;
use yuxi_protocol::ids::{BrokerId, LeaderEpoch};

/// The leaders that one answer names.
pub(super) struct LeaderHints {
    image: Arc<ClusterImage>,
    named: BTreeSet<BrokerId>,
}

impl LeaderHints {
    pub(super) fn new(context: &Context) -> Self {
        Self {
            image: context.node.controller.image(),
            named: BTreeSet::new(),
        }
    }

    /// Who leads the partition, if anybody does; the answer names it.
    pub(super) fn leader(
        &mut self,
        topic: TopicName<'_>,
        partition: i32,
    ) -> Option<(BrokerId, LeaderEpoch)> {
        let state = topic.find(&self.image)?.partition(partition.into())?;
        if state.leader == BrokerId::NONE {
            return None;
        }
        self.named.insert(state.leader);
        Some((state.leader, state.leader_epoch))
    }

    /// Where the leaders are that were named.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        if self.named.is_empty() {
            return Vec::new();
        }
        let mut endpoints = node::endpoints(&self.image);
        endpoints.retain(|endpoint| self.named.contains(&endpoint.id));
        endpoints
    }
}
