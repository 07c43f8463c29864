//! One segment: a `.log` file with its two indexes, and that of its aborted transactions.
//!
//! Owned by the log. Files are opened and mapped when they are first needed and let go
//! of when they have not been used for a while, so that a cold segment costs nothing but
//! this struct. Invariants: `size` bytes are whole batches whose offsets increase;
//! whoever has a [`FileSlice`](crate::FileSlice) reads below `size`; index entries
//! point at batches below `size`.

use std::{
    fs::{self, File},
    io::{self, IoSlice},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use yuxi_protocol::{
    ids::Offset,
    record::{
        BatchError, BatchView,
        batch::{BatchHeader, NO_TIMESTAMP, RECORD_BATCH_OVERHEAD},
    },
};

use crate::{
    config::LogConfig,
    error::ReadError,
    file_io, file_names,
    index::{self, OffsetIndex},
    mapping::SegmentFile,
    time_index::{self, TimeIndex, TimestampOffset},
    txn_index::TxnIndex,
};

#[derive(Debug)]
pub(crate) struct Segment {
    dir: Arc<Path>,
    base_offset: Offset,
    size: u64,
    /// What it may grow to: nothing more unless it is the active one.
    capacity: u64,
    /// The position of the last batch that the index has, or 0.
    indexed_position: u64,
    /// Since when it waits to be rolled, if its first batch has no timestamp.
    created_ms: i64,
    /// A write failed and what it left could not be cut off yet.
    needs_trim: bool,
    first_timestamp: OnceLock<i64>,
    max_timestamp: OnceLock<TimestampOffset>,
    open: Mutex<OpenFiles>,
    /// The aborted transactions whose markers are here, if there may be any. It stays when
    /// files are let go of, so that adding to it cannot fail.
    aborted: Option<Box<TxnIndex>>,
}

#[derive(Debug, Default)]
struct OpenFiles {
    file: Option<Arc<SegmentFile>>,
    indexes: Option<Box<Indexes>>,
    /// Whether the indexes are known to be this segment's: they were compared with it,
    /// or made by this process.
    checked: bool,
}

/// Both indexes of a segment, which have their entries at the same places.
#[derive(Debug)]
pub(crate) struct Indexes {
    pub(crate) offsets: OffsetIndex,
    pub(crate) times: TimeIndex,
}

/// What an append adds to the indexes for one batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AppendedBatch {
    pub(crate) size: u64,
    pub(crate) last_offset: Offset,
    pub(crate) max_timestamp: i64,
}

/// A batch in a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredBatch {
    pub(crate) position: u64,
    pub(crate) header: BatchHeader,
}

impl StoredBatch {
    pub(crate) fn end(&self) -> u64 {
        self.position + self.header.size_in_bytes() as u64
    }
}

impl Segment {
    /// A segment that is there already, with `size` bytes of whole batches.
    pub(crate) fn existing(dir: Arc<Path>, base_offset: Offset, size: u64, now_ms: i64) -> Self {
        Self {
            dir,
            base_offset,
            size,
            capacity: 0,
            indexed_position: 0,
            created_ms: now_ms,
            needs_trim: false,
            first_timestamp: OnceLock::new(),
            max_timestamp: OnceLock::new(),
            open: Mutex::default(),
            aborted: None,
        }
    }

