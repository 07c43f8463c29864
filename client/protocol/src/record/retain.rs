//! Leaving records out of a stored batch, as compaction does.
//!
//! What is left keeps its bytes: offsets stay relative to the same base offset, and
//! timestamps to the same base timestamp, so records are copied and not encoded again.
//! Only a delete horizon, which takes the base timestamp's place (KIP-534), makes the
//! timestamp deltas new.
//!
//! Invariant: the base offset, the last offset delta and the producer's fields of a batch
//! never change, whatever it loses. They say where the batch stood in the log and which
//! sequence its producer has reached.

use std::ops::Range;

use super::{
    batch::{BatchHeader, LOG_OVERHEAD, NO_TIMESTAMP, RECORD_BATCH_OVERHEAD, TimestampType, seal},
    compression::{Compression, CompressionError},
    error::BatchError,
    iter::{RecordRef, RecordRefs},
    varint,
};

/// Chooses records of one batch after the other; it keeps its buffers.
#[derive(Debug, Default)]
pub struct RecordFilter {
    /// Where in the payload the chosen records stand, neighbours together.
    chosen: Vec<Range<usize>>,
    /// They, before they are compressed.
    plain: Vec<u8>,
}

/// What was chosen of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    /// How many records.
    pub count: i32,
    /// Whether that is all of them.
    pub is_all: bool,
    /// Whether one of them has no value.
    pub has_tombstone: bool,
    /// The largest timestamp of them.
    pub max_timestamp: i64,
}

impl RecordFilter {
    /// Goes through the records of a batch and chooses those that `keep` wants. `payload`
    /// is what [`BatchView::decompressed`](super::BatchView::decompressed) gave.
    pub fn choose(
        &mut self,
        batch: &BatchHeader,
        payload: &[u8],
        mut keep: impl FnMut(&RecordRef<'_>) -> bool,
    ) -> Result<Retained, BatchError> {
        self.chosen.clear();
        let mut retained = Retained {
            count: 0,
            is_all: true,
            has_tombstone: false,
            max_timestamp: NO_TIMESTAMP,
        };
        let mut records = RecordRefs::new(batch, payload);
        let mut start = 0;
        while let Some(record) = records.next() {
            let record = record?;
            let end = payload.len() - records.remaining();
            if keep(&record) {
                match self.chosen.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => self.chosen.push(start..end),
                }
                let timestamp = record.timestamp(batch);
                retained.max_timestamp = if retained.count == 0 {
                    timestamp
                } else {
                    retained.max_timestamp.max(timestamp)
                };
                retained.count += 1;
                retained.has_tombstone |= record.value.is_none();
            } else {
                retained.is_all = false;
            }
            start = end;
        }
        Ok(retained)
    }

    /// Appends to `out` the batch with nothing but the records chosen last, at least one,
    /// and with `delete_horizon_ms` if one is given. After an error nothing is appended.
    pub fn write(
        &mut self,
        batch: &BatchHeader,
        payload: &[u8],
        retained: &Retained,
        delete_horizon_ms: Option<i64>,
        out: &mut Vec<u8>,
    ) -> Result<(), BatchError> {
        let mut header = *batch;
        header.record_count = retained.count;
        if batch.timestamp_type() == TimestampType::CreateTime {
            header.max_timestamp = retained.max_timestamp;
        }
        if let Some(horizon) = delete_horizon_ms {
            header.attributes = header.attributes.with_delete_horizon(true);
            header.base_timestamp = horizon;
        }
        // What every record's delta must grow by for its timestamp to stay.
        let shift = batch.base_timestamp.wrapping_sub(header.base_timestamp);
        let start = out.len();
        let written = match batch.compression() {
            Compression::None => {
                out.resize(start + RECORD_BATCH_OVERHEAD, 0);
                copy_records(&self.chosen, payload, shift, out)
            }
            codec => {
                self.plain.clear();
                out.resize(start + RECORD_BATCH_OVERHEAD, 0);
                copy_records(&self.chosen, payload, shift, &mut self.plain).and_then(|()| {
                    codec
                        .compress(None, &self.plain, out)
                        .map_err(|error| BatchError::Compression { codec, error })
                })
            }
        };
        let finished = written.and_then(|()| finish(header, &mut out[start..]));
        if finished.is_err() {
            out.truncate(start);
        }
        finished
    }
}

