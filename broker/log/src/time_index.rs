//! The time index of a segment: which offset was reached when the log first held a
//! timestamp so large.
//!
//! ```text
//!  0                 8                12
//! +-----------------+----------------+
//! | largest         | last offset of |   big-endian i64 and i32; the offset is
//! | timestamp so far| the batch that |   relative to the segment's base offset
//! | in ms           | has it         |
//! +-----------------+----------------+
//! ```
//!
//! Entries are made where the offset index has its entries, and once more when the
//! segment is closed. Timestamps strictly increase, offsets don't decrease.

use std::{io, path::PathBuf};

use yuxi_protocol::{ids::Offset, record::batch::NO_TIMESTAMP};

use crate::{entry_file::EntryFile, index::relative};

pub(crate) const ENTRY_BYTES: usize = 12;

/// A timestamp and the last offset of the batch that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimestampOffset {
    pub(crate) timestamp: i64,
    pub(crate) offset: Offset,
}

impl TimestampOffset {
    /// What a segment has that holds no timestamp.
    pub(crate) fn none(base_offset: Offset) -> Self {
        Self {
            timestamp: NO_TIMESTAMP,
            offset: base_offset,
        }
    }
}

#[derive(Debug)]
pub(crate) struct TimeIndex {
    base_offset: Offset,
    entries: EntryFile<ENTRY_BYTES>,
    last: TimestampOffset,
}

impl TimeIndex {
    pub(crate) fn open(path: PathBuf, base_offset: Offset) -> io::Result<Self> {
        let entries = EntryFile::open(path)?;
        let mut index = Self {
            base_offset,
            entries,
            last: TimestampOffset::none(base_offset),
        };
        index.reload_last()?;
        Ok(index)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The last entry, or [`TimestampOffset::none`].
    pub(crate) fn last(&self) -> TimestampOffset {
        self.last
    }

    /// Adds an entry if its timestamp is larger than the last one's.
    pub(crate) fn push_if_later(&mut self, found: TimestampOffset) {
        if found.timestamp <= self.last.timestamp {
            return;
        }
        let mut entry = [0; ENTRY_BYTES];
        entry[..8].copy_from_slice(&found.timestamp.to_be_bytes());
        entry[8..].copy_from_slice(&relative(self.base_offset, found.offset).to_be_bytes());
        self.entries.push(entry);
        self.last = found;
    }

    /// The last entry whose timestamp is at most `timestamp`: what was appended up to its
    /// offset is not later than that.
    pub(crate) fn lookup(&self, timestamp: i64) -> io::Result<TimestampOffset> {
        let count = self
            .entries
            .partition_point(|entry| self.decode(entry).timestamp <= timestamp)?;
        match count.checked_sub(1) {
            Some(at) => Ok(self.decode(&self.entries.get(at)?)),
            None => Ok(TimestampOffset::none(self.base_offset)),
        }
    }

    /// Drops the entries with `offset` and later ones.
    pub(crate) fn truncate(&mut self, offset: Offset) -> io::Result<()> {
        let keep = self
            .entries
            .partition_point(|entry| self.decode(entry).offset < offset)?;
        self.entries.truncate(keep)?;
        self.reload_last()
    }

    pub(crate) fn clear(&mut self) {
        self.last = TimestampOffset::none(self.base_offset);
        self.entries.clear();
    }

    pub(crate) fn write_pending(&mut self) -> io::Result<()> {
        self.entries.write_pending()
    }

    fn reload_last(&mut self) -> io::Result<()> {
        self.last = match self.entries.last()? {
            Some(entry) => self.decode(&entry),
            None => TimestampOffset::none(self.base_offset),
        };
        Ok(())
    }

    fn decode(&self, entry: &[u8; ENTRY_BYTES]) -> TimestampOffset {
        let (timestamp, offset) = entry.split_at(8);
        TimestampOffset {
            timestamp: i64::from_be_bytes(timestamp.try_into().expect("8 bytes")),
            offset: self.base_offset.plus(i64::from(i32::from_be_bytes(
                offset.try_into().expect("4 bytes"),
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(timestamp: i64, offset: i64) -> TimestampOffset {
        TimestampOffset {
            timestamp,
            offset: Offset::new(offset),
        }
    }

    #[test]
    fn entries_are_kafkas_twelve_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let mut index = TimeIndex::open(path.clone(), Offset::new(50)).unwrap();
        index.push_if_later(at(0x0102_0304_0506_0708, 52));
        index.write_pending().unwrap();
        assert_eq!(
            std::fs::read(path).unwrap(),
            [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 2]
        );
    }

    #[test]
    fn only_later_timestamps_make_entries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let mut index = TimeIndex::open(path.clone(), Offset::ZERO).unwrap();
        assert_eq!(index.lookup(5).unwrap(), at(-1, 0));
        for found in [at(10, 1), at(10, 2), at(5, 3), at(20, 4), at(30, 9)] {
            index.push_if_later(found);
        }
        assert_eq!(index.len(), 3);
        for (timestamp, expected) in [
            (9, at(-1, 0)),
            (10, at(10, 1)),
            (19, at(10, 1)),
            (20, at(20, 4)),
            (99, at(30, 9)),
        ] {
            assert_eq!(index.lookup(timestamp).unwrap(), expected);
        }
        index.truncate(Offset::new(9)).unwrap();
        assert_eq!(index.last(), at(20, 4));
        index.write_pending().unwrap();
        assert_eq!(
            TimeIndex::open(path, Offset::ZERO).unwrap().last(),
            at(20, 4)
        );
    }
}
