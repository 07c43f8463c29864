//! What is true of the broker at the moment of a scrape. `gathered.rs` looks it up; here is
//! only what it means.

use super::TransactionsState;
use std::sync::Arc;
use yuxi_controller::admin::Readiness;

/// What is true of the broker at the moment of a scrape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gathered {
    /// How far the broker is.
    pub(crate) readiness: Readiness,
    /// Every partition that has a replica here.
    pub(crate) partitions: Vec<PartitionState>,
    /// Consumer groups that this broker coordinates.
    pub(crate) groups: usize,
    /// Transactions that this broker coordinates.
    pub(crate) transactions: TransactionsState,
    /// Incremental fetch sessions that are remembered.
    pub(crate) fetch_sessions: usize,
    /// Compaction.
    pub(crate) cleaner: CleanerState,
}

/// How compaction gets on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CleanerState {
    /// How full the memory for keys was in the last compaction, in percent.
    pub(crate) buffer_percent: i64,
    /// How much of what the last compaction read it wrote again, in percent.
    pub(crate) recopy_percent: i64,
    /// How long the last compaction took.
    pub(crate) clean_seconds: i64,
    /// How long the oldest record is past `max.compaction.lag.ms` that is not compacted.
    pub(crate) delay_seconds: i64,
    /// How much of the dirtiest log is dirty, in percent.
    pub(crate) max_dirty_percent: i64,
    /// Since when no log was looked for that should be compacted.
    pub(crate) ms_since_last_run: i64,
    /// Logs that can't be compacted.
    pub(crate) uncleanable: usize,
    /// Their dirty bytes.
    pub(crate) uncleanable_bytes: u64,
}

/// One replica on this broker.
#[derive(Clone, Debug)]
pub(crate) struct PartitionState {
    /// The topic's name.
    pub(crate) topic: Arc<str>,
    /// The partition's number within the topic.
    pub(crate) partition: i32,
    /// Whether this broker leads it.
    pub(crate) is_leader: bool,
    /// Whether its log can't be read or written.
    pub(crate) is_offline: bool,
    /// How many replicas it has.
    pub(crate) replicas: usize,
    /// How many of them are in sync, if this broker leads it.
    pub(crate) in_sync: usize,
    /// How many must be in sync for acks=all.
    pub(crate) min_in_sync: usize,
    /// How many committed records a follower lacks.
    pub(crate) lag: i64,
    /// How many committed records an open transaction hides from readers of committed ones.
    pub(crate) last_stable_lag: i64,
    /// How many idempotent producers are remembered.
    pub(crate) producers: usize,
    /// Whether a transaction is open for longer than its coordinator lets it.
    pub(crate) has_late_transaction: bool,
    /// The first offset.
    pub(crate) log_start_offset: i64,
    /// The offset that the next record gets.
    pub(crate) log_end_offset: i64,
    /// The size of its segments.
    pub(crate) size_bytes: u64,
    /// How many segments it has.
    pub(crate) segments: usize,
}

impl Gathered {
    pub(super) fn count(&self, which: fn(&PartitionState) -> bool) -> i64 {
        self.partitions.iter().filter(|p| which(p)).count() as i64
    }
}

impl PartitionState {
    /// Whether this broker leads it and some replica is not in sync.
    pub(super) fn is_under_replicated(&self) -> bool {
        self.is_leader && self.in_sync < self.replicas
    }

    /// Whether this broker leads it and fewer are in sync than acks=all asks for.
    pub(super) fn is_under_min_isr(&self) -> bool {
        self.is_leader && self.in_sync < self.min_in_sync
    }

    /// Whether this broker leads it and the loss of one replica would put it under that.
    pub(super) fn is_at_min_isr(&self) -> bool {
        self.is_leader && self.in_sync == self.min_in_sync
    }

    /// `count` where this broker leads, which alone knows.
    pub(super) fn as_leader(&self, count: usize) -> i64 {
        if self.is_leader { count as i64 } else { 0 }
    }
}
