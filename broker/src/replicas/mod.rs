//! Which partitions this broker holds. Owns the log directory and what is known of it: the
//! map of the partitions ([`map`]), what the last stop left ([`found`]), the checkpoint files
//! ([`checkpoints`]) and what is yet to be deleted ([`deletions`]). Makes all of it follow the
//! cluster image: one task applies one image after the other.
//!
//! What always holds: a partition in the map has its directory and the topic id that
//! stands in it; a directory of a topic that was deleted is removed, and one of a
//! topic that the cluster does not know is left alone and named in the log.

mod checkpoints;
mod deletions;
mod found;
mod map;
mod threads;

pub(crate) use checkpoints::Checkpoints;

use crate::{
    StartError, log_config,
    node::Lookup,
    partition::{Cut, Partition, Position},
    time::{self, Monotonic},
};
use checkpoints::CheckpointFiles;
use deletions::Deletions;
use found::{Found, offset_of};
use map::{LocalTopic, LocalTopics};
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
};
use threads::on_threads;
use yuxi_controller::{
    image::{ClusterImage, TopicChange, TopicImage},
    keys::{ConfigScope, PartitionState},
    settings::{ServerSettings, TopicSettings},
};
use yuxi_log::{CleanShutdown, LogDir, LogDirError, LogError, OffsetCheckpoint, StoredPartition};
use yuxi_protocol::ids::{
    BrokerEpoch, BrokerId, LeaderEpoch, PartitionId, TopicId, TopicPartition,
};

/// All partitions that this broker holds.
#[derive(Debug)]
pub(crate) struct Replicas {
    broker: BrokerId,
    directory: LogDir,
    topics: LocalTopics,
    deletions: Deletions,
    found: Found,
    checkpoints: CheckpointFiles,
}

/// A partition whose leader changed.
#[derive(Debug)]
pub(crate) struct RoleChange {
    pub(crate) partition: Arc<Partition>,
    /// The broker to follow and the epoch to do it in; `None` if this one leads, nobody
    /// does, or the partition is gone.
    pub(crate) follows: Option<(BrokerId, LeaderEpoch)>,
}

impl RoleChange {
    fn gone(partition: &Arc<Partition>) -> Self {
        Self {
            partition: Arc::clone(partition),
            follows: None,
        }
    }
}

/// A partition that could not be opened. The others go on.
#[derive(Debug, thiserror::Error)]
#[error("partition {partition} cannot be opened: {error}")]
struct OpenError {
    partition: TopicPartition,
    error: LogError,
}

impl Replicas {
    /// Takes over an opened log directory. No partition is served before the first image
    /// is applied.
    pub(crate) fn new(
        broker: BrokerId,
        directory: LogDir,
        clean_shutdown: bool,
    ) -> std::io::Result<Self> {
        let found = Found::read(&directory, clean_shutdown)?;
        Ok(Self {
            broker,
            checkpoints: CheckpointFiles::new(
                directory.path().to_owned(),
                found.recovery_points().clone(),
                found.high_watermarks().clone(),
            ),
            directory,
            topics: LocalTopics::default(),
            deletions: Deletions::default(),
            found,
        })
    }

    /// Opens the logs that `image` places here before the cluster counts on them, and says
    /// whether any of them is not what it was (I8, I15): damaged, or gone. Such a one is
    /// set aside, for its replica begins anew and takes everything from its leader. Must
    /// run where blocking is allowed.
    pub(crate) fn open_logs(
        &mut self,
        image: &ClusterImage,
        settings: &ServerSettings,
    ) -> Result<bool, LogDirError> {
        let lost = self
            .found
            .open_logs(self.broker, &self.directory, image, settings)?;
        if !lost.is_empty() {
            // An empty log is no longer one that ends too early.
            let points = self.found.recovery_points().clone();
            self.checkpoints
                .replace_recovery_points(points)
                .map_err(|error| LogDirError::Storage {
                    path: self.directory.path().join(OffsetCheckpoint::RECOVERY_POINT),
                    error,
                })?;
        }
        Ok(!lost.is_empty())
    }

    /// Where the partitions are.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A partition by its topic's name.
    pub(crate) fn find(&self, topic: &str, partition: i32) -> Lookup {
        self.topics.find(topic, partition)
    }

