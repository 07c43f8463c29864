//! Builds a shard's state from its partition's log, after a start or a change of leader.

use crate::{
    partition::{Partition, PartitionError},
    time,
};
use yuxi_coordinator::groups::{GroupConfig, GroupShard};
use yuxi_protocol::{
    ids::{LeaderEpoch, Offset},
    record::{BatchError, EndMarker, batches},
};

/// How much of the log is looked at before the partition's lock is taken again.
const READ_BYTES: usize = 1024 * 1024;

/// What one batch of this topic may decompress to.
const MAX_DECOMPRESSED_BYTES: usize = 256 * 1024 * 1024;

/// A shard that knows all its log says.
pub(super) struct Loaded {
    pub(super) shard: GroupShard,
    /// Where the log ended.
    pub(super) end: Offset,
}

/// Why a shard could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Partition(#[from] PartitionError),
    #[error("the log at offset {offset}: {error}")]
    Batch { offset: Offset, error: BatchError },
}

/// Replays the whole log of `partition`.
pub(super) fn load(partition: &Partition, config: GroupConfig) -> Result<Loaded, LoadError> {
    let mut shard = GroupShard::new(config, Box::new(|| *uuid::Uuid::new_v4().as_bytes()));
    let (mut at, end) = partition.with_led_log(LeaderEpoch::NONE, |_, offsets| {
        (offsets.log_start, offsets.log_end)
    })?;
    let mut unreadable = 0_u64;
    while at < end {
        let read = partition.with_led_log(LeaderEpoch::NONE, |log, _| {
            log.read(at, READ_BYTES, true, end)
        })?;
        let Some(slice) = read.map_err(PartitionError::from)?.slice else {
            break;
        };
        for batch in batches(slice.as_bytes()) {
            let from = at;
            let at_batch = move |error| LoadError::Batch {
                offset: from,
                error,
            };
            let batch = batch.map_err(at_batch)?;
            let header = *batch.header();
            at = header.next_offset();
            let producer_id = header.producer_id.value();
            if header.is_control() {
                if let Some(marker) = EndMarker::read(&batch).map_err(at_batch)? {
                    shard.transaction_ended(producer_id, marker.commit);
                }
                continue;
            }
            for record in batch.records(MAX_DECOMPRESSED_BYTES) {
                let record = record.map_err(at_batch)?;
                let Some(key) = &record.key else { continue };
                let replayed = if header.is_transactional() {
                    shard.replay_transactional(producer_id, key, record.value.as_ref())
                } else {
                    shard.replay(key, record.value.as_ref())
                };
                if let Err(error) = replayed {
                    // One damaged record must not take a whole shard's groups away.
                    unreadable += 1;
                    tracing::warn!(
                        partition = %partition.id(), offset = %record.offset, %error,
                        "a group record is skipped"
                    );
                }
            }
        }
    }
    if unreadable > 0 {
        tracing::error!(partition = %partition.id(), unreadable, "group records were skipped");
    }
    shard.loaded(time::now_ms());
    Ok(Loaded { shard, end })
}
