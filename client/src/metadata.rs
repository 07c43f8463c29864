//! What is known of the cluster: brokers, topics, and who leads each partition.
//!
//! A snapshot is immutable and shared; [`crate::cluster::Cluster`] owns the
//! current one and replaces it as a whole. Kafka's numbers are parsed here
//! once: a leader of -1 is `None`, partitions are ordered by their number.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::{BrokerId, LeaderEpoch, TopicId, TopicPartition};
use yuxi_protocol::messages::MetadataResponse;
use yuxi_protocol::messages::metadata_response::MetadataResponseTopic;

use crate::error::{Error, Result, error_code};

/// A snapshot of the cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterMetadata {
    /// The cluster's id, if the broker told it.
    pub cluster_id: Option<String>,
    /// The controller, as far as brokers tell clients.
    pub controller: Option<BrokerId>,
    /// The brokers that are alive.
    pub brokers: BTreeMap<BrokerId, Broker>,
    /// The topics that were asked for.
    pub topics: HashMap<Arc<str>, Arc<Topic>>,
    /// When the brokers were learnt; `None` before the first answer.
    pub as_of: Option<Instant>,
}

/// One broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// `node.id`.
    pub id: BrokerId,
    /// The advertised host.
    pub host: String,
    /// The advertised port.
    pub port: i32,
    /// The rack, if one is configured.
    pub rack: Option<String>,
}

impl Broker {
    /// Host and port, as `connect` takes them.
    pub fn address(&self) -> String {
        if self.host.contains(':') && !self.host.starts_with('[') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// One topic.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Its name.
    pub name: Arc<str>,
    /// Its id; [`TopicId::ZERO`] if the broker is too old to tell.
    pub id: TopicId,
    /// Whether it is one of Kafka's own.
    pub internal: bool,
    /// Why there is nothing else to know about it.
    pub error: Option<ErrorCode>,
    /// The partitions, in order of their numbers.
    pub partitions: Vec<Partition>,
    /// When this was learnt.
    pub as_of: Instant,
}

/// One partition.
#[derive(Clone, Debug)]
pub struct Partition {
    /// Its number.
    pub index: i32,
    /// Its leader, when it has one that lives.
    pub leader: Option<BrokerId>,
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
    /// The replicas, in order of preference.
    pub replicas: Vec<BrokerId>,
    /// The replicas in sync.
    pub isr: Vec<BrokerId>,
    /// The replicas whose broker is away.
    pub offline: Vec<BrokerId>,
}

impl ClusterMetadata {
    /// The topic, if it was asked for and exists.
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(name).filter(|topic| topic.error.is_none())
    }

    /// A partition, if it is known.
    pub fn partition(&self, topic: &str, index: i32) -> Option<&Partition> {
        self.topic(topic)?.partition(index)
    }

    /// A partition's leader, if it has one and its address is known.
    pub fn leader(&self, topic: &str, index: i32) -> Option<BrokerId> {
        let leader = self.partition(topic, index)?.leader?;
        self.brokers.contains_key(&leader).then_some(leader)
    }

    /// This snapshot with an answer laid over it. Topics that the answer does
    /// not speak of stay; an answer that carries an older leader epoch than is
    /// known comes from a broker that lags, and does not undo the newer leader.
    pub(crate) fn merged(&self, answer: &MetadataResponse, whole: bool, now: Instant) -> Self {
        let brokers = answer
            .brokers
            .iter()
            .map(|broker| {
                let id = BrokerId::new(broker.node_id);
                let broker = Broker {
                    id,
                    host: broker.host.to_string(),
                    port: broker.port,
                    rack: broker.rack.as_ref().map(ToString::to_string),
                };
                (id, broker)
            })
            .collect();
        let mut topics = if whole {
            HashMap::new()
        } else {
            self.topics.clone()
        };
        for topic in &answer.topics {
            let Some(name) = &topic.name else { continue };
            let known = self.topics.get(name.as_str());
            let fresh = topic_of(name.as_str(), topic, known.map(Arc::as_ref), now);
            topics.insert(fresh.name.clone(), Arc::new(fresh));
        }
        Self {
            cluster_id: answer.cluster_id.as_ref().map(ToString::to_string),
            controller: (answer.controller_id >= 0).then(|| BrokerId::new(answer.controller_id)),
            brokers,
            topics,
            as_of: Some(now),
        }
    }

    /// This snapshot with a partition's new leader, as produce and fetch answers
    /// tell it (KIP-951); `None` if that is not newer than what is known, or if it is
    /// not known where that broker is.
    pub(crate) fn with_leader(
        &self,
        (topic, index): (&str, i32),
        leader: BrokerId,
        epoch: LeaderEpoch,
        endpoint: Option<&Broker>,
    ) -> Option<Self> {
        let known = self.topic(topic)?;
        let partition = known.partition(index)?;
        if leader.value() < 0 || epoch <= partition.leader_epoch {
            return None;
        }
        let mut next = self.clone();
        match endpoint {
            Some(endpoint) => {
                next.brokers.insert(leader, endpoint.clone());
            }
            None if self.brokers.contains_key(&leader) => {}
            None => return None,
        }
        let mut changed = Topic::clone(known);
        for partition in &mut changed.partitions {
            if partition.index == index {
                partition.leader = Some(leader);
                partition.leader_epoch = epoch;
            }
        }
        next.topics.insert(changed.name.clone(), Arc::new(changed));
        Some(next)
    }

