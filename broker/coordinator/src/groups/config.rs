//! The limits and periods of the group coordinator, as one plain value.
//!
//! The broker fills it from its settings table, which owns names, ranges and docs;
//! the defaults here are Kafka's and serve tests.

/// What the operator can set about groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// `group.min.session.timeout.ms`: joins that ask for less are refused.
    pub min_session_timeout_ms: i32,
    /// `group.max.session.timeout.ms`: joins that ask for more are refused.
    pub max_session_timeout_ms: i32,
    /// `group.initial.rebalance.delay.ms`: how long the first rebalance of an empty
    /// group waits for more members.
    pub initial_rebalance_delay_ms: i32,
    /// `group.max.size`: the most members a group may have.
    pub max_size: usize,
    /// `offset.metadata.max.bytes`: the longest text that may accompany an offset, in
    /// UTF-16 code units, as Kafka counts it.
    pub offset_metadata_max_bytes: usize,
    /// `offsets.retention.minutes`, in milliseconds (KIP-211).
    pub offsets_retention_ms: i64,
    /// `offsets.retention.check.interval.ms`: how often expired offsets are looked for.
    pub offsets_retention_check_interval_ms: i64,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            min_session_timeout_ms: 6_000,
            max_session_timeout_ms: 1_800_000,
            initial_rebalance_delay_ms: 3_000,
            max_size: i32::MAX as usize,
            offset_metadata_max_bytes: 4_096,
            offsets_retention_ms: 7 * 24 * 60 * 60 * 1_000,
            offsets_retention_check_interval_ms: 600_000,
        }
    }
}
