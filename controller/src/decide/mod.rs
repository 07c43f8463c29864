//! What the controller decides, as plain functions of the image: values in,
//! changes out, no store, no clock, no randomness of its own. Only the controller's
//! loop calls them, and only it commits what they return (I5).
//!
//! A [`ChangeSet`] is applied whole or not at all; the sets of one decision are
//! committed in order, several in one transaction where they fit, so each must
//! leave the cluster in a state that is right by itself.

pub mod assignment;
pub mod brokers;
pub mod configs;
pub mod deletions;
pub mod elections;
pub mod features;
pub mod isr;
pub mod leaders;
mod placement;
pub mod producer_ids;
pub mod reassignment;
pub mod topics;

use std::collections::BTreeMap;

use bytes::Bytes;
use yuxi_protocol::ids::{BrokerEpoch, BrokerId, PartitionId, TopicId};

use crate::{
    image::{ClusterImage, PartitionChunk, TopicImage},
    keys::{ConfigScope, Key, PARTITIONS_PER_CHUNK, PartitionState, print_partitions},
    settings::ServerSettings,
    store::{Guard, Operation, Revision},
};

const UNCLEAN_ELECTION: &str = "unclean.leader.election.enable";

/// Changes that belong together, with what must still be true when they are applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// The conditions.
    pub guards: Vec<Guard>,
    /// The changes.
    pub operations: Vec<Operation>,
}

impl ChangeSet {
    fn require_absent(&mut self, key: &Key) {
        self.guards.push(Guard::Absent(key.to_string()));
    }

    fn require_modified(&mut self, key: &Key, at: Revision) {
        self.guards.push(Guard::Modified(key.to_string(), at));
    }

    /// Requires `key` to be as it was: written at `at`, or absent.
    fn require_as_seen(&mut self, key: &Key, at: Option<Revision>) {
        match at {
            Some(at) => self.require_modified(key, at),
            None => self.require_absent(key),
        }
    }

    fn put(&mut self, key: &Key, value: Bytes) {
        self.operations.push(Operation::Put {
            key: key.to_string(),
            value,
            session: None,
        });
    }

    fn delete(&mut self, key: &Key) {
        self.operations.push(Operation::Delete {
            key: key.to_string(),
        });
    }
}

/// New states of partitions, gathered so that each stored chunk is written once.
pub(crate) struct PartitionEdits<'a> {
    image: &'a ClusterImage,
    chunks: BTreeMap<(TopicId, u32), ChunkEdits<'a>>,
}

/// What changes in one chunk. What doesn't is written from where it stands.
struct ChunkEdits<'a> {
    stored: &'a PartitionChunk,
    states: BTreeMap<usize, PartitionState>,
}

impl<'a> PartitionEdits<'a> {
    pub(crate) fn new(image: &'a ClusterImage) -> Self {
        Self {
            image,
            chunks: BTreeMap::new(),
        }
    }

    /// The state that a partition has after the edits so far.
    pub(crate) fn get(&self, topic: TopicId, partition: PartitionId) -> Option<&PartitionState> {
        let current = self.image.topic_by_id(topic)?.partition(partition)?;
        let (chunk, at) = place(partition);
        let edited = self
            .chunks
            .get(&(topic, chunk))
            .and_then(|chunk| chunk.states.get(&at));
        Some(edited.unwrap_or(current))
    }

    /// Gives a partition that exists a new state.
    pub(crate) fn set(
        &mut self,
        topic: &'a TopicImage,
        partition: PartitionId,
        state: PartitionState,
    ) {
        let (chunk, at) = place(partition);
        let edits = self.chunks.entry((topic.id, chunk)).or_insert_with(|| {
            let stored = topic
                .chunk(chunk as usize)
                .expect("a partition that exists stands in a chunk");
            ChunkEdits {
                stored,
                states: BTreeMap::new(),
            }
        });
        edits.states.insert(at, state);
    }

    pub(crate) fn into_changes(self) -> Vec<ChangeSet> {
        self.chunks
            .into_iter()
            .map(|((topic, chunk), edits)| {
                let key = Key::Partitions(topic, chunk);
                let mut changes = ChangeSet::default();
                changes.require_modified(&key, edits.stored.mod_revision);
                let stored = edits.stored.states.iter().enumerate();
                let states = stored.map(|(at, old)| edits.states.get(&at).unwrap_or(old));
                changes.put(&key, print_partitions(chunk, states));
                changes
            })
            .collect()
    }
}

fn place(partition: PartitionId) -> (u32, usize) {
    let partition = partition.value() as usize;
    (
        (partition / PARTITIONS_PER_CHUNK) as u32,
        partition % PARTITIONS_PER_CHUNK,
    )
}

/// Whether `epoch` is that of the broker's current, admitted registration.
fn is_current(image: &ClusterImage, broker: BrokerId, epoch: BrokerEpoch) -> bool {
    image
        .broker(broker)
        .is_some_and(|registered| registered.epoch == epoch)
}

/// The override of a topic, else that of the cluster, if it is one that can be read.
fn topic_override<T: std::str::FromStr>(
    image: &ClusterImage,
    topic: &str,
    name: &str,
) -> Option<T> {
    [ConfigScope::Topic(topic.into()), ConfigScope::Cluster]
        .iter()
        .find_map(|scope| image.config_value(scope, name)?.trim().parse().ok())
}

/// `min.insync.replicas` of a topic.
fn min_isr(image: &ClusterImage, settings: &ServerSettings, topic: &str) -> usize {
    let configured =
        topic_override(image, topic, "min.insync.replicas").unwrap_or(settings.min_insync_replicas);
    usize::try_from(configured).unwrap_or(1)
}

/// `unclean.leader.election.enable` of a topic.
fn allows_unclean_election(image: &ClusterImage, settings: &ServerSettings, topic: &str) -> bool {
    topic_override(image, topic, UNCLEAN_ELECTION)
        .unwrap_or(settings.unclean_leader_election_enable)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod testing;
