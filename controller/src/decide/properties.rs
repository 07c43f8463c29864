//! Whatever happens, in whatever order: the states of a partition keep their invariants,
//! and only an unclean election can lose an acknowledged record.
//!
//! The model knows nothing of the ELR. It knows who *certainly* has every acknowledged
//! record, if each leader acknowledges whatever it may (I3), every replica that joins an
//! ISR has caught up with its leader (I4), and disks and page caches lose what they can.

use std::collections::BTreeSet;

use proptest::prelude::*;
use yuxi_protocol::ids::{BrokerId, PartitionId};

use super::{
    brokers,
    elections::{ElectionKind, Elections, elect, rebalance},
    reassignment::{Reassignment, Reassignments, reassign},
    testing::{Cluster, id, ids, registration, settings},
};
use crate::keys::{BrokerValue, ConfigScope, Key, LeaderRecovery, PartitionState, print_value};

const BROKERS: i32 = 5;

/// One thing that happens. Numbers choose among what is possible just then.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// These brokers die before anybody looks.
    Gone(u8),
    /// A broker comes back, or is replaced by a new process before anybody noticed.
    Back(i32, Return),
    /// A broker asks to shut down.
    ShutDown(i32),
    /// The leader proposes these of its replicas that live.
    Propose(u8),
    /// An operator wants these replicas, beginning at the given one.
    Reassign(u8, i32),
    Cancel,
    Elect(Wish),
    Rebalance,
    Unregister(i32),
}

#[derive(Clone, Copy, Debug)]
enum Return {
    Killed,
    Clean,
    PowerFailure,
    Wiped,
    Damaged,
    /// On a copy of its disk from an earlier life.
    PutBack,
}

#[derive(Clone, Copy, Debug)]
enum Wish {
    Preferred,
    Unclean,
}

fn event() -> impl Strategy<Value = Event> {
    let broker = || 1..=BROKERS;
    let how = prop_oneof![
        3 => Just(Return::Killed),
        2 => Just(Return::Clean),
        2 => Just(Return::PowerFailure),
        1 => Just(Return::Wiped),
        1 => Just(Return::Damaged),
        1 => Just(Return::PutBack),
    ];
    prop_oneof![
        4 => any::<u8>().prop_map(Event::Gone),
        8 => (broker(), how).prop_map(|(broker, how)| Event::Back(broker, how)),
        2 => broker().prop_map(Event::ShutDown),
        6 => any::<u8>().prop_map(Event::Propose),
        3 => (any::<u8>(), broker()).prop_map(|(mask, first)| Event::Reassign(mask, first)),
        1 => Just(Event::Cancel),
        2 => Just(Event::Elect(Wish::Preferred)),
        1 => Just(Event::Elect(Wish::Unclean)),
        1 => Just(Event::Rebalance),
        1 => broker().prop_map(Event::Unregister),
    ]
}

struct Model {
    cluster: Cluster,
    min_isr: usize,
    /// Who certainly has every acknowledged record.
    complete: BTreeSet<BrokerId>,
    /// Who lost its disk and has not been in sync since.
    empty: BTreeSet<BrokerId>,
}

impl Model {
    fn new(min_isr: usize) -> Self {
        let mut cluster = Cluster::of(BROKERS);
        let configs: crate::keys::ConfigValue =
            [("min.insync.replicas".to_owned(), min_isr.to_string())].into();
        cluster.put(&Key::Config(ConfigScope::Cluster), print_value(&configs));
        cluster.create("t", &[&[1, 2, 3]]);
        Self {
            cluster,
            min_isr,
            complete: ids(&[1, 2, 3]).into_iter().collect(),
            empty: BTreeSet::new(),
        }
    }

    fn state(&self) -> PartitionState {
        self.cluster.state("t", 0).clone()
    }

