//! The offsets that stand in the log: those that are committed, and those that wait for
//! the end of the transaction that wrote them.
//!
//! Owned by the shard, and changed only as its records and transaction markers are
//! taken in, in the log's order. Invariants: a pending offset is read by nobody before
//! its transaction's commit marker, and becomes the committed one with it, unless a
//! later commit for the same partition already has; an abort marker drops it. A tombstone
//! deletes the committed offset and every pending one.

use std::collections::{BTreeMap, BTreeSet};

use yuxi_protocol::codec::StrBytes;

use crate::groups::{
    copied,
    records::{OffsetCommitKey, OffsetCommitValue},
};

/// A group's offsets by topic and partition.
pub(in crate::groups) type TopicOffsets = BTreeMap<StrBytes, BTreeMap<i32, Stored>>;

/// An offset and the place of its record in the log.
#[derive(Clone, Debug)]
pub(in crate::groups) struct Stored {
    pub(in crate::groups) value: OffsetCommitValue,
    /// Counts the offsets taken in. Compaction leaves the order as it was, so it says
    /// which of two commits is the later one (KAFKA-16370).
    sequence: u64,
}

#[derive(Debug, Default)]
pub(in crate::groups) struct OffsetStore {
    committed: ByGroup,
    /// By the producer whose transaction it is.
    pending: BTreeMap<i64, ByGroup>,
    /// The producers of `pending` by group.
    open: BTreeMap<StrBytes, BTreeSet<i64>>,
    sequence: u64,
}

/// Offsets of several groups; none of the maps in it is empty.
#[derive(Debug, Default)]
struct ByGroup {
    groups: BTreeMap<StrBytes, TopicOffsets>,
    len: usize,
}

impl OffsetStore {
    pub(in crate::groups) fn put(&mut self, key: &OffsetCommitKey, value: OffsetCommitValue) {
        let stored = self.stored(value);
        self.committed.put(key, stored);
    }

    /// Keeps an offset until the transaction of `producer_id` ends.
    pub(in crate::groups) fn put_pending(
        &mut self,
        producer_id: i64,
        key: &OffsetCommitKey,
        value: OffsetCommitValue,
    ) {
        let stored = self.stored(value);
        self.pending
            .entry(producer_id)
            .or_default()
            .put(key, stored);
        entry(&mut self.open, &key.group).insert(producer_id);
    }

    fn stored(&mut self, mut value: OffsetCommitValue) -> Stored {
        value.metadata = copied(&value.metadata);
        self.sequence += 1;
        Stored {
            value,
            sequence: self.sequence,
        }
    }

    /// The marker of the producer's transaction is in the log.
    pub(in crate::groups) fn transaction_ended(&mut self, producer_id: i64, commit: bool) {
        self.open.retain(|_, producers| {
            producers.remove(&producer_id);
            !producers.is_empty()
        });
        let Some(ended) = self.pending.remove(&producer_id) else {
            return;
        };
        if !commit {
            return;
        }
        for (group, topics) in ended.groups {
            for (topic, partitions) in topics {
                for (partition, stored) in partitions {
                    let key = OffsetCommitKey {
                        group: group.clone(),
                        topic: topic.clone(),
                        partition,
                    };
                    let is_latest = self
                        .committed
                        .get(&group, &topic, partition)
                        .is_none_or(|current| current.sequence < stored.sequence);
                    if is_latest {
                        self.committed.put(&key, stored);
                    }
                }
            }
        }
    }

    pub(in crate::groups) fn remove(&mut self, key: &OffsetCommitKey) {
        self.committed.remove(key);
        for producer in self.open.get(&key.group).into_iter().flatten() {
            if let Some(pending) = self.pending.get_mut(producer) {
                pending.remove(key);
            }
        }
    }

    /// How many offsets are committed.
    pub(in crate::groups) fn len(&self) -> usize {
        self.committed.len
    }

    /// How many wait for the end of their transaction.
    pub(in crate::groups) fn pending_len(&self) -> usize {
        self.pending.values().map(|offsets| offsets.len).sum()
    }

    /// The group's committed offsets.
    pub(in crate::groups) fn of_group(&self, group: &StrBytes) -> Option<&TopicOffsets> {
        self.committed.groups.get(group)
    }

    pub(in crate::groups) fn get(
        &self,
        group: &StrBytes,
        topic: &StrBytes,
        partition: i32,
    ) -> Option<&OffsetCommitValue> {
        let stored = self.committed.get(group, topic, partition)?;
        Some(&stored.value)
    }

    /// Whether a transaction that has not ended wrote an offset for the partition.
    pub(in crate::groups) fn is_pending(
        &self,
        group: &StrBytes,
        topic: &StrBytes,
        partition: i32,
    ) -> bool {
        self.pending_of(group)
            .any(|topics| has(topics, topic, partition))
    }

    /// Whether a transaction that has not ended wrote offsets for the group.
    pub(in crate::groups) fn has_open_transactions(&self, group: &StrBytes) -> bool {
        self.open.contains_key(group)
    }

    /// The partitions that the group has offsets for, committed or pending, each once.
    pub(in crate::groups) fn partitions_of(&self, group: &StrBytes) -> BTreeSet<(StrBytes, i32)> {
        self.of_group(group)
            .into_iter()
            .chain(self.pending_of(group))
            .flatten()
            .flat_map(|(topic, partitions)| {
                partitions
                    .keys()
                    .map(move |partition| (topic.clone(), *partition))
            })
            .collect()
    }

    /// The groups that have offsets, committed or pending, each once.
    pub(in crate::groups) fn groups(&self) -> BTreeSet<StrBytes> {
        self.committed
            .groups
            .keys()
            .chain(self.open.keys())
            .cloned()
            .collect()
    }

    fn pending_of<'a>(&'a self, group: &'a StrBytes) -> impl Iterator<Item = &'a TopicOffsets> {
        let producers = self.open.get(group).into_iter().flatten();
        producers.filter_map(move |producer| self.pending.get(producer)?.groups.get(group))
    }
}

impl ByGroup {
    fn put(&mut self, key: &OffsetCommitKey, stored: Stored) {
        let topics = entry(&mut self.groups, &key.group);
        let partitions = entry(topics, &key.topic);
        if partitions.insert(key.partition, stored).is_none() {
            self.len += 1;
        }
    }

    fn remove(&mut self, key: &OffsetCommitKey) {
        let Some(topics) = self.groups.get_mut(&key.group) else {
            return;
        };
        let Some(partitions) = topics.get_mut(&key.topic) else {
            return;
        };
        if partitions.remove(&key.partition).is_some() {
            self.len -= 1;
        }
        if partitions.is_empty() {
            topics.remove(&key.topic);
        }
        if topics.is_empty() {
            self.groups.remove(&key.group);
        }
    }

    fn get(&self, group: &StrBytes, topic: &StrBytes, partition: i32) -> Option<&Stored> {
        self.groups.get(group)?.get(topic)?.get(&partition)
    }
}

fn has(topics: &TopicOffsets, topic: &StrBytes, partition: i32) -> bool {
    topics
        .get(topic)
        .is_some_and(|partitions| partitions.contains_key(&partition))
}

/// The entry for a name, made under a copy of the name if it is not there.
fn entry<'a, V: Default>(map: &'a mut BTreeMap<StrBytes, V>, name: &StrBytes) -> &'a mut V {
    if !map.contains_key(name) {
        map.insert(copied(name), V::default());
    }
    map.entry(name.clone()).or_default()
}
