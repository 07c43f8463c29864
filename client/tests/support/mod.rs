//! A small cluster in memory, which can be told to misbehave.
//!
//! It keeps one topic's records, checks an idempotent producer's sequence
//! numbers as Kafka does, and before each Produce request looks whether a
//! [`Fault`] is due. The nodes share one state, so that leadership can move; a node
//! may fall silent, or be killed. Each test binary uses its part of it.
#![allow(dead_code)]

pub(crate) mod clients;
mod group;
pub(crate) mod heartbeats;
pub(crate) mod transactions;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::protocol::frame::{RequestHead, encode_response, request_limits};
use yuxi_client::protocol::messages::api_versions_response::{
    ApiVersion as OfferedApi, FinalizedFeatureKey,
};
use yuxi_client::protocol::messages::create_topics_response::CreatableTopicResult;
use yuxi_client::protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult,
};
use yuxi_client::protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use yuxi_client::protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use yuxi_client::protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use yuxi_client::protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use yuxi_client::protocol::messages::produce_response::{
    PartitionProduceResponse, TopicProduceResponse,
};
use yuxi_client::protocol::messages::{
    ApiVersionsResponse, CreateTopicsRequest, CreateTopicsResponse, DescribeConfigsRequest,
    DescribeConfigsResponse, FetchRequest, FetchResponse, KafkaResponse, ListOffsetsRequest,
    ListOffsetsResponse, MetadataResponse, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse, ProduceRequest, ProduceResponse,
};
use yuxi_client::protocol::record::batch::advance_sequence;
use yuxi_client::protocol::record::{BatchHeader, BatchView, batches};

pub(crate) const TOPIC: &str = "t";
const FRAME_LIMIT: usize = 64 << 20;
const BATCHES_REMEMBERED: usize = 5;

/// What a Produce request meets instead of being served.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Nothing unusual.
    None,
    /// The connection breaks before the records are written.
    DropBefore,
    /// The connection breaks after the records are written.
    DropAfter,
    /// Refused with this code.
    Refuse(ErrorCode),
    /// Answered with these bytes as the whole frame, length included.
    Raw(Bytes),
    /// Never answered.
    Silence,
}

/// One partition.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) leader: usize,
    pub(crate) leader_epoch: i32,
    pub(crate) values: Vec<Vec<u8>>,
    bytes: Vec<(i64, Bytes)>,
    /// Where the last append began, if it wrote anything.
    last_appended: Option<usize>,
    producers: HashMap<i64, ProducerState>,
}

#[derive(Default)]
struct ProducerState {
    epoch: i16,
    /// First and last sequence and base offset of the last batches.
    recent: VecDeque<(i32, i32, i64)>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) partitions: Vec<Log>,
    pub(crate) produce_faults: VecDeque<Fault>,
    pub(crate) fetch_faults: VecDeque<Fault>,
    /// Refuses batches of more bytes.
    pub(crate) max_batch_bytes: Option<usize>,
    /// Whether ApiVersions beyond version 0 is unknown.
    pub(crate) old_api_versions: bool,
    pub(crate) api_versions_seen: Vec<i16>,
    pub(crate) produce_requests: usize,
    pub(crate) metadata_requests: usize,
    pub(crate) describe_configs_requests: usize,
    /// Nodes that accept connections and answer nothing, as a stopped process does.
    pub(crate) silent: HashSet<usize>,
    /// Nodes that the cluster knows to be dead.
    pub(crate) unlisted: HashSet<usize>,
    pub(crate) list_offsets_faults: VecDeque<Fault>,
    pub(crate) create_faults: VecDeque<Fault>,
    pub(crate) group: group::Group,
    pub(crate) transactions: transactions::Transactions,
    pub(crate) members: heartbeats::Members,
    /// Whether the topic has an id.
    pub(crate) topic_ids: bool,
    /// Topics besides [`TOPIC`], with a partition each and no records.
    pub(crate) other_topics: Vec<String>,
    ports: Vec<u16>,
    tasks: Vec<AbortHandle>,
    next_producer_id: i64,
}

