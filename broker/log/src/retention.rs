//! Deleting old segments by time and size, and the files they leave for a while.

use std::{fs, io, path::PathBuf};

use yuxi_protocol::ids::Offset;

use crate::{
    error::{LogError, ReadError},
    file_io, file_names,
    log::Log,
    segment::Segment,
};

/// Files that were renamed out of the log and are to be removed.
#[derive(Debug)]
pub(crate) struct RemovedFiles {
    paths: Vec<PathBuf>,
    due_ms: i64,
}

impl Log {
    /// Removes the oldest segments that `retention.ms`, `retention.bytes` or the log's
    /// start let go, as far as they lie below `high_watermark`. Returns how many. The
    /// active segment is replaced if even its records are too old.
    ///
    /// Age and size take nothing of a transaction that is still open (Kafka does, and whoever
    /// reads it once it is committed gets a part of it); its time is bounded by
    /// `transaction.max.timeout.ms`.
    pub fn delete_old_segments(
        &mut self,
        now_ms: i64,
        high_watermark: Offset,
    ) -> Result<usize, LogError> {
        let mut deletable = 0;
        if self.config.cleanup_policy.deletes() {
            let by_time = self.older_than_retention(now_ms);
            let by_time = by_time.map_err(|error| self.read_error(error))?;
            deletable = by_time.max(self.beyond_retention_bytes());
            if let Some(undecided) = self.first_undecided_offset() {
                let settled = |&at: &usize| self.end_of_segment(at) <= undecided;
                deletable = (0..deletable).take_while(settled).count();
            }
        }
        deletable = deletable.max(self.before_log_start());
        let committed = (0..deletable)
            .take_while(|&at| self.end_of_segment(at) <= high_watermark)
            .count();
        if committed == 0 {
            return Ok(0);
        }
        if committed == self.segments.len() {
            self.roll(now_ms)?;
        }
        self.remove_first_segments(committed, now_ms)?;
        Ok(committed)
    }

    /// Removes the files whose time has come. One that can't be removed stays until the
    /// next start.
    pub fn remove_deleted(&mut self, now_ms: i64) {
        self.removed.retain(|removed| {
            if removed.due_ms > now_ms {
                return true;
            }
            for path in &removed.paths {
                if let Err(error) = file_io::allow_missing(fs::remove_file(path)) {
                    tracing::warn!(path = %path.display(), %error, "deleted segment not removed");
                }
            }
            false
        });
    }

    pub(crate) fn remove_segments_before_start(&mut self, now_ms: i64) -> Result<(), ReadError> {
        let count = self.before_log_start();
        self.remove_first_segments(count, now_ms)
            .map_err(|error| match error {
                LogError::Storage { error, .. } => ReadError::Storage(error),
                error => ReadError::Storage(io::Error::other(error)),
            })
    }

    /// Renames the files of segment `at` out of the log, for nothing to take their place.
    pub(crate) fn remove_files(&mut self, at: usize, now_ms: i64) -> Result<(), LogError> {
        // Should the process end half-way, a swap of this segment must not bring it back.
        self.cancel_swap()?;
        self.rename_removed(at, now_ms)
    }

    /// Renames the files of segment `at`, to be removed after a while.
    pub(crate) fn rename_removed(&mut self, at: usize, now_ms: i64) -> Result<(), LogError> {
        let segment = &self.segments[at];
        let mut paths = Vec::new();
        // The log first: without it, the rest is no segment.
        for suffix in file_names::SEGMENT_SUFFIXES {
            let from = segment.path(suffix);
            let to = file_names::with_extension(&from, file_names::DELETED);
            match file_io::rename(&from, &to) {
                Ok(()) => paths.push(to),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if suffix == file_names::LOG => {
                    return Err(LogError::storage(from)(error));
                }
                Err(error) => {
                    tracing::warn!(path = %from.display(), %error, "file of a deleted segment stays");
                }
            }
        }
        self.unsynced.dir_changed();
        self.removed.push(RemovedFiles {
            paths,
            due_ms: now_ms.saturating_add(self.config.file_delete_delay_ms),
        });
        Ok(())
    }

    fn remove_first_segments(&mut self, count: usize, now_ms: i64) -> Result<(), LogError> {
        for _ in 0..count {
            self.remove_files(0, now_ms)?;
            self.segments.remove(0);
            let first = self.segments[0].base_offset();
            self.log_start_offset = self.log_start_offset.max(first);
            self.recovery_point = self.recovery_point.max(first);
        }
        if count > 0 {
            let first = self.segments[0].base_offset();
            self.epochs.truncate_start(self.log_start_offset);
            self.snapshots.remove(|offset| offset < first);
        }
        Ok(())
    }

    /// How many of the first segments have only records older than `retention.ms`.
    fn older_than_retention(&self, now_ms: i64) -> Result<usize, ReadError> {
        if self.config.retention_ms < 0 {
            return Ok(0);
        }
        let mut count = 0;
        for (at, segment) in self.segments.iter().enumerate() {
            if segment.size() == 0 && at + 1 == self.segments.len() {
                break;
            }
            let newest = match segment.max_timestamp()?.timestamp {
                timestamp if timestamp >= 0 => timestamp,
                _ => modified_ms(&segment.log_path())?,
            };
            if now_ms.saturating_sub(newest) <= self.config.retention_ms {
                break;
            }
            count += 1;
        }
        Ok(count)
    }

    /// How many of the first segments can go with `retention.bytes` still left.
    fn beyond_retention_bytes(&self) -> usize {
        let Ok(retention_bytes) = u64::try_from(self.config.retention_bytes) else {
            return 0;
        };
        let mut excess = self.size_bytes().saturating_sub(retention_bytes);
        let mut count = 0;
        for (at, segment) in self.segments.iter().enumerate() {
            match excess.checked_sub(segment.size()) {
                Some(rest) if segment.size() > 0 => {
                    excess = rest;
                    count = at + 1;
                }
                // Compaction has emptied it: it goes with what follows.
                Some(_) => {}
                None => break,
            }
        }
        count
    }

    /// How many of the first segments end before the log's start.
    fn before_log_start(&self) -> usize {
        let next = self.segments.iter().skip(1);
        next.take_while(|next| next.base_offset() <= self.log_start_offset)
            .count()
    }

    fn end_of_segment(&self, at: usize) -> Offset {
        let next = self.segments.get(at + 1);
        next.map_or(self.log_end_offset, Segment::base_offset)
    }
}

fn modified_ms(path: &std::path::Path) -> io::Result<i64> {
    let modified = fs::metadata(path)?.modified()?;
    let since_epoch = modified.duration_since(std::time::UNIX_EPOCH);
    Ok(since_epoch.map_or(0, |age| age.as_millis() as i64))
}