/// Appends to `out` the batch without any record, as it is kept for what its header says
/// of the producer and the log.
pub fn write_without_records(batch: &BatchHeader, out: &mut Vec<u8>) -> Result<(), BatchError> {
    let header = BatchHeader {
        attributes: batch
            .attributes
            .with_compression(Compression::None)
            .with_delete_horizon(false),
        base_timestamp: NO_TIMESTAMP,
        record_count: 0,
        ..*batch
    };
    let start = out.len();
    out.resize(start + RECORD_BATCH_OVERHEAD, 0);
    finish(header, &mut out[start..])
}

/// Copies the records in `chosen`, with `shift` added to their timestamp deltas.
fn copy_records(
    chosen: &[Range<usize>],
    payload: &[u8],
    shift: i64,
    out: &mut Vec<u8>,
) -> Result<(), BatchError> {
    for range in chosen {
        let mut rest = &payload[range.clone()];
        if shift == 0 {
            out.extend_from_slice(rest);
            continue;
        }
        while !rest.is_empty() {
            copy_shifted(&mut rest, shift, out).ok_or(BatchError::InvalidRecord {
                index: 0,
                what: "it is not the record that was chosen",
            })?;
        }
    }
    Ok(())
}

/// Copies the first record of `rest`. `None` if there is no whole one.
fn copy_shifted(rest: &mut &[u8], shift: i64, out: &mut Vec<u8>) -> Option<()> {
    let length = usize::try_from(varint::read_i32(rest)?).ok()?;
    let (body, after) = rest.split_at_checked(length)?;
    *rest = after;
    let (attributes, mut body) = body.split_first()?;
    let delta = varint::read_i64(&mut body)?.wrapping_add(shift);
    let length = 1 + varint::size(delta) + body.len();
    varint::write(length as i64, out);
    out.push(*attributes);
    varint::write(delta, out);
    out.extend_from_slice(body);
    Some(())
}

