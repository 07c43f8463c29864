//! The cluster's image as the group coordinator sees it.

use std::collections::BTreeSet;
use yuxi_controller::{image::ClusterImage, keys::ConfigScope};
use yuxi_coordinator::groups::{ClusterView, GroupOverrides, TopicView};
use yuxi_protocol::{
    codec::StrBytes,
    ids::{PartitionId, TopicId},
};

pub(super) struct View<'a>(pub(super) &'a ClusterImage);

impl ClusterView for View<'_> {
    fn version(&self) -> i64 {
        self.0.revision().value()
    }

    fn topic(&self, name: &str) -> Option<TopicView> {
        let topic = self.0.topic(name)?;
        Some(TopicView {
            id: topic.id,
            partitions: i32::try_from(topic.partition_count()).unwrap_or(i32::MAX),
        })
    }

    fn topic_name(&self, id: TopicId) -> Option<StrBytes> {
        Some(StrBytes::from(&*self.0.topic_by_id(id)?.name))
    }

    fn visit_topic_names(&self, visit: &mut dyn FnMut(&str)) {
        for topic in self.0.topics() {
            visit(&topic.name);
        }
    }

    fn racks(&self, topic: TopicId, partition: i32) -> Vec<StrBytes> {
        let state = self
            .0
            .topic_by_id(topic)
            .and_then(|topic| topic.partition(PartitionId::new(partition)));
        let racks: BTreeSet<&str> = state
            .into_iter()
            .flat_map(|state| &state.replicas)
            .filter_map(|&id| self.0.registration(id)?.registration.rack.as_deref())
            .collect();
        racks.into_iter().map(StrBytes::from).collect()
    }

    fn group_overrides(&self, group: &str) -> GroupOverrides {
        let scope = ConfigScope::Group(group.into());
        let Some(config) = self.0.config(&scope) else {
            return GroupOverrides::default();
        };
        let number = |name: &str| config.values.get(name)?.trim().parse().ok();
        GroupOverrides {
            session_timeout_ms: number("consumer.session.timeout.ms"),
            heartbeat_interval_ms: number("consumer.heartbeat.interval.ms"),
        }
    }
}
