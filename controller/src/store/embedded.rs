//! The embedded store: everything in memory, what must outlive the process in
//! one redb file beside it.
//!
//! Keys bound to a session are never written to disk, since the session dies
//! with the process; a transaction that touches only such keys costs no sync.
//! Invariants: memory changes only after the file has (one writer at a time
//! holds `file`, then briefly `memory`); the revision after a restart is that of
//! the last durable commit, so a revision given out later, to session keys alone,
//! may come again, when nothing that outlived the process can have seen it.
//!
//! Clones share one store, so one process can hold a whole cluster on it.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    ops::Bound,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::stream;
use tokio::sync::watch;

use super::{
    Batch, Change, Commit, Entry, Guard, MetadataStore, Operation, Revision, SessionId, Snapshot,
    StoreError, Transaction, Watch, WatchEvent, database::MetadataFile,
};
use crate::sync::lock;

/// How much of the past is kept for watches; an older one has to read again.
const HISTORY_BATCHES: usize = 4096;
const HISTORY_BYTES: usize = 8 << 20;

/// A session ends when it was not kept for this many quarters of its TTL. Counting
/// quarters that were really waited for, rather than comparing clocks, lets a
/// process that was stopped or asleep find its sessions alive.
const SESSION_QUARTERS: u8 = 5;

/// A metadata store inside this process.
#[derive(Clone)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
}

struct Shared {
    /// Held through a commit: the one writer.
    file: Mutex<Option<DurableFile>>,
    memory: Mutex<Memory>,
    /// The last revision, for watches to wait on.
    revision: watch::Sender<Revision>,
    in_memory: bool,
}

struct DurableFile {
    file: MetadataFile,
    /// A commit that failed without saying whether it got to the disk.
    in_doubt: Option<Arc<Batch>>,
}

#[derive(Default)]
struct Memory {
    revision: Revision,
    entries: BTreeMap<Arc<str>, Entry>,
    history: VecDeque<Arc<Batch>>,
    history_bytes: usize,
    /// All revisions after this one are in `history`.
    compacted: Revision,
    sessions: HashMap<SessionId, Session>,
    last_session: i64,
}

struct Session {
    quarters_left: u8,
}

impl EmbeddedStore {
    /// Opens the store kept in `directory`, which must exist and be locked by the
    /// caller against other processes.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let file = MetadataFile::open(directory)?;
        let (revision, entries) = file.load()?;
        let memory = Memory {
            revision,
            compacted: revision,
            entries: entries
                .into_iter()
                .map(|entry| (Arc::clone(&entry.key), entry))
                .collect(),
            ..Memory::default()
        };
        let file = DurableFile {
            file,
            in_doubt: None,
        };
        Ok(Self::new(Some(file), memory))
    }

    /// A store that lives no longer than its clones: for tests and simulation.
    pub fn in_memory() -> Self {
        Self::new(None, Memory::default())
    }

    fn new(file: Option<DurableFile>, memory: Memory) -> Self {
        Self {
            shared: Arc::new(Shared {
                in_memory: file.is_none(),
                file: Mutex::new(file),
                revision: watch::Sender::new(memory.revision),
                memory: Mutex::new(memory),
            }),
        }
    }

    /// Runs `work`, which may sync the file, where it stalls no other task.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if self.shared.in_memory {
            return work(&self.shared);
        }
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || work(&shared))
            .await
            .map_err(|error| StoreError::Unknown(error.to_string()))?
    }
}

impl MetadataStore for EmbeddedStore {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let memory = self.shared.memory();
        Ok(Snapshot {
            revision: memory.revision,
            entries: memory
                .entries
                .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
                .take_while(|(key, _)| key.starts_with(prefix))
                .map(|(_, entry)| entry.clone())
                .collect(),
        })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let cursor = Cursor {
            shared: Arc::clone(&self.shared),
            prefix: prefix.into(),
            after,
            changed: self.shared.revision.subscribe(),
        };
        Ok(Box::pin(stream::unfold(cursor, Cursor::next)))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError> {
        transaction.check_limits()?;
        self.blocking(move |shared| shared.commit(&transaction))
            .await
    }

