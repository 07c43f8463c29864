//! The file under the embedded store: `metadata.redb`, one redb database that
//! one process has open. It belongs to [`super::EmbeddedStore`] and is called
//! under its writer lock only.
//!
//! One commit is one `fdatasync`. A new file is made under another name, without
//! a sync, and takes its name after the first commit (I16), so that the first
//! start pays two syncs rather than the five of formatting in place; a crash
//! before that leaves nothing that anyone was told of.
//!
//! ```text
//! table "entries":  key (text) -> create revision (8, LE) | mod revision (8, LE) | value
//! table "store":    "revision" -> the revision of the last commit
//! ```

use std::{
    fs::{self, File},
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use redb::{
    BackendError, Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _,
    StorageBackend, TableDefinition, TableError, backends::FileBackend,
};

use super::{Batch, Change, Entry, Revision, StoreError};

const FILE_NAME: &str = "metadata.redb";
const NEW_FILE_NAME: &str = "metadata.redb.new";
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
const STORE: TableDefinition<'_, &str, i64> = TableDefinition::new("store");
const REVISION: &str = "revision";
/// Everything is served from memory; redb needs its cache only while it commits.
const CACHE_BYTES: usize = 4 << 20;

/// The open file.
pub(super) struct MetadataFile {
    directory: PathBuf,
    database: Option<Database>,
    /// Set while the file still bears its first name.
    unnamed: Option<Arc<AtomicBool>>,
}

impl MetadataFile {
    /// Opens the file in `directory`, or begins a new one.
    pub(super) fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(FILE_NAME);
        let mut file = Self {
            directory: directory.to_owned(),
            database: None,
            unnamed: None,
        };
        if path.exists() {
            file.database = Some(open_existing(&path)?);
        } else {
            let path = directory.join(NEW_FILE_NAME);
            let syncing = Arc::new(AtomicBool::new(false));
            file.database = Some(begin_new(&path, Arc::clone(&syncing))?);
            file.unnamed = Some(syncing);
        }
        Ok(file)
    }

    /// Everything in the file, and the revision of its last commit.
    pub(super) fn load(&self) -> Result<(Revision, Vec<Entry>), StoreError> {
        let transaction = self.database()?.begin_read().map_err(damaged)?;
        let revision = match transaction.open_table(STORE) {
            Ok(table) => table
                .get(REVISION)
                .map_err(damaged)?
                .map_or(Revision::ZERO, |value| Revision::new(value.value())),
            Err(TableError::TableDoesNotExist(_)) => return Ok((Revision::ZERO, Vec::new())),
            Err(error) => return Err(damaged(error)),
        };
        let table = transaction.open_table(ENTRIES).map_err(damaged)?;
        let mut entries = Vec::new();
        for row in table.iter().map_err(damaged)? {
            let (key, stored) = row.map_err(damaged)?;
            entries.push(decode(key.value(), stored.value())?);
        }
        Ok((revision, entries))
    }

    /// Makes the durable changes of `batch` so, all or none. After an error the
    /// outcome is unknown until [`MetadataFile::reopen`].
    pub(super) fn commit(&mut self, batch: &Batch, durable: &[&Change]) -> Result<(), StoreError> {
        if let Some(syncing) = &self.unnamed {
            syncing.store(true, Ordering::Release);
        }
        self.write(batch.revision, durable)
            .map_err(|error| StoreError::Unknown(self.describe(&error)))?;
        if self.unnamed.is_some() {
            self.name()
                .map_err(|error| StoreError::Unknown(self.describe(&error)))?;
            self.unnamed = None;
        }
        Ok(())
    }

    /// Opens the file again after a failed commit and returns the revision it holds.
    pub(super) fn reopen(&mut self) -> Result<Revision, StoreError> {
        // redb refuses everything after an I/O error; only a fresh start reads
        // what is really on the disk. The old handle has to let go of its lock.
        self.database = None;
        *self = Self::open(&self.directory.clone())
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let (revision, _) = self.load()?;
        Ok(revision)
    }

    fn write(&self, revision: Revision, durable: &[&Change]) -> Result<(), redb::Error> {
        let database = self.database.as_ref().ok_or(redb::Error::DatabaseClosed)?;
        let transaction = database.begin_write()?;
        {
            let mut entries = transaction.open_table(ENTRIES)?;
            for change in durable {
                match change {
                    Change::Put(entry) if entry.session.is_none() => {
                        entries.insert(&*entry.key, encode(entry).as_slice())?;
                    }
                    // A key that a session now holds dies with the process.
                    Change::Put(Entry { key, .. }) | Change::Delete(key) => {
                        entries.remove(&**key)?;
                    }
                }
            }
            transaction
                .open_table(STORE)?
                .insert(REVISION, revision.value())?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn name(&self) -> io::Result<()> {
        fs::rename(
            self.directory.join(NEW_FILE_NAME),
            self.directory.join(FILE_NAME),
        )?;
        File::open(&self.directory)?.sync_all()
    }

    fn database(&self) -> Result<&Database, StoreError> {
        self.database
            .as_ref()
            .ok_or_else(|| StoreError::Unavailable(self.describe(&"it could not be reopened")))
    }

    fn describe(&self, error: &dyn std::fmt::Display) -> String {
        format!("{}: {error}", self.directory.join(FILE_NAME).display())
    }
}

fn open_existing(path: &Path) -> Result<Database, StoreError> {
    Builder::new()
        .set_cache_size(CACHE_BYTES)
        .open(path)
        .map_err(|error| {
            let reason = format!("{}: {error}", path.display());
            match error {
                DatabaseError::DatabaseAlreadyOpen => StoreError::Unavailable(reason),
                _ => StoreError::Damaged(reason),
            }
        })
}

fn begin_new(path: &Path, syncing: Arc<AtomicBool>) -> Result<Database, StoreError> {
    let unavailable = |error: &dyn std::fmt::Display| {
        StoreError::Unavailable(format!("{}: {error}", path.display()))
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unavailable(&error)),
        _ => {}
    }
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|error| unavailable(&error))?;
    let file = FileBackend::new(file).map_err(|error| unavailable(&error))?;
    Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(FirstFile { file, syncing })
        .map_err(|error| unavailable(&error))
}

fn encode(entry: &Entry) -> Vec<u8> {
    let mut stored = Vec::with_capacity(16 + entry.value.len());
    stored.extend_from_slice(&entry.create_revision.value().to_le_bytes());
    stored.extend_from_slice(&entry.mod_revision.value().to_le_bytes());
    stored.extend_from_slice(&entry.value);
    stored
}

fn decode(key: &str, stored: &[u8]) -> Result<Entry, StoreError> {
    let revision = |at: usize| {
        let bytes = stored.get(at..at + 8)?.try_into().ok()?;
        Some(Revision::new(i64::from_le_bytes(bytes)))
    };
    match (revision(0), revision(8)) {
        (Some(create_revision), Some(mod_revision)) => Ok(Entry {
            key: key.into(),
            value: Bytes::copy_from_slice(&stored[16..]),
            create_revision,
            mod_revision,
            session: None,
        }),
        _ => Err(StoreError::Damaged(format!(
            "the entry '{key}' in {FILE_NAME} is shorter than its revisions"
        ))),
    }
}

fn damaged(error: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged(format!("{FILE_NAME}: {error}"))
}

/// A file whose syncs are left out until something worth keeping is in it.
#[derive(Debug)]
struct FirstFile {
    file: FileBackend,
    syncing: Arc<AtomicBool>,
}

impl StorageBackend for FirstFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.syncing.load(Ordering::Acquire) {
            self.file.sync_data()
        } else {
            Ok(())
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
