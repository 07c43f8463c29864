//! The control record that ends a producer's transaction in a partition (KIP-98), alone
//! in a control batch of that producer.
//!
//! ```text
//!  key                          value
//!  0         2        4         0         2                   6
//! +---------+--------+         +---------+-------------------+
//! | version | 0 abort|         | version | coordinator epoch |
//! | i16 (0) | 1 commit|        | i16 (0) | i32               |
//! +---------+--------+         +---------+-------------------+
//! ```
//!
//! Later versions may add to the end of both; what is known here stays where it is.

use bytes::Bytes;

use super::{batch::BatchView, builder::RecordBatchBuilder, error::BatchError, iter::RecordRefs};
use crate::ids::{ProducerEpoch, ProducerId};

const VERSION: [u8; 2] = [0, 0];
const ABORT: [u8; 2] = [0, 0];
const COMMIT: [u8; 2] = [0, 1];

/// More than any control record takes.
const MAX_BYTES: usize = 64 << 10;

/// How a transaction ended, and by the word of which coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndMarker {
    /// Whether it was committed; else it was aborted.
    pub commit: bool,
    /// How many times the partition of `__transaction_state` that the transaction belongs
    /// to has been given a leader; it fences old coordinators.
    pub coordinator_epoch: i32,
}

impl EndMarker {
    /// The batch that carries it.
    pub fn build(
        self,
        producer_id: ProducerId,
        producer_epoch: ProducerEpoch,
        timestamp_ms: i64,
    ) -> Bytes {
        let mut key = [0; 4];
        key[..2].copy_from_slice(&VERSION);
        key[2..].copy_from_slice(if self.commit { &COMMIT } else { &ABORT });
        let mut value = [0; 6];
        value[..2].copy_from_slice(&VERSION);
        value[2..].copy_from_slice(&self.coordinator_epoch.to_be_bytes());
        let mut builder = RecordBatchBuilder::new()
            .producer(producer_id, producer_epoch, super::batch::NO_SEQUENCE)
            .transactional()
            .control();
        builder
            .append(timestamp_ms, Some(&key), Some(&value), &[])
            .and_then(|()| builder.build())
            .expect("ten bytes fit into a batch")
    }

    /// The marker in `batch`. `None` if that is an ordinary batch, another kind of control
    /// batch, or one whose record compaction has taken away.
    pub fn read(batch: &BatchView<'_>) -> Result<Option<Self>, BatchError> {
        if !batch.header().is_control() {
            return Ok(None);
        }
        let invalid = |what| BatchError::InvalidRecord { index: 0, what };
        let payload = batch.decompressed(MAX_BYTES)?;
        let Some(record) = RecordRefs::new(batch.header(), &payload).next() else {
            return Ok(None);
        };
        let record = record?;
        let kind = record.key.and_then(|key| key.get(2..4));
        let commit = match kind {
            Some(kind) if kind == COMMIT => true,
            Some(kind) if kind == ABORT => false,
            Some(_) => return Ok(None),
            None => return Err(invalid("a control record without a type")),
        };
        let epoch = record.value.and_then(|value| value.get(2..6));
        match epoch.and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Ok(Some(Self {
                commit,
                coordinator_epoch: i32::from_be_bytes(bytes),
            })),
            None => Err(invalid("a control record without a coordinator epoch")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::batch::NO_SEQUENCE;

    fn control(key: Option<&[u8]>, value: Option<&[u8]>) -> Bytes {
        let mut builder = RecordBatchBuilder::new()
            .producer(ProducerId::new(7), ProducerEpoch::new(3), NO_SEQUENCE)
            .transactional()
            .control();
        builder.append(5, key, value, &[]).unwrap();
        builder.build().unwrap()
    }

    #[test]
    fn a_marker_is_read_as_it_was_built_and_is_kafkas_bytes() {
        for (commit, kind) in [(false, 0), (true, 1)] {
            let marker = EndMarker {
                commit,
                coordinator_epoch: 0x0102_0304,
            };
            let bytes = marker.build(ProducerId::new(7), ProducerEpoch::new(3), 5);
            let batch = BatchView::parse(&bytes).unwrap();
            batch.check_crc().unwrap();
            assert_eq!(EndMarker::read(&batch), Ok(Some(marker)));
            let header = batch.header();
            assert!(header.is_control() && header.is_transactional());
            assert_eq!(header.base_sequence, NO_SEQUENCE);
            assert_eq!(header.producer_epoch, ProducerEpoch::new(3));
            let value = [0, 0, 1, 2, 3, 4];
            assert_eq!(bytes, control(Some(&[0, 0, 0, kind]), Some(&value)));
        }
    }

    #[test]
    fn what_later_versions_add_is_passed_over() {
        let bytes = control(Some(&[0, 1, 0, 1, 9]), Some(&[0, 1, 0, 0, 0, 8, 9, 9]));
        let read = EndMarker::read(&BatchView::parse(&bytes).unwrap());
        let expected = EndMarker {
            commit: true,
            coordinator_epoch: 8,
        };
        assert_eq!(read, Ok(Some(expected)));
    }

    #[test]
    fn what_is_no_marker_is_none_and_what_is_half_of_one_an_error() {
        let read = |bytes: &[u8]| EndMarker::read(&BatchView::parse(bytes).unwrap());
        let mut ordinary = RecordBatchBuilder::new();
        ordinary.append(1, Some(&[0, 0, 0, 1]), None, &[]).unwrap();
        assert_eq!(read(&ordinary.build().unwrap()), Ok(None));
        // A control batch of a Raft quorum.
        assert_eq!(read(&control(Some(&[0, 0, 0, 2]), Some(&[0; 6]))), Ok(None));
        for (key, value) in [
            (None, Some(&[0_u8; 6][..])),
            (Some(&[0_u8, 0, 0][..]), Some(&[0; 6])),
            (Some(&[0, 0, 0, 1]), None),
            (Some(&[0, 0, 0, 1]), Some(&[0; 5])),
        ] {
            let read = read(&control(key, value));
            assert!(
                matches!(read, Err(BatchError::InvalidRecord { .. })),
                "{key:?} {value:?}: {read:?}"
            );
        }
    }
}
