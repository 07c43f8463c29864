//! The control plane: the metadata store, the image of the cluster in it, the
//! decisions on topics, leaders and in-sync replicas, and the one process at a time
//! that may write them.
//!
//! [`Controller`] is the way in. Under it, from the bottom: [`store`] keeps keys,
//! [`keys`] says which, [`image`] is all of them as one value, [`decide`] turns an image and
//! an event into changes, and the service's loop commits them for as long as it holds
//! the seal. [`settings`] stands by itself.

pub mod admin;
mod command;
mod complaints;
mod controller;
pub mod daemon;
pub mod decide;
mod election;
mod error;
#[cfg(test)]
mod failover_tests;
pub mod image;
pub mod keys;
mod liveness;
mod metrics;
#[cfg(test)]
mod processes;
mod rebalance;
mod registration;
mod remote;
mod rpc;
mod service;
pub mod settings;
pub mod store;
mod sync;
mod transactions;
mod waiting;

pub use controller::{Campaign, Controller, ControllerOptions};
pub use error::ControllerError;
pub use keys::{Address, BrokerValue as Registration, Endpoint};
pub use waiting::Waiting;
