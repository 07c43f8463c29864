//! The metadata store: an ordered map of keys to values with one revision
//! counter, guarded transactions, watches and sessions, as etcd offers them.
//!
//! Everything above this trait is the same code on every store. What always
//! holds: a transaction applies whole or not at all, at one new revision;
//! revisions only rise; a watch delivers every revision that touches its
//! prefix exactly once and in order, or says that it can't ([`WatchEvent::Compacted`]);
//! a key bound to a session goes when the session does.
//!
//! Keys are relative here (`topics/orders`); a store that is shared with others
//! puts its own prefix in front.

mod database;
mod embedded;
mod etcd;

#[cfg(test)]
mod contract;

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};

pub use embedded::EmbeddedStore;
pub use etcd::{EtcdOptions, EtcdStore, EtcdTls};

/// The most operations, and the most guards, that one transaction may carry:
/// etcd's default `--max-txn-ops`.
pub const MAX_TRANSACTION_OPERATIONS: usize = 128;

/// The most bytes of keys and values in one transaction, safely below etcd's
/// default request limit of 1.5 MiB.
pub const MAX_TRANSACTION_BYTES: usize = 1 << 20;

/// A store of cluster metadata.
pub trait MetadataStore: Clone + Send + Sync + 'static {
    /// Reads every entry whose key starts with `prefix`, all at one revision.
    fn read(&self, prefix: &str) -> impl Future<Output = Result<Snapshot, StoreError>> + Send;

    /// Watches `prefix` for every revision later than `after`.
    fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> impl Future<Output = Result<Watch, StoreError>> + Send;

    /// Applies `transaction` if all of its guards hold.
    ///
    /// [`StoreError::Unknown`] means that it may have been applied: read back
    /// before acting.
    fn commit(
        &self,
        transaction: Transaction,
    ) -> impl Future<Output = Result<Commit, StoreError>> + Send;

    /// Opens a session that ends `ttl` after it was last kept.
    fn open_session(
        &self,
        ttl: Duration,
    ) -> impl Future<Output = Result<SessionId, StoreError>> + Send;

    /// Keeps the session for another TTL; [`StoreError::SessionLost`] when it has ended.
    fn keep_session(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Ends the session now and deletes the keys bound to it. Ending one that
    /// has already ended is no error.
    fn close_session(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// The batches of a watch. It never ends by itself: after `Compacted` or an
/// error the caller reads the prefix again and watches from there.
pub type Watch = Pin<Box<dyn Stream<Item = Result<WatchEvent, StoreError>> + Send>>;

/// A point in the store's history; each commit that changes something makes the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(i64);

impl Revision {
    /// Before everything.
    pub const ZERO: Self = Self(0);

    /// Wraps the store's own number.
    pub const fn new(value: i64) -> Self {
        Self(value)
    }

    /// The store's own number.
    pub const fn value(self) -> i64 {
        self.0
    }

    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A session (in etcd: a lease).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(i64);

impl SessionId {
    /// Wraps the store's own number.
    pub const fn new(value: i64) -> Self {
        Self(value)
    }

    /// The store's own number.
    pub const fn value(self) -> i64 {
        self.0
    }
}

/// In hexadecimal, as `etcdctl lease` prints it.
impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A key with its value and history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The value.
    pub value: Bytes,
    /// The revision at which the key came to be (again, after a delete).
    pub create_revision: Revision,
    /// The revision of the last put.
    pub mod_revision: Revision,
    /// The session the key dies with.
    pub session: Option<SessionId>,
}

/// What a read found.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The revision at which all of it was true.
    pub revision: Revision,
    /// The entries in the order of their keys.
    pub entries: Vec<Entry>,
}

/// All changes that one revision made to the watched prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The revision.
    pub revision: Revision,
    /// The changes; no key appears twice.
    pub changes: Vec<Change>,
}

/// A change to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was created or given a new value.
    Put(Entry),
    /// The key was deleted.
    Delete(Arc<str>),
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete(key) => key,
        }
    }
}

/// What a watch delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The next revision that touched the prefix.
    Batch(Arc<Batch>),
    /// The store no longer has all revisions that were asked for.
    Compacted,
}

/// A condition on one key, checked when the transaction is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last put at this revision.
    Modified(String, Revision),
    /// The key exists and was created at this revision.
    Created(String, Revision),
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Creates the key or replaces its value; the new session, or none,
    /// replaces the one it was bound to.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// The session the key shall die with.
        session: Option<SessionId>,
    },
    /// Deletes the key; one that does not exist is left so.
    Delete {
        /// The key.
        key: String,
    },
}

impl Operation {
    /// The key that the operation changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    /// What the operation counts towards [`MAX_TRANSACTION_BYTES`].
    pub fn size_in_bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

/// Operations that are applied together if all guards hold. No key may be
/// changed twice in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The conditions.
    pub guards: Vec<Guard>,
    /// The operations.
    pub operations: Vec<Operation>,
}

impl Transaction {
    /// Refuses what no store could take, before anything is sent.
    pub(crate) fn check_limits(&self) -> Result<(), StoreError> {
        let size: usize = self.operations.iter().map(Operation::size_in_bytes).sum();
        if self.operations.len() > MAX_TRANSACTION_OPERATIONS
            || self.guards.len() > MAX_TRANSACTION_OPERATIONS
            || size > MAX_TRANSACTION_BYTES
        {
            return Err(StoreError::TooLarge {
                operations: self.operations.len(),
                guards: self.guards.len(),
                bytes: size,
            });
        }
        Ok(())
    }
}

/// How a commit that was carried out ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// Applied, at this revision.
    Applied(Revision),
    /// Not applied: a guard did not hold.
    Refused,
}

/// Why the store could not do it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreError {
    /// The store can't be reached or can't write; nothing was changed.
    #[error("the metadata store is unavailable: {0}")]
    Unavailable(String),
    /// The store does not let this process in, or is not one that it can work with; nothing
    /// was changed, and trying again is no use until somebody mends it.
    #[error("the metadata store can't be used: {0}")]
    Denied(String),
    /// The commit may or may not have been applied.
    #[error("the outcome of a metadata commit is unknown: {0}")]
    Unknown(String),
    /// The session has ended, and with it the keys bound to it.
    #[error("the metadata session has ended")]
    SessionLost,
    /// The transaction is larger than a store accepts.
    #[error(
        "a metadata transaction of {operations} operations, {guards} guards and {bytes} bytes is \
         over the limit of {MAX_TRANSACTION_OPERATIONS}, {MAX_TRANSACTION_OPERATIONS} and \
         {MAX_TRANSACTION_BYTES}"
    )]
    TooLarge {
        /// Operations in the transaction.
        operations: usize,
        /// Guards in the transaction.
        guards: usize,
        /// Bytes of keys and values in the transaction.
        bytes: usize,
    },
    /// What is stored can't be read.
    #[error("the metadata store is damaged: {0}")]
    Damaged(String),
}
