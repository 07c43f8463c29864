//! Which leader epoch began at which offset (KIP-101), and its file
//! `leader-epoch-checkpoint`.
//!
//! ```text
//! 0              the version
//! 2              how many lines follow
//! 3 0            epoch, start offset
//! 5 1200
//! ```
//!
//! Epochs and start offsets both increase. A new epoch is in the file from the next flush
//! on: what a crash loses of it is in the batches that recovery reads again, and an epoch
//! without a batch is missed by nobody. So a broker that becomes the leader of thousands of
//! partitions at once writes no file. What a truncation takes away is written at once, but
//! fsynced only with the log.

use std::{
    io,
    path::{Path, PathBuf},
};

use yuxi_protocol::ids::{LeaderEpoch, Offset};

use crate::{checkpoint, file_io};

/// The file's name in the partition's directory.
pub(crate) const FILE_NAME: &str = "leader-epoch-checkpoint";

/// One epoch and the first offset that was or will be written in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEntry {
    /// The leader epoch.
    pub epoch: LeaderEpoch,
    /// Its first offset.
    pub start_offset: Offset,
}

#[derive(Debug)]
pub(crate) struct LeaderEpochs {
    path: PathBuf,
    entries: Vec<EpochEntry>,
    /// Counts the changes; how many of them are in the file; how many are durable.
    changes: u64,
    written: u64,
    synced: u64,
}

