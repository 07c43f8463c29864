//! The settings of one log, as the topic resolves them. They may change at any time by
//! [`Log::set_config`](crate::Log::set_config); each takes effect at the next operation
//! that looks at it.

/// What is done with old segments, `cleanup.policy`. The table of settings has an enum of
/// its own, because neither crate may depend on the other; the broker translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanupPolicy {
    /// Old segments are deleted by time and size.
    Delete,
    /// Only the last record of each key is kept.
    Compact,
    /// Both.
    CompactAndDelete,
}

impl CleanupPolicy {
    /// Whether segments are deleted by time and size.
    pub fn deletes(self) -> bool {
        match self {
            Self::Delete | Self::CompactAndDelete => true,
            Self::Compact => false,
        }
    }

    /// Whether superseded records are removed.
    pub fn compacts(self) -> bool {
        match self {
            Self::Compact | Self::CompactAndDelete => true,
            Self::Delete => false,
        }
    }
}

/// The settings of one log, under Kafka's names.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// `segment.bytes`: a segment is rolled before it grows past this. At most
    /// `i32::MAX`, because index entries hold positions in 31 bits.
    pub segment_bytes: u64,
    /// `segment.ms`: a segment is rolled when its first record is older than this.
    pub segment_ms: i64,
    /// `segment.jitter.ms`: up to this much is taken off `segment_ms`, another for each
    /// segment, so that many logs don't roll at once.
    pub segment_jitter_ms: i64,
    /// `index.interval.bytes`: the distance between two entries of the indexes.
    pub index_interval_bytes: u32,
    /// `segment.index.bytes`: a segment is rolled when an index would grow past this.
    pub segment_index_bytes: u32,
    /// `retention.ms`: older segments are deleted; -1 keeps them.
    pub retention_ms: i64,
    /// `retention.bytes`: the oldest segments are deleted beyond this; -1 keeps them.
    pub retention_bytes: i64,
    /// `cleanup.policy`.
    pub cleanup_policy: CleanupPolicy,
    /// `min.cleanable.dirty.ratio`: a log is compacted once this part of it, from 0 to 1, has
    /// not been.
    pub min_cleanable_dirty_ratio: f64,
    /// `min.compaction.lag.ms`: younger records are not compacted.
    pub min_compaction_lag_ms: i64,
    /// `max.compaction.lag.ms`: older records are compacted whatever the ratio is.
    pub max_compaction_lag_ms: i64,
    /// `delete.retention.ms`: tombstones and transaction markers stay so long after the
    /// compaction that found that nobody needs them.
    pub delete_retention_ms: i64,
    /// `flush.messages`: an fsync is due after this many records.
    pub flush_messages: u64,
    /// `flush.ms`: an fsync is due this long after the first record that awaits it.
    pub flush_ms: i64,
    /// `file.delete.delay.ms`: removed files stay this long under another name.
    pub file_delete_delay_ms: i64,
    /// `preallocate`: blocks of a new segment are reserved at once.
    pub preallocate: bool,
    /// `producer.id.expiration.ms`: a producer without a transaction that has been
    /// silent this long is forgotten.
    pub producer_id_expiration_ms: i64,
}

impl LogConfig {
    /// When a segment is rolled: early enough for its records to be compacted in time.
    pub(crate) fn roll_ms(&self) -> i64 {
        if self.cleanup_policy.compacts() && self.max_compaction_lag_ms > 0 {
            self.segment_ms.min(self.max_compaction_lag_ms)
        } else {
            self.segment_ms
        }
    }

    /// What a segment may hold, for positions that fit into an index entry.
    pub(crate) fn max_segment_bytes(&self) -> u64 {
        self.segment_bytes.min(i32::MAX as u64)
    }
}

/// Kafka's own defaults.
impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 3_600_000,
            segment_jitter_ms: 0,
            index_interval_bytes: 4096,
            segment_index_bytes: 10 << 20,
            retention_ms: 7 * 24 * 3_600_000,
            retention_bytes: -1,
            cleanup_policy: CleanupPolicy::Delete,
            min_cleanable_dirty_ratio: 0.5,
            min_compaction_lag_ms: 0,
            max_compaction_lag_ms: i64::MAX,
            delete_retention_ms: 24 * 3_600_000,
            flush_messages: u64::MAX,
            flush_ms: i64::MAX,
            file_delete_delay_ms: 60_000,
            preallocate: false,
            producer_id_expiration_ms: 86_400_000,
        }
    }
}
