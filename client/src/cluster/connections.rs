//! The connections of one [`super::Cluster`]: one for each address and purpose.
//!
//! Each has a slot of its own with a lock of its own, so that whoever needs a
//! connection first opens it, the others wait for the same attempt, and no address
//! waits for another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::backoff::Backoff;
use crate::config::ClientConfig;
use crate::connection::Connection;
use crate::error::Result;

#[derive(Debug)]
pub(super) struct Connections {
    config: Arc<ClientConfig>,
    slots: Mutex<HashMap<(String, Purpose), Arc<Slot>>>,
}

/// Requests of different kinds have connections of their own, because a broker may
/// answer those of one connection strictly in turn: a heartbeat must not wait
/// behind a fetch, nor a fetch behind a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Purpose {
    Data,
    Group,
}

/// The place of one address's connection.
#[derive(Debug)]
struct Slot {
    state: tokio::sync::Mutex<SlotState>,
}

#[derive(Debug)]
struct SlotState {
    connection: Option<Connection>,
    backoff: Backoff,
    not_before: Option<tokio::time::Instant>,
}

impl Connections {
    pub(super) fn new(config: Arc<ClientConfig>) -> Self {
        Self {
            config,
            slots: Mutex::default(),
        }
    }

    /// The connection of this kind to `address`, opened if there is none.
    pub(super) async fn open(&self, address: &str, purpose: Purpose) -> Result<Connection> {
        let config = &self.config;
        let slot = {
            let mut connections = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (address.to_owned(), purpose);
            connections
                .entry(key)
                .or_insert_with(|| Slot::new(config))
                .clone()
        };
        let mut state = slot.state.lock().await;
        if let Some(connection) = state.connection.as_ref().filter(|c| c.is_open()) {
            return Ok(connection.clone());
        }
        if let Some(not_before) = state.not_before {
            tokio::time::sleep_until(not_before).await;
        }
        match Connection::open(address, config).await {
            Ok(connection) => {
                state.backoff.reset();
                state.not_before = None;
                state.connection = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                let pause = state.backoff.next();
                state.connection = None;
                state.not_before = Some(tokio::time::Instant::now() + pause);
                Err(error)
            }
        }
    }
}

impl Slot {
    fn new(config: &ClientConfig) -> Arc<Self> {
        Arc::new(Self {
            state: tokio::sync::Mutex::new(SlotState {
                connection: None,
                backoff: Backoff::new(config.reconnect_backoff, config.reconnect_backoff_max),
                not_before: None,
            }),
        })
    }
}
