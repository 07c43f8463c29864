//! Topics are created, deleted and given more partitions.
//!
//! The key of a topic is what makes its partitions exist: it is written after
//! their states and deleted before them, so a controller that dies half-way leaves
//! states that belong to nothing ([`super::brokers::remove_orphans`]), never a topic
//! without them. With it a deletion is noted for the brokers that hold replicas ([`super::deletions`]).

use std::collections::BTreeSet;

use rand::RngCore;
use serde::{Deserialize, Serialize};
use yuxi_protocol::ids::{BrokerId, LeaderEpoch, PartitionId, TopicId};

use super::{
    ChangeSet,
    assignment::{MAX_NEW_PARTITIONS, additional, assigned, chosen},
    configs, deletions,
    placement::Ring,
};
use crate::{
    ControllerError,
    image::{ClusterImage, TopicImage},
    keys::{
        ConfigScope, ConfigValue, Key, PARTITIONS_PER_CHUNK, PartitionState, TopicValue,
        first_partition, print_partitions, print_value,
    },
    settings::ServerSettings,
};

/// The longest name of a topic.
pub const MAX_TOPIC_NAME_LENGTH: usize = 249;

/// A topic to create.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// How many partitions; -1 for `num.partitions`, or with a manual assignment.
    pub partitions: i32,
    /// How many replicas of each; -1 for `default.replication.factor`, or with a manual
    /// assignment.
    pub replication_factor: i16,
    /// The replicas of each partition, if they shall not be chosen.
    pub assignments: Vec<ManualAssignment>,
    /// Its configuration overrides.
    pub configs: Vec<(String, Option<String>)>,
    /// What it already is in a data directory that is taken over.
    pub adopted: Option<Adopted>,
}

/// A topic that has a history which this cluster did not write.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Adopted {
    /// The id that stands in its directories.
    pub id: TopicId,
    /// A leader epoch that none of its logs has yet.
    pub leader_epoch: LeaderEpoch,
}

/// The replicas of one partition, preferred leader first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ManualAssignment {
    /// The partition.
    pub partition: PartitionId,
    /// Its replicas.
    pub replicas: Vec<BrokerId>,
}

/// A topic that was created, or would have been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedTopic {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: TopicId,
    /// How many partitions it has.
    pub partitions: i32,
    /// How many replicas each has.
    pub replication_factor: i16,
}

/// A topic to delete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TopicSelector {
    /// By name.
    Name(String),
    /// By id.
    Id(TopicId),
}

/// A topic that was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedTopic {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: TopicId,
}

/// A topic to be given more partitions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewPartitions {
    /// Its name.
    pub topic: String,
    /// How many partitions it shall have in all.
    pub count: i32,
    /// The replicas of each new partition, if they shall not be chosen.
    pub assignments: Option<Vec<Vec<BrokerId>>>,
}

/// One answer for each topic of a call.
pub type Answers<T> = Vec<Result<T, ControllerError>>;

/// Decides on topics to create.
pub fn create(
    image: &ClusterImage,
    settings: &ServerSettings,
    topics: &[NewTopic],
    random: &mut dyn RngCore,
) -> (Vec<ChangeSet>, Answers<CreatedTopic>) {
    let ring = Ring::of(image);
    let repeated = repeated(topics.iter().map(|topic| topic.name.as_str()));
    let mut changes = Vec::new();
    let mut budget = MAX_NEW_PARTITIONS;
    let mut taken = BTreeSet::new();
    let mut adopted_ids = BTreeSet::new();
    let answers = topics
        .iter()
        .map(|topic| {
            if repeated.contains(topic.name.as_str()) {
                return Err(duplicate_topic());
            }
            check_new_name(image, &topic.name)?;
            if !taken.insert(topic.name.replace('.', "_")) {
                return Err(ControllerError::InvalidTopic(format!(
                    "Topic '{}' collides with another topic of the same request",
                    topic.name
                )));
            }
            let configs = configs::of_new_topic(image, settings, &topic.name, &topic.configs)?;
            let mut states = if topic.assignments.is_empty() {
                chosen(image, settings, &ring, topic, &mut budget, random)?
            } else {
                assigned(image, topic, &mut budget)?
            };
            let id = match topic.adopted {
                None => unused_topic_id(image, random),
                Some(adopted)
                    if image.topic_by_id(adopted.id).is_some()
                        || !adopted_ids.insert(adopted.id) =>
                {
                    return Err(ControllerError::InvalidRequest(format!(
                        "Topic id {} belongs to another topic.",
                        adopted.id
                    )));
                }
                Some(adopted) => {
                    for state in &mut states {
                        state.leader_epoch = adopted.leader_epoch;
                    }
                    adopted.id
                }
            };
            let created = CreatedTopic {
                name: topic.name.clone(),
                id,
                partitions: states.len() as i32,
                replication_factor: states[0].replicas.len() as i16,
            };
            add(&mut changes, &created, &states, configs.as_ref());
            Ok(created)
        })
        .collect();
    (changes, answers)
}

