//! Clusters of several brokers in this process that share one metadata store.

mod deletions;
mod elections;
mod failover;
mod in_sync;
mod racks;
mod replication;
mod scripted;
mod support;
mod transactions;
