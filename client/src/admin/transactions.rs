//! Transactions: list, describe, and end those that nobody else will.

use std::collections::{BTreeMap, BTreeSet};

use yuxi_protocol::ids::{BrokerId, TopicPartition};
use yuxi_protocol::message;
use yuxi_protocol::messages::describe_producers_request::TopicRequest;
use yuxi_protocol::messages::write_txn_markers_request::{
    WritableTxnMarker, WritableTxnMarkerTopic,
};
use yuxi_protocol::messages::{
    DescribeProducersRequest, DescribeProducersResponse, DescribeTransactionsRequest,
    DescribeTransactionsResponse, InitProducerIdRequest, InitProducerIdResponse,
    ListTransactionsRequest, ListTransactionsResponse, WriteTxnMarkersRequest,
    WriteTxnMarkersResponse,
};

use super::Admin;
use crate::cluster::{Coordinator, wire_ms};
use crate::error::{Error, Result, check};
use crate::metadata::indexes_by_topic;

/// The first version of ListTransactions that can be asked for those of a certain age.
const LIST_BY_AGE: i16 = 1;
/// Newer versions are for transactions that outlive their producer.
const NEWEST_INIT_PRODUCER_ID: i16 = 5;
/// The newer one says by which protocol the transaction was made, which nobody knows here.
const NEWEST_WRITE_MARKERS: i16 = 1;

/// Which transactions to list: all that fit everything given.
#[derive(Clone, Debug, Default)]
pub struct TransactionFilter {
    /// In one of these states (`Ongoing`, `PrepareCommit`, `CompleteAbort` …).
    pub states: Vec<String>,
    /// Of one of these producers.
    pub producer_ids: Vec<i64>,
    /// Open for longer, in milliseconds.
    pub longer_than_ms: Option<i64>,
}

/// A transactional id in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionListing {
    /// The id.
    pub transactional_id: String,
    /// Who coordinates it.
    pub coordinator: BrokerId,
    /// The producer that has it.
    pub producer_id: i64,
    /// The state of its last transaction.
    pub state: String,
}

/// A transactional id and its last transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionDescription {
    /// The id.
    pub transactional_id: String,
    /// The producer that has it.
    pub producer_id: i64,
    /// That producer's epoch.
    pub producer_epoch: i16,
    /// The state of its last transaction.
    pub state: String,
    /// `transaction.timeout.ms`.
    pub timeout_ms: i32,
    /// When the transaction began, in milliseconds since the epoch, if one is open.
    pub started_ms: Option<i64>,
    /// The partitions in it, if one is open.
    pub partitions: Vec<TopicPartition>,
}

/// A producer that a partition's leader remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerDescription {
    /// Its id.
    pub producer_id: i64,
    /// Its epoch.
    pub producer_epoch: i32,
    /// The sequence number of its last record.
    pub last_sequence: i32,
    /// When it last wrote, in milliseconds since the epoch.
    pub last_written_ms: i64,
    /// Of the coordinator that last ended a transaction of it here.
    pub coordinator_epoch: Option<i32>,
    /// Where its open transaction begins.
    pub transaction_start: Option<i64>,
}

/// The producers of each partition that was asked about.
pub type ProducersByPartition = BTreeMap<TopicPartition, Result<Vec<ProducerDescription>>>;

/// What of a transaction still holds readers back in a partition although its coordinator
/// knows nothing of it, so that it will never end by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HangingTransaction {
    /// Where.
    pub partition: TopicPartition,
    /// Whose.
    pub producer: ProducerDescription,
    /// The transactional id that has the producer id, if any still has.
    pub transactional_id: Option<String>,
}

impl Admin {
    /// The transactional ids of every coordinator, in order.
    pub async fn list_transactions(
        &self,
        filter: &TransactionFilter,
    ) -> Result<Vec<TransactionListing>> {
        let metadata = self.cluster.refresh(&[], false).await?;
        let mut listed = Vec::new();
        for &broker in metadata.brokers.keys() {
            let connection = self.cluster.broker(broker).await?;
            let version = connection.version::<ListTransactionsRequest>(i16::MAX)?;
            if filter.longer_than_ms.is_some() && version.value() < LIST_BY_AGE {
                return Err(Error::Unsupported {
                    address: connection.address().to_owned(),
                    api: "ListTransactions by age",
                    offered: format!("up to {version}"),
                    needed: format!("{LIST_BY_AGE} or later"),
                });
            }
            let answer: ListTransactionsResponse = connection
                .call(|_| {
                    let mut request = ListTransactionsRequest::default();
                    request.state_filters =
                        filter.states.iter().map(|s| s.as_str().into()).collect();
                    request.producer_id_filters.clone_from(&filter.producer_ids);
                    if let Some(age_ms) = filter.longer_than_ms {
                        request.duration_filter = age_ms;
                    }
                    request
                })
                .await?;
            check(answer.error_code, None, || {
                format!("listing the transactions of broker {broker}")
            })?;
            if let Some(unknown) = answer.unknown_state_filters.first() {
                return Err(Error::Config(format!(
                    "there is no transaction state '{unknown}'"
                )));
            }
            listed.extend(
                answer
                    .transaction_states
                    .iter()
                    .map(|one| TransactionListing {
                        transactional_id: one.transactional_id.to_string(),
                        coordinator: broker,
                        producer_id: one.producer_id,
                        state: one.transaction_state.to_string(),
                    }),
            );
        }
        listed.sort_by(|a, b| a.transactional_id.cmp(&b.transactional_id));
        Ok(listed)
    }

