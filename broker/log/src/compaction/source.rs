//! Reading the batches of a closed segment, without the log's lock.
//!
//! The file is read and not mapped: should it be truncated meanwhile, the bytes are missing
//! and nobody dies of it. Each batch is checked, also its checksum, because what is written
//! anew gets a new one and would hide damage for good.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use yuxi_protocol::{
    ids::Offset,
    record::{
        BatchError, BatchView,
        batch::{BatchHeader, RECORD_BATCH_OVERHEAD},
    },
};

use super::{CompactionError, Pace, keep_pace};
use crate::{error::LogError, file_names};

/// What is read at a time, unless one batch is larger.
const READ_BYTES: usize = 1 << 20;

/// A closed segment as the plan found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) base_offset: Offset,
    pub(super) size: u64,
    /// Where the next segment begins.
    pub(super) end_offset: Offset,
}

impl Source {
    pub(super) fn path(&self, dir: &Path, suffix: &str) -> PathBuf {
        file_names::path(dir, self.base_offset, suffix)
    }

    /// The file `suffix` of this segment. One that is gone has been removed from the log.
    pub(super) fn open(&self, dir: &Path, suffix: &str) -> Result<File, CompactionError> {
        let path = self.path(dir, suffix);
        File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CompactionError::Abandoned,
            _ => LogError::storage(path)(error).into(),
        })
    }
}

pub(super) struct SourceReader {
    source: Source,
    path: PathBuf,
    file: File,
    /// Bytes of the file, those from `start` to `end` not yet taken.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Where in the file `start` is.
    position: u64,
    next_offset: Offset,
}

impl SourceReader {
    pub(super) fn open(dir: &Path, source: Source) -> Result<Self, CompactionError> {
        let file = source.open(dir, file_names::LOG)?;
        let room = usize::try_from(source.size).unwrap_or(usize::MAX);
        Ok(Self {
            source,
            path: source.path(dir, file_names::LOG),
            file,
            buffer: vec![0; READ_BYTES.min(room)],
            start: 0,
            end: 0,
            position: 0,
            next_offset: source.base_offset,
        })
    }

    /// How many bytes come after what was taken.
    pub(super) fn remaining(&self) -> u64 {
        self.source.size - self.position
    }

    /// The next batch, its bytes checked.
    pub(super) fn next(
        &mut self,
        pace: &mut Pace<'_>,
    ) -> Result<Option<BatchView<'_>>, CompactionError> {
        if self.remaining() == 0 {
            return Ok(None);
        }
        self.fill(RECORD_BATCH_OVERHEAD, pace)?;
        let header = BatchHeader::parse(&self.buffer[self.start..self.end])
            .map_err(|error| self.corrupt(&error))?;
        let (position, expected) = (self.position, self.next_offset);
        self.fill(header.size_in_bytes(), pace)?;
        if header.base_offset < expected || header.last_offset() >= self.source.end_offset {
            return Err(self.corrupt(&BatchError::InvalidCounts {
                record_count: header.record_count,
                last_offset_delta: header.last_offset_delta,
            }));
        }
        let from = self.start;
        self.start += header.size_in_bytes();
        self.position += header.size_in_bytes() as u64;
        self.next_offset = header.next_offset();
        let batch = BatchView::parse(&self.buffer[from..self.start]);
        batch
            .and_then(|batch| batch.check_crc().map(|()| Some(batch)))
            .map_err(|error| corrupt(&self.path, position, expected, &error))
    }

    /// Reads on until `needed` bytes from `start` on are there.
    fn fill(&mut self, needed: usize, pace: &mut Pace<'_>) -> Result<(), CompactionError> {
        if self.end - self.start >= needed {
            return Ok(());
        }
        if needed as u64 > self.remaining() {
            return Err(self.corrupt(&BatchError::Truncated {
                needed,
                available: usize::try_from(self.remaining()).unwrap_or(usize::MAX),
            }));
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() < needed {
            self.buffer.resize(needed, 0);
        }
        let room = usize::try_from(self.remaining()).unwrap_or(usize::MAX);
        let want = self.buffer.len().min(room);
        let had = self.end;
        while self.end < needed {
            let at = self.position + self.end as u64;
            match self.file.read_at(&mut self.buffer[self.end..want], at) {
                Ok(0) => {
                    return Err(self.corrupt(&BatchError::Truncated {
                        needed,
                        available: self.end,
                    }));
                }
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LogError::storage(&self.path)(error).into()),
            }
        }
        keep_pace(pace, (self.end - had) as u64)
    }

    /// What was taken last, or is to be taken next, makes no sense.
    pub(super) fn corrupt(&self, error: &BatchError) -> CompactionError {
        corrupt(&self.path, self.position, self.next_offset, error)
    }
}

fn corrupt(path: &Path, position: u64, expected: Offset, error: &BatchError) -> CompactionError {
    LogError::Corrupt {
        path: path.to_owned(),
        position,
        expected_offset: expected,
        reason: error.to_string(),
    }
    .into()
}