/// Decides on topics to delete.
pub fn delete(
    image: &ClusterImage,
    topics: &[TopicSelector],
) -> (Vec<ChangeSet>, Answers<DeletedTopic>) {
    let mut changes = Vec::new();
    let mut gone = BTreeSet::new();
    let answers = topics
        .iter()
        .map(|selector| {
            let topic = match selector {
                TopicSelector::Name(name) => image
                    .topic(name)
                    .ok_or(ControllerError::UnknownTopicOrPartition),
                TopicSelector::Id(id) => image
                    .topic_by_id(*id)
                    .ok_or(ControllerError::UnknownTopicId(*id)),
            }?;
            if !gone.insert(topic.id) {
                return Err(duplicate_topic());
            }
            remove(image, &mut changes, topic);
            Ok(DeletedTopic {
                name: topic.name.to_string(),
                id: topic.id,
            })
        })
        .collect();
    (changes, answers)
}

/// Decides on topics that shall have more partitions.
pub fn grow(
    image: &ClusterImage,
    topics: &[NewPartitions],
    random: &mut dyn RngCore,
) -> (Vec<ChangeSet>, Answers<()>) {
    let ring = Ring::of(image);
    let repeated = repeated(topics.iter().map(|topic| topic.topic.as_str()));
    let mut changes = Vec::new();
    let mut budget = MAX_NEW_PARTITIONS;
    let answers = topics
        .iter()
        .map(|request| {
            if repeated.contains(request.topic.as_str()) {
                return Err(duplicate_topic());
            }
            let topic = image
                .topic(&request.topic)
                .ok_or(ControllerError::UnknownTopicOrPartition)?;
            let states = additional(image, &ring, topic, request, &mut budget, random)?;
            extend(&mut changes, topic, states);
            Ok(())
        })
        .collect();
    (changes, answers)
}

/// Whether the name is one that a topic can have.
pub fn check_name(name: &str) -> Result<(), ControllerError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let reason = if name.is_empty() {
        "the empty string is not allowed".to_owned()
    } else if name == "." || name == ".." {
        format!("'{name}' is not allowed")
    } else if name.chars().count() > MAX_TOPIC_NAME_LENGTH {
        format!(
            "the length of '{name}' is longer than the max allowed length {MAX_TOPIC_NAME_LENGTH}"
        )
    } else if !name.chars().all(legal) {
        format!(
            "'{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' \
             and '-'"
        )
    } else {
        return Ok(());
    };
    Err(ControllerError::InvalidTopic(format!(
        "Topic name is invalid: {reason}"
    )))
}

fn check_new_name(image: &ClusterImage, name: &str) -> Result<(), ControllerError> {
    check_name(name)?;
    if image.topic(name).is_some() {
        return Err(ControllerError::TopicAlreadyExists(name.to_owned()));
    }
    match image.topic_colliding_with(name) {
        None => Ok(()),
        Some(other) => Err(ControllerError::InvalidTopic(format!(
            "Topic '{name}' collides with existing topic: {other}"
        ))),
    }
}