    /// A partition by its topic's id.
    pub(crate) fn find_by_id(&self, topic: TopicId, partition: i32) -> Lookup {
        self.topics.find_by_id(topic, partition)
    }

    /// Every partition here, ordered by topic and number.
    pub(crate) fn all(&self) -> Vec<Arc<Partition>> {
        self.topics.all()
    }

    /// Makes the partitions here what `new` says, given that they are what `old` said.
    /// Opens and deletes files, so it must run where blocking is allowed. Returns whom the
    /// partitions follow that have another leader now, or are gone.
    pub(crate) fn apply(
        &self,
        old: &ClusterImage,
        new: &ClusterImage,
        settings: &ServerSettings,
    ) -> Vec<RoleChange> {
        let mut roles = Vec::new();
        let changes = new.changes_since(old);
        if changes.brokers {
            // Before the new roles: a follower must be heard anew in its new incarnation.
            for partition in self.all() {
                let incarnation = |id| new.broker(id).map(|broker| broker.epoch);
                partition.forget_gone_followers(incarnation, |id| new.is_active(id));
            }
        }
        // What is deleted goes first, for what is created may have its name.
        for change in &changes.topics {
            if let TopicChange::Deleted(topic) = change {
                self.delete(topic, &mut roles);
            }
        }
        self.remove_deleted_topics(new);
        for change in changes.topics {
            match change {
                TopicChange::Created(topic) => self.create(topic, new, settings, &mut roles),
                TopicChange::Changed { old, new: topic } => {
                    self.change(old, topic, new, settings, &mut roles);
                }
                TopicChange::Deleted(_) => {}
            }
        }
        let everywhere = changes
            .configs
            .iter()
            .any(|scope| matches!(scope, ConfigScope::Broker(_) | ConfigScope::Cluster));
        if everywhere {
            for topic in new.topics() {
                self.configure(topic, new, settings);
            }
        } else {
            for scope in changes.configs {
                if let ConfigScope::Topic(name) = scope
                    && let Some(topic) = new.topic(name)
                {
                    self.configure(topic, new, settings);
                }
            }
        }
        roles
    }

    fn create(
        &self,
        topic: &TopicImage,
        image: &ClusterImage,
        settings: &ServerSettings,
        roles: &mut Vec<RoleChange>,
    ) {
        let topic_settings = settings_of(topic, image, settings);
        let wanted: Vec<_> = topic
            .partitions()
            .filter(|(_, state)| state.replicas.contains(&self.broker))
            .collect();
        let mut partitions = vec![None; topic.partition_count()];
        for (id, partition) in self.open_all(topic, &wanted, &topic_settings, settings) {
            roles.extend(self.role_of(topic, id, &partition));
            partitions[id.value() as usize] = Some(partition);
        }
        self.topics.insert(LocalTopic {
            name: Arc::clone(&topic.name),
            id: topic.id,
            partitions,
        });
    }

    /// Opens many partitions of a topic and gives them their roles.
    fn open_all(
        &self,
        topic: &TopicImage,
        wanted: &[(PartitionId, &PartitionState)],
        topic_settings: &Arc<TopicSettings>,
        settings: &ServerSettings,
    ) -> Vec<(PartitionId, Arc<Partition>)> {
        let open = |&(id, state): &(PartitionId, &PartitionState)| match self.open(
            topic,
            id,
            topic_settings,
            settings,
        ) {
            Ok(partition) => {
                self.take_role(&partition, state);
                Some((id, partition))
            }
            Err(error) => {
                tracing::error!(%error, "a partition is offline");
                None
            }
        };
        let ids = wanted.iter().map(|&(partition, _)| TopicPartition {
            topic: Arc::clone(&topic.name),
            partition,
        });
        let is_new = |id: &TopicPartition| !self.directory.partition_dir(id).is_dir();
        self.forget_checkpoints(&ids.filter(is_new).collect::<Vec<_>>());
        on_threads(wanted, open).into_iter().flatten().collect()
    }

    /// Before logs begin anew: one of the name may have been here before, and should this
    /// process die, the next would take its checkpoints for the new one's.
    fn forget_checkpoints(&self, anew: &[TopicPartition]) {
        if let Err(error) = self.checkpoints.forget(anew) {
            tracing::warn!(%error, "a checkpoint still names partitions that begin anew");
        }
    }

