//! The segment that a group of segments becomes, written beside the log.
//!
//! Its files end in `.cleaned` until they are swapped in, and are removed if that never
//! happens. They are durable, indexes and all, before they are offered to the log.

use std::{
    fs::{self, File},
    io::IoSlice,
    path::{Path, PathBuf},
    sync::Arc,
};

use yuxi_protocol::{
    ids::Offset,
    record::{BatchError, batch::BatchHeader},
};

use super::{
    CompactionError, Pace, keep_pace,
    plan::{Compaction, CompactionTicket},
    source::Source,
};
use crate::{
    error::LogError,
    file_io, file_names,
    index::OffsetIndex,
    segment::{AppendedBatch, Segment},
    time_index::{TimeIndex, TimestampOffset},
    txn_index::{AbortedTransaction, TxnIndex},
};

/// What is written at a time.
const WRITE_BYTES: usize = 1 << 20;

/// Index entries hold positions in 31 bits.
const MAX_BYTES: u64 = i32::MAX as u64;

/// A segment in the making.
pub(super) struct Output {
    cleaned: CleanedSegment,
    file: File,
    offsets: OffsetIndex,
    times: TimeIndex,
    index_interval_bytes: u64,
    indexed_position: u64,
    max_timestamp: TimestampOffset,
    aborted: TxnIndex,
    /// Batches that are not written yet.
    buffer: Vec<u8>,
    /// Bytes of the sources that are still to come.
    ahead: u64,
}

impl Output {
    pub(super) fn create(plan: &Compaction, sources: &[Source]) -> Result<Self, CompactionError> {
        let base_offset = sources[0].base_offset;
        let cleaned = CleanedSegment {
            dir: Arc::clone(&plan.dir),
            ticket: plan.ticket,
            base_offset,
            size: 0,
            has_aborted: false,
            sources: sources.to_vec(),
            stage: Stage::Cleaned,
            replaced: Vec::new(),
        };
        let log = cleaned.path(file_names::LOG, file_names::CLEANED);
        // The directory may have been renamed, because the partition was deleted.
        let file = File::create_new(&log).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => CompactionError::Abandoned,
            _ => LogError::storage(&log)(error).into(),
        })?;
        let storage = |error| LogError::storage(&log)(error);
        let index = cleaned.path(file_names::INDEX, file_names::CLEANED);
        let times = cleaned.path(file_names::TIME_INDEX, file_names::CLEANED);
        let aborted = cleaned.path(file_names::TXN_INDEX, file_names::CLEANED);
        Ok(Self {
            offsets: OffsetIndex::open(index, base_offset).map_err(storage)?,
            times: TimeIndex::open(times, base_offset).map_err(storage)?,
            cleaned,
            file,
            index_interval_bytes: u64::from(plan.config.index_interval_bytes),
            indexed_position: 0,
            max_timestamp: TimestampOffset::none(base_offset),
            aborted: TxnIndex::absent(aborted),
            buffer: Vec::with_capacity(WRITE_BYTES),
            ahead: sources.iter().map(|source| source.size).sum(),
        })
    }

    /// So many bytes of the sources have been dealt with or are about to be.
    pub(super) fn taken(&mut self, bytes: usize) {
        self.ahead -= bytes as u64;
    }

    /// Adds a batch: what `write` appends to the buffer, or `original` if the segment could
    /// otherwise become larger than positions can say.
    pub(super) fn add(
        &mut self,
        original: &[u8],
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), BatchError>,
    ) -> Result<u64, BatchError> {
        let start = self.buffer.len();
        write(&mut self.buffer)?;
        if self.position_of(self.buffer.len()) + self.ahead > MAX_BYTES {
            self.buffer.truncate(start);
            self.buffer.extend_from_slice(original);
        }
        let header = BatchHeader::parse(&self.buffer[start..])?;
        let batch = AppendedBatch::from_header(&header);
        if batch.max_timestamp > self.max_timestamp.timestamp {
            self.max_timestamp = TimestampOffset {
                timestamp: batch.max_timestamp,
                offset: batch.last_offset,
            };
        }
        let position = self.position_of(start);
        if position - self.indexed_position > self.index_interval_bytes {
            self.offsets.push(batch.last_offset, position);
            self.times.push_if_later(self.max_timestamp);
            self.indexed_position = position;
        }
        Ok(batch.size)
    }

    /// A transaction was aborted whose marker stays.
    pub(super) fn add_aborted(&mut self, aborted: AbortedTransaction) {
        self.aborted.push(aborted);
        self.cleaned.has_aborted = true;
    }

    /// Writes the buffer once it is worth it.
    pub(super) fn write_some(&mut self, pace: &mut Pace<'_>) -> Result<(), CompactionError> {
        if self.buffer.len() >= WRITE_BYTES {
            self.write(pace)?;
        }
        Ok(())
    }

    fn write(&mut self, pace: &mut Pace<'_>) -> Result<(), CompactionError> {
        let parts = &mut [IoSlice::new(&self.buffer)];
        file_io::write_at(&self.file, parts, self.cleaned.size)
            .map_err(|error| self.storage(error))?;
        let bytes = self.buffer.len() as u64;
        self.cleaned.size += bytes;
        self.buffer.clear();
        keep_pace(pace, bytes)
    }

    /// Writes what is left and makes all of it durable.
    pub(super) fn finish(mut self, pace: &mut Pace<'_>) -> Result<CleanedSegment, CompactionError> {
        if !self.buffer.is_empty() {
            self.write(pace)?;
        }
        if self.cleaned.size > 0 {
            self.times.push_if_later(self.max_timestamp);
        }
        let written = self
            .offsets
            .write_pending()
            .and_then(|()| self.times.write_pending())
            .and_then(|()| self.aborted.write_pending());
        written.map_err(|error| self.storage(error))?;
        if !self.cleaned.has_aborted {
            // Even so, for it to take the place of what the sources have.
            let path = self.aborted.path();
            File::create_new(path).map_err(LogError::storage(path))?;
        }
        self.keep_modification_time()?;
        for suffix in file_names::SEGMENT_SUFFIXES {
            let path = self.cleaned.path(suffix, file_names::CLEANED);
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(LogError::storage(path))?;
        }
        Ok(self.cleaned)
    }

    /// Retention of records without timestamps goes by it.
    fn keep_modification_time(&self) -> Result<(), CompactionError> {
        let Some(last) = self.cleaned.sources.last() else {
            return Ok(());
        };
        last.open(&self.cleaned.dir, file_names::LOG)?
            .metadata()
            .and_then(|metadata| metadata.modified())
            .and_then(|modified| self.file.set_modified(modified))
            .map_err(|error| self.storage(error))
    }

    /// Where in the file the buffer's byte `at` goes.
    fn position_of(&self, at: usize) -> u64 {
        self.cleaned.size + at as u64
    }

    fn storage(&self, error: std::io::Error) -> CompactionError {
        let path = self.cleaned.path(file_names::LOG, file_names::CLEANED);
        LogError::storage(path)(error).into()
    }
}