/// Nodes that share a state.
#[derive(Clone)]
pub(crate) struct FakeCluster {
    state: Arc<Mutex<State>>,
}

impl FakeCluster {
    /// Starts `nodes` nodes on free ports; node 0 leads all `partitions`.
    pub(crate) async fn start(nodes: usize, partitions: usize) -> Self {
        let state = State {
            partitions: (0..partitions).map(|_| Log::default()).collect(),
            ..State::default()
        };
        let cluster = Self {
            state: Arc::new(Mutex::new(state)),
        };
        for node in 0..nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let port = listener.local_addr().expect("bound").port();
            cluster.state().ports.push(port);
            let cluster = cluster.clone();
            let served = cluster.clone();
            let task = tokio::spawn(async move {
                // Dropped with the node, and the connections with it.
                let mut connections = JoinSet::new();
                while let Ok((socket, _)) = listener.accept().await {
                    connections.spawn(serve(socket, node, served.clone()));
                }
            });
            cluster.state().tasks.push(task.abort_handle());
        }
        cluster
    }

    /// Ends a node as `kill -9` does: its connections break, and nobody listens.
    pub(crate) fn kill(&self, node: usize) {
        self.state().tasks[node].abort();
    }

    /// What a controller does when a node is gone: another leads all partitions.
    pub(crate) fn fail_over(&self, from: usize, to: usize) {
        let mut state = self.state();
        state.unlisted.insert(from);
        for log in &mut state.partitions {
            log.leader = to;
            log.leader_epoch += 1;
        }
        state.group.coordinator = to;
    }

    pub(crate) fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.state().ports[node])
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no test panics while it holds the state")
    }

    pub(crate) fn bootstrap(&self) -> String {
        let nodes = self.state().ports.len();
        let addresses: Vec<String> = (0..nodes).map(|node| self.address(node)).collect();
        addresses.join(",")
    }

    /// The values in a partition, as text.
    pub(crate) fn values(&self, partition: usize) -> Vec<String> {
        let text = |value: &Vec<u8>| String::from_utf8_lossy(value).into_owned();
        self.state().partitions[partition]
            .values
            .iter()
            .map(text)
            .collect()
    }
}

async fn serve(mut socket: TcpStream, node: usize, cluster: FakeCluster) {
    loop {
        let mut prefix = [0; 4];
        if socket.read_exact(&mut prefix).await.is_err() {
            return;
        }
        let mut frame = BytesMut::zeroed(u32::from_be_bytes(prefix) as usize);
        if socket.read_exact(&mut frame).await.is_err() {
            return;
        }
        let (head, body) = RequestHead::decode(frame.freeze(), request_limits(FRAME_LIMIT))
            .expect("our client's requests are well-formed");
        match answer(&head, body, node, &cluster) {
            Answer::Frame(frame) => {
                if socket.write_all(&frame).await.is_err() {
                    return;
                }
            }
            Answer::Hold => {}
            Answer::Close => return,
        }
    }
}

enum Answer {
    Frame(Bytes),
    Hold,
    Close,
}

fn answer(head: &RequestHead, body: Bytes, node: usize, cluster: &FakeCluster) -> Answer {
    let mut state = cluster.state();
    if state.silent.contains(&node) {
        return Answer::Hold;
    }
    match head.api_key {
        0 => produce(head, body, node, &mut state),
        1 => fetch(head, body, node, &mut state),
        2 => list_offsets(head, body, &mut state),
        3 => {
            state.metadata_requests += 1;
            frame(head, &metadata(head, &state))
        }
        8..=14 => group::answer(head, body, node, &mut state),
        19 => create_topics(head, body, &mut state),
        18 => api_versions(head, &mut state),
        22 | 24..=28 => transactions::answer(head, body, &mut state),
        68 => heartbeats::answer(head, body, &mut state),
        23 => frame(head, &epoch_ends(head, body, &state)),
        32 => describe_configs(head, body, &mut state),
        other => panic!("the fake broker does not know API {other}"),
    }
}