    async fn open_session(&self, ttl: Duration) -> Result<SessionId, StoreError> {
        let session = {
            let mut memory = self.shared.memory();
            memory.last_session += 1;
            let session = SessionId(memory.last_session);
            memory.sessions.insert(
                session,
                Session {
                    quarters_left: SESSION_QUARTERS,
                },
            );
            session
        };
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(ttl / 4).await;
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                if !shared.quarter_passed(session) {
                    return;
                }
            }
        });
        Ok(session)
    }

    async fn keep_session(&self, session: SessionId) -> Result<(), StoreError> {
        match self.shared.memory().sessions.get_mut(&session) {
            Some(kept) => {
                kept.quarters_left = SESSION_QUARTERS;
                Ok(())
            }
            None => Err(StoreError::SessionLost),
        }
    }

    async fn close_session(&self, session: SessionId) -> Result<(), StoreError> {
        self.shared.end_session(session)
    }
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Memory is changed by whole batches in one go, so what a panicking
        // thread left behind is consistent.
        lock(&self.memory)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Commit, StoreError> {
        let mut file = lock(&self.file);
        if let Some(file) = file.as_mut() {
            self.settle(file)?;
        }
        let batch = {
            let memory = self.memory();
            if !transaction.guards.iter().all(|guard| memory.holds(guard)) {
                return Ok(Commit::Refused);
            }
            Arc::new(memory.plan(&transaction.operations)?)
        };
        if batch.changes.is_empty() {
            return Ok(Commit::Applied(self.memory().revision));
        }
        self.apply(file.as_mut(), &batch)?;
        Ok(Commit::Applied(batch.revision))
    }

    /// To the disk as far as it belongs there, then to memory, then to the watches.
    fn apply(&self, file: Option<&mut DurableFile>, batch: &Arc<Batch>) -> Result<(), StoreError> {
        if let Some(file) = file {
            let durable: Vec<&Change> = {
                let memory = self.memory();
                let on_disk = |key| memory.entries.get(key).is_some_and(|e| e.session.is_none());
                batch
                    .changes
                    .iter()
                    .filter(|change| match change {
                        Change::Put(entry) => entry.session.is_none() || on_disk(&entry.key),
                        Change::Delete(key) => on_disk(key),
                    })
                    .collect()
            };
            if !durable.is_empty() {
                file.file.commit(batch, &durable).inspect_err(|_| {
                    file.in_doubt = Some(Arc::clone(batch));
                })?;
            }
        }
        self.memory().apply(batch);
        self.revision.send_replace(batch.revision);
        Ok(())
    }

    /// Finds out what became of a commit whose outcome is unknown.
    fn settle(&self, file: &mut DurableFile) -> Result<(), StoreError> {
        let Some(batch) = &file.in_doubt else {
            return Ok(());
        };
        let stored = file.file.reopen()?;
        if stored >= batch.revision {
            let mut memory = self.memory();
            let batch = Arc::new(memory.restamp(batch));
            memory.apply(&batch);
            self.revision.send_replace(batch.revision);
        }
        file.in_doubt = None;
        Ok(())
    }

    /// Whether the session goes on.
    fn quarter_passed(&self, session: SessionId) -> bool {
        {
            let mut memory = self.memory();
            let Some(kept) = memory.sessions.get_mut(&session) else {
                return false;
            };
            kept.quarters_left -= 1;
            if kept.quarters_left > 0 {
                return true;
            }
        }
        // It touches no disk, so nothing can fail.
        let _ = self.end_session(session);
        false
    }

    fn end_session(&self, session: SessionId) -> Result<(), StoreError> {
        let mut file = lock(&self.file);
        let batch = {
            let mut memory = self.memory();
            if memory.sessions.remove(&session).is_none() {
                return Ok(());
            }
            Arc::new(Batch {
                revision: memory.revision.next(),
                changes: memory
                    .entries
                    .values()
                    .filter(|entry| entry.session == Some(session))
                    .map(|entry| Change::Delete(Arc::clone(&entry.key)))
                    .collect(),
            })
        };
        if batch.changes.is_empty() {
            return Ok(());
        }
        self.apply(file.as_mut(), &batch)
    }
}

