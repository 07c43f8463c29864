//! A set of partitions by topic id: what a member owns, gives up, or is to have.

use std::collections::{BTreeMap, BTreeSet};

use yuxi_protocol::ids::TopicId;

/// Partitions by topic. No topic is there without partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partitions(BTreeMap<TopicId, BTreeSet<i32>>);

impl Partitions {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }

    /// Whether the partition is one of them.
    pub fn contains(&self, topic: TopicId, partition: i32) -> bool {
        self.0
            .get(&topic)
            .is_some_and(|partitions| partitions.contains(&partition))
    }

    /// Adds a partition.
    pub fn insert(&mut self, topic: TopicId, partition: i32) {
        self.0.entry(topic).or_default().insert(partition);
    }

    /// Takes a partition out; false if it was not there.
    pub fn remove(&mut self, topic: TopicId, partition: i32) -> bool {
        let Some(partitions) = self.0.get_mut(&topic) else {
            return false;
        };
        let was_there = partitions.remove(&partition);
        if partitions.is_empty() {
            self.0.remove(&topic);
        }
        was_there
    }

    /// Every partition, in order.
    pub fn iter(&self) -> impl Iterator<Item = (TopicId, i32)> {
        self.0
            .iter()
            .flat_map(|(&topic, partitions)| partitions.iter().map(move |&at| (topic, at)))
    }

    /// Every topic with its partitions, in order.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = (TopicId, &BTreeSet<i32>)> {
        self.0
            .iter()
            .map(|(&topic, partitions)| (topic, partitions))
    }

    /// Splits into those that `keep` wants and the others.
    pub(super) fn partition(&self, keep: impl Fn(TopicId, i32) -> bool) -> (Self, Self) {
        let (mut kept, mut others) = (Self::default(), Self::default());
        for (topic, partition) in self.iter() {
            if keep(topic, partition) {
                kept.insert(topic, partition);
            } else {
                others.insert(topic, partition);
            }
        }
        (kept, others)
    }
}

impl FromIterator<(TopicId, i32)> for Partitions {
    fn from_iter<I: IntoIterator<Item = (TopicId, i32)>>(partitions: I) -> Self {
        let mut set = Self::default();
        for (topic, partition) in partitions {
            set.insert(topic, partition);
        }
        set
    }
}
