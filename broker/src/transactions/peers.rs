//! The connections of this broker's transactions to other brokers: one to each, opened
//! when it is first needed and again when it has failed.
//!
//! Each has a slot of its own, so that a broker that does not answer holds up nobody who
//! wants another; nor for long those who want it, since the controller soon takes it for
//! dead, and a connection that has just failed is not tried again by each of them.

use crate::{
    node::{self, Node},
    sync::lock,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;
use yuxi_client::{ClientConfig, Connection};
use yuxi_protocol::{ids::BrokerId, messages::RequestResponsePair};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an answer may take. A marker waits for its partition's followers.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How often whoever waits for an answer looks whether the broker still lives.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long nobody tries a broker again whose connection could not be opened.
const REST: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Peers {
    slots: Mutex<HashMap<BrokerId, Arc<Slot>>>,
}

type Slot = tokio::sync::Mutex<SlotState>;

#[derive(Default)]
struct SlotState {
    /// With its address.
    connection: Option<(String, Connection)>,
    rest_until: Option<Instant>,
}

/// Why a broker could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error("broker {0} is not registered")]
    NotRegistered(BrokerId),
    #[error("broker {0} could not be reached just now")]
    Resting(BrokerId),
    #[error("{0}")]
    Connection(#[from] yuxi_client::Error),
}

impl Peers {
    /// Asks a broker and waits for the answer. `build` is given the version that both
    /// speak, at most `newest`.
    pub(super) async fn ask<R>(
        &self,
        node: &Node,
        broker: BrokerId,
        newest: i16,
        build: impl FnOnce(i16) -> R,
    ) -> Result<R::Response, PeerError>
    where
        R: RequestResponsePair,
    {
        let connection = self.connection(node, broker).await?;
        let version = connection.version::<R>(newest)?;
        let request = build(version.value());
        let reply = connection.start(&request, version, REQUEST_TIMEOUT).await?;
        let mut answer = std::pin::pin!(reply.answer());
        loop {
            if let Ok(answer) = tokio::time::timeout(LOOK_INTERVAL, &mut answer).await {
                return Ok(answer?);
            }
            if node.controller.image().broker(broker).is_none() {
                return Err(PeerError::NotRegistered(broker));
            }
        }
    }

    async fn connection(&self, node: &Node, broker: BrokerId) -> Result<Connection, PeerError> {
        let address = node::endpoints(&node.controller.image())
            .into_iter()
            .find(|endpoint| endpoint.id == broker)
            .ok_or(PeerError::NotRegistered(broker))?
            .address();
        let slot = {
            let mut slots = lock(&self.slots);
            Arc::clone(slots.entry(broker).or_default())
        };
        let mut slot = slot.lock().await;
        if let Some((to, connection)) = &slot.connection
            && *to == address
            && connection.is_open()
        {
            return Ok(connection.clone());
        }
        let mut config = ClientConfig::default();
        config.client_id = format!("broker-{}-transactions", node.broker_id);
        config.connect_timeout = CONNECT_TIMEOUT;
        if slot.rest_until.is_some_and(|until| Instant::now() < until) {
            return Err(PeerError::Resting(broker));
        }
        match Connection::open(&address, &config).await {
            Ok(connection) => {
                slot.connection = Some((address, connection.clone()));
                Ok(connection)
            }
            Err(error) => {
                slot.rest_until = Some(Instant::now() + REST);
                Err(error.into())
            }
        }
    }
}
