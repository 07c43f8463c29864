//! What a shard is told of the cluster: its topics, and the settings of groups.

use yuxi_protocol::{codec::StrBytes, ids::TopicId};

/// The cluster as of one moment. The broker shows its image, tests what they like.
pub trait ClusterView {
    /// Another number whenever anything told here has changed.
    fn version(&self) -> i64;

    /// The topic of this name.
    fn topic(&self, name: &str) -> Option<TopicView>;

    /// The name of the topic with this id.
    fn topic_name(&self, id: TopicId) -> Option<StrBytes>;

    /// Hands the name of every topic to `visit`.
    fn visit_topic_names(&self, visit: &mut dyn FnMut(&str));

    /// The racks that have a replica of the partition.
    fn racks(&self, topic: TopicId, partition: i32) -> Vec<StrBytes>;

    /// What is set for one group.
    fn group_overrides(&self, group: &str) -> GroupOverrides;
}

/// A topic as an assignment sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicView {
    /// Its id.
    pub id: TopicId,
    /// How many partitions it has.
    pub partitions: i32,
}

/// Settings of one group that take the place of the broker's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupOverrides {
    /// `consumer.session.timeout.ms`.
    pub session_timeout_ms: Option<i32>,
    /// `consumer.heartbeat.interval.ms`.
    pub heartbeat_interval_ms: Option<i32>,
}