/// A cleaned segment beside the log, to be swapped in. Dropped before that, it is gone.
#[derive(Debug)]
#[must_use = "it has to be swapped in"]
pub struct CleanedSegment {
    pub(super) dir: Arc<Path>,
    pub(super) ticket: CompactionTicket,
    pub(super) base_offset: Offset,
    pub(super) size: u64,
    /// Whether it has markers of aborted transactions.
    pub(super) has_aborted: bool,
    /// What it was made of.
    pub(super) sources: Vec<Source>,
    pub(super) stage: Stage,
    /// What it took the place of. To unmap that takes time, which nobody has under the lock.
    pub(super) replaced: Vec<Segment>,
}

/// What the files of a cleaned segment are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// `.cleaned`: of no worth to the log.
    Cleaned,
    /// They are the log's.
    Swapped,
}

impl CleanedSegment {
    /// Makes the names durable that [`Log::begin_swap`](crate::Log::begin_swap) gave. An
    /// error means that the log directory must not be used any more.
    pub fn sync_names(&self) -> Result<(), LogError> {
        file_io::sync_dir(&self.dir).map_err(LogError::storage(&*self.dir))
    }

    pub(super) fn path(&self, suffix: &str, stage: &str) -> PathBuf {
        file_names::with_extension(
            &file_names::path(&self.dir, self.base_offset, suffix),
            stage,
        )
    }
}

impl Drop for CleanedSegment {
    fn drop(&mut self) {
        if self.stage == Stage::Cleaned {
            for suffix in file_names::SEGMENT_SUFFIXES {
                // What can't be removed now is before the next segment is cleaned.
                let _ = file_io::remove(&self.path(suffix, file_names::CLEANED));
            }
        }
    }
}

/// Removes `.cleaned` files that an earlier attempt left. One beside a half-done swap would
/// make recovery take that for not begun.
pub(super) fn remove_leftovers(dir: &Path) -> Result<(), CompactionError> {
    let storage = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => CompactionError::Abandoned,
        _ => LogError::storage(dir)(error).into(),
    };
    for entry in fs::read_dir(dir).map_err(storage)? {
        let path = entry.map_err(storage)?.path();
        if path
            .extension()
            .is_some_and(|end| end == file_names::CLEANED)
        {
            file_io::remove(&path).map_err(storage)?;
        }
    }
    Ok(())
}
