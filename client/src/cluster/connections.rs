//! The connections of one [`super::Cluster`]: one for each address and purpose.
//!
//! Each has a slot of its own with a lock of its own, so that whoever needs a
//! connection first opens it, the others wait for the same attempt, and no address
//! waits for another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::backoff::Backoff;
use crate::config::ClientConfig;
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::sync::lock;

#[derive(Debug)]
pub(super) struct Connections {
    config: Arc<ClientConfig>,
    slots: Mutex<HashMap<(String, Purpose), Arc<Slot>>>,
    /// Servers that others are being asked after, and by how many.
    suspects: Mutex<HashMap<String, usize>>,
}

/// A server that has not answered a question for so long has the next one asked beside it.
const HEDGE_AFTER: Duration = Duration::from_millis(500);

/// Requests of different kinds have connections of their own, because a broker may
/// answer those of one connection strictly in turn: a heartbeat must not wait
/// behind a fetch, nor a fetch behind a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Purpose {
    Data,
    Group,
    Transaction,
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
            suspects: Mutex::default(),
        }
    }

    /// While this is held, questions that any server can answer go to others first.
    pub(super) fn suspect(&self, address: &str) -> Suspected<'_> {
        *lock(&self.suspects).entry(address.to_owned()).or_default() += 1;
        Suspected {
            suspects: &self.suspects,
            address: address.to_owned(),
        }
    }

    /// Asks one server after another until one answers, the most promising first. The next
    /// is asked when the one before has failed, and beside it when it is silent, so that
    /// a dead server costs half a second and not a time-out.
    pub(super) async fn first_of<T, F>(
        &self,
        addresses: Vec<String>,
        attempt: impl Fn(String) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut left = self.by_promise(addresses).into_iter();
        let mut running = FuturesUnordered::new();
        let mut last = Error::Closed;
        loop {
            match left.next() {
                Some(address) => running.push(attempt(address)),
                None if running.is_empty() => return Err(last),
                None => {}
            }
            tokio::select! {
                Some(result) = running.next() => match result {
                    Ok(answer) => return Ok(answer),
                    Err(error) => last = error,
                },
                () = tokio::time::sleep(HEDGE_AFTER), if left.len() > 0 => {}
            }
        }
    }

    /// Those with an open connection first, those that failed lately or are silent last.
    fn by_promise(&self, mut addresses: Vec<String>) -> Vec<String> {
        let suspects = lock(&self.suspects);
        let slots = lock(&self.slots);
        addresses.sort_by_key(|address| {
            if suspects.contains_key(address) {
                return 3;
            }
            let slot = slots.get(&(address.clone(), Purpose::Data));
            // A slot that is locked is being connected.
            let state = slot.map(|slot| slot.state.try_lock());
            match state {
                Some(Ok(state)) if state.connection.as_ref().is_some_and(Connection::is_open) => 0,
                Some(Ok(state)) if state.not_before.is_some() => 2,
                Some(_) | None => 1,
            }
        });
        addresses
    }

    /// The connection of this kind to `address`, opened if there is none.
    pub(super) async fn open(&self, address: &str, purpose: Purpose) -> Result<Connection> {
        let config = &self.config;
        let slot = {
            let mut connections = lock(&self.slots);
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

/// See [`Connections::suspect`].
pub(super) struct Suspected<'a> {
    suspects: &'a Mutex<HashMap<String, usize>>,
    address: String,
}

impl Drop for Suspected<'_> {
    fn drop(&mut self) {
        let mut suspects = lock(self.suspects);
        if let Some(count) = suspects.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                suspects.remove(&self.address);
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
