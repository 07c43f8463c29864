//! The model is what the disks hold. A broker follows images when it gets to it, and may die at
//! any point; what it removes it removes by [`ClusterImage::deleted_topics`] alone.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use yuxi_protocol::ids::{LeaderEpoch, PartitionId};

use super::*;
use crate::{
    decide::{
        brokers,
        testing::{Cluster, id, ids, registration, settings},
        topics::{self, Adopted, ManualAssignment, NewTopic, TopicSelector},
    },
    keys::DeletionValue,
};

fn delete(cluster: &mut Cluster, topic: TopicId) {
    let (changes, answers) = topics::delete(&cluster.image, &[TopicSelector::Id(topic)]);
    assert!(answers[0].is_ok(), "{answers:?}");
    cluster.apply(&changes);
}

#[track_caller]
fn check_named(cluster: &Cluster, topic: TopicId, brokers: &[i32]) {
    let deletion = cluster.image.deletion(topic);
    let named = deletion.map(|deletion| deletion.value.brokers.clone());
    let expected = Some(ids(brokers)).filter(|brokers| !brokers.is_empty());
    assert_eq!(named, expected);
    for broker in 1..=4 {
        let told = cluster
            .image
            .deleted_topics(id(broker))
            .any(|id| id == topic);
        assert_eq!(told, brokers.contains(&broker), "broker {broker}");
    }
}

fn confirmed(cluster: &mut Cluster, broker: i32, topics: &[TopicId]) -> usize {
    let changes = confirm(&cluster.image, id(broker), topics);
    cluster.apply(&changes);
    changes.len()
}

#[test]
fn a_deletion_is_remembered_until_every_broker_with_a_replica_has_confirmed_it() {
    let mut cluster = Cluster::of(4);
    let topic = cluster.create("t", &[&[3, 1], &[2, 1]]);
    let entries = cluster.entry_count();
    cluster.unregister(2);
    cluster.reconcile();
    check_named(&cluster, topic, &[]);
    let selector = TopicSelector::Name("t".to_owned());
    let (changes, _) = topics::delete(&cluster.image, &[selector]);
    // The controller dies after the first of its transactions, whatever that holds.
    cluster.apply(&changes[..1]);
    assert!(cluster.image.topic("t").is_none());
    check_named(&cluster, topic, &[1, 2, 3]);
    cluster.apply(&brokers::remove_orphans(&cluster.image));
    assert_eq!(confirmed(&mut cluster, 1, &[topic]), 1);
    assert_eq!(
        confirmed(&mut cluster, 1, &[topic]),
        0,
        "it is known already"
    );
    assert_eq!(confirmed(&mut cluster, 4, &[topic]), 0);
    check_named(&cluster, topic, &[2, 3]);
    // A topic of the same name is another.
    let anew = cluster.create("t", &[&[3, 1], &[4, 1]]);
    assert_eq!(confirmed(&mut cluster, 3, &[topic, topic]), 1);
    check_named(&cluster, topic, &[2]);
    check_named(&cluster, anew, &[]);
    // That it is back proves nothing.
    cluster.register(2, &registration());
    cluster.reconcile();
    check_named(&cluster, topic, &[2]);
    assert_eq!(confirmed(&mut cluster, 2, &[anew, topic]), 1);
    check_named(&cluster, topic, &[]);
    assert_eq!(
        cluster.entry_count(),
        entries,
        "as with the topic before it"
    );
}

#[test]
fn a_broker_that_is_unregistered_is_waited_for_no_more() {
    let mut cluster = Cluster::of(3);
    let (t, u) = (
        cluster.create("t", &[&[1, 3]]),
        cluster.create("u", &[&[3]]),
    );
    let v = cluster.create("v", &[&[3]]);
    cluster.unregister(3);
    cluster.reconcile();
    delete(&mut cluster, t);
    delete(&mut cluster, u);
    let changes = brokers::unregister(&cluster.image, &settings(), id(3)).unwrap();
    let forgetting = Key::Admission(id(3)).to_string();
    let unregistered = changes.iter().position(|set| {
        let mut keys = set.operations.iter().map(crate::store::Operation::key);
        keys.any(|key| key == forgetting)
    });
    let (first, rest) = changes.split_at(unregistered.expect("it is forgotten") + 1);
    // The controller dies, and the next one goes on.
    cluster.apply(first);
    check_named(&cluster, u, &[3]);
    let left = forget_unknown_brokers(&cluster.image);
    assert_eq!(left, rest, "as if nothing had come between");
    cluster.apply(&left);
    check_named(&cluster, t, &[1]);
    check_named(&cluster, u, &[]);
    assert!(forget_unknown_brokers(&cluster.image).is_empty());
    // It is still a replica of the third.
    delete(&mut cluster, v);
    check_named(&cluster, v, &[]);
}

