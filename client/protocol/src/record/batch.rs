//! The header of a record batch, and a view of one batch in borrowed bytes.
//!
//! ```text
//!  0        8      12      16    17    21      23      27      35      43
//! +--------+-------+-------+-----+-----+-------+-------+-------+-------+
//! | base   | batch | leader|magic| crc | attri-| last  | base  | max   |
//! | offset | length| epoch | (2) | 32c | butes | offset| time- | time- |
//! |        |       |       |     |     |       | delta | stamp | stamp |
//! +--------+-------+-------+-----+-----+-------+-------+-------+-------+
//! 43         51        53       57       61
//! +----------+---------+--------+--------+------------------------------
//! | producer | producer| base   | record | records, compressed as one
//! | id       | epoch   |sequence| count  | if the attributes say so
//! +----------+---------+--------+--------+------------------------------
//! ```
//!
//! All integers are big-endian. `batch length` counts what follows it. The checksum
//! covers everything from the attributes on, so a broker gives a batch its offset and
//! leader epoch by writing other first 16 bytes ([`stored_prefix`]) and copies nothing.
//!
//! Invariant: a [`BatchHeader`] that was parsed names a known codec, has counts that
//! are not negative, and its last and next offset don't overflow.

use super::{compression::Compression, error::BatchError};
use crate::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId};

/// Bytes before those that `batch length` counts: the base offset and the length.
pub const LOG_OVERHEAD: usize = 12;
/// Bytes of the whole header.
pub const RECORD_BATCH_OVERHEAD: usize = 61;
/// The message format that is read and written here.
pub const MAGIC_V2: i8 = 2;
/// What a batch without a producer's sequence carries for one.
pub const NO_SEQUENCE: i32 = -1;
/// What a batch without timestamps carries for one.
pub const NO_TIMESTAMP: i64 = -1;

/// Where the bytes begin that the checksum covers.
const CHECKSUMMED_FROM: usize = 21;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const MAX_TIMESTAMP_AT: usize = 35;
/// The shortest message of the formats before version 2, which tells a corrupt length
/// from an old format.
const SHORTEST_OLD_MESSAGE: i32 = 14;

/// CRC-32C, the checksum of record batches.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// What a batch's timestamps say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// Each record's time is what its producer gave it.
    #[default]
    CreateTime,
    /// Every record's time is when the leader appended the batch: its max timestamp.
    LogAppendTime,
}

/// The attribute bits of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes(i16);

impl Attributes {
    const COMPRESSION: i16 = 0b111;
    const LOG_APPEND_TIME: i16 = 1 << 3;
    const TRANSACTIONAL: i16 = 1 << 4;
    const CONTROL: i16 = 1 << 5;
    const DELETE_HORIZON: i16 = 1 << 6;

    /// The bits as they stand on the wire; unused ones are kept. Refused if they name
    /// no codec.
    pub fn from_bits(bits: i16) -> Result<Self, BatchError> {
        let codec = (bits & Self::COMPRESSION) as u8;
        match Compression::from_id(codec) {
            Some(_) => Ok(Self(bits)),
            None => Err(BatchError::UnknownCompression(codec)),
        }
    }

    /// The bits as they stand on the wire.
    pub const fn bits(self) -> i16 {
        self.0
    }

    /// How the records are compressed.
    pub fn compression(self) -> Compression {
        // The constructors admit no other number.
        Compression::from_id((self.0 & Self::COMPRESSION) as u8).unwrap_or_default()
    }

    /// What the timestamps say.
    pub const fn timestamp_type(self) -> TimestampType {
        if self.0 & Self::LOG_APPEND_TIME == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// Whether the batch is part of a transaction.
    pub const fn is_transactional(self) -> bool {
        self.0 & Self::TRANSACTIONAL != 0
    }

    /// Whether the batch is a broker's marker, not shown to consumers.
    pub const fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }

    /// Whether the base timestamp is the time from which compaction may drop the
    /// batch's tombstones.
    pub const fn has_delete_horizon(self) -> bool {
        self.0 & Self::DELETE_HORIZON != 0
    }

    /// The same bits with another codec.
    #[must_use]
    pub const fn with_compression(self, codec: Compression) -> Self {
        Self(self.0 & !Self::COMPRESSION | codec.id() as i16)
    }

