//! The connections of this broker's transactions to other brokers: one to each, opened
//! when it is first needed and again when it has failed.
//!
//! Each has a slot of its own, so that a broker that does not answer holds up nobody who
//! wants another.

use crate::node::{self, Node};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use yuxi_client::{ClientConfig, Connection};
use yuxi_protocol::{ids::BrokerId, messages::RequestResponsePair};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an answer may take. A marker waits for its partition's followers.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Peers {
    slots: Mutex<HashMap<BrokerId, Arc<Slot>>>,
}

type Slot = tokio::sync::Mutex<Option<(String, Connection)>>;

/// Why a broker could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error("broker {0} is not registered")]
    NotRegistered(BrokerId),
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
        Ok(reply.answer().await?)
    }

    async fn connection(&self, node: &Node, broker: BrokerId) -> Result<Connection, PeerError> {
        let address = node::endpoints(&node.controller.image())
            .into_iter()
            .find(|endpoint| endpoint.id == broker)
            .ok_or(PeerError::NotRegistered(broker))?
            .address();
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(broker).or_default())
        };
        let mut slot = slot.lock().await;
        if let Some((to, connection)) = &*slot
            && *to == address
            && connection.is_open()
        {
            return Ok(connection.clone());
        }
        let mut config = ClientConfig::default();
        config.client_id = format!("broker-{}-transactions", node.broker_id);
        config.connect_timeout = CONNECT_TIMEOUT;
        let connection = Connection::open(&address, &config).await?;
        *slot = Some((address, connection.clone()));
        Ok(connection)
    }
}
