//! Writing record batches: a builder for new ones, and rewriting an existing one with
//! another codec.
//!
//! Invariant: what is built here passes every check of [`super::batch`] and
//! [`super::iter`], provided that offsets were left to the builder.

use bytes::Bytes;

use super::{
    batch::{
        Attributes, BatchHeader, BatchView, LOG_OVERHEAD, MAGIC_V2, NO_SEQUENCE, NO_TIMESTAMP,
        RECORD_BATCH_OVERHEAD, TimestampType, seal,
    },
    compression::{Compression, CompressionError},
    error::BatchError,
    varint,
};
use crate::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId};

/// The most bytes that a record or a batch may have: lengths are 32-bit and signed, and
/// this leaves room for the header and for a codec that makes things larger.
const MAX_BYTES: usize = i32::MAX as usize / 2;

/// Why a record was not added or a batch not built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The batch would be larger than the format can say.
    #[error("a batch of {0} bytes is larger than the format allows")]
    TooLarge(usize),
    /// The offset is not after the last one, or too far after the first.
    #[error("offset {offset} does not follow in a batch that begins at {base_offset}")]
    WrongOffset {
        /// The offset that was asked for.
        offset: Offset,
        /// The batch's first.
        base_offset: Offset,
    },
    /// The codec failed.
    #[error(transparent)]
    Compression(#[from] CompressionError),
}

/// Collects records and makes a batch of them.
///
/// Without further settings the batch has base offset 0, no leader epoch, no producer, the
/// producer's timestamps and no compression: what a plain producer sends.
#[derive(Clone, Debug)]
pub struct RecordBatchBuilder {
    base_offset: Offset,
    leader_epoch: LeaderEpoch,
    attributes: Attributes,
    level: Option<i32>,
    log_append_time: Option<i64>,
    producer_id: ProducerId,
    producer_epoch: ProducerEpoch,
    base_sequence: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    last_offset_delta: Option<i32>,
    record_count: i32,
    /// Room for the header, then the records, uncompressed.
    bytes: Vec<u8>,
}

impl Default for RecordBatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl RecordBatchBuilder {
    /// An empty batch.
    pub fn new() -> Self {
        Self::with_capacity(0)
    }