    /// The same bits with another meaning of the timestamps.
    #[must_use]
    pub const fn with_timestamp_type(self, kind: TimestampType) -> Self {
        self.with(
            Self::LOG_APPEND_TIME,
            matches!(kind, TimestampType::LogAppendTime),
        )
    }

    /// The same bits, part of a transaction or not.
    #[must_use]
    pub const fn with_transactional(self, on: bool) -> Self {
        self.with(Self::TRANSACTIONAL, on)
    }

    /// The same bits, a marker or not.
    #[must_use]
    pub const fn with_control(self, on: bool) -> Self {
        self.with(Self::CONTROL, on)
    }

    /// The same bits, with a delete horizon or not.
    #[must_use]
    pub const fn with_delete_horizon(self, on: bool) -> Self {
        self.with(Self::DELETE_HORIZON, on)
    }

    const fn with(self, bit: i16, on: bool) -> Self {
        Self(if on { self.0 | bit } else { self.0 & !bit })
    }
}

/// The fixed part of a batch, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset of the first record; it stays when compaction removes that record.
    pub base_offset: Offset,
    /// Bytes after the first [`LOG_OVERHEAD`].
    pub batch_length: i32,
    /// The epoch of the leader that appended the batch.
    pub partition_leader_epoch: LeaderEpoch,
    /// The message format, always [`MAGIC_V2`].
    pub magic: i8,
    /// CRC-32C of everything from the attributes on.
    pub crc: u32,
    /// Codec, timestamp type, transactional, control.
    pub attributes: Attributes,
    /// The last record's offset less the base offset; it stays when compaction removes
    /// that record.
    pub last_offset_delta: i32,
    /// The time to which record timestamps are relative, in ms.
    pub base_timestamp: i64,
    /// The largest timestamp of the batch in ms, or the append time.
    pub max_timestamp: i64,
    /// The idempotent producer, or [`ProducerId::NONE`].
    pub producer_id: ProducerId,
    /// The producer's epoch, or [`ProducerEpoch::NONE`].
    pub producer_epoch: ProducerEpoch,
    /// The first record's sequence number, or [`NO_SEQUENCE`].
    pub base_sequence: i32,
    /// Records in the batch; 0 only after compaction.
    pub record_count: i32,
}

