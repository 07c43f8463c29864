//! Builds a shard's state from its partition's log, after a start or a change of leader.

use crate::partition::{Partition, PartitionError};
use yuxi_coordinator::transactions::{TransactionConfig, TransactionShard};
use yuxi_protocol::{
    ids::{LeaderEpoch, Offset},
    record::{BatchError, batches},
};

/// How much of the log is looked at before the partition's lock is taken again.
const READ_BYTES: usize = 1024 * 1024;

/// What one batch of this topic may decompress to.
const MAX_DECOMPRESSED_BYTES: usize = 256 * 1024 * 1024;

/// A shard that has been told all its log says, and where that log ended.
pub(super) struct Replayed {
    pub(super) shard: TransactionShard,
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

/// Replays the whole log of `partition`, as its leader in `epoch`.
pub(super) fn replay(
    partition: &Partition,
    epoch: LeaderEpoch,
    config: TransactionConfig,
) -> Result<Replayed, LoadError> {
    let mut shard = TransactionShard::new(config);
    let (mut at, end) =
        partition.with_led_log(epoch, |_, offsets| (offsets.log_start, offsets.log_end))?;
    let mut unreadable = 0_u64;
    while at < end {
        let read = partition.with_led_log(epoch, |log, _| log.read(at, READ_BYTES, true, end))?;
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
            at = batch.header().next_offset();
            if batch.header().is_control() {
                continue;
            }
            for record in batch.records(MAX_DECOMPRESSED_BYTES) {
                let record = record.map_err(at_batch)?;
                let Some(key) = &record.key else { continue };
                if let Err(error) = shard.replay(key, record.value.as_ref()) {
                    // One damaged record must not take all transactions of a shard away.
                    unreadable += 1;
                    tracing::warn!(
                        partition = %partition.id(), offset = %record.offset, %error,
                        "a transaction's record is skipped"
                    );
                }
            }
        }
    }
    if unreadable > 0 {
        tracing::error!(partition = %partition.id(), unreadable, "transactions were skipped");
    }
    Ok(Replayed { shard, end })
}
