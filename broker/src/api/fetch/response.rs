//! The Fetch answer, encoded by hand so that records are never copied into it. A test
//! holds it against the generic codec in every version.

use super::{
    super::{Context, Unanswerable},
    Isolation,
    session::Wanted,
};
use crate::{
    net::answer::{Answer, Chunk},
    partition::{Divergence, ReadAnswer},
};
use bytes::{BufMut, BytesMut};
use std::sync::Arc;
use yuxi_log::FileSlice;
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
    /// The aborted transactions follow, of which there are none yet.
    read_committed: bool,
    pub(super) current_leader: Option<(BrokerId, LeaderEpoch)>,
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
            read_committed: false,
            current_leader: None,
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
            read_committed: isolation == Isolation::Committed,
            current_leader: None,
            divergence: answer.divergence,
            records: answer.records,
            cannot_grow: answer.cannot_grow,
        }
    }

    pub(super) fn record_bytes(&self) -> usize {
        self.records.as_ref().map_or(0, FileSlice::len)
    }

    /// An error or a divergence, which the client must hear of without waiting.
    pub(super) fn must_be_told(&self) -> bool {
        self.error != ErrorCode::None || self.divergence.is_some()
    }
}

/// A whole answer.
pub(super) struct Response<'a> {
    pub(super) session_id: i32,
    pub(super) wanted: &'a [Wanted],
    pub(super) fetched: Vec<FetchedPartition>,
    /// Which partitions belong in the answer.
    pub(super) keep: &'a [bool],
}

/// An answer without partitions that says what is wrong with the request.
pub(super) fn error(context: &Context, error: ErrorCode) -> super::super::Outcome {
    context.answer(&message!(FetchResponse {
        error_code: error.code(),
    }))
}

impl Response<'_> {
    pub(super) fn encode(self, context: &Context) -> Result<Answer, Unanswerable> {
        let mut out = Writer::new(context.version);
        out.head(context.correlation_id);
        out.bytes.put_i32(0); // throttle time
        if context.version >= SESSIONS_FROM {
            out.bytes.put_i16(ErrorCode::None.code());
            out.bytes.put_i32(self.session_id);
        }
        let mut parts: Vec<_> = self
            .wanted
            .iter()
            .zip(self.fetched)
            .zip(self.keep)
            .filter(|(_, keep)| **keep)
            .map(|(part, _)| part)
            .collect();
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
            if context.version >= TOPIC_IDS_FROM {
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
        out.no_tags();
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
        if fetched.read_committed {
            self.count(0);
        } else if self.flexible() {
            self.varint(0);
        } else {
            self.bytes.put_i32(-1);
        }
        if self.version >= PREFERRED_REPLICA_FROM {
            self.bytes.put_i32(BrokerId::NONE.value());
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
