//! The limits and periods of the group coordinator, as one plain value.
//!
//! The broker fills it from its settings table, which owns names, ranges and docs;
//! the defaults here are Kafka's and serve tests.

use std::ops::RangeInclusive;

use super::{cluster::GroupOverrides, consumer::Assignor};

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
    /// What concerns groups of the new kind.
    pub consumer: ConsumerGroupConfig,
}

/// What the operator can set about consumer groups (KIP-848).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroupConfig {
    /// `group.consumer.session.timeout.ms`: how long a member may be silent.
    pub session_timeout_ms: i32,
    /// `group.consumer.min.session.timeout.ms` to `group.consumer.max.session.timeout.ms`:
    /// what may be set for one group.
    pub session_timeouts_ms: RangeInclusive<i32>,
    /// `group.consumer.heartbeat.interval.ms`: how often members are to be heard from.
    pub heartbeat_interval_ms: i32,
    /// `group.consumer.min.heartbeat.interval.ms` to
    /// `group.consumer.max.heartbeat.interval.ms`: what may be set for one group.
    pub heartbeat_intervals_ms: RangeInclusive<i32>,
    /// `group.consumer.max.size`: the most members a group may have.
    pub max_size: usize,
    /// `group.consumer.assignors`: those that members can choose from; the first is taken
    /// where they don't.
    pub assignors: Vec<Assignor>,
    /// `group.consumer.migration.policy`.
    pub migration: MigrationPolicy,
}

/// Which groups may become ones of the other kind while they have members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationPolicy {
    /// None.
    Disabled,
    /// Classic groups may become consumer groups.
    Upgrade,
    /// Consumer groups may become classic ones.
    Downgrade,
    /// Both.
    Bidirectional,
}

impl MigrationPolicy {
    pub(super) const fn allows_upgrade(self) -> bool {
        matches!(self, Self::Upgrade | Self::Bidirectional)
    }

    pub(super) const fn allows_downgrade(self) -> bool {
        matches!(self, Self::Downgrade | Self::Bidirectional)
    }
}

impl ConsumerGroupConfig {
    /// The assignor of this name, if members may choose it.
    pub(super) fn assignor(&self, name: &str) -> Option<Assignor> {
        Assignor::from_name(name).filter(|assignor| self.assignors.contains(assignor))
    }

    pub(super) fn default_assignor(&self) -> Assignor {
        self.assignors.first().copied().unwrap_or(Assignor::Uniform)
    }

    /// What is set for a group counts as far as it is within what may be set.
    pub(super) fn session_timeout_ms(&self, overrides: &GroupOverrides) -> i32 {
        within(overrides.session_timeout_ms, &self.session_timeouts_ms)
            .unwrap_or(self.session_timeout_ms)
    }

    pub(super) fn heartbeat_interval_ms(&self, overrides: &GroupOverrides) -> i32 {
        within(
            overrides.heartbeat_interval_ms,
            &self.heartbeat_intervals_ms,
        )
        .unwrap_or(self.heartbeat_interval_ms)
    }
}

fn within(value: Option<i32>, range: &RangeInclusive<i32>) -> Option<i32> {
    let (low, high) = (*range.start(), *range.end());
    value.map(|value| value.max(low).min(high))
}

impl Default for ConsumerGroupConfig {
    fn default() -> Self {
        Self {
            session_timeout_ms: 45_000,
            session_timeouts_ms: 45_000..=60_000,
            heartbeat_interval_ms: 5_000,
            heartbeat_intervals_ms: 5_000..=15_000,
            max_size: i32::MAX as usize,
            assignors: Assignor::ALL.to_vec(),
            migration: MigrationPolicy::Bidirectional,
        }
    }
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
            consumer: ConsumerGroupConfig::default(),
        }
    }
}
