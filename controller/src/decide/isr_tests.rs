use rand::{SeedableRng as _, rngs::StdRng};

use super::*;
use crate::decide::{
    testing::{Cluster, id, ids, registration, settings},
    topics::{self, ManualAssignment, NewTopic},
};

/// Three brokers and partition 0 of `t` on them, led by 1.
fn cluster() -> (Cluster, TopicId) {
    let mut cluster = Cluster::of(3);
    let topic = NewTopic {
        adopted: None,
        name: "t".to_owned(),
        partitions: -1,
        replication_factor: -1,
        assignments: vec![ManualAssignment {
            partition: PartitionId::new(0),
            replicas: ids(&[1, 2, 3]),
        }],
        configs: vec![("min.insync.replicas".to_owned(), Some("2".to_owned()))],
    };
    let mut random = StdRng::seed_from_u64(1);
    let (changes, answers) = topics::create(&cluster.image, &settings(), &[topic], &mut random);
    let id = answers[0].as_ref().unwrap().id;
    cluster.apply(&changes);
    (cluster, id)
}

/// A proposal by the leader that rests on the partition as it is.
fn proposal(cluster: &Cluster, topic: TopicId, isr: &[i32]) -> IsrProposals {
    let state = cluster.state("t", 0);
    IsrProposals {
        broker: state.leader,
        broker_epoch: cluster.epoch(state.leader.value()),
        partitions: vec![IsrProposal {
            topic,
            partition: PartitionId::new(0),
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            isr: isr
                .iter()
                .map(|&member| (id(member), Some(cluster.epoch(member))))
                .collect(),
            leader_recovery: LeaderRecovery::Recovered,
        }],
    }
}

fn decide(
    cluster: &Cluster,
    proposals: &IsrProposals,
) -> (Vec<ChangeSet>, Result<PartitionState, ControllerError>) {
    let (changes, mut answers) = alter_partitions(&cluster.image, &settings(), proposals);
    (changes, answers.remove(0))
}

#[track_caller]
fn check_refused(cluster: &Cluster, proposals: &IsrProposals, expected: &ControllerError) {
    let (changes, answer) = decide(cluster, proposals);
    assert_eq!(answer.as_ref(), Err(expected));
    assert!(changes.is_empty(), "what is refused changes nothing");
}

#[test]
fn a_leader_shrinks_and_grows_its_isr_and_is_told_the_new_partition_epoch() {
    let (mut cluster, topic) = cluster();
    for (isr, partition_epoch) in [(&[1, 2][..], 1), (&[1, 2, 3], 2)] {
        let (changes, answer) = decide(&cluster, &proposal(&cluster, topic, isr));
        cluster.apply(&changes);
        let state = cluster.state("t", 0);
        assert_eq!(answer.as_ref(), Ok(state));
        assert_eq!(
            (state.isr.clone(), state.partition_epoch),
            (ids(isr), partition_epoch)
        );
        assert_eq!(state.leader_epoch.value(), 0);
    }
}

#[test]
fn the_isr_that_is_there_already_is_confirmed_without_a_change() {
    let (cluster, topic) = cluster();
    let (changes, answer) = decide(&cluster, &proposal(&cluster, topic, &[1, 2, 3]));
    assert!(changes.is_empty());
    assert_eq!(answer.as_ref(), Ok(cluster.state("t", 0)));
}

#[test]
fn a_proposal_that_rests_on_another_state_is_refused() {
    let (cluster, topic) = cluster();
    let with = |change: &dyn Fn(&mut IsrProposal)| {
        let mut proposals = proposal(&cluster, topic, &[1, 2]);
        change(&mut proposals.partitions[0]);
        proposals
    };
    let epoch = LeaderEpoch::new;
    check_refused(
        &cluster,
        &with(&|p| p.leader_epoch = epoch(-1)),
        &ControllerError::FencedLeaderEpoch,
    );
    // From the future of another controller.
    check_refused(
        &cluster,
        &with(&|p| p.leader_epoch = epoch(1)),
        &ControllerError::NotController,
    );
    check_refused(
        &cluster,
        &with(&|p| p.partition_epoch = 1),
        &ControllerError::NotController,
    );
    check_refused(
        &cluster,
        &with(&|p| p.partition_epoch = -1),
        &ControllerError::InvalidUpdateVersion,
    );
    check_refused(
        &cluster,
        &with(&|p| p.partition = PartitionId::new(1)),
        &ControllerError::UnknownTopicOrPartition,
    );
    check_refused(
        &cluster,
        &with(&|p| p.topic = TopicId::ZERO),
        &ControllerError::UnknownTopicId(TopicId::ZERO),
    );
}

