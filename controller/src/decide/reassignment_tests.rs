use super::*;
use crate::decide::{
    brokers,
    testing::{Cluster, id, ids, registration, settings},
    topics::{NewPartitions, TopicSelector, delete, grow},
};

/// Five brokers and partition 0 of `t` on 1, 2 and 3.
fn cluster() -> Cluster {
    let mut cluster = Cluster::of(5);
    cluster.create("t", &[&[1, 2, 3]]);
    cluster
}

fn ask(cluster: &mut Cluster, replicas: Option<&[i32]>) -> Result<(), ControllerError> {
    try_ask(cluster, 0, replicas, true)
}

fn try_ask(
    cluster: &mut Cluster,
    partition: i32,
    replicas: Option<&[i32]>,
    allow_replication_factor_change: bool,
) -> Result<(), ControllerError> {
    let request = Reassignments {
        partitions: vec![Reassignment {
            topic: "t".to_owned(),
            partition: PartitionId::new(partition),
            replicas: replicas.map(ids),
        }],
        allow_replication_factor_change,
    };
    let (changes, mut answers) = reassign(&cluster.image, &settings(), &request);
    cluster.apply(&changes);
    answers.remove(0)
}

/// Replicas, adding, removing, ISR, leader.
#[track_caller]
fn check(
    cluster: &Cluster,
    replicas: &[i32],
    adding: &[i32],
    removing: &[i32],
    isr: &[i32],
    leader: i32,
) {
    let state = cluster.state("t", 0);
    assert_eq!(
        (
            &state.replicas,
            &state.adding_replicas,
            &state.removing_replicas,
            &state.isr,
            state.leader
        ),
        (
            &ids(replicas),
            &ids(adding),
            &ids(removing),
            &ids(isr),
            id(leader)
        )
    );
}

#[test]
fn replicas_are_added_catch_up_and_take_over_from_those_that_leave() {
    let mut cluster = cluster();
    ask(&mut cluster, Some(&[4, 5, 3])).unwrap();
    check(&cluster, &[4, 5, 3, 1, 2], &[4, 5], &[1, 2], &[1, 2, 3], 1);
    assert_eq!(cluster.state("t", 0).leader_epoch.value(), 0);
    cluster.propose("t", 0, &ids(&[1, 2, 3, 4])).unwrap();
    check(
        &cluster,
        &[4, 5, 3, 1, 2],
        &[4, 5],
        &[1, 2],
        &[1, 2, 3, 4],
        1,
    );
    // The last of the target joins: the leader is one that goes, and is told so.
    assert_eq!(
        cluster.propose("t", 0, &ids(&[1, 2, 3, 4, 5])),
        Err(ControllerError::NewLeaderElected)
    );
    check(&cluster, &[4, 5, 3], &[], &[], &[3, 4, 5], 4);
    let state = cluster.state("t", 0);
    assert_eq!((state.leader_epoch.value(), state.partition_epoch), (1, 3));
}

#[test]
fn a_leader_that_stays_is_told_the_result_and_leads_in_a_new_epoch() {
    let mut cluster = cluster();
    ask(&mut cluster, Some(&[1, 4, 5])).unwrap();
    let state = cluster.propose("t", 0, &ids(&[1, 2, 3, 4, 5])).unwrap();
    assert_eq!(&state, cluster.state("t", 0));
    check(&cluster, &[1, 4, 5], &[], &[], &[1, 4, 5], 1);
    // 2 and 3 may still fetch; in the new epoch their fetches are refused.
    assert_eq!(state.leader_epoch.value(), 1);
}

#[test]
fn another_order_or_fewer_replicas_need_no_catching_up() {
    let mut cluster = cluster();
    ask(&mut cluster, Some(&[3, 1, 2])).unwrap();
    check(&cluster, &[3, 1, 2], &[], &[], &[1, 2, 3], 1);
    ask(&mut cluster, Some(&[2])).unwrap();
    check(&cluster, &[2], &[], &[], &[2], 2);
    ask(&mut cluster, Some(&[2])).unwrap();
    assert_eq!(cluster.state("t", 0).partition_epoch, 2, "nothing to do");
}

#[test]
fn one_that_stays_but_is_away_holds_the_reassignment_up_until_it_is_in_sync() {
    let mut cluster = cluster();
    cluster.unregister(3);
    cluster.reconcile();
    ask(&mut cluster, Some(&[1, 3])).unwrap();
    check(&cluster, &[1, 3, 2], &[], &[2], &[1, 2], 1);
    cluster.register(3, &registration());
    cluster.reconcile();
    check(&cluster, &[1, 3, 2], &[], &[2], &[1, 2], 1);
    cluster.propose("t", 0, &ids(&[1, 2, 3])).unwrap();
    check(&cluster, &[1, 3], &[], &[], &[1, 3], 1);
}

#[test]
fn a_cancelled_one_goes_back_to_the_replicas_before_it() {
    let mut cluster = cluster();
    assert_eq!(
        ask(&mut cluster, None),
        Err(ControllerError::NoReassignmentInProgress)
    );
    ask(&mut cluster, Some(&[4, 2, 3])).unwrap();
    cluster.propose("t", 0, &ids(&[1, 2, 4])).unwrap();
    ask(&mut cluster, None).unwrap();
    check(&cluster, &[2, 3, 1], &[], &[], &[1, 2], 1);
    assert_eq!(
        ask(&mut cluster, None),
        Err(ControllerError::NoReassignmentInProgress)
    );
}

