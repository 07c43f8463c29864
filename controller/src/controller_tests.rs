use yuxi_protocol::ids::PartitionId;

use super::*;
use crate::{
    decide::{
        configs::{ConfigChange, ConfigStep},
        isr::IsrProposal,
        testing::{registration, settings},
        topics::ManualAssignment,
    },
    image::TopicChange,
    keys::{ConfigScope, DaemonValue, LeaderRecovery},
    store::{EmbeddedStore, StoreError},
};

const DEADLINE: Duration = Duration::from_mins(1);

fn options(node: i32) -> ControllerOptions {
    ControllerOptions {
        node_id: BrokerId::new(node),
        settings: Arc::new(settings()),
        session_ttl: Duration::from_secs(10),
        endpoint: None,
        campaign: Campaign::OnceRegistered,
        is_alone: false,
        cluster_id: None,
        seed: None,
    }
}

fn life(incarnation: &str) -> BrokerValue {
    BrokerValue {
        incarnation: incarnation.to_owned(),
        ..registration()
    }
}

async fn broker(store: &EmbeddedStore, node: i32) -> (Controller, BrokerEpoch) {
    let controller = Controller::start(store.clone(), options(node))
        .await
        .unwrap();
    let epoch = register(&controller, "first").await;
    (controller, epoch)
}

async fn register(controller: &Controller, incarnation: &str) -> BrokerEpoch {
    let registering = controller.register_broker(life(incarnation));
    let registered = tokio::time::timeout(DEADLINE, registering).await;
    let registered = registered.expect("a new broker in the image has the controller compare anew");
    registered.expect("let in")
}

fn topic(name: &str, partitions: i32, replication_factor: i16) -> NewTopic {
    NewTopic {
        adopted: None,
        name: name.to_owned(),
        partitions,
        replication_factor,
        assignments: Vec::new(),
        configs: Vec::new(),
    }
}

#[track_caller]
fn all_ok<T>(answers: Answers<T>) -> Vec<T> {
    answers
        .into_iter()
        .map(|answer| answer.expect("success"))
        .collect()
}

async fn until(
    controller: &Controller,
    holds: impl Fn(&ClusterImage) -> bool,
) -> Arc<ClusterImage> {
    let mut images = controller.subscribe();
    let wait = images.wait_for(|image| holds(image));
    let image = tokio::time::timeout(DEADLINE, wait)
        .await
        .expect("in time")
        .unwrap();
    Arc::clone(&image)
}

#[tokio::test]
async fn a_lone_broker_founds_a_cluster_takes_the_seal_and_leads_what_is_created() {
    let (controller, epoch) = broker(&EmbeddedStore::in_memory(), 1).await;
    let image = controller.image();
    assert_eq!(image.cluster_id().unwrap().len(), 22);
    assert_eq!(image.controller().unwrap().node_id, BrokerId::new(1));
    assert_eq!(image.broker(BrokerId::new(1)).unwrap().epoch, epoch);
    all_ok(
        controller
            .create_topics(vec![topic("t", 3, -1)], false)
            .await,
    );
    // The caller finds its change without waiting.
    let image = controller.image();
    let state = image.partition("t", PartitionId::new(2)).unwrap();
    assert_eq!(state.leader, BrokerId::new(1));
    assert_eq!(state.isr, [BrokerId::new(1)]);
}

#[tokio::test]
async fn what_is_only_validated_is_not_done() {
    let (controller, _) = broker(&EmbeddedStore::in_memory(), 1).await;
    let before = controller.image().revision();
    let asked = vec![topic("t", 2, 1), topic("..", 1, 1)];
    let answers = controller.create_topics(asked, true).await;
    assert_eq!(answers[0].as_ref().unwrap().partitions, 2);
    assert!(answers[1].is_err());
    assert_eq!(controller.image().revision(), before);
}

