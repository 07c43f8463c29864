//! A group's or a transaction's coordinator: found when it is needed, and found anew when
//! it has moved.

use std::time::{Duration, Instant};

use yuxi_protocol::error_code::ErrorCode;

use super::Cluster;
use super::connections::Purpose;
use crate::backoff::Backoff;
use crate::connection::Connection;
use crate::error::{Error, Result};

/// What is coordinated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Group,
    Transaction,
}

impl Kind {
    /// As FindCoordinator has it.
    pub(super) const fn wire(self) -> i8 {
        match self {
            Self::Group => 0,
            Self::Transaction => 1,
        }
    }
}

/// The way to one coordinator. Its owner is whoever speaks for the group or the
/// transactional id.
#[derive(Debug)]
pub(crate) struct Coordinator {
    cluster: Cluster,
    kind: Kind,
    key: String,
    purpose: Purpose,
    connection: Option<Connection>,
}

impl Coordinator {
    /// Of a group, for its members and its administration.
    pub(crate) fn of(cluster: &Cluster, group: &str) -> Self {
        Self::new(cluster, Kind::Group, group, Purpose::Group)
    }

    /// Of a transactional id.
    pub(crate) fn of_transactions(cluster: &Cluster, transactional_id: &str) -> Self {
        let purpose = Purpose::Transaction;
        Self::new(cluster, Kind::Transaction, transactional_id, purpose)
    }

    /// Of a group whose offsets are part of a transaction: its commit must not wait behind
    /// a member's JoinGroup.
    pub(crate) fn of_transactional_group(cluster: &Cluster, group: &str) -> Self {
        Self::new(cluster, Kind::Group, group, Purpose::Transaction)
    }

    fn new(cluster: &Cluster, kind: Kind, key: &str, purpose: Purpose) -> Self {
        Self {
            cluster: cluster.clone(),
            kind,
            key: key.to_owned(),
            purpose,
            connection: None,
        }
    }

    /// Makes one attempt at a request. After an error that tells of another coordinator,
    /// or of none, the next attempt looks for it anew.
    pub(crate) async fn call<T, F>(&mut self, request: impl FnOnce(Connection) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let connection = match &self.connection {
            Some(connection) if connection.is_open() => connection.clone(),
            Some(_) | None => {
                let found = self
                    .cluster
                    .coordinator(self.kind, &self.key, self.purpose)
                    .await?;
                self.connection.insert(found).clone()
            }
        };
        let done = request(connection.clone());
        let done = self.cluster.attend(&connection, Duration::ZERO, done).await;
        if done.as_ref().is_err_and(tells_of_another) {
            self.connection = None;
        }
        done
    }

    /// Makes attempts at a request that may be repeated, until one succeeds, one fails for
    /// good, or `request.timeout.ms` is over.
    pub(crate) async fn insist<T, F>(&mut self, request: impl Fn(Connection) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let config = self.cluster.config().clone();
        let deadline = Instant::now() + config.request_timeout;
        let mut backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
        loop {
            match self.call(&request).await {
                Err(error) if error.is_retriable() => {
                    tracing::debug!(of = self.key, %error, "the coordinator is asked again");
                    let pause = backoff.next();
                    if Instant::now() + pause >= deadline {
                        return Err(error);
                    }
                    tokio::time::sleep(pause).await;
                }
                done => return done,
            }
        }
    }
}

fn tells_of_another(error: &Error) -> bool {
    match error.code() {
        Some(code) => matches!(
            code,
            ErrorCode::NotCoordinator | ErrorCode::CoordinatorNotAvailable
        ),
        None => true,
    }
}