impl BatchHeader {
    /// Decodes the header that `bytes` begin with. The batch itself may be cut off: only
    /// the header has to be there. An old message format is told from corruption.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let truncated = |needed| BatchError::Truncated {
            needed,
            available: bytes.len(),
        };
        let Some(head) = bytes.first_chunk::<{ CRC_AT }>() else {
            return Err(truncated(RECORD_BATCH_OVERHEAD));
        };
        let batch_length = i32::from_be_bytes(field(head, 8));
        if batch_length < SHORTEST_OLD_MESSAGE {
            return Err(BatchError::InvalidLength(batch_length));
        }
        let magic = head[16] as i8;
        if magic != MAGIC_V2 {
            return Err(BatchError::UnsupportedMagic(magic));
        }
        if batch_length < (RECORD_BATCH_OVERHEAD - LOG_OVERHEAD) as i32 {
            return Err(BatchError::InvalidLength(batch_length));
        }
        let Some(head) = bytes.first_chunk::<RECORD_BATCH_OVERHEAD>() else {
            return Err(truncated(RECORD_BATCH_OVERHEAD));
        };
        let header = Self {
            base_offset: Offset::new(i64::from_be_bytes(field(head, 0))),
            batch_length,
            partition_leader_epoch: LeaderEpoch::new(i32::from_be_bytes(field(head, 12))),
            magic,
            crc: u32::from_be_bytes(field(head, CRC_AT)),
            attributes: Attributes::from_bits(i16::from_be_bytes(field(head, ATTRIBUTES_AT)))?,
            last_offset_delta: i32::from_be_bytes(field(head, 23)),
            base_timestamp: i64::from_be_bytes(field(head, 27)),
            max_timestamp: i64::from_be_bytes(field(head, MAX_TIMESTAMP_AT)),
            producer_id: ProducerId::new(i64::from_be_bytes(field(head, 43))),
            producer_epoch: ProducerEpoch::new(i16::from_be_bytes(field(head, 51))),
            base_sequence: i32::from_be_bytes(field(head, 53)),
            record_count: i32::from_be_bytes(field(head, 57)),
        };
        let offsets_fit = header
            .base_offset
            .value()
            .checked_add(i64::from(header.last_offset_delta) + 1)
            .is_some();
        if header.record_count < 0 || header.last_offset_delta < 0 || !offsets_fit {
            return Err(BatchError::InvalidCounts {
                record_count: header.record_count,
                last_offset_delta: header.last_offset_delta,
            });
        }
        Ok(header)
    }

    /// The header as it stands on the wire.
    pub fn to_bytes(&self) -> [u8; RECORD_BATCH_OVERHEAD] {
        let mut out = [0; RECORD_BATCH_OVERHEAD];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.base_offset.value().to_be_bytes());
        put(8, &self.batch_length.to_be_bytes());
        put(12, &self.partition_leader_epoch.value().to_be_bytes());
        put(16, &self.magic.to_be_bytes());
        put(CRC_AT, &self.crc.to_be_bytes());
        put(ATTRIBUTES_AT, &self.attributes.bits().to_be_bytes());
        put(23, &self.last_offset_delta.to_be_bytes());
        put(27, &self.base_timestamp.to_be_bytes());
        put(MAX_TIMESTAMP_AT, &self.max_timestamp.to_be_bytes());
        put(43, &self.producer_id.value().to_be_bytes());
        put(51, &self.producer_epoch.value().to_be_bytes());
        put(53, &self.base_sequence.to_be_bytes());
        put(57, &self.record_count.to_be_bytes());
        out
    }

    /// Bytes of the whole batch.
    pub fn size_in_bytes(&self) -> usize {
        LOG_OVERHEAD + self.batch_length as usize
    }

    /// The offset of the last record.
    pub fn last_offset(&self) -> Offset {
        self.base_offset.plus(i64::from(self.last_offset_delta))
    }

    /// The offset that the next batch begins with at the least.
    pub fn next_offset(&self) -> Offset {
        self.last_offset().plus(1)
    }

    /// The last record's sequence number, or [`NO_SEQUENCE`].
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence == NO_SEQUENCE {
            NO_SEQUENCE
        } else {
            advance_sequence(self.base_sequence, self.last_offset_delta)
        }
    }

    /// Whether an idempotent producer wrote the batch.
    pub fn has_producer_id(&self) -> bool {
        self.producer_id > ProducerId::NONE
    }

    /// Whether the batch is part of a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes.is_transactional()
    }

    /// Whether the batch is a broker's marker, not shown to consumers.
    pub fn is_control(&self) -> bool {
        self.attributes.is_control()
    }

    /// How the records are compressed.
    pub fn compression(&self) -> Compression {
        self.attributes.compression()
    }

    /// What the timestamps say.
    pub fn timestamp_type(&self) -> TimestampType {
        self.attributes.timestamp_type()
    }

    /// The time from which compaction may drop the batch's tombstones (KAFKA-8522).
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        self.attributes
            .has_delete_horizon()
            .then_some(self.base_timestamp)
    }
}

/// The sequence number `count` records after `sequence`: it wraps from `i32::MAX` to 0,
/// as negative numbers mean that there is none.
pub fn advance_sequence(sequence: i32, count: i32) -> i32 {
    ((i64::from(sequence) + i64::from(count)) & i64::from(i32::MAX)) as i32
}

/// One batch in borrowed bytes. The header has been checked, the checksum and the
/// records have not.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    header: BatchHeader,
    bytes: &'a [u8],
}

impl<'a> BatchView<'a> {
    /// Views the first batch in `bytes`, which may go on after it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        let needed = header.size_in_bytes();
        match bytes.get(..needed) {
            Some(bytes) => Ok(Self { header, bytes }),
            None => Err(BatchError::Truncated {
                needed,
                available: bytes.len(),
            }),
        }
    }

    /// The decoded header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The bytes of exactly this batch.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The records as they are stored, perhaps compressed.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[RECORD_BATCH_OVERHEAD..]
    }

    /// Compares the bytes with the header's checksum.
    pub fn check_crc(&self) -> Result<(), BatchError> {
        let computed = crc32c(&self.bytes[CHECKSUMMED_FROM..]);
        if computed == self.header.crc {
            Ok(())
        } else {
            Err(BatchError::WrongCrc {
                stored: self.header.crc,
                computed,
            })
        }
    }
}

/// The consecutive batches of `bytes`. After an error there is nothing more; a torn tail
/// is [`BatchError::Truncated`].
pub fn batches(bytes: &[u8]) -> Batches<'_> {
    Batches { rest: bytes }
}

/// What [`batches`] returns.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    rest: &'a [u8],
}

