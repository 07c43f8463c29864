use rand::{SeedableRng as _, rngs::StdRng};

use super::*;
use crate::{
    decide::{
        testing::{Cluster, id, ids, registration, settings},
        topics::{self, ManualAssignment, NewTopic},
    },
    keys::{BrokerValue, LeaderRecovery},
};
use yuxi_protocol::ids::PartitionId;

fn cluster(brokers: i32, assignments: &[&[i32]], min_isr: &str) -> Cluster {
    let mut cluster = Cluster::of(brokers);
    let topic = NewTopic {
        adopted: None,
        name: "t".to_owned(),
        partitions: -1,
        replication_factor: -1,
        assignments: (0..)
            .zip(assignments)
            .map(|(partition, replicas)| ManualAssignment {
                partition: PartitionId::new(partition),
                replicas: ids(replicas),
            })
            .collect(),
        configs: vec![("min.insync.replicas".to_owned(), Some(min_isr.to_owned()))],
    };
    let mut random = StdRng::seed_from_u64(1);
    let (changes, answers) = topics::create(&cluster.image, &settings(), &[topic], &mut random);
    assert!(answers[0].is_ok(), "{answers:?}");
    cluster.apply(&changes);
    cluster
}

#[track_caller]
fn check(cluster: &Cluster, partition: i32, leader: i32, isr: &[i32], elr: &[i32]) {
    let state = cluster.state("t", partition);
    assert_eq!(
        (state.leader, state.isr.clone(), state.elr.clone()),
        (id(leader), ids(isr), ids(elr)),
        "partition {partition}"
    );
}

fn of_another_boot() -> BrokerValue {
    BrokerValue {
        boot_id: "another boot".to_owned(),
        ..registration()
    }
}

#[test]
fn a_broker_that_is_gone_leaves_every_isr_and_its_leaderships_go_to_others() {
    let mut cluster = cluster(3, &[&[1, 2, 3], &[2, 3, 1], &[3, 1, 2]], "2");
    cluster.unregister(1);
    cluster.reconcile();
    check(&cluster, 0, 2, &[2, 3], &[]);
    check(&cluster, 1, 2, &[2, 3], &[]);
    check(&cluster, 2, 3, &[3, 2], &[]);
    let epochs = [0, 1, 2].map(|p| cluster.state("t", p).leader_epoch.value());
    assert_eq!(epochs, [1, 0, 0]);
}

#[test]
fn reconciling_twice_does_nothing_the_second_time() {
    let mut cluster = cluster(3, &[&[1, 2, 3], &[2, 3, 1]], "2");
    cluster.unregister(1);
    cluster.unregister(2);
    assert!(cluster.reconcile() > 0);
    assert_eq!(cluster.reconcile(), 0);
}

#[test]
fn when_all_are_gone_the_first_eligible_one_to_return_leads() {
    let mut cluster = cluster(3, &[&[1, 2, 3]], "2");
    for broker in [1, 2, 3] {
        cluster.unregister(broker);
        cluster.reconcile();
    }
    check(&cluster, 0, -1, &[], &[2, 3]);
    cluster.register(1, &registration());
    cluster.reconcile();
    check(&cluster, 0, -1, &[], &[2, 3]);
    cluster.register(3, &registration());
    cluster.reconcile();
    check(&cluster, 0, 3, &[3], &[2]);
}

#[test]
fn a_new_controller_finds_what_happened_while_there_was_none() {
    // 1 died and 2 came back as another incarnation; nobody saw either.
    let mut cluster = cluster(3, &[&[1, 2, 3], &[2, 1, 3], &[3, 2, 1]], "1");
    cluster.unregister(1);
    cluster.register(2, &registration());
    cluster.reconcile();
    check(&cluster, 0, 2, &[2, 3], &[]);
    check(&cluster, 1, 2, &[2, 3], &[]);
    check(&cluster, 2, 3, &[3, 2], &[]);
    // 2 leads its partition in a new epoch, since it is another process.
    assert_eq!(cluster.state("t", 1).leader_epoch.value(), 1);
    assert_eq!(cluster.state("t", 2).leader_epoch.value(), 0);
    assert!(cluster.image.is_active(id(2)));
}

#[test]
fn a_broker_is_let_in_only_after_it_is_out_of_what_it_may_not_stay_in() {
    let mut cluster = cluster(2, &[&[1, 2], &[2, 1]], "1");
    cluster.register(2, &of_another_boot());
    assert!(
        !cluster.image.is_active(id(2)),
        "not before the controller says so"
    );
    let changes = reconcile(&cluster.image, &settings());
    let admission = Key::Admission(id(2)).to_string();
    let writes = |set: &ChangeSet| set.operations.iter().any(|op| op.key() == admission);
    assert_eq!(
        changes.iter().position(writes),
        Some(changes.len() - 1),
        "the admission is the last to be written"
    );
    cluster.apply(&changes);
    check(&cluster, 0, 1, &[1], &[]);
    check(&cluster, 1, 1, &[1], &[]);
    assert!(cluster.image.is_active(id(2)));
}

