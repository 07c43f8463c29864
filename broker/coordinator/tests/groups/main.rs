//! The group coordinator as its runtime sees it.

mod admin;
mod clocks;
mod consumer_properties;
mod consumer_services;
mod consumer_support;
mod consumers;
mod failed_writes;
mod hostile;
mod joining;
mod membership;
mod migration;
mod migration_properties;
mod offsets;
mod properties;
mod rebalances;
mod records;
mod routing;
mod static_members;
mod support;
mod transactions;
mod versions;
