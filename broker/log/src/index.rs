//! The offset index of a segment: where in the file to look for an offset.
//!
//! ```text
//!  0                 4          8
//! +-----------------+----------+
//! | last offset of  | position |   both big-endian i32; the offset is relative
//! | the batch there | of it    |   to the segment's base offset
//! +-----------------+----------+
//! ```
//!
//! An entry stands for about every `index.interval.bytes` of the log, never for its
//! first batch. Offsets and positions both strictly increase.

use std::{io, path::PathBuf};

use yuxi_protocol::ids::Offset;

use crate::entry_file::EntryFile;

pub(crate) const ENTRY_BYTES: usize = 8;

/// One entry: the batch at `position` ends with `last_offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) last_offset: Offset,
    pub(crate) position: u64,
}

#[derive(Debug)]
pub(crate) struct OffsetIndex {
    base_offset: Offset,
    entries: EntryFile<ENTRY_BYTES>,
}

impl OffsetIndex {
    pub(crate) fn open(path: PathBuf, base_offset: Offset) -> io::Result<Self> {
        Ok(Self {
            base_offset,
            entries: EntryFile::open(path)?,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn last(&self) -> io::Result<Option<IndexEntry>> {
        Ok(self.entries.last()?.map(|entry| self.decode(entry)))
    }

    /// Adds the batch at `position`. It is the caller's promise that it lies after the
    /// last entry and that its offset fits (segments are rolled before it doesn't).
    pub(crate) fn push(&mut self, last_offset: Offset, position: u64) {
        let relative = relative(self.base_offset, last_offset);
        let position = i32::try_from(position).expect("segments are smaller than 2 GiB");
        let mut entry = [0; ENTRY_BYTES];
        entry[..4].copy_from_slice(&relative.to_be_bytes());
        entry[4..].copy_from_slice(&position.to_be_bytes());
        self.entries.push(entry);
    }

    /// A position at or before the batch that holds `offset`.
    pub(crate) fn lookup(&self, offset: Offset) -> io::Result<u64> {
        let target = offset.since(self.base_offset);
        self.before(|entry| i64::from(entry_offset(*entry)) <= target)
    }

    /// The last indexed position at or before `position`.
    pub(crate) fn lookup_position(&self, position: u64) -> io::Result<u64> {
        self.before(|entry| entry_position(*entry) <= position)
    }

    /// The last offset of the first indexed batch at or after `position`.
    pub(crate) fn offset_from(&self, position: u64) -> io::Result<Option<Offset>> {
        let at = self
            .entries
            .partition_point(|entry| entry_position(*entry) < position)?;
        if at == self.entries.len() {
            return Ok(None);
        }
        Ok(Some(self.decode(self.entries.get(at)?).last_offset))
    }

    /// Drops the entries of batches at or after `position`.
    pub(crate) fn truncate(&mut self, position: u64) -> io::Result<()> {
        let keep = self
            .entries
            .partition_point(|entry| entry_position(*entry) < position)?;
        self.entries.truncate(keep)
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(crate) fn write_pending(&mut self) -> io::Result<()> {
        self.entries.write_pending()
    }

    fn before(&self, fulfils: impl Fn(&[u8; ENTRY_BYTES]) -> bool) -> io::Result<u64> {
        let count = self.entries.partition_point(fulfils)?;
        match count.checked_sub(1) {
            Some(at) => Ok(entry_position(self.entries.get(at)?)),
            None => Ok(0),
        }
    }

    fn decode(&self, entry: [u8; ENTRY_BYTES]) -> IndexEntry {
        IndexEntry {
            last_offset: self.base_offset.plus(i64::from(entry_offset(entry))),
            position: entry_position(entry),
        }
    }
}

/// The offset as both indexes store it.
pub(crate) fn relative(base_offset: Offset, offset: Offset) -> i32 {
    i32::try_from(offset.since(base_offset))
        .expect("a segment is rolled before its offsets exceed 31 bits")
}

fn entry_offset(entry: [u8; ENTRY_BYTES]) -> i32 {
    i32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]])
}

fn entry_position(entry: [u8; ENTRY_BYTES]) -> u64 {
    // A damaged entry may be negative; it then lies past every segment's end.
    u64::from(u32::from_be_bytes([entry[4], entry[5], entry[6], entry[7]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_kafkas_eight_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i");
        let mut index = OffsetIndex::open(path.clone(), Offset::new(1_000)).unwrap();
        index.push(Offset::new(1_009), 4_200);
        index.push(Offset::new(1_258), 0x0102_0304);
        index.write_pending().unwrap();
        assert_eq!(
            std::fs::read(path).unwrap(),
            [0, 0, 0, 9, 0, 0, 0x10, 0x68, 0, 0, 1, 2, 1, 2, 3, 4]
        );
    }

    #[test]
    fn a_lookup_finds_the_last_batch_that_does_not_lie_after_the_offset() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = OffsetIndex::open(dir.path().join("i"), Offset::new(100)).unwrap();
        assert_eq!(index.lookup(Offset::new(500)).unwrap(), 0);
        for i in 1..=1000 {
            index.push(Offset::new(100 + i * 10), i as u64 * 5_000);
        }
        for (offset, position) in [
            (100, 0),
            (109, 0),
            (110, 5_000),
            (119, 5_000),
            (120, 10_000),
        ] {
            assert_eq!(index.lookup(Offset::new(offset)).unwrap(), position);
        }
        assert_eq!(index.lookup(Offset::new(1 << 40)).unwrap(), 5_000_000);
        assert_eq!(index.lookup_position(4_999).unwrap(), 0);
        assert_eq!(index.lookup_position(5_000).unwrap(), 5_000);
        index.truncate(10_000).unwrap();
        assert_eq!(
            index.last().unwrap(),
            Some(IndexEntry {
                last_offset: Offset::new(110),
                position: 5_000
            })
        );
    }
}
