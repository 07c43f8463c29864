//! The Fetch answer, encoded by hand so that records are never copied into it. A test
//! holds it against the generic codec in every version.

use super::{
    super::{Context, Unanswerable},
    Isolation,
    session::Wanted,
};
use crate::{
    net::answer::{Answer, Chunk},
    node::Endpoint,
    partition::{Divergence, Offsets, ReadAnswer},
};
use bytes::{BufMut, BytesMut};
use std::sync::Arc;
use yuxi_log::{AbortedTransaction, FileSlice};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{BrokerId, LeaderEpoch, Offset},
    message,
    messages::FetchResponse,
};

/// Lengths and counts are varints and structures end in tagged fields from here on.
const FLEXIBLE_FROM: i16 = 12;
const TOPIC_IDS_FROM: i16 = super::TOPIC_IDS_FROM;
const SESSIONS_FROM: i16 = 7;
const LOG_START_FROM: i16 = 5;
const PREFERRED_REPLICA_FROM: i16 = 11;
const UNKNOWN: Offset = Offset::new(-1);

/// One partition's part of the answer.
#[derive(Debug)]
pub(super) struct FetchedPartition {
    partition: i32,
    pub(super) error: ErrorCode,
    /// The topic's name, if the partition is here.
    pub(super) topic: Option<Arc<str>>,
    pub(super) high_watermark: Offset,
    pub(super) last_stable_offset: Offset,
    pub(super) log_start_offset: Offset,
    /// Told to readers of committed records.
    aborted: Option<Vec<AbortedTransaction>>,
    pub(super) current_leader: Option<(BrokerId, LeaderEpoch)>,
    /// Whom to read from instead (KIP-392).
    preferred_replica: Option<BrokerId>,
    /// A follower must hear of the log's start without waiting.
    must_tell_log_start: bool,
    divergence: Option<Divergence>,
    records: Option<FileSlice>,
    /// Waiting adds nothing to these records.
    pub(super) cannot_grow: bool,
}

impl FetchedPartition {
    pub(super) fn error(partition: i32, error: ErrorCode) -> Self {
        Self {
            partition,
            error,
            topic: None,
            high_watermark: UNKNOWN,
            last_stable_offset: UNKNOWN,
            log_start_offset: UNKNOWN,
            aborted: None,
            current_leader: None,
            preferred_replica: None,
            must_tell_log_start: false,
            divergence: None,
            records: None,
            cannot_grow: false,
        }
    }

    pub(super) fn read(partition: i32, answer: ReadAnswer, isolation: Isolation) -> Self {
        Self {
            partition,
            error: ErrorCode::None,
            topic: None,
            high_watermark: answer.high_watermark,
            last_stable_offset: answer.last_stable_offset,
            log_start_offset: answer.log_start_offset,
            aborted: (isolation == Isolation::Committed).then_some(answer.aborted),
            current_leader: None,
            preferred_replica: None,
            must_tell_log_start: answer.must_tell_log_start,
            divergence: answer.divergence,
            records: answer.records,
            cannot_grow: answer.cannot_grow,
        }
    }

    /// The reader is sent to another replica.
    pub(super) fn elsewhere(partition: i32, offsets: Offsets, replica: BrokerId) -> Self {
        Self {
            high_watermark: offsets.high_watermark,
            last_stable_offset: offsets.last_stable,
            log_start_offset: offsets.log_start,
            preferred_replica: Some(replica),
            ..Self::error(partition, ErrorCode::None)
        }
    }

    pub(super) fn record_bytes(&self) -> usize {
        self.records.as_ref().map_or(0, FileSlice::len)
    }

    /// Something that the client must hear of without waiting.
    pub(super) fn must_be_told(&self) -> bool {
        self.error != ErrorCode::None
            || self.divergence.is_some()
            || self.preferred_replica.is_some()
            || self.must_tell_log_start
    }
}

/// A whole answer.
pub(super) struct Response<'a> {
    pub(super) session_id: i32,
    /// How to reach the leaders that the answer names (KIP-951).
    pub(super) endpoints: Vec<Endpoint>,
    /// What belongs in the answer, those of a topic one after the other.
    pub(super) parts: Vec<(&'a Wanted, FetchedPartition)>,
}

