//! A cluster for the tests of decisions: an image that changes are applied to as the store
//! would.

use std::sync::Arc;

use bytes::Bytes;
use yuxi_protocol::ids::{BrokerEpoch, BrokerId, PartitionId};

use super::ChangeSet;
use crate::{
    image::ClusterImage,
    keys::{BrokerValue, Key, PartitionState, print_value},
    settings::ServerSettings,
    store::{Batch, Change, Entry, Guard, Operation, Revision},
};

pub(crate) fn id(number: i32) -> BrokerId {
    BrokerId::new(number)
}

pub(crate) fn ids(numbers: &[i32]) -> Vec<BrokerId> {
    numbers.iter().copied().map(BrokerId::new).collect()
}

pub(crate) fn settings() -> ServerSettings {
    ServerSettings::from_properties("", &[]).expect("the defaults are valid")
}

/// See the module.
pub(crate) struct Cluster {
    pub(crate) image: ClusterImage,
    entries: std::collections::BTreeMap<String, Entry>,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self {
            image: ClusterImage::default(),
            entries: std::collections::BTreeMap::new(),
        }
    }

    /// A cluster whose brokers 1 to `count` are registered and let in.
    pub(crate) fn of(count: i32) -> Self {
        let mut cluster = Self::new();
        for broker in 1..=count {
            cluster.register(broker, &registration());
        }
        cluster.reconcile();
        cluster
    }

    pub(crate) fn register(&mut self, broker: i32, registration: &BrokerValue) -> BrokerEpoch {
        self.put(&Key::Broker(id(broker)), print_value(registration));
        BrokerEpoch::new(self.image.revision().value())
    }

    pub(crate) fn unregister(&mut self, broker: i32) {
        self.apply(&[ChangeSet {
            guards: Vec::new(),
            operations: vec![Operation::Delete {
                key: Key::Broker(id(broker)).to_string(),
            }],
        }]);
    }

    /// What a controller does next; returns how many changes that takes.
    pub(crate) fn reconcile(&mut self) -> usize {
        let changes = super::brokers::reconcile(&self.image, &settings());
        self.apply(&changes);
        changes.len()
    }

    pub(crate) fn epoch(&self, broker: i32) -> BrokerEpoch {
        self.image
            .registration(id(broker))
            .expect("registered")
            .epoch
    }

    pub(crate) fn state(&self, topic: &str, partition: i32) -> &PartitionState {
        self.image
            .partition(topic, PartitionId::new(partition))
            .expect("the partition exists")
    }

    pub(crate) fn put(&mut self, key: &Key, value: Bytes) {
        self.apply(&[ChangeSet {
            guards: Vec::new(),
            operations: vec![Operation::Put {
                key: key.to_string(),
                value,
                session: None,
            }],
        }]);
    }

    pub(crate) fn entry_count(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn would_accept(&self, changes: &ChangeSet) -> bool {
        changes.guards.iter().all(|guard| {
            let entry = |key: &String| self.entries.get(key);
            match guard {
                Guard::Absent(key) => entry(key).is_none(),
                Guard::Modified(key, at) => entry(key).is_some_and(|e| e.mod_revision == *at),
                Guard::Created(key, at) => entry(key).is_some_and(|e| e.create_revision == *at),
            }
        })
    }

    /// Applies each set at a revision of its own, as a store with small transactions would.
    pub(crate) fn apply(&mut self, sets: &[ChangeSet]) {
        for set in sets {
            assert!(self.would_accept(set), "refused: {set:?}");
            let revision = self.image.revision().next();
            let changes = set
                .operations
                .iter()
                .map(|op| self.change(op, revision))
                .collect();
            let batch = Batch { revision, changes };
            self.image = self.image.advanced_by(&batch).expect("readable values");
        }
    }

    fn change(&mut self, operation: &Operation, revision: Revision) -> Change {
        match operation {
            Operation::Put {
                key,
                value,
                session,
            } => {
                let entry = Entry {
                    key: Arc::from(key.as_str()),
                    value: value.clone(),
                    create_revision: self
                        .entries
                        .get(key)
                        .map_or(revision, |old| old.create_revision),
                    mod_revision: revision,
                    session: *session,
                };
                self.entries.insert(key.clone(), entry.clone());
                Change::Put(entry)
            }
            Operation::Delete { key } => {
                self.entries.remove(key);
                Change::Delete(Arc::from(key.as_str()))
            }
        }
    }
}

pub(crate) fn registration() -> BrokerValue {
    BrokerValue {
        incarnation: "first".to_owned(),
        endpoints: Vec::new(),
        rack: None,
        boot_id: "boot".to_owned(),
        directories: vec!["disk".to_owned()],
        clean_shutdown_epoch: None,
        damaged: false,
    }
}
