//! Making a log durable, outside of its lock.
//!
//! [`Log::flush_plan`] says under the lock what has to be fsynced, [`Flush::run`] does
//! it without, and [`Log::flushed`] moves the recovery point under the lock again. A
//! truncation in between makes the plan worth nothing, which its generation tells.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use yuxi_protocol::ids::Offset;

use crate::{error::LogError, file_io, log::Log};

/// What awaits an fsync beside the data. Owned by the log.
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    /// Counts truncations.
    generation: u64,
    /// Counts the changes of directory entries, and those that are durable.
    dir_changes: u64,
    dir_synced: u64,
    /// Whether the log's own directory is new in its parent.
    is_new_dir: bool,
    /// Files that were written since, in that order.
    files: Vec<PathBuf>,
    /// When the oldest and the newest record were appended that await an fsync.
    since_ms: Option<i64>,
    last_append_ms: i64,
}

impl Unsynced {
    pub(crate) fn appended(&mut self, now_ms: i64) {
        self.since_ms.get_or_insert(now_ms);
        self.last_append_ms = now_ms;
    }

    pub(crate) fn files(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        for path in paths {
            if !self.files.contains(&path) {
                self.files.push(path);
            }
        }
    }

    pub(crate) fn dir_changed(&mut self) {
        self.dir_changes += 1;
    }

    pub(crate) fn dir_created(&mut self) {
        self.is_new_dir = true;
        self.dir_changed();
    }

    pub(crate) fn truncated(&mut self) {
        self.generation += 1;
        self.dir_changed();
    }

    fn is_empty(&self) -> bool {
        self.dir_changes == self.dir_synced && self.files.is_empty()
    }
}

/// Files to fsync. It keeps them open; the log may go on meanwhile.
#[derive(Debug)]
#[must_use = "nothing is durable before it has been run"]
pub struct Flush {
    logs: Vec<Arc<File>>,
    files: Vec<PathBuf>,
    dirs: Vec<PathBuf>,
    up_to: Offset,
    generation: u64,
    listed_files: usize,
    dir_changes: u64,
    epochs: Option<u64>,
}

impl Flush {
    /// Whether nothing awaits an fsync.
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty() && self.files.is_empty() && self.dirs.is_empty()
    }

    /// The log end offset that it makes durable.
    pub fn up_to(&self) -> Offset {
        self.up_to
    }

    /// Does the fsyncs. An error means that the log directory must not be used any more:
    /// the system may have dropped the pages, and a second fsync would lie.
    pub fn run(&self) -> io::Result<()> {
        for log in &self.logs {
            log.sync_data()?;
        }
        for path in &self.files {
            // A file that has been removed or renamed since needs no fsync.
            file_io::allow_missing(File::open(path).and_then(|file| file.sync_all()))?;
        }
        for dir in &self.dirs {
            file_io::allow_missing(file_io::sync_dir(dir))?;
        }
        Ok(())
    }
}

impl Log {
    /// What has to be fsynced for the log to be durable up to its present end.
    pub fn flush_plan(&mut self) -> Result<Flush, LogError> {
        let storage = LogError::storage(&*self.dir);
        let mut files = self.unsynced.files.clone();
        let epochs = match self.epochs.write().map_err(storage)? {
            Some((path, written)) => {
                files.push(path);
                self.unsynced.dir_changed();
                Some(written)
            }
            None => None,
        };
        let mut logs = Vec::new();
        if self.recovery_point < self.log_end_offset {
            for segment in &self.segments[self.segment_of(self.recovery_point)..] {
                if segment.size() > 0 {
                    let file = segment.file().map_err(LogError::storage(&*self.dir))?;
                    logs.push(Arc::clone(file.file()));
                }
            }
        }
        let mut dirs = Vec::new();
        if self.unsynced.dir_synced < self.unsynced.dir_changes {
            dirs.push(self.dir.to_path_buf());
            if self.unsynced.is_new_dir {
                dirs.extend(self.dir.parent().map(Path::to_path_buf));
            }
        }
        Ok(Flush {
            logs,
            files,
            dirs,
            up_to: self.log_end_offset,
            generation: self.unsynced.generation,
            listed_files: self.unsynced.files.len(),
            dir_changes: self.unsynced.dir_changes,
            epochs,
        })
    }

    /// `flush` has run without an error.
    pub fn flushed(&mut self, flush: &Flush) {
        if let Some(written) = flush.epochs {
            self.epochs.synced(written);
        }
        let unsynced = &mut self.unsynced;
        if flush.dir_changes > unsynced.dir_synced {
            unsynced.dir_synced = flush.dir_changes;
            unsynced.is_new_dir = false;
        }
        if flush.generation != unsynced.generation {
            // The offsets it covers may belong to other records now.
            return;
        }
        if flush.up_to > self.recovery_point {
            self.recovery_point = flush.up_to;
        }
        let done = flush.listed_files.min(unsynced.files.len());
        if unsynced.files[..done] == flush.files[..done] {
            unsynced.files.drain(..done);
        }
        if self.recovery_point >= self.log_end_offset {
            unsynced.since_ms = None;
        } else {
            unsynced.since_ms = Some(unsynced.last_append_ms);
        }
    }

    /// Whether `flush.messages` or `flush.ms` asks for an fsync now.
    pub fn is_flush_due(&self, now_ms: i64) -> bool {
        let waiting = self.log_end_offset.since(self.recovery_point);
        if waiting <= 0 {
            return false;
        }
        // The time of day may have been set back meanwhile.
        let waited = |since: i64| now_ms.abs_diff(since) >= self.config.flush_ms as u64;
        waiting as u64 >= self.config.flush_messages || self.unsynced.since_ms.is_some_and(waited)
    }

    /// Makes everything durable and writes the producers' state, so that the next start
    /// need not scan. To be called last; if anything is appended afterwards it must be
    /// called again.
    pub fn close(&mut self) -> Result<(), LogError> {
        let flush = self.prepare_close()?;
        flush.run().map_err(LogError::storage(&*self.dir))?;
        self.flushed(&flush);
        Ok(())
    }

    /// The first part of [`Log::close`]: writes what is missing and says what has to be
    /// fsynced. With thousands of logs, one [`LogDir::sync`](crate::LogDir::sync) after
    /// all of these is quicker than to run each of them.
    pub fn prepare_close(&mut self) -> Result<Flush, LogError> {
        let finished = self.recovery_point >= self.log_end_offset && self.unsynced.is_empty();
        let has_snapshot = self.snapshots.latest() >= Some(self.log_end_offset)
            || self.log_end_offset == self.segments[0].base_offset();
        if !finished || !has_snapshot {
            let finished = self.active_mut().finish_indexes();
            finished.map_err(|error| self.read_error(error))?;
            let indexes: Vec<_> = self.active().index_paths().collect();
            self.unsynced.files(indexes);
            if !has_snapshot {
                let storage = LogError::storage(&*self.dir);
                self.snapshots
                    .take(self.log_end_offset, self.producers.entries())
                    .map_err(storage)?;
                let path = self.snapshots.path(self.log_end_offset);
                self.unsynced.files([path]);
                self.unsynced.dir_changed();
            }
        }
        self.flush_plan()
    }
}
