//! The aborted transactions of a segment, by their markers: `%020d.txnindex`, in Kafka's
//! version 0. A reader of committed records is told of those that overlap what it reads.
//!
//! ```text
//!  0         2             10             18            26                   34
//! +---------+-------------+--------------+-------------+--------------------+
//! | version | producer id | first offset | last offset | last stable offset |
//! | i16 (0) | i64         | i64          | i64         | i64                |
//! +---------+-------------+--------------+-------------+--------------------+
//! ```
//!
//! The last offset is that of the marker, which lies in this segment; the first may lie in
//! an earlier one. Owned by the segment; there is no file where nothing was aborted.
//! Invariants: last offsets strictly increase; an entry is added with its marker, and what
//! a crash takes of it is made again from the log.

use std::{
    io,
    path::{Path, PathBuf},
};

use yuxi_protocol::ids::{Offset, ProducerId};

use crate::entry_file::EntryFile;

pub(crate) const ENTRY_BYTES: usize = 34;

const VERSION: i16 = 0;
const PRODUCER_ID_AT: usize = 2;
const FIRST_OFFSET_AT: usize = 10;
const LAST_OFFSET_AT: usize = 18;
const LAST_STABLE_AT: usize = 26;

/// A transaction that was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// Whose it was.
    pub producer_id: ProducerId,
    /// The offset of its first record.
    pub first_offset: Offset,
    /// The offset of its marker.
    pub last_offset: Offset,
    /// Where the oldest other transaction began that was open then, or else the offset
    /// after the marker: every transaction that began before it is in an index by now.
    pub last_stable_offset: Offset,
}

impl AbortedTransaction {
    fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        let mut put = |at: usize, value: i64| out[at..at + 8].copy_from_slice(&value.to_be_bytes());
        put(PRODUCER_ID_AT, self.producer_id.value());
        put(FIRST_OFFSET_AT, self.first_offset.value());
        put(LAST_OFFSET_AT, self.last_offset.value());
        put(LAST_STABLE_AT, self.last_stable_offset.value());
        out[..PRODUCER_ID_AT].copy_from_slice(&VERSION.to_be_bytes());
        out
    }

    fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let offset = |at| Offset::new(field(bytes, at));
        Self {
            producer_id: ProducerId::new(field(bytes, PRODUCER_ID_AT)),
            first_offset: offset(FIRST_OFFSET_AT),
            last_offset: offset(LAST_OFFSET_AT),
            last_stable_offset: offset(LAST_STABLE_AT),
        }
    }
}

#[derive(Debug)]
pub(crate) struct TxnIndex {
    entries: EntryFile<ENTRY_BYTES>,
}

impl TxnIndex {
    /// Without entries; there is no file before some are written.
    pub(crate) fn absent(path: PathBuf) -> Self {
        Self {
            entries: EntryFile::absent(path),
        }
    }

