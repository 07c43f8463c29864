//! The partitions that are here, by their topics' names and ids. Owned by [`super::Replicas`];
//! the lock is held for a look-up or a replacement, never longer.

use crate::{
    node::Lookup,
    partition::Partition,
    sync::{read, write},
};
use std::{
    collections::HashMap,
    sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard},
};
use yuxi_protocol::ids::TopicId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct LocalTopics {
    map: RwLock<Map>,
}

#[derive(Debug, Default)]
struct Map {
    by_name: HashMap<Arc<str>, Arc<LocalTopic>>,
    by_id: HashMap<TopicId, Arc<LocalTopic>>,
}

/// A topic of the cluster, with those of its partitions that are here.
#[derive(Clone, Debug)]
pub(super) struct LocalTopic {
    pub(super) name: Arc<str>,
    pub(super) id: TopicId,
    pub(super) partitions: Vec<Option<Arc<Partition>>>,
}

impl LocalTopics {
    pub(super) fn find(&self, topic: &str, partition: i32) -> Lookup {
        let map = self.map();
        let topic = map.by_name.get(topic);
        topic.map_or(Lookup::Unknown, |topic| topic.find(partition))
    }

    pub(super) fn find_by_id(&self, topic: TopicId, partition: i32) -> Lookup {
        let map = self.map();
        let topic = map.by_id.get(&topic);
        topic.map_or(Lookup::Unknown, |topic| topic.find(partition))
    }

    pub(super) fn get(&self, topic: TopicId) -> Option<Arc<LocalTopic>> {
        self.map().by_id.get(&topic).cloned()
    }

    /// Every partition, ordered by topic and number.
    pub(super) fn all(&self) -> Vec<Arc<Partition>> {
        let mut all: Vec<_> = self
            .map()
            .by_name
            .values()
            .flat_map(|topic| topic.partitions.iter().flatten().cloned())
            .collect();
        all.sort_by(|a, b| a.id().cmp(b.id()));
        all
    }

    /// In place of what had the topic's name or id before.
    pub(super) fn insert(&self, topic: LocalTopic) {
        let topic = Arc::new(topic);
        let mut map = self.map_mut();
        map.by_id.insert(topic.id, Arc::clone(&topic));
        map.by_name.insert(Arc::clone(&topic.name), topic);
    }

    pub(super) fn remove(&self, id: TopicId) -> Option<Arc<LocalTopic>> {
        let mut map = self.map_mut();
        let topic = map.by_id.remove(&id)?;
        let named = map.by_name.get(&topic.name);
        if named.is_some_and(|named| named.id == id) {
            map.by_name.remove(&topic.name);
        }
        Some(topic)
    }

    fn map(&self) -> RwLockReadGuard<'_, Map> {
        read(&self.map)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, Map> {
        write(&self.map)
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
