//! Which partitions this broker holds. Owns the map of them and the log directory, and
//! makes both follow the cluster image: one task applies one image after the other.
//!
//! What always holds: a partition in the map has its directory and the topic id that
//! stands in it; a directory of a topic that no longer exists is deleted, and one of a
//! topic that the cluster never knew is left alone and named in the log.

use crate::{
    StartError, log_config,
    node::Lookup,
    partition::{Cut, Partition, Position},
    time,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};
use yuxi_controller::{
    image::{ClusterImage, TopicChange, TopicImage},
    keys::{ConfigScope, PartitionState},
    settings::{ServerSettings, TopicSettings},
};
use yuxi_log::{
    CleanShutdown, LastEpoch, Log, LogDir, LogDirError, LogError, OffsetCheckpoint, Opening,
    StoredPartition,
};
use yuxi_protocol::ids::{
    BrokerEpoch, BrokerId, LeaderEpoch, Offset, PartitionId, TopicId, TopicPartition,
};

/// Partitions are opened by this many threads at most when a broker starts.
const OPENING_THREADS: usize = 8;

/// All partitions that this broker holds.
#[derive(Debug)]
pub(crate) struct Replicas {
    broker: BrokerId,
    directory: LogDir,
    map: RwLock<Map>,
    /// Directories of deleted partitions, and when they go: readers may still be at them.
    deleted: Mutex<Vec<(i64, PathBuf)>>,
    /// What the last stop left, until the first image is applied.
    found: Found,
    /// What stands in recovery-point-offset-checkpoint. Whoever writes that file holds it.
    recovery_points: Mutex<BTreeMap<TopicPartition, Offset>>,
    /// What stands in replication-offset-checkpoint.
    high_watermarks: Mutex<BTreeMap<TopicPartition, Offset>>,
}

/// What the log directory said when the broker started.
#[derive(Debug)]
struct Found {
    clean_shutdown: bool,
    recovery_points: BTreeMap<TopicPartition, Offset>,
    high_watermarks: BTreeMap<TopicPartition, Offset>,
    log_starts: BTreeMap<TopicPartition, Offset>,
    /// Up to where logs had been compacted.
    cleaned: BTreeMap<TopicPartition, Offset>,
    /// Logs that were opened before the first image was applied.
    opened: Mutex<HashMap<(TopicId, PartitionId), Log>>,
}

impl Found {
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
}

#[derive(Debug, Default)]
struct Map {
    by_name: HashMap<Arc<str>, Arc<LocalTopic>>,
    by_id: HashMap<TopicId, Arc<LocalTopic>>,
}

/// A topic of the cluster, with those of its partitions that are here.
#[derive(Clone, Debug)]
struct LocalTopic {
    name: Arc<str>,
    id: TopicId,
    partitions: Vec<Option<Arc<Partition>>>,
}

impl Map {
    fn insert(&mut self, topic: LocalTopic) {
        let topic = Arc::new(topic);
        self.by_id.insert(topic.id, Arc::clone(&topic));
        self.by_name.insert(Arc::clone(&topic.name), topic);
    }

    fn remove(&mut self, id: TopicId) -> Option<Arc<LocalTopic>> {
        let topic = self.by_id.remove(&id)?;
        if self
            .by_name
            .get(&topic.name)
            .is_some_and(|named| named.id == id)
        {
            self.by_name.remove(&topic.name);
        }
        Some(topic)
    }
}