fn frame<R: KafkaResponse>(head: &RequestHead, answer: &R) -> Answer {
    Answer::Frame(
        encode_response(head.correlation_id, head.api_version, answer).expect("representable"),
    )
}

fn api_versions(head: &RequestHead, state: &mut State) -> Answer {
    state.api_versions_seen.push(head.api_version);
    let mut answer = ApiVersionsResponse::default();
    let newest_metadata = if state.topic_ids { 12 } else { 9 };
    let apis = [
        (0, 12),
        (1, 12),
        (2, 5),
        (3, newest_metadata),
        (18, 3),
        (19, 7),
        (22, 4),
        (23, 4),
        (32, 4),
        heartbeats::api(&state.members),
    ];
    let apis = apis.into_iter().chain(group::APIS);
    for (api_key, max_version) in apis.chain(transactions::APIS) {
        let mut offered = OfferedApi::default();
        offered.api_key = api_key;
        offered.max_version = if api_key == 18 && state.old_api_versions {
            0
        } else {
            max_version
        };
        answer.api_keys.push(offered);
    }
    if let Some(level) = state.transactions.version
        && head.api_version >= 3
    {
        let mut feature = FinalizedFeatureKey::default();
        feature.name = "transaction.version".into();
        feature.max_version_level = level;
        feature.min_version_level = level;
        answer.finalized_features = vec![feature];
        answer.finalized_features_epoch = 1;
    }
    if state.old_api_versions && head.api_version > 0 {
        answer.error_code = ErrorCode::UnsupportedVersion.code();
        let head = RequestHead {
            api_version: 0,
            ..head.clone()
        };
        return frame(&head, &answer);
    }
    frame(head, &answer)
}

/// Each topic's name is the value of its one setting; those not in `other_topics` do not exist.
/// The answer is in an order of its own.
fn describe_configs(head: &RequestHead, body: Bytes, state: &mut State) -> Answer {
    state.describe_configs_requests += 1;
    let request: DescribeConfigsRequest = head
        .decode_body(body, request_limits(FRAME_LIMIT))
        .expect("well-formed");
    let mut answer = DescribeConfigsResponse::default();
    for asked in request.resources.iter().rev() {
        let mut result = DescribeConfigsResult::default();
        result.resource_type = asked.resource_type;
        result.resource_name = asked.resource_name.clone();
        if state
            .other_topics
            .iter()
            .any(|known| **known == *asked.resource_name)
        {
            let mut entry = DescribeConfigsResourceResult::default();
            entry.name = "min.insync.replicas".into();
            entry.value = Some(asked.resource_name.clone());
            result.configs.push(entry);
        } else {
            result.error_code = ErrorCode::UnknownTopicOrPartition.code();
        }
        answer.results.push(result);
    }
    frame(head, &answer)
}

fn metadata(head: &RequestHead, state: &State) -> MetadataResponse {
    let mut answer = MetadataResponse::default();
    for (node, port) in (0..).zip(&state.ports) {
        if state.unlisted.contains(&(node as usize)) {
            continue;
        }
        let mut broker = MetadataResponseBroker::default();
        broker.node_id = node;
        broker.host = "127.0.0.1".into();
        broker.port = i32::from(*port);
        answer.brokers.push(broker);
    }
    let mut topic = MetadataResponseTopic::default();
    topic.name = Some(TOPIC.into());
    if state.topic_ids {
        topic.topic_id = heartbeats::TOPIC_ID.into();
    }
    for (index, log) in (0..).zip(&state.partitions) {
        let mut partition = MetadataResponsePartition::default();
        partition.partition_index = index;
        partition.leader_id = log.leader as i32;
        partition.leader_epoch = if head.api_version >= 7 {
            log.leader_epoch
        } else {
            -1
        };
        topic.partitions.push(partition);
    }
    for name in &state.other_topics {
        let mut other = MetadataResponseTopic::default();
        other.name = Some(name.as_str().into());
        other.is_internal = name.starts_with("__");
        other.partitions = topic.partitions[..1].to_vec();
        answer.topics.push(other);
    }
    answer.topics.push(topic);
    answer
}

