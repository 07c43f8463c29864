//! The etcd store: the keys under one prefix of an etcd 3.4 or later.
//!
//! Owned by nobody: clones share one connection ([`connection`]), which talks to one
//! member at a time and moves on to the next when that one fails or falls silent.
//! Invariants: every call ends within a bounded time; a commit is sent at most once
//! unless it is sure that the first had no effect; a watch neither loses nor repeats a
//! revision, across members and restarts of etcd.

mod connection;
mod errors;
mod sessions;
mod transactions;
mod watch;

#[cfg(test)]
pub(super) mod tests;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use crate::settings::ServerSettings;

use self::connection::Connection;
use super::{Commit, MetadataStore, Revision, SessionId, Snapshot, StoreError, Transaction, Watch};

/// How to reach an etcd, and which of its keys are ours.
#[derive(Clone)]
pub struct EtcdOptions {
    /// `etcd.endpoints`: `http://HOST:PORT` or `https://HOST:PORT` of members of one etcd.
    pub endpoints: Vec<String>,
    /// `etcd.prefix`: what all keys begin with. It is made to end in one slash.
    pub prefix: String,
    /// `etcd.user` and `etcd.password`.
    pub user: Option<(String, String)>,
    /// `etcd.tls.*`, which https endpoints need.
    pub tls: Option<EtcdTls>,
    /// `etcd.request.timeout.ms`: how long one member may take to answer.
    pub request_timeout: Duration,
}

/// What an encrypted connection to etcd is made with. The files are PEM.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// `etcd.tls.ca`: whose certificates etcd's members are trusted with.
    pub ca: PathBuf,
    /// `etcd.tls.certificate` and `etcd.tls.key`: what this client shows.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl EtcdOptions {
    /// What the settings say; `None` where `etcd.endpoints` is not set.
    pub fn from_settings(settings: &ServerSettings) -> Option<Self> {
        let endpoints = settings.etcd_endpoints.as_ref()?;
        let password = settings.etcd_password.as_ref();
        Some(Self {
            endpoints: endpoints.0.clone(),
            prefix: settings.etcd_prefix.clone(),
            user: settings.etcd_user.clone().map(|user| {
                let password = password.map(|password| password.reveal().to_owned());
                (user, password.unwrap_or_default())
            }),
            tls: settings.etcd_tls_ca.as_ref().map(|ca| EtcdTls {
                ca: ca.0.clone(),
                identity: settings
                    .etcd_tls_certificate
                    .as_ref()
                    .zip(settings.etcd_tls_key.as_ref())
                    .map(|(certificate, key)| (certificate.0.clone(), key.0.clone())),
            }),
            request_timeout: Duration::from_millis(
                u64::try_from(settings.etcd_request_timeout_ms).unwrap_or(0),
            ),
        })
    }
}

/// Without the password.
impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("user", &self.user.as_ref().map(|(user, _)| user))
            .field("tls", &self.tls)
            .field("request_timeout", &self.request_timeout)
            .finish()
    }
}

/// A metadata store in etcd; see the module.
#[derive(Clone)]
pub struct EtcdStore {
    connection: Arc<Connection>,
    prefix: Arc<str>,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Connects to the first member that answers, and makes sure that it is an etcd that
    /// this store can work with and lets it in.
    ///
    /// # Errors
    /// [`StoreError::Denied`] when trying again won't help, [`StoreError::Unavailable`] when
    /// it may.
    pub async fn connect(mut options: EtcdOptions) -> Result<Self, StoreError> {
        options.prefix = normalised(&options.prefix);
        let store = Self {
            prefix: options.prefix.as_str().into(),
            connection: Arc::new(Connection::new(options)?),
        };
        // The permission to read is checked as well.
        transactions::read_first(&store.connection, &store.prefix).await?;
        Ok(store)
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

impl MetadataStore for EtcdStore {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        transactions::read(&self.connection, &self.prefix, &self.key(prefix)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        watch::open(&self.connection, &self.prefix, &self.key(prefix), after).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError> {
        transaction.check_limits()?;
        transactions::commit(&self.connection, &self.prefix, &transaction).await
    }

    async fn open_session(&self, ttl: Duration) -> Result<SessionId, StoreError> {
        sessions::open(&self.connection, ttl).await
    }

    async fn keep_session(&self, session: SessionId) -> Result<(), StoreError> {
        sessions::keep(&self.connection, session).await
    }

    async fn close_session(&self, session: SessionId) -> Result<(), StoreError> {
        sessions::close(&self.connection, session).await
    }
}

/// `prefix` with exactly one slash at its end.
fn normalised(prefix: &str) -> String {
    format!("{}/", prefix.trim_end_matches('/'))
}