    /// One transactional id, by its coordinator.
    pub async fn describe_transaction(
        &self,
        transactional_id: &str,
    ) -> Result<TransactionDescription> {
        Coordinator::of_transactions(&self.cluster, transactional_id)
            .insist(async |coordinator| {
                let answer: DescribeTransactionsResponse = coordinator
                    .call(|_| {
                        message!(DescribeTransactionsRequest {
                            transactional_ids: vec![transactional_id.into()]
                        })
                    })
                    .await?;
                let missing = || Error::Malformed {
                    what: "DescribeTransactions answer",
                    address: coordinator.address().to_owned(),
                    detail: format!("{transactional_id} is missing from it"),
                };
                let found = answer.transaction_states.first().ok_or_else(missing)?;
                check(found.error_code, None, || {
                    format!("describing transactional.id {transactional_id}")
                })?;
                let partitions = found.topics.iter().flat_map(|topic| {
                    let indexes = topic.partitions.iter();
                    indexes.map(|index| TopicPartition::new(topic.topic.as_str(), *index))
                });
                // Of one that is over, the times may still be told.
                let state = found.transaction_state.as_str();
                let is_open = matches!(state, "Ongoing" | "PrepareCommit" | "PrepareAbort");
                Ok(TransactionDescription {
                    transactional_id: transactional_id.to_owned(),
                    producer_id: found.producer_id,
                    producer_epoch: found.producer_epoch,
                    state: state.to_owned(),
                    timeout_ms: found.transaction_timeout_ms,
                    started_ms: (is_open && found.transaction_start_time_ms >= 0)
                        .then_some(found.transaction_start_time_ms),
                    partitions: partitions.collect(),
                })
            })
            .await
    }

    /// The producers that the leaders of these partitions remember.
    pub async fn describe_producers(
        &self,
        partitions: &[TopicPartition],
    ) -> Result<ProducersByPartition> {
        let mut found = ProducersByPartition::new();
        for (leader, partitions) in self.by_leader(partitions).await? {
            let connection = self.cluster.broker(leader).await?;
            let answer: DescribeProducersResponse = connection
                .call(|_| {
                    let mut request = DescribeProducersRequest::default();
                    for (name, indexes) in indexes_by_topic(&partitions) {
                        let mut topic = TopicRequest::default();
                        topic.name = name.into();
                        topic.partition_indexes = indexes;
                        request.topics.push(topic);
                    }
                    request
                })
                .await?;
            for topic in &answer.topics {
                for part in &topic.partitions {
                    let partition = TopicPartition::new(topic.name.as_str(), part.partition_index);
                    let context = || format!("describing the producers of {partition}");
                    let known = check(part.error_code, part.error_message.as_deref(), context);
                    let producers = part.active_producers.iter().map(|one| ProducerDescription {
                        producer_id: one.producer_id,
                        producer_epoch: one.producer_epoch,
                        last_sequence: one.last_sequence,
                        last_written_ms: one.last_timestamp,
                        coordinator_epoch: (one.coordinator_epoch >= 0)
                            .then_some(one.coordinator_epoch),
                        transaction_start: (one.current_txn_start_offset >= 0)
                            .then_some(one.current_txn_start_offset),
                    });
                    let producers = known.map(|()| producers.collect());
                    found.insert(partition, producers);
                }
            }
        }
        Ok(found)
    }

