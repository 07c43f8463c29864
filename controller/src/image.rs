//! The cluster as the metadata store last described it: one immutable value, read
//! without locks, shared by the controller and everything in its process.
//!
//! An image is built from a read of the whole store and advanced by watch
//! batches, nothing else, so two processes at the same revision hold equal
//! images. Maps are persistent and topics and chunks shared, so advancing costs
//! what the batch touches, whatever the size of the cluster. A value that can't
//! be read stops the image where it is rather than make a partition vanish.

mod changes;
mod entries;

use std::{collections::BTreeSet, sync::Arc};

use imbl::OrdMap;
use yuxi_protocol::ids::{BrokerEpoch, BrokerId, ControllerEpoch, PartitionId, TopicId};

use crate::{
    decide::features,
    keys::{
        Address, AdmissionValue, BrokerValue, ConfigScope, ConfigValue, DaemonValue, DeletionValue,
        FeaturesValue, Key, PARTITIONS_PER_CHUNK, PartitionState, ProducerIdsValue, ValueError,
        parse_cluster,
    },
    store::{Batch, Change, Revision, SessionId, Snapshot},
};
pub use changes::{ImageChanges, TopicChange};

/// The state of the cluster at one revision of the metadata store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterImage {
    revision: Revision,
    cluster_id: Option<Arc<str>>,
    controller: Option<Arc<ControllerImage>>,
    brokers: OrdMap<BrokerId, Arc<BrokerImage>>,
    daemons: OrdMap<BrokerId, Arc<DaemonImage>>,
    admissions: OrdMap<BrokerId, Arc<AdmissionImage>>,
    topics: OrdMap<Arc<str>, Arc<TopicImage>>,
    topics_by_id: OrdMap<TopicId, Arc<TopicImage>>,
    /// Names with a `.` or `_`, by what they become when all of these are `_`.
    collisions: OrdMap<Arc<str>, Arc<str>>,
    chunks: OrdMap<(TopicId, u32), Arc<PartitionChunk>>,
    deletions: OrdMap<TopicId, Arc<DeletionImage>>,
    configs: OrdMap<ConfigScope, Arc<ConfigImage>>,
    producer_ids: Option<ProducerIdsImage>,
    features: Option<Arc<FeaturesImage>>,
}

/// Who holds the seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerImage {
    /// The node that is the controller.
    pub node_id: BrokerId,
    /// Its controller epoch.
    pub epoch: ControllerEpoch,
    /// Which life of that node.
    pub incarnation: String,
    /// The session that the key is bound to.
    pub session: Option<SessionId>,
    /// Where it takes the commands of other processes.
    pub endpoint: Option<Address>,
}

/// A registered broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerImage {
    /// Its `node.id`.
    pub id: BrokerId,
    /// Its broker epoch.
    pub epoch: BrokerEpoch,
    /// What it says about itself.
    pub registration: BrokerValue,
    /// The session that its registration is bound to.
    pub session: Option<SessionId>,
}

/// A registered controller that is no broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DaemonImage {
    /// The revision at which it registered.
    pub(crate) revision: Revision,
    /// What it says about itself.
    pub(crate) value: DaemonValue,
    /// The session that its registration is bound to.
    pub(crate) session: Option<SessionId>,
}

/// The last incarnation of a broker that was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionImage {
    /// What is remembered of it.
    pub value: AdmissionValue,
    /// The revision at which that was written.
    pub mod_revision: Revision,
}

/// A topic and its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicImage {
    /// Its name.
    pub name: Arc<str>,
    /// Its id.
    pub id: TopicId,
    /// The revision at which its own key was written.
    pub mod_revision: Revision,
    partition_count: u32,
    chunks: Vec<Option<Arc<PartitionChunk>>>,
}

/// Up to [`PARTITIONS_PER_CHUNK`] consecutive partitions, as they stand in one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionChunk {
    /// The revision at which the key was written.
    pub mod_revision: Revision,
    /// The states in the order of the partitions.
    pub states: Vec<PartitionState>,
}

/// A topic that was deleted, and of which brokers may still hold replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletionImage {
    /// What is stored.
    pub value: DeletionValue,
    /// The revision at which the key was written.
    pub mod_revision: Revision,
}

/// The configuration overrides of one scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigImage {
    /// The overrides by name.
    pub values: ConfigValue,
    /// The revision at which the key was written.
    pub mod_revision: Revision,
}

/// The producer ids given out so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerIdsImage {
    /// What is stored.
    pub value: ProducerIdsValue,
    /// The revision at which the key was written.
    pub mod_revision: Revision,
}

/// The levels of features that were ever set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeaturesImage {
    /// The levels by name.
    pub levels: FeaturesValue,
    /// The revision at which the key was written.
    pub mod_revision: Revision,
}