    fn happen(&mut self, event: Event) -> Result<(), TestCaseError> {
        let old = self.state();
        let mut by_operator = false;
        match event {
            Event::Gone(mask) => {
                for broker in chosen(mask, &ids(&[1, 2, 3, 4, 5])) {
                    if self.cluster.image.registration(broker).is_some() {
                        self.cluster.unregister(broker.value());
                    }
                }
                self.cluster.reconcile();
            }
            Event::Back(broker, how) => self.come_back(broker, how),
            Event::ShutDown(broker) => {
                if self.cluster.image.broker(id(broker)).is_some() {
                    let epoch = self.cluster.epoch(broker);
                    let image = &self.cluster.image;
                    let decided = brokers::shut_down(image, &settings(), id(broker), epoch);
                    self.cluster
                        .apply(&decided.expect("its epoch is current").0);
                }
            }
            Event::Propose(mask) => self.propose(&old, mask),
            Event::Reassign(mask, first) => {
                let mut replicas = chosen(mask, &ids(&[1, 2, 3, 4, 5]));
                let by = first as usize % replicas.len().max(1);
                replicas.rotate_left(by);
                self.reassign(Some(replicas));
            }
            Event::Cancel => self.reassign(None),
            Event::Elect(wish) => {
                by_operator = matches!(wish, Wish::Unclean);
                let elections = Elections {
                    kind: if by_operator {
                        ElectionKind::Unclean
                    } else {
                        ElectionKind::Preferred
                    },
                    partitions: None,
                };
                let (changes, _) = elect(&self.cluster.image, &settings(), &elections);
                self.cluster.apply(&changes);
            }
            Event::Rebalance => {
                let (changes, _) = rebalance(&self.cluster.image, &settings());
                self.cluster.apply(&changes);
            }
            Event::Unregister(broker) => {
                let image = &self.cluster.image;
                if let Ok(changes) = brokers::unregister(image, &settings(), id(broker)) {
                    self.cluster.apply(&changes);
                    self.complete.remove(&id(broker));
                }
            }
        }
        let new = self.state();
        self.check_form(&old, &new)?;
        self.check_records(&old, &new, by_operator)
    }

    fn come_back(&mut self, broker: i32, how: Return) {
        let now = self.cluster.image.revision().value();
        let last = self.cluster.image.admission(id(broker));
        let last = last.map(|last| last.value.clone());
        let same = match &last {
            Some(last) => BrokerValue {
                directories: last.directories.clone(),
                boot_id: last.boot_id.clone(),
                ..registration()
            },
            None => registration(),
        };
        let value = match how {
            Return::Killed => same,
            Return::Clean => BrokerValue {
                clean_shutdown_epoch: last.map(|last| last.broker_epoch),
                boot_id: format!("boot {now}"),
                ..same
            },
            Return::PowerFailure => BrokerValue {
                boot_id: format!("boot {now}"),
                ..same
            },
            Return::Wiped => BrokerValue {
                directories: vec![format!("disk {now}")],
                ..same
            },
            Return::Damaged => BrokerValue {
                damaged: true,
                ..same
            },
            Return::PutBack => BrokerValue {
                former_incarnations: vec!["an earlier life".to_owned()],
                ..same
            },
        };
        match how {
            Return::Killed | Return::Clean => {}
            Return::PowerFailure => {
                self.complete.remove(&id(broker));
            }
            Return::Wiped | Return::Damaged | Return::PutBack => {
                self.complete.remove(&id(broker));
                self.empty.insert(id(broker));
            }
        }
        self.cluster.register(broker, &value);
        self.cluster.reconcile();
    }

    fn propose(&mut self, old: &PartitionState, mask: u8) {
        if self.cluster.image.broker(old.leader).is_none() {
            return;
        }
        let mut isr = chosen(mask, &old.replicas);
        isr.retain(|&member| self.cluster.image.is_active(member));
        if !isr.contains(&old.leader) {
            isr.push(old.leader);
        }
        // Who joins has caught up.
        if self.complete.contains(&old.leader) {
            self.complete.extend(isr.iter().copied());
        }
        // A refusal changes nothing, which is checked like everything else.
        let _ = self.cluster.propose("t", 0, &isr);
    }