impl<'a> Batches<'a> {
    /// The bytes after the batches that were yielded so far; empty after an error.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<BatchView<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let batch = BatchView::parse(self.rest);
        self.rest = match &batch {
            Ok(batch) => &self.rest[batch.bytes.len()..],
            Err(_) => &[],
        };
        Some(batch)
    }
}

/// The first 16 bytes of a batch as a leader stores it. All of them are outside the
/// checksum, so an append writes these and then the produced bytes from 16 on.
pub fn stored_prefix(
    base_offset: Offset,
    batch_length: i32,
    leader_epoch: LeaderEpoch,
) -> [u8; 16] {
    let mut prefix = [0; 16];
    prefix[..8].copy_from_slice(&base_offset.value().to_be_bytes());
    prefix[8..12].copy_from_slice(&batch_length.to_be_bytes());
    prefix[12..].copy_from_slice(&leader_epoch.value().to_be_bytes());
    prefix
}

/// Makes the batch in `bytes` say that all its records were appended at `timestamp`: the
/// timestamp type, the max timestamp and the checksum change, the records don't. `bytes`
/// must be exactly one batch.
pub fn set_log_append_time(bytes: &mut [u8], timestamp: i64) -> Result<(), BatchError> {
    patch_timestamps(bytes, TimestampType::LogAppendTime, timestamp)
}

/// Corrects the max timestamp of a batch whose producer stated another than its records
/// have. `bytes` must be exactly one batch.
pub fn set_max_timestamp(bytes: &mut [u8], timestamp: i64) -> Result<(), BatchError> {
    let kind = BatchHeader::parse(bytes)?.timestamp_type();
    patch_timestamps(bytes, kind, timestamp)
}

fn patch_timestamps(
    bytes: &mut [u8],
    kind: TimestampType,
    max_timestamp: i64,
) -> Result<(), BatchError> {
    let batch = BatchView::parse(bytes)?;
    let extra = bytes.len() - batch.bytes.len();
    if extra != 0 {
        return Err(BatchError::TrailingBytes(extra));
    }
    let attributes = batch.header.attributes.with_timestamp_type(kind);
    bytes[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.bits().to_be_bytes());
    bytes[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&max_timestamp.to_be_bytes());
    seal(bytes);
    Ok(())
}

/// Writes the checksum of the one batch in `bytes`, which has been checked to be one.
pub(super) fn seal(bytes: &mut [u8]) {
    let crc = crc32c(&bytes[CHECKSUMMED_FROM..]);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
}