/// Writes the header into the room before the records, then the length and the checksum.
fn finish(mut header: BatchHeader, batch: &mut [u8]) -> Result<(), BatchError> {
    header.batch_length =
        i32::try_from(batch.len() - LOG_OVERHEAD).map_err(|_| BatchError::Compression {
            codec: header.compression(),
            error: CompressionError::TooLarge {
                cap: i32::MAX as usize,
            },
        })?;
    batch[..RECORD_BATCH_OVERHEAD].copy_from_slice(&header.to_bytes());
    seal(batch);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId},
        record::{BatchView, Record, RecordBatchBuilder},
    };

    const NOW: i64 = 1_700_000_000_000;
    const CAP: usize = 1 << 20;

    /// Ten records at offsets 100, 102, … with falling timestamps; every third has no value.
    fn batch(codec: Compression) -> Vec<u8> {
        let mut builder = RecordBatchBuilder::new()
            .placed_at(Offset::new(100), LeaderEpoch::new(3))
            .producer(ProducerId::new(9), ProducerEpoch::new(2), 40)
            .transactional()
            .compression(codec, None);
        for number in 0..10_i64 {
            let key = format!("key-{number}");
            let value = (number % 3 != 0).then(|| vec![b'v'; 90 * number as usize]);
            let headers = [("name", Some(&b"value"[..])), ("empty", None)];
            builder
                .append_at(
                    Offset::new(100 + 2 * number),
                    NOW - 1000 * number,
                    Some(key.as_bytes()),
                    value.as_deref(),
                    &headers,
                )
                .unwrap();
        }
        builder.build().unwrap().to_vec()
    }

    fn records(bytes: &[u8]) -> Vec<Record> {
        let view = BatchView::parse(bytes).unwrap();
        view.check_crc().unwrap();
        view.records(CAP).map(Result::unwrap).collect()
    }

    fn filtered(
        bytes: &[u8],
        horizon: Option<i64>,
        keep: impl Fn(i64) -> bool,
    ) -> (Retained, Vec<u8>) {
        let view = BatchView::parse(bytes).unwrap();
        let header = *view.header();
        let payload = view.decompressed(CAP).unwrap();
        let mut filter = RecordFilter::default();
        let retained = filter
            .choose(&header, &payload, |record| {
                keep(record.offset(&header).value())
            })
            .unwrap();
        let mut out = b"before".to_vec();
        filter
            .write(&header, &payload, &retained, horizon, &mut out)
            .unwrap();
        (retained, out.split_off(6))
    }

    #[test]
    fn what_is_kept_is_as_it_was_with_every_codec() {
        type Keep = fn(i64) -> bool;
        let choices: [Keep; 4] = [
            |_| true,
            |offset| offset % 4 == 0,
            |offset| offset == 118,
            |offset| offset < 105,
        ];
        for codec in Compression::ALL {
            let original = batch(codec);
            for keep in choices {
                for horizon in [None, Some(NOW + 86_400_000), Some(5)] {
                    let (retained, bytes) = filtered(&original, horizon, keep);
                    let expected: Vec<_> = records(&original)
                        .into_iter()
                        .filter(|record| keep(record.offset.value()))
                        .collect();
                    assert_eq!(records(&bytes), expected, "{codec}");
                    assert_eq!(retained.count as usize, expected.len());
                    assert_eq!(retained.is_all, expected.len() == 10);
                    let tombstones = expected.iter().filter(|record| record.value.is_none());
                    assert_eq!(retained.has_tombstone, tombstones.count() > 0);
                    let before = BatchView::parse(&original).unwrap();
                    let after = BatchView::parse(&bytes).unwrap();
                    let (before, after) = (before.header(), after.header());
                    let max = expected.iter().map(|record| record.timestamp).max();
                    assert_eq!(Some(after.max_timestamp), max);
                    assert_eq!(after.delete_horizon_ms(), horizon);
                    let same = BatchHeader {
                        batch_length: after.batch_length,
                        crc: after.crc,
                        attributes: after.attributes,
                        base_timestamp: after.base_timestamp,
                        max_timestamp: after.max_timestamp,
                        record_count: after.record_count,
                        ..*before
                    };
                    assert_eq!(*after, same, "offsets and producer stay");
                    assert_eq!(after.compression(), codec);
                    assert!(after.is_transactional());
                }
            }
        }
    }

    #[test]
    fn a_batch_from_which_nothing_is_taken_keeps_its_bytes() {
        let original = batch(Compression::None);
        assert_eq!(filtered(&original, None, |_| true).1, original);
    }

    #[test]
    fn a_horizon_that_a_batch_has_survives_further_losses() {
        let (_, first) = filtered(&batch(Compression::Zstd), Some(NOW + 7), |_| true);
        let (_, second) = filtered(&first, None, |offset| offset > 106);
        let view = BatchView::parse(&second).unwrap();
        assert_eq!(view.header().delete_horizon_ms(), Some(NOW + 7));
        assert_eq!(records(&second)[0].timestamp, NOW - 4000);
    }

    #[test]
    fn a_batch_without_records_still_says_where_it_stood_and_what_its_producer_sent() {
        let (_, original) = filtered(&batch(Compression::Gzip), Some(NOW), |_| true);
        let mut bytes = Vec::new();
        let before = *BatchView::parse(&original).unwrap().header();
        write_without_records(&before, &mut bytes).unwrap();
        assert_eq!(bytes.len(), RECORD_BATCH_OVERHEAD);
        let after = BatchView::parse(&bytes).unwrap();
        after.check_crc().unwrap();
        let after = after.header();
        assert_eq!(after.last_offset(), Offset::new(118));
        assert_eq!(after.last_sequence(), before.last_sequence());
        assert_eq!((after.record_count, after.base_timestamp), (0, -1));
        assert_eq!(after.max_timestamp, before.max_timestamp);
        assert_eq!(after.delete_horizon_ms(), None);
        assert!(after.is_transactional());
        assert!(records(&bytes).is_empty());
    }

    #[test]
    fn append_times_stay_what_they_are() {
        let mut builder = RecordBatchBuilder::new().log_append_time(NOW + 50);
        for number in 0..3 {
            builder.append(NOW + number, Some(b"k"), None, &[]).unwrap();
        }
        let original = builder.build().unwrap();
        let (_, bytes) = filtered(&original, Some(NOW + 9000), |offset| offset == 1);
        assert_eq!(records(&bytes)[0].timestamp, NOW + 50);
    }

    #[test]
    fn a_malformed_record_is_an_error() {
        let mut original = batch(Compression::None);
        original[RECORD_BATCH_OVERHEAD] = 0xff;
        let view = BatchView::parse(&original).unwrap();
        let chosen = RecordFilter::default().choose(view.header(), view.payload(), |_| true);
        assert!(matches!(chosen, Err(BatchError::InvalidRecord { .. })));
    }
}
