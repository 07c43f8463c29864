//! A broker in this process, and a client that speaks frames to it over a real socket.

use bytes::{BufMut, Bytes, BytesMut};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use yuxi_broker::{Broker, StartError};
use yuxi_controller::settings::ServerSettings;
use yuxi_log::LogDirError;
use yuxi_protocol::{
    codec::{ApiVersion, StrBytes, Uuid},
    frame,
    ids::{ProducerEpoch, ProducerId},
    message,
    messages::{
        CreateTopicsRequest, DeleteTopicsRequest, FetchRequest, FetchResponse, KafkaRequest,
        KafkaResponse, MetadataRequest, ProduceRequest, ProduceResponse, RequestResponsePair,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        fetch_request::{FetchPartition, FetchTopic},
        metadata_request::MetadataRequestTopic,
        produce_request::{PartitionProduceData, TopicProduceData},
        produce_response::PartitionProduceResponse,
    },
    record::{Record, RecordBatchBuilder, iter::shared_batches},
};

/// Nothing that a test waits for takes longer on the slowest machine.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// Awaits something that must happen.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen within {DEADLINE:?}"))
}

/// Asks again and again until `probe` has something.
pub(crate) async fn wait_for<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

pub(crate) struct Server {
    broker: Broker,
    directory: Arc<TempDir>,
    overrides: Vec<(String, String)>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(overrides: &[(&str, &str)]) -> Self {
        let directory = Arc::new(TempDir::new().expect("a temporary directory"));
        let overrides = owned(overrides);
        Self::start_in(directory, overrides).await
    }

    pub(crate) async fn start_in(
        directory: Arc<TempDir>,
        overrides: Vec<(String, String)>,
    ) -> Self {
        let started = wait_for("the start", async || {
            match soon("the start", start_broker(directory.path(), &overrides)).await {
                Ok(broker) => Some(broker),
                // A thread of the last broker may still be at its last work, or a process
                // that another test is about to start have its files open.
                Err(StartError::Directory(LogDirError::Locked { .. })) => None,
                Err(error) => panic!("the broker does not start: {error}"),
            }
        });
        let broker = Box::pin(started).await;
        Self {
            broker,
            directory,
            overrides,
        }
    }

    /// A broker on a copy of this one's directory as it is now: what a crash leaves of
    /// the processes' writes.
    pub(crate) async fn start_after_crash(&self) -> Self {
        let copy = Arc::new(TempDir::new().expect("a temporary directory"));
        copy_directory(self.directory(), copy.path());
        Self::start_in(copy, self.overrides.clone()).await
    }

    pub(crate) async fn restart(self) -> Self {
        self.shutdown_and(async {}).await
    }

    pub(crate) async fn shutdown(self) {
        soon("the shutdown", self.broker.shutdown())
            .await
            .expect("a clean shutdown");
    }

    /// Stops the broker; the directory stays.
    pub(crate) async fn shutdown_to_directory(self) -> Arc<TempDir> {
        let directory = Arc::clone(&self.directory);
        self.shutdown().await;
        directory
    }

    /// Drops the broker without a shutdown; the directory stays.
    pub(crate) fn kill(self) -> Arc<TempDir> {
        self.directory
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn broker(&self) -> &Broker {
        &self.broker
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.broker).await
    }

    /// Stops the broker, does something to its directory, and starts it again.
    pub(crate) async fn shutdown_and(self, between: impl Future<Output = ()>) -> Self {
        let (directory, overrides) = (Arc::clone(&self.directory), self.overrides.clone());
        self.shutdown().await;
        between.await;
        Self::start_in(directory, overrides).await
    }
}

pub(crate) fn owned(overrides: &[(&str, &str)]) -> Vec<(String, String)> {
    overrides
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A broker on `directory`, with few internal partitions and no delays.
pub(crate) async fn start_broker(
    directory: &Path,
    overrides: &[(String, String)],
) -> Result<Broker, StartError> {
    let text = format!(
        "node.id=1\nlisteners=PLAINTEXT://127.0.0.1:0\nlog.dirs={}\n\
         offsets.topic.num.partitions=3\ngroup.initial.rebalance.delay.ms=0\n",
        directory.display()
    );
    let settings = ServerSettings::from_properties(&text, overrides).expect("valid settings");
    Broker::start(settings).await
}

pub(crate) fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    let mut entries: Vec<PathBuf> = std::fs::read_dir(from)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_directory(&path, &target);
        } else if let Err(error) = std::fs::copy(&path, &target) {
            // A temporary file may have been renamed meanwhile.
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::NotFound,
                "{}",
                path.display()
            );
        }
    }
}