    fn open(
        &self,
        topic: &TopicImage,
        partition: PartitionId,
        topic_settings: &Arc<TopicSettings>,
        settings: &ServerSettings,
    ) -> Result<Arc<Partition>, OpenError> {
        let id = TopicPartition {
            topic: Arc::clone(&topic.name),
            partition,
        };
        let opened = if let Some(mut log) = self.found.take_opened(topic.id, partition) {
            let expiration_ms = i64::from(settings.producer_id_expiration_ms);
            log.set_config(log_config::of(topic_settings, expiration_ms));
            Ok(log)
        } else {
            let open = || {
                let (directory, topic_id) = (&self.directory, Some(topic.id));
                self.found
                    .open(directory, &id, topic_id, topic_settings, settings)
            };
            match open() {
                // Left by a topic of the same name that the cluster does not know.
                Err(LogError::OtherTopic { .. }) if set_aside(&self.directory, &id).is_ok() => {
                    self.forget_checkpoints(std::slice::from_ref(&id));
                    open()
                }
                opened => opened,
            }
        };
        match opened {
            Ok(log) => {
                // With one replica everything in the log is committed; a follower learns
                // the high watermark from its leader.
                let high_watermark = offset_of(self.found.high_watermarks(), &id);
                Ok(Arc::new(Partition::new(
                    id,
                    topic.id,
                    self.broker,
                    log,
                    Arc::clone(topic_settings),
                    high_watermark,
                )))
            }
            Err(error) => Err(OpenError {
                partition: id,
                error,
            }),
        }
    }

    fn take_role(&self, partition: &Partition, state: &PartitionState) {
        if state.leader == self.broker {
            partition.become_leader(state, time::monotonic());
        } else {
            partition.become_follower(state);
        }
    }

    fn role_of(
        &self,
        topic: &TopicImage,
        id: PartitionId,
        partition: &Arc<Partition>,
    ) -> Option<RoleChange> {
        let state = topic.partition(id)?;
        let leader = Some(state.leader).filter(|&id| id != BrokerId::NONE && id != self.broker);
        Some(RoleChange {
            partition: Arc::clone(partition),
            follows: leader.map(|leader| (leader, state.leader_epoch)),
        })
    }

    fn change(
        &self,
        old: &TopicImage,
        topic: &TopicImage,
        image: &ClusterImage,
        settings: &ServerSettings,
        roles: &mut Vec<RoleChange>,
    ) {
        let Some(local) = self.topics.get(topic.id) else {
            return self.create(topic, image, settings, roles);
        };
        let mut local = LocalTopic::clone(&local);
        local.partitions.resize(topic.partition_count(), None);
        let mut to_open = Vec::new();
        for (id, state) in topic.changed_partitions(old) {
            let here = &mut local.partitions[id.value() as usize];
            let wanted = state.replicas.contains(&self.broker);
            match here {
                Some(partition) if wanted => {
                    self.take_role(partition, state);
                    if old.partition(id).map(|old| old.leader_epoch) != Some(state.leader_epoch) {
                        roles.extend(self.role_of(topic, id, partition));
                    }
                }
                Some(partition) => {
                    roles.push(RoleChange::gone(partition));
                    self.delete_partition(partition);
                    *here = None;
                }
                None if wanted => to_open.push((id, state)),
                None => {}
            }
        }
        let topic_settings = settings_of(topic, image, settings);
        for (id, partition) in self.open_all(topic, &to_open, &topic_settings, settings) {
            roles.extend(self.role_of(topic, id, &partition));
            local.partitions[id.value() as usize] = Some(partition);
        }
        self.topics.insert(local);
    }

    fn delete(&self, topic: &TopicImage, roles: &mut Vec<RoleChange>) {
        let removed = self.topics.remove(topic.id);
        for partition in removed
            .iter()
            .flat_map(|topic| topic.partitions.iter().flatten())
        {
            roles.push(RoleChange::gone(partition));
            self.delete_partition(partition);
        }
    }

    fn delete_partition(&self, partition: &Partition) {
        let delay_ms = partition.settings().file_delete_delay_ms;
        partition.delete();
        let unique = uuid::Uuid::new_v4().as_u128();
        match self.directory.rename_deleted(partition.id(), unique) {
            Ok(directory) => {
                let due = time::monotonic().plus(delay_ms);
                self.deletions.add(due, directory);
            }
            Err(error) => {
                tracing::error!(partition = %partition.id(), %error, "a deleted partition's files stay");
            }
        }
    }

