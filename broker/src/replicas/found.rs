//! What the last stop left in the log directory, and the opening of logs by it.
//!
//! Read once when the broker starts. Checkpoints hold for the logs as they were then, so what
//! is lost is forgotten here, and what begins anew, perhaps as another topic's, has none.

use super::{Checkpoints, set_aside, settings_of, threads::on_threads};
use crate::{log_config, sync::lock, time};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
};
use yuxi_controller::{
    image::ClusterImage,
    settings::{ServerSettings, TopicSettings},
};
use yuxi_log::{Log, LogDir, LogDirError, LogError, OffsetCheckpoint, Opening};
use yuxi_protocol::ids::{BrokerId, Offset, PartitionId, TopicId, TopicPartition};

/// The offsets in a checkpoint file.
pub(super) type Offsets = BTreeMap<TopicPartition, Offset>;

/// See the module.
#[derive(Debug)]
pub(super) struct Found {
    clean_shutdown: bool,
    recovery_points: Offsets,
    high_watermarks: Offsets,
    log_starts: Offsets,
    /// Up to where logs had been compacted.
    cleaned: Offsets,
    /// Logs that were opened before the first image was applied.
    opened: Mutex<HashMap<(TopicId, PartitionId), Log>>,
}

impl Found {
    pub(super) fn read(directory: &LogDir, clean_shutdown: bool) -> std::io::Result<Self> {
        let read =
            |which: Checkpoints| OffsetCheckpoint::new(directory.path(), which.file_name()).read();
        Ok(Self {
            clean_shutdown,
            recovery_points: read(Checkpoints::RecoveryPoints)?,
            high_watermarks: read(Checkpoints::HighWatermarks)?,
            log_starts: read(Checkpoints::LogStarts)?,
            cleaned: read(Checkpoints::Cleaned)?,
            opened: Mutex::default(),
        })
    }

    pub(super) fn recovery_points(&self) -> &Offsets {
        &self.recovery_points
    }

    pub(super) fn high_watermarks(&self) -> &Offsets {
        &self.high_watermarks
    }

    /// A log that was opened before, once.
    pub(super) fn take_opened(&self, topic: TopicId, partition: PartitionId) -> Option<Log> {
        self.opened().remove(&(topic, partition))
    }

    /// Opens the logs that `image` places on `broker`, and returns those that are not what
    /// they were: damaged ones, which are set aside, and vanished ones.
    pub(super) fn open_logs(
        &mut self,
        broker: BrokerId,
        directory: &LogDir,
        image: &ClusterImage,
        settings: &ServerSettings,
    ) -> Result<Vec<TopicPartition>, LogDirError> {
        let stored: HashSet<TopicPartition> = directory
            .partitions()?
            .into_iter()
            .map(|stored| stored.partition)
            .collect();
        let mut lost = Vec::new();
        for topic in image.topics() {
            let topic_settings = settings_of(topic, image, settings);
            let here = topic
                .partitions()
                .filter(|(_, state)| state.replicas.contains(&broker))
                .map(|(partition, _)| TopicPartition {
                    topic: Arc::clone(&topic.name),
                    partition,
                });
            let (found, missing): (Vec<_>, Vec<_>) = here.partition(|id| stored.contains(id));
            // One that no checkpoint names was perhaps never created.
            let known = |id: &TopicPartition| self.recovery_points.contains_key(id);
            lost.extend(missing.into_iter().filter(known).inspect(|id| {
                tracing::error!(partition = %id, "the partition's directory has vanished");
            }));
            let open = |id: &TopicPartition| {
                let opened = self.open(directory, id, Some(topic.id), &topic_settings, settings);
                (id.clone(), opened)
            };
            for (id, opened) in on_threads(&found, open) {
                match opened {
                    Ok(log) => {
                        self.opened().insert((topic.id, id.partition), log);
                    }
                    // Another topic had the name; its directory is set aside later.
                    Err(LogError::OtherTopic { .. }) => {}
                    Err(error) => {
                        tracing::error!(
                            partition = %id, %error,
                            "the log is damaged; the replica begins anew from its leader's"
                        );
                        set_aside(directory, &id)?;
                        lost.push(id);
                    }
                }
            }
        }
        for id in &lost {
            self.forget(id);
        }
        Ok(lost)
    }

    /// Opens one log.
    pub(super) fn open(
        &self,
        directory: &LogDir,
        id: &TopicPartition,
        topic_id: Option<TopicId>,
        topic_settings: &TopicSettings,
        settings: &ServerSettings,
    ) -> Result<Log, LogError> {
        let path = directory.partition_dir(id);
        let exists = path.is_dir();
        let checkpoint = |offsets: &Offsets| offsets.get(id).copied().filter(|_| exists);
        let opening = Opening {
            recovery_point: checkpoint(&self.recovery_points).unwrap_or(Offset::ZERO),
            clean_shutdown: self.clean_shutdown,
            log_start_offset: checkpoint(&self.log_starts).unwrap_or(Offset::ZERO),
            topic_id,
            now_ms: time::wall_ms(),
        };
        let config = log_config::of(
            topic_settings,
            i64::from(settings.producer_id_expiration_ms),
        );
        let mut log = Log::open(&path, config, opening)?;
        if let Some(cleaned_to) = checkpoint(&self.cleaned) {
            log.set_cleaned_to(cleaned_to);
        }
        Ok(log)
    }

    /// Nothing is left of the partition.
    fn forget(&mut self, id: &TopicPartition) {
        for offsets in [
            &mut self.recovery_points,
            &mut self.high_watermarks,
            &mut self.log_starts,
            &mut self.cleaned,
        ] {
            offsets.remove(id);
        }
    }

    fn opened(&self) -> MutexGuard<'_, HashMap<(TopicId, PartitionId), Log>> {
        lock(&self.opened)
    }
}

/// Where a checkpoint has a partition; 0 if nowhere.
pub(super) fn offset_of(offsets: &Offsets, id: &TopicPartition) -> Offset {
    offsets.get(id).copied().unwrap_or(Offset::ZERO)
}
