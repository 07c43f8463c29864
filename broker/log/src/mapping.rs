//! Read-only mappings of files: the only unsafe code of this crate.
//!
//! A segment is written by `pwritev` and read through a mapping of the same page cache.
//! It is mapped once, to the size it may grow to; the part beyond the end of the file is
//! address space only, and touching it would be SIGBUS. Hence the invariants, which hold
//! because nothing outside this module can shrink a file that is mapped here:
//! - a [`SegmentFile`]'s file has at least `written` bytes as long as the object lives,
//!   and the bytes below `written` never change;
//! - no byte at or past `written` is touched.
//!
//! So truncation needs the object to itself ([`SegmentFile::truncate`] takes `&mut`);
//! who can't have it writes a copy of the file and leaves the old one to its readers.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    ops::Range,
    path::Path,
    slice,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use memmap2::{MmapOptions, MmapRaw};

/// One `.log` file: its descriptor, its mapping, and how far it may be read.
#[derive(Debug)]
pub struct SegmentFile {
    file: Arc<File>,
    /// What is mapped; the file never grows past it.
    capacity: u64,
    /// Whole batches end here; the file may be longer after a failed write.
    written: AtomicU64,
    mapping: OnceLock<MmapRaw>,
    /// Whether anyone asked for it since [`SegmentFile::take_used`].
    used: AtomicBool,
}

impl SegmentFile {
    /// Takes the file at `path`, of which `written` bytes are good, to be mapped with
    /// room up to `capacity`.
    pub(crate) fn open(path: &Path, written: u64, capacity: u64) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        Self::new(file, written, capacity)
    }

    pub(crate) fn new(file: File, written: u64, capacity: u64) -> io::Result<Self> {
        let length = file.metadata()?.len();
        if length < written {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the file has {length} bytes and should have {written}"),
            ));
        }
        Ok(Self {
            file: Arc::new(file),
            capacity: capacity.max(written),
            written: AtomicU64::new(written),
            mapping: OnceLock::new(),
            used: AtomicBool::new(true),
        })
    }

    /// The descriptor, for `sendfile` and fsync. Shrinking the file through it would
    /// break every reader.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Makes the bytes up to `written` readable: they have been written.
    pub(crate) fn publish(&self, written: u64) {
        let before = self.written.swap(written, Ordering::Release);
        assert!(
            before <= written && written <= self.capacity,
            "a segment only grows, up to its capacity"
        );
    }

    /// Cuts off what a failed write left behind. No reader can see those bytes.
    pub(crate) fn discard_unpublished(&self) -> io::Result<()> {
        self.file.set_len(self.written.load(Ordering::Acquire))
    }

    /// Shortens the file. That `self` is borrowed mutably proves that no reader holds
    /// a slice of it.
    pub(crate) fn truncate(&mut self, length: u64) -> io::Result<()> {
        let written = self.written.get_mut();
        assert!(length <= *written, "truncation only shortens");
        *written = length;
        self.file.set_len(length)
    }

    /// The bytes of `range`, which must have been published.
    pub(crate) fn bytes(&self, range: Range<u64>) -> io::Result<&[u8]> {
        self.used.store(true, Ordering::Relaxed);
        if self.mapping.get().is_none() {
            // Two threads may both map it; one of the mappings is dropped again.
            let _ = self.mapping.set(map(&self.file, self.capacity)?);
        }
        Ok(self.mapped_bytes(range))
    }

    fn mapped_bytes(&self, range: Range<u64>) -> &[u8] {
        let written = self.written.load(Ordering::Acquire);
        assert!(
            range.start <= range.end && range.end <= written,
            "bytes {range:?} of a segment with {written}"
        );
        let mapping = self.mapping.get().expect("mapped by the caller");
        // SAFETY: the mapping has `capacity` bytes and `written <= capacity` (`new`,
        // `publish`). The file has at least `written` bytes for as long as `self` is
        // borrowed, because only `truncate` shortens it below that and it needs `&mut
        // self`; so no page of the range is past the end of the file. Those bytes don't
        // change: writes go to `written` and beyond.
        unsafe {
            slice::from_raw_parts(
                mapping.as_ptr().add(range.start as usize),
                (range.end - range.start) as usize,
            )
        }
    }

    /// Whether the segment was read or written since the last call.
    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn mark_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

/// Whole batches in one segment. It keeps the file's bytes readable for as long as it
/// lives, without any lock and also after the segment has been deleted.
#[derive(Clone, Debug)]
pub struct FileSlice {
    segment: Arc<SegmentFile>,
    position: u64,
    len: usize,
}

impl FileSlice {
    pub(crate) fn new(segment: Arc<SegmentFile>, range: Range<u64>) -> io::Result<Self> {
        let len = segment.bytes(range.clone())?.len();
        Ok(Self {
            segment,
            position: range.start,
            len,
        })
    }

