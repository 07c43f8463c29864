//! The records inside a batch: a borrowed walk that allocates nothing, an iterator of
//! owned records over it, and the check that a produced batch has to pass.
//!
//! ```text
//! length varint | attributes i8 | timestamp delta varlong | offset delta varint
//! | key length varint, key | value length varint, value
//! | header count varint, { key length varint, key, value length varint, value }*
//! ```
//!
//! A length of -1 is null; only a header's key can't be null. Each record is checked
//! whole before it is yielded: its fields fill exactly its length.

use std::borrow::Cow;

use bytes::Bytes;
use kafka_wire_core::StrBytes;

use super::{
    batch::{BatchHeader, BatchView, NO_TIMESTAMP, TimestampType},
    compression::Compression,
    error::BatchError,
    varint,
};
use crate::ids::Offset;

/// One record in borrowed bytes, its fields checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Its time less the batch's base timestamp, in ms.
    pub timestamp_delta: i64,
    /// Its offset less the batch's base offset.
    pub offset_delta: i32,
    /// The key, if it has one.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    header_count: i32,
    headers: &'a [u8],
}

impl<'a> RecordRef<'a> {
    /// Its offset in the log.
    pub fn offset(&self, batch: &BatchHeader) -> Offset {
        batch.base_offset.plus(i64::from(self.offset_delta))
    }

    /// Its time in ms: when the batch was appended, if the batch says so.
    pub fn timestamp(&self, batch: &BatchHeader) -> i64 {
        match batch.timestamp_type() {
            TimestampType::CreateTime => self.create_timestamp(batch),
            TimestampType::LogAppendTime => batch.max_timestamp,
        }
    }

    /// The time that its producer gave it.
    fn create_timestamp(&self, batch: &BatchHeader) -> i64 {
        batch.base_timestamp.wrapping_add(self.timestamp_delta)
    }

    /// How many headers it has.
    pub fn header_count(&self) -> usize {
        self.header_count as usize
    }

    /// Its headers: key and value.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let mut rest = self.headers;
        (0..self.header_count).map_while(move |_| read_header(&mut rest).ok())
    }
}

/// The records of a decompressed payload, in order. After an error there are none.
///
/// It yields as many as the batch's header counts and then checks that nothing follows.
#[derive(Clone, Debug)]
pub struct RecordRefs<'a> {
    rest: &'a [u8],
    index: i32,
    count: i32,
    ended: bool,
}

impl<'a> RecordRefs<'a> {
    /// Walks `payload`, which must be what [`BatchView::decompressed`] gave.
    pub fn new(batch: &BatchHeader, payload: &'a [u8]) -> Self {
        Self {
            rest: payload,
            index: 0,
            count: batch.record_count,
            ended: false,
        }
    }

    /// How many bytes of the payload come after what was yielded.
    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for RecordRefs<'a> {
    type Item = Result<RecordRef<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if self.index == self.count {
            self.ended = true;
            return match self.rest.len() {
                0 => None,
                extra => Some(Err(BatchError::TrailingBytes(extra))),
            };
        }
        match read_record(&mut self.rest) {
            Ok(record) => {
                self.index += 1;
                Some(Ok(record))
            }
            Err(what) => {
                self.ended = true;
                Some(Err(BatchError::InvalidRecord {
                    index: self.index,
                    what,
                }))
            }
        }
    }
}

/// Takes one record off the front of `rest`.
#[inline]
fn read_record<'a>(rest: &mut &'a [u8]) -> Result<RecordRef<'a>, &'static str> {
    let length = varint::read_i32(rest).ok_or("its length is not a varint")?;
    let length = usize::try_from(length).map_err(|_| "its length is negative")?;
    let (mut body, after) = rest
        .split_at_checked(length)
        .ok_or("it is longer than the rest of the batch")?;
    *rest = after;

    // The attributes of a record have no bit in use.
    body = body.get(1..).ok_or("it has no attributes")?;
    let timestamp_delta =
        varint::read_i64(&mut body).ok_or("its timestamp delta is not a varint")?;
    let offset_delta = varint::read_i32(&mut body).ok_or("its offset delta is not a varint")?;
    let key = read_nullable(&mut body, "its key runs past its end")?;
    let value = read_nullable(&mut body, "its value runs past its end")?;
    let header_count = varint::read_i32(&mut body).ok_or("its header count is not a varint")?;
    if header_count < 0 {
        return Err("its header count is negative");
    }
    let headers = body;
    for _ in 0..header_count {
        read_header(&mut body)?;
    }
    if !body.is_empty() {
        return Err("its fields are shorter than its length");
    }
    Ok(RecordRef {
        timestamp_delta,
        offset_delta,
        key,
        value,
        header_count,
        headers,
    })
}

