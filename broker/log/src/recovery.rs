//! Opening a log: what is in its directory, how far it is good, and who produced it.
//!
//! After a crash the segments from the recovery point on are read again, batch by batch
//! over the mapping, with their checksums; their indexes and leader epochs are made anew.
//! Invariant I15: only a torn tail is cut, which is bytes at or past the recovery point
//! that are no valid batch and after which there is no valid batch either. Anything else
//! is damage to data that was acknowledged, and is reported with nothing changed.

use std::{
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use yuxi_protocol::{
    ids::Offset,
    record::{
        BatchError, BatchView,
        batch::{BatchHeader, MAGIC_V2, RECORD_BATCH_OVERHEAD},
    },
};

use crate::{
    checkpoint, compaction,
    config::LogConfig,
    epochs::LeaderEpochs,
    error::{LogError, ReadError},
    file_io, file_names,
    flush::Unsynced,
    loading::Loading,
    log::{Log, Opening, read_error},
    producers::Producers,
    segment::{AppendedBatch, Segment},
    snapshot::Snapshots,
};

/// See [`Log::open`].
pub(crate) fn open(dir: &Path, config: LogConfig, opening: Opening) -> Result<Log, LogError> {
    let storage = |error| LogError::storage(dir)(error);
    let mut unsynced = Unsynced::default();
    if create_dir(dir).map_err(storage)? {
        unsynced.dir_created();
    }
    let shared_dir: Arc<Path> = Arc::from(dir);
    compaction::settle(dir)?;
    let files = list(dir)?;
    if let Some(topic_id) = opening.topic_id {
        settle_topic_id(dir, topic_id, &mut unsynced)?;
    }
    let mut segments = Vec::with_capacity(files.base_offsets.len().max(1));
    for base_offset in files.base_offsets {
        let path = file_names::path(dir, base_offset, file_names::LOG);
        let size = fs::metadata(&path).map_err(LogError::storage(path))?.len();
        let dir = Arc::clone(&shared_dir);
        segments.push(Segment::existing(dir, base_offset, size, opening.now_ms));
    }
    if let Some(active) = segments.last_mut() {
        active.set_capacity(&config);
    }
    let mut recovery = Recovery {
        epochs: open_epochs(dir, &segments)?,
        dir,
        config: &config,
        segments,
        unsynced: &mut unsynced,
    };
    let Recovered {
        log_end_offset,
        recovery_point,
        scanned_from,
    } = recovery.run(&opening)?;
    let Recovery {
        mut epochs,
        mut segments,
        ..
    } = recovery;

    let mut snapshots = Snapshots::new(dir.to_path_buf(), files.snapshots);
    snapshots.remove(|offset| offset > log_end_offset);
    if segments.is_empty() {
        let dir = Arc::clone(&shared_dir);
        let segment = Segment::create(dir, log_end_offset, &config, opening.now_ms);
        segments.push(segment.map_err(storage)?);
        unsynced.dir_changed();
        snapshots.remove(|_| true);
    }
    let log_start_offset = opening.log_start_offset.max(segments[0].base_offset());
    epochs.truncate_end(log_end_offset);
    epochs.truncate_start(log_start_offset);
    let is_base = |offset| {
        let found = segments.binary_search_by_key(&offset, Segment::base_offset);
        found.is_ok()
    };
    let latest = snapshots.latest();
    snapshots.remove(|offset| !is_base(offset) && Some(offset) != latest);
    let anew = open_aborted(
        &mut segments,
        &files.txn_indexes,
        scanned_from,
        log_end_offset,
    )
    .map_err(storage)?;
    let producers = if opening.clean_shutdown && snapshots.latest().is_none() && anew.is_empty() {
        // A log that was closed without a snapshot had no idempotent producers.
        Producers::default()
    } else {
        let loading = Loading {
            log_start_offset,
            log_end_offset,
            now_ms: opening.now_ms,
            expiration_ms: config.producer_id_expiration_ms,
        };
        loading
            .run(&mut snapshots, &mut segments, &anew)
            .map_err(|error| read_error(dir, error))?
    };
    for &at in &anew {
        segments[at].finish_aborted().map_err(storage)?;
        // A segment before the recovery point is not read again after another crash.
        unsynced.files(segments[at].aborted().map(|index| index.path().to_owned()));
    }
    // Thousands of logs are opened in a row, and most of them then wait.
    for segment in &mut segments {
        segment.close_files();
    }
    Ok(Log {
        dir: shared_dir,
        config,
        segments,
        log_start_offset,
        log_end_offset,
        recovery_point,
        epochs,
        producers,
        snapshots,
        removed: Vec::new(),
        unsynced,
        compaction: compaction::CompactionState::default(),
    })
}

/// Whether the directory had to be created.
fn create_dir(dir: &Path) -> io::Result<bool> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn settle_topic_id(
    dir: &Path,
    topic_id: yuxi_protocol::ids::TopicId,
    unsynced: &mut Unsynced,
) -> Result<(), LogError> {
    let path = checkpoint::partition_metadata_path(dir);
    let stored = checkpoint::read_partition_metadata(dir);
    match stored.map_err(|error| LogError::storage(path.clone())(error))? {
        Some(stored) if stored == topic_id => Ok(()),
        Some(stored) => Err(LogError::OtherTopic {
            path,
            stored,
            expected: topic_id,
        }),
        None => {
            checkpoint::write_partition_metadata(dir, topic_id)
                .map_err(LogError::storage(path.clone()))?;
            unsynced.files([path]);
            unsynced.dir_changed();
            Ok(())
        }
    }
}

/// The files of a log's directory that matter.
struct Files {
    /// Increasing.
    base_offsets: Vec<Offset>,
    snapshots: Vec<Offset>,
    /// Of segments that are there.
    txn_indexes: Vec<Offset>,
}

/// Lists the directory and removes what an earlier process left half-done.
fn list(dir: &Path) -> Result<Files, LogError> {
    let storage = |error| LogError::storage(dir)(error);
    let mut files = Files {
        base_offsets: Vec::new(),
        snapshots: Vec::new(),
        txn_indexes: Vec::new(),
    };
    let mut indexes: Vec<(Offset, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir).map_err(storage)? {
        let entry = entry.map_err(storage)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let (_, last_suffix) = name.rsplit_once('.').unwrap_or_default();
        if [file_names::DELETED, file_names::TEMPORARY].contains(&last_suffix) {
            file_io::allow_missing(fs::remove_file(entry.path())).map_err(storage)?;
            continue;
        }
        match file_names::parse(name) {
            Some((offset, file_names::LOG)) => files.base_offsets.push(offset),
            Some((offset, file_names::SNAPSHOT)) => files.snapshots.push(offset),
            Some((offset, file_names::TXN_INDEX)) => {
                files.txn_indexes.push(offset);
                indexes.push((offset, entry.path()));
            }
            Some((offset, file_names::INDEX | file_names::TIME_INDEX)) => {
                indexes.push((offset, entry.path()));
            }
            _ => {}
        }
    }
    files.base_offsets.sort_unstable();
    for (offset, path) in indexes {
        if files.base_offsets.binary_search(&offset).is_err() {
            tracing::warn!(path = %path.display(), "index without a log removed");
            file_io::allow_missing(fs::remove_file(&path)).map_err(storage)?;
        }
    }
    Ok(files)
}

/// Opens the indexes of aborted transactions. Returns the segments whose index has to be
/// made anew: those that were `scanned` and those whose file cannot be theirs.
fn open_aborted(
    segments: &mut [Segment],
    files: &[Offset],
    scanned_from: Option<usize>,
    log_end_offset: Offset,
) -> io::Result<Vec<usize>> {
    let mut anew = Vec::new();
    for at in 0..segments.len() {
        let next = segments.get(at + 1).map(Segment::base_offset);
        let segment = &mut segments[at];
        let mut sound = scanned_from.is_none_or(|from| at < from);
        if files.contains(&segment.base_offset()) {
            sound &= segment.open_aborted(next.unwrap_or(log_end_offset))?;
            if !sound {
                segment.aborted_mut().clear();
            }
        }
        if !sound {
            anew.push(at);
        }
    }
    Ok(anew)
}

/// The leader epochs, from their file; or from the batches if that is damaged or gone.
fn open_epochs(dir: &Path, segments: &[Segment]) -> Result<LeaderEpochs, LogError> {
    let path = dir.join(crate::epochs::FILE_NAME);
    let has_data = segments.iter().any(|segment| segment.size() > 0);
    match LeaderEpochs::open(dir) {
        Ok(epochs) if !has_data || !epochs.entries().is_empty() => return Ok(epochs),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(path = %path.display(), %error, "leader epochs read from the batches");
        }
        Err(error) => return Err(LogError::storage(path)(error)),
    }
    let mut epochs = LeaderEpochs::empty(dir);
    for segment in segments {
        let walked = segment.walk(0, |batch| {
            epochs.observe(
                batch.header.partition_leader_epoch,
                batch.header.base_offset,
            );
            ControlFlow::<()>::Continue(())
        });
        match walked {
            // Where the batches end, recovery says what that means.
            Ok(_) | Err(ReadError::Corrupt { .. }) => {}
            Err(error) => return Err(read_error(dir, error)),
        }
    }
    Ok(epochs)
}

