//! The group coordinator as its runtime sees it.

mod admin;
mod failed_writes;
mod hostile;
mod joining;
mod membership;
mod offsets;
mod properties;
mod rebalances;
mod records;
mod routing;
mod static_members;
mod support;
mod versions;