/// Takes one header off the front of `rest`.
fn read_header<'a>(rest: &mut &'a [u8]) -> Result<(&'a [u8], Option<&'a [u8]>), &'static str> {
    let key =
        read_nullable(rest, "a header's key runs past its end")?.ok_or("a header's key is null")?;
    let value = read_nullable(rest, "a header's value runs past its end")?;
    Ok((key, value))
}

/// Takes a length and that many bytes off the front of `rest`.
#[inline]
fn read_nullable<'a>(
    rest: &mut &'a [u8],
    cut_off: &'static str,
) -> Result<Option<&'a [u8]>, &'static str> {
    match varint::read_i32(rest) {
        Some(-1) => Ok(None),
        Some(length) => {
            let length = usize::try_from(length).map_err(|_| "a length is below -1")?;
            let (bytes, after) = rest.split_at_checked(length).ok_or(cut_off)?;
            *rest = after;
            Ok(Some(bytes))
        }
        None => Err("a length is not a varint"),
    }
}

impl<'a> BatchView<'a> {
    /// The records' bytes, decompressed if they were compressed, at most
    /// `max_decompressed` of them. Uncompressed records are what they are.
    pub fn decompressed(&self, max_decompressed: usize) -> Result<Cow<'a, [u8]>, BatchError> {
        let codec = self.header().compression();
        if codec == Compression::None {
            return Ok(Cow::Borrowed(self.payload()));
        }
        codec
            .decompress(self.payload(), max_decompressed)
            .map(Cow::Owned)
            .map_err(|error| BatchError::Compression { codec, error })
    }

    /// The records, owned: their bytes are copied once for the batch, or decompressed.
    pub fn records(&self, max_decompressed: usize) -> Records {
        Records::new(
            *self.header(),
            self.decompressed(max_decompressed)
                .map(|payload| Bytes::from(payload.into_owned())),
        )
    }
}

/// A header of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Its key. Bytes that are no UTF-8 became U+FFFD, as in Kafka's Java.
    pub key: StrBytes,
    /// Its value.
    pub value: Option<Bytes>,
}

/// One record, its fields shared slices of the batch's payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its offset in the log.
    pub offset: Offset,
    /// Its time in ms.
    pub timestamp: i64,
    /// Whose time that is.
    pub timestamp_type: TimestampType,
    /// The key, if it has one.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// The headers, in order.
    pub headers: Vec<RecordHeader>,
}

impl Record {
    /// `record` is a slice of `payload`, so nothing is copied.
    fn share(record: &RecordRef<'_>, batch: &BatchHeader, payload: &Bytes) -> Self {
        let share = |bytes: &[u8]| payload.slice_ref(bytes);
        let headers = record.headers().map(|(key, value)| RecordHeader {
            key: StrBytes::try_from(share(key))
                .unwrap_or_else(|_| String::from_utf8_lossy(key).into_owned().into()),
            value: value.map(share),
        });
        Self {
            offset: record.offset(batch),
            timestamp: record.timestamp(batch),
            timestamp_type: batch.timestamp_type(),
            key: record.key.map(share),
            value: record.value.map(share),
            headers: headers.collect(),
        }
    }
}

/// The owned records of one batch. After an error there are none.
#[derive(Clone, Debug)]
pub struct Records {
    batch: BatchHeader,
    payload: Bytes,
    at: usize,
    index: i32,
    failed: Option<BatchError>,
}

impl Records {
    fn new(batch: BatchHeader, payload: Result<Bytes, BatchError>) -> Self {
        let (payload, failed) = match payload {
            Ok(payload) => (payload, None),
            Err(error) => (Bytes::new(), Some(error)),
        };
        let count = if failed.is_some() {
            0
        } else {
            batch.record_count
        };
        Self {
            batch: BatchHeader {
                record_count: count,
                ..batch
            },
            payload,
            at: 0,
            index: 0,
            failed,
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let mut refs = RecordRefs {
            rest: &self.payload[self.at..],
            index: self.index,
            count: self.batch.record_count,
            ended: false,
        };
        let next = refs.next();
        self.at = self.payload.len() - refs.rest.len();
        self.index = refs.index;
        match next? {
            Ok(record) => Some(Ok(Record::share(&record, &self.batch, &self.payload))),
            Err(error) => {
                self.at = self.payload.len();
                self.index = self.batch.record_count;
                Some(Err(error))
            }
        }
    }
}

/// One batch in shared bytes, from which its records are taken without copying.
#[derive(Clone, Debug)]
pub struct SharedBatch {
    header: BatchHeader,
    bytes: Bytes,
}

impl SharedBatch {
    /// The decoded header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The bytes of exactly this batch.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The same batch, borrowed.
    pub fn view(&self) -> Result<BatchView<'_>, BatchError> {
        BatchView::parse(&self.bytes)
    }