/// What there is after recovery.
struct Recovered {
    log_end_offset: Offset,
    recovery_point: Offset,
    /// The first segment of those that were read again, unless none was.
    scanned_from: Option<usize>,
}

impl Recovered {
    fn empty_at(offset: Offset) -> Self {
        Self {
            log_end_offset: offset,
            recovery_point: offset,
            scanned_from: None,
        }
    }
}

struct Recovery<'a> {
    dir: &'a Path,
    config: &'a LogConfig,
    segments: Vec<Segment>,
    epochs: LeaderEpochs,
    unsynced: &'a mut Unsynced,
}

/// Where the valid batches of a segment end.
struct Scan {
    position: u64,
    next_offset: Offset,
    /// Why there are none further on, if there are bytes.
    error: Option<BatchError>,
}

impl Recovery<'_> {
    /// The segments that are left are whole batches; there may be none.
    fn run(&mut self, opening: &Opening) -> Result<Recovered, LogError> {
        let log_start = opening.log_start_offset.max(Offset::ZERO);
        let Some(active) = self.segments.last_mut() else {
            return Ok(Recovered::empty_at(log_start));
        };
        // What lies before the log's start may be gone.
        let must_reach = if opening.recovery_point > log_start {
            opening.recovery_point
        } else {
            Offset::ZERO
        };
        let mut log_end = None;
        if opening.clean_shutdown {
            match active.load_tail() {
                Ok(end) if end >= must_reach => log_end = Some(end),
                Ok(_) | Err(ReadError::Corrupt { .. }) => {
                    tracing::warn!(dir = %self.dir.display(), "not as a clean shutdown leaves it");
                }
                Err(error) => return Err(read_error(self.dir, error)),
            }
        }
        let (end, recovery_point, scanned_from) = if let Some(end) = log_end {
            (end, end, None)
        } else {
            let from = self.first_to_scan(must_reach);
            let end = self.scan(from, must_reach)?;
            (end, opening.recovery_point.min(end), Some(from))
        };
        if end < log_start {
            // The records up to the start were deleted, and no later ones were stored.
            for segment in self.segments.drain(..) {
                for suffix in file_names::SEGMENT_SUFFIXES {
                    let path = segment.path(suffix);
                    file_io::allow_missing(fs::remove_file(&path))
                        .map_err(LogError::storage(path))?;
                }
            }
            self.epochs.clear();
            self.unsynced.dir_changed();
            return Ok(Recovered::empty_at(log_start));
        }
        Ok(Recovered {
            log_end_offset: end,
            recovery_point,
            scanned_from,
        })
    }

    /// The first segment that may have records at the recovery point.
    fn first_to_scan(&self, must_reach: Offset) -> usize {
        self.segments
            .partition_point(|segment| segment.base_offset() <= must_reach)
            .saturating_sub(1)
    }

    /// Checks every batch from `must_reach` on, and returns where the log ends.
    fn scan(&mut self, first: usize, must_reach: Offset) -> Result<Offset, LogError> {
        let mut end = self.segments[first].base_offset();
        for at in first..self.segments.len() {
            let scanned = self.scan_segment(at, must_reach);
            let scanned = scanned.map_err(|error| read_error(self.dir, error))?;
            end = scanned.next_offset;
            if let Some(error) = &scanned.error {
                self.judge(at, &scanned, error, must_reach)?;
                self.cut(at, scanned.position)?;
                break;
            }
        }
        if end < must_reach {
            let last = self
                .segments
                .last()
                .map(|last| (last.log_path(), last.size()));
            let (path, position) = last.unwrap_or_default();
            return Err(LogError::Corrupt {
                path,
                position,
                expected_offset: end,
                reason: format!("the log ends here, but was durable up to offset {must_reach}"),
            });
        }
        Ok(end)
    }

    fn scan_segment(&mut self, at: usize, verify_from: Offset) -> Result<Scan, ReadError> {
        let segment = &mut self.segments[at];
        let interval = self.config.index_interval_bytes;
        let base_offset = segment.base_offset();
        segment.reset_indexes()?;
        let mut scan = Scan {
            position: 0,
            next_offset: base_offset,
            error: None,
        };
        let file = segment.file()?;
        let bytes = file.bytes(0..segment.size())?;
        while let Some(rest @ [_, ..]) = bytes.get(scan.position as usize..) {
            let batch = match check_batch(rest, scan.next_offset, base_offset, verify_from) {
                Ok(batch) => batch,
                Err(error) => {
                    scan.error = Some(error);
                    break;
                }
            };
            let header = batch.header();
            segment.observe(scan.position, AppendedBatch::from_header(header), interval);
            self.epochs
                .observe(header.partition_leader_epoch, header.base_offset);
            scan.position += batch.bytes().len() as u64;
            scan.next_offset = header.next_offset();
        }
        if scan.error.is_none() {
            segment.finish_indexes()?;
        }
        Ok(scan)
    }

    /// A torn tail may be cut; anything else is reported (I15).
    fn judge(
        &self,
        at: usize,
        scan: &Scan,
        error: &BatchError,
        must_reach: Offset,
    ) -> Result<(), LogError> {
        let segment = &self.segments[at];
        let corrupt = |reason: String| LogError::Corrupt {
            path: segment.log_path(),
            position: scan.position,
            expected_offset: scan.next_offset,
            reason,
        };
        if scan.next_offset < must_reach {
            return Err(corrupt(format!(
                "{error}; the log was durable up to offset {must_reach}"
            )));
        }
        for (later, segment) in self.segments.iter().enumerate().skip(at) {
            let from = if later == at { scan.position + 1 } else { 0 };
            if segment.size() <= from {
                continue;
            }
            let read = |error| LogError::storage(segment.log_path())(error);
            let file = segment.file().map_err(read)?;
            let bytes = file.bytes(from..segment.size()).map_err(read)?;
            // In the next segments a batch may begin with the offset expected here.
            let after = scan.next_offset.plus(i64::from(later == at));
            match find_batch(bytes, after) {
                Search::Nothing => {}
                Search::Batch(position) => {
                    return Err(corrupt(format!(
                        "{error}; but a valid batch follows at byte {} of {}",
                        from + position as u64,
                        segment.log_path().display()
                    )));
                }
                Search::TooMuchAlike => {
                    return Err(corrupt(format!(
                        "{error}; and what follows looks too much like batches to be cut"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Cuts the torn tail, and the segments after it, which hold nothing valid.
    fn cut(&mut self, at: usize, position: u64) -> Result<(), LogError> {
        let segment = &mut self.segments[at];
        let path = segment.log_path();
        tracing::warn!(
            path = %path.display(),
            position,
            bytes = segment.size() - position,
            "torn tail cut"
        );
        segment.cut(position).map_err(LogError::storage(path))?;
        segment.set_capacity(self.config);
        let finished = segment.finish_indexes();
        finished.map_err(|error| read_error(self.dir, error))?;
        while self.segments.len() > at + 1 {
            if let Some(empty) = self.segments.pop() {
                for suffix in file_names::SEGMENT_SUFFIXES {
                    let path = empty.path(suffix);
                    file_io::allow_missing(fs::remove_file(&path))
                        .map_err(LogError::storage(path))?;
                }
            }
        }
        self.unsynced.dir_changed();
        Ok(())
    }
}

/// The batch that `bytes` begin with, if it is valid and may follow here. Its checksum
/// counts only from `verify_from` on: what lies before was fsynced.
fn check_batch(
    bytes: &[u8],
    expected_offset: Offset,
    base_offset: Offset,
    verify_from: Offset,
) -> Result<BatchView<'_>, BatchError> {
    let batch = BatchView::parse(bytes)?;
    let header = batch.header();
    if header.base_offset < expected_offset
        || header.last_offset().since(base_offset) > i64::from(i32::MAX)
    {
        return Err(BatchError::InvalidCounts {
            record_count: header.record_count,
            last_offset_delta: header.last_offset_delta,
        });
    }
    if header.last_offset() >= verify_from {
        batch.check_crc()?;
    }
    Ok(batch)
}

#[derive(Debug, PartialEq, Eq)]
enum Search {
    Nothing,
    /// A valid batch, at this byte.
    Batch(usize),
    /// So many bytes look like headers that checking them all would take for ever.
    TooMuchAlike,
}

/// Looks for a valid batch anywhere in `bytes`, with an offset of at least `from`.
fn find_batch(bytes: &[u8], from: Offset) -> Search {
    const MAGIC_AT: usize = 16;
    // Checksums of so many times the bytes; a torn tail needs next to none.
    let mut budget = 16 * bytes.len().max(1 << 20);
    let mut at = 0;
    while bytes.len() - at >= RECORD_BATCH_OVERHEAD {
        let candidates =
            &bytes[at + MAGIC_AT..bytes.len() - (RECORD_BATCH_OVERHEAD - MAGIC_AT - 1)];
        let Some(skip) = candidates.iter().position(|&byte| byte == MAGIC_V2 as u8) else {
            break;
        };
        at += skip;
        let rest = &bytes[at..];
        let plausible = BatchHeader::parse(rest).is_ok_and(|header| {
            header.base_offset >= from
                && header.base_offset.since(from) <= i64::from(i32::MAX)
                && header.size_in_bytes() <= rest.len()
        });
        if plausible && let Ok(batch) = BatchView::parse(rest) {
            if batch.check_crc().is_ok() {
                return Search::Batch(at);
            }
            match budget.checked_sub(batch.bytes().len()) {
                Some(left) => budget = left,
                None => return Search::TooMuchAlike,
            }
        }
        at += 1;
    }
    Search::Nothing
}
