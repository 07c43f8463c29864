//! A group's coordinator: found when it is needed, and found anew when it has moved.

use std::time::{Duration, Instant};

use yuxi_protocol::error_code::ErrorCode;

use super::Cluster;
use crate::backoff::Backoff;
use crate::connection::Connection;
use crate::error::{Error, Result};

/// The way to one group's coordinator. Its owner is whoever speaks for the group.
#[derive(Debug)]
pub(crate) struct Coordinator {
    cluster: Cluster,
    group: String,
    connection: Option<Connection>,
}

impl Coordinator {
    pub(crate) fn of(cluster: &Cluster, group: &str) -> Self {
        Self {
            cluster: cluster.clone(),
            group: group.to_owned(),
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
                let found = self.cluster.group_coordinator(&self.group).await?;
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
                    tracing::debug!(group = self.group, %error, "the coordinator is asked again");
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