/// An answer without partitions that says what is wrong with the request.
pub(super) fn error(context: &Context, error: ErrorCode) -> super::super::Outcome {
    context.answer(&message!(FetchResponse {
        error_code: error.code(),
    }))
}

impl Response<'_> {
    pub(super) fn encode(self, version: i16, correlation_id: i32) -> Result<Answer, Unanswerable> {
        let mut out = Writer::new(version);
        out.head(correlation_id);
        out.bytes.put_i32(0); // throttle time
        if version >= SESSIONS_FROM {
            out.bytes.put_i16(ErrorCode::None.code());
            out.bytes.put_i32(self.session_id);
        }
        let mut parts = self.parts;
        let same_topic = |a: &Wanted, b: &Wanted| a.topic == b.topic && a.topic_id == b.topic_id;
        let topics = parts
            .chunk_by(|(a, _), (b, _)| same_topic(a, b))
            .map(<[_]>::len)
            .collect::<Vec<_>>();
        out.count(topics.len());
        let mut parts = parts.drain(..);
        for partitions in topics {
            let mut rest = parts.by_ref().take(partitions).peekable();
            let Some((wanted, _)) = rest.peek() else {
                continue;
            };
            if version >= TOPIC_IDS_FROM {
                out.bytes.put_slice(&wanted.topic_id.to_bytes());
            } else {
                out.string(&wanted.topic);
            }
            out.count(partitions);
            for (_, fetched) in rest {
                out.partition(fetched);
            }
            out.no_tags();
        }
        out.endpoints(&self.endpoints);
        out.finish().ok_or(Unanswerable::AnswerTooLarge)
    }
}

/// Bytes so far, and the chunks before them.
struct Writer {
    version: i16,
    bytes: BytesMut,
    chunks: Vec<Chunk>,
}

impl Writer {
    fn new(version: i16) -> Self {
        Self {
            version,
            bytes: BytesMut::with_capacity(256),
            chunks: Vec::new(),
        }
    }

    fn flexible(&self) -> bool {
        self.version >= FLEXIBLE_FROM
    }

    fn head(&mut self, correlation_id: i32) {
        self.bytes.put_i32(0); // the frame's length, known in the end
        self.bytes.put_i32(correlation_id);
        self.no_tags();
    }

    fn varint(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.bytes.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.put_u8(value as u8);
    }

    fn count(&mut self, count: usize) {
        if self.flexible() {
            self.varint(count + 1);
        } else {
            self.bytes.put_i32(count as i32);
        }
    }

    fn string(&mut self, text: &str) {
        if self.flexible() {
            self.varint(text.len() + 1);
        } else {
            self.bytes.put_i16(text.len() as i16);
        }
        self.bytes.put_slice(text.as_bytes());
    }

    fn no_tags(&mut self) {
        if self.flexible() {
            self.bytes.put_u8(0);
        }
    }

    fn partition(&mut self, fetched: FetchedPartition) {
        self.bytes.put_i32(fetched.partition);
        self.bytes.put_i16(fetched.error.code());
        self.bytes.put_i64(fetched.high_watermark.value());
        self.bytes.put_i64(fetched.last_stable_offset.value());
        if self.version >= LOG_START_FROM {
            self.bytes.put_i64(fetched.log_start_offset.value());
        }
        self.aborted(fetched.aborted.as_deref());
        if self.version >= PREFERRED_REPLICA_FROM {
            let replica = fetched.preferred_replica.unwrap_or(BrokerId::NONE);
            self.bytes.put_i32(replica.value());
        }
        // Without records the field is empty and never null: null makes kafka-python
        // raise and keeps `kcat -e` from ending.
        self.count(fetched.record_bytes());
        if let Some(slice) = fetched.records {
            self.chunks.push(Chunk::Bytes(self.bytes.split().freeze()));
            self.chunks.push(Chunk::Log(slice));
        }
        if self.flexible() {
            self.partition_tags(fetched.divergence, fetched.current_leader);
        }
    }

