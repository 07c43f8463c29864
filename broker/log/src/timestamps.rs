//! Finding records by their timestamps (`ListOffsets`).

use std::ops::ControlFlow;

use yuxi_protocol::{
    ids::{LeaderEpoch, Offset},
    record::{BatchError, BatchView, iter::RecordRefs},
};

use crate::{
    error::ReadError,
    log::Log,
    segment::{Segment, StoredBatch},
};

/// More than a stored batch may decompress to here.
const MAX_DECOMPRESSED_BYTES: usize = 256 << 20;

/// A record found by its timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundTimestamp {
    /// The record's timestamp.
    pub timestamp: i64,
    /// The record's offset.
    pub offset: Offset,
    /// The leader epoch of its batch.
    pub leader_epoch: LeaderEpoch,
}

impl Log {
    /// The first record whose timestamp is at least `timestamp`.
    pub fn offset_for_timestamp(
        &self,
        timestamp: i64,
    ) -> Result<Option<FoundTimestamp>, ReadError> {
        for segment in &self.segments[self.segment_of(self.log_start_offset)..] {
            if segment.size() == 0 || segment.max_timestamp()?.timestamp < timestamp {
                continue;
            }
            let mut from = segment.lookup_timestamp(timestamp)?;
            while let Some(batch) = segment.walk(from, |batch| {
                let header = &batch.header;
                if header.max_timestamp >= timestamp
                    && header.last_offset() >= self.log_start_offset
                {
                    ControlFlow::Break(batch)
                } else {
                    ControlFlow::Continue(())
                }
            })? {
                if let Some(found) = self.first_record_at(segment, &batch, timestamp)? {
                    return Ok(Some(found));
                }
                from = batch.end();
            }
        }
        Ok(None)
    }

    /// The first record that has the largest timestamp of the log (KIP-734).
    pub fn max_timestamp(&self) -> Result<Option<FoundTimestamp>, ReadError> {
        let mut best: Option<(&Segment, i64, Offset)> = None;
        for segment in &self.segments {
            let max = segment.max_timestamp()?;
            let larger = best.is_none_or(|(_, timestamp, _)| timestamp < max.timestamp);
            if segment.size() > 0 && max.timestamp >= 0 && larger {
                best = Some((segment, max.timestamp, max.offset));
            }
        }
        let Some((segment, timestamp, offset)) = best else {
            return Ok(None);
        };
        match segment.find(offset)? {
            Some(batch) => self.first_record_at(segment, &batch, timestamp),
            None => Ok(None),
        }
    }

    fn first_record_at(
        &self,
        segment: &Segment,
        batch: &StoredBatch,
        timestamp: i64,
    ) -> Result<Option<FoundTimestamp>, ReadError> {
        segment.with_batch(batch, |view| {
            first_record(view, timestamp, self.log_start_offset)
        })
    }
}

fn first_record(
    batch: &BatchView<'_>,
    timestamp: i64,
    from: Offset,
) -> Result<Option<FoundTimestamp>, BatchError> {
    let header = batch.header();
    let payload = batch.decompressed(MAX_DECOMPRESSED_BYTES)?;
    for record in RecordRefs::new(header, &payload) {
        let record = record?;
        let found = FoundTimestamp {
            timestamp: record.timestamp(header),
            offset: record.offset(header),
            leader_epoch: header.partition_leader_epoch,
        };
        if found.timestamp >= timestamp && found.offset >= from {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
