//! Asking leaders for offsets: first, last, and by timestamp.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::{BrokerId, TopicPartition};
use yuxi_protocol::message;
use yuxi_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use yuxi_protocol::messages::{ListOffsetsRequest, ListOffsetsResponse};

use crate::backoff::Backoff;
use crate::cluster::{Cluster, wire_ms};
use crate::error::{Error, Result, error_code};
use crate::metadata::by_topic;

/// A place in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first record that the log still has.
    Earliest,
    /// Behind the last record that a consumer may see.
    Latest,
    /// The record with the largest timestamp.
    MaxTimestamp,
    /// The first record with this timestamp, in milliseconds since the epoch, or a later one.
    At(i64),
}

impl OffsetSpec {
    const fn wire(self) -> i64 {
        match self {
            Self::Latest => -1,
            Self::Earliest => -2,
            Self::MaxTimestamp => -3,
            Self::At(timestamp_ms) => timestamp_ms,
        }
    }
}

/// The oldest version that knows the largest timestamp.
const MAX_TIMESTAMP_VERSION: i16 = 7;

/// What a leader answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    /// The offset; `None` if no record is as late as the timestamp asked for.
    pub offset: Option<i64>,
    /// The record's timestamp, when one was asked for.
    pub timestamp_ms: Option<i64>,
}

/// The offsets of many partitions, each leader asked once; what fails for a
/// passing reason is asked again until `request.timeout.ms` is over.
pub async fn list_offsets(
    cluster: &Cluster,
    wanted: &BTreeMap<TopicPartition, OffsetSpec>,
    read_committed: bool,
) -> Result<BTreeMap<TopicPartition, ListedOffset>> {
    let config = cluster.config();
    let deadline = Instant::now() + config.request_timeout;
    let mut backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
    let mut found = BTreeMap::new();
    let mut missing = wanted.clone();
    loop {
        let mut last_error = None;
        let leaders = by_leader(cluster, &missing).await?;
        let asked = leaders
            .iter()
            .map(async |(leader, partitions)| match leader {
                Some(leader) => ask(cluster, *leader, partitions, read_committed).await,
                None => Err(no_leader(partitions)),
            });
        // All at once, so that one leader that is away does not hold up the others.
        for asked in futures_util::future::join_all(asked).await {
            match asked {
                Ok(answers) => {
                    for (partition, answer) in answers {
                        match answer {
                            Ok(offset) => {
                                missing.remove(&partition);
                                found.insert(partition, offset);
                            }
                            Err(error) if error.is_retriable() => last_error = Some(error),
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error) if error.is_retriable() => last_error = Some(error),
                Err(error) => return Err(error),
            }
        }
        let Some(error) = last_error.filter(|_| !missing.is_empty()) else {
            break;
        };
        let pause = backoff.next();
        if Instant::now() + pause >= deadline {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        let topics: Vec<Arc<str>> = missing
            .keys()
            .map(|partition| partition.topic.clone())
            .collect();
        if let Err(error) = cluster.refresh(&topics, false).await
            && !error.is_retriable()
        {
            return Err(error);
        }
    }
    match missing.keys().next() {
        None => Ok(found),
        Some(partition) => Err(Error::Malformed {
            what: "ListOffsets answer",
            address: partition.to_string(),
            detail: "the partition is missing from it".to_owned(),
        }),
    }
}

type Wanted = Vec<(TopicPartition, OffsetSpec)>;

async fn by_leader(
    cluster: &Cluster,
    wanted: &BTreeMap<TopicPartition, OffsetSpec>,
) -> Result<BTreeMap<Option<BrokerId>, Wanted>> {
    let mut groups: BTreeMap<Option<BrokerId>, Wanted> = BTreeMap::new();
    for (partition, spec) in wanted {
        let topic = cluster.topic(&partition.topic, false).await?;
        let index = partition.partition.value();
        topic.existing(index)?;
        let leader = cluster.metadata().leader(&partition.topic, index);
        groups
            .entry(leader)
            .or_default()
            .push((partition.clone(), *spec));
    }
    Ok(groups)
}

async fn ask(
    cluster: &Cluster,
    leader: BrokerId,
    wanted: &Wanted,
    read_committed: bool,
) -> Result<Vec<(TopicPartition, Result<ListedOffset>)>> {
    let connection = cluster.broker(leader).await?;
    let version = connection.version::<ListOffsetsRequest>(i16::MAX)?.value();
    if version < MAX_TIMESTAMP_VERSION
        && wanted
            .iter()
            .any(|(_, spec)| *spec == OffsetSpec::MaxTimestamp)
    {
        return Err(Error::Unsupported {
            address: connection.address().to_owned(),
            api: "ListOffsets by largest timestamp",
            offered: format!("up to {version}"),
            needed: format!("{MAX_TIMESTAMP_VERSION} or later"),
        });
    }
    let metadata = cluster.metadata();
    let call = connection.call(|version| {
        let mut request = ListOffsetsRequest::default();
        request.replica_id = -1;
        if version.value() >= 2 {
            request.isolation_level = i8::from(read_committed);
        }
        request.timeout_ms = wire_ms(cluster.config().request_timeout);
        let parts = wanted.iter().map(|(partition, spec)| {
            let index = partition.partition.value();
            let mut part = ListOffsetsPartition::default();
            part.partition_index = index;
            part.timestamp = spec.wire();
            if let Some(known) = metadata.partition(&partition.topic, index) {
                part.current_leader_epoch = known.leader_epoch.value();
            }
            (&*partition.topic, part)
        });
        request.topics = by_topic(parts)
            .map(|(name, partitions)| {
                message!(ListOffsetsTopic {
                    name: name.into(),
                    partitions
                })
            })
            .collect();
        request
    });
    let answer: ListOffsetsResponse = cluster.attend(&connection, Duration::ZERO, call).await?;
    let mut results = Vec::new();
    for topic in &answer.topics {
        for part in &topic.partitions {
            let partition = TopicPartition::new(topic.name.as_str(), part.partition_index);
            let result = match error_code(part.error_code) {
                None => Ok(ListedOffset {
                    offset: (part.offset >= 0).then_some(part.offset),
                    timestamp_ms: (part.timestamp >= 0).then_some(part.timestamp),
                }),
                Some(code) => Err(Error::broker(format!("offsets of {partition}"), code, None)),
            };
            results.push((partition, result));
        }
    }
    Ok(results)
}

fn no_leader(partitions: &Wanted) -> Error {
    let named = partitions
        .first()
        .map_or_else(String::new, |(partition, _)| partition.to_string());
    Error::broker(
        format!("offsets of {named}"),
        ErrorCode::LeaderNotAvailable,
        None,
    )
}
