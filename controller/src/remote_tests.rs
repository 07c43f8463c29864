//! Two processes, in effect: controllers on one store, the second with a way to the first.

use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{LeaderEpoch, PartitionId},
};

use super::*;
use crate::{
    decide::{
        configs::{ConfigAlteration, ConfigChange, ConfigStep},
        isr::{IsrProposal, IsrProposals},
        topics::{NewPartitions, NewTopic, TopicSelector},
    },
    keys::{ConfigScope, LeaderRecovery},
    processes::{DEADLINE, Health, Process, all_ok},
    store::EmbeddedStore,
};

fn topic(name: &str) -> NewTopic {
    NewTopic {
        configs: vec![("retention.ms".to_owned(), Some("5".to_owned()))],
        ..crate::processes::topic(name, 2, 2)
    }
}

#[tokio::test]
async fn every_command_of_another_process_is_decided_by_the_controller_and_seen_by_its_caller() {
    let store = EmbeddedStore::in_memory();
    let _one = Process::start(&store, 1).await;
    let two = Process::start(&store, 2).await;
    let two = &two.controller;
    let answers = two
        .create_topics(vec![topic("t"), topic("bad name")], false)
        .await;
    assert_eq!(answers[0].as_ref().unwrap().partitions, 2);
    assert!(matches!(answers[1], Err(ControllerError::InvalidTopic(_))));
    // The caller's own image has it.
    let t = two.image().topic("t").unwrap().id;
    let only_asked = two.create_topics(vec![topic("u")], true).await;
    assert!(only_asked[0].is_ok() && two.image().topic("u").is_none());

    let more = NewPartitions {
        topic: "t".to_owned(),
        count: 3,
        assignments: None,
    };
    all_ok(two.create_partitions(vec![more], false).await);
    assert_eq!(two.image().topic("t").unwrap().partition_count(), 3);
    let scope = ConfigScope::Topic("t".into());
    let alteration = ConfigAlteration {
        scope: scope.clone(),
        change: ConfigChange::Incremental(vec![(
            "retention.ms".to_owned(),
            ConfigStep::Set("7".to_owned()),
        )]),
    };
    all_ok(two.alter_configs(vec![alteration], false).await);
    assert_eq!(two.image().config_value(&scope, "retention.ms"), Some("7"));
    let first = two.allocate_producer_ids().await.unwrap();
    let second = two.allocate_producer_ids().await.unwrap();
    assert_eq!(second.first.value(), first.first.value() + 1000);
    let deleted = two.delete_topics(vec![TopicSelector::Id(t)]).await;
    assert_eq!(all_ok(deleted)[0].name, "t");
    assert!(two.image().topic("t").is_none());
}

