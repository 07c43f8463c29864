//! Sessions are leases.
//!
//! A lease is counted in whole seconds and has a floor (with etcd's default timing 2
//! seconds, which etcd raises a shorter one to), so a session may live longer than
//! was asked for, never shorter. Whether it is still alive is etcd's to say; the clock of
//! this process only says when it may no longer be relied on.

use std::time::Duration;

use super::{
    connection::{Connection, Repeat},
    errors::Failure,
};
use crate::store::{SessionId, StoreError};

/// Grants a lease. One that was granted without this process hearing of it expires.
pub(super) async fn open(connection: &Connection, ttl: Duration) -> Result<SessionId, StoreError> {
    let seconds = i64::try_from(ttl.as_millis().div_ceil(1000).max(1)).unwrap_or(i64::MAX);
    let granted = connection
        .call(Repeat::Freely, |member| async move {
            member.client.lease_client().grant(seconds, None).await
        })
        .await
        .map_err(Failure::of_query)?;
    Ok(SessionId(granted.id()))
}

/// Keeps a lease for another TTL. Each time has its own stream, so that a stream that has
/// fallen silent can't take the session with it.
pub(super) async fn keep(connection: &Connection, session: SessionId) -> Result<(), StoreError> {
    connection
        .call(Repeat::Freely, |member| async move {
            let mut leases = member.client.lease_client();
            // The first answer is awaited inside; one with TTL 0 is an error.
            leases.keep_alive(session.value()).await.map(|_| ())
        })
        .await
        .map_err(Failure::of_query)
}

/// Revokes a lease, and with it the keys bound to it.
pub(super) async fn close(connection: &Connection, session: SessionId) -> Result<(), StoreError> {
    let revoked = connection
        .call(Repeat::Freely, |member| async move {
            member.client.lease_client().revoke(session.value()).await
        })
        .await;
    match revoked.map_err(Failure::of_query) {
        Ok(_) | Err(StoreError::SessionLost) => Ok(()),
        Err(error) => Err(error),
    }
}