/// One connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    last_id: i32,
}

impl Client {
    pub(crate) async fn connect(broker: &Broker) -> Self {
        let stream = TcpStream::connect(broker.address())
            .await
            .expect("the broker accepts");
        stream.set_nodelay(true).expect("a socket option");
        Self { stream, last_id: 0 }
    }

    pub(crate) async fn send<R: KafkaRequest>(&mut self, version: i16, request: &R) -> i32 {
        let (id, frame) = self.encode(version, request);
        self.write(&frame).await;
        id
    }

    /// A request as a frame, to be written with others at once.
    pub(crate) fn encode<R: KafkaRequest>(&mut self, version: i16, request: &R) -> (i32, Bytes) {
        self.last_id += 1;
        (self.last_id, request_frame(self.last_id, version, request))
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        soon("a write", self.stream.write_all(bytes))
            .await
            .expect("the broker reads");
    }

    /// The next frame without its length; `None` if the broker closed the connection.
    pub(crate) async fn frame(&mut self) -> Option<Bytes> {
        soon("an answer", self.frame_whenever()).await
    }

    async fn frame_whenever(&mut self) -> Option<Bytes> {
        let length = self.stream.read_i32().await.ok()?;
        let mut body = vec![0; usize::try_from(length).expect("a length")];
        self.stream
            .read_exact(&mut body)
            .await
            .expect("a whole frame");
        Some(body.into())
    }

    /// The answer to the request with this id, which must be the next.
    pub(crate) async fn receive<R: KafkaResponse>(&mut self, id: i32, version: i16) -> R {
        let frame = self.frame().await.unwrap_or_else(|| {
            panic!(
                "the connection was closed instead of {} version {version}",
                R::NAME
            )
        });
        frame::decode_response(frame, id, version, frame::response_limits(1 << 30))
            .unwrap_or_else(|error| panic!("{} version {version}: {error}", R::NAME))
    }

    pub(crate) async fn ask<R: RequestResponsePair>(
        &mut self,
        version: i16,
        request: &R,
    ) -> R::Response {
        let id = self.send(version, request).await;
        self.receive(id, version).await
    }

    /// Whether an answer is there within `time`; it stays unread.
    pub(crate) async fn is_answered_within(&mut self, time: Duration) -> bool {
        let mut byte = [0];
        tokio::time::timeout(time, self.stream.peek(&mut byte))
            .await
            .is_ok()
    }

    /// The broker must end this connection without another answer.
    pub(crate) async fn expect_closed(&mut self, why: &str) {
        let mut rest = Vec::new();
        let read = soon(why, self.stream.read_to_end(&mut rest)).await;
        assert!(
            read.is_err() || rest.is_empty(),
            "{why}: the broker answered with {} bytes",
            rest.len()
        );
    }

