//! Putting a cleaned segment in the place of those that it was made of.
//!
//! Its four files are renamed in two passes, the log itself last in each:
//! 1. `.cleaned` to `.swap`. From `.log.swap` on the swap is decided;
//! 2. the replaced files to `.deleted`, then `.swap` to the files' own names.
//!
//! [`settle`] finishes what a crash interrupted: with a `.cleaned` file left the swap was
//! not decided, and all of it is removed; without one it goes on. The decision is made
//! durable between the passes, when nobody needs the log's lock. If the log's segments are
//! changed by something else right then, the swap is taken back (`Log::cancel_swap`).

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use yuxi_protocol::{ids::Offset, record::batch::BatchHeader};

use super::{
    output::{CleanedSegment, Stage},
    plan::CompactionTicket,
};
use crate::{
    error::LogError, file_io, file_names, log::Log, mapping::SegmentFile, segment::Segment,
};

/// The files of a segment in the order in which they get another name.
const RENAMED: [&str; 4] = [
    file_names::INDEX,
    file_names::TIME_INDEX,
    file_names::TXN_INDEX,
    file_names::LOG,
];

/// What a log knows of its compaction.
#[derive(Debug, Default)]
pub(crate) struct CompactionState {
    /// Counts plans, and truncations that make them void.
    ticket: u64,
    /// The base offset of the segment whose swap is decided and not done.
    decided: Option<Offset>,
    /// Up to here the log has been cleaned.
    pub(super) cleaned_to: Option<Offset>,
}

impl CompactionState {
    pub(super) fn new_plan(&mut self) -> CompactionTicket {
        self.ticket += 1;
        CompactionTicket(self.ticket)
    }

    pub(super) fn is_current(&self, ticket: CompactionTicket) -> bool {
        ticket.0 == self.ticket
    }

    /// The log is truncated to `end`: what was read of it may not be true any more.
    pub(crate) fn truncated(&mut self, end: Offset) {
        self.ticket += 1;
        self.cleaned_to = self.cleaned_to.map(|cleaned_to| cleaned_to.min(end));
    }
}

impl Log {
    /// Decides the swap; false if the log is no longer what was cleaned, and the cleaned
    /// segment is worth nothing. Then [`CleanedSegment::sync_names`] has to be called, which
    /// needs no lock, and then [`Log::finish_swap`]. After an error the log is as it was.
    pub fn begin_swap(&mut self, cleaned: &mut CleanedSegment) -> Result<bool, LogError> {
        if !self.is_current(cleaned.ticket) || self.replaced_by(cleaned).is_none() {
            return Ok(false);
        }
        self.cancel_swap()?;
        for suffix in RENAMED {
            let from = cleaned.path(suffix, file_names::CLEANED);
            let to = cleaned.path(suffix, file_names::SWAP);
            if let Err(error) = file_io::rename(&from, &to) {
                // `.log` is last: what has been renamed decides nothing.
                for suffix in RENAMED {
                    let _ = file_io::remove(&cleaned.path(suffix, file_names::SWAP));
                }
                return Err(LogError::storage(from)(error));
            }
        }
        cleaned.stage = Stage::Swapped;
        self.compaction.decided = Some(cleaned.base_offset);
        self.unsynced.dir_changed();
        Ok(true)
    }