#[tokio::test]
async fn topics_configs_and_partitions_change_and_the_image_says_how() {
    let (controller, _) = broker(&EmbeddedStore::in_memory(), 1).await;
    let empty = controller.image();
    let asked = vec![topic("a", 200, 1), topic("b", 1, 1)];
    let created = all_ok(controller.create_topics(asked, false).await);
    let two = controller.image();
    let changes = two.changes_since(&empty);
    assert!(matches!(
        changes.topics[..],
        [TopicChange::Created(_), TopicChange::Created(_)]
    ));
    assert!(!changes.brokers);

    let grown = NewPartitions {
        topic: "a".to_owned(),
        count: 201,
        assignments: None,
    };
    all_ok(controller.create_partitions(vec![grown], false).await);
    let larger = controller.image();
    let changes = larger.changes_since(&two);
    let [TopicChange::Changed { old, new }] = changes.topics[..] else {
        panic!("{changes:?}");
    };
    let changed: Vec<i32> = new
        .changed_partitions(old)
        .map(|(id, _)| id.value())
        .collect();
    assert_eq!(changed, [200]);

    let scope = ConfigScope::Topic("b".into());
    let alteration = ConfigAlteration {
        scope: scope.clone(),
        change: ConfigChange::Incremental(vec![(
            "retention.ms".to_owned(),
            ConfigStep::Set("5".to_owned()),
        )]),
    };
    all_ok(controller.alter_configs(vec![alteration], false).await);
    let configured = controller.image();
    assert_eq!(configured.config_value(&scope, "retention.ms"), Some("5"));
    assert_eq!(configured.changes_since(&larger).configs, [&scope]);

    // Deleted and made again, it is another topic.
    all_ok(
        controller
            .delete_topics(vec![TopicSelector::Id(created[1].id)])
            .await,
    );
    assert!(controller.image().config(&scope).is_none());
    all_ok(
        controller
            .create_topics(vec![topic("b", 1, 1)], false)
            .await,
    );
    let again = controller.image();
    let changes = again.changes_since(&configured);
    assert!(matches!(
        changes.topics[..],
        [TopicChange::Deleted(_), TopicChange::Created(_)]
    ));
}

#[tokio::test]
async fn everything_but_the_sessions_is_there_after_a_restart_and_epochs_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let open = || EmbeddedStore::open(directory.path()).unwrap();
    let (controller, first) = broker(&open(), 1).await;
    all_ok(
        controller
            .create_topics(vec![topic("t", 300, 1)], false)
            .await,
    );
    let block = controller.allocate_producer_ids().await.unwrap();
    let before = controller.image();
    controller.stop().await;
    drop(controller);

    let controller = Controller::start(open(), options(1)).await.unwrap();
    assert_eq!(controller.image().cluster_id(), before.cluster_id());
    assert_eq!(controller.image().registrations().count(), 0);
    let second = register(&controller, "second").await;
    assert!(second > first);
    let image = controller.image();
    assert!(image.controller().unwrap().epoch > before.controller().unwrap().epoch);
    let t = image.topic("t").unwrap();
    assert_eq!(t.id, before.topic("t").unwrap().id);
    assert_eq!(t.partitions().count(), 300);
    for (_, state) in t.partitions() {
        assert_eq!(state.leader, BrokerId::new(1));
        // Another process leads in another epoch.
        assert_eq!(state.leader_epoch.value(), 1);
    }
    let next = controller.allocate_producer_ids().await.unwrap();
    assert_eq!(
        next.first.value(),
        block.first.value() + i64::from(block.count)
    );
}

#[tokio::test]
async fn a_store_that_another_process_has_open_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path()).unwrap();
    let (controller, _) = broker(&store, 1).await;
    assert!(matches!(
        EmbeddedStore::open(directory.path()),
        Err(StoreError::Unavailable(_))
    ));
    controller.stop().await;
}

#[tokio::test]
async fn when_the_controller_dies_another_takes_the_seal_and_names_new_leaders() {
    let store = EmbeddedStore::in_memory();
    let (one, _) = broker(&store, 1).await;
    let (two, _) = broker(&store, 2).await;
    let (three, _) = broker(&store, 3).await;
    all_ok(one.create_topics(vec![topic("t", 9, 3)], false).await);
    let first = one.image().controller().unwrap().clone();
    assert_eq!(first.node_id, BrokerId::new(1));
    let led = |image: &ClusterImage, id: i32| {
        let t = image.topic("t").unwrap();
        t.partitions()
            .filter(|(_, s)| s.leader == BrokerId::new(id))
            .count()
    };
    assert_eq!(led(&one.image(), 1), 3);
    one.stop().await;
    for survivor in [&two, &three] {
        let image = until(survivor, |image| {
            image
                .controller()
                .is_some_and(|now| now.node_id != BrokerId::new(1))
                && image.topic("t").is_some_and(|_| led(image, 1) == 0)
        })
        .await;
        assert!(image.controller().unwrap().epoch > first.epoch);
        assert_eq!(led(&image, 2) + led(&image, 3), 9);
    }
}

#[tokio::test]
async fn two_brokers_can_not_have_one_id() {
    let store = EmbeddedStore::in_memory();
    let (_one, _) = broker(&store, 1).await;
    let same = ControllerOptions {
        session_ttl: Duration::from_millis(100),
        ..options(1)
    };
    let same = Controller::start(store, same).await.unwrap();
    let elsewhere = BrokerValue {
        directories: vec!["another disk".to_owned()],
        ..life("another")
    };
    assert_eq!(
        same.register_broker(elsewhere).await,
        Err(ControllerError::DuplicateBrokerRegistration(1))
    );
}

