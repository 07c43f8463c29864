//! The settings of the daemons, of topics and of groups, each declared once.
//!
//! `broker.rs`, `topic.rs` and `group.rs` hold the tables. From their rows come the typed
//! values ([`ServerSettings`], [`TopicSettings`]), the checks of files, overrides
//! and dynamic changes, what DescribeConfigs answers ([`describe`]),
//! `etc/broker.properties` and `docs/SETTINGS.md`. Nothing stands in a table that
//! has no effect; Kafka's other settings are refused by name (`names.rs`).
//!
//! Everything here is a pure function of texts; whoever holds the cluster image
//! makes new values when its configs change.

pub mod broker;
pub mod describe;
mod error;
pub mod group;
mod names;
mod properties;
#[cfg(test)]
mod reference;
mod row;
#[cfg(test)]
mod tests;
pub mod topic;
mod value;

pub use broker::ServerSettings;
pub use error::{Problem, SettingsError};
pub use properties::parse_override;
pub use row::{Kind, Range, Setting, Update};
pub use topic::TopicSettings;
pub use value::{
    CleanupPolicy, CompressionType, ConsumerAssignor, ConsumerAssignors, Directory, EtcdEndpoints,
    File, GroupMigrationPolicy, HostPort, Listener, LogFormat, LogLevel, Password, ReplicaSelector,
    SettingValue, TimestampType,
};
