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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::tests::image;

    #[test]
    fn a_leader_is_named_with_its_epoch_and_where_there_is_none_nobody_is() {
        let name = |leader, topic, partition| {
            let mut hints = LeaderHints {
                image: Arc::new(image(leader, 7)),
                named: BTreeSet::new(),
            };
            let led = hints.leader(TopicName::Name(topic), partition);
            assert_eq!(hints.named, led.iter().map(|&(id, _)| id).collect());
            led
        };
        let two = (BrokerId::new(2), LeaderEpoch::new(7));
        assert_eq!(name(2, "t", 0), Some(two));
        assert_eq!(name(-1, "t", 0), None);
        assert_eq!((name(2, "t", 1), name(2, "u", 0)), (None, None));
    }
}
