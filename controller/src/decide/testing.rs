//! A cluster for the tests of decisions: an image that changes are applied to as the store
//! would.

use std::sync::Arc;

use bytes::Bytes;
use rand::{SeedableRng as _, rngs::StdRng};
use yuxi_protocol::ids::{BrokerEpoch, BrokerId, PartitionId, TopicId};

use super::{
    ChangeSet,
    isr::{IsrProposal, IsrProposals, alter_partitions},
    topics::{self, ManualAssignment, NewTopic},
};
use crate::{
    ControllerError,
    image::ClusterImage,
    keys::{BrokerValue, Key, LeaderRecovery, PartitionState, print_value},
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
#[derive(Clone)]
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

    /// A registration that says nothing else is of a new life, on the disks as the last one
    /// left them.
    pub(crate) fn register(&mut self, broker: i32, registration: &BrokerValue) -> BrokerEpoch {
        let mut value = registration.clone();
        if value.incarnation.is_empty() {
            value.incarnation = format!("life {}", self.image.revision());
            let last = self.image.admission(id(broker));
            if value.former_incarnations.is_empty() {
                value
                    .former_incarnations
                    .extend(last.map(|last| last.value.incarnation.clone()));
            }
        }
        self.put(&Key::Broker(id(broker)), print_value(&value));
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

    /// Creates a topic with these replicas.
    pub(crate) fn create(&mut self, topic: &str, assignments: &[&[i32]]) -> TopicId {
        let topic = NewTopic {
            adopted: None,
            name: topic.to_owned(),
            partitions: -1,
            replication_factor: -1,
            assignments: (0..)
                .map(PartitionId::new)
                .zip(assignments)
                .map(|(partition, replicas)| ManualAssignment {
                    partition,
                    replicas: ids(replicas),
                })
                .collect(),
            configs: Vec::new(),
        };
        // A topic of the same name is another.
        let mut random = StdRng::seed_from_u64(self.image.revision().value() as u64);
        let (changes, answers) = topics::create(&self.image, &settings(), &[topic], &mut random);
        self.apply(&changes);
        answers[0].as_ref().expect("a legal topic").id
    }

    /// What the leader of a partition proposes as its ISR, every member in its current
    /// incarnation.
    pub(crate) fn propose(
        &mut self,
        topic: &str,
        partition: i32,
        isr: &[BrokerId],
    ) -> Result<PartitionState, ControllerError> {
        let state = self.state(topic, partition);
        let epoch = |id| self.image.broker(id).map(|broker| broker.epoch);
        let proposals = IsrProposals {
            broker: state.leader,
            broker_epoch: epoch(state.leader).unwrap_or(BrokerEpoch::new(-1)),
            partitions: vec![IsrProposal {
                topic: self.image.topic(topic).expect("the topic exists").id,
                partition: PartitionId::new(partition),
                leader_epoch: state.leader_epoch,
                partition_epoch: state.partition_epoch,
                isr: isr.iter().map(|&id| (id, epoch(id))).collect(),
                leader_recovery: LeaderRecovery::Recovered,
            }],
        };
        let (changes, mut answers) = alter_partitions(&self.image, &settings(), &proposals);
        self.apply(&changes);
        answers.remove(0)
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
        incarnation: String::new(),
        endpoints: Vec::new(),
        rack: None,
        boot_id: "boot".to_owned(),
        directories: vec!["disk".to_owned()],
        former_incarnations: Vec::new(),
        clean_shutdown_epoch: None,
        candidate: true,
        damaged: false,
    }
}
