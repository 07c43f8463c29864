//! A file of fixed-size entries that grows at its end: what all indexes are.
//!
//! New entries wait in memory and are written many at a time, so that an append costs
//! no second system call; a crash loses them, and recovery makes them again from the
//! log. Stored entries are read through a mapping. No descriptor is kept open. Owned by
//! one segment; no other process or thread writes the file.

use std::{
    fs::File,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::{file_io, mapping::FixedMap};

/// Entries that wait in memory before they are written.
const MAX_PENDING: usize = 128;

#[derive(Debug)]
pub(crate) struct EntryFile<const N: usize> {
    path: PathBuf,
    /// Entries in the file.
    stored: usize,
    /// Whether the file may have more, which counts for nothing.
    has_excess: bool,
    /// Entries after those.
    pending: Vec<[u8; N]>,
    /// The stored entries, mapped when they were first asked for.
    map: OnceLock<FixedMap>,
}

impl<const N: usize> EntryFile<N> {
    /// Opens the file, or creates it. Zeros at the end, which Kafka reserves in advance
    /// and an unclean stop leaves there, are no entries, nor is a part of an entry.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        let length = file.metadata()?.len() as usize;
        let mut stored = length / N;
        if stored > 0 {
            let map = FixedMap::new(&file, stored * N)?;
            let entries = map.bytes().as_chunks::<N>().0;
            if entries[stored - 1] == [0; N] {
                stored = entries.partition_point(|entry| entry != &[0; N]);
            }
        }
        if stored * N != length {
            file.set_len((stored * N) as u64)?;
        }
        Ok(Self {
            path,
            stored,
            has_excess: false,
            pending: Vec::new(),
            map: OnceLock::new(),
        })
    }

    /// No entries yet, and no file: it is created when entries are written.
    pub(crate) fn absent(path: PathBuf) -> Self {
        Self {
            path,
            stored: 0,
            has_excess: false,
            pending: Vec::new(),
            map: OnceLock::new(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> usize {
        self.stored + self.pending.len()
    }

    pub(crate) fn get(&self, at: usize) -> io::Result<[u8; N]> {
        match at.checked_sub(self.stored) {
            Some(pending) => Ok(self.pending[pending]),
            None => Ok(self.stored_entries()?[at]),
        }
    }

    pub(crate) fn last(&self) -> io::Result<Option<[u8; N]>> {
        self.len().checked_sub(1).map(|at| self.get(at)).transpose()
    }

    /// How many entries at the beginning fulfil `before`, which they do up to some entry
    /// and no further.
    pub(crate) fn partition_point(&self, before: impl Fn(&[u8; N]) -> bool) -> io::Result<usize> {
        // Most look-ups are near the end.
        if self.pending.first().is_some_and(&before) || self.stored == 0 {
            return Ok(self.stored + self.pending.partition_point(before));
        }
        Ok(self.stored_entries()?.partition_point(before))
    }

    /// Adds an entry. That a full disk keeps it in memory is no error.
    pub(crate) fn push(&mut self, entry: [u8; N]) {
        self.pending.push(entry);
        if self.pending.len().is_multiple_of(MAX_PENDING)
            && let Err(error) = self.write_pending()
        {
            tracing::warn!(path = %self.path.display(), %error, "index entries stay in memory");
        }
    }

    /// Writes the entries that wait. They are not fsynced.
    pub(crate) fn write_pending(&mut self) -> io::Result<()> {
        if self.pending.is_empty() && !self.has_excess {
            return Ok(());
        }
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        let file = options.open(&self.path)?;
        let bytes = self.pending.as_flattened();
        let position = (self.stored * N) as u64;
        if let Err(error) = file_io::write_at(&file, &mut [IoSlice::new(bytes)], position) {
            // What was written of them counts for nothing; the next attempt overwrites it.
            let _ = file.set_len(position);
            return Err(error);
        }
        self.stored += self.pending.len();
        if self.has_excess {
            // To the length that it has already, if the same entries were made again.
            file.set_len((self.stored * N) as u64)?;
            self.has_excess = false;
        }
        // The memory too: most segments never fill another batch of entries.
        self.pending = Vec::new();
        self.map.take();
        Ok(())
    }

    /// Writes what waits, and lets go of the mapping.
    pub(crate) fn release(&mut self) -> io::Result<()> {
        self.write_pending()?;
        self.map.take();
        Ok(())
    }

    /// Forgets all entries, to make them again. The file stays as it is until they are
    /// written: to empty it and write it at once is slow on some file systems, which
    /// take it for the replacement of a file.
    pub(crate) fn clear(&mut self) {
        self.map.take();
        self.pending = Vec::new();
        self.has_excess |= self.stored > 0;
        self.stored = 0;
    }

    /// Keeps the first `len` entries.
    pub(crate) fn truncate(&mut self, len: usize) -> io::Result<()> {
        if let Some(pending) = len.checked_sub(self.stored) {
            self.pending.truncate(pending);
            return Ok(());
        }
        self.pending = Vec::new();
        // Before the file gets shorter: what is mapped must be there.
        self.map.take();
        self.stored = len;
        let file = File::options().write(true).open(&self.path)?;
        file.set_len((len * N) as u64)
    }

    fn stored_entries(&self) -> io::Result<&[[u8; N]]> {
        let map = if let Some(map) = self.map.get() {
            map
        } else {
            let file = File::open(&self.path)?;
            let map = FixedMap::new(&file, self.stored * N)?;
            self.map.get_or_init(|| map)
        };
        Ok(map.bytes().as_chunks::<N>().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u32) -> [u8; 4] {
        number.to_be_bytes()
    }

    fn numbers(file: &EntryFile<4>) -> Vec<u32> {
        (0..file.len())
            .map(|at| u32::from_be_bytes(file.get(at).unwrap()))
            .collect()
    }

    #[test]
    fn entries_are_read_back_whether_stored_or_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("entries");
        let mut file = EntryFile::open(path.clone()).unwrap();
        for number in 1..=300 {
            file.push(entry(number));
            assert_eq!(file.last().unwrap(), Some(entry(number)));
        }
        assert_eq!(numbers(&file), (1..=300).collect::<Vec<_>>());
        for number in 0..=301 {
            let point = file.partition_point(|e| u32::from_be_bytes(*e) < number);
            assert_eq!(point.unwrap(), number.saturating_sub(1) as usize);
        }
        file.write_pending().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1200);
        assert_eq!(numbers(&EntryFile::open(path).unwrap()).len(), 300);
    }

    #[test]
    fn truncation_drops_stored_and_waiting_entries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("entries");
        let mut file = EntryFile::open(path.clone()).unwrap();
        for number in 1..=200 {
            file.push(entry(number));
        }
        for keep in [190, 128, 100, 0] {
            file.truncate(keep).unwrap();
            assert_eq!(file.len(), keep);
            assert_eq!(numbers(&file), (1..=keep as u32).collect::<Vec<_>>());
            file.push(entry(keep as u32 + 1));
            assert_eq!(file.len(), keep + 1);
            file.truncate(keep).unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn zeros_that_kafka_reserved_and_half_an_entry_are_no_entries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("entries");
        let mut bytes = Vec::new();
        for number in 1..=5 {
            bytes.extend_from_slice(&entry(number));
        }
        for (zeros, name) in [(0, "exact"), (4, "one"), (4000, "many"), (3, "half")] {
            let mut padded = bytes.clone();
            padded.resize(bytes.len() + zeros, 0);
            std::fs::write(&path, padded).unwrap();
            let file = EntryFile::<4>::open(path.clone()).unwrap();
            assert_eq!(numbers(&file), [1, 2, 3, 4, 5], "{name}");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 20, "{name}");
        }
        std::fs::write(&path, [0; 400]).unwrap();
        assert_eq!(EntryFile::<4>::open(path).unwrap().len(), 0);
    }

    #[test]
    fn a_full_disk_loses_no_entry() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EntryFile::open(dir.path().join("entries")).unwrap();
        file_io::full_disk::set(Some(100));
        for number in 1..=300 {
            file.push(entry(number));
        }
        assert!(file.write_pending().is_err());
        file_io::full_disk::set(None);
        assert_eq!(numbers(&file), (1..=300).collect::<Vec<_>>());
        file.write_pending().unwrap();
        assert_eq!(numbers(&file), (1..=300).collect::<Vec<_>>());
    }
}