/// A fault that is due strikes after the topics were created.
fn create_topics(head: &RequestHead, body: Bytes, state: &mut State) -> Answer {
    let request: CreateTopicsRequest = head
        .decode_body(body, request_limits(FRAME_LIMIT))
        .expect("well-formed");
    let fault = state.create_faults.pop_front().unwrap_or(Fault::None);
    let mut answer = CreateTopicsResponse::default();
    for asked in &request.topics {
        let name = asked.name.to_string();
        let mut topic = CreatableTopicResult::default();
        topic.name = asked.name.clone();
        topic.error_code = if state.other_topics.contains(&name) {
            ErrorCode::TopicAlreadyExists.code()
        } else {
            state.other_topics.push(name);
            0
        };
        if let Fault::Refuse(code) = fault {
            topic.error_code = code.code();
        }
        answer.topics.push(topic);
    }
    match fault {
        Fault::DropAfter => Answer::Close,
        _ => frame(head, &answer),
    }
}

fn produce(head: &RequestHead, body: Bytes, node: usize, state: &mut State) -> Answer {
    state.produce_requests += 1;
    let request: ProduceRequest = head
        .decode_body(body, request_limits(FRAME_LIMIT))
        .expect("well-formed");
    let fault = state.produce_faults.pop_front().unwrap_or(Fault::None);
    match &fault {
        Fault::DropBefore => return Answer::Close,
        Fault::Silence => return Answer::Hold,
        Fault::Raw(bytes) => return Answer::Frame(bytes.clone()),
        Fault::None | Fault::DropAfter | Fault::Refuse(_) => {}
    }
    let max_batch_bytes = state.max_batch_bytes;
    let mut answer = ProduceResponse::default();
    for topic in request.topic_data {
        let mut topic_answer = TopicProduceResponse::default();
        topic_answer.name = topic.name;
        for partition in topic.partition_data {
            let records = partition.records.expect("our client sends records");
            let admitted = match &request.transactional_id {
                Some(id) => state.admit(head.api_version, id, partition.index, &records),
                None => Ok(()),
            };
            let log = &mut state.partitions[partition.index as usize];
            let mut part = PartitionProduceResponse::default();
            part.index = partition.index;
            let appended = match &fault {
                Fault::Refuse(code) => Err(*code),
                _ if log.leader != node => Err(ErrorCode::NotLeaderOrFollower),
                _ if max_batch_bytes.is_some_and(|most| records.len() > most) => {
                    Err(ErrorCode::MessageTooLarge)
                }
                _ => admitted.and_then(|()| log.append(&records)),
            };
            if let (Some(id), Ok(_)) = (&request.transactional_id, &appended) {
                let written = log.take_last_appended();
                state.transactions.wrote(id, partition.index, written);
            }
            match appended {
                Ok(offset) => part.base_offset = offset,
                Err(code) => part.error_code = code.code(),
            }
            if appended == Err(ErrorCode::NotLeaderOrFollower) && head.api_version >= 10 {
                part.current_leader.leader_id = log.leader as i32;
                part.current_leader.leader_epoch = log.leader_epoch;
            }
            topic_answer.partition_responses.push(part);
        }
        answer.responses.push(topic_answer);
    }
    if matches!(fault, Fault::DropAfter) || request.acks == 0 {
        return if request.acks == 0 {
            Answer::Hold
        } else {
            Answer::Close
        };
    }
    frame(head, &answer)
}

impl State {
    /// Whether the batch belongs to a transaction that is open in the partition.
    fn admit(
        &mut self,
        version: i16,
        id: &str,
        partition: i32,
        records: &Bytes,
    ) -> Result<(), ErrorCode> {
        let header = BatchHeader::parse(records).map_err(|_| ErrorCode::CorruptMessage)?;
        assert!(
            header.is_transactional(),
            "a record outside of the transaction"
        );
        let producer = (header.producer_id.value(), header.producer_epoch.value());
        self.transactions.admit(version, id, producer, partition)
    }
}