    /// Opens the file, which is there.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self {
            entries: EntryFile::open(path)?,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.entries.path()
    }

    /// Whether all its entries may be of a segment from `base_offset` up to `end_offset`.
    pub(crate) fn is_sound(&self, base_offset: Offset, end_offset: Offset) -> io::Result<bool> {
        let mut after = base_offset.plus(-1);
        for at in 0..self.entries.len() {
            let bytes = self.entries.get(at)?;
            let entry = AbortedTransaction::from_bytes(&bytes);
            let sound = bytes.starts_with(&VERSION.to_be_bytes())
                && entry.last_offset > after
                && entry.last_offset < end_offset
                && entry.first_offset < entry.last_offset
                && entry.last_stable_offset <= entry.last_offset.plus(1);
            if !sound {
                return Ok(false);
            }
            after = entry.last_offset;
        }
        Ok(true)
    }

    /// Adds a transaction, whose marker comes after those of all the others. It cannot
    /// fail: what cannot be written stays in memory until it can.
    pub(crate) fn push(&mut self, transaction: AbortedTransaction) {
        self.entries.push(transaction.to_bytes());
    }

    /// Adds to `found` the transactions that have their marker at `from` or later, and
    /// began before `up_to`. True if there can be no more in later segments.
    pub(crate) fn collect(
        &self,
        from: Offset,
        up_to: Offset,
        found: &mut Vec<AbortedTransaction>,
    ) -> io::Result<bool> {
        let first = self
            .entries
            .partition_point(|entry| field(entry, LAST_OFFSET_AT) < from.value())?;
        for at in first..self.entries.len() {
            let entry = AbortedTransaction::from_bytes(&self.entries.get(at)?);
            if entry.first_offset < up_to {
                found.push(entry);
            }
            if entry.last_stable_offset >= up_to {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Drops the transactions whose markers are at `offset` or later.
    pub(crate) fn truncate(&mut self, offset: Offset) -> io::Result<()> {
        let keep = self
            .entries
            .partition_point(|entry| field(entry, LAST_OFFSET_AT) < offset.value())?;
        self.entries.truncate(keep)
    }

    /// Forgets all, to add them again.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(crate) fn write_pending(&mut self) -> io::Result<()> {
        self.entries.write_pending()
    }

    /// Writes what waits, and lets go of the mapping.
    pub(crate) fn release(&mut self) -> io::Result<()> {
        self.entries.release()
    }
}

fn field(bytes: &[u8; ENTRY_BYTES], at: usize) -> i64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    i64::from_be_bytes(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aborted(producer_id: i64, first: i64, last: i64, last_stable: i64) -> AbortedTransaction {
        AbortedTransaction {
            producer_id: ProducerId::new(producer_id),
            first_offset: Offset::new(first),
            last_offset: Offset::new(last),
            last_stable_offset: Offset::new(last_stable),
        }
    }

    fn collect(index: &TxnIndex, from: i64, up_to: i64) -> (Vec<i64>, bool) {
        let mut found = Vec::new();
        let complete = index
            .collect(Offset::new(from), Offset::new(up_to), &mut found)
            .unwrap();
        let producers = found.iter().map(|entry| entry.producer_id.value());
        (producers.collect(), complete)
    }

    #[test]
    fn entries_are_kafkas_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("00000000000000000000.txnindex");
        let mut index = TxnIndex::absent(path.clone());
        assert!(!path.exists());
        index.push(aborted(0x0102, 3, 9, 7));
        index.write_pending().unwrap();
        let mut expected = vec![0, 0];
        for value in [0x0102_i64, 3, 9, 7] {
            expected.extend_from_slice(&value.to_be_bytes());
        }
        assert_eq!(std::fs::read(&path).unwrap(), expected);
        let reopened = TxnIndex::open(path).unwrap();
        assert_eq!(collect(&reopened, 0, 10), (vec![0x0102], false));
    }

    #[test]
    fn what_overlaps_a_range_is_found_and_the_search_ends_where_all_are_settled() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = TxnIndex::absent(dir.path().join("index"));
        index.push(aborted(1, 0, 5, 3)); // another one is open since 3
        index.push(aborted(2, 8, 12, 3));
        index.push(aborted(3, 3, 15, 16));
        index.push(aborted(4, 16, 20, 21));
        for (from, up_to, expected, complete) in [
            (0, 1, vec![1], true),
            (0, 3, vec![1], true),
            (0, 4, vec![1, 3], true),
            (6, 8, vec![3], true),
            (5, 9, vec![1, 2, 3], true),
            (13, 16, vec![3], true),
            (16, 17, vec![4], true),
            (16, 30, vec![4], false),
            (21, 30, vec![], false),
        ] {
            let found = collect(&index, from, up_to);
            assert_eq!(found, (expected, complete), "{from} to {up_to}");
        }
        index.truncate(Offset::new(15)).unwrap();
        assert_eq!(collect(&index, 0, 30), (vec![1, 2], false));
    }

    #[test]
    fn an_index_of_another_segment_or_of_damaged_bytes_is_not_sound() {
        let dir = tempfile::tempdir().unwrap();
        let check = |entries: &[AbortedTransaction], expected: bool| {
            let mut index = TxnIndex::absent(dir.path().join("index"));
            for &entry in entries {
                index.push(entry);
            }
            let sound = index.is_sound(Offset::new(10), Offset::new(20)).unwrap();
            assert_eq!(sound, expected, "{entries:?}");
        };
        check(&[], true);
        check(&[aborted(1, 3, 10, 11), aborted(2, 12, 19, 11)], true);
        check(&[aborted(1, 3, 9, 10)], false);
        check(&[aborted(1, 3, 20, 21)], false);
        check(&[aborted(1, 12, 12, 13)], false);
        check(&[aborted(1, 3, 12, 14)], false);
        check(&[aborted(1, 3, 12, 13), aborted(2, 11, 12, 13)], false);
        let mut index = TxnIndex::absent(dir.path().join("index"));
        let mut other_version = aborted(1, 3, 12, 13).to_bytes();
        other_version[1] = 1;
        index.entries.push(other_version);
        assert!(!index.is_sound(Offset::new(10), Offset::new(20)).unwrap());
    }
}
