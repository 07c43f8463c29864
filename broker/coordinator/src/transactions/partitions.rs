//! A set of partitions, by topic: what a transaction has written to, or has yet to mark.

use std::collections::{BTreeMap, BTreeSet};

use yuxi_protocol::codec::StrBytes;

/// Partitions by the names of their topics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partitions {
    topics: BTreeMap<StrBytes, BTreeSet<i32>>,
}

impl Partitions {
    /// Adds one partition.
    pub fn insert(&mut self, topic: &StrBytes, partition: i32) {
        if let Some(partitions) = self.topics.get_mut(topic) {
            partitions.insert(partition);
        } else {
            self.topics
                .insert(super::copied(topic), BTreeSet::from([partition]));
        }
    }

    /// Takes one partition out. False if it was not in.
    pub fn remove(&mut self, topic: &StrBytes, partition: i32) -> bool {
        let Some(partitions) = self.topics.get_mut(topic) else {
            return false;
        };
        let removed = partitions.remove(&partition);
        if partitions.is_empty() {
            self.topics.remove(topic);
        }
        removed
    }

    /// Whether the partition is in.
    pub fn contains(&self, topic: &StrBytes, partition: i32) -> bool {
        self.topics
            .get(topic)
            .is_some_and(|partitions| partitions.contains(&partition))
    }

    /// Whether all of `others` are in.
    pub fn contains_all(&self, others: &Self) -> bool {
        others
            .iter()
            .all(|(topic, partition)| self.contains(topic, partition))
    }

    /// Adds all of `others`.
    pub fn add_all(&mut self, others: &Self) {
        for (topic, partition) in others.iter() {
            self.insert(topic, partition);
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Each partition, in the order of topics and numbers.
    pub fn iter(&self) -> impl Iterator<Item = (&StrBytes, i32)> {
        self.topics
            .iter()
            .flat_map(|(topic, partitions)| partitions.iter().map(move |&one| (topic, one)))
    }

    /// Each topic with its partitions.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = (&StrBytes, &BTreeSet<i32>)> {
        self.topics.iter()
    }
}

impl<'a> FromIterator<(&'a StrBytes, i32)> for Partitions {
    fn from_iter<I: IntoIterator<Item = (&'a StrBytes, i32)>>(all: I) -> Self {
        let mut partitions = Self::default();
        for (topic, partition) in all {
            partitions.insert(topic, partition);
        }
        partitions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_without_its_last_partition_is_empty() {
        let topic = StrBytes::from("t");
        let mut set: Partitions = [(&topic, 1), (&topic, 0), (&topic, 1)]
            .into_iter()
            .collect();
        assert_eq!(
            set.iter().collect::<Vec<_>>(),
            [(&topic, 0), (&topic, 1)],
            "each once, in order"
        );
        assert!(!set.remove(&topic, 2));
        assert!(set.remove(&topic, 0) && !set.is_empty());
        assert!(set.remove(&topic, 1) && set.is_empty());
    }
}