#[test]
fn two_proposals_that_rest_on_the_same_epoch_are_not_both_written() {
    let (mut cluster, topic) = cluster();
    let first = decide(&cluster, &proposal(&cluster, topic, &[1, 2])).0;
    let second = decide(&cluster, &proposal(&cluster, topic, &[1, 3])).0;
    cluster.apply(&first);
    assert!(!cluster.would_accept(&second[0]));
}

#[test]
fn an_isr_that_makes_no_sense_is_refused() {
    let (cluster, topic) = cluster();
    for isr in [&[][..], &[2, 3], &[1, 1]] {
        let (changes, answer) = decide(&cluster, &proposal(&cluster, topic, isr));
        assert!(
            matches!(answer, Err(ControllerError::InvalidRequest(_))),
            "{isr:?}"
        );
        assert!(changes.is_empty());
    }
    let mut not_leader = proposal(&cluster, topic, &[1, 2]);
    not_leader.broker = id(2);
    not_leader.broker_epoch = cluster.epoch(2);
    let (_, answer) = decide(&cluster, &not_leader);
    assert!(matches!(answer, Err(ControllerError::InvalidRequest(_))));
    let mut recovering = proposal(&cluster, topic, &[1]);
    recovering.partitions[0].leader_recovery = LeaderRecovery::Recovering;
    let (_, answer) = decide(&cluster, &recovering);
    assert!(matches!(answer, Err(ControllerError::InvalidRequest(_))));
}

#[test]
fn a_member_in_another_incarnation_than_the_leader_saw_may_not_join() {
    let (mut cluster, topic) = cluster();
    let stale = proposal(&cluster, topic, &[1, 2, 3]);
    let shrunk = decide(&cluster, &proposal(&cluster, topic, &[1, 2])).0;
    cluster.apply(&shrunk);
    // 3 comes back with an empty disk, before the leader hears of it.
    let mut wiped = registration();
    wiped.directories = vec!["another disk".to_owned()];
    cluster.register(3, &wiped);
    let mut late = proposal(&cluster, topic, &[1, 2, 3]);
    late.partitions[0].isr.clone_from(&stale.partitions[0].isr);
    check_refused(&cluster, &late, &ControllerError::IneligibleReplica);
    cluster.reconcile();
    late.partitions[0].partition_epoch = cluster.state("t", 0).partition_epoch;
    check_refused(&cluster, &late, &ControllerError::IneligibleReplica);
    // Under its new epoch it may, once it has caught up again.
    let (_, answer) = decide(&cluster, &proposal(&cluster, topic, &[1, 2, 3]));
    assert_eq!(answer.unwrap().isr, ids(&[1, 2, 3]));
}

#[test]
fn a_broker_that_is_gone_or_shuts_down_may_not_join() {
    let (mut cluster, topic) = cluster();
    let joined = proposal(&cluster, topic, &[1, 2, 3]);
    let (changes, _) =
        crate::decide::brokers::shut_down(&cluster.image, &settings(), id(3), cluster.epoch(3))
            .unwrap();
    cluster.apply(&changes);
    let mut late = proposal(&cluster, topic, &[1, 2]);
    late.partitions[0].isr.clone_from(&joined.partitions[0].isr);
    check_refused(&cluster, &late, &ControllerError::IneligibleReplica);
    cluster.unregister(3);
    check_refused(&cluster, &late, &ControllerError::IneligibleReplica);
}

#[test]
fn an_earlier_incarnation_of_the_leader_is_not_listened_to() {
    let (mut cluster, topic) = cluster();
    let old = proposal(&cluster, topic, &[1]);
    cluster.register(1, &registration());
    cluster.reconcile();
    check_refused(&cluster, &old, &ControllerError::StaleBrokerEpoch);
}