    fn aborted(&mut self, transactions: Option<&[AbortedTransaction]>) {
        let Some(transactions) = transactions else {
            if self.flexible() {
                self.varint(0);
            } else {
                self.bytes.put_i32(-1);
            }
            return;
        };
        self.count(transactions.len());
        for transaction in transactions {
            self.bytes.put_i64(transaction.producer_id.value());
            self.bytes.put_i64(transaction.first_offset.value());
            self.no_tags();
        }
    }

    /// Tag 0 of the answer: an array of nodes.
    fn endpoints(&mut self, endpoints: &[Endpoint]) {
        if endpoints.is_empty() {
            return self.no_tags();
        }
        let mut value = Self::new(self.version);
        value.count(endpoints.len());
        for endpoint in endpoints {
            value.bytes.put_i32(endpoint.id.value());
            value.string(&endpoint.host);
            value.bytes.put_i32(i32::from(endpoint.port));
            match &endpoint.rack {
                Some(rack) => value.string(rack),
                None => value.varint(0),
            }
            value.no_tags();
        }
        self.varint(1);
        self.varint(0);
        self.varint(value.bytes.len());
        self.bytes.put_slice(&value.bytes);
    }

    /// Tag 0 is the diverging epoch, tag 1 the current leader; each value is a structure
    /// with tagged fields of its own.
    fn partition_tags(
        &mut self,
        divergence: Option<Divergence>,
        leader: Option<(BrokerId, LeaderEpoch)>,
    ) {
        self.varint(usize::from(divergence.is_some()) + usize::from(leader.is_some()));
        if let Some(divergence) = divergence {
            self.varint(0);
            self.varint(4 + 8 + 1);
            self.bytes.put_i32(divergence.epoch.value());
            self.bytes.put_i64(divergence.end_offset.value());
            self.bytes.put_u8(0);
        }
        if let Some((id, epoch)) = leader {
            self.varint(1);
            self.varint(4 + 4 + 1);
            self.bytes.put_i32(id.value());
            self.bytes.put_i32(epoch.value());
            self.bytes.put_u8(0);
        }
    }

