//! A Kafka client: connection, producer, consumer and administration. The
//! command line `yuxi` is built on it.
//!
//! Everything starts from a [`ClientConfig`]; its settings go by librdkafka's
//! names. A [`Cluster`] holds the connections and may be shared by any number
//! of producers, consumers and admin clients.

// "Append to the last topic, or begin one" reads better as two arms.
#![allow(clippy::single_match_else)]

pub mod admin;
mod backoff;
pub mod cluster;
pub mod config;
pub mod connection;
pub mod consumer;
pub mod error;
pub mod metadata;
pub mod offsets;
pub mod producer;
mod sync;

pub use admin::Admin;
pub use cluster::Cluster;
pub use config::ClientConfig;
pub use connection::Connection;
pub use consumer::{Consumer, ConsumerRecord, Start};
pub use error::{Error, Result};
pub use offsets::OffsetSpec;
pub use producer::{
    Delivery, Producer, Record, RecordMetadata, RecordRef, Transaction, TransactionError,
    TransactionalProducer,
};
pub use yuxi_protocol as protocol;