#[tokio::test]
async fn a_leader_elsewhere_shrinks_its_isr_and_is_told_why_it_may_not() {
    let store = EmbeddedStore::in_memory();
    let one = Process::start(&store, 1).await;
    let two = Process::start(&store, 2).await;
    all_ok(two.controller.create_topics(vec![topic("t")], false).await);
    let image = two.controller.image();
    let t = image.topic("t").unwrap();
    let (partition, state) = t
        .partitions()
        .find(|(_, state)| state.leader == BrokerId::new(2))
        .unwrap();
    let proposal = |epoch: LeaderEpoch, partition| IsrProposal {
        topic: t.id,
        partition,
        leader_epoch: epoch,
        partition_epoch: state.partition_epoch,
        isr: vec![(BrokerId::new(2), Some(two.epoch(2)))],
        leader_recovery: LeaderRecovery::Recovered,
    };
    let unknown = PartitionId::new(77);
    let partitions = vec![
        proposal(state.leader_epoch, partition),
        proposal(state.leader_epoch, unknown),
    ];
    let proposals = IsrProposals {
        broker: BrokerId::new(2),
        broker_epoch: two.epoch(2),
        partitions,
    };
    let answers = two.controller.alter_partitions(proposals.clone()).await;
    let image = two.controller.image();
    let seen = image.partition("t", partition).unwrap();
    assert_eq!(answers[0].as_ref(), Ok(seen));
    assert_eq!(seen.isr, [BrokerId::new(2)]);
    assert_eq!(answers[1], Err(ControllerError::UnknownTopicOrPartition));
    // It rests on a state that has changed.
    let again = two.controller.alter_partitions(proposals.clone()).await;
    assert_eq!(again[0], Err(ControllerError::InvalidUpdateVersion));
    let earlier_life = IsrProposals {
        broker_epoch: one.epoch(1),
        ..proposals
    };
    let refused = two.controller.alter_partitions(earlier_life).await;
    assert_eq!(refused[0], Err(ControllerError::StaleBrokerEpoch));
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_only_where_that_is_right() {
    let store = EmbeddedStore::in_memory();
    let one = Process::start(&store, 1).await;
    let two = Process::start(&store, 2).await;
    let lose = || one.become_(Health::LosesAnAnswer);
    lose();
    let block = two.controller.allocate_producer_ids().await.unwrap();
    assert_eq!(block.first.value(), 1000, "the first block is lost");
    lose();
    let answers = two.controller.create_topics(vec![topic("t")], false).await;
    assert_eq!(answers, [Err(ControllerError::TimedOut)]);
    assert_eq!(
        ControllerError::TimedOut.error_code(),
        ErrorCode::RequestTimedOut
    );
}

#[tokio::test]
async fn a_command_waits_for_the_next_controller_and_may_be_for_this_process_then() {
    let store = EmbeddedStore::in_memory();
    let one = Process::start(&store, 1).await;
    let two = Process::start(&store, 2).await;
    // It is there, and answers nobody.
    one.become_(Health::Silent);
    let asking = tokio::spawn({
        let two = two.controller.clone();
        async move { two.create_topics(vec![topic("t")], true).await }
    });
    one.controller.stop().await;
    let answers = timeout(DEADLINE, asking).await.unwrap();
    let answers = answers.unwrap();
    assert!(
        answers[0].is_ok(),
        "decided by the only broker left: {answers:?}"
    );
    let image = two.controller.image();
    assert_eq!(image.controller().unwrap().node_id, BrokerId::new(2));
}

#[tokio::test]
async fn what_is_not_a_live_broker_of_the_cluster_changes_nothing() {
    let store = EmbeddedStore::in_memory();
    let one = Process::start(&store, 1).await;
    let two = Process::start(&store, 2).await;
    let revision = one.controller.image().revision();
    let truth = Sender {
        broker: BrokerId::new(2),
        broker_epoch: two.epoch(2),
        incarnation: two.incarnation().to_owned(),
    };
    let guessed = Sender {
        incarnation: String::new(),
        ..truth.clone()
    };
    let of_an_earlier_life = Sender {
        broker_epoch: one.epoch(1),
        ..truth.clone()
    };
    let unknown = Sender {
        broker: BrokerId::new(7),
        ..truth.clone()
    };
    for (sender, error) in [
        (&guessed, ErrorCode::ClusterAuthorizationFailed),
        (&unknown, ErrorCode::ClusterAuthorizationFailed),
        (&of_an_earlier_life, ErrorCode::StaleBrokerEpoch),
    ] {
        let request = rpc::allocate_producer_ids(sender);
        let answer = one.controller.answer_allocate_producer_ids(&request).await;
        assert_eq!(answer.error_code, error.code());
    }
    // A real broker may not speak for another.
    let request = rpc::alter_partition(
        &truth,
        &IsrProposals {
            broker: BrokerId::new(1),
            broker_epoch: one.epoch(1),
            partitions: Vec::new(),
        },
    );
    let answer = one.controller.answer_alter_partition(3, &request).await;
    assert_eq!(
        answer.error_code,
        ErrorCode::ClusterAuthorizationFailed.code()
    );
    // A process that is not the controller does not even look.
    let request = rpc::allocate_producer_ids(&truth);
    let answer = two.controller.answer_allocate_producer_ids(&request).await;
    assert_eq!(answer.error_code, ErrorCode::NotController.code());
    for data in [&b""[..], b"\0\0\0\x08", b"{}", b"{\"sender\":{}}"] {
        let request = message!(EnvelopeRequest {
            request_data: Bytes::from_static(data),
        });
        let answer = one.controller.answer_envelope(&request).await;
        assert_eq!(
            answer.error_code,
            ErrorCode::ClusterAuthorizationFailed.code()
        );
    }
    assert_eq!(one.controller.image().revision(), revision);
}