impl Log {
    /// The values that the last append wrote; none if it was a repetition.
    fn take_last_appended(&mut self) -> Vec<String> {
        let written = std::mem::take(&mut self.last_appended);
        let values = written.map_or(&[][..], |from| &self.values[from..]);
        let text = |value: &Vec<u8>| String::from_utf8_lossy(value).into_owned();
        values.iter().map(text).collect()
    }

    /// Appends a batch as a leader does, with the checks of an idempotent producer.
    pub(crate) fn append(&mut self, records: &Bytes) -> Result<i64, ErrorCode> {
        let view = BatchView::parse(records).map_err(|_| ErrorCode::CorruptMessage)?;
        view.check_crc().map_err(|_| ErrorCode::CorruptMessage)?;
        assert_eq!(
            view.bytes().len(),
            records.len(),
            "one batch a partition and request"
        );
        let header = *view.header();
        let offset = self.values.len() as i64;
        self.last_appended = None;
        if header.has_producer_id()
            && let Some(written) = self.check_sequence(&header, offset)?
        {
            return Ok(written);
        }
        for record in view.records(FRAME_LIMIT) {
            let record = record.map_err(|_| ErrorCode::InvalidRecord)?;
            self.values.push(record.value.unwrap_or_default().to_vec());
        }
        self.last_appended = Some(offset as usize);
        let mut stored = BytesMut::from(view.bytes());
        stored[..8].copy_from_slice(&offset.to_be_bytes());
        stored[12..16].copy_from_slice(&self.leader_epoch.to_be_bytes());
        self.bytes.push((offset, stored.freeze()));
        Ok(offset)
    }

    /// The offset under which a repeated batch was written before, `None` for a new one.
    fn check_sequence(
        &mut self,
        header: &BatchHeader,
        offset: i64,
    ) -> Result<Option<i64>, ErrorCode> {
        let epoch = header.producer_epoch.value();
        let producer = self
            .producers
            .entry(header.producer_id.value())
            .or_default();
        let (first, last) = (header.base_sequence, header.last_sequence());
        if epoch < producer.epoch {
            return Err(ErrorCode::InvalidProducerEpoch);
        }
        if epoch > producer.epoch {
            *producer = ProducerState {
                epoch,
                ..ProducerState::default()
            };
        }
        let repeated = producer
            .recent
            .iter()
            .find(|seen| (seen.0, seen.1) == (first, last));
        if let Some((_, _, written)) = repeated {
            return Ok(Some(*written));
        }
        let expected = producer
            .recent
            .back()
            .map_or(0, |(_, last, _)| advance_sequence(*last, 1));
        if first != expected {
            return Err(ErrorCode::OutOfOrderSequenceNumber);
        }
        producer.recent.push_back((first, last, offset));
        if producer.recent.len() > BATCHES_REMEMBERED {
            producer.recent.pop_front();
        }
        Ok(None)
    }

    /// Loses the records from `offset` on, as after an unclean election.
    pub(crate) fn truncate(&mut self, offset: i64) {
        self.values.truncate(offset as usize);
        self.bytes.retain(|(base, _)| *base < offset);
    }

    /// The newest epoch up to `epoch` that has records, and the offset behind its last.
    fn epoch_end(&self, epoch: i32) -> Option<(i32, i64)> {
        let header = |bytes: &Bytes| BatchHeader::parse(bytes).expect("stored whole");
        let mut batches = self.bytes.iter().map(|(_, bytes)| header(bytes));
        batches
            .rfind(|header| header.partition_leader_epoch.value() <= epoch)
            .map(|header| {
                let newest = header.partition_leader_epoch.value();
                (newest, header.next_offset().value())
            })
    }

    /// Loses everything that is known of producers, as after an unclean election.
    pub(crate) fn forget_producers(&mut self) {
        self.producers.clear();
    }
}