    /// Removes the files of deleted partitions whose time has come.
    pub(crate) fn remove_deleted(&self, now: Monotonic) {
        for directory in self.deletions.take_due(now) {
            self.remove(&directory);
        }
    }

    /// Removes what an earlier process had renamed to be deleted.
    pub(crate) fn remove_left_over(&self) -> Result<(), LogDirError> {
        for directory in self.directory.deleted_partitions()? {
            self.remove(&directory);
        }
        Ok(())
    }

    fn remove(&self, directory: &Path) {
        if let Err(error) = self.directory.remove(directory) {
            tracing::warn!(%error, "a deleted partition's files stay");
        }
    }

    /// Makes everything in the log directory durable at once.
    pub(crate) fn sync(&self) -> Result<(), LogDirError> {
        self.directory.sync()
    }

    /// Leaves the mark that every log was closed, in broker epoch `epoch`.
    pub(crate) fn mark_clean_shutdown(&self, epoch: BrokerEpoch) -> std::io::Result<()> {
        CleanShutdown::new(self.directory.path()).write(epoch.value())
    }

    fn configure(&self, topic: &TopicImage, image: &ClusterImage, settings: &ServerSettings) {
        let Some(local) = self.topics.get(topic.id) else {
            return;
        };
        let topic_settings = settings_of(topic, image, settings);
        for partition in local.partitions.iter().flatten() {
            partition.set_settings(
                Arc::clone(&topic_settings),
                i64::from(settings.producer_id_expiration_ms),
            );
        }
    }

    /// Directories of partitions that the image does not place here: those of a topic that the
    /// metadata store has lost, say, or of a partition that was moved while this broker was away.
    pub(crate) fn strays(&self) -> Result<Vec<StoredPartition>, LogDirError> {
        let all = self.all();
        let here: HashSet<&TopicPartition> = all.iter().map(|partition| partition.id()).collect();
        let mut stored = self.directory.partitions()?;
        stored.retain(|stored| !here.contains(&stored.partition));
        Ok(stored)
    }

    /// Renames directories that nobody knows, and says so.
    pub(crate) fn set_aside(&self, strays: &[StoredPartition]) -> Result<(), StartError> {
        for stray in strays {
            set_aside(&self.directory, &stray.partition)?;
        }
        Ok(())
    }

    /// The newest leader epoch in the log of a partition that has no topic yet.
    pub(crate) fn latest_epoch(
        &self,
        id: &TopicPartition,
        settings: &ServerSettings,
    ) -> Result<LeaderEpoch, LogError> {
        let topic_settings = TopicSettings::resolve(settings, &BTreeMap::new());
        let log = self
            .found
            .open(&self.directory, id, None, &topic_settings, settings)?;
        Ok(log.latest_epoch().unwrap_or(LeaderEpoch::NONE))
    }

    /// Writes the checkpoints of all partitions.
    pub(crate) fn checkpoint(&self, which: Checkpoints) -> std::io::Result<()> {
        self.checkpoints.write(which, &self.all())
    }

    /// Cuts logs. Must run where blocking is allowed.
    pub(crate) fn cut(&self, cuts: &[(Arc<Partition>, Position, Cut)]) -> std::io::Result<()> {
        self.checkpoints.cut(cuts, || self.all())
    }
}

/// Renames the directory of a partition that nobody knows, and says so.
fn set_aside(directory: &LogDir, partition: &TopicPartition) -> Result<(), LogDirError> {
    let unique = uuid::Uuid::new_v4().as_u128();
    let renamed = directory.rename_stray(partition, unique)?;
    tracing::warn!(
        %partition, directory = %renamed.display(),
        "a directory that is no replica of the cluster was set aside and can be removed"
    );
    Ok(())
}

fn settings_of(
    topic: &TopicImage,
    image: &ClusterImage,
    settings: &ServerSettings,
) -> Arc<TopicSettings> {
    let scope = ConfigScope::Topic(Arc::clone(&topic.name));
    let none = BTreeMap::new();
    let overrides = image.config(&scope).map_or(&none, |config| &config.values);
    Arc::new(TopicSettings::resolve(settings, overrides))
}