#[test]
fn a_topic_that_exists_is_deleted_nowhere_whatever_is_said_of_it() {
    let mut cluster = Cluster::of(1);
    let topic = cluster.create("t", &[&[1]]);
    let value = DeletionValue {
        topic: "t".to_owned(),
        brokers: ids(&[1]),
    };
    cluster.put(&Key::Deletion(topic), print_value(&value));
    assert_eq!(cluster.image.deleted_topics(id(1)).count(), 0);
    delete(&mut cluster, topic);
    check_named(&cluster, topic, &[1]);
}

const BROKERS: i32 = 3;

#[derive(Clone, Copy, Debug)]
enum Event {
    /// A topic with these replicas, under one of few names.
    Create(u8, u8),
    /// Numbers choose among what there is.
    Delete(u8),
    /// A broker does what the newest image says, if it is alive.
    Follow(i32),
    /// A broker says what it has removed.
    Confirm(i32),
    Dies(i32),
    Returns(i32),
    Unregister(i32),
    /// A broker's directory gets a copy of a partition that the store knows nothing of.
    Foreign(i32),
    /// The store is put back as it was at some time before, all brokers being down.
    PutBack(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let broker = || 1..=BROKERS;
    prop_oneof![
        6 => (any::<u8>(), any::<u8>()).prop_map(|(name, mask)| Event::Create(name, mask)),
        5 => any::<u8>().prop_map(Event::Delete),
        8 => broker().prop_map(Event::Follow),
        5 => broker().prop_map(Event::Confirm),
        3 => broker().prop_map(Event::Dies),
        3 => broker().prop_map(Event::Returns),
        1 => broker().prop_map(Event::Unregister),
        1 => broker().prop_map(Event::Foreign),
        1 => any::<u8>().prop_map(Event::PutBack),
    ]
}

/// What a broker has and knows.
#[derive(Default)]
struct Disk {
    alive: bool,
    directories: BTreeSet<TopicId>,
    /// Deleted topics of which it has seen that nothing is left.
    gone: BTreeSet<TopicId>,
    aside: BTreeSet<TopicId>,
}

fn foreign(number: u8) -> TopicId {
    TopicId::from_bytes([255 - number; 16])
}

struct Model {
    cluster: Cluster,
    disks: BTreeMap<i32, Disk>,
    /// Topics that were deleted in the history that the store holds.
    deleted: BTreeSet<TopicId>,
    backups: Vec<(Cluster, BTreeSet<TopicId>)>,
    created: u8,
    foreign: u8,
}

impl Model {
    fn new() -> Self {
        let alive = || Disk {
            alive: true,
            ..Disk::default()
        };
        Self {
            cluster: Cluster::of(BROKERS),
            disks: (1..=BROKERS).map(|broker| (broker, alive())).collect(),
            deleted: BTreeSet::new(),
            backups: Vec::new(),
            created: 0,
            foreign: 0,
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Create(name, mask) => self.create(name % 3, mask),
            Event::Delete(number) => {
                let topics: Vec<_> = self.cluster.image.topics().map(|topic| topic.id).collect();
                if let Some(&topic) = topics.get(usize::from(number) % topics.len().max(1)) {
                    delete(&mut self.cluster, topic);
                    self.deleted.insert(topic);
                }
            }
            Event::Follow(broker) => return self.follow(broker),
            Event::Confirm(broker) => {
                let disk = &self.disks[&broker];
                if disk.alive {
                    let gone: Vec<_> = disk.gone.iter().copied().collect();
                    confirmed(&mut self.cluster, broker, &gone);
                }
            }
            Event::Dies(broker) => {
                if self.disk(broker).alive {
                    self.disk(broker).alive = false;
                    self.cluster.unregister(broker);
                    self.cluster.reconcile();
                }
            }
            Event::Returns(broker) => return self.come_back(broker),
            Event::Unregister(broker) => {
                let image = &self.cluster.image;
                if let Ok(changes) = brokers::unregister(image, &settings(), id(broker)) {
                    self.cluster.apply(&changes);
                }
            }
            Event::Foreign(broker) => {
                self.foreign += 1;
                let topic = foreign(self.foreign);
                self.disk(broker).directories.insert(topic);
            }
            Event::PutBack(number) => return self.put_back(number),
        }
        Ok(())
    }