impl Memory {
    fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Absent(key) => !self.entries.contains_key(key.as_str()),
            Guard::Modified(key, revision) => self
                .entries
                .get(key.as_str())
                .is_some_and(|entry| entry.mod_revision == *revision),
            Guard::Created(key, revision) => self
                .entries
                .get(key.as_str())
                .is_some_and(|entry| entry.create_revision == *revision),
        }
    }

    /// What the operations would change, as the next revision.
    fn plan(&self, operations: &[Operation]) -> Result<Batch, StoreError> {
        let revision = self.revision.next();
        let mut changes = Vec::with_capacity(operations.len());
        let mut keys = HashSet::with_capacity(operations.len());
        for operation in operations {
            assert!(
                keys.insert(operation.key()),
                "'{}' is changed twice in one transaction",
                operation.key()
            );
            let old = self.entries.get(operation.key());
            match operation {
                Operation::Put {
                    key,
                    value,
                    session,
                } => {
                    if session.is_some_and(|session| !self.sessions.contains_key(&session)) {
                        return Err(StoreError::SessionLost);
                    }
                    changes.push(Change::Put(Entry {
                        key: old.map_or_else(|| key.as_str().into(), |old| Arc::clone(&old.key)),
                        value: value.clone(),
                        create_revision: old.map_or(revision, |old| old.create_revision),
                        mod_revision: revision,
                        session: *session,
                    }));
                }
                Operation::Delete { .. } => {
                    if let Some(old) = old {
                        changes.push(Change::Delete(Arc::clone(&old.key)));
                    }
                }
            }
        }
        Ok(Batch { revision, changes })
    }

    /// A commit that turned out to be on the disk, at the next revision: sessions
    /// may have ended at its own since.
    fn restamp(&self, batch: &Batch) -> Batch {
        let revision = self.revision.next();
        let alive = |change: &&Change| match change {
            Change::Put(entry) => entry
                .session
                .is_none_or(|session| self.sessions.contains_key(&session)),
            Change::Delete(_) => true,
        };
        let restamped = |change: &Change| match change {
            Change::Put(entry) => Change::Put(Entry {
                create_revision: if entry.create_revision == batch.revision {
                    revision
                } else {
                    entry.create_revision
                },
                mod_revision: revision,
                ..entry.clone()
            }),
            Change::Delete(key) => Change::Delete(Arc::clone(key)),
        };
        Batch {
            revision,
            changes: batch.changes.iter().filter(alive).map(restamped).collect(),
        }
    }

    fn apply(&mut self, batch: &Arc<Batch>) {
        assert_eq!(
            batch.revision,
            self.revision.next(),
            "batches are applied in the order they were planned in"
        );
        self.revision = batch.revision;
        for change in &batch.changes {
            match change {
                Change::Put(entry) => {
                    self.entries.insert(Arc::clone(&entry.key), entry.clone());
                }
                Change::Delete(key) => {
                    self.entries.remove(key);
                }
            }
        }
        self.history_bytes += size_in_bytes(batch);
        self.history.push_back(Arc::clone(batch));
        while self.history.len() > HISTORY_BATCHES || self.history_bytes > HISTORY_BYTES {
            let Some(oldest) = self.history.pop_front() else {
                break;
            };
            self.history_bytes -= size_in_bytes(&oldest);
            self.compacted = oldest.revision;
        }
    }
}

fn size_in_bytes(batch: &Batch) -> usize {
    let changed = |change: &Change| match change {
        Change::Put(entry) => entry.key.len() + entry.value.len(),
        Change::Delete(key) => key.len(),
    };
    batch.changes.iter().map(changed).sum()
}

/// Where a watch stands. It holds no queue: it reads the store's history.
struct Cursor {
    shared: Arc<Shared>,
    prefix: Box<str>,
    after: Revision,
    changed: watch::Receiver<Revision>,
}

impl Cursor {
    async fn next(mut self) -> Option<(Result<WatchEvent, StoreError>, Self)> {
        loop {
            self.changed.mark_unchanged();
            if let Some(event) = self.poll_history() {
                return Some((Ok(event), self));
            }
            // The sender lives in `shared`, which this cursor holds.
            self.changed.changed().await.ok()?;
        }
    }

    fn poll_history(&mut self) -> Option<WatchEvent> {
        let memory = self.shared.memory();
        if self.after < memory.compacted {
            return Some(WatchEvent::Compacted);
        }
        let from = memory
            .history
            .partition_point(|batch| batch.revision <= self.after);
        for batch in memory.history.range(from..) {
            self.after = batch.revision;
            let concerns = |change: &&Change| change.key().starts_with(&*self.prefix);
            let concerned = batch.changes.iter().filter(concerns).count();
            if concerned == batch.changes.len() {
                return Some(WatchEvent::Batch(Arc::clone(batch)));
            } else if concerned > 0 {
                return Some(WatchEvent::Batch(Arc::new(Batch {
                    revision: batch.revision,
                    changes: batch.changes.iter().filter(concerns).cloned().collect(),
                })));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bytes::Bytes;

    use super::*;

    fn put(key: &str, session: Option<SessionId>) -> Transaction {
        Transaction {
            guards: Vec::new(),
            operations: vec![Operation::Put {
                key: key.to_owned(),
                value: Bytes::from_static(b"value"),
                session,
            }],
        }
    }

    async fn keys(store: &EmbeddedStore) -> Vec<String> {
        let snapshot = store.read("").await.unwrap();
        snapshot
            .entries
            .iter()
            .map(|entry| entry.key.to_string())
            .collect()
    }

    /// What a process that is killed now would leave behind, opened by the next.
    fn after_a_kill(directory: &Path) -> (EmbeddedStore, tempfile::TempDir) {
        let copy = tempfile::tempdir().unwrap();
        for file in fs::read_dir(directory).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
        (EmbeddedStore::open(copy.path()).unwrap(), copy)
    }

    #[tokio::test]
    async fn what_was_committed_survives_a_kill_and_sessions_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path()).unwrap();
        let session = store.open_session(Duration::from_mins(1)).await.unwrap();
        store.commit(put("a", None)).await.unwrap();
        store.commit(put("s", Some(session))).await.unwrap();
        let Ok(Commit::Applied(last)) = store.commit(put("b", None)).await else {
            panic!("nothing guards this");
        };
        let (next, _copy) = after_a_kill(directory.path());
        assert_eq!(keys(&next).await, ["a", "b"]);
        let before = store.read("a").await.unwrap().entries;
        let after = next.read("a").await.unwrap();
        assert_eq!(after.entries, before);
        assert_eq!(after.revision, last);
    }

    #[tokio::test]
    async fn a_key_that_a_session_takes_over_is_gone_after_a_kill() {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path()).unwrap();
        let session = store.open_session(Duration::from_mins(1)).await.unwrap();
        store.commit(put("k", None)).await.unwrap();
        store.commit(put("k", Some(session))).await.unwrap();
        let (next, _copy) = after_a_kill(directory.path());
        assert!(keys(&next).await.is_empty());
    }