    /// Whether a broker that is alive is at this address.
    pub(crate) fn lists(&self, address: &str) -> bool {
        self.brokers
            .values()
            .any(|broker| broker.address() == address)
    }
}

impl Topic {
    /// A partition by its number.
    pub fn partition(&self, index: i32) -> Option<&Partition> {
        let at = self
            .partitions
            .binary_search_by_key(&index, |partition| partition.index)
            .ok()?;
        self.partitions.get(at)
    }

    /// A partition by its number, or the error that says how many there are.
    pub(crate) fn existing(&self, index: i32) -> Result<&Partition> {
        self.partition(index).ok_or_else(|| Error::NoSuchPartition {
            topic: self.name.to_string(),
            partition: index,
            count: self.partitions.len(),
        })
    }
}

/// Gathers parts of requests under their topics, as requests name them; parts of one
/// topic must lie together.
pub(crate) fn by_topic<'a, P>(
    parts: impl IntoIterator<Item = (&'a str, P)>,
) -> impl Iterator<Item = (&'a str, Vec<P>)> {
    let mut topics: Vec<(&'a str, Vec<P>)> = Vec::new();
    for (name, part) in parts {
        match topics.last_mut().filter(|(last, _)| *last == name) {
            Some((_, parts)) => parts.push(part),
            None => topics.push((name, vec![part])),
        }
    }
    topics.into_iter()
}

/// The numbers of partitions under their topics.
pub(crate) fn indexes_by_topic(partitions: &[TopicPartition]) -> BTreeMap<&str, Vec<i32>> {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        topics
            .entry(&partition.topic)
            .or_default()
            .push(partition.partition.value());
    }
    topics
}

fn topic_of(
    name: &str,
    answer: &MetadataResponseTopic,
    known: Option<&Topic>,
    now: Instant,
) -> Topic {
    let id = TopicId::from(answer.topic_id);
    // A topic made anew under its name begins its epochs anew.
    let same = known.filter(|known| known.id == id);
    let ids = |nodes: &[i32]| nodes.iter().copied().map(BrokerId::new).collect();
    let mut partitions: Vec<Partition> = answer
        .partitions
        .iter()
        .map(|partition| Partition {
            index: partition.partition_index,
            leader: (partition.leader_id >= 0).then(|| BrokerId::new(partition.leader_id)),
            leader_epoch: LeaderEpoch::new(partition.leader_epoch),
            replicas: ids(&partition.replica_nodes),
            isr: ids(&partition.isr_nodes),
            offline: ids(&partition.offline_replicas),
        })
        .map(|fresh| {
            let newer = same
                .and_then(|topic| topic.partition(fresh.index))
                .filter(|old| {
                    fresh.leader_epoch != LeaderEpoch::NONE && old.leader_epoch > fresh.leader_epoch
                });
            newer.cloned().unwrap_or(fresh)
        })
        .collect();
    partitions.sort_by_key(|partition| partition.index);
    Topic {
        name: known.map_or_else(|| name.into(), |known| known.name.clone()),
        id,
        internal: answer.is_internal,
        error: error_code(answer.error_code),
        partitions,
        as_of: now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yuxi_protocol::messages::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition,
    };

    fn answer(leader: i32, epoch: i32) -> MetadataResponse {
        let mut partition = MetadataResponsePartition::default();
        partition.leader_id = leader;
        partition.leader_epoch = epoch;
        let mut topic = MetadataResponseTopic::default();
        topic.name = Some("t".into());
        topic.partitions = vec![partition];
        let mut answer = MetadataResponse::default();
        answer.topics = vec![topic];
        for node_id in [1, 2] {
            let mut broker = MetadataResponseBroker::default();
            broker.node_id = node_id;
            answer.brokers.push(broker);
        }
        answer
    }

    #[test]
    fn an_older_leader_epoch_does_not_undo_a_newer_one() {
        let empty = ClusterMetadata::default();
        let newer = empty.merged(&answer(2, 5), false, Instant::now());
        let lagging = newer.merged(&answer(1, 4), false, Instant::now());
        assert_eq!(lagging.leader("t", 0), Some(BrokerId::new(2)));
        let newest = lagging.merged(&answer(1, 6), false, Instant::now());
        assert_eq!(newest.leader("t", 0), Some(BrokerId::new(1)));
    }

    #[test]
    fn a_leader_told_in_an_answer_counts_only_if_its_epoch_is_newer() {
        let known = ClusterMetadata::default().merged(&answer(1, 5), false, Instant::now());
        let told = |leader: i32, epoch: i32, endpoint: Option<&Broker>| {
            let leader = BrokerId::new(leader);
            let next = known.with_leader(("t", 0), leader, LeaderEpoch::new(epoch), endpoint)?;
            next.leader("t", 0)
        };
        assert_eq!(told(2, 5, None), None);
        assert_eq!(told(2, 6, None), Some(BrokerId::new(2)));
        assert_eq!(told(9, 6, None), None, "nobody knows where broker 9 is");
        let endpoint = Broker {
            id: BrokerId::new(9),
            host: "h".to_owned(),
            port: 1,
            rack: None,
        };
        assert_eq!(told(9, 6, Some(&endpoint)), Some(BrokerId::new(9)));
        assert_eq!(told(-1, 6, None), None);
    }

    #[test]
    fn a_partition_without_a_leader_has_none() {
        let known = ClusterMetadata::default().merged(&answer(-1, 5), false, Instant::now());
        assert_eq!(known.leader("t", 0), None);
    }
}