/// The `N` bytes of `head` from `at` on; `at` is a constant of the layout above.
fn field<const N: usize>(head: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&head[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One record, key `k`, value `v`, no headers, no producer.
    fn one_record() -> Vec<u8> {
        let records = [16, 0, 0, 0, 2, b'k', 2, b'v', 0];
        let header = BatchHeader {
            base_offset: Offset::ZERO,
            batch_length: (RECORD_BATCH_OVERHEAD - LOG_OVERHEAD + records.len()) as i32,
            partition_leader_epoch: LeaderEpoch::NONE,
            magic: MAGIC_V2,
            crc: 0,
            attributes: Attributes::default(),
            last_offset_delta: 0,
            base_timestamp: 1_000,
            max_timestamp: 1_000,
            producer_id: ProducerId::NONE,
            producer_epoch: ProducerEpoch::NONE,
            base_sequence: NO_SEQUENCE,
            record_count: 1,
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(&records);
        seal(&mut bytes);
        bytes
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let bytes = one_record();
        let batch = BatchView::parse(&bytes).unwrap();
        batch.check_crc().unwrap();
        assert_eq!(
            batch.header().to_bytes()[..],
            bytes[..RECORD_BATCH_OVERHEAD]
        );
        assert_eq!(batch.payload().len(), 9);
        assert_eq!(batch.header().size_in_bytes(), bytes.len());
    }

    #[test]
    fn a_change_of_any_checksummed_byte_is_seen_and_of_the_others_not() {
        let good = one_record();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x40;
            match BatchView::parse(&bytes) {
                Ok(batch) => assert_eq!(
                    batch.check_crc().is_ok(),
                    at < 8 || (12..16).contains(&at),
                    "byte {at}"
                ),
                Err(_) => assert!((8..12).contains(&at) || at == 16 || at >= 21, "byte {at}"),
            }
        }
    }

    #[test]
    fn a_header_that_cannot_be_is_refused() {
        type Case = (&'static str, usize, &'static [u8], BatchError);
        let cases: &[Case] = &[
            (
                "negative length",
                8,
                &[0xff; 4],
                BatchError::InvalidLength(-1),
            ),
            ("length 0", 8, &[0; 4], BatchError::InvalidLength(0)),
            (
                "length 48",
                8,
                &[0, 0, 0, 48],
                BatchError::InvalidLength(48),
            ),
            (
                "length 7fffffff",
                8,
                &[0x7f, 0xff, 0xff, 0xff],
                BatchError::Truncated {
                    needed: 0x7fff_ffff + 12,
                    available: 70,
                },
            ),
            ("magic 0", 16, &[0], BatchError::UnsupportedMagic(0)),
            ("magic 1", 16, &[1], BatchError::UnsupportedMagic(1)),
            ("magic 3", 16, &[3], BatchError::UnsupportedMagic(3)),
            ("codec 5", 21, &[0, 5], BatchError::UnknownCompression(5)),
            ("codec 7", 21, &[0, 7], BatchError::UnknownCompression(7)),
            (
                "negative delta",
                23,
                &[0xff; 4],
                BatchError::InvalidCounts {
                    record_count: 1,
                    last_offset_delta: -1,
                },
            ),
            (
                "negative count",
                57,
                &[0x80, 0, 0, 0],
                BatchError::InvalidCounts {
                    record_count: i32::MIN,
                    last_offset_delta: 0,
                },
            ),
            (
                "offset overflow",
                0,
                &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                BatchError::InvalidCounts {
                    record_count: 1,
                    last_offset_delta: 0,
                },
            ),
        ];
        for (name, at, patch, expected) in cases {
            let mut bytes = one_record();
            bytes[*at..*at + patch.len()].copy_from_slice(patch);
            assert_eq!(BatchView::parse(&bytes).unwrap_err(), *expected, "{name}");
        }
    }

    #[test]
    fn every_truncation_is_a_torn_tail() {
        let bytes = one_record();
        for len in 1..bytes.len() {
            let error = BatchView::parse(&bytes[..len]).unwrap_err();
            assert!(
                matches!(error, BatchError::Truncated { .. }),
                "{len}: {error}"
            );
        }
        let mut two = bytes.clone();
        two.extend_from_slice(&bytes[..30]);
        let mut found = batches(&two);
        assert!(found.next().unwrap().is_ok());
        assert_eq!(found.rest().len(), 30);
        assert!(matches!(
            found.next(),
            Some(Err(BatchError::Truncated { .. }))
        ));
        assert!(found.next().is_none());
    }

    #[test]
    fn an_append_changes_only_bytes_outside_the_checksum() {
        let mut bytes = one_record();
        let length = BatchHeader::parse(&bytes).unwrap().batch_length;
        bytes[..16].copy_from_slice(&stored_prefix(Offset::new(42), length, LeaderEpoch::new(7)));
        let batch = BatchView::parse(&bytes).unwrap();
        batch.check_crc().unwrap();
        assert_eq!(batch.header().base_offset, Offset::new(42));
        assert_eq!(batch.header().next_offset(), Offset::new(43));
        assert_eq!(batch.header().partition_leader_epoch, LeaderEpoch::new(7));
    }

    #[test]
    fn the_append_time_becomes_the_time_of_the_batch() {
        let mut bytes = one_record();
        set_log_append_time(&mut bytes, 77).unwrap();
        let batch = BatchView::parse(&bytes).unwrap();
        batch.check_crc().unwrap();
        assert_eq!(
            batch.header().timestamp_type(),
            TimestampType::LogAppendTime
        );
        assert_eq!(batch.header().max_timestamp, 77);
        assert_eq!(batch.header().base_timestamp, 1_000);
        bytes.push(0);
        assert_eq!(
            set_log_append_time(&mut bytes, 78),
            Err(BatchError::TrailingBytes(1))
        );
    }

    #[test]
    fn a_sequence_wraps_from_the_largest_number_to_zero() {
        assert_eq!(advance_sequence(5, 3), 8);
        assert_eq!(advance_sequence(i32::MAX, 0), i32::MAX);
        assert_eq!(advance_sequence(i32::MAX, 1), 0);
        assert_eq!(advance_sequence(i32::MAX - 1, 5), 3);
        assert_eq!(advance_sequence(i32::MAX, i32::MAX), i32::MAX - 1);
    }
}