fn add(
    changes: &mut Vec<ChangeSet>,
    topic: &CreatedTopic,
    states: &[PartitionState],
    configs: Option<&ConfigValue>,
) {
    for (chunk, states) in (0..).zip(states.chunks(PARTITIONS_PER_CHUNK)) {
        let mut change = ChangeSet::default();
        change.put(
            &Key::Partitions(topic.id, chunk),
            print_partitions(chunk, states),
        );
        changes.push(change);
    }
    let key = Key::Topic(topic.name.as_str().into());
    let mut change = ChangeSet::default();
    change.require_absent(&key);
    change.put(&key, topic_value(topic.id, states.len()));
    if let Some(configs) = configs {
        let scope = ConfigScope::Topic(topic.name.as_str().into());
        change.put(&Key::Config(scope), print_value(configs));
    }
    changes.push(change);
}

fn remove(image: &ClusterImage, changes: &mut Vec<ChangeSet>, topic: &TopicImage) {
    let key = Key::Topic(topic.name.clone());
    let mut change = ChangeSet::default();
    change.require_modified(&key, topic.mod_revision);
    change.delete(&key);
    let scope = ConfigScope::Topic(topic.name.clone());
    if image.config(&scope).is_some() {
        change.delete(&Key::Config(scope));
    }
    deletions::remember(image, topic, &mut change);
    changes.push(change);
    for (chunk, _) in image.chunks_of(topic.id) {
        let mut change = ChangeSet::default();
        change.delete(&Key::Partitions(topic.id, chunk));
        changes.push(change);
    }
}

fn extend(changes: &mut Vec<ChangeSet>, topic: &TopicImage, added: Vec<PartitionState>) {
    let count = topic.partition_count() + added.len();
    let mut chunk = (topic.partition_count() / PARTITIONS_PER_CHUNK) as u32;
    let mut added = added.into_iter();
    let mut next = topic.partition_count();
    while next < count {
        let key = Key::Partitions(topic.id, chunk);
        let mut change = ChangeSet::default();
        let mut states = Vec::new();
        if next > first_partition(chunk)
            && let Some(stored) = topic.chunk(chunk as usize)
        {
            change.require_modified(&key, stored.mod_revision);
            // What an interrupted call left behind the last partition is not part of it.
            states.extend_from_slice(&stored.states[..next - first_partition(chunk)]);
        }
        states.extend(added.by_ref().take(PARTITIONS_PER_CHUNK - states.len()));
        next = first_partition(chunk) + states.len();
        change.put(&key, print_partitions(chunk, &states));
        changes.push(change);
        chunk += 1;
    }
    let key = Key::Topic(topic.name.clone());
    let mut change = ChangeSet::default();
    change.require_modified(&key, topic.mod_revision);
    change.put(&key, topic_value(topic.id, count));
    changes.push(change);
}

fn topic_value(topic_id: TopicId, partitions: usize) -> bytes::Bytes {
    print_value(&TopicValue {
        topic_id,
        partitions: partitions as u32,
    })
}

fn unused_topic_id(image: &ClusterImage, random: &mut dyn RngCore) -> TopicId {
    loop {
        let id = random_topic_id(random);
        if image.topic_by_id(id).is_none() {
            return id;
        }
    }
}

/// A random UUID, neither of Kafka's two reserved ones nor with a dash in front, which
/// its tools would take for an option.
pub(crate) fn random_topic_id(random: &mut dyn RngCore) -> TopicId {
    loop {
        let mut bytes = [0; 16];
        random.fill_bytes(&mut bytes);
        let id = TopicId::from_bytes(
            uuid::Builder::from_random_bytes(bytes)
                .into_uuid()
                .into_bytes(),
        );
        if !id.to_string().starts_with('-') {
            return id;
        }
    }
}

fn repeated<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    names.filter(|&name| !seen.insert(name)).collect()
}

fn duplicate_topic() -> ControllerError {
    ControllerError::InvalidRequest("Duplicate topic name.".to_owned())
}

#[cfg(test)]
#[path = "topics_tests.rs"]
mod tests;