    #[tokio::test]
    async fn a_new_file_takes_its_name_with_the_first_commit_that_must_last() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("metadata.redb");
        let store = EmbeddedStore::open(directory.path()).unwrap();
        let session = store.open_session(Duration::from_mins(1)).await.unwrap();
        store.commit(put("s", Some(session))).await.unwrap();
        assert!(!name.exists());
        drop(store);
        // A start that was cut short before is no obstacle to the next.
        let store = EmbeddedStore::open(directory.path()).unwrap();
        store.commit(put("k", None)).await.unwrap();
        assert!(name.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_an_error_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("metadata.redb");
        fs::write(&name, b"not a database").unwrap();
        let error = EmbeddedStore::open(directory.path())
            .err()
            .expect("refused");
        assert!(matches!(&error, StoreError::Damaged(_)), "{error}");
        assert!(error.to_string().contains("metadata.redb"), "{error}");
        assert_eq!(fs::read(&name).unwrap(), b"not a database");
    }

    #[tokio::test]
    async fn a_watch_that_is_older_than_the_history_is_told_so() {
        let store = EmbeddedStore::in_memory();
        let start = store.read("").await.unwrap().revision;
        let mut old = store.watch("", start).await.unwrap();
        for _ in 0..=HISTORY_BATCHES {
            store.commit(put("k", None)).await.unwrap();
        }
        let next = futures_util::StreamExt::next(&mut old).await;
        assert_eq!(next, Some(Ok(WatchEvent::Compacted)));
        let oldest = store.shared.memory().compacted;
        let mut kept = store.watch("", oldest).await.unwrap();
        let next = futures_util::StreamExt::next(&mut kept).await;
        assert!(
            matches!(next, Some(Ok(WatchEvent::Batch(batch))) if batch.revision == oldest.next())
        );
    }

    /// A commit that fails half-way: `landed` says whether it got to the disk. A session
    /// ends before anybody can find out.
    async fn failed_commit(landed: bool) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path()).unwrap();
        let session = store.open_session(Duration::from_mins(1)).await.unwrap();
        store.commit(put("a", None)).await.unwrap();
        store.commit(put("s", Some(session))).await.unwrap();
        {
            let mut file = store.shared.file.lock().unwrap();
            let file = file.as_mut().unwrap();
            let operations = put("doubtful", None).operations;
            let batch = Arc::new(store.shared.memory().plan(&operations).unwrap());
            if landed {
                file.file.commit(&batch, &[&batch.changes[0]]).unwrap();
            }
            file.in_doubt = Some(batch);
        }
        store.close_session(session).await.unwrap();
        assert_eq!(keys(&store).await, ["a"], "nothing shows before it is sure");
        store.commit(put("b", None)).await.unwrap();
        let (next, _copy) = after_a_kill(directory.path());
        assert_eq!(keys(&next).await, keys(&store).await);
        keys(&store).await
    }

    #[tokio::test]
    async fn a_commit_that_failed_after_it_reached_the_disk_is_seen_once_the_disk_is_read() {
        assert_eq!(failed_commit(true).await, ["a", "b", "doubtful"]);
    }

    #[tokio::test]
    async fn a_commit_that_failed_before_it_reached_the_disk_is_forgotten() {
        assert_eq!(failed_commit(false).await, ["a", "b"]);
    }
}
