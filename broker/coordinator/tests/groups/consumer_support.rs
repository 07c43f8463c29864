//! What tests of consumer groups need besides the runtime: a cluster with topics, and the
//! heartbeats of members.

#![allow(dead_code, reason = "each test file uses its part of it")]

use std::collections::BTreeMap;

use yuxi_coordinator::groups::{ClusterView, GroupOverrides, TopicView};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::TopicId,
    messages::{
        ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse,
        consumer_group_heartbeat_request,
    },
};

use crate::support::{REBALANCE_MS, Runtime};

/// Topics as tests make them.
#[derive(Clone, Default)]
pub(crate) struct Cluster {
    version: i64,
    topics: BTreeMap<String, TopicView>,
    overrides: BTreeMap<String, GroupOverrides>,
    /// Where the replicas of a partition are.
    racks: BTreeMap<(TopicId, i32), Vec<StrBytes>>,
}

impl Cluster {
    /// Makes a topic, or makes it larger.
    pub(crate) fn set_topic(&mut self, name: &str, partitions: i32) -> TopicId {
        self.version += 1;
        let made = self.version as u128;
        let topic = self.topics.entry(name.to_owned()).or_insert(TopicView {
            id: TopicId::from_bytes(made.to_be_bytes()),
            partitions,
        });
        topic.partitions = partitions;
        topic.id
    }

    pub(crate) fn remove_topic(&mut self, name: &str) {
        self.version += 1;
        self.topics.remove(name);
    }

    pub(crate) fn set_overrides(&mut self, group: &str, overrides: GroupOverrides) {
        self.version += 1;
        self.overrides.insert(group.to_owned(), overrides);
    }

    pub(crate) fn set_racks(&mut self, topic: TopicId, partition: i32, racks: &[&str]) {
        let racks = racks.iter().map(|rack| StrBytes::from(*rack)).collect();
        self.racks.insert((topic, partition), racks);
    }
}

impl ClusterView for Cluster {
    fn version(&self) -> i64 {
        self.version
    }

    fn topic(&self, name: &str) -> Option<TopicView> {
        self.topics.get(name).copied()
    }

    fn topic_name(&self, id: TopicId) -> Option<StrBytes> {
        let (name, _) = self.topics.iter().find(|(_, topic)| topic.id == id)?;
        Some(name.as_str().into())
    }

    fn visit_topic_names(&self, visit: &mut dyn FnMut(&str)) {
        for name in self.topics.keys() {
            visit(name);
        }
    }

    fn racks(&self, topic: TopicId, partition: i32) -> Vec<StrBytes> {
        let racks = self.racks.get(&(topic, partition));
        racks.cloned().unwrap_or_default()
    }

    fn group_overrides(&self, group: &str) -> GroupOverrides {
        self.overrides.get(group).copied().unwrap_or_default()
    }
}

/// A heartbeat of a member that speaks the consumer protocol.
#[derive(Clone)]
pub(crate) struct Beat<'a> {
    pub(crate) group: &'a str,
    pub(crate) version: i16,
    pub(crate) member_id: &'a str,
    pub(crate) epoch: i32,
    pub(crate) instance_id: Option<&'a str>,
    pub(crate) rack_id: Option<&'a str>,
    pub(crate) rebalance_ms: i32,
    pub(crate) topics: Option<&'a [&'a str]>,
    pub(crate) regex: Option<&'a str>,
    pub(crate) assignor: Option<&'a str>,
    pub(crate) owned: Option<&'a [(TopicId, i32)]>,
}

impl<'a> Beat<'a> {
    pub(crate) fn joining(group: &'a str, member_id: &'a str, topics: &'a [&'a str]) -> Self {
        Self {
            rebalance_ms: REBALANCE_MS,
            topics: Some(topics),
            owned: Some(&[]),
            ..Self::of(group, member_id, 0)
        }
    }

    /// One that says nothing but that the member is there.
    pub(crate) fn of(group: &'a str, member_id: &'a str, epoch: i32) -> Self {
        Self {
            group,
            version: 1,
            member_id,
            epoch,
            instance_id: None,
            rack_id: None,
            rebalance_ms: -1,
            topics: None,
            regex: None,
            assignor: None,
            owned: None,
        }
    }

    pub(crate) fn request(&self) -> ConsumerGroupHeartbeatRequest {
        let mut request = ConsumerGroupHeartbeatRequest::default();
        request.group_id = self.group.into();
        request.member_id = self.member_id.into();
        request.member_epoch = self.epoch;
        request.instance_id = self.instance_id.map(StrBytes::from);
        request.rack_id = self.rack_id.map(StrBytes::from);
        request.rebalance_timeout_ms = self.rebalance_ms;
        request.subscribed_topic_names = self
            .topics
            .map(|names| names.iter().map(|name| StrBytes::from(*name)).collect());
        request.subscribed_topic_regex = self.regex.map(StrBytes::from);
        request.server_assignor = self.assignor.map(StrBytes::from);
        request.topic_partitions = self.owned.map(|owned| {
            let mut by_topic: BTreeMap<TopicId, Vec<i32>> = BTreeMap::new();
            for (topic, partition) in owned {
                by_topic.entry(*topic).or_default().push(*partition);
            }
            let topics = by_topic.into_iter().map(|(topic, partitions)| {
                let mut owned = consumer_group_heartbeat_request::TopicPartitions::default();
                owned.topic_id = topic.into();
                owned.partitions = partitions;
                owned
            });
            topics.collect()
        });
        request
    }
}

/// The error of a heartbeat's answer.
pub(crate) fn error_of(response: &ConsumerGroupHeartbeatResponse) -> ErrorCode {
    ErrorCode::from_code(response.error_code).expect("a known code")
}

/// What a heartbeat's answer gives the member; none if it says nothing about that.
pub(crate) fn given(response: &ConsumerGroupHeartbeatResponse) -> Option<Vec<i32>> {
    let assignment = response.assignment.as_ref()?;
    let topics = assignment.topic_partitions.iter();
    let mut all: Vec<i32> = topics.flat_map(|topic| topic.partitions.clone()).collect();
    all.sort_unstable();
    Some(all)
}

/// A cluster with one topic, `t`.
pub(crate) fn world(partitions: i32) -> (Runtime, TopicId) {
    let mut rt = Runtime::undelayed();
    let topic = rt.cluster.set_topic("t", partitions);
    (rt, topic)
}

/// Partitions of one topic as a heartbeat tells them.
pub(crate) fn owned(topic: TopicId, partitions: &[i32]) -> Vec<(TopicId, i32)> {
    partitions.iter().map(|&at| (topic, at)).collect()
}