    /// Does the swap; false if it has been taken back. Whoever reads the replaced segments
    /// goes on doing so; they are let go of with `cleaned`, best without the lock. An error
    /// leaves files half renamed, which only the next opening of the log mends: it must not
    /// be used any more.
    pub fn finish_swap(
        &mut self,
        cleaned: &mut CleanedSegment,
        now_ms: i64,
    ) -> Result<bool, LogError> {
        if self.compaction.decided != Some(cleaned.base_offset) {
            return Ok(false);
        }
        let Some(replaced) = self.replaced_by(cleaned) else {
            self.cancel_swap()?;
            return Ok(false);
        };
        self.compaction.decided = None;
        for at in replaced.clone() {
            self.rename_removed(at, now_ms)?;
        }
        for suffix in RENAMED {
            let from = cleaned.path(suffix, file_names::SWAP);
            let to = file_names::path(&self.dir, cleaned.base_offset, suffix);
            file_io::rename(&from, &to).map_err(LogError::storage(from))?;
        }
        self.unsynced.dir_changed();
        let segment = self.opened(cleaned, now_ms);
        let segment = segment.map_err(LogError::storage(&*self.dir))?;
        cleaned.replaced = self.segments.splice(replaced, [segment]).collect();
        let gone: Vec<_> = cleaned.replaced.iter().map(Segment::base_offset).collect();
        let latest = self.snapshots.latest();
        self.snapshots.remove(|offset| {
            offset != cleaned.base_offset && Some(offset) != latest && gone.contains(&offset)
        });
        Ok(true)
    }

    /// The segment whose files are in their places now.
    fn opened(&self, cleaned: &CleanedSegment, now_ms: i64) -> io::Result<Segment> {
        let dir = Arc::clone(&self.dir);
        let mut segment = Segment::existing(dir, cleaned.base_offset, cleaned.size, now_ms);
        if cleaned.has_aborted {
            let last = cleaned.sources.last();
            segment.open_aborted(last.map_or(cleaned.base_offset, |last| last.end_offset))?;
        } else {
            // It took the place of the replaced one and is of no more use.
            let _ = file_io::remove(&segment.path(file_names::TXN_INDEX));
        }
        Ok(segment)
    }

    /// Takes a decided swap back, because the segments are about to change.
    pub(crate) fn cancel_swap(&mut self) -> Result<(), LogError> {
        let Some(base_offset) = self.compaction.decided else {
            return Ok(());
        };
        // The log first: without it there is nothing to go on with.
        for suffix in RENAMED.iter().rev() {
            let path = file_names::path(&self.dir, base_offset, suffix);
            let path = file_names::with_extension(&path, file_names::SWAP);
            file_io::remove(&path).map_err(LogError::storage(path))?;
        }
        self.compaction.decided = None;
        self.unsynced.dir_changed();
        Ok(())
    }

    /// Which segments `cleaned` takes the place of, if they are still what they were.
    fn replaced_by(&self, cleaned: &CleanedSegment) -> Option<Range<usize>> {
        let first = self
            .segments
            .binary_search_by_key(&cleaned.base_offset, Segment::base_offset)
            .ok()?;
        let range = first..first + cleaned.sources.len();
        // There is one more: the active segment is never replaced.
        let next = self.segments.get(range.end)?;
        let segments = self.segments.get(range.clone())?;
        let same = segments
            .iter()
            .zip(&cleaned.sources)
            .all(|(segment, source)| {
                segment.base_offset() == source.base_offset && segment.size() == source.size
            });
        let ends = cleaned.sources.last()?.end_offset;
        (same && next.base_offset() == ends).then_some(range)
    }
}

/// Finishes or undoes what compaction, Kafka's or this one, left in the directory of a log
/// that is about to be opened.
pub(crate) fn settle(dir: &Path) -> Result<(), LogError> {
    let mut left = find_left(dir)?;
    if left.cleaned.is_empty() && left.swaps.is_empty() {
        return Ok(());
    }
    // A swap is decided when all of its files have been renamed; Kafka decides several at
    // once and renames those of the highest offsets first.
    let undecided = left.cleaned.iter().map(|file| file.base_offset).min();
    let is_undecided = |file: &mut Left| undecided.is_some_and(|first| file.base_offset >= first);
    for file in left.swaps.extract_if(.., is_undecided).chain(left.cleaned) {
        tracing::info!(path = %file.path.display(), "a compaction that had not ended is undone");
        file_io::remove(&file.path).map_err(LogError::storage(&file.path))?;
    }
    let logs = left
        .swaps
        .iter()
        .filter(|file| file.suffix == file_names::LOG);
    for log in logs {
        remove_replaced(dir, log, &left.swaps)?;
    }
    // In the order in which they were to be renamed: the log is last.
    left.swaps.sort_by_key(|file| {
        (
            file.base_offset,
            RENAMED.iter().position(|suffix| *suffix == file.suffix),
        )
    });
    for file in left.swaps {
        let to = file_names::path(dir, file.base_offset, &file.suffix);
        tracing::info!(path = %to.display(), "an interrupted compaction is finished");
        file_io::rename(&file.path, &to).map_err(LogError::storage(file.path))?;
    }
    file_io::sync_dir(dir).map_err(LogError::storage(dir))
}