    /// The frame with its length in place; `None` if that does not fit in 31 bits.
    fn finish(mut self) -> Option<Answer> {
        let tail = self.bytes.split().freeze();
        self.chunks.push(Chunk::Bytes(tail));
        let length = self.chunks.iter().map(Chunk::len).sum::<usize>() - 4;
        let length = i32::try_from(length).ok()?;
        if let Some(Chunk::Bytes(first)) = self.chunks.first_mut() {
            let mut patched = BytesMut::from(std::mem::take(first));
            patched[..4].copy_from_slice(&length.to_be_bytes());
            *first = patched.freeze();
        }
        Some(Answer::from(self.chunks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yuxi_log::{AppendOrigin, Log, LogConfig, Opening};
    use yuxi_protocol::{
        codec::{Bytes, Uuid},
        frame,
        ids::{ProducerId, TopicId},
        messages::fetch_response::{
            self, EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint,
            PartitionData,
        },
        record::{BatchView, RecordBatchBuilder},
    };

    const NEWEST: i16 = 18;
    const CORRELATION_ID: i32 = 77;
    const SESSION_ID: i32 = 1234;

    /// A slice of a log, and the same bytes.
    fn stored(directory: &std::path::Path) -> (FileSlice, Bytes) {
        let opening = Opening {
            recovery_point: Offset::ZERO,
            clean_shutdown: true,
            log_start_offset: Offset::ZERO,
            topic_id: None,
            now_ms: 0,
        };
        let mut log = Log::open(directory, LogConfig::default(), opening).expect("a log");
        let mut builder = RecordBatchBuilder::new();
        builder
            .append(1, Some(b"key"), Some(b"value"), &[])
            .expect("a record");
        let batch = builder.build().expect("a batch");
        let view = BatchView::parse(&batch).expect("a batch");
        log.append_as_leader(&[view], LeaderEpoch::new(0), AppendOrigin::Client, 1)
            .expect("appended");
        let read = log
            .read(Offset::ZERO, 1 << 20, true, Offset::new(1))
            .expect("read");
        let slice = read.slice.expect("records");
        let bytes = Bytes::copy_from_slice(slice.as_bytes());
        (slice, bytes)
    }

    fn wanted(topic: &str, id: u8, partition: i32) -> Wanted {
        Wanted {
            topic: topic.into(),
            topic_id: TopicId::from_bytes([id; 16]),
            partition,
            fetch_offset: Offset::ZERO,
            log_start_offset: Offset::ZERO,
            max_bytes: 1,
            current_leader_epoch: LeaderEpoch::NONE,
            last_fetched_epoch: LeaderEpoch::NONE,
        }
    }

    fn aborted(number: i64) -> AbortedTransaction {
        AbortedTransaction {
            producer_id: ProducerId::new(number),
            first_offset: Offset::new(number * 10),
            last_offset: Offset::new(number * 10 + 5),
            last_stable_offset: Offset::new(number * 10 + 6),
        }
    }

    fn read(partition: i32, records: Option<FileSlice>, isolation: Isolation) -> FetchedPartition {
        let answer = ReadAnswer {
            high_watermark: Offset::new(100),
            last_stable_offset: Offset::new(90),
            log_start_offset: Offset::new(10),
            // Where there are no records there is nothing to leave out.
            aborted: match (&records, isolation) {
                (Some(_), Isolation::Committed) => (1..=200).map(aborted).collect(),
                (Some(_), Isolation::Uncommitted) | (None, _) => Vec::new(),
            },
            records,
            divergence: None,
            cannot_grow: false,
            must_tell_log_start: false,
            isr_change_due: false,
            is_settled: false,
        };
        FetchedPartition::read(partition, answer, isolation)
    }

    /// What the generic codec would be given for `fetched`.
    fn generic(fetched: &FetchedPartition, records: &Bytes, version: i16) -> PartitionData {
        let mut data = message!(PartitionData {
            partition_index: fetched.partition,
            error_code: fetched.error.code(),
            high_watermark: fetched.high_watermark.value(),
            last_stable_offset: fetched.last_stable_offset.value(),
            aborted_transactions: fetched.aborted.as_ref().map(|aborted| {
                let told = |one: &AbortedTransaction| {
                    message!(fetch_response::AbortedTransaction {
                        producer_id: one.producer_id.value(),
                        first_offset: one.first_offset.value(),
                    })
                };
                aborted.iter().map(told).collect()
            }),
            records: Some(match fetched.records {
                Some(_) => records.clone(),
                None => Bytes::new(),
            }),
        });
        if version >= LOG_START_FROM {
            data.log_start_offset = fetched.log_start_offset.value();
        }
        if version >= PREFERRED_REPLICA_FROM
            && let Some(replica) = fetched.preferred_replica
        {
            data.preferred_read_replica = replica.value();
        }
        if version >= FLEXIBLE_FROM {
            if let Some(divergence) = &fetched.divergence {
                data.diverging_epoch = message!(EpochEndOffset {
                    epoch: divergence.epoch.value(),
                    end_offset: divergence.end_offset.value(),
                });
            }
            if let Some((leader, epoch)) = fetched.current_leader {
                data.current_leader = message!(LeaderIdAndEpoch {
                    leader_id: leader.value(),
                    leader_epoch: epoch.value(),
                });
            }
        }
        data
    }

    /// Every kind of partition in one answer.
    #[test]
    fn the_answer_is_byte_for_byte_what_the_generic_codec_makes_in_every_version() {
        let directory = tempfile::tempdir().expect("a directory");
        let (slice, bytes) = stored(&directory.path().join("t-0"));
        // Over 127 partitions, so that counts take more than one byte.
        let many: Vec<i32> = (10..200).collect();
        for version in 4..=NEWEST {
            let mut asked = vec![
                wanted("first", 1, 0),
                wanted("first", 1, 1),
                wanted("first", 1, 2),
                wanted("second", 2, 0),
                wanted("second", 2, 1),
                wanted("second", 2, 2),
            ];
            asked.extend(many.iter().map(|&number| wanted("second", 2, number)));
            let mut diverging = read(1, None, Isolation::Uncommitted);
            diverging.divergence = Some(Divergence {
                epoch: LeaderEpoch::new(3),
                end_offset: Offset::new(55),
            });
            let mut elsewhere = FetchedPartition::error(1, ErrorCode::NotLeaderOrFollower);
            elsewhere.current_leader = Some((BrokerId::new(4), LeaderEpoch::new(9)));
            let offsets = Offsets {
                log_start: Offset::new(1),
                high_watermark: Offset::new(7),
                last_stable: Offset::new(6),
                log_end: Offset::new(8),
                epoch_start: Offset::ZERO,
            };
            let endpoints: Vec<Endpoint> = [(4, Some("a")), (5, None)]
                .into_iter()
                .filter(|_| version >= super::super::ENDPOINTS_FROM)
                .map(|(id, rack)| Endpoint {
                    id: BrokerId::new(id),
                    host: "broker".to_owned(),
                    port: 9092,
                    rack: rack.map(str::to_owned),
                })
                .collect();
            let mut fetched = vec![
                read(0, Some(slice.clone()), Isolation::Uncommitted),
                diverging,
                read(2, Some(slice.clone()), Isolation::Committed),
                read(0, None, Isolation::Committed),
                elsewhere,
                FetchedPartition::elsewhere(2, offsets, BrokerId::new(6)),
            ];
            fetched.extend(
                many.iter()
                    .map(|&number| FetchedPartition::error(number, ErrorCode::OffsetOutOfRange)),
            );
            let topic = |name: &str, id: u8, range: std::ops::Range<usize>| {
                let mut topic = message!(FetchableTopicResponse {
                    partitions: range
                        .map(|at| generic(&fetched[at], &bytes, version))
                        .collect(),
                });
                if version >= TOPIC_IDS_FROM {
                    topic.topic_id = Uuid::from_bytes([id; 16]);
                } else {
                    topic.topic = name.into();
                }
                topic
            };
            let mut expected = message!(FetchResponse {
                responses: vec![
                    topic("first", 1, 0..3),
                    topic("second", 2, 3..fetched.len()),
                ],
            });
            if version >= SESSIONS_FROM {
                expected.session_id = SESSION_ID;
            }
            expected.node_endpoints = endpoints
                .iter()
                .map(|endpoint| {
                    message!(NodeEndpoint {
                        node_id: endpoint.id.value(),
                        host: endpoint.host.as_str().into(),
                        port: i32::from(endpoint.port),
                        rack: endpoint.rack.as_deref().map(Into::into),
                    })
                })
                .collect();
            let response = Response {
                session_id: SESSION_ID,
                endpoints,
                parts: asked.iter().zip(fetched).collect(),
            };
            let answer = response
                .encode(version, CORRELATION_ID)
                .expect("it fits in a frame");
            assert_eq!(answer.len(), answer.to_vec().len());
            let frame = Bytes::from(answer.to_vec());
            let decoded: FetchResponse = frame::decode_response(
                frame.slice(4..),
                CORRELATION_ID,
                version,
                frame::response_limits(1 << 20),
            )
            .unwrap_or_else(|error| panic!("version {version}: {error}"));
            assert_eq!(decoded, expected, "version {version}");
            let by_codec = frame::encode_response(CORRELATION_ID, version, &expected)
                .unwrap_or_else(|error| panic!("version {version}: {error}"));
            assert!(frame == by_codec, "version {version} differs in bytes");
        }
    }

    #[test]
    fn an_answer_with_nothing_in_it_is_whole_in_every_version() {
        for version in 4..=NEWEST {
            let response = Response {
                endpoints: Vec::new(),
                session_id: 0,
                parts: Vec::new(),
            };
            let answer = response.encode(version, CORRELATION_ID).expect("it fits");
            let by_codec =
                frame::encode_response(CORRELATION_ID, version, &FetchResponse::default())
                    .expect("encodable");
            assert_eq!(answer.to_vec(), by_codec, "version {version}");
        }
    }
}
