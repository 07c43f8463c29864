//! Fetch requests and what their answers mean for the cursors.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::{BrokerId, TopicId, TopicPartition};
use yuxi_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use yuxi_protocol::messages::fetch_response::PartitionData;
use yuxi_protocol::messages::{FetchRequest, FetchResponse};

use super::cursor::{Cursor, Position};
use super::{Consumer, Event};
use crate::cluster::{Cluster, wire_ms};
use crate::config::ClientConfig;
use crate::error::{Error, Result, check, error_code};
use crate::metadata::ClusterMetadata;

/// So much of one partition is fetched ahead of what is handed out…
const PARTITION_AHEAD_BYTES: usize = 8 << 20;
/// …and so much of all together.
const TOTAL_AHEAD_BYTES: usize = 64 << 20;
/// A fetch that leaves partitions out, because enough of them is buffered, waits no
/// longer than this, so that they are not kept from being fetched again.
const SHORT_WAIT: Duration = Duration::from_millis(50);
/// Newer versions name topics by id.
const NEWEST_FETCH_BY_NAME: i16 = 12;

/// One partition in a fetch request: what was asked for.
#[derive(Clone, Debug)]
struct Asked {
    partition: TopicPartition,
    offset: i64,
    leader_epoch: i32,
    generation: u64,
}

/// A fetch that has been answered, or has failed.
pub(super) struct Fetched {
    broker: BrokerId,
    asked: Vec<Asked>,
    result: Result<HashMap<TopicPartition, PartitionData>>,
}

impl Consumer {
    /// Sends a fetch to every broker that leads partitions which want one.
    pub(super) fn start_fetches(&mut self) {
        let buffered: usize = self
            .cursors
            .values()
            .map(|cursor| cursor.buffered_bytes)
            .sum();
        if buffered >= TOTAL_AHEAD_BYTES {
            return;
        }
        let now = Instant::now();
        let metadata = self.cluster.metadata();
        let mut requests: BTreeMap<BrokerId, (Vec<Asked>, bool)> = BTreeMap::new();
        for (partition, cursor) in &mut self.cursors {
            let Position::At(_) = cursor.position else {
                continue;
            };
            let waits = cursor.not_before.is_some_and(|at| now < at);
            if cursor.paused || cursor.asked || waits {
                continue;
            }
            let index = partition.partition.value();
            let Some(leader) = metadata.leader(&partition.topic, index) else {
                self.refresh_wanted = true;
                continue;
            };
            if self.fetching.contains(&leader) {
                continue;
            }
            let (asked, left_out) = requests.entry(leader).or_default();
            if cursor.buffered_bytes >= PARTITION_AHEAD_BYTES {
                *left_out = true;
                continue;
            }
            asked.push(Asked {
                partition: partition.clone(),
                offset: cursor.fetch_from,
                leader_epoch: metadata
                    .partition(&partition.topic, index)
                    .map_or(-1, |known| known.leader_epoch.value()),
                generation: cursor.generation,
            });
        }
        for (broker, (asked, left_out)) in requests {
            if asked.is_empty() {
                continue;
            }
            for one in &asked {
                if let Some(cursor) = self.cursors.get_mut(&one.partition) {
                    cursor.asked = true;
                }
            }
            self.fetching.insert(broker);
            let max_wait = if left_out {
                self.config.fetch_max_wait.min(SHORT_WAIT)
            } else {
                self.config.fetch_max_wait
            };
            let cluster = self.cluster.clone();
            let metadata = metadata.clone();
            self.events.push(Box::pin(async move {
                let result = fetch(&cluster, &metadata, broker, &asked, max_wait).await;
                Event::Fetched(Fetched {
                    broker,
                    asked,
                    result,
                })
            }));
        }
    }

    pub(super) fn fetched(&mut self, fetched: Fetched) -> Result<()> {
        self.fetching.remove(&fetched.broker);
        let mut answers = match fetched.result {
            Ok(answers) => answers,
            Err(error) => {
                let not_before = Instant::now() + self.config.retry_backoff;
                for asked in &fetched.asked {
                    if let Some(cursor) = self.cursor_asked(asked) {
                        cursor.asked = false;
                        cursor.not_before = Some(not_before);
                    }
                }
                self.refresh_wanted = true;
                tracing::debug!(broker = %fetched.broker, %error, "fetch failed");
                return if error.is_retriable() {
                    Ok(())
                } else {
                    Err(error)
                };
            }
        };
        let mut outcome = Ok(());
        for asked in fetched.asked {
            let answer = answers.remove(&asked.partition);
            let Some(cursor) = self.cursor_asked(&asked) else {
                continue;
            };
            cursor.asked = false;
            let Some(answer) = answer else { continue };
            let taken = self.take_answer(&asked, answer);
            outcome = outcome.and(taken);
        }
        outcome
    }