    /// The records, owned: slices of this batch if it is not compressed.
    pub fn records(&self, max_decompressed: usize) -> Records {
        let payload = self
            .view()
            .and_then(|view| match view.decompressed(max_decompressed)? {
                Cow::Borrowed(payload) => Ok(self.bytes.slice_ref(payload)),
                Cow::Owned(payload) => Ok(Bytes::from(payload)),
            });
        Records::new(self.header, payload)
    }
}

/// The consecutive batches of `bytes`, each sharing them: what a Fetch answer holds. After
/// an error there are none; a batch that the size limit cut off is
/// [`BatchError::Truncated`].
pub fn shared_batches(
    bytes: Bytes,
) -> impl Iterator<Item = Result<SharedBatch, BatchError>> + Send {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match BatchView::parse(&rest).map(|view| (*view.header(), view.bytes().len())) {
            Ok((header, length)) => Some(Ok(SharedBatch {
                header,
                bytes: rest.split_to(length),
            })),
            Err(error) => {
                rest.clear();
                Some(Err(error))
            }
        }
    })
}

/// What a topic asks of a produced batch.
#[derive(Clone, Copy, Debug)]
pub struct ValidateOptions {
    /// Refuse records without a key: the topic is compacted.
    pub require_keys: bool,
    /// Accept a control batch: it comes from a broker.
    pub allow_control: bool,
    /// How many bytes the records may be once decompressed.
    pub max_decompressed_bytes: usize,
}

/// What a walk over a batch found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordsSummary {
    /// How many records there are, at least one.
    pub count: i32,
    /// The largest time that a producer gave, [`NO_TIMESTAMP`] if none did.
    pub max_timestamp: i64,
    /// Where the first record with that time is, counted from the batch's base offset.
    pub offset_delta_of_max_timestamp: i32,
    /// The smallest time that a producer gave; `None` if none did.
    pub min_timestamp: Option<i64>,
    /// The records' bytes, decompressed.
    pub decompressed_bytes: usize,
}

/// Walks the records of a produced batch once and checks them: as many as the header
/// says, offsets 0, 1, 2 … up to the last offset delta, every field well-formed, not a byte
/// over. The checksum is not looked at: [`BatchView::check_crc`] comes first.
pub fn validate_records(
    batch: &BatchView<'_>,
    options: &ValidateOptions,
) -> Result<RecordsSummary, BatchError> {
    let header = batch.header();
    if header.is_control() && !options.allow_control {
        return Err(BatchError::ControlBatch);
    }
    if header.record_count == 0 {
        return Err(BatchError::NoRecords);
    }
    if header.last_offset_delta != header.record_count - 1 {
        return Err(BatchError::InvalidCounts {
            record_count: header.record_count,
            last_offset_delta: header.last_offset_delta,
        });
    }
    if header.has_producer_id() && header.base_sequence < 0 && !header.is_control() {
        return Err(BatchError::MissingSequence {
            producer_id: header.producer_id.value(),
        });
    }
    let payload = batch.decompressed(options.max_decompressed_bytes)?;
    let mut summary = RecordsSummary {
        count: header.record_count,
        max_timestamp: NO_TIMESTAMP,
        offset_delta_of_max_timestamp: 0,
        min_timestamp: None,
        decompressed_bytes: payload.len(),
    };
    for (index, record) in (0..).zip(RecordRefs::new(header, &payload)) {
        let record = record?;
        if record.offset_delta != index {
            return Err(BatchError::WrongOffsetDelta {
                index,
                delta: record.offset_delta,
            });
        }
        if options.require_keys && record.key.is_none() {
            return Err(BatchError::MissingKey { index });
        }
        let timestamp = record.create_timestamp(header);
        if timestamp > summary.max_timestamp {
            summary.max_timestamp = timestamp;
            summary.offset_delta_of_max_timestamp = index;
        }
        if timestamp != NO_TIMESTAMP {
            summary.min_timestamp = Some(match summary.min_timestamp {
                Some(min) => min.min(timestamp),
                None => timestamp,
            });
        }
    }
    Ok(summary)
}