    fn reassign(&mut self, replicas: Option<Vec<BrokerId>>) {
        let request = Reassignments {
            partitions: vec![Reassignment {
                topic: "t".to_owned(),
                partition: PartitionId::new(0),
                replicas,
            }],
            allow_replication_factor_change: true,
        };
        let (changes, _) = reassign(&self.cluster.image, &settings(), &request);
        self.cluster.apply(&changes);
    }

    fn check_form(&self, old: &PartitionState, new: &PartitionState) -> Result<(), TestCaseError> {
        let within = |some: &[BrokerId], all: &[BrokerId]| some.iter().all(|id| all.contains(id));
        let apart = |a: &[BrokerId], b: &[BrokerId]| !a.iter().any(|id| b.contains(id));
        prop_assert!(new.leader == BrokerId::NONE || new.isr.contains(&new.leader));
        for some in [
            &new.isr,
            &new.elr,
            &new.adding_replicas,
            &new.removing_replicas,
            &new.lost_data,
        ] {
            prop_assert!(within(some, &new.replicas));
            let distinct: BTreeSet<_> = some.iter().collect();
            prop_assert_eq!(distinct.len(), some.len());
        }
        prop_assert!(!new.replicas.is_empty());
        prop_assert!(apart(&new.elr, &new.isr));
        prop_assert!(apart(&new.lost_data, &new.isr) && apart(&new.lost_data, &new.elr));
        prop_assert!(apart(&new.adding_replicas, &new.removing_replicas));
        // I9
        prop_assert!(new.isr.len() < self.needed(new) || new.elr.is_empty());
        prop_assert!(new.leader_epoch >= old.leader_epoch);
        prop_assert_eq!(new.partition_epoch > old.partition_epoch, new != old);
        prop_assert!(new.partition_epoch >= old.partition_epoch);
        if new.leader != old.leader {
            prop_assert!(new.leader_epoch > old.leader_epoch);
        }
        Ok(())
    }

    fn check_records(
        &mut self,
        old: &PartitionState,
        new: &PartitionState,
        by_operator: bool,
    ) -> Result<(), TestCaseError> {
        self.complete.retain(|id| new.replicas.contains(id));
        if new.leader != BrokerId::NONE && !self.complete.contains(&new.leader) {
            // Records are lost, which takes an unclean election that says so.
            prop_assert!(new.leader_epoch > old.leader_epoch);
            prop_assert_eq!(new.leader_recovery, LeaderRecovery::Recovering);
            prop_assert_eq!(&new.isr, &vec![new.leader]);
            if !by_operator {
                prop_assert!(
                    self.complete.is_empty(),
                    "{:?} have all records and could come back",
                    self.complete
                );
                prop_assert!(
                    !self.empty.contains(&new.leader) || new.replicas.len() == 1,
                    "a wiped disk leads while others have data"
                );
            }
            self.complete = [new.leader].into();
        }
        if new.leader != BrokerId::NONE && new.isr.len() >= self.needed(new) {
            // From now on there may be records that only these have.
            self.complete = new.isr.iter().copied().collect();
        }
        self.empty.retain(|id| !new.isr.contains(id));
        Ok(())
    }

    fn needed(&self, state: &PartitionState) -> usize {
        self.min_isr.min(state.replicas.len())
    }
}

fn chosen(mask: u8, of: &[BrokerId]) -> Vec<BrokerId> {
    let bits = of
        .iter()
        .enumerate()
        .filter(|(at, _)| mask & (1 << at) != 0);
    bits.map(|(_, &id)| id).collect()
}

proptest! {
    #[test]
    fn no_sequence_of_events_breaks_a_partition_or_loses_a_record_in_a_clean_election(
        min_isr in 1_usize..4,
        events in prop::collection::vec(event(), 1..80),
    ) {
        let mut model = Model::new(min_isr);
        for event in events {
            let before = model.state();
            model.happen(event).map_err(|error| {
                TestCaseError::fail(format!("{error}: {event:?} made of\n{before:?}\n{:?}", model.state()))
            })?;
        }
    }
}
