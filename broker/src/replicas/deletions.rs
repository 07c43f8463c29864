//! Directories of deleted partitions, and when they go: readers may still be at them.

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
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
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
