//! The group coordinator as its runtime sees it.

mod admin;
mod failed_writes;
mod hostile;
mod membership;
mod offsets;
mod properties;
mod records;
mod routing;
mod static_members;
mod support;
mod versions;