fn epoch_ends(head: &RequestHead, body: Bytes, state: &State) -> OffsetForLeaderEpochResponse {
    let request: OffsetForLeaderEpochRequest = head
        .decode_body(body, request_limits(FRAME_LIMIT))
        .expect("well-formed");
    let mut answer = OffsetForLeaderEpochResponse::default();
    for topic in request.topics {
        let mut topic_answer = OffsetForLeaderTopicResult::default();
        topic_answer.topic = topic.topic;
        for partition in topic.partitions {
            let log = &state.partitions[partition.partition as usize];
            let mut part = EpochEndOffset::default();
            part.partition = partition.partition;
            let (epoch, end) = log.epoch_end(partition.leader_epoch).unwrap_or((-1, -1));
            part.leader_epoch = epoch;
            part.end_offset = end;
            topic_answer.partitions.push(part);
        }
        answer.topics.push(topic_answer);
    }
    answer
}

fn list_offsets(head: &RequestHead, body: Bytes, state: &mut State) -> Answer {
    let request: ListOffsetsRequest = head
        .decode_body(body, request_limits(FRAME_LIMIT))
        .expect("well-formed");
    let fault = state.list_offsets_faults.pop_front();
    let mut answer = ListOffsetsResponse::default();
    for topic in request.topics {
        let mut topic_answer = ListOffsetsTopicResponse::default();
        topic_answer.name = topic.name;
        for partition in topic.partitions {
            let end = state.partitions[partition.partition_index as usize]
                .values
                .len() as i64;
            let mut part = ListOffsetsPartitionResponse::default();
            part.partition_index = partition.partition_index;
            part.offset = if partition.timestamp == -1 { end } else { 0 };
            if let Some(Fault::Refuse(code)) = &fault {
                part.error_code = code.code();
                part.offset = -1;
            }
            topic_answer.partitions.push(part);
        }
        answer.topics.push(topic_answer);
    }
    frame(head, &answer)
}

fn fetch(head: &RequestHead, body: Bytes, node: usize, state: &mut State) -> Answer {
    let request: FetchRequest = head
        .decode_body(body, request_limits(FRAME_LIMIT))
        .expect("well-formed");
    let fault = state.fetch_faults.pop_front().unwrap_or(Fault::None);
    match &fault {
        Fault::DropBefore | Fault::DropAfter => return Answer::Close,
        Fault::Silence => return Answer::Hold,
        Fault::Raw(bytes) => return Answer::Frame(bytes.clone()),
        Fault::None | Fault::Refuse(_) => {}
    }
    let mut answer = FetchResponse::default();
    for topic in request.topics {
        let mut topic_answer = FetchableTopicResponse::default();
        topic_answer.topic = topic.topic;
        for partition in topic.partitions {
            let log = &state.partitions[partition.partition as usize];
            let mut part = PartitionData::default();
            part.partition_index = partition.partition;
            part.high_watermark = log.values.len() as i64;
            part.last_stable_offset = part.high_watermark;
            part.records = Some(Bytes::new());
            if let Fault::Refuse(code) = &fault {
                part.error_code = code.code();
            } else if log.leader != node {
                part.error_code = ErrorCode::NotLeaderOrFollower.code();
            } else if partition.current_leader_epoch != log.leader_epoch {
                part.error_code = if partition.current_leader_epoch < log.leader_epoch {
                    ErrorCode::FencedLeaderEpoch.code()
                } else {
                    ErrorCode::UnknownLeaderEpoch.code()
                };
            } else if partition.fetch_offset > part.high_watermark {
                part.error_code = ErrorCode::OffsetOutOfRange.code();
            } else {
                let wanted = |(_, bytes): &&(i64, Bytes)| {
                    let header = BatchHeader::parse(bytes).expect("stored whole");
                    header.next_offset().value() > partition.fetch_offset
                };
                if let Some((_, bytes)) = log.bytes.iter().find(wanted) {
                    part.records = Some(bytes.clone());
                }
            }
            topic_answer.partitions.push(part);
        }
        answer.responses.push(topic_answer);
    }
    frame(head, &answer)
}

/// How many batches a partition's log consists of.
pub(crate) fn batch_count(log: &Log) -> usize {
    log.bytes
        .iter()
        .flat_map(|(_, bytes)| batches(bytes))
        .count()
}

/// A frame that declares `length` bytes and has these.
pub(crate) fn raw_frame(length: i32, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::from(&length.to_be_bytes()[..]);
    frame.extend_from_slice(body);
    frame.freeze()
}
