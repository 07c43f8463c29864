//! Directories of deleted partitions, and when they go: readers may still be at them.

use crate::sync::lock;
use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard},
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    due: Mutex<Vec<(i64, PathBuf)>>,
}

impl Deletions {
    pub(super) fn add(&self, due_ms: i64, directory: PathBuf) {
        self.due().push((due_ms, directory));
    }

    /// Those whose time has come.
    pub(super) fn take_due(&self, now_ms: i64) -> Vec<PathBuf> {
        let mut due = self.due();
        due.extract_if(.., |(due_ms, _)| *due_ms <= now_ms)
            .map(|(_, directory)| directory)
            .collect()
    }

    fn due(&self) -> MutexGuard<'_, Vec<(i64, PathBuf)>> {
        lock(&self.due)
    }
}
