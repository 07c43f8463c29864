//! What the broker does on its own from time to time: retention, flushes by age,
//! checkpoints, forgetting silent producers, and closing everything in the end.
//!
//! Each job is one task that works through all partitions on a blocking thread, one
//! partition's lock at a time.

use crate::{node::Node, partition::Partition, replicas::Checkpoints, time};
use std::{sync::Arc, time::Duration};
use tokio::{task::JoinHandle, time::MissedTickBehavior};
use yuxi_protocol::ids::BrokerEpoch;

/// How often logs are checked for closed segments that are not flushed yet, for records
/// whose flush is due by age, and for files whose deletion is due.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// A segment that nobody read or wrote for one to two of these is unmapped.
const COLD_AFTER: Duration = Duration::from_mins(1);

/// From this many logs on, one sync of the whole file system is quicker than an fsync of
/// each of their files.
const SYNC_TOGETHER_FROM: usize = 32;

/// What the mark of a clean shutdown says when there was no registration.
const NO_EPOCH: BrokerEpoch = BrokerEpoch::new(-1);

/// The jobs.
pub(crate) struct Maintenance;

impl Maintenance {
    /// Starts all jobs; they run until aborted.
    pub(crate) fn start(node: &Arc<Node>) -> Vec<JoinHandle<()>> {
        let settings = &node.settings;
        let ms = |value: i64| Duration::from_millis(u64::try_from(value).unwrap_or(u64::MAX));
        vec![
            every(node, HOUSEKEEPING, housekeeping),
            every(node, COLD_AFTER, |node| {
                for partition in node.replicas.all() {
                    partition.with_log(|log, _| log.release_unused_files());
                }
            }),
            every(
                node,
                ms(settings.log_retention_check_interval_ms),
                retention,
            ),
            every(
                node,
                ms(i64::from(settings.log_flush_offset_checkpoint_interval_ms)),
                |node| checkpoint(node, Checkpoints::RecoveryPoints),
            ),
            every(
                node,
                ms(settings.replica_high_watermark_checkpoint_interval_ms),
                |node| checkpoint(node, Checkpoints::HighWatermarks),
            ),
            every(
                node,
                ms(i64::from(
                    settings.log_flush_start_offset_checkpoint_interval_ms,
                )),
                |node| checkpoint(node, Checkpoints::LogStarts),
            ),
            every(
                node,
                ms(i64::from(settings.producer_id_expiration_check_interval_ms)),
                |node| {
                    let now = time::wall_ms();
                    for partition in node.replicas.all() {
                        partition.forget_silent_producers(now);
                    }
                },
            ),
        ]
    }
}

fn every(node: &Arc<Node>, period: Duration, job: fn(&Arc<Node>)) -> JoinHandle<()> {
    let node = Arc::clone(node);
    tokio::spawn(async move {
        let first = tokio::time::Instant::now() + period;
        let mut ticks = tokio::time::interval_at(first, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let working = Arc::clone(&node);
            if let Err(error) = node.run_blocking(move || job(&working)).await {
                tracing::error!(%error, "a maintenance job failed");
            }
        }
    })
}

fn housekeeping(node: &Arc<Node>) {
    let now = time::wall_ms();
    for partition in node.replicas.all() {
        partition.with_log(|log, _| log.remove_deleted(now));
        if let Err(error) = partition.flush_due(&node.metrics, now) {
            node.storage_failed(&format!("fsync of {}: {error}", partition.id()));
            return;
        }
    }
    node.replicas.remove_deleted(time::monotonic());
}

fn retention(node: &Arc<Node>) {
    let now = time::wall_ms();
    for partition in node.replicas.all() {
        let deleted =
            partition.with_log(|log, high_watermark| log.delete_old_segments(now, high_watermark));
        match deleted {
            Some(Err(error)) => {
                tracing::error!(partition = %partition.id(), %error, "retention failed");
            }
            Some(Ok(0)) | None => {}
            Some(Ok(segments)) => {
                tracing::info!(partition = %partition.id(), segments, "old segments were deleted");
            }
        }
    }
}

fn checkpoint(node: &Arc<Node>, which: Checkpoints) {
    if let Err(error) = node.replicas.checkpoint(which) {
        // A full disk, mostly. The old checkpoint stays, and only makes a recovery longer.
        tracing::warn!(%error, "a checkpoint was not written");
    }
}

/// Flushes and closes every log and leaves the mark of a clean shutdown, unless a log
/// could not be closed: then the next start checks them all. Without a registration there
/// is no `epoch`, and the mark says only that the logs are whole.
pub(crate) fn close(node: &Node, epoch: Option<BrokerEpoch>) -> Result<(), String> {
    if node.is_storage_failed() {
        return Err("a flush failed".to_owned());
    }
    let first_error = close_logs(node);
    for which in [
        Checkpoints::RecoveryPoints,
        Checkpoints::HighWatermarks,
        Checkpoints::LogStarts,
    ] {
        node.replicas
            .checkpoint(which)
            .map_err(|error| error.to_string())?;
    }
    match first_error {
        Some(error) => Err(error),
        None => node
            .replicas
            .mark_clean_shutdown(epoch.unwrap_or(NO_EPOCH))
            .map_err(|error| error.to_string()),
    }
}

/// Closes every log, as far as it can; returns the first error.
fn close_logs(node: &Node) -> Option<String> {
    let mut first_error = None;
    let mut failed = |partition: &Partition, error: String| {
        tracing::error!(partition = %partition.id(), error, "a log was not closed");
        first_error.get_or_insert(error);
    };
    let mut closing = Vec::new();
    for partition in node.replicas.all() {
        match partition.with_log(|log, _| log.prepare_close()) {
            Some(Ok(flush)) => closing.push((partition, flush)),
            Some(Err(error)) => failed(&partition, error.to_string()),
            None => {}
        }
    }
    let unflushed = closing
        .iter()
        .filter(|(_, flush)| !flush.is_empty())
        .count();
    let together = (unflushed >= SYNC_TOGETHER_FROM).then(|| node.replicas.sync());
    for (partition, flush) in closing {
        let synced = match &together {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(error.to_string()),
            None => flush.run().map_err(|error| error.to_string()),
        };
        match synced {
            Ok(()) => {
                partition.with_log(|log, _| log.flushed(&flush));
            }
            Err(error) => failed(&partition, error),
        }
    }
    first_error
}
