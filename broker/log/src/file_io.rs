//! Writing files: all of it or an error, and renames that are either done or not.
//!
//! [`write_at`] is the only place that writes segment and index bytes, so that tests
//! can make the disk full here.

use std::{
    fs::{self, File},
    io::{self, IoSlice, Write},
    path::Path,
};

use crate::file_names;

/// What one `pwritev` takes (`IOV_MAX`).
const MAX_PARTS: usize = 1024;

/// Writes all of `parts` at `position`. After an error any number of bytes may have
/// been written.
pub(crate) fn write_at(
    file: &File,
    mut parts: &mut [IoSlice<'_>],
    mut position: u64,
) -> io::Result<()> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        let count = parts.len().min(MAX_PARTS);
        match write_some(file, &parts[..count], position) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                position += written as u64;
                IoSlice::advance_slices(&mut parts, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn write_some(file: &File, parts: &[IoSlice<'_>], position: u64) -> rustix::io::Result<usize> {
    #[cfg(test)]
    if let Some(room) = full_disk::room() {
        if room == 0 {
            return Err(rustix::io::Errno::NOSPC);
        }
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(part);
        }
        bytes.truncate(room);
        let written = rustix::io::pwrite(file, &bytes, position)?;
        full_disk::take(written);
        return Ok(written);
    }
    rustix::io::pwritev(file, parts, position)
}

/// Replaces the file at `path`: a crash leaves the old bytes or the new ones (I16).
/// Durable when `sync` is set; otherwise the caller fsyncs file and directory later.
pub(crate) fn replace(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let temporary = file_names::with_extension(path, file_names::TEMPORARY);
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if sync && let Some(dir) = path.parent() {
        sync_dir(dir)?;
    }
    Ok(())
}

/// Makes the creations, renames and removals in `dir` durable (I16).
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    // A path of one component has the empty path for its parent.
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)?.sync_all()
}

/// Gives a file of a log another name.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(test)]
    crash::step()?;
    fs::rename(from, to)
}

/// Removes a file of a log, if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    crash::step()?;
    allow_missing(fs::remove_file(path))
}

/// Success when the file was not there to begin with.
pub(crate) fn allow_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// A crash after so many renames and removals, for the running test thread: none after it
/// happens.
#[cfg(test)]
pub(crate) mod crash {
    use std::{cell::Cell, io};

    thread_local! {
        static STEPS: Cell<Option<usize>> = const { Cell::new(None) };
    }

    pub(crate) fn after(steps: Option<usize>) {
        STEPS.set(steps);
    }

    pub(super) fn step() -> io::Result<()> {
        match STEPS.get() {
            Some(0) => Err(io::Error::other("crashed")),
            Some(left) => {
                STEPS.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// A disk with so many bytes of room, for the running test thread.
#[cfg(test)]
pub(crate) mod full_disk {
    use std::cell::Cell;

    thread_local! {
        static ROOM: Cell<Option<usize>> = const { Cell::new(None) };
    }

    pub(crate) fn set(room: Option<usize>) {
        ROOM.set(room);
    }

    pub(super) fn room() -> Option<usize> {
        ROOM.get()
    }

    pub(super) fn take(bytes: usize) {
        ROOM.set(ROOM.get().map(|room| room - bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_parts_are_written_in_order_whatever_one_call_takes() {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..5000_u32).map(|i| i as u8).collect();
        let mut parts: Vec<_> = bytes.chunks(2).map(IoSlice::new).collect();
        write_at(&file, &mut parts, 7).unwrap();
        let mut read = vec![0; 5000];
        rustix::io::pread(&file, &mut read, 7).unwrap();
        assert_eq!(read, bytes);
    }

    #[test]
    fn a_full_disk_is_an_error_after_the_bytes_that_fit() {
        let file = tempfile::tempfile().unwrap();
        full_disk::set(Some(3));
        let result = write_at(&file, &mut [IoSlice::new(b"abcdef")], 0);
        full_disk::set(None);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.metadata().unwrap().len(), 3);
    }
}