    /// The bytes, in the page cache or to be read from the disk at the first touch.
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.position + self.len as u64;
        self.segment.mapped_bytes(self.position..end)
    }

    /// The file, for `sendfile` from [`FileSlice::position`].
    pub fn file(&self) -> &File {
        &self.segment.file
    }

    /// The file and its mapping.
    pub fn segment(&self) -> &Arc<SegmentFile> {
        &self.segment
    }

    /// Where the bytes begin in the file.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Whether all the bytes are in the page cache, so that reading them does not wait
    /// for the disk. An answer for this moment only.
    pub fn is_resident(&self) -> bool {
        if self.len == 0 {
            return true;
        }
        let page = page_size();
        let bytes = self.as_bytes();
        let lead = bytes.as_ptr().addr() % page;
        let start = bytes.as_ptr().wrapping_sub(lead);
        // A bounded number of pages at a time, so that a large slice needs no vector.
        let mut pages = [0_u8; 256];
        let mut rest = lead + bytes.len();
        let mut at = start;
        while rest > 0 {
            let len = rest.min(pages.len() * page);
            // SAFETY: `at` is page-aligned, `len` bytes from there on are mapped (they
            // are pages of `bytes`), and `pages` has a byte for each page of them.
            let result =
                unsafe { libc::mincore(at.cast_mut().cast(), len, pages.as_mut_ptr().cast()) };
            let all_there = pages[..len.div_ceil(page)].iter().all(|page| page & 1 == 1);
            if result != 0 || !all_there {
                return false;
            }
            rest -= len;
            at = at.wrapping_add(len);
        }
        true
    }
}

/// A file of which nothing changes while it is mapped: a stored part of an index.
#[derive(Debug)]
pub(crate) struct FixedMap {
    mapping: MmapRaw,
    len: usize,
}

impl FixedMap {
    /// Maps the first `len` bytes of `file`. The owner must drop the map before it
    /// shortens the file.
    pub(crate) fn new(file: &File, len: usize) -> io::Result<Self> {
        if file.metadata()?.len() < len as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mapping = map(file, len as u64)?;
        Ok(Self { mapping, len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes were mapped and the file had them; the index that owns the
        // map is the only one that writes the file, never below `len`, and it drops the
        // map before it shortens the file (`EntryFile::truncate`).
        unsafe { slice::from_raw_parts(self.mapping.as_ptr(), self.len) }
    }
}

fn page_size() -> usize {
    // SAFETY: it only reads a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).expect("the system has a page size")
}

fn map(file: &File, len: u64) -> io::Result<MmapRaw> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    MmapOptions::new().len(len.max(1)).map_raw_read_only(file)
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::file_io;

    fn segment(capacity: u64) -> SegmentFile {
        SegmentFile::new(tempfile::tempfile().unwrap(), 0, capacity).unwrap()
    }

    fn write(segment: &SegmentFile, bytes: &[u8], at: u64) {
        file_io::write_at(segment.file(), &mut [IoSlice::new(bytes)], at).unwrap();
    }

    #[test]
    fn a_mapping_made_before_the_bytes_were_written_shows_them() {
        let segment = segment(1 << 20);
        assert_eq!(segment.bytes(0..0).unwrap(), b"");
        let mut all = Vec::new();
        for round in 0..100_u8 {
            let chunk = vec![round; 1000];
            write(&segment, &chunk, all.len() as u64);
            all.extend_from_slice(&chunk);
            segment.publish(all.len() as u64);
            assert_eq!(segment.bytes(0..all.len() as u64).unwrap(), all);
        }
    }

    #[test]
    #[should_panic(expected = "of a segment with")]
    fn bytes_that_were_not_published_are_not_touched() {
        let segment = segment(1 << 20);
        write(&segment, b"unpublished", 0);
        let _ = segment.bytes(0..1);
    }

    #[test]
    fn a_slice_outlives_the_removal_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        std::fs::write(&path, b"still here").unwrap();
        let segment = Arc::new(SegmentFile::open(&path, 10, 10).unwrap());
        let slice = FileSlice::new(Arc::clone(&segment), 6..10).unwrap();
        drop(segment);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(slice.as_bytes(), b"here");
        assert!(slice.is_resident());
    }

    #[test]
    fn a_file_shorter_than_promised_is_not_mapped() {
        let file = tempfile::tempfile().unwrap();
        assert!(FixedMap::new(&file, 1).is_err());
        assert!(SegmentFile::new(file, 1, 10).is_err());
    }

    #[test]
    fn what_a_failed_write_left_is_cut_off_and_the_rest_stays() {
        let segment = segment(100);
        write(&segment, b"good", 0);
        segment.publish(4);
        write(&segment, b"bad", 4);
        segment.discard_unpublished().unwrap();
        assert_eq!(segment.file().metadata().unwrap().len(), 4);
        assert_eq!(segment.bytes(0..4).unwrap(), b"good");
    }
}
