//! A topic's settings as its logs want them.

use yuxi_controller::settings::{CleanupPolicy as Policy, TopicSettings};
use yuxi_log::{CleanupPolicy, LogConfig};

/// The log's part of a topic's settings.
pub(crate) fn of(settings: &TopicSettings, producer_id_expiration_ms: i64) -> LogConfig {
    // The table's ranges keep these from being negative.
    let unsigned = |value: i32| u32::try_from(value).unwrap_or(0);
    LogConfig {
        segment_bytes: u64::from(unsigned(settings.segment_bytes)),
        segment_ms: settings.segment_ms,
        segment_jitter_ms: settings.segment_jitter_ms,
        index_interval_bytes: unsigned(settings.index_interval_bytes),
        segment_index_bytes: unsigned(settings.segment_index_bytes),
        retention_ms: settings.retention_ms,
        retention_bytes: settings.retention_bytes,
        cleanup_policy: match settings.cleanup_policy {
            Policy::Delete => CleanupPolicy::Delete,
            Policy::Compact => CleanupPolicy::Compact,
            Policy::CompactAndDelete => CleanupPolicy::CompactAndDelete,
        },
        min_cleanable_dirty_ratio: settings.min_cleanable_dirty_ratio,
        min_compaction_lag_ms: settings.min_compaction_lag_ms,
        max_compaction_lag_ms: settings.max_compaction_lag_ms,
        delete_retention_ms: settings.delete_retention_ms,
        flush_messages: u64::try_from(settings.flush_messages).unwrap_or(u64::MAX),
        flush_ms: settings.flush_ms,
        file_delete_delay_ms: settings.file_delete_delay_ms,
        preallocate: settings.preallocate,
        producer_id_expiration_ms,
    }
}