/// A file that a compaction left.
struct Left {
    base_offset: Offset,
    suffix: String,
    path: PathBuf,
}

#[derive(Default)]
struct AllLeft {
    cleaned: Vec<Left>,
    swaps: Vec<Left>,
}

fn find_left(dir: &Path) -> Result<AllLeft, LogError> {
    let storage = |error| LogError::storage(dir)(error);
    let mut found = AllLeft::default();
    for entry in fs::read_dir(dir).map_err(storage)? {
        let entry = entry.map_err(storage)?;
        let name = entry.file_name();
        let parsed = name.to_str().and_then(file_names::parse);
        let Some((base_offset, rest)) = parsed else {
            continue;
        };
        let Some((suffix, stage)) = rest.split_once('.') else {
            continue;
        };
        let into = match stage {
            file_names::CLEANED => &mut found.cleaned,
            file_names::SWAP => &mut found.swaps,
            _ => continue,
        };
        into.push(Left {
            base_offset,
            suffix: suffix.to_owned(),
            path: entry.path(),
        });
    }
    Ok(found)
}

/// Removes what the segment in `log` takes the place of and was not yet removed.
fn remove_replaced(dir: &Path, log: &Left, swaps: &[Left]) -> Result<(), LogError> {
    let end = end_offset(log)?;
    let is_swap = |base_offset: Offset, suffix: &str| {
        swaps
            .iter()
            .any(|swap| swap.base_offset == base_offset && swap.suffix == suffix)
    };
    // Of this one's own files, those that are not waiting may be the new ones already.
    let is_untouched = is_swap(log.base_offset, file_names::INDEX);
    let storage = |error| LogError::storage(dir)(error);
    for entry in fs::read_dir(dir).map_err(storage)? {
        let entry = entry.map_err(storage)?;
        let name = entry.file_name();
        let Some((base_offset, suffix)) = name.to_str().and_then(file_names::parse) else {
            continue;
        };
        let is_replaced = if base_offset == log.base_offset {
            is_untouched && !is_swap(base_offset, suffix)
        } else {
            base_offset > log.base_offset && base_offset < end
        };
        if is_replaced && file_names::SEGMENT_SUFFIXES.contains(&suffix) {
            tracing::info!(path = %entry.path().display(), "a segment that was compacted goes");
            file_io::remove(&entry.path()).map_err(storage)?;
        }
    }
    Ok(())
}

/// The offset after the last batch of a cleaned segment, which must be whole.
fn end_offset(log: &Left) -> Result<Offset, LogError> {
    let storage = |error: io::Error| LogError::storage(&log.path)(error);
    let size = fs::metadata(&log.path).map_err(storage)?.len();
    let file = SegmentFile::open(&log.path, size, size).map_err(storage)?;
    let bytes = file.bytes(0..size).map_err(storage)?;
    let mut rest = bytes;
    let mut end = log.base_offset;
    while !rest.is_empty() {
        let corrupt = |reason: String| LogError::Corrupt {
            path: log.path.clone(),
            position: (bytes.len() - rest.len()) as u64,
            expected_offset: end,
            reason,
        };
        let header = BatchHeader::parse(rest).map_err(|error| corrupt(error.to_string()))?;
        let after = rest.get(header.size_in_bytes()..);
        let after = after.ok_or_else(|| corrupt("the batch is cut off".to_owned()))?;
        if header.base_offset < end {
            return Err(corrupt(format!("offset {} is found", header.base_offset)));
        }
        end = header.next_offset();
        rest = after;
    }
    Ok(end)
}
