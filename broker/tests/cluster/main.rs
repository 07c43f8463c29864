//! Clusters of several brokers in this process that share one metadata store.

mod failover;
mod replication;
mod support;
mod transactions;