    /// Creates the files of a new, empty segment. What may be left under the same names
    /// is not part of any log.
    pub(crate) fn create(
        dir: Arc<Path>,
        base_offset: Offset,
        config: &LogConfig,
        now_ms: i64,
    ) -> io::Result<Self> {
        let mut segment = Self::existing(dir, base_offset, 0, now_ms);
        segment.set_capacity(config);
        segment.max_timestamp = OnceLock::from(TimestampOffset::none(base_offset));
        segment.open_files().checked = true;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        for suffix in [file_names::INDEX, file_names::TIME_INDEX] {
            options.open(segment.path(suffix))?;
        }
        file_io::allow_missing(fs::remove_file(segment.path(file_names::TXN_INDEX)))?;
        let file = options.open(segment.log_path())?;
        if config.preallocate {
            // Blocks only: the length says where the log ends.
            let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, keep, 0, config.segment_bytes)?;
        }
        Ok(segment)
    }

    pub(crate) fn base_offset(&self) -> Offset {
        self.base_offset
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.path(file_names::LOG)
    }

    pub(crate) fn path(&self, suffix: &str) -> PathBuf {
        file_names::path(&self.dir, self.base_offset, suffix)
    }

    /// How far the active segment may grow, now that the settings are these.
    pub(crate) fn set_capacity(&mut self, config: &LogConfig) {
        self.capacity = config.max_segment_bytes();
        if self.size == 0 {
            // It may have been mapped for less. Nobody has a slice of an empty file.
            self.open_files().file = None;
        }
    }

    /// The file, opened if it was not.
    pub(crate) fn file(&self) -> io::Result<Arc<SegmentFile>> {
        let mut open = self.open_files();
        self.file_in(&mut open).cloned()
    }

    fn file_in<'a>(&self, open: &'a mut OpenFiles) -> io::Result<&'a Arc<SegmentFile>> {
        let file = if let Some(file) = open.file.take() {
            file
        } else {
            let capacity = self.capacity.max(self.size);
            let file = SegmentFile::open(&self.log_path(), self.size, capacity)?;
            Arc::new(file)
        };
        file.mark_used();
        Ok(open.file.insert(file))
    }

    /// Whether `bytes` more can be appended, given the settings and what is mapped.
    pub(crate) fn has_room(&self, bytes: u64, config: &LogConfig) -> bool {
        let open = self.open_files();
        let mapped = open.file.as_ref().map(|file| file.capacity());
        let limit = mapped.map_or(self.capacity, |mapped| mapped.min(self.capacity));
        let entries = open.indexes.as_ref().map_or((0, 0), |indexes| {
            (indexes.offsets.len(), indexes.times.len())
        });
        let index_bytes = config.segment_index_bytes as usize;
        // The time index keeps room for its last entry, made when the segment is closed.
        self.size + bytes <= limit
            && entries.0 < index_bytes / index::ENTRY_BYTES
            && entries.1 + 1 < index_bytes / time_index::ENTRY_BYTES
    }

    /// Since when records wait in this segment: the timestamp of its first batch, or its
    /// creation. `None` when it is empty.
    pub(crate) fn first_timestamp(&self) -> Result<Option<i64>, ReadError> {
        if self.size == 0 {
            return Ok(None);
        }
        if let Some(known) = self.first_timestamp.get() {
            return Ok(Some(*known));
        }
        let timestamp = self.batch_at(&*self.file()?, 0)?.header.max_timestamp;
        let waits_since = if timestamp < 0 {
            self.created_ms
        } else {
            timestamp
        };
        Ok(Some(*self.first_timestamp.get_or_init(|| waits_since)))
    }

    /// Writes `parts`, which are the batches of `appended`, at the end. After an error
    /// nothing has been appended.
    pub(crate) fn append(
        &mut self,
        parts: &mut [IoSlice<'_>],
        appended: impl Iterator<Item = AppendedBatch>,
        index_interval_bytes: u32,
    ) -> io::Result<()> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let file = self.file()?;
        if self.needs_trim {
            file.discard_unpublished()?;
            self.needs_trim = false;
        }
        if let Err(error) = file_io::write_at(file.file(), parts, self.size) {
            // Whole batches may have been written; recovery must not find them later.
            self.needs_trim = file.discard_unpublished().is_err();
            return Err(error);
        }
        let mut position = self.size;
        self.size += bytes as u64;
        file.publish(self.size);
        for batch in appended {
            self.observe(position, batch, index_interval_bytes);
            position += batch.size;
        }
        debug_assert_eq!(position, self.size);
        Ok(())
    }

    /// Takes the batch at `position` into the indexes and the largest timestamp.
    pub(crate) fn observe(&mut self, position: u64, batch: AppendedBatch, interval: u32) {
        let max = self
            .max_timestamp
            .get()
            .copied()
            .unwrap_or(TimestampOffset::none(self.base_offset));
        let max = if batch.max_timestamp > max.timestamp {
            TimestampOffset {
                timestamp: batch.max_timestamp,
                offset: batch.last_offset,
            }
        } else {
            max
        };
        self.max_timestamp = OnceLock::from(max);
        if position - self.indexed_position <= u64::from(interval) {
            return;
        }
        // Indexes that can't be opened lack this entry, which costs look-ups some time.
        match self.indexes_mut() {
            Ok(indexes) => {
                indexes.offsets.push(batch.last_offset, position);
                indexes.times.push_if_later(max);
            }
            Err(error) => {
                tracing::warn!(path = %self.log_path().display(), %error, "no index entry");
            }
        }
        self.indexed_position = position;
    }

    /// The largest timestamp and the last offset of the batch that has it.
    pub(crate) fn max_timestamp(&self) -> Result<TimestampOffset, ReadError> {
        if let Some(known) = self.max_timestamp.get() {
            return Ok(*known);
        }
        let last = self.with_indexes(|indexes| Ok(indexes.times.last()))?;
        Ok(*self.max_timestamp.get_or_init(|| last))
    }

    /// The first batch that ends at `offset` or later; `None` past the end.
    pub(crate) fn find(&self, offset: Offset) -> Result<Option<StoredBatch>, ReadError> {
        let from = self.lookup_hint(|indexes| indexes.offsets.lookup(offset))?;
        self.walk(from, |batch| {
            if batch.header.last_offset() >= offset {
                ControlFlow::Break(batch)
            } else {
                ControlFlow::Continue(())
            }
        })
    }

    /// The last batch boundary at or before `position`, and not before `from`, which is
    /// one.
    pub(crate) fn boundary_before(&self, from: u64, position: u64) -> Result<u64, ReadError> {
        if position >= self.size {
            return Ok(self.size);
        }
        let hint = self.lookup_hint(|indexes| indexes.offsets.lookup_position(position))?;
        let mut boundary = from.max(hint);
        self.walk(boundary, |batch| {
            if batch.end() > position {
                return ControlFlow::Break(());
            }
            boundary = batch.end();
            ControlFlow::Continue(())
        })?;
        Ok(boundary)
    }

    /// An offset that the batches before `position`, a boundary, don't reach and that is not
    /// far after them; `None` if the indexes know of none.
    pub(crate) fn offset_past(&self, position: u64) -> Result<Option<Offset>, ReadError> {
        if position >= self.size || self.size <= SHORT_SEGMENT_BYTES {
            return Ok(None);
        }
        self.with_indexes(|indexes| indexes.offsets.offset_from(position))
    }

    /// The position from which to look for the first record as late as `timestamp`.
    pub(crate) fn lookup_timestamp(&self, timestamp: i64) -> Result<u64, ReadError> {
        self.lookup_hint(|indexes| {
            // What comes up to this entry is earlier than `timestamp`.
            let entry = indexes.times.lookup(timestamp.saturating_sub(1))?;
            indexes.offsets.lookup(entry.offset)
        })
    }

    /// Asks the indexes, unless the segment is so short that they have no entry.
    fn lookup_hint(
        &self,
        ask: impl FnOnce(&mut Indexes) -> io::Result<u64>,
    ) -> Result<u64, ReadError> {
        if self.size <= SHORT_SEGMENT_BYTES {
            return Ok(0);
        }
        self.with_indexes(ask)
    }

    /// Goes through the batches from `position` on, a boundary, until `visit` breaks.
    pub(crate) fn walk<T>(
        &self,
        position: u64,
        mut visit: impl FnMut(StoredBatch) -> ControlFlow<T>,
    ) -> Result<Option<T>, ReadError> {
        if position >= self.size {
            return Ok(None);
        }
        let file = self.file()?;
        let mut at = position;
        while at < self.size {
            let batch = self.batch_at(&file, at)?;
            at = batch.end();
            if let ControlFlow::Break(found) = visit(batch) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn batch_at(&self, file: &SegmentFile, position: u64) -> Result<StoredBatch, ReadError> {
        let corrupt = |error| ReadError::Corrupt {
            path: self.log_path(),
            position,
            error,
        };
        let head_end = self.size.min(position + RECORD_BATCH_OVERHEAD as u64);
        let header = BatchHeader::parse(file.bytes(position..head_end)?).map_err(corrupt)?;
        // No batch of this segment, then; and its offsets would not fit into an index.
        if header.base_offset < self.base_offset
            || header.last_offset().since(self.base_offset) > i64::from(i32::MAX)
        {
            return Err(corrupt(BatchError::InvalidCounts {
                record_count: header.record_count,
                last_offset_delta: header.last_offset_delta,
            }));
        }
        let batch = StoredBatch { position, header };
        if batch.end() > self.size {
            return Err(corrupt(BatchError::Truncated {
                needed: header.size_in_bytes(),
                available: (self.size - position) as usize,
            }));
        }
        Ok(batch)
    }

    /// Calls `visit` with the whole batch that starts at `batch.position`.
    pub(crate) fn with_batch<T>(
        &self,
        batch: &StoredBatch,
        visit: impl FnOnce(&BatchView<'_>) -> Result<T, BatchError>,
    ) -> Result<T, ReadError> {
        let file = self.file()?;
        let bytes = file.bytes(batch.position..batch.end())?;
        BatchView::parse(bytes)
            .and_then(|view| visit(&view))
            .map_err(|error| ReadError::Corrupt {
                path: self.log_path(),
                position: batch.position,
                error,
            })
    }

    /// The last entry of the time index is the largest timestamp, now that the segment
    /// grows no more for a while; all entries are written, none is fsynced.
    pub(crate) fn finish_indexes(&mut self) -> Result<(), ReadError> {
        if self.size == 0 {
            return Ok(());
        }
        let max = self.max_timestamp()?;
        let indexes = self.indexes_mut()?;
        indexes.times.push_if_later(max);
        indexes.offsets.write_pending()?;
        indexes.times.write_pending()?;
        self.finish_aborted()?;
        Ok(())
    }

    /// The aborted transactions whose markers are in this segment.
    pub(crate) fn aborted(&self) -> Option<&TxnIndex> {
        self.aborted.as_deref()
    }

    /// The same, to add to them.
    pub(crate) fn aborted_mut(&mut self) -> &mut TxnIndex {
        let path = || file_names::path(&self.dir, self.base_offset, file_names::TXN_INDEX);
        self.aborted
            .get_or_insert_with(|| Box::new(TxnIndex::absent(path())))
    }

    /// Opens the file of aborted transactions, which is there, and says whether it can be
    /// this segment's. `end_offset` is where the segment ends.
    pub(crate) fn open_aborted(&mut self, end_offset: Offset) -> io::Result<bool> {
        let index = TxnIndex::open(self.path(file_names::TXN_INDEX))?;
        let index = self.aborted.insert(Box::new(index));
        index.is_sound(self.base_offset, end_offset)
    }

    /// Writes the aborted transactions that are in memory only; none is fsynced.
    pub(crate) fn finish_aborted(&mut self) -> io::Result<()> {
        self.aborted
            .as_mut()
            .map_or(Ok(()), |index| index.write_pending())
    }

    /// The files of the indexes that the segment has.
    pub(crate) fn index_paths(&self) -> impl Iterator<Item = PathBuf> {
        let aborted = self.aborted.as_ref().map(|index| index.path().to_owned());
        [file_names::INDEX, file_names::TIME_INDEX]
            .map(|suffix| self.path(suffix))
            .into_iter()
            .chain(aborted)
    }

    /// The segment is no longer the active one.
    pub(crate) fn seal(&mut self, preallocated: bool) -> io::Result<()> {
        if preallocated {
            self.file()?.discard_unpublished()?;
        }
        self.capacity = 0;
        Ok(())
    }

    /// Shortens the segment to the batches before `position`, and `offset`. Returns the
    /// offset after the last one.
    ///
    /// When a reader holds a slice of the file, its bytes must stay where they are: the
    /// kept part is copied to a new file that takes the name, and the old one goes when
    /// its last reader does.
    pub(crate) fn truncate(&mut self, position: u64, offset: Offset) -> Result<Offset, ReadError> {
        self.file()?;
        self.max_timestamp()?;
        self.indexes_mut()?;
        let capacity = self.capacity.max(position);
        let path = self.log_path();
        if let Some(aborted) = &mut self.aborted {
            aborted.truncate(offset)?;
        }
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (Some(file), Some(indexes)) = (&mut open.file, &mut open.indexes) else {
            unreachable!("both have just been opened");
        };
        // Entries that point past the end would be worse than a file that is too long.
        indexes.offsets.truncate(position)?;
        indexes.times.truncate(offset)?;
        match Arc::get_mut(file) {
            Some(shortened) => {
                shortened.truncate(position)?;
                // It may have been mapped for no more than it held.
                open.file = None;
            }
            None => *file = Arc::new(copy_prefix(file, &path, position, capacity)?),
        }
        self.size = position;
        self.needs_trim = false;
        if position == 0 {
            self.first_timestamp = OnceLock::new();
        }
        let last = indexes.offsets.last()?;
        let max = indexes.times.last();
        self.indexed_position = last.map_or(0, |entry| entry.position);
        self.read_tail(max)
    }

    /// Reads the batches after the last index entry, for what the indexes leave out: the
    /// largest timestamp and the offset after the last batch.
    fn read_tail(&mut self, mut max: TimestampOffset) -> Result<Offset, ReadError> {
        let mut next_offset = self.base_offset;
        self.walk(self.indexed_position, |batch| {
            let newest = newest_timestamp(&batch.header);
            if newest > max.timestamp {
                max = TimestampOffset {
                    timestamp: newest,
                    offset: batch.header.last_offset(),
                };
            }
            next_offset = batch.header.next_offset();
            ControlFlow::<()>::Continue(())
        })?;
        self.max_timestamp = OnceLock::from(max);
        Ok(next_offset)
    }

    /// Cuts the file, of which nobody has read anything yet.
    pub(crate) fn cut(&mut self, size: u64) -> io::Result<()> {
        self.close_files();
        File::options()
            .write(true)
            .open(self.log_path())?
            .set_len(size)?;
        self.size = size;
        Ok(())
    }

    /// Empties the indexes, to observe every batch again.
    pub(crate) fn reset_indexes(&mut self) -> io::Result<()> {
        let mut indexes = Box::new(self.open_indexes()?);
        indexes.offsets.clear();
        indexes.times.clear();
        let mut open = self.open_files();
        open.indexes = Some(indexes);
        open.checked = true;
        drop(open);
        self.indexed_position = 0;
        self.max_timestamp = OnceLock::from(TimestampOffset::none(self.base_offset));
        Ok(())
    }

    /// Takes what the indexes say as it is after a clean shutdown, and reads the rest of
    /// the segment, which is no more than they leave out. The offset after the last.
    pub(crate) fn load_tail(&mut self) -> Result<Offset, ReadError> {
        let mut max = TimestampOffset::none(self.base_offset);
        if self.size > SHORT_SEGMENT_BYTES {
            let last;
            (last, max) =
                self.with_indexes(|indexes| Ok((indexes.offsets.last()?, indexes.times.last())))?;
            self.indexed_position = last.map_or(0, |entry| entry.position);
        }
        self.read_tail(max)
    }

    /// Lets go of files and mappings that were not used since the last call.
    pub(crate) fn release_if_unused(&mut self) {
        let in_use = self
            .open
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .file
            .as_ref()
            .is_some_and(|file| file.take_used());
        if !in_use && !self.needs_trim {
            self.close_files();
        }
    }

    pub(crate) fn close_files(&mut self) {
        if let Some(aborted) = &mut self.aborted
            && let Err(error) = aborted.release()
        {
            tracing::warn!(path = %aborted.path().display(), %error, "aborted transactions stay in memory");
        }
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(indexes) = &mut open.indexes {
            // Entries that can't be written now stay in memory until they can.
            let written = indexes.offsets.write_pending();
            if written
                .and_then(|()| indexes.times.write_pending())
                .is_err()
            {
                return;
            }
        }
        open.file = None;
        open.indexes = None;
    }

    fn indexes_mut(&mut self) -> Result<&mut Indexes, ReadError> {
        self.with_indexes(|_| Ok(()))?;
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(indexes) = &mut open.indexes else {
            unreachable!("opened just before");
        };
        Ok(indexes)
    }

    /// Calls `ask` with the indexes, opened if they were not.
    fn with_indexes<T>(
        &self,
        ask: impl FnOnce(&mut Indexes) -> io::Result<T>,
    ) -> Result<T, ReadError> {
        let mut open = self.open_files();
        if open.indexes.is_none() {
            let mut indexes = Box::new(self.open_indexes()?);
            if !open.checked {
                let file = Arc::clone(self.file_in(&mut open)?);
                if !self.indexes_fit(&indexes, &file)? {
                    tracing::warn!(path = %self.log_path().display(), "damaged index made anew");
                    self.remake(&mut indexes, &file)?;
                }
                open.checked = true;
            }
            open.indexes = Some(indexes);
        }
        match &mut open.indexes {
            Some(indexes) => Ok(ask(indexes)?),
            None => unreachable!("opened just before"),
        }
    }

    fn open_indexes(&self) -> io::Result<Indexes> {
        Ok(Indexes {
            offsets: OffsetIndex::open(self.path(file_names::INDEX), self.base_offset)?,
            times: TimeIndex::open(self.path(file_names::TIME_INDEX), self.base_offset)?,
        })
    }

    /// Whether the last entry of each index points into this segment, and the offset
    /// index's at the batch that it names.
    fn indexes_fit(&self, indexes: &Indexes, file: &SegmentFile) -> Result<bool, ReadError> {
        if indexes.times.last().offset < self.base_offset {
            return Ok(false);
        }
        let Some(last) = indexes.offsets.last()? else {
            // No entry, although there must be some, or the time index would have none.
            return Ok(self.size <= SHORT_SEGMENT_BYTES || indexes.times.len() > 0);
        };
        if last.position >= self.size {
            return Ok(false);
        }
        Ok(self
            .batch_at(file, last.position)
            .is_ok_and(|batch| batch.header.last_offset() == last.last_offset))
    }

    fn remake(&self, indexes: &mut Indexes, file: &SegmentFile) -> Result<(), ReadError> {
        indexes.offsets.clear();
        indexes.times.clear();
        let mut max = TimestampOffset::none(self.base_offset);
        let (mut at, mut indexed) = (0, 0);
        while at < self.size {
            let batch = self.batch_at(file, at)?;
            let newest = newest_timestamp(&batch.header);
            if newest > max.timestamp {
                max = TimestampOffset {
                    timestamp: newest,
                    offset: batch.header.last_offset(),
                };
            }
            if at - indexed > SHORT_SEGMENT_BYTES {
                indexes.offsets.push(batch.header.last_offset(), at);
                indexes.times.push_if_later(max);
                indexed = at;
            }
            at = batch.end();
        }
        indexes.times.push_if_later(max);
        Ok(())
    }

    fn open_files(&self) -> MutexGuard<'_, OpenFiles> {
        // A panic while files were being opened leaves them closed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Below this no index is looked at: the batches are found as fast without.
const SHORT_SEGMENT_BYTES: u64 = 4096;

impl AppendedBatch {
    pub(crate) fn from_header(header: &BatchHeader) -> Self {
        Self {
            size: header.size_in_bytes() as u64,
            last_offset: header.last_offset(),
            max_timestamp: newest_timestamp(header),
        }
    }
}

/// The largest timestamp of a batch's records. One that compaction has emptied has none,
/// though its header still says what it was.
fn newest_timestamp(header: &BatchHeader) -> i64 {
    if header.record_count == 0 {
        NO_TIMESTAMP
    } else {
        header.max_timestamp
    }
}

/// Makes a file of the first `length` bytes of `file` and puts it in its place.
fn copy_prefix(
    file: &SegmentFile,
    path: &Path,
    length: u64,
    capacity: u64,
) -> io::Result<SegmentFile> {
    let temporary = file_names::with_extension(path, file_names::TEMPORARY);
    let copy = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)?;
    let kept = file.bytes(0..length)?;
    file_io::write_at(&copy, &mut [IoSlice::new(kept)], 0)?;
    // The old file may have been fsynced up to the recovery point: so must this be.
    copy.sync_all()?;
    fs::rename(&temporary, path)?;
    SegmentFile::new(copy, length, capacity)
}