    fn take_answer(&mut self, asked: &Asked, answer: PartitionData) -> Result<()> {
        let read_committed = self.config.read_committed;
        let Some(code) = error_code(answer.error_code) else {
            let Some(cursor) = self.cursor_asked(asked) else {
                return Ok(());
            };
            return cursor.accept(answer, read_committed).map(drop);
        };
        let context = format!("reading {} at offset {}", asked.partition, asked.offset);
        let error = Error::broker(context, code, None);
        if code == ErrorCode::OffsetOutOfRange {
            return self.reset(&asked.partition, error);
        }
        let told = self.cluster.learn_leader(
            &asked.partition.topic,
            asked.partition.partition.value(),
            answer.current_leader.leader_id,
            answer.current_leader.leader_epoch,
        );
        tracing::debug!(partition = %asked.partition, %error, "fetch refused");
        if !code.is_retriable() {
            return Err(error);
        }
        if !told {
            self.refresh_wanted = true;
            let not_before = Instant::now() + self.config.retry_backoff;
            if let Some(cursor) = self.cursor_asked(asked) {
                cursor.not_before = Some(not_before);
            }
        }
        Ok(())
    }

    /// The cursor that a request was for, unless it has been moved since.
    fn cursor_asked(&mut self, asked: &Asked) -> Option<&mut Cursor> {
        self.cursors
            .get_mut(&asked.partition)
            .filter(|cursor| cursor.generation == asked.generation)
    }
}

async fn fetch(
    cluster: &Cluster,
    metadata: &ClusterMetadata,
    broker: BrokerId,
    asked: &[Asked],
    max_wait: Duration,
) -> Result<HashMap<TopicPartition, PartitionData>> {
    let config = cluster.config();
    let connection = cluster.broker(broker).await?;
    let mut ids: HashMap<TopicId, Arc<str>> = HashMap::new();
    let mut all_have_ids = true;
    for one in asked {
        let topic = metadata.topic(&one.partition.topic);
        match topic.filter(|topic| !topic.id.is_zero()) {
            Some(topic) => {
                ids.insert(topic.id, topic.name.clone());
            }
            None => all_have_ids = false,
        }
    }
    let cap = if all_have_ids {
        i16::MAX
    } else {
        NEWEST_FETCH_BY_NAME
    };
    let version = connection.version::<FetchRequest>(cap)?;
    let request = request(config, metadata, asked, max_wait);
    let timeout = config.request_timeout + max_wait;
    let answer: FetchResponse = connection
        .start(&request, version, timeout)
        .await?
        .answer()
        .await?;
    check(answer.error_code, None, || {
        format!("fetching from broker {broker}")
    })?;
    let mut parts = HashMap::new();
    for topic in answer.responses {
        let id = TopicId::from(topic.topic_id);
        let name: Arc<str> = match ids.get(&id) {
            Some(name) if !id.is_zero() => name.clone(),
            Some(_) | None => topic.topic.as_str().into(),
        };
        for part in topic.partitions {
            parts.insert(
                TopicPartition::new(name.clone(), part.partition_index),
                part,
            );
        }
    }
    Ok(parts)
}

fn request(
    config: &ClientConfig,
    metadata: &ClusterMetadata,
    asked: &[Asked],
    max_wait: Duration,
) -> FetchRequest {
    let mut request = FetchRequest::default();
    request.max_wait_ms = wire_ms(max_wait);
    request.min_bytes = config.fetch_min_bytes;
    request.max_bytes = config.fetch_max_bytes;
    request.isolation_level = i8::from(config.read_committed);
    for one in asked {
        let mut part = FetchPartition::default();
        part.partition = one.partition.partition.value();
        part.current_leader_epoch = one.leader_epoch;
        part.fetch_offset = one.offset;
        part.partition_max_bytes = config.partition_max_bytes;
        match request
            .topics
            .last_mut()
            .filter(|topic| *topic.topic == *one.partition.topic)
        {
            Some(topic) => topic.partitions.push(part),
            None => {
                let mut topic = FetchTopic::default();
                topic.topic = (&*one.partition.topic).into();
                if let Some(known) = metadata.topic(&one.partition.topic) {
                    topic.topic_id = known.id.into();
                }
                topic.partitions.push(part);
                request.topics.push(topic);
            }
        }
    }
    request
}