impl ClusterImage {
    /// The image that a read of the whole store describes.
    pub fn from_snapshot(snapshot: &Snapshot) -> Result<Self, ValueError> {
        let mut image = Self::default();
        let mut touched = BTreeSet::new();
        // In a newer layout the other keys may be anything.
        let cluster = snapshot
            .entries
            .iter()
            .find(|entry| Key::parse(&entry.key) == Some(Key::Cluster));
        if let Some(entry) = cluster {
            parse_cluster(&entry.key, &entry.value)?;
        }
        for entry in &snapshot.entries {
            image.put(entry, &mut touched)?;
        }
        image.assemble(&touched);
        image.revision = snapshot.revision;
        Ok(image)
    }

    /// The image after `batch`, which must be the next one that the watch delivers.
    pub fn advanced_by(&self, batch: &Batch) -> Result<Self, ValueError> {
        assert!(
            batch.revision > self.revision,
            "a batch at revision {} can't follow revision {}",
            batch.revision,
            self.revision
        );
        let mut image = self.clone();
        let mut touched = BTreeSet::new();
        for change in &batch.changes {
            match change {
                Change::Put(entry) => image.put(entry, &mut touched)?,
                Change::Delete(key) => image.delete(key, &mut touched),
            }
        }
        image.assemble(&touched);
        image.revision = batch.revision;
        Ok(image)
    }

    /// The store revision up to which this is the truth.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The cluster's id, once the cluster has been started for the first time.
    pub fn cluster_id(&self) -> Option<&Arc<str>> {
        self.cluster_id.as_ref()
    }

    /// The controller, unless there is none just now.
    pub fn controller(&self) -> Option<&ControllerImage> {
        self.controller.as_deref()
    }

    /// The registration of a broker, let in or not.
    pub fn registration(&self, id: BrokerId) -> Option<&BrokerImage> {
        self.brokers.get(&id).map(Arc::as_ref)
    }

    /// All registrations in the order of their ids.
    pub fn registrations(&self) -> impl Iterator<Item = &BrokerImage> {
        self.brokers.values().map(Arc::as_ref)
    }

    /// The registration of a controller that is no broker.
    pub(crate) fn daemon(&self, id: BrokerId) -> Option<&DaemonImage> {
        self.daemons.get(&id).map(Arc::as_ref)
    }

    /// A live broker that was let in, which is what clients may be told of.
    pub fn broker(&self, id: BrokerId) -> Option<&BrokerImage> {
        self.registration(id)
            .filter(|broker| self.is_admitted(broker))
    }

    /// All live brokers that were let in, in the order of their ids.
    pub fn brokers(&self) -> impl Iterator<Item = &BrokerImage> {
        self.registrations()
            .filter(|broker| self.is_admitted(broker))
    }

    /// Whether this very incarnation was let in by the controller (I7).
    pub fn is_admitted(&self, broker: &BrokerImage) -> bool {
        self.admission(broker.id)
            .is_some_and(|admission| admission.value.broker_epoch == broker.epoch)
    }

    /// Whether the broker may lead and join in-sync replica sets: live, let in and
    /// not shutting down.
    pub fn is_active(&self, id: BrokerId) -> bool {
        self.broker(id).is_some()
            && self
                .admission(id)
                .is_some_and(|admission| !admission.value.shutting_down)
    }

    /// This image as if some brokers were not registered, and others still were.
    pub(crate) fn supposing(&self, without: &[BrokerId], with: &[BrokerImage]) -> Self {
        let mut image = self.clone();
        for id in without {
            image.brokers.remove(id);
        }
        for broker in with {
            image
                .brokers
                .entry(broker.id)
                .or_insert_with(|| Arc::new(broker.clone()));
        }
        image
    }

    /// The last incarnation of a broker that was let in, live or not.
    pub fn admission(&self, id: BrokerId) -> Option<&AdmissionImage> {
        self.admissions.get(&id).map(Arc::as_ref)
    }

    /// Every broker that was let in and not unregistered since, live or not.
    pub fn known_brokers(&self) -> impl Iterator<Item = BrokerId> {
        self.admissions.keys().copied()
    }

    /// A topic by name.
    pub fn topic(&self, name: &str) -> Option<&Arc<TopicImage>> {
        self.topics.get(name)
    }

    /// A topic by id.
    pub fn topic_by_id(&self, id: TopicId) -> Option<&Arc<TopicImage>> {
        self.topics_by_id.get(&id)
    }

