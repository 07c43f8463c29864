//! Where partitions are: their states, other replicas for them, other leaders.

use std::collections::BTreeMap;

use yuxi_protocol::ids::{BrokerId, LeaderEpoch, TopicPartition};
use yuxi_protocol::message;
use yuxi_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use yuxi_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use yuxi_protocol::messages::elect_leaders_request::TopicPartitions;
use yuxi_protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse,
    DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, ElectLeadersRequest,
    ElectLeadersResponse, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};

use super::Admin;
use crate::cluster::wire_ms;
use crate::error::{Result, check};

/// All that is known of one partition.
#[derive(Clone, Debug)]
pub struct PartitionDescription {
    /// The partition.
    pub partition: TopicPartition,
    /// Its leader, if it has one.
    pub leader: Option<BrokerId>,
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
    /// The replicas, in order of preference.
    pub replicas: Vec<BrokerId>,
    /// The replicas in sync.
    pub isr: Vec<BrokerId>,
    /// The replicas that may lead besides (KIP-966); empty where the broker can't tell.
    pub elr: Vec<BrokerId>,
    /// The replicas whose broker is away.
    pub offline: Vec<BrokerId>,
}

/// A reassignment that is going on.
#[derive(Clone, Debug)]
pub struct OngoingReassignment {
    /// The partition.
    pub partition: TopicPartition,
    /// All replicas that it has just now.
    pub replicas: Vec<BrokerId>,
    /// Those that are being added.
    pub adding: Vec<BrokerId>,
    /// Those that leave when the added ones have caught up.
    pub removing: Vec<BrokerId>,
}

/// Which replica shall lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElectionKind {
    /// The first of the assignment.
    Preferred,
    /// Any that lives, where there is no leader, though records may be lost.
    Unclean,
}

/// What became of each partition that was named.
pub type PartitionAnswers = BTreeMap<TopicPartition, Result<()>>;

impl Admin {
    /// The partitions of these topics (none: of all), in order.
    pub async fn describe_partitions(
        &self,
        topics: &[String],
    ) -> Result<Vec<PartitionDescription>> {
        let connection = self.cluster().any().await?;
        if !connection.speaks::<DescribeTopicPartitionsRequest>() {
            return self.partitions_by_metadata(topics).await;
        }
        let mut partitions = Vec::new();
        let mut cursor: Option<Cursor> = None;
        loop {
            let answer: DescribeTopicPartitionsResponse = connection
                .call(|_| {
                    let mut request = DescribeTopicPartitionsRequest::default();
                    request.topics = topics
                        .iter()
                        .map(|name| {
                            message!(TopicRequest {
                                name: name.as_str().into()
                            })
                        })
                        .collect();
                    request.cursor = cursor.take();
                    request
                })
                .await?;
            for topic in &answer.topics {
                let name = topic.name.as_deref().unwrap_or_default();
                check(topic.error_code, None, || format!("topic {name}"))?;
                partitions.extend(topic.partitions.iter().map(|part| PartitionDescription {
                    partition: TopicPartition::new(name, part.partition_index),
                    leader: (part.leader_id >= 0).then(|| BrokerId::new(part.leader_id)),
                    leader_epoch: LeaderEpoch::new(part.leader_epoch),
                    replicas: brokers(&part.replica_nodes),
                    isr: brokers(&part.isr_nodes),
                    elr: brokers(part.eligible_leader_replicas.as_deref().unwrap_or_default()),
                    offline: brokers(&part.offline_replicas),
                }));
            }
            let Some(next) = answer.next_cursor else {
                return Ok(partitions);
            };
            let mut at = Cursor::default();
            at.topic_name = next.topic_name;
            at.partition_index = next.partition_index;
            cursor = Some(at);
        }
    }

    async fn partitions_by_metadata(&self, topics: &[String]) -> Result<Vec<PartitionDescription>> {
        let metadata = self.cluster().refresh_all().await?;
        let mut partitions: Vec<PartitionDescription> = metadata
            .topics
            .values()
            .filter(|topic| topics.is_empty() || topics.iter().any(|name| **name == *topic.name))
            .flat_map(|topic| topic.partitions.iter().map(move |part| (topic, part)))
            .map(|(topic, part)| PartitionDescription {
                partition: TopicPartition::new(topic.name.clone(), part.index),
                leader: part.leader,
                leader_epoch: part.leader_epoch,
                replicas: part.replicas.clone(),
                isr: part.isr.clone(),
                elr: Vec::new(),
                offline: part.offline.clone(),
            })
            .collect();
        partitions.sort_by(|a, b| a.partition.cmp(&b.partition));
        Ok(partitions)
    }

