//! Fetch requests and what their answers mean for the cursors.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::{BrokerId, TopicId, TopicPartition};
use yuxi_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use yuxi_protocol::messages::fetch_response::{NodeEndpoint, PartitionData};
use yuxi_protocol::messages::{FetchRequest, FetchResponse};

use super::cursor::{Cursor, Position};
use super::{Consumer, Event};
use crate::cluster::{Cluster, wire_ms};
use crate::config::ClientConfig;
use crate::error::{Error, Result, check, error_code};
use crate::metadata::{Broker, ClusterMetadata, by_topic};

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
pub(super) struct Asked {
    pub(super) partition: TopicPartition,
    pub(super) offset: i64,
    /// The epoch of the leader that is asked; -1 if it is too old to tell.
    pub(super) leader_epoch: i32,
    /// The epoch of the record before `offset`; -1 if unknown.
    pub(super) read_epoch: i32,
    pub(super) generation: u64,
}

/// A fetch that has been answered, or has failed.
pub(super) struct Fetched {
    broker: BrokerId,
    asked: Vec<Asked>,
    result: Result<Answer>,
}

/// The partitions of an answer, and where the leaders are that it names (KIP-951).
type Answer = (HashMap<TopicPartition, PartitionData>, Vec<Broker>);

impl Consumer {
    /// Sends a fetch to every broker that leads partitions which want one, and has the
    /// positions checked that were read under another leader.
    pub(super) fn start_fetches(&mut self) {
        let buffered: usize = self
            .cursors
            .values()
            .map(|cursor| cursor.buffered_bytes)
            .sum();
        let now = Instant::now();
        let metadata = self.cluster.metadata();
        let mut requests: BTreeMap<BrokerId, (Vec<Asked>, bool)> = BTreeMap::new();
        let mut unchecked: BTreeMap<BrokerId, Vec<Asked>> = BTreeMap::new();
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
            let leader_epoch = metadata
                .partition(&partition.topic, index)
                .map_or(-1, |known| known.leader_epoch.value());
            let one = Asked {
                partition: partition.clone(),
                offset: cursor.fetch_from,
                leader_epoch,
                read_epoch: cursor.fetch_epoch,
                generation: cursor.generation,
            };
            cursor.asked_of = Some((leader, leader_epoch));
            if cursor.fetch_epoch < 0 {
                // Nothing was read that could have been cut off.
                cursor.valid_under = leader_epoch;
            } else if leader_epoch > cursor.valid_under {
                unchecked.entry(leader).or_default().push(one);
                continue;
            }
            if buffered >= TOTAL_AHEAD_BYTES || self.fetching.contains(&leader) {
                continue;
            }
            let (asked, left_out) = requests.entry(leader).or_default();
            if cursor.buffered_bytes >= PARTITION_AHEAD_BYTES {
                *left_out = true;
                continue;
            }
            asked.push(one);
        }
        self.start_validations(unchecked);
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
        let (mut answers, endpoints) = match fetched.result {
            Ok(answer) => answer,
            Err(error) => return self.not_answered(fetched.broker, &fetched.asked, error),
        };
        let mut outcome = Ok(());
        for asked in fetched.asked {
            let answer = answers.remove(&asked.partition);
            let Some(cursor) = self.cursor_asked(&asked) else {
                continue;
            };
            cursor.asked = false;
            let Some(answer) = answer else { continue };
            let taken = self.take_answer(&asked, answer, &endpoints);
            outcome = outcome.and(taken);
        }
        outcome
    }

    /// A request failed as a whole: its partitions are asked for again, when the leaders
    /// have been looked up.
    pub(super) fn not_answered(
        &mut self,
        broker: BrokerId,
        asked: &[Asked],
        error: Error,
    ) -> Result<()> {
        tracing::debug!(%broker, %error, "no answer from the leader");
        for one in asked {
            if let Some(cursor) = self.cursor_asked(one) {
                cursor.asked = false;
            }
            self.put_off(one);
        }
        if error.is_retriable() {
            Ok(())
        } else {
            Err(error)
        }
    }

    /// Asks again after `retry.backoff.ms`, or when another leader is known.
    pub(super) fn put_off(&mut self, asked: &Asked) {
        self.refresh_wanted = true;
        let not_before = Instant::now() + self.config.retry_backoff;
        if let Some(cursor) = self.cursor_asked(asked) {
            cursor.not_before = Some(not_before);
        }
    }

    fn take_answer(
        &mut self,
        asked: &Asked,
        answer: PartitionData,
        endpoints: &[Broker],
    ) -> Result<()> {
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
        let leader = &answer.current_leader;
        let told = self.cluster.learn_leader(
            (&asked.partition.topic, asked.partition.partition.value()),
            (leader.leader_id, leader.leader_epoch),
            endpoints,
        );
        tracing::debug!(partition = %asked.partition, %error, "fetch refused");
        if !code.is_retriable() {
            return Err(error);
        }
        if !told {
            self.put_off(asked);
        }
        Ok(())
    }

    /// The cursor that a request was for, unless it has been moved since.
    pub(super) fn cursor_asked(&mut self, asked: &Asked) -> Option<&mut Cursor> {
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
) -> Result<Answer> {
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
    let reply = connection.start(&request, version, timeout).await?;
    let answer: FetchResponse = cluster
        .attend(&connection, max_wait, reply.answer())
        .await?;
    check(answer.error_code, None, || {
        format!("fetching from broker {broker}")
    })?;
    let endpoint = |endpoint: &NodeEndpoint| Broker {
        id: BrokerId::new(endpoint.node_id),
        host: endpoint.host.to_string(),
        port: endpoint.port,
        rack: endpoint.rack.as_ref().map(ToString::to_string),
    };
    let endpoints = answer.node_endpoints.iter().map(endpoint).collect();
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
    Ok((parts, endpoints))
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
    let parts = asked.iter().map(|one| {
        let mut part = FetchPartition::default();
        part.partition = one.partition.partition.value();
        part.current_leader_epoch = one.leader_epoch;
        part.fetch_offset = one.offset;
        part.partition_max_bytes = config.partition_max_bytes;
        (&*one.partition.topic, part)
    });
    request.topics = by_topic(parts)
        .map(|(name, partitions)| {
            let mut topic = FetchTopic::default();
            topic.topic = name.into();
            if let Some(known) = metadata.topic(name) {
                topic.topic_id = known.id.into();
            }
            topic.partitions = partitions;
            topic
        })
        .collect();
    request
}