#[tokio::test]
async fn a_broker_and_a_daemon_can_not_have_one_id_either() {
    let store = EmbeddedStore::in_memory();
    let daemon = |incarnation: &str| DaemonValue {
        incarnation: incarnation.to_owned(),
        endpoint: None,
    };
    let (_one, _) = broker(&store, 1).await;
    let two = Controller::start(store.clone(), options(2)).await.unwrap();
    two.register_daemon(daemon("first")).await.unwrap();
    for (node, as_broker) in [(1, false), (2, false), (2, true)] {
        let late = ControllerOptions {
            session_ttl: Duration::from_millis(100),
            ..options(node)
        };
        let late = Controller::start(store.clone(), late).await.unwrap();
        let answer = if as_broker {
            late.register_broker(life("late")).await.map(|_| ())
        } else {
            late.register_daemon(daemon("late")).await
        };
        let refused = Err(ControllerError::DuplicateBrokerRegistration(node));
        assert_eq!(answer, refused, "node {node} as a broker: {as_broker}");
    }
    // Once it is gone, its number is free.
    let next = Controller::start(store.clone(), options(2)).await.unwrap();
    let registering = tokio::spawn(async move { next.register_daemon(daemon("next")).await });
    two.stop().await;
    registering.await.unwrap().unwrap();
}

#[tokio::test]
async fn min_insync_replicas_is_the_first_controllers_whatever_others_were_started_with() {
    let store = EmbeddedStore::in_memory();
    let started_with = |node, min: &str| {
        let given = [("min.insync.replicas".to_owned(), min.to_owned())];
        ControllerOptions {
            settings: Arc::new(ServerSettings::from_properties("", &given).unwrap()),
            ..options(node)
        }
    };
    let one = Controller::start(store.clone(), started_with(1, "2"))
        .await
        .unwrap();
    register(&one, "first").await;
    let two = Controller::start(store.clone(), started_with(2, "1"))
        .await
        .unwrap();
    register(&two, "first").await;
    one.stop().await;
    let image = until(&two, |image| {
        let now = image.controller().map(|now| now.node_id);
        now == Some(BrokerId::new(2)) && image.registration(BrokerId::new(1)).is_none()
    })
    .await;
    let of = |image: &ClusterImage| {
        let value = image.config_value(&ConfigScope::Cluster, "min.insync.replicas");
        value.map(ToOwned::to_owned)
    };
    assert_eq!(of(&image).as_deref(), Some("2"));
    // An answer of the second means that it has reconciled.
    all_ok(two.create_topics(vec![topic("t", 1, 1)], false).await);
    assert_eq!(of(&two.image()).as_deref(), Some("2"));
}

#[tokio::test]
async fn a_broker_that_comes_back_waits_until_its_last_registration_is_gone() {
    let store = EmbeddedStore::in_memory();
    let (one, first) = broker(&store, 1).await;
    let again = Controller::start(store, options(1)).await.unwrap();
    let registering = tokio::spawn({
        let again = again.clone();
        let rebooted = BrokerValue {
            boot_id: "another boot".to_owned(),
            ..life("second")
        };
        async move { again.register_broker(rebooted).await }
    });
    one.stop().await;
    let second = registering.await.unwrap().unwrap();
    assert!(second > first);
    assert_eq!(
        again.image().broker(BrokerId::new(1)).unwrap().epoch,
        second
    );
}

#[tokio::test]
async fn a_session_that_ends_under_a_live_broker_is_replaced_under_a_new_epoch() {
    let store = EmbeddedStore::in_memory();
    let (one, first) = broker(&store, 1).await;
    let session = one.image().controller().unwrap().session.unwrap();
    store.close_session(session).await.unwrap();
    let image = until(&one, |image| {
        image
            .broker(BrokerId::new(1))
            .is_some_and(|broker| broker.epoch > first)
            && image
                .controller()
                .is_some_and(|now| now.session != Some(session))
    })
    .await;
    assert!(image.is_active(BrokerId::new(1)));
    all_ok(one.create_topics(vec![topic("t", 1, 1)], false).await);
}

