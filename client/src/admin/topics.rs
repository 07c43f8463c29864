//! Topics and their partitions: create, delete, grow, shorten.

use std::collections::BTreeMap;
use std::time::Instant;

use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::{BrokerId, TopicId, TopicPartition};
use yuxi_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use yuxi_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use yuxi_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use yuxi_protocol::messages::delete_topics_request::DeleteTopicState;
use yuxi_protocol::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
    DeleteRecordsRequest, DeleteRecordsResponse, DeleteTopicsRequest, DeleteTopicsResponse,
};

use super::Admin;
use crate::backoff::Backoff;
use crate::cluster::wire_ms;
use crate::error::{Error, Result, check};

/// A topic to create.
#[derive(Clone, Debug)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// How many partitions; the broker's `num.partitions` if `None`.
    pub partitions: Option<i32>,
    /// How many replicas; the broker's `default.replication.factor` if `None`.
    pub replication_factor: Option<i16>,
    /// The replicas of each partition, leader first; overrides both counts unless empty.
    pub assignment: Vec<Vec<BrokerId>>,
    /// Its configuration.
    pub configs: Vec<(String, String)>,
}

impl NewTopic {
    /// With the broker's defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            partitions: None,
            replication_factor: None,
            assignment: Vec::new(),
            configs: Vec::new(),
        }
    }
}

/// A topic that is to have more partitions.
#[derive(Clone, Debug)]
pub struct NewPartitions {
    /// Its name.
    pub topic: String,
    /// How many partitions it is to have in all.
    pub total: i32,
    /// The replicas of each new partition; chosen by the controller if empty.
    pub assignment: Vec<Vec<BrokerId>>,
}

/// What became of one topic of a call.
#[derive(Clone, Debug)]
pub struct TopicAnswer {
    /// The topic.
    pub name: String,
    /// Its id, where the broker tells it.
    pub id: Option<TopicId>,
    /// Whether it was done.
    pub result: Result<()>,
}

impl Admin {
    /// Creates topics; `validate_only` only says whether it could.
    pub async fn create_topics(
        &self,
        topics: &[NewTopic],
        validate_only: bool,
    ) -> Result<Vec<TopicAnswer>> {
        let answer: CreateTopicsResponse = self
            .cluster
            .call_any(|_| {
                let mut request = CreateTopicsRequest::default();
                request.timeout_ms = wire_ms(self.timeout());
                request.validate_only = validate_only;
                request.topics = topics.iter().map(creatable).collect();
                request
            })
            .await?;
        Ok(answer
            .topics
            .iter()
            .map(|topic| {
                let id = TopicId::from(topic.topic_id);
                TopicAnswer {
                    name: topic.name.to_string(),
                    id: (!id.is_zero()).then_some(id),
                    result: check(topic.error_code, topic.error_message.as_deref(), || {
                        format!("creating topic {}", topic.name)
                    }),
                }
            })
            .collect())
    }