impl LeaderEpochs {
    /// Reads the file; none is an empty history. A damaged one is an error of kind
    /// [`io::ErrorKind::InvalidData`], after which [`LeaderEpochs::empty`] and the
    /// batches of the log make it again.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let mut epochs = Self::empty(dir);
        let Some(lines) = checkpoint::read_entries(&epochs.path)? else {
            return Ok(epochs);
        };
        for line in lines {
            let entry = parse(&line).ok_or_else(|| checkpoint::malformed(&epochs.path, &line))?;
            epochs.insert(entry);
        }
        epochs.written = epochs.changes;
        epochs.synced = epochs.changes;
        Ok(epochs)
    }

    pub(crate) fn empty(dir: &Path) -> Self {
        Self {
            path: dir.join(FILE_NAME),
            entries: Vec::new(),
            changes: 0,
            written: 0,
            synced: 0,
        }
    }

    pub(crate) fn entries(&self) -> &[EpochEntry] {
        &self.entries
    }

    pub(crate) fn latest(&self) -> Option<EpochEntry> {
        self.entries.last().copied()
    }

    /// The epoch in which `offset` was written, if the history reaches back so far.
    pub(crate) fn at(&self, offset: Offset) -> Option<LeaderEpoch> {
        let count = self
            .entries
            .partition_point(|entry| entry.start_offset <= offset);
        Some(self.entries[count.checked_sub(1)?].epoch)
    }

    /// Where the last epoch not after `epoch` ends: the start of the next one, or the log
    /// end offset. `None` when that can't be known.
    pub(crate) fn end_offset(
        &self,
        epoch: LeaderEpoch,
        log_end_offset: Offset,
    ) -> Option<(LeaderEpoch, Offset)> {
        let latest = self.latest()?;
        if epoch < LeaderEpoch::new(0) || epoch > latest.epoch {
            return None;
        }
        if epoch == latest.epoch {
            return Some((epoch, log_end_offset));
        }
        let next = self.entries.partition_point(|entry| entry.epoch <= epoch);
        let end = self.entries[next].start_offset;
        match next.checked_sub(1) {
            Some(floor) => Some((self.entries[floor].epoch, end)),
            // The epoch's records are gone from the log; all of it comes after.
            None => Some((epoch, end)),
        }
    }

    /// Notes that `epoch` begins at `start_offset`, unless it is known already. The file is
    /// not written yet.
    pub(crate) fn assign(&mut self, epoch: LeaderEpoch, start_offset: Offset) {
        if epoch < LeaderEpoch::new(0) {
            return;
        }
        self.insert(EpochEntry {
            epoch,
            start_offset,
        });
    }

    /// As [`LeaderEpochs::assign`] for a stored batch.
    pub(crate) fn observe(&mut self, epoch: LeaderEpoch, base_offset: Offset) {
        let known = self.latest().map_or(LeaderEpoch::NONE, |entry| entry.epoch);
        if epoch > known {
            self.insert(EpochEntry {
                epoch,
                start_offset: base_offset,
            });
        }
    }

    /// Forgets the epochs that begin at `end_offset` or later.
    pub(crate) fn truncate_end(&mut self, end_offset: Offset) {
        let keep = self
            .entries
            .partition_point(|entry| entry.start_offset < end_offset);
        if keep < self.entries.len() {
            self.entries.truncate(keep);
            self.changes += 1;
        }
        self.write_quietly();
    }

    /// Forgets the epochs that end at or before `start_offset`; the one it lies in now
    /// begins there.
    pub(crate) fn truncate_start(&mut self, start_offset: Offset) {
        let count = self
            .entries
            .partition_point(|entry| entry.start_offset <= start_offset);
        let Some(floor) = count.checked_sub(1) else {
            return;
        };
        if floor > 0 || self.entries[0].start_offset != start_offset {
            self.entries.drain(..floor);
            self.entries[0].start_offset = start_offset;
            self.changes += 1;
        }
        self.write_quietly();
    }

    pub(crate) fn clear(&mut self) {
        if !self.entries.is_empty() {
            self.entries.clear();
            self.changes += 1;
        }
        self.write_quietly();
    }

    /// Writes the file if it lacks something. If it awaits an fsync: its path, and what to
    /// pass to [`LeaderEpochs::synced`] after that.
    pub(crate) fn write(&mut self) -> io::Result<Option<(PathBuf, u64)>> {
        if self.written < self.changes {
            let lines = self
                .entries
                .iter()
                .map(|entry| format!("{} {}", entry.epoch, entry.start_offset));
            file_io::replace(&self.path, &checkpoint::format_entries(lines), false)?;
            self.written = self.changes;
        }
        Ok((self.synced < self.written).then(|| (self.path.clone(), self.written)))
    }

    pub(crate) fn synced(&mut self, written: u64) {
        self.synced = self.synced.max(written);
    }

    /// Memory is right all the same; the next flush tries again, and fails if it can't.
    fn write_quietly(&mut self) {
        if let Err(error) = self.write() {
            tracing::warn!(path = %self.path.display(), %error, "leader epochs not written yet");
        }
    }

    fn insert(&mut self, entry: EpochEntry) {
        if let Some(latest) = self.latest()
            && latest.epoch == entry.epoch
            && latest.start_offset <= entry.start_offset
        {
            return;
        }
        while let Some(latest) = self.latest()
            && (latest.epoch >= entry.epoch || latest.start_offset >= entry.start_offset)
        {
            self.entries.pop();
        }
        self.entries.push(entry);
        self.changes += 1;
    }
}