    /// Transactions of which a partition of these topics (none: of any) waits for the end
    /// in vain: nothing was written for `idle_ms`, and no coordinator has them. `now_ms` is
    /// the time since the epoch.
    pub async fn find_hanging_transactions(
        &self,
        topics: &[String],
        idle_ms: i64,
        now_ms: i64,
    ) -> Result<Vec<HangingTransaction>> {
        let described = self.describe_partitions(topics).await?;
        let led = described.into_iter().filter(|one| one.leader.is_some());
        let partitions: Vec<TopicPartition> = led.map(|one| one.partition).collect();
        let mut open = Vec::new();
        for (partition, producers) in self.describe_producers(&partitions).await? {
            let idle = |one: &ProducerDescription| {
                one.transaction_start.is_some() && now_ms - one.last_written_ms >= idle_ms
            };
            let producers = producers?.into_iter().filter(idle);
            open.extend(producers.map(|producer| (partition.clone(), producer)));
        }
        if open.is_empty() {
            return Ok(Vec::new());
        }
        let ids: BTreeSet<i64> = open
            .iter()
            .map(|(_, producer)| producer.producer_id)
            .collect();
        let filter = TransactionFilter {
            producer_ids: ids.into_iter().collect(),
            ..TransactionFilter::default()
        };
        let mut coordinated = BTreeMap::new();
        for listed in self.list_transactions(&filter).await? {
            let described = self.describe_transaction(&listed.transactional_id).await?;
            coordinated.insert(described.producer_id, described);
        }
        let hanging = open.into_iter().filter_map(|(partition, producer)| {
            let known = coordinated.get(&producer.producer_id);
            // Its coordinator will end it, now or when it times out.
            if known.is_some_and(|known| known.partitions.contains(&partition)) {
                return None;
            }
            Some(HangingTransaction {
                partition,
                transactional_id: known.map(|known| known.transactional_id.clone()),
                producer,
            })
        });
        Ok(hanging.collect())
    }

    /// Writes an abort marker for a hanging transaction behind its coordinator's back, as
    /// that one would. For transactions that [`Admin::find_hanging_transactions`] found:
    /// one that is alive would be torn.
    pub async fn abort_hanging_transaction(
        &self,
        partition: &TopicPartition,
        producer: &ProducerDescription,
    ) -> Result<()> {
        let leaders = self.by_leader(std::slice::from_ref(partition)).await?;
        let Some(&leader) = leaders.keys().next() else {
            return Err(Error::Config(format!("{partition} has no leader")));
        };
        let epoch = i16::try_from(producer.producer_epoch).map_err(|_| {
            Error::Config(format!(
                "{} is not a producer epoch",
                producer.producer_epoch
            ))
        })?;
        let connection = self.cluster.broker(leader).await?;
        let answer: WriteTxnMarkersResponse = connection
            .call_up_to(NEWEST_WRITE_MARKERS, |_| {
                let mut topic = WritableTxnMarkerTopic::default();
                topic.name = (&*partition.topic).into();
                topic.partition_indexes = vec![partition.partition.value()];
                let mut marker = WritableTxnMarker::default();
                marker.producer_id = producer.producer_id;
                marker.producer_epoch = epoch;
                marker.coordinator_epoch = producer.coordinator_epoch.unwrap_or(0);
                marker.transaction_result = false;
                marker.topics = vec![topic];
                message!(WriteTxnMarkersRequest {
                    markers: vec![marker]
                })
            })
            .await?;
        let written = answer
            .markers
            .iter()
            .flat_map(|marker| &marker.topics)
            .flat_map(|topic| &topic.partitions)
            .next()
            .ok_or_else(|| Error::Malformed {
                what: "WriteTxnMarkers answer",
                address: connection.address().to_owned(),
                detail: format!("{partition} is missing from it"),
            })?;
        check(written.error_code, None, || {
            format!(
                "aborting the transaction of producer {} in {partition}",
                producer.producer_id
            )
        })
    }

    /// Fences whoever has the transactional id, and has its coordinator abort what is open.
    pub async fn fence_producers(&self, transactional_id: &str) -> Result<()> {
        let timeout = wire_ms(self.cluster.config().transaction_timeout);
        Coordinator::of_transactions(&self.cluster, transactional_id)
            .insist(async |coordinator| {
                let answer: InitProducerIdResponse = coordinator
                    .call_up_to(NEWEST_INIT_PRODUCER_ID, |_| {
                        message!(InitProducerIdRequest {
                            transactional_id: Some(transactional_id.into()),
                            transaction_timeout_ms: timeout
                        })
                    })
                    .await?;
                check(answer.error_code, None, || {
                    format!("fencing the producers of transactional.id {transactional_id}")
                })
            })
            .await
    }

    async fn by_leader(
        &self,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<BrokerId, Vec<TopicPartition>>> {
        let topics: BTreeSet<_> = partitions.iter().map(|one| one.topic.clone()).collect();
        for topic in &topics {
            self.cluster.topic(topic, false).await?;
        }
        let metadata = self.cluster.metadata();
        let mut leaders: BTreeMap<BrokerId, Vec<TopicPartition>> = BTreeMap::new();
        for partition in partitions {
            let index = partition.partition.value();
            let topic = metadata.topic(&partition.topic);
            topic.map_or(Ok(()), |topic| topic.existing(index).map(drop))?;
            let leader = metadata.leader(&partition.topic, index).ok_or_else(|| {
                Error::broker(
                    format!("asking the leader of {partition}"),
                    yuxi_protocol::error_code::ErrorCode::LeaderNotAvailable,
                    None,
                )
            })?;
            leaders.entry(leader).or_default().push(partition.clone());
        }
        Ok(leaders)
    }
}