impl LocalTopic {
    fn find(&self, partition: i32) -> Lookup {
        match usize::try_from(partition)
            .ok()
            .and_then(|at| self.partitions.get(at))
        {
            Some(Some(partition)) => Lookup::Here(Arc::clone(partition)),
            Some(None) => Lookup::Elsewhere,
            None => Lookup::Unknown,
        }
    }
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
        let read = |name| OffsetCheckpoint::new(directory.path(), name).read();
        let found = Found {
            clean_shutdown,
            recovery_points: read(OffsetCheckpoint::RECOVERY_POINT)?,
            high_watermarks: read(OffsetCheckpoint::HIGH_WATERMARK)?,
            log_starts: read(OffsetCheckpoint::LOG_START)?,
            cleaned: read(OffsetCheckpoint::CLEANER)?,
            opened: Mutex::default(),
        };
        Ok(Self {
            broker,
            directory,
            map: RwLock::default(),
            deleted: Mutex::default(),
            recovery_points: Mutex::new(found.recovery_points.clone()),
            high_watermarks: Mutex::new(found.high_watermarks.clone()),
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
        let stored: HashSet<TopicPartition> = self
            .directory
            .partitions()?
            .into_iter()
            .map(|stored| stored.partition)
            .collect();
        let mut lost = Vec::new();
        for topic in image.topics() {
            let topic_settings = settings_of(topic, image, settings);
            let here = topic
                .partitions()
                .filter(|(_, state)| state.replicas.contains(&self.broker))
                .map(|(partition, _)| TopicPartition {
                    topic: Arc::clone(&topic.name),
                    partition,
                });
            let (found, missing): (Vec<_>, Vec<_>) = here.partition(|id| stored.contains(id));
            // One that no checkpoint names was perhaps never created.
            let known = |id: &TopicPartition| self.found.recovery_points.contains_key(id);
            lost.extend(missing.into_iter().filter(known).inspect(|id| {
                tracing::error!(partition = %id, "the partition's directory has vanished");
            }));
            let open = |id: &TopicPartition| {
                (
                    id.clone(),
                    self.open_log(id, Some(topic.id), &topic_settings, settings),
                )
            };
            for (id, opened) in on_threads(&found, open) {
                match opened {
                    Ok(log) => {
                        lock(&self.found.opened).insert((topic.id, id.partition), log);
                    }
                    // Another topic had the name; its directory is set aside later.
                    Err(LogError::OtherTopic { .. }) => {}
                    Err(error) => {
                        tracing::error!(
                            partition = %id, %error,
                            "the log is damaged; the replica begins anew from its leader's"
                        );
                        self.set_aside_as(&id)?;
                        lost.push(id);
                    }
                }
            }
        }
        for id in &lost {
            self.found.forget(id);
        }
        if !lost.is_empty() {
            // An empty log is no longer one that ends too early.
            let path = self.directory.path();
            let points = &self.found.recovery_points;
            OffsetCheckpoint::new(path, OffsetCheckpoint::RECOVERY_POINT)
                .write(points.iter().map(|(id, &point)| (id, point)))
                .map_err(|error| LogDirError::Storage {
                    path: path.join(OffsetCheckpoint::RECOVERY_POINT),
                    error,
                })?;
            *lock(&self.recovery_points) = points.clone();
        }
        Ok(!lost.is_empty())
    }

    /// Where the partitions are.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A partition by its topic's name.
    pub(crate) fn find(&self, topic: &str, partition: i32) -> Lookup {
        self.map()
            .by_name
            .get(topic)
            .map_or(Lookup::Unknown, |topic| topic.find(partition))
    }

    /// A partition by its topic's id.
    pub(crate) fn find_by_id(&self, topic: TopicId, partition: i32) -> Lookup {
        self.map()
            .by_id
            .get(&topic)
            .map_or(Lookup::Unknown, |topic| topic.find(partition))
    }

    /// Every partition here, ordered by topic and number.
    pub(crate) fn all(&self) -> Vec<Arc<Partition>> {
        let mut all: Vec<_> = self
            .map()
            .by_name
            .values()
            .flat_map(|topic| topic.partitions.iter().flatten().cloned())
            .collect();
        all.sort_by(|a, b| a.id().cmp(b.id()));
        all
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
        for change in changes.topics {
            match change {
                TopicChange::Created(topic) => self.create(topic, new, settings, &mut roles),
                TopicChange::Deleted(topic) => self.delete(topic, &mut roles),
                TopicChange::Changed { old, new: topic } => {
                    self.change(old, topic, new, settings, &mut roles);
                }
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
        self.map_mut().insert(LocalTopic {
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
        on_threads(wanted, open).into_iter().flatten().collect()
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
        let opened = lock(&self.found.opened).remove(&(topic.id, partition));
        let opened = match opened {
            Some(mut log) => {
                let expiration_ms = i64::from(settings.producer_id_expiration_ms);
                log.set_config(log_config::of(topic_settings, expiration_ms));
                Ok(log)
            }
            None => match self.open_log(&id, Some(topic.id), topic_settings, settings) {
                // Left by a topic of the same name that was deleted while this broker was away.
                Err(LogError::OtherTopic { .. }) if self.set_aside_as(&id).is_ok() => {
                    self.open_log(&id, Some(topic.id), topic_settings, settings)
                }
                opened => opened,
            },
        };
        match opened {
            Ok(log) => {
                // With one replica everything in the log is committed; a follower learns
                // the high watermark from its leader.
                let high_watermark = found_at(&self.found.high_watermarks, &id);
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

    fn open_log(
        &self,
        id: &TopicPartition,
        topic_id: Option<TopicId>,
        topic_settings: &TopicSettings,
        settings: &ServerSettings,
    ) -> Result<Log, LogError> {
        let opening = Opening {
            recovery_point: found_at(&self.found.recovery_points, id),
            clean_shutdown: self.found.clean_shutdown,
            log_start_offset: found_at(&self.found.log_starts, id),
            topic_id,
            now_ms: time::now_ms(),
        };
        let config = log_config::of(
            topic_settings,
            i64::from(settings.producer_id_expiration_ms),
        );
        let mut log = Log::open(&self.directory.partition_dir(id), config, opening)?;
        if let Some(&cleaned_to) = self.found.cleaned.get(id) {
            log.set_cleaned_to(cleaned_to);
        }
        Ok(log)
    }

    fn take_role(&self, partition: &Partition, state: &PartitionState) {
        if state.leader == self.broker {
            partition.become_leader(state, time::now_ms());
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
        let Some(local) = self.map().by_id.get(&topic.id).cloned() else {
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
        self.map_mut().insert(local);
    }

    fn delete(&self, topic: &TopicImage, roles: &mut Vec<RoleChange>) {
        let removed = self.map_mut().remove(topic.id);
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
            Ok(directory) => self
                .deleted()
                .push((time::now_ms().saturating_add(delay_ms), directory)),
            Err(error) => {
                tracing::error!(partition = %partition.id(), %error, "a deleted partition's files stay");
            }
        }
    }

    /// Removes the files of deleted partitions whose time has come.
    pub(crate) fn remove_deleted(&self, now_ms: i64) {
        let due: Vec<_> = self
            .deleted()
            .extract_if(.., |(due_ms, _)| *due_ms <= now_ms)
            .collect();
        for (_, directory) in due {
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

    fn deleted(&self) -> MutexGuard<'_, Vec<(i64, PathBuf)>> {
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes everything in the log directory durable at once.
    pub(crate) fn sync(&self) -> Result<(), LogDirError> {
        self.directory.sync()
    }

    /// The broker epoch in which the log directory was used last, as far as it says.
    pub(crate) fn last_epoch(&self) -> Option<BrokerEpoch> {
        match LastEpoch::new(self.directory.path()).read() {
            Ok(epoch) => epoch.map(BrokerEpoch::new),
            Err(error) => {
                tracing::warn!(%error, "the last broker epoch is not known: the replicas here start behind");
                None
            }
        }
    }

    /// Notes that the log directory is used in broker epoch `epoch` from now on.
    pub(crate) fn note_epoch(&self, epoch: BrokerEpoch) -> std::io::Result<()> {
        LastEpoch::new(self.directory.path()).write(epoch.value())
    }

    /// Leaves the mark that every log was closed, in broker epoch `epoch`.
    pub(crate) fn mark_clean_shutdown(&self, epoch: BrokerEpoch) -> std::io::Result<()> {
        CleanShutdown::new(self.directory.path()).write(epoch.value())
    }

    fn configure(&self, topic: &TopicImage, image: &ClusterImage, settings: &ServerSettings) {
        let Some(local) = self.map().by_id.get(&topic.id).cloned() else {
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

    /// Directories of partitions that the image does not place here: left by a deletion
    /// that was cut short, or by another cluster.
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
            self.set_aside_as(&stray.partition)?;
        }
        Ok(())
    }

    fn set_aside_as(&self, partition: &TopicPartition) -> Result<(), LogDirError> {
        let unique = uuid::Uuid::new_v4().as_u128();
        let renamed = self.directory.rename_stray(partition, unique)?;
        tracing::warn!(
            %partition, directory = %renamed.display(),
            "a directory that is no replica of the cluster was set aside and can be removed"
        );
        Ok(())
    }

    /// The newest leader epoch in the log of a partition that has no topic yet.
    pub(crate) fn latest_epoch(
        &self,
        id: &TopicPartition,
        settings: &ServerSettings,
    ) -> Result<LeaderEpoch, LogError> {
        let topic_settings = TopicSettings::resolve(settings, &BTreeMap::new());
        let log = self.open_log(id, None, &topic_settings, settings)?;
        Ok(log.latest_epoch().unwrap_or(LeaderEpoch::NONE))
    }

    /// Writes the checkpoints of all partitions.
    pub(crate) fn checkpoint(&self, which: Checkpoints) -> std::io::Result<()> {
        let all = self.all();
        let write = |name, offset: &dyn Fn(&Partition) -> Option<Offset>| {
            let offsets: Vec<_> = all
                .iter()
                .filter_map(|partition| Some((partition.id(), offset(partition)?)))
                .collect();
            OffsetCheckpoint::new(self.directory.path(), name).write(offsets)
        };
        match which {
            Checkpoints::RecoveryPoints => {
                let mut stored = self.stored_recovery_points();
                let points = all
                    .iter()
                    .filter_map(|partition| {
                        let point = partition.with_log(|log, _| log.recovery_point())?;
                        Some((partition.id().clone(), point))
                    })
                    .collect();
                self.write_recovery_points(&mut stored, points)
            }
            Checkpoints::HighWatermarks => {
                let now: BTreeMap<_, _> = all
                    .iter()
                    .map(|partition| (partition.id().clone(), partition.offsets().high_watermark))
                    .collect();
                let mut stored = lock(&self.high_watermarks);
                // An idle broker leaves its disk alone.
                if *stored != now {
                    OffsetCheckpoint::new(self.directory.path(), OffsetCheckpoint::HIGH_WATERMARK)
                        .write(now.iter().map(|(id, &offset)| (id, offset)))?;
                    *stored = now;
                }
                Ok(())
            }
            Checkpoints::LogStarts => write(OffsetCheckpoint::LOG_START, &|partition| {
                Some(partition.offsets().log_start).filter(|&start| start > Offset::ZERO)
            }),
            Checkpoints::Cleaned => write(OffsetCheckpoint::CLEANER, &|partition| {
                partition.with_log(|log, _| log.cleaned_to())?
            }),
        }
    }

    /// Cuts logs. First the recovery points on disk are lowered where they are beyond a
    /// cut, or a crash in between would look like lost data. Must run where blocking is
    /// allowed.
    pub(crate) fn cut(&self, cuts: &[(Arc<Partition>, Position, Cut)]) -> std::io::Result<()> {
        let mut stored = self.stored_recovery_points();
        let lowered: Vec<_> = cuts
            .iter()
            .map(|(partition, _, cut)| (partition.id(), cut.offset()))
            .filter(|(id, to)| found_at(&stored, id) > *to)
            .collect();
        if !lowered.is_empty() {
            let mut points = stored.clone();
            for (id, to) in lowered {
                points.insert(id.clone(), to);
            }
            self.write_recovery_points(&mut stored, points)?;
        }
        let cleaned_to = |partition: &Partition| partition.with_log(|log, _| log.cleaned_to())?;
        let was_cleaned = cuts
            .iter()
            .any(|(partition, _, cut)| cleaned_to(partition) > Some(cut.offset()));
        // Still holding the file, so that it is not raised again meanwhile.
        for (partition, position, cut) in cuts {
            if let Err(error) = partition.cut(position, *cut, time::now_ms()) {
                tracing::error!(partition = %partition.id(), %error, "the log could not be cut");
            }
        }
        drop(stored);
        if was_cleaned {
            // What comes there instead has not been compacted.
            self.checkpoint(Checkpoints::Cleaned)?;
        }
        Ok(())
    }

    fn stored_recovery_points(&self) -> MutexGuard<'_, BTreeMap<TopicPartition, Offset>> {
        lock(&self.recovery_points)
    }

    fn write_recovery_points(
        &self,
        stored: &mut BTreeMap<TopicPartition, Offset>,
        points: BTreeMap<TopicPartition, Offset>,
    ) -> std::io::Result<()> {
        OffsetCheckpoint::new(self.directory.path(), OffsetCheckpoint::RECOVERY_POINT)
            .write(points.iter().map(|(id, &point)| (id, point)))?;
        *stored = points;
        Ok(())
    }

    fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which checkpoint files to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checkpoints {
    /// Up to where logs are known to be on disk.
    RecoveryPoints,
    /// Up to where records are known to be committed.
    HighWatermarks,
    /// Where logs begin.
    LogStarts,
    /// Up to where logs have been compacted.
    Cleaned,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `work` for each of many partitions on several threads: each costs a few system
/// calls and an fsync or two, which overlap.
fn on_threads<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let share = items.len().div_ceil(OPENING_THREADS);
    if share <= 1 {
        return items.iter().map(work).collect();
    }
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .chunks(share)
            .map(|items| scope.spawn(move || items.iter().map(work).collect::<Vec<R>>()))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
}

fn found_at(offsets: &BTreeMap<TopicPartition, Offset>, id: &TopicPartition) -> Offset {
    offsets.get(id).copied().unwrap_or(Offset::ZERO)
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