    /// All topics in the order of their names.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<TopicImage>> {
        self.topics.values()
    }

    /// How many topics there are.
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// The state of one partition by its topic's name.
    pub fn partition(&self, topic: &str, partition: PartitionId) -> Option<&PartitionState> {
        self.topics.get(topic)?.partition(partition)
    }

    /// A topic whose name differs from `name` at most in `.` and `_`; such names
    /// can't stand side by side.
    pub fn topic_colliding_with(&self, name: &str) -> Option<&Arc<str>> {
        self.collisions.get(unified(name)?.as_str())
    }

    /// Topics that were deleted, and of which brokers may still hold replicas.
    pub(crate) fn deletions(&self) -> impl Iterator<Item = (TopicId, &DeletionImage)> {
        self.deletions
            .iter()
            .map(|(&topic, deletion)| (topic, deletion.as_ref()))
    }

    /// What is known of the deletion of a topic.
    pub(crate) fn deletion(&self, topic: TopicId) -> Option<&DeletionImage> {
        self.deletions.get(&topic).map(Arc::as_ref)
    }

    /// The topics that were deleted, and of which `broker` has not said that it holds nothing.
    pub fn deleted_topics(&self, broker: BrokerId) -> impl Iterator<Item = TopicId> {
        self.deletions()
            .filter(move |(_, deletion)| deletion.value.brokers.contains(&broker))
            .map(|(topic, _)| topic)
            // Whatever the store says besides, a topic that exists is not deleted.
            .filter(|topic| !self.topics_by_id.contains_key(topic))
    }

    /// The configuration overrides of a scope, if there are any.
    pub fn config(&self, scope: &ConfigScope) -> Option<&ConfigImage> {
        self.configs.get(scope).map(Arc::as_ref)
    }

    /// One configuration override.
    pub fn config_value(&self, scope: &ConfigScope, name: &str) -> Option<&str> {
        self.config(scope)?.values.get(name).map(String::as_str)
    }

    /// Every scope that has overrides.
    pub fn config_scopes(&self) -> impl Iterator<Item = (&ConfigScope, &ConfigImage)> {
        self.configs
            .iter()
            .map(|(scope, config)| (scope, config.as_ref()))
    }

    /// The producer ids given out, if any were.
    pub fn producer_ids(&self) -> Option<&ProducerIdsImage> {
        self.producer_ids.as_ref()
    }

    /// The level of a feature in this cluster; 0 for one that there is not.
    pub fn feature(&self, name: &str) -> i16 {
        let set = self
            .features()
            .and_then(|features| features.levels.get(name));
        match (features::feature(name), set) {
            // Another version may have known a higher one.
            (Some(feature), Some(&level)) => level.clamp(0, feature.highest),
            (Some(feature), None) => feature.default,
            (None, _) => 0,
        }
    }

    /// The levels of features, if any was ever set.
    pub fn features(&self) -> Option<&FeaturesImage> {
        self.features.as_deref()
    }

    /// Chunks that belong to no topic: what an interrupted creation or deletion left.
    pub(crate) fn orphaned_chunks(&self) -> impl Iterator<Item = (TopicId, u32, Revision)> {
        self.chunks.iter().filter_map(|(&(topic, chunk), states)| {
            let wanted = self
                .topics_by_id
                .get(&topic)
                .is_some_and(|topic| (chunk as usize) < topic.chunks.len());
            (!wanted).then_some((topic, chunk, states.mod_revision))
        })
    }

    /// Every chunk stored under a topic's id.
    pub(crate) fn chunks_of(&self, topic: TopicId) -> impl Iterator<Item = (u32, Revision)> {
        self.chunks
            .range((topic, 0)..=(topic, u32::MAX))
            .map(|(&(_, chunk), states)| (chunk, states.mod_revision))
    }
}

impl TopicImage {
    /// How many partitions it has.
    pub fn partition_count(&self) -> usize {
        self.partition_count as usize
    }

    /// The state of a partition.
    pub fn partition(&self, partition: PartitionId) -> Option<&PartitionState> {
        let partition = usize::try_from(partition.value()).ok()?;
        if partition >= self.partition_count() {
            return None;
        }
        self.chunk(partition / PARTITIONS_PER_CHUNK)?
            .states
            .get(partition % PARTITIONS_PER_CHUNK)
    }

    /// All partitions in order.
    pub fn partitions(&self) -> impl Iterator<Item = (PartitionId, &PartitionState)> {
        (0..self.partition_count as i32)
            .map(PartitionId::new)
            .filter_map(|id| Some((id, self.partition(id)?)))
    }

    /// The partitions whose state is not that of `older`, an earlier image of this topic.
    pub fn changed_partitions<'a>(
        &'a self,
        older: &'a Self,
    ) -> impl Iterator<Item = (PartitionId, &'a PartitionState)> {
        let same = |at: usize| match (self.chunk(at), older.chunk(at)) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old),
            _ => false,
        };
        let grown = self.partition_count != older.partition_count;
        let chunk_count = self.partition_count().div_ceil(PARTITIONS_PER_CHUNK);
        (0..chunk_count)
            .filter(move |&at| grown || !same(at))
            .flat_map(|at| at * PARTITIONS_PER_CHUNK..(at + 1) * PARTITIONS_PER_CHUNK)
            .map(|at| PartitionId::new(at as i32))
            .filter_map(move |id| {
                let state = self.partition(id)?;
                (older.partition(id) != Some(state)).then_some((id, state))
            })
    }

    /// How many replicas its partitions have. One that is being reassigned counts as what
    /// it will be.
    pub fn replication_factor(&self) -> usize {
        self.partition(PartitionId::new(0))
            .map_or(0, |state| state.target_replicas().len())
    }

    pub(crate) fn chunk(&self, at: usize) -> Option<&Arc<PartitionChunk>> {
        self.chunks.get(at)?.as_ref()
    }
}

/// The form of a name in which names collide; `None` if it can collide with none.
fn unified(name: &str) -> Option<String> {
    name.contains(['.', '_']).then(|| name.replace('.', "_"))
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