#[test]
fn what_a_returning_broker_may_keep_depends_on_how_it_stopped() {
    // From the broker epoch of its last life to its next registration.
    type Returning<'a> = &'a dyn Fn(BrokerEpoch) -> BrokerValue;

    let clean = |epoch| BrokerValue {
        clean_shutdown_epoch: Some(epoch),
        ..of_another_boot()
    };
    let wiped = BrokerValue {
        directories: vec!["another disk".to_owned()],
        ..registration()
    };
    let damaged = BrokerValue {
        damaged: true,
        ..registration()
    };
    let unknown_boot = BrokerValue {
        boot_id: String::new(),
        ..registration()
    };
    let stale = BrokerEpoch::new(0);
    // The directory is as an earlier life left it, with or without a mark of its clean stop.
    let put_back = BrokerValue {
        former_incarnations: vec!["life 1".to_owned()],
        ..registration()
    };
    let put_back_clean = BrokerValue {
        clean_shutdown_epoch: Some(stale),
        ..put_back.clone()
    };
    // The same process, whose session had ended.
    let same_life = |_| BrokerValue {
        incarnation: "life 2".to_owned(),
        boot_id: String::new(),
        ..registration()
    };
    // The last life never learned that it was let in, or was and another came and went.
    let never_learned = BrokerValue {
        former_incarnations: vec!["life 1".to_owned(), "life 2".to_owned()],
        ..registration()
    };
    let never_let_in = BrokerValue {
        former_incarnations: vec!["life 2".to_owned(), "life 3".to_owned()],
        ..registration()
    };
    let unknown_life = BrokerValue {
        incarnation: "another".to_owned(),
        ..registration()
    };
    let cases: [(&str, Returning<'_>, bool); 13] = [
        ("killed, same boot", &|_| registration(), true),
        ("stopped cleanly, rebooted", &clean, true),
        ("power failure", &|_| of_another_boot(), false),
        ("a clean mark of an earlier life", &|_| clean(stale), false),
        ("a wiped disk", &|_| wiped.clone(), false),
        ("a damaged log", &|_| damaged.clone(), false),
        ("no boot id", &|_| unknown_boot.clone(), false),
        ("an old copy", &|_| put_back.clone(), false),
        ("an old clean copy", &|_| put_back_clean.clone(), false),
        ("it never learned of it", &|_| never_learned.clone(), true),
        ("the next never came in", &|_| never_let_in.clone(), true),
        ("no life is known", &|_| unknown_life.clone(), false),
        ("the same life", &same_life, true),
    ];
    for (case, returning, keeps) in cases {
        let mut cluster = cluster(2, &[&[1, 2]], "2");
        let first = cluster.image.admission(id(2)).expect("it was let in");
        let former_incarnations = vec![first.value.incarnation.clone()];
        cluster.unregister(2);
        cluster.register(
            2,
            &BrokerValue {
                incarnation: "life 2".to_owned(),
                former_incarnations,
                ..registration()
            },
        );
        cluster.reconcile();
        check(&cluster, 0, 1, &[1, 2], &[]);
        let last = cluster.epoch(2);
        cluster.unregister(2);
        cluster.reconcile();
        check(&cluster, 0, 1, &[1], &[2]);
        cluster.register(2, &returning(last));
        cluster.reconcile();
        let elr: &[i32] = if keeps { &[2] } else { &[] };
        assert_eq!(cluster.state("t", 0).elr, ids(elr), "{case}");
        assert!(cluster.image.is_active(id(2)), "{case}");
    }
}

#[test]
fn the_only_replica_leads_again_after_a_power_failure_and_is_told_to_recover() {
    let mut cluster = cluster(1, &[&[1]], "1");
    cluster.unregister(1);
    cluster.register(1, &of_another_boot());
    cluster.reconcile();
    check(&cluster, 0, 1, &[1], &[]);
    let state = cluster.state("t", 0);
    assert_eq!(state.leader_recovery, LeaderRecovery::Recovering);
    assert_eq!(state.leader_epoch.value(), 1);
}

#[test]
fn a_broker_that_shuts_down_hands_over_what_others_can_take() {
    let mut cluster = cluster(3, &[&[1, 2], &[2, 1], &[1, 3]], "1");
    cluster.unregister(3);
    cluster.reconcile();
    let epoch = cluster.epoch(1);
    let (changes, still_led) = shut_down(&cluster.image, &settings(), id(1), epoch).unwrap();
    cluster.apply(&changes);
    assert_eq!(still_led, 1);
    check(&cluster, 0, 2, &[2], &[]);
    check(&cluster, 1, 2, &[2], &[]);
    check(&cluster, 2, 1, &[1], &[]);
    assert!(!cluster.image.is_active(id(1)));
    assert!(
        cluster.image.broker(id(1)).is_some(),
        "it still answers clients"
    );
    assert_eq!(cluster.reconcile(), 0, "and keeps what nobody can take");
    let stale = BrokerEpoch::new(epoch.value() - 1);
    assert_eq!(
        shut_down(&cluster.image, &settings(), id(1), stale),
        Err(ControllerError::StaleBrokerEpoch)
    );
}

#[test]
fn no_partition_is_left_on_the_broker_that_shuts_down_when_it_is_asked_twice() {
    let mut cluster = cluster(2, &[&[1, 2]], "1");
    for _ in 0..2 {
        let epoch = cluster.epoch(1);
        let (changes, still_led) = shut_down(&cluster.image, &settings(), id(1), epoch).unwrap();
        cluster.apply(&changes);
        assert_eq!(still_led, 0);
    }
    check(&cluster, 0, 2, &[2], &[]);
}

#[test]
fn states_that_belong_to_no_topic_are_removed() {
    let mut cluster = cluster(1, &[&[1]], "1");
    let orphan = Key::Partitions(topics::random_topic_id(&mut rand::rng()), 0);
    cluster.put(&orphan, crate::keys::print_partitions(0, &[]));
    let changes = remove_orphans(&cluster.image);
    assert_eq!(changes.len(), 1);
    cluster.apply(&changes);
    assert_eq!(remove_orphans(&cluster.image), []);
    check(&cluster, 0, 1, &[1], &[]);
}

#[test]
fn the_death_of_a_broker_costs_one_write_for_each_chunk() {
    let assignments: Vec<&[i32]> = vec![&[1, 2]; 300];
    let mut cluster = cluster(2, &assignments, "1");
    cluster.unregister(1);
    assert_eq!(cluster.reconcile(), 3);
    check(&cluster, 299, 2, &[2], &[]);
}

fn wiped() -> BrokerValue {
    BrokerValue {
        directories: vec!["another disk".to_owned()],
        ..registration()
    }
}

#[test]
fn the_last_leader_does_not_lead_again_on_a_wiped_disk_while_others_have_data() {
    for damaged in [false, true] {
        let mut cluster = cluster(2, &[&[1, 2]], "1");
        cluster.unregister(2);
        cluster.reconcile();
        cluster.unregister(1);
        cluster.reconcile();
        check(&cluster, 0, -1, &[], &[1]);
        let lost = if damaged {
            BrokerValue {
                damaged,
                ..registration()
            }
        } else {
            wiped()
        };
        cluster.register(1, &lost);
        cluster.reconcile();
        check(&cluster, 0, -1, &[], &[]);
        assert_eq!(cluster.state("t", 0).lost_data, ids(&[1]));
        // Nor does it after another start, which brings its records back as little.
        cluster.unregister(1);
        cluster.reconcile();
        cluster.register(1, &lost);
        cluster.reconcile();
        check(&cluster, 0, -1, &[], &[]);
        // 2 lags behind, but has most of it: the operator's word elects it, not 1.
        cluster.register(2, &registration());
        cluster.reconcile();
        check(&cluster, 0, -1, &[], &[]);
        let elections = crate::decide::elections::Elections {
            kind: crate::decide::elections::ElectionKind::Unclean,
            partitions: None,
        };
        let (changes, answers) =
            crate::decide::elections::elect(&cluster.image, &settings(), &elections);
        assert_eq!(answers.len(), 1);
        cluster.apply(&changes);
        check(&cluster, 0, 2, &[2], &[]);
        assert_eq!(cluster.state("t", 0).lost_data, ids(&[1]));
        // Once it has caught up it is as good as any.
        cluster.propose("t", 0, &ids(&[1, 2])).unwrap();
        assert!(cluster.state("t", 0).lost_data.is_empty());
    }
}

#[test]
fn the_only_replica_leads_again_on_a_wiped_disk() {
    let mut cluster = cluster(1, &[&[1]], "1");
    cluster.unregister(1);
    cluster.reconcile();
    cluster.register(1, &wiped());
    cluster.reconcile();
    check(&cluster, 0, 1, &[1], &[]);
    assert!(cluster.state("t", 0).lost_data.is_empty());
}

#[test]
fn after_a_power_failure_of_all_the_last_leader_leads_once_every_eligible_one_is_back() {
    let mut cluster = cluster(3, &[&[1, 2, 3]], "2");
    for broker in [1, 2, 3] {
        cluster.unregister(broker);
        cluster.reconcile();
    }
    check(&cluster, 0, -1, &[], &[2, 3]);
    cluster.register(3, &of_another_boot());
    cluster.reconcile();
    // 2 may yet come back with everything.
    check(&cluster, 0, -1, &[], &[2]);
    cluster.register(2, &of_another_boot());
    cluster.reconcile();
    check(&cluster, 0, 3, &[3], &[]);
    assert_eq!(
        cluster.state("t", 0).leader_recovery,
        LeaderRecovery::Recovering
    );
}

#[test]
fn unclean_elections_that_become_allowed_are_held() {
    let mut cluster = cluster(2, &[&[1, 2]], "1");
    cluster.unregister(2);
    cluster.reconcile();
    cluster.unregister(1);
    cluster.reconcile();
    cluster.register(2, &registration());
    cluster.reconcile();
    check(&cluster, 0, -1, &[], &[1]);
    let before = cluster.image.clone();
    assert!(!asks_for_reconciling(&before, &cluster.image));
    let allowed = [("unclean.leader.election.enable", "true")];
    let allowed: crate::keys::ConfigValue = allowed
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let scope = crate::keys::ConfigScope::Topic("t".into());
    cluster.put(&Key::Config(scope), print_value(&allowed));
    assert!(asks_for_reconciling(&before, &cluster.image));
    cluster.reconcile();
    check(&cluster, 0, 2, &[2], &[]);
}

#[test]
fn a_broker_is_unregistered_once_it_is_gone_and_then_counts_for_nothing() {
    let mut cluster = cluster(3, &[&[1, 2, 3]], "2");
    let unregister =
        |cluster: &Cluster, broker| unregister(&cluster.image, &settings(), id(broker));
    assert_eq!(
        unregister(&cluster, 3),
        Err(ControllerError::BrokerIsAlive(3))
    );
    assert_eq!(
        unregister(&cluster, 9),
        Err(ControllerError::BrokerIdNotRegistered(9))
    );
    for broker in [1, 2, 3] {
        cluster.unregister(broker);
        cluster.reconcile();
    }
    check(&cluster, 0, -1, &[], &[2, 3]);
    let changes = unregister(&cluster, 3).unwrap();
    cluster.apply(&changes);
    check(&cluster, 0, -1, &[], &[2]);
    assert!(cluster.image.admission(id(3)).is_none());
    // Whoever comes under its id is not taken for it.
    cluster.register(3, &registration());
    cluster.reconcile();
    check(&cluster, 0, -1, &[], &[2]);
    assert_eq!(cluster.state("t", 0).lost_data, ids(&[3]));
    cluster.register(2, &registration());
    cluster.reconcile();
    check(&cluster, 0, 2, &[2], &[]);
}

#[test]
fn a_broker_that_comes_back_while_it_is_unregistered_is_not_forgotten() {
    let mut cluster = cluster(2, &[&[1, 2]], "1");
    cluster.unregister(2);
    cluster.reconcile();
    let late = unregister(&cluster.image, &settings(), id(2)).unwrap();
    cluster.register(2, &registration());
    assert!(!cluster.would_accept(late.last().unwrap()));
}

#[test]
fn a_broker_that_registers_again_while_it_is_fenced_keeps_its_new_registration() {
    let mut cluster = cluster(2, &[&[1, 2]], "1");
    let late = fence(&cluster.image, &settings(), &[id(2)], &[]);
    let deletion = late
        .iter()
        .find(|changes| {
            let mut operations = changes.operations.iter();
            operations.any(|operation| operation.key() == Key::Broker(id(2)).to_string())
        })
        .unwrap();
    assert!(cluster.would_accept(deletion));
    cluster.unregister(2);
    cluster.register(2, &registration());
    assert!(!cluster.would_accept(deletion), "it is of another life");
}

#[test]
fn a_topic_deleted_while_a_broker_is_away_leaves_nothing_for_its_return() {
    let mut cluster = cluster(2, &[&[1, 2], &[2, 1]], "1");
    let topic = cluster.image.topic("t").unwrap().id;
    cluster.unregister(2);
    cluster.reconcile();
    let gone = topics::TopicSelector::Name("t".to_owned());
    let (changes, _) = topics::delete(&cluster.image, &[gone]);
    cluster.apply(&changes);
    let entries = cluster.entry_count();
    cluster.create("t", &[&[1]]);
    cluster.register(2, &registration());
    cluster.reconcile();
    // By its id the topic is another, and the deleted one's states are gone.
    assert_ne!(cluster.image.topic("t").unwrap().id, topic);
    assert_eq!(cluster.image.chunks_of(topic).count(), 0);
    assert!(cluster.image.topic_by_id(topic).is_none());
    assert_eq!(
        cluster.entry_count(),
        entries + 3,
        "the topic, its states, the broker"
    );
}
