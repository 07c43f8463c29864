use super::*;
use crate::{
    decide::testing::{Cluster, id, ids, registration, settings},
    settings::ServerSettings,
};

fn ask(
    cluster: &mut Cluster,
    kind: ElectionKind,
    partitions: Option<&[i32]>,
) -> Vec<Result<(), ControllerError>> {
    let elections = Elections {
        kind,
        partitions: partitions.map(|partitions| {
            let named = |&p: &i32| ("t".to_owned(), PartitionId::new(p));
            partitions.iter().map(named).collect()
        }),
    };
    let (changes, answers) = elect(&cluster.image, &settings(), &elections);
    cluster.apply(&changes);
    answers.into_iter().map(|(_, _, answer)| answer).collect()
}

fn leaders(cluster: &Cluster) -> Vec<i32> {
    let topic = cluster.image.topic("t").expect("the topic exists");
    topic
        .partitions()
        .map(|(_, state)| state.leader.value())
        .collect()
}

/// Two brokers; 1 was away, is back, and in sync in the first of its two partitions.
fn cluster() -> Cluster {
    let mut cluster = Cluster::of(2);
    cluster.create("t", &[&[1, 2], &[1, 2], &[2, 1]]);
    cluster.unregister(1);
    cluster.reconcile();
    cluster.register(1, &registration());
    cluster.reconcile();
    cluster.propose("t", 0, &ids(&[2, 1])).unwrap();
    assert_eq!(leaders(&cluster), [2, 2, 2]);
    cluster
}

#[test]
fn the_preferred_replica_leads_again_where_it_is_in_sync() {
    let mut cluster = cluster();
    let answers = ask(&mut cluster, ElectionKind::Preferred, Some(&[0, 1, 2, 9]));
    assert_eq!(
        answers,
        [
            Ok(()),
            Err(ControllerError::PreferredLeaderNotAvailable),
            Err(ControllerError::ElectionNotNeeded),
            Err(ControllerError::UnknownTopicOrPartition),
        ]
    );
    assert_eq!(leaders(&cluster), [1, 2, 2]);
    let state = cluster.state("t", 0);
    assert_eq!((state.leader_epoch.value(), &state.isr), (2, &ids(&[2, 1])));
}

#[test]
fn an_election_in_all_partitions_does_not_speak_of_those_that_need_none() {
    let mut cluster = cluster();
    let answers = ask(&mut cluster, ElectionKind::Preferred, None);
    assert_eq!(
        answers,
        [Ok(()), Err(ControllerError::PreferredLeaderNotAvailable)]
    );
    assert_eq!(ask(&mut cluster, ElectionKind::Unclean, None), []);
}

#[test]
fn an_operators_word_elects_whoever_lives_but_never_over_a_leader() {
    let mut cluster = Cluster::of(2);
    cluster.create("t", &[&[1, 2]]);
    let unclean = |cluster: &mut Cluster| ask(cluster, ElectionKind::Unclean, Some(&[0]));
    assert_eq!(
        unclean(&mut cluster),
        [Err(ControllerError::ElectionNotNeeded)]
    );
    cluster.unregister(2);
    cluster.reconcile();
    cluster.unregister(1);
    cluster.reconcile();
    assert_eq!(
        unclean(&mut cluster),
        [Err(ControllerError::EligibleLeadersNotAvailable)]
    );
    cluster.register(2, &registration());
    cluster.reconcile();
    assert_eq!(leaders(&cluster), [-1]);
    assert_eq!(unclean(&mut cluster), [Ok(())]);
    assert_eq!(leaders(&cluster), [2]);
}

#[test]
fn a_replica_that_is_still_being_added_is_the_last_choice() {
    let mut cluster = Cluster::of(3);
    cluster.create("t", &[&[1, 2]]);
    let (changes, _) = crate::decide::reassignment::reassign(
        &cluster.image,
        &settings(),
        &crate::decide::reassignment::Reassignments {
            partitions: vec![crate::decide::reassignment::Reassignment {
                topic: "t".to_owned(),
                partition: PartitionId::new(0),
                replicas: Some(ids(&[3, 2])),
            }],
            allow_replication_factor_change: true,
        },
    );
    cluster.apply(&changes);
    cluster.unregister(2);
    cluster.reconcile();
    cluster.unregister(1);
    cluster.reconcile();
    cluster.register(2, &registration());
    cluster.reconcile();
    assert_eq!(
        ask(&mut cluster, ElectionKind::Unclean, Some(&[0])),
        [Ok(())]
    );
    assert_eq!(leaders(&cluster), [2]);
}

fn percentage(allowed: i32) -> ServerSettings {
    let mut settings = settings();
    settings.leader_imbalance_per_broker_percentage = allowed;
    settings
}

#[test]
fn leaders_go_back_where_a_broker_leads_too_few_of_its_own() {
    let mut cluster = cluster();
    // Both of 1's partitions, that is 100 %, are led by 2.
    assert_eq!(rebalance(&cluster.image, &percentage(100)).0, []);
    let (changes, more) = rebalance(&cluster.image, &percentage(99));
    assert!(!more);
    cluster.apply(&changes);
    assert_eq!(leaders(&cluster), [1, 2, 2], "only where 1 is in sync");
    assert_eq!(rebalance(&cluster.image, &percentage(10)).0, []);
    cluster.propose("t", 1, &ids(&[1, 2])).unwrap();
    let (changes, _) = rebalance(&cluster.image, &percentage(10));
    cluster.apply(&changes);
    assert_eq!(leaders(&cluster), [1, 1, 2]);
    assert_eq!(
        rebalance(&cluster.image, &percentage(0)),
        (Vec::new(), false)
    );
}

#[test]
fn one_check_moves_a_bounded_number_of_leaders_and_says_that_there_are_more() {
    let mut cluster = Cluster::of(2);
    let assignments: Vec<&[i32]> = vec![&[1, 2]; MAX_ELECTIONS_PER_CHECK + 1];
    cluster.create("t", &assignments);
    let epoch = cluster.epoch(1);
    let (changes, _) =
        crate::decide::brokers::shut_down(&cluster.image, &settings(), id(1), epoch).unwrap();
    cluster.apply(&changes);
    cluster.unregister(1);
    cluster.register(1, &registration());
    cluster.reconcile();
    for partition in 0..assignments.len() as i32 {
        cluster.propose("t", partition, &ids(&[1, 2])).unwrap();
    }
    let (changes, more) = rebalance(&cluster.image, &percentage(10));
    assert!(more);
    cluster.apply(&changes);
    let (changes, more) = rebalance(&cluster.image, &percentage(0));
    assert!(!more);
    cluster.apply(&changes);
    assert!(leaders(&cluster).iter().all(|&leader| leader == 1));
}