    /// An empty batch with room for `bytes`, header included.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(bytes.max(RECORD_BATCH_OVERHEAD));
        buffer.resize(RECORD_BATCH_OVERHEAD, 0);
        Self {
            base_offset: Offset::ZERO,
            leader_epoch: LeaderEpoch::NONE,
            attributes: Attributes::default(),
            level: None,
            log_append_time: None,
            producer_id: ProducerId::NONE,
            producer_epoch: ProducerEpoch::NONE,
            base_sequence: NO_SEQUENCE,
            base_timestamp: NO_TIMESTAMP,
            max_timestamp: NO_TIMESTAMP,
            last_offset_delta: None,
            record_count: 0,
            bytes: buffer,
        }
    }

    /// Compresses the records, at the codec's usual level if `level` is `None`.
    #[must_use]
    pub fn compression(mut self, codec: Compression, level: Option<i32>) -> Self {
        self.attributes = self.attributes.with_compression(codec);
        self.level = level;
        self
    }

    /// Places the batch in the log: as a leader writes it, not a producer.
    #[must_use]
    pub fn placed_at(mut self, base_offset: Offset, leader_epoch: LeaderEpoch) -> Self {
        self.base_offset = base_offset;
        self.leader_epoch = leader_epoch;
        self
    }

    /// Says that every record was appended at this time, in ms.
    #[must_use]
    pub fn log_append_time(mut self, timestamp: i64) -> Self {
        self.attributes = self
            .attributes
            .with_timestamp_type(TimestampType::LogAppendTime);
        self.log_append_time = Some(timestamp);
        self
    }

    /// Makes the batch an idempotent producer's.
    #[must_use]
    pub fn producer(mut self, id: ProducerId, epoch: ProducerEpoch, base_sequence: i32) -> Self {
        self.producer_id = id;
        self.producer_epoch = epoch;
        self.base_sequence = base_sequence;
        self
    }

    /// Makes the batch part of a transaction of its producer.
    #[must_use]
    pub fn transactional(mut self) -> Self {
        self.attributes = self.attributes.with_transactional(true);
        self
    }

    /// Makes the batch a broker's marker.
    #[must_use]
    pub fn control(mut self) -> Self {
        self.attributes = self.attributes.with_control(true);
        self
    }

    /// How many records there are.
    pub fn record_count(&self) -> i32 {
        self.record_count
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Bytes of the batch if it is not compressed.
    pub fn uncompressed_size(&self) -> usize {
        self.bytes.len()
    }

    /// The most bytes that a record can add.
    pub fn record_size_bound(
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> usize {
        /// Length, attributes, timestamp delta, offset delta and header count at their longest.
        const FIXED: usize = 5 + 1 + 10 + 5 + 5;
        let field = |bytes: Option<&[u8]>| 5 + bytes.map_or(0, <[u8]>::len);
        let headers = headers
            .iter()
            .map(|(key, value)| 5 + key.len() + field(*value));
        FIXED + field(key) + field(value) + headers.sum::<usize>()
    }

    /// Adds a record at the next offset. The first record's time is the base timestamp.
    pub fn append(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<(), BuildError> {
        let delta = match self.last_offset_delta {
            None => 0,
            Some(last) => last
                .checked_add(1)
                .ok_or(BuildError::TooLarge(self.bytes.len()))?,
        };
        self.append_delta(delta, timestamp, key, value, headers)
    }

    /// Adds a record at an offset after the last one, as compaction leaves gaps.
    pub fn append_at(
        &mut self,
        offset: Offset,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<(), BuildError> {
        let delta = offset
            .value()
            .checked_sub(self.base_offset.value())
            .and_then(|delta| i32::try_from(delta).ok())
            .filter(|&delta| delta > self.last_offset_delta.unwrap_or(-1))
            .ok_or(BuildError::WrongOffset {
                offset,
                base_offset: self.base_offset,
            })?;
        self.append_delta(delta, timestamp, key, value, headers)
    }

    fn append_delta(
        &mut self,
        offset_delta: i32,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<(), BuildError> {
        let bound = self.bytes.len() + Self::record_size_bound(key, value, headers);
        if bound > MAX_BYTES {
            return Err(BuildError::TooLarge(bound));
        }
        if self.record_count == 0 {
            self.base_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        let timestamp_delta = timestamp.wrapping_sub(self.base_timestamp);
        let header_count = headers.len() as i64;
        let length = 1
            + varint::size(timestamp_delta)
            + varint::size(offset_delta.into())
            + nullable_size(key)
            + nullable_size(value)
            + varint::size(header_count)
            + headers
                .iter()
                .map(|(key, value)| nullable_size(Some(key.as_bytes())) + nullable_size(*value))
                .sum::<usize>();

        let out = &mut self.bytes;
        varint::write(length as i64, out);
        let body_at = out.len();
        out.push(0);
        varint::write(timestamp_delta, out);
        varint::write(offset_delta.into(), out);
        write_nullable(key, out);
        write_nullable(value, out);
        varint::write(header_count, out);
        for (key, value) in headers {
            write_nullable(Some(key.as_bytes()), out);
            write_nullable(*value, out);
        }
        debug_assert_eq!(out.len() - body_at, length);

        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.last_offset_delta = Some(offset_delta);
        self.record_count += 1;
        Ok(())
    }

    /// The finished batch, checksum and all. A batch without records is one with offset
    /// delta 0 and count 0, as compaction leaves it.
    pub fn build(self) -> Result<Bytes, BuildError> {
        let header = BatchHeader {
            base_offset: self.base_offset,
            batch_length: 0,
            partition_leader_epoch: self.leader_epoch,
            magic: MAGIC_V2,
            crc: 0,
            attributes: self.attributes,
            last_offset_delta: self.last_offset_delta.unwrap_or(0),
            base_timestamp: self.base_timestamp,
            max_timestamp: self.log_append_time.unwrap_or(self.max_timestamp),
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
            record_count: self.record_count,
        };
        let codec = self.attributes.compression();
        let bytes = if codec == Compression::None {
            self.bytes
        } else {
            compressed(codec, self.level, &self.bytes[RECORD_BATCH_OVERHEAD..])?
        };
        finish(header, bytes)
    }
}

/// The same batch with its records compressed by another codec. Offsets, timestamps,
/// producer fields and attributes stay; length and checksum are new. `max_decompressed`
/// caps what the present codec may unpack.
pub fn recompress(
    batch: &BatchView<'_>,
    codec: Compression,
    level: Option<i32>,
    max_decompressed: usize,
) -> Result<Bytes, BatchError> {
    let refuse = |error| BatchError::Compression { codec, error };
    let payload = batch.decompressed(max_decompressed)?;
    let mut header = *batch.header();
    header.attributes = header.attributes.with_compression(codec);
    compressed(codec, level, &payload)
        .map_err(refuse)
        .and_then(|bytes| {
            finish(header, bytes).map_err(|_| {
                refuse(CompressionError::TooLarge {
                    cap: i32::MAX as usize,
                })
            })
        })
}

/// Room for a header, then `payload` compressed.
fn compressed(
    codec: Compression,
    level: Option<i32>,
    payload: &[u8],
) -> Result<Vec<u8>, CompressionError> {
    let mut bytes = Vec::with_capacity(RECORD_BATCH_OVERHEAD + payload.len() / 2);
    bytes.resize(RECORD_BATCH_OVERHEAD, 0);
    codec.compress(level, payload, &mut bytes)?;
    Ok(bytes)
}

/// Writes the header into the room before the payload, then the length and the checksum.
fn finish(mut header: BatchHeader, mut bytes: Vec<u8>) -> Result<Bytes, BuildError> {
    header.batch_length =
        i32::try_from(bytes.len() - LOG_OVERHEAD).map_err(|_| BuildError::TooLarge(bytes.len()))?;
    bytes[..RECORD_BATCH_OVERHEAD].copy_from_slice(&header.to_bytes());
    seal(&mut bytes);
    Ok(Bytes::from(bytes))
}

fn nullable_size(bytes: Option<&[u8]>) -> usize {
    match bytes {
        Some(bytes) => varint::size(bytes.len() as i64) + bytes.len(),
        None => 1,
    }
}

fn write_nullable(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    match bytes {
        Some(bytes) => {
            varint::write(bytes.len() as i64, out);
            out.extend_from_slice(bytes);
        }
        None => varint::write(-1, out),
    }
}
