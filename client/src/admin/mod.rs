//! Administration: topics, configurations, groups, transactions, the cluster itself.
//!
//! Each call is one Kafka API (a few are two), sent to the broker that answers
//! for it; the answer's codes become errors that name the topic or group. What
//! changes the cluster returns one result for each thing that was named, so that
//! one failure does not hide the others' success.

mod configs;
mod groups;
mod partitions;
mod topics;
mod transactions;

pub use configs::{ConfigEntry, ConfigOp, ConfigResource, ConfigSource};
pub use groups::{GroupDescription, GroupListing, MemberDescription};
pub use partitions::{ElectionKind, OngoingReassignment, PartitionAnswers, PartitionDescription};
pub use topics::{NewPartitions, NewTopic, TopicAnswer};
pub use transactions::{
    HangingTransaction, ProducerDescription, ProducersByPartition, TransactionDescription,
    TransactionFilter, TransactionListing,
};

use std::time::Duration;

use yuxi_protocol::ids::BrokerId;
use yuxi_protocol::message;
use yuxi_protocol::messages::{
    DescribeClusterRequest, DescribeClusterResponse, DescribeLogDirsRequest,
    DescribeLogDirsResponse, UnregisterBrokerRequest, UnregisterBrokerResponse,
};
use yuxi_protocol::seal::SealHolder;

use crate::cluster::Cluster;
use crate::config::ClientConfig;
use crate::error::{Result, check};
use crate::metadata::Broker;

/// The administration of one cluster. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Admin {
    cluster: Cluster,
}

/// The cluster as a broker describes it.
#[derive(Clone, Debug)]
pub struct ClusterDescription {
    /// The cluster's id.
    pub id: String,
    /// The controller, as far as brokers tell clients: where it is no broker, one that takes
    /// what is meant for it.
    pub controller: Option<BrokerId>,
    /// The controller itself, and its epoch; only brokers of Yuxi tell.
    pub seal: Option<SealHolder>,
    /// The brokers that are alive.
    pub brokers: Vec<Broker>,
}

/// One log directory of a broker.
#[derive(Clone, Debug)]
pub struct LogDir {
    /// The broker.
    pub broker: BrokerId,
    /// Its path on the broker.
    pub path: String,
    /// Why it is offline, if it is.
    pub error: Option<crate::Error>,
    /// Size and free space of its volume in bytes, if the broker tells.
    pub total_bytes: Option<i64>,
    /// Free bytes.
    pub usable_bytes: Option<i64>,
    /// Topic, partition and size in bytes of every replica in it.
    pub replicas: Vec<(String, i32, i64)>,
}

impl Admin {
    /// Over an existing cluster handle.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// With connections of its own.
    pub async fn connect(config: ClientConfig) -> Result<Self> {
        Ok(Self::new(Cluster::connect(config).await?))
    }

    /// The cluster handle.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Who is in the cluster.
    pub async fn describe_cluster(&self) -> Result<ClusterDescription> {
        let connection = self.cluster.any().await?;
        if !connection.speaks::<DescribeClusterRequest>() {
            let metadata = self.cluster.refresh(&[], false).await?;
            return Ok(ClusterDescription {
                id: metadata.cluster_id.clone().unwrap_or_default(),
                controller: metadata.controller,
                seal: None,
                brokers: metadata.brokers.values().cloned().collect(),
            });
        }
        let answer: DescribeClusterResponse = connection
            .call(|_| DescribeClusterRequest::default())
            .await?;
        check(answer.error_code, answer.error_message.as_deref(), || {
            "describing the cluster".to_owned()
        })?;
        let mut brokers: Vec<Broker> = answer
            .brokers
            .iter()
            .map(|broker| Broker {
                id: BrokerId::new(broker.broker_id),
                host: broker.host.to_string(),
                port: broker.port,
                rack: broker.rack.as_ref().map(ToString::to_string),
            })
            .collect();
        brokers.sort_by_key(|broker| broker.id);
        Ok(ClusterDescription {
            id: answer.cluster_id.to_string(),
            controller: (answer.controller_id >= 0).then(|| BrokerId::new(answer.controller_id)),
            seal: SealHolder::from_tags(&answer.unknown_tagged_fields),
            brokers,
        })
    }

    /// Has the cluster forget a broker that is gone for good.
    pub async fn unregister_broker(&self, broker: BrokerId) -> Result<()> {
        let answer: UnregisterBrokerResponse = self
            .cluster
            .call_any(|_| {
                message!(UnregisterBrokerRequest {
                    broker_id: broker.value()
                })
            })
            .await?;
        check(answer.error_code, answer.error_message.as_deref(), || {
            format!("unregistering broker {broker}")
        })
    }

    /// The log directories of every broker.
    pub async fn log_dirs(&self) -> Result<Vec<LogDir>> {
        let metadata = self.cluster.refresh(&[], false).await?;
        let mut dirs = Vec::new();
        for &broker in metadata.brokers.keys() {
            let answer: DescribeLogDirsResponse = self
                .cluster
                .broker(broker)
                .await?
                .call(|_| message!(DescribeLogDirsRequest { topics: None }))
                .await?;
            let context = || format!("log directories of broker {broker}");
            check(answer.error_code, None, context)?;
            for dir in &answer.results {
                let replicas = dir.topics.iter().flat_map(|topic| {
                    let name = topic.name.to_string();
                    topic.partitions.iter().map(move |partition| {
                        (
                            name.clone(),
                            partition.partition_index,
                            partition.partition_size,
                        )
                    })
                });
                dirs.push(LogDir {
                    broker,
                    path: dir.log_dir.to_string(),
                    error: check(dir.error_code, None, || dir.log_dir.to_string()).err(),
                    total_bytes: (dir.total_bytes >= 0).then_some(dir.total_bytes),
                    usable_bytes: (dir.usable_bytes >= 0).then_some(dir.usable_bytes),
                    replicas: replicas.collect(),
                });
            }
        }
        Ok(dirs)
    }

    /// How long a broker may take over a change.
    fn timeout(&self) -> Duration {
        self.cluster.config().request_timeout
    }
}