#[tokio::test]
async fn a_leader_shrinks_its_isr_through_the_handle() {
    let store = EmbeddedStore::in_memory();
    let (one, _) = broker(&store, 1).await;
    let (_two, _) = broker(&store, 2).await;
    let created = all_ok(one.create_topics(vec![topic("t", 1, 2)], false).await);
    let image = one.image();
    let state = image.partition("t", PartitionId::new(0)).unwrap();
    let epoch = |id| image.broker(id).unwrap().epoch;
    let answers = one
        .alter_partitions(IsrProposals {
            broker: state.leader,
            broker_epoch: epoch(state.leader),
            partitions: vec![IsrProposal {
                topic: created[0].id,
                partition: PartitionId::new(0),
                leader_epoch: state.leader_epoch,
                partition_epoch: state.partition_epoch,
                isr: vec![(state.leader, Some(epoch(state.leader)))],
                leader_recovery: LeaderRecovery::Recovered,
            }],
        })
        .await;
    let answer = all_ok(answers).remove(0);
    assert_eq!(
        one.image().partition("t", PartitionId::new(0)),
        Some(&answer)
    );
    assert_eq!((answer.isr.len(), answer.partition_epoch), (1, 1));
}

#[tokio::test]
async fn a_controlled_shutdown_hands_over_before_the_broker_goes() {
    let store = EmbeddedStore::in_memory();
    let (one, epoch) = broker(&store, 1).await;
    let (_two, _) = broker(&store, 2).await;
    all_ok(
        one.create_topics(vec![topic("t", 4, 2), topic("alone", 2, 1)], false)
            .await,
    );
    assert_eq!(one.shut_down_broker(epoch).await, Ok(1));
    let image = one.image();
    let t = image.topic("t").unwrap();
    assert!(
        t.partitions()
            .all(|(_, state)| state.leader == BrokerId::new(2))
    );
}

#[tokio::test]
async fn a_call_of_many_topics_or_partitions_takes_several_transactions_and_is_seen_whole() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path()).unwrap();
    let (controller, _) = broker(&store, 1).await;
    let many = (0..1000).map(|i| topic(&format!("t{i}"), 1, 1)).collect();
    all_ok(controller.create_topics(many, false).await);
    assert_eq!(controller.image().topic_count(), 1000);
    all_ok(
        controller
            .create_topics(vec![topic("large", 20_000, 1)], false)
            .await,
    );
    let image = controller.image();
    assert_eq!(image.topic("large").unwrap().partitions().count(), 20_000);
    let names = image
        .topics()
        .map(|topic| TopicSelector::Name(topic.name.to_string()))
        .collect();
    all_ok(controller.delete_topics(names).await);
    assert_eq!(controller.image().topic_count(), 0);
    assert_eq!(controller.image().orphaned_chunks().count(), 0);
}

#[tokio::test]
async fn leaders_go_back_by_themselves_to_a_broker_that_returned() {
    let store = EmbeddedStore::in_memory();
    let every_second = [(
        "leader.imbalance.check.interval.seconds".to_owned(),
        "1".to_owned(),
    )];
    let settings = ServerSettings::from_properties("", &every_second).unwrap();
    let options = ControllerOptions {
        settings: Arc::new(settings),
        ..options(1)
    };
    let one = Controller::start(store.clone(), options).await.unwrap();
    register(&one, "first").await;
    let (two, _) = broker(&store, 2).await;
    let assigned = NewTopic {
        assignments: vec![ManualAssignment {
            partition: PartitionId::new(0),
            replicas: vec![BrokerId::new(2), BrokerId::new(1)],
        }],
        ..topic("t", -1, -1)
    };
    let created = all_ok(one.create_topics(vec![assigned], false).await);
    two.stop().await;
    let led_by = |id: i32| {
        move |image: &ClusterImage| {
            let state = image.partition("t", PartitionId::new(0));
            state.is_some_and(|state| state.leader == BrokerId::new(id))
        }
    };
    until(&one, led_by(1)).await;
    let (_two, epoch) = broker(&store, 2).await;
    // It leads again once it is in sync, and not before.
    let image = until(&one, |image| image.is_active(BrokerId::new(2))).await;
    let state = image.partition("t", PartitionId::new(0)).unwrap();
    let leader = image.broker(state.leader).unwrap();
    let proposal = IsrProposals {
        broker: leader.id,
        broker_epoch: leader.epoch,
        partitions: vec![IsrProposal {
            topic: created[0].id,
            partition: PartitionId::new(0),
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            isr: vec![
                (leader.id, Some(leader.epoch)),
                (BrokerId::new(2), Some(epoch)),
            ],
            leader_recovery: LeaderRecovery::Recovered,
        }],
    };
    all_ok(one.alter_partitions(proposal).await);
    until(&one, led_by(2)).await;
}

#[tokio::test]
async fn after_a_stop_calls_are_refused_rather_than_left_waiting() {
    let (controller, _) = broker(&EmbeddedStore::in_memory(), 1).await;
    controller.stop().await;
    let answers = controller
        .create_topics(vec![topic("t", 1, 1)], false)
        .await;
    assert_eq!(answers, vec![Err(ControllerError::Stopped)]);
    controller.stop().await;
}