    /// Gives each partition these replicas, preferred leader first, while it serves; `None`
    /// cancels what is going on. Without `resize` their number must stay as it is.
    pub async fn alter_reassignments(
        &self,
        wanted: &BTreeMap<TopicPartition, Option<Vec<BrokerId>>>,
        resize: bool,
    ) -> Result<PartitionAnswers> {
        let answer: AlterPartitionReassignmentsResponse = self
            .cluster()
            .call_any(|version| {
                let mut request = AlterPartitionReassignmentsRequest::default();
                request.timeout_ms = wire_ms(self.timeout());
                if version.value() >= 1 {
                    request.allow_replication_factor_change = resize;
                }
                for (partition, replicas) in wanted {
                    let mut part = ReassignablePartition::default();
                    part.partition_index = partition.partition.value();
                    part.replicas = replicas
                        .as_ref()
                        .map(|replicas| replicas.iter().map(|id| id.value()).collect());
                    let last = request.topics.last_mut();
                    match last.filter(|topic| *topic.name == *partition.topic) {
                        Some(topic) => topic.partitions.push(part),
                        None => {
                            let mut topic = ReassignableTopic::default();
                            topic.name = (&*partition.topic).into();
                            topic.partitions.push(part);
                            request.topics.push(topic);
                        }
                    }
                }
                request
            })
            .await?;
        let whole = || "reassigning partitions".to_owned();
        check(answer.error_code, answer.error_message.as_deref(), whole)?;
        let mut answers = PartitionAnswers::new();
        for topic in &answer.responses {
            for part in &topic.partitions {
                let partition = TopicPartition::new(topic.name.as_str(), part.partition_index);
                let result = check(part.error_code, part.error_message.as_deref(), || {
                    format!("reassigning {partition}")
                });
                answers.insert(partition, result);
            }
        }
        Ok(answers)
    }

    /// The reassignments that are going on.
    pub async fn list_reassignments(&self) -> Result<Vec<OngoingReassignment>> {
        let answer: ListPartitionReassignmentsResponse = self
            .cluster()
            .call_any(|_| {
                message!(ListPartitionReassignmentsRequest {
                    timeout_ms: wire_ms(self.timeout()),
                    topics: None
                })
            })
            .await?;
        let whole = || "listing reassignments".to_owned();
        check(answer.error_code, answer.error_message.as_deref(), whole)?;
        let ongoing = answer.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|part| OngoingReassignment {
                partition: TopicPartition::new(topic.name.as_str(), part.partition_index),
                replicas: brokers(&part.replicas),
                adding: brokers(&part.adding_replicas),
                removing: brokers(&part.removing_replicas),
            })
        });
        Ok(ongoing.collect())
    }

    /// Has these partitions elect; `None` for all of the cluster, and then those that need
    /// no election are not spoken of.
    pub async fn elect_leaders(
        &self,
        kind: ElectionKind,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<PartitionAnswers> {
        let answer: ElectLeadersResponse = self
            .cluster()
            .call_any(|_| {
                let mut request = ElectLeadersRequest::default();
                request.timeout_ms = wire_ms(self.timeout());
                // Version 0 knows only the preferred: it can't encode the other.
                request.election_type = match kind {
                    ElectionKind::Preferred => 0,
                    ElectionKind::Unclean => 1,
                };
                request.topic_partitions = partitions.map(|partitions| {
                    let mut topics: Vec<TopicPartitions> = Vec::new();
                    for partition in partitions {
                        let index = partition.partition.value();
                        let last = topics.last_mut();
                        match last.filter(|topic| *topic.topic == *partition.topic) {
                            Some(topic) => topic.partitions.push(index),
                            None => {
                                let mut topic = TopicPartitions::default();
                                topic.topic = (&*partition.topic).into();
                                topic.partitions.push(index);
                                topics.push(topic);
                            }
                        }
                    }
                    topics
                });
                request
            })
            .await?;
        let mut answers = PartitionAnswers::new();
        for topic in &answer.replica_election_results {
            for part in &topic.partition_result {
                let partition = TopicPartition::new(topic.topic.as_str(), part.partition_id);
                let result = check(part.error_code, part.error_message.as_deref(), || {
                    format!("electing a leader of {partition}")
                });
                answers.insert(partition, result);
            }
        }
        if answers.is_empty() {
            check(answer.error_code, None, || "electing leaders".to_owned())?;
        }
        Ok(answers)
    }
}

fn brokers(ids: &[i32]) -> Vec<BrokerId> {
    ids.iter().copied().map(BrokerId::new).collect()
}
