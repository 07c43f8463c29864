//! Reading a log by offset.

use yuxi_protocol::ids::Offset;

use crate::{
    error::{OffsetOutOfRange, ReadError},
    log::{Log, ReadInfo},
    mapping::FileSlice,
    segment::Segment,
};

impl Log {
    /// The batches from the one that holds `from` on: whole batches of one segment, all
    /// of them below `up_to` (the high watermark, the last stable offset or the log's
    /// end), at most `max_bytes` together. With `at_least_one_batch` the first one comes
    /// even if it is larger.
    ///
    /// What is returned stays readable without the lock under which this was called.
    pub fn read(
        &self,
        from: Offset,
        max_bytes: usize,
        at_least_one_batch: bool,
        up_to: Offset,
    ) -> Result<ReadInfo, ReadError> {
        if from < self.log_start_offset || from > self.log_end_offset {
            return Err(self.out_of_range(from).into());
        }
        let nothing = ReadInfo {
            slice: None,
            start_offset: from,
        };
        let up_to = up_to.min(self.log_end_offset);
        if from >= up_to {
            return Ok(nothing);
        }
        for at in self.segment_of(from)..self.segments.len() {
            let segment = &self.segments[at];
            // Compaction can have left a segment without the offsets up to the next one.
            let Some(first) = segment.find(from)? else {
                continue;
            };
            if first.header.base_offset >= up_to {
                return Ok(nothing);
            }
            let limit = self.position_of_limit(at, up_to)?;
            let wanted = first.position.saturating_add(max_bytes as u64);
            let mut end = if limit <= wanted {
                limit
            } else {
                segment.boundary_before(first.position, wanted)?
            };
            if end <= first.position {
                if !at_least_one_batch || first.end() > limit {
                    return Ok(nothing);
                }
                end = first.end();
            }
            return Ok(ReadInfo {
                slice: Some(FileSlice::new(segment.file()?, first.position..end)?),
                start_offset: first.header.base_offset,
            });
        }
        Ok(nothing)
    }

    /// Where in segment `at` the batches end that lie wholly below `up_to`.
    fn position_of_limit(&self, at: usize, up_to: Offset) -> Result<u64, ReadError> {
        let segment = &self.segments[at];
        let end = self
            .segments
            .get(at + 1)
            .map_or(self.log_end_offset, Segment::base_offset);
        if up_to >= end {
            return Ok(segment.size());
        }
        let found = segment.find(up_to)?;
        Ok(found.map_or(segment.size(), |batch| batch.position))
    }

    /// The segment in which `offset` lies, or would lie.
    pub(crate) fn segment_of(&self, offset: Offset) -> usize {
        self.segments
            .partition_point(|segment| segment.base_offset() <= offset)
            .saturating_sub(1)
    }

    pub(crate) fn out_of_range(&self, offset: Offset) -> OffsetOutOfRange {
        OffsetOutOfRange {
            offset,
            log_start_offset: self.log_start_offset,
            log_end_offset: self.log_end_offset,
        }
    }
}