fn parse(line: &str) -> Option<EpochEntry> {
    let mut words = line.split_whitespace();
    let epoch: i32 = words.next()?.parse().ok()?;
    let start_offset: i64 = words.next()?.parse().ok()?;
    (words.next().is_none() && epoch >= 0 && start_offset >= 0).then(|| EpochEntry {
        epoch: LeaderEpoch::new(epoch),
        start_offset: Offset::new(start_offset),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(epochs: &LeaderEpochs) -> Vec<(i32, i64)> {
        epochs
            .entries()
            .iter()
            .map(|entry| (entry.epoch.value(), entry.start_offset.value()))
            .collect()
    }

    fn history(dir: &Path, entries: &[(i32, i64)]) -> LeaderEpochs {
        let mut epochs = LeaderEpochs::empty(dir);
        for &(epoch, start) in entries {
            epochs.assign(LeaderEpoch::new(epoch), Offset::new(start));
        }
        epochs
    }

    #[test]
    fn the_file_is_kafkas() {
        let dir = tempfile::tempdir().unwrap();
        let mut epochs = history(dir.path(), &[(3, 0), (5, 1200)]);
        let (path, _) = epochs.write().unwrap().unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "0\n2\n3 0\n5 1200\n"
        );
        let read = LeaderEpochs::open(dir.path()).unwrap();
        assert_eq!(pairs(&read), [(3, 0), (5, 1200)]);
        for damaged in ["", "0\n"] {
            std::fs::write(&path, damaged).unwrap();
            assert!(LeaderEpochs::open(dir.path()).unwrap().entries().is_empty());
        }
        for damaged in [
            "1\n0\n",
            "0\n2\n3 0\n",
            "0\n1\nx y\n",
            "0\n1\n-1 5\n",
            "\0\0\0",
        ] {
            std::fs::write(&path, damaged).unwrap();
            let error = LeaderEpochs::open(dir.path()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{damaged:?}");
        }
    }

    #[test]
    fn a_new_epoch_takes_away_what_contradicts_it() {
        let dir = tempfile::tempdir().unwrap();
        for (entries, expected) in [
            (
                &[(0, 0), (1, 10), (2, 20)][..],
                &[(0, 0), (1, 10), (2, 20)][..],
            ),
            (&[(0, 0), (0, 10)], &[(0, 0)]),
            (&[(0, 0), (1, 10), (2, 10)], &[(0, 0), (2, 10)]),
            (&[(0, 0), (2, 10), (1, 20)], &[(0, 0), (1, 20)]),
            (&[(0, 5), (0, 3)], &[(0, 3)]),
            (&[(-1, 3)], &[]),
        ] {
            assert_eq!(
                pairs(&history(dir.path(), entries)),
                expected,
                "{entries:?}"
            );
        }
    }

    #[test]
    fn an_epoch_ends_where_the_next_one_known_begins() {
        let dir = tempfile::tempdir().unwrap();
        let epochs = history(dir.path(), &[(2, 5), (4, 10), (7, 30)]);
        for (asked, expected) in [
            (-1, None),
            (0, Some((0, 5))),
            (2, Some((2, 10))),
            (3, Some((2, 10))),
            (4, Some((4, 30))),
            (6, Some((4, 30))),
            (7, Some((7, 44))),
            (8, None),
        ] {
            let found = epochs.end_offset(LeaderEpoch::new(asked), Offset::new(44));
            let found = found.map(|(epoch, end)| (epoch.value(), end.value()));
            assert_eq!(found, expected, "epoch {asked}");
        }
        assert_eq!(epochs.at(Offset::new(4)), None);
        assert_eq!(epochs.at(Offset::new(29)), Some(LeaderEpoch::new(4)));
    }

    #[test]
    fn truncation_at_either_end_keeps_the_epochs_that_still_have_records() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [(2, 5), (4, 10), (7, 30)];
        for (end, expected) in [
            (31, &[(2, 5), (4, 10), (7, 30)][..]),
            (30, &[(2, 5), (4, 10)]),
            (10, &[(2, 5)]),
            (5, &[]),
        ] {
            let mut epochs = history(dir.path(), &entries);
            epochs.truncate_end(Offset::new(end));
            assert_eq!(pairs(&epochs), expected, "end {end}");
        }
        for (start, expected) in [
            (3, &[(2, 5), (4, 10), (7, 30)][..]),
            (6, &[(2, 6), (4, 10), (7, 30)]),
            (10, &[(4, 10), (7, 30)]),
            (99, &[(7, 99)]),
        ] {
            let mut epochs = history(dir.path(), &entries);
            epochs.truncate_start(Offset::new(start));
            assert_eq!(pairs(&epochs), expected, "start {start}");
        }
    }
}