    pub(crate) async fn create_topic(
        &mut self,
        name: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> Uuid {
        let configs = configs
            .iter()
            .map(|&(name, value)| {
                message!(CreatableTopicConfig {
                    name: name.into(),
                    value: Some(value.into()),
                })
            })
            .collect();
        let answer = self
            .ask(
                7,
                &message!(CreateTopicsRequest {
                    topics: vec![message!(CreatableTopic {
                        name: name.into(),
                        num_partitions: partitions,
                        replication_factor: 1,
                        configs,
                    })],
                    timeout_ms: 10_000,
                }),
            )
            .await;
        let topic = &answer.topics[0];
        assert_eq!(topic.error_code, 0, "{name}: {:?}", topic.error_message);
        topic.topic_id
    }

    pub(crate) async fn delete_topic(&mut self, name: &str) {
        let request = message!(DeleteTopicsRequest {
            topic_names: vec![name.into()],
            timeout_ms: 10_000,
        });
        let answer = self.ask(5, &request).await;
        let deleted = &answer.responses[0];
        assert_eq!(deleted.error_code, 0, "{name}: {:?}", deleted.error_message);
    }

    pub(crate) async fn topic_id(&mut self, name: &str) -> Uuid {
        let request = message!(MetadataRequest {
            topics: Some(vec![message!(MetadataRequestTopic {
                name: Some(name.into()),
            })]),
            allow_auto_topic_creation: false,
        });
        self.ask(12, &request).await.topics[0].topic_id
    }

    /// Produces one batch to partition 0 with acks=all.
    pub(crate) async fn produce(&mut self, topic: &str, batch: Bytes) -> PartitionProduceResponse {
        let answer = self.ask(9, &produce_request(topic, 0, -1, batch)).await;
        only_partition(answer)
    }

    /// Fetches partition 0 from `offset`, without waiting.
    pub(crate) async fn fetch(&mut self, topic: &str, offset: i64) -> FetchResponse {
        self.ask(11, &fetch_request(topic, 0, offset, 0, 1)).await
    }

    /// All values in partition 0 from `offset` on.
    pub(crate) async fn values(&mut self, topic: &str, mut offset: i64) -> Vec<String> {
        let mut values = Vec::new();
        loop {
            let answer = self.fetch(topic, offset).await;
            let partition = &answer.responses[0].partitions[0];
            assert_eq!(partition.error_code, 0, "{topic} at {offset}");
            let found = records(partition.records.as_ref());
            let Some(last) = found.last() else {
                return values;
            };
            let from = offset;
            offset = last.offset.value() + 1;
            values.extend(
                found
                    .iter()
                    .filter(|record| record.offset.value() >= from)
                    .map(value_of),
            );
        }
    }
}

pub(crate) fn request_frame<R: KafkaRequest>(id: i32, version: i16, request: &R) -> Bytes {
    let api_version = ApiVersion::new(version);
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    frame.put_i16(R::API_KEY.value());
    frame.put_i16(version);
    frame.put_i32(id);
    frame.put_i16(4);
    frame.put_slice(b"test");
    if R::is_flexible(api_version) {
        frame.put_u8(0);
    }
    request
        .encode_into(&mut frame, api_version)
        .unwrap_or_else(|error| panic!("{} version {version}: {error}", R::NAME));
    let length = (frame.len() - 4) as i32;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame.freeze()
}

pub(crate) fn value_of(record: &Record) -> String {
    let value = record.value.as_deref().unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

pub(crate) fn records(bytes: Option<&Bytes>) -> Vec<Record> {
    let Some(bytes) = bytes else {
        return Vec::new();
    };
    shared_batches(bytes.clone())
        .flat_map(|batch| {
            batch
                .expect("a whole batch")
                .records(1 << 26)
                .collect::<Vec<_>>()
        })
        .map(|record| record.expect("a record"))
        .collect()
}

pub(crate) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    i64::try_from(since.as_millis()).expect("before the year 292 million")
}

/// A batch of these values, made now.
pub(crate) fn batch(values: &[&str]) -> Bytes {
    batch_with(RecordBatchBuilder::new(), now_ms(), values)
}

pub(crate) fn batch_with(
    mut builder: RecordBatchBuilder,
    timestamp: i64,
    values: &[&str],
) -> Bytes {
    for value in values {
        builder
            .append(timestamp, None, Some(value.as_bytes()), &[])
            .expect("a record");
    }
    builder.build().expect("a batch")
}

/// An idempotent producer's batch.
pub(crate) fn sequenced(producer: i64, epoch: i16, sequence: i32, values: &[&str]) -> Bytes {
    let builder = RecordBatchBuilder::new().producer(
        ProducerId::new(producer),
        ProducerEpoch::new(epoch),
        sequence,
    );
    batch_with(builder, now_ms(), values)
}

pub(crate) fn produce_request(
    topic: &str,
    partition: i32,
    acks: i16,
    batch: Bytes,
) -> ProduceRequest {
    message!(ProduceRequest {
        acks,
        timeout_ms: 10_000,
        topic_data: vec![message!(TopicProduceData {
            name: topic.into(),
            partition_data: vec![message!(PartitionProduceData {
                index: partition,
                records: Some(batch),
            })],
        })],
    })
}

pub(crate) fn only_partition(answer: ProduceResponse) -> PartitionProduceResponse {
    let mut topics = answer.responses;
    assert_eq!(topics.len(), 1);
    let mut partitions = topics.remove(0).partition_responses;
    assert_eq!(partitions.len(), 1);
    partitions.remove(0)
}

/// A fetch without a session, by name: for versions up to 12.
pub(crate) fn fetch_request(
    topic: &str,
    partition: i32,
    offset: i64,
    max_wait_ms: i32,
    min_bytes: i32,
) -> FetchRequest {
    message!(FetchRequest {
        max_wait_ms,
        min_bytes,
        max_bytes: 1 << 26,
        session_epoch: -1,
        topics: vec![message!(FetchTopic {
            topic: StrBytes::from(topic),
            partitions: vec![fetch_partition(partition, offset)],
        })],
    })
}

pub(crate) fn fetch_partition(partition: i32, offset: i64) -> FetchPartition {
    message!(FetchPartition {
        partition,
        fetch_offset: offset,
        partition_max_bytes: 1 << 26,
    })
}
