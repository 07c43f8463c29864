//! Taking records away: from the end when another leader wrote others there, from the
//! start when they are no longer wanted.

use std::sync::Arc;

use yuxi_protocol::ids::Offset;

use crate::{
    error::{LogError, ReadError},
    loading::Loading,
    log::Log,
    producers::{Producers, Written},
    segment::Segment,
};

impl Log {
    /// Removes the records from `offset` on, and returns whether there were any. A batch
    /// that holds `offset` goes as a whole, and the log then ends before it.
    ///
    /// The recovery point moves back with the end. Before it is truncated below what the
    /// checkpoint file says, that file must be rewritten, or a crash in between would look
    /// like lost data.
    pub fn truncate_to(&mut self, offset: Offset, now_ms: i64) -> Result<bool, LogError> {
        if offset >= self.log_end_offset {
            // An epoch that begins at the end, where this replica led and wrote nothing, is
            // not part of the history that the next leader knows.
            self.epochs.truncate_end(self.log_end_offset);
            return Ok(false);
        }
        if offset <= self.log_start_offset {
            self.truncate_fully_and_start_at(offset, now_ms)?;
            return Ok(true);
        }
        self.unsynced.truncated();
        self.compaction.truncated(offset);
        let is_short = self.active().base_offset() <= offset;
        while self.active().base_offset() > offset {
            // From the end, so that a crash leaves no hole.
            self.remove_files(self.segments.len() - 1, now_ms)?;
            let removed = self.segments.pop();
            self.end_at(removed.map_or(offset, |segment| segment.base_offset()));
        }
        let config = self.config.clone();
        let active = self.active_mut();
        active.set_capacity(&config);
        let mut written = None;
        let (cut_at, end) = match active.find(offset) {
            Ok(Some(batch)) => {
                written = is_short
                    .then(|| Written::from(active, batch.position))
                    .flatten();
                (
                    offset.min(batch.header.base_offset),
                    active.truncate(batch.position, offset),
                )
            }
            // Compaction has left nothing there.
            Ok(None) => (offset, active.load_tail()),
            Err(error) => (offset, Err(error)),
        };
        let last_batch_end = end.map_err(|error| self.read_error(error))?;
        // Compaction can have left a gap before the cut. The log ends after it: what was
        // there is known to have been committed.
        let end = cut_at;
        if end < self.log_start_offset {
            // The batch that went held the first record.
            self.truncate_fully_and_start_at(self.log_start_offset, now_ms)?;
            return Ok(true);
        }
        self.end_at(end);
        self.epochs.truncate_end(end);
        self.snapshots.remove(|taken_at| taken_at > end);
        if !written.is_some_and(|written| self.producers.take_back(&written, end)) {
            self.reload_producers(now_ms)?;
        }
        if last_batch_end < end {
            // No batch says so: the name of a segment does.
            self.roll(now_ms)?;
        }
        Ok(true)
    }

    /// Removes everything; the log begins anew at `offset`.
    pub fn truncate_fully_and_start_at(
        &mut self,
        offset: Offset,
        now_ms: i64,
    ) -> Result<(), LogError> {
        self.unsynced.truncated();
        self.compaction.truncated(offset);
        while let Some(last) = self.segments.len().checked_sub(1) {
            self.remove_files(last, now_ms)?;
            if last == 0 {
                break;
            }
            let removed = self.segments.pop();
            if let Some(segment) = removed {
                self.end_at(segment.base_offset());
            }
        }
        let segment = Segment::create(Arc::clone(&self.dir), offset, &self.config, now_ms)
            .map_err(LogError::storage(&*self.dir))?;
        self.segments[0] = segment;
        self.log_start_offset = offset;
        self.log_end_offset = offset;
        self.recovery_point = offset;
        self.epochs.clear();
        self.snapshots.remove(|_| true);
        self.producers = Producers::default();
        Ok(())
    }

    /// Moves the log's start up to `offset`, at most to the log's end; segments that lie
    /// wholly before it are removed. It is for the caller to write the checkpoint.
    pub fn delete_records_before(&mut self, offset: Offset, now_ms: i64) -> Result<(), ReadError> {
        if offset > self.log_end_offset {
            return Err(self.out_of_range(offset).into());
        }
        if offset <= self.log_start_offset {
            return Ok(());
        }
        self.log_start_offset = offset;
        self.epochs.truncate_start(offset);
        self.remove_segments_before_start(now_ms)
    }

    fn end_at(&mut self, offset: Offset) {
        self.log_end_offset = offset;
        self.recovery_point = self.recovery_point.min(offset);
    }

    fn reload_producers(&mut self, now_ms: i64) -> Result<(), LogError> {
        if self.producers.is_empty() {
            return Ok(());
        }
        let mut loaded = self.read_producers(now_ms)?;
        let before = std::mem::take(self.producers.transactions_mut());
        loaded
            .transactions_mut()
            .restore_decided(before, self.log_end_offset);
        self.producers = loaded;
        Ok(())
    }

    /// What the log's batches make of the newest snapshot. That takes as long as reading all
    /// that came after it.
    pub(crate) fn read_producers(&mut self, now_ms: i64) -> Result<Producers, LogError> {
        let loading = Loading {
            log_start_offset: self.log_start_offset,
            log_end_offset: self.log_end_offset,
            now_ms,
            expiration_ms: self.config.producer_id_expiration_ms,
        };
        let loaded = loading.run(&mut self.snapshots, &mut self.segments, &[]);
        loaded.map_err(|error| self.read_error(error))
    }
}