#[test]
fn cancelling_does_not_take_the_only_replica_that_has_everything() {
    let mut cluster = cluster();
    ask(&mut cluster, Some(&[4])).unwrap();
    // The leader falls behind no one, but the others do and then it dies.
    cluster.propose("t", 0, &ids(&[1, 2, 3])).unwrap();
    let mut state = cluster.state("t", 0).clone();
    state.isr = ids(&[4]);
    state.leader = id(4);
    let topic = cluster.image.topic("t").unwrap().id;
    let key = crate::keys::Key::Partitions(topic, 0);
    cluster.put(&key, crate::keys::print_partitions(0, [&state]));
    assert!(matches!(
        ask(&mut cluster, None),
        Err(ControllerError::InvalidReplicaAssignment(_))
    ));
    check(&cluster, &[4, 1, 2, 3], &[4], &[1, 2, 3], &[4], 4);
}

#[test]
fn a_second_one_replaces_the_first_and_can_be_cancelled_to_the_beginning() {
    let mut cluster = cluster();
    ask(&mut cluster, Some(&[4, 2, 3])).unwrap();
    cluster.propose("t", 0, &ids(&[1, 2, 3])).unwrap();
    ask(&mut cluster, Some(&[5, 2, 3])).unwrap();
    check(&cluster, &[5, 2, 3, 1], &[5], &[1], &[1, 2, 3], 1);
    ask(&mut cluster, None).unwrap();
    check(&cluster, &[2, 3, 1], &[], &[], &[1, 2, 3], 1);
}

#[test]
fn a_replaced_one_keeps_what_has_caught_up_already() {
    let mut cluster = cluster();
    ask(&mut cluster, Some(&[4, 2, 3])).unwrap();
    ask(&mut cluster, Some(&[4, 5, 3])).unwrap();
    check(&cluster, &[4, 5, 3, 2, 1], &[4, 5], &[2, 1], &[1, 2, 3], 1);
    // Back to where it was is an end of it.
    ask(&mut cluster, Some(&[1, 2, 3])).unwrap();
    check(&cluster, &[1, 2, 3], &[], &[], &[1, 2, 3], 1);
}

#[test]
fn a_target_that_can_not_be_is_refused_and_changes_nothing() {
    let mut cluster = cluster();
    let before = cluster.image.clone();
    for replicas in [&[][..], &[1, 1], &[1, 9]] {
        let answer = ask(&mut cluster, Some(replicas));
        assert!(
            matches!(answer, Err(ControllerError::InvalidReplicaAssignment(_))),
            "{replicas:?}"
        );
    }
    assert_eq!(
        try_ask(&mut cluster, 1, Some(&[1]), true),
        Err(ControllerError::UnknownTopicOrPartition)
    );
    assert_eq!(
        try_ask(&mut cluster, 0, Some(&[1, 2]), false),
        Err(ControllerError::InvalidReplicationFactor(
            "The replication factor is changed from 3 to 2".to_owned()
        ))
    );
    assert_eq!(cluster.image, before);
    assert_eq!(try_ask(&mut cluster, 0, Some(&[1, 2, 4]), false), Ok(()));
    // While it runs the target's number is what counts.
    assert_eq!(try_ask(&mut cluster, 0, Some(&[1, 2, 5]), false), Ok(()));
}

#[test]
fn the_death_of_the_last_that_leaves_lets_a_new_controller_complete_it() {
    // The target is in sync with the leader that goes; before it can say so it dies.
    let mut cluster = cluster();
    ask(&mut cluster, Some(&[4, 5])).unwrap();
    cluster.propose("t", 0, &ids(&[1, 4])).unwrap();
    cluster.unregister(1);
    cluster.reconcile();
    check(&cluster, &[4, 5, 1, 2, 3], &[4, 5], &[1, 2, 3], &[4], 4);
    cluster.propose("t", 0, &ids(&[4, 5])).unwrap();
    check(&cluster, &[4, 5], &[], &[], &[4, 5], 4);
}

#[test]
fn it_is_not_complete_while_nobody_of_the_target_can_lead() {
    let mut cluster = cluster();
    ask(&mut cluster, Some(&[4])).unwrap();
    let epoch = cluster.epoch(4);
    // 4 is in sync at the very moment at which it shuts down.
    let late = {
        let mut at = cluster.state("t", 0).clone();
        at.isr = ids(&[1, 2, 3, 4]);
        at
    };
    let (changes, _) = brokers::shut_down(&cluster.image, &settings(), id(4), epoch).unwrap();
    cluster.apply(&changes);
    let circumstances = Circumstances {
        is_active: &|id| cluster.image.is_active(id),
        is_alive: &|id| cluster.image.broker(id).is_some(),
        min_isr: 1,
        unclean_election: false,
    };
    let target = Target::same(&late);
    assert_eq!(next_state(&late, target, &circumstances), None);
}

#[test]
fn a_topic_that_is_being_reassigned_can_be_deleted_and_grows_by_what_it_will_be() {
    let mut cluster = cluster();
    ask(&mut cluster, Some(&[4, 5])).unwrap();
    let more = NewPartitions {
        topic: "t".to_owned(),
        count: 2,
        assignments: None,
    };
    let (changes, answers) = grow(&cluster.image, &[more], &mut rand::rng());
    assert_eq!(answers, [Ok(())]);
    cluster.apply(&changes);
    assert_eq!(cluster.state("t", 1).replicas.len(), 2);
    check(
        &cluster,
        &[4, 5, 1, 2, 3],
        &[4, 5],
        &[1, 2, 3],
        &[1, 2, 3],
        1,
    );
    let (changes, _) = delete(&cluster.image, &[TopicSelector::Name("t".to_owned())]);
    cluster.apply(&changes);
    assert_eq!(cluster.image.topic_count(), 0);
}