    /// Creates those of the topics that do not exist; one that does is as good as created,
    /// whatever it looks like. This may be repeated, so it is, as long as a request may take,
    /// where it is not known what became of it (the controller changed, the answer was lost).
    pub async fn create_missing_topics(&self, topics: &[NewTopic]) -> Result<Vec<TopicAnswer>> {
        let config = self.cluster.config();
        let deadline = Instant::now() + config.request_timeout;
        let mut backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
        loop {
            let mut asked = self.create_topics(topics, false).await;
            for answer in asked.iter_mut().flatten() {
                if let Err(error) = &answer.result
                    && error.code() == Some(ErrorCode::TopicAlreadyExists)
                {
                    answer.result = Ok(());
                }
            }
            let is_in_doubt = match &asked {
                Ok(answers) => answers
                    .iter()
                    .any(|answer| answer.result.as_ref().is_err_and(Error::is_retriable)),
                Err(error) => error.is_retriable(),
            };
            let pause = backoff.next();
            if !is_in_doubt || Instant::now() + pause >= deadline {
                return asked;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Deletes topics with all their records.
    pub async fn delete_topics(&self, names: &[String]) -> Result<Vec<TopicAnswer>> {
        let answer: DeleteTopicsResponse = self
            .cluster
            .call_any(|version| {
                let mut request = DeleteTopicsRequest::default();
                request.timeout_ms = wire_ms(self.timeout());
                for name in names {
                    if version.value() >= 6 {
                        let mut topic = DeleteTopicState::default();
                        topic.name = Some(name.as_str().into());
                        request.topics.push(topic);
                    } else {
                        request.topic_names.push(name.as_str().into());
                    }
                }
                request
            })
            .await?;
        Ok(answer
            .responses
            .iter()
            .map(|topic| {
                let name = topic
                    .name
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                let id = TopicId::from(topic.topic_id);
                TopicAnswer {
                    result: check(topic.error_code, topic.error_message.as_deref(), || {
                        format!("deleting topic {name}")
                    }),
                    name,
                    id: (!id.is_zero()).then_some(id),
                }
            })
            .collect())
    }

    /// Gives topics more partitions.
    pub async fn create_partitions(
        &self,
        topics: &[NewPartitions],
        validate_only: bool,
    ) -> Result<Vec<TopicAnswer>> {
        let answer: CreatePartitionsResponse = self
            .cluster
            .call_any(|_| {
                let mut request = CreatePartitionsRequest::default();
                request.timeout_ms = wire_ms(self.timeout());
                request.validate_only = validate_only;
                for wanted in topics {
                    let mut topic = CreatePartitionsTopic::default();
                    topic.name = wanted.topic.as_str().into();
                    topic.count = wanted.total;
                    topic.assignments = (!wanted.assignment.is_empty()).then(|| {
                        let replicas = |brokers: &Vec<BrokerId>| {
                            let mut assignment = CreatePartitionsAssignment::default();
                            assignment.broker_ids = brokers.iter().map(|b| b.value()).collect();
                            assignment
                        };
                        wanted.assignment.iter().map(replicas).collect()
                    });
                    request.topics.push(topic);
                }
                request
            })
            .await?;
        Ok(answer
            .results
            .iter()
            .map(|topic| TopicAnswer {
                name: topic.name.to_string(),
                id: None,
                result: check(topic.error_code, topic.error_message.as_deref(), || {
                    format!("adding partitions to topic {}", topic.name)
                }),
            })
            .collect())
    }

    /// Deletes the records before these offsets (-1: all that are there). Returns
    /// each partition's first offset afterwards.
    pub async fn delete_records(
        &self,
        before: &BTreeMap<TopicPartition, i64>,
    ) -> Result<BTreeMap<TopicPartition, Result<i64>>> {
        let mut results = BTreeMap::new();
        let mut by_leader: BTreeMap<BrokerId, Vec<(&TopicPartition, i64)>> = BTreeMap::new();
        for (partition, offset) in before {
            let index = partition.partition.value();
            let topic = self.cluster.topic(&partition.topic, false).await?;
            match self.cluster.metadata().leader(&partition.topic, index) {
                Some(leader) => by_leader
                    .entry(leader)
                    .or_default()
                    .push((partition, *offset)),
                None => {
                    let error = Error::NoSuchPartition {
                        topic: partition.topic.to_string(),
                        partition: index,
                        count: topic.partitions.len(),
                    };
                    results.insert(partition.clone(), Err(error));
                }
            }
        }
        for (leader, partitions) in by_leader {
            let answer: DeleteRecordsResponse = self
                .cluster
                .broker(leader)
                .await?
                .call(|_| {
                    let mut request = DeleteRecordsRequest::default();
                    request.timeout_ms = wire_ms(self.timeout());
                    for (partition, offset) in &partitions {
                        let mut part = DeleteRecordsPartition::default();
                        part.partition_index = partition.partition.value();
                        part.offset = *offset;
                        match request
                            .topics
                            .last_mut()
                            .filter(|t| *t.name == *partition.topic)
                        {
                            Some(topic) => topic.partitions.push(part),
                            None => {
                                let mut topic = DeleteRecordsTopic::default();
                                topic.name = (&*partition.topic).into();
                                topic.partitions.push(part);
                                request.topics.push(topic);
                            }
                        }
                    }
                    request
                })
                .await?;
            for topic in &answer.topics {
                for part in &topic.partitions {
                    let partition = TopicPartition::new(topic.name.as_str(), part.partition_index);
                    let result = check(part.error_code, None, || {
                        format!("deleting records of {partition}")
                    })
                    .map(|()| part.low_watermark);
                    results.insert(partition, result);
                }
            }
        }
        Ok(results)
    }
}

fn creatable(wanted: &NewTopic) -> CreatableTopic {
    let mut topic = CreatableTopic::default();
    topic.name = wanted.name.as_str().into();
    if wanted.assignment.is_empty() {
        topic.num_partitions = wanted.partitions.unwrap_or(-1);
        topic.replication_factor = wanted.replication_factor.unwrap_or(-1);
    } else {
        topic.num_partitions = -1;
        topic.replication_factor = -1;
        for (index, brokers) in (0..).zip(&wanted.assignment) {
            let mut assignment = CreatableReplicaAssignment::default();
            assignment.partition_index = index;
            assignment.broker_ids = brokers.iter().map(|broker| broker.value()).collect();
            topic.assignments.push(assignment);
        }
    }
    for (name, value) in &wanted.configs {
        let mut config = CreatableTopicConfig::default();
        config.name = name.as_str().into();
        config.value = Some(value.as_str().into());
        topic.configs.push(config);
    }
    topic
}