    fn disk(&mut self, broker: i32) -> &mut Disk {
        self.disks.get_mut(&broker).expect("one of them")
    }

    fn create(&mut self, name: u8, mask: u8) {
        let name = format!("t{name}");
        let is_chosen = |broker: &i32| mask & (1 << broker) != 0 && self.disks[broker].alive;
        let replicas: Vec<i32> = (1..=BROKERS).filter(is_chosen).collect();
        if self.cluster.image.topic(&name).is_none() && !replicas.is_empty() {
            self.backups
                .push((self.cluster.clone(), self.deleted.clone()));
            self.created += 1;
            let assignment = ManualAssignment {
                partition: PartitionId::new(0),
                replicas: ids(&replicas),
            };
            // Ids are random, and never the same in two histories.
            let adopted = Adopted {
                id: TopicId::from_bytes([self.created; 16]),
                leader_epoch: LeaderEpoch::new(0),
            };
            let topic = NewTopic {
                name,
                partitions: -1,
                replication_factor: -1,
                assignments: vec![assignment],
                configs: Vec::new(),
                adopted: Some(adopted),
            };
            let image = &self.cluster.image;
            let (changes, _) = topics::create(image, &settings(), &[topic], &mut rand::rng());
            self.cluster.apply(&changes);
        }
    }

    /// As a broker's replicas follow an image, or are opened by the first.
    fn follow(&mut self, broker: i32) -> Result<(), TestCaseError> {
        let image = self.cluster.image.clone();
        let disk = self.disks.get_mut(&broker).expect("one of them");
        if !disk.alive {
            return Ok(());
        }
        for topic in image.deleted_topics(id(broker)) {
            disk.directories.remove(&topic);
            disk.gone.insert(topic);
            prop_assert!(self.deleted.contains(&topic), "it is not deleted");
        }
        for topic in image.topics() {
            let here = topic
                .partitions()
                .any(|(_, s)| s.replicas.contains(&id(broker)));
            if here {
                disk.directories.insert(topic.id);
            }
        }
        Ok(())
    }

    fn come_back(&mut self, broker: i32) -> Result<(), TestCaseError> {
        if self.disk(broker).alive {
            return Ok(());
        }
        let was_known = self.cluster.image.admission(id(broker)).is_some();
        self.cluster.register(broker, &registration());
        self.cluster.reconcile();
        let disk = self.disk(broker);
        disk.alive = true;
        disk.gone.clear();
        self.follow(broker)?;
        let image = self.cluster.image.clone();
        let disk = self.disks.get_mut(&broker).expect("one of them");
        let unknown = |topic: &TopicId| image.topic_by_id(*topic).is_none();
        let strays: BTreeSet<_> = disk.directories.extract_if(.., |id| unknown(id)).collect();
        prop_assert!(
            !was_known || strays.is_disjoint(&self.deleted),
            "what was deleted is set aside"
        );
        disk.aside.extend(strays);
        Ok(())
    }

    /// The cluster is stopped and started again on an older store.
    fn put_back(&mut self, number: u8) -> Result<(), TestCaseError> {
        if self.backups.is_empty() {
            return Ok(());
        }
        let at = usize::from(number) % self.backups.len();
        self.backups.truncate(at + 1);
        let (cluster, deleted) = self.backups.pop().expect("there is one");
        self.cluster = cluster;
        self.deleted = deleted;
        for broker in 1..=BROKERS {
            self.disk(broker).alive = false;
            if self.cluster.image.registration(id(broker)).is_some() {
                self.cluster.unregister(broker);
            }
            self.cluster.reconcile();
        }
        (1..=BROKERS).try_for_each(|broker| self.come_back(broker))
    }

    /// What everybody comes to who lives on undisturbed.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for broker in 1..=BROKERS {
            self.come_back(broker)?;
            self.follow(broker)?;
            self.happen(Event::Confirm(broker))?;
        }
        prop_assert_eq!(self.cluster.image.deletions().count(), 0);
        for disk in self.disks.values() {
            prop_assert!(disk.directories.is_disjoint(&self.deleted));
        }
        for number in 1..=self.foreign {
            let topic = foreign(number);
            let has =
                |disk: &Disk| disk.aside.contains(&topic) || disk.directories.contains(&topic);
            prop_assert!(self.disks.values().any(has));
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn whatever_happens_deleted_topics_go_everywhere_and_nothing_else_does(
        events in prop::collection::vec(event(), 1..100),
    ) {
        let mut model = Model::new();
        for event in events {
            model.happen(event).map_err(|error| TestCaseError::fail(format!("{error}: {event:?}")))?;
        }
        model.settle()?;
    }
}
