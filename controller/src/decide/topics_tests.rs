use rand::{SeedableRng as _, rngs::StdRng};

use super::*;
use crate::decide::testing::{Cluster, id, ids, settings};

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

fn manual(name: &str, assignments: &[(i32, &[i32])]) -> NewTopic {
    NewTopic {
        assignments: assignments
            .iter()
            .map(|&(partition, replicas)| ManualAssignment {
                partition: PartitionId::new(partition),
                replicas: ids(replicas),
            })
            .collect(),
        ..topic(name, -1, -1)
    }
}

fn try_create(cluster: &mut Cluster, topics: &[NewTopic]) -> Answers<CreatedTopic> {
    let mut random = StdRng::seed_from_u64(1);
    let (changes, answers) = create(&cluster.image, &settings(), topics, &mut random);
    cluster.apply(&changes);
    answers
}

#[track_caller]
fn created(cluster: &mut Cluster, topic: NewTopic) -> CreatedTopic {
    try_create(cluster, &[topic]).remove(0).unwrap()
}

#[track_caller]
fn check_refused(cluster: &mut Cluster, topic: NewTopic, error: &str) {
    let before = cluster.image.revision();
    let answer = try_create(cluster, &[topic]).remove(0);
    assert_eq!(answer.unwrap_err().to_string(), error);
    assert_eq!(cluster.image.revision(), before, "nothing is written");
}

fn try_grow(cluster: &mut Cluster, request: NewPartitions) -> Result<(), ControllerError> {
    let mut random = StdRng::seed_from_u64(1);
    let (changes, mut answers) = grow(&cluster.image, &[request], &mut random);
    cluster.apply(&changes);
    answers.remove(0)
}

fn to(topic: &str, count: i32) -> NewPartitions {
    NewPartitions {
        topic: topic.to_owned(),
        count,
        assignments: None,
    }
}

#[test]
fn a_topic_has_the_partitions_and_replicas_that_were_asked_for() {
    let mut cluster = Cluster::of(3);
    let answer = created(&mut cluster, topic("t", 300, 2));
    assert_eq!((answer.partitions, answer.replication_factor), (300, 2));
    let image = cluster.image.topic("t").unwrap();
    assert_eq!((image.id, image.partition_count()), (answer.id, 300));
    assert_eq!(image.partitions().count(), 300);
    for (_, state) in image.partitions() {
        assert_eq!(state.replicas.len(), 2);
        assert_eq!(state.isr, state.replicas);
        assert_eq!(state.leader, state.replicas[0]);
        assert_eq!((state.leader_epoch.value(), state.partition_epoch), (0, 0));
    }
    let led = image
        .partitions()
        .filter(|(_, state)| state.leader == id(1))
        .count();
    assert_eq!(led, 100);
}

#[test]
fn minus_one_asks_for_the_defaults() {
    let mut cluster = Cluster::of(3);
    let answer = created(&mut cluster, topic("t", -1, -1));
    assert_eq!((answer.partitions, answer.replication_factor), (1, 1));
}

#[test]
fn a_manual_assignment_is_taken_as_it_is() {
    let mut cluster = Cluster::of(3);
    created(&mut cluster, manual("t", &[(1, &[3, 1]), (0, &[2, 3])]));
    assert_eq!(cluster.state("t", 0).replicas, ids(&[2, 3]));
    assert_eq!(cluster.state("t", 1).replicas, ids(&[3, 1]));
    assert_eq!(cluster.state("t", 1).leader, id(3));
}

#[test]
fn names_that_are_not_legal_are_refused_as_kafka_does() {
    let mut cluster = Cluster::of(1);
    let long = "x".repeat(250);
    let characters =
        "contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'";
    for (name, reason) in [
        ("", "the empty string is not allowed".to_owned()),
        (".", "'.' is not allowed".to_owned()),
        ("..", "'..' is not allowed".to_owned()),
        ("a/b", format!("'a/b' {characters}")),
        ("tópico", format!("'tópico' {characters}")),
        (
            &long,
            format!("the length of '{long}' is longer than the max allowed length 249"),
        ),
    ] {
        let error = format!("Topic name is invalid: {reason}");
        check_refused(&mut cluster, topic(name, 1, 1), &error);
    }
    created(&mut cluster, topic(&"x".repeat(249), 1, 1));
}

#[test]
fn a_name_that_is_taken_or_looks_like_one_in_metrics_is_refused() {
    let mut cluster = Cluster::of(1);
    created(&mut cluster, topic("a.b", 1, 1));
    created(&mut cluster, topic("plain", 1, 1));
    check_refused(
        &mut cluster,
        topic("a.b", 1, 1),
        "Topic 'a.b' already exists.",
    );
    check_refused(
        &mut cluster,
        topic("plain", 1, 1),
        "Topic 'plain' already exists.",
    );
    check_refused(
        &mut cluster,
        topic("a_b", 1, 1),
        "Topic 'a_b' collides with existing topic: a.b",
    );
    // Once it is gone its name is free.
    let (changes, _) = delete(&cluster.image, &[TopicSelector::Name("a.b".to_owned())]);
    cluster.apply(&changes);
    created(&mut cluster, topic("a_b", 1, 1));
}

#[test]
fn two_topics_of_one_request_may_not_be_the_same_or_collide() {
    let mut cluster = Cluster::of(1);
    let answers = try_create(
        &mut cluster,
        &[
            topic("t", 1, 1),
            topic("u.v", 1, 1),
            topic("t", 2, 1),
            topic("u_v", 1, 1),
        ],
    );
    let refused: Vec<bool> = answers.iter().map(Result::is_err).collect();
    assert_eq!(refused, [true, false, true, true]);
    assert_eq!(
        answers[0].as_ref().unwrap_err().to_string(),
        "Duplicate topic name."
    );
    assert_eq!(cluster.image.topic_count(), 1);
}

#[test]
fn numbers_out_of_range_are_refused_as_kafka_does() {
    let mut cluster = Cluster::of(1);
    for partitions in [0, -2, i32::MIN] {
        check_refused(
            &mut cluster,
            topic("t", partitions, 1),
            "Number of partitions was set to an invalid non-positive value.",
        );
    }
    for replication_factor in [0, -2] {
        check_refused(
            &mut cluster,
            topic("t", 1, replication_factor),
            "Replication factor must be larger than 0, or -1 to use the default value.",
        );
    }
    check_refused(
        &mut cluster,
        topic("t", 1, 3),
        "Unable to replicate the partition 3 time(s): The target replication factor of 3 cannot \
         be reached because only 1 broker(s) are registered.",
    );
    check_refused(
        &mut cluster,
        topic("t", i32::MAX, 1),
        "Excessively large number of partitions per request: at most 20000 can be created in one.",
    );
    check_refused(
        &mut Cluster::new(),
        topic("t", 1, 1),
        "Unable to replicate the partition 1 time(s): All brokers are currently fenced or in \
         controlled shutdown.",
    );
}

#[test]
fn manual_assignments_that_make_no_sense_are_refused_as_kafka_does() {
    let mut cluster = Cluster::of(2);
    let includes = |what: &str| format!("The manual partition assignment includes {what}");
    let cases: [(NewTopic, String); 8] = [
        (manual("t", &[(0, &[])]), includes("an empty replica list.")),
        (
            manual("t", &[(0, &[9])]),
            includes("broker 9, but no such broker is registered."),
        ),
        (
            manual("t", &[(0, &[1, 1])]),
            includes("the broker 1 more than once."),
        ),
        (
            manual("t", &[(0, &[1]), (1, &[1, 2])]),
            includes(
                "a partition with 2 replica(s), but this is not consistent with previous \
                 partitions, which have 1 replica(s).",
            ),
        ),
        (
            manual("t", &[(0, &[1]), (0, &[2])]),
            "Found multiple manual partition assignments for partition 0".to_owned(),
        ),
        (
            manual("t", &[(0, &[1]), (2, &[2])]),
            "partitions should be a consecutive 0-based integer sequence".to_owned(),
        ),
        (
            NewTopic {
                partitions: 1,
                ..manual("t", &[(0, &[1])])
            },
            "A manual partition assignment was specified, but numPartitions was not set to -1."
                .to_owned(),
        ),
        (
            NewTopic {
                replication_factor: 1,
                ..manual("t", &[(0, &[1])])
            },
            "A manual partition assignment was specified, but replication factor was not set to \
             -1."
            .to_owned(),
        ),
    ];
    for (topic, error) in cases {
        check_refused(&mut cluster, topic, &error);
    }
}

#[test]
fn a_topic_that_is_deleted_leaves_nothing_behind_once_its_brokers_have_removed_it() {
    let mut cluster = Cluster::of(1);
    let before = cluster.entry_count();
    let with_config = NewTopic {
        configs: vec![("retention.ms".to_owned(), Some("1".to_owned()))],
        ..topic("t", 200, 1)
    };
    let t = created(&mut cluster, with_config);
    let u = created(&mut cluster, topic("u", 1, 1));
    let unknown = TopicId::from_bytes([1; 16]);
    let selectors = [
        TopicSelector::Name("t".to_owned()),
        TopicSelector::Id(u.id),
        TopicSelector::Name("none".to_owned()),
        TopicSelector::Id(unknown),
        TopicSelector::Id(t.id),
    ];
    let (changes, answers) = delete(&cluster.image, &selectors);
    cluster.apply(&changes);
    assert_eq!(answers[0].as_ref().unwrap().id, t.id);
    assert_eq!(answers[1].as_ref().unwrap().name, "u");
    assert_eq!(answers[2], Err(ControllerError::UnknownTopicOrPartition));
    assert_eq!(answers[3], Err(ControllerError::UnknownTopicId(unknown)));
    assert_eq!(answers[4], Err(duplicate_topic()));
    assert_eq!(cluster.image.topic_count(), 0);
    assert_eq!(cluster.entry_count(), before + 2);
    let changes = deletions::confirm(&cluster.image, id(1), &[t.id, u.id]);
    cluster.apply(&changes);
    assert_eq!(cluster.entry_count(), before);
}

#[test]
fn a_topic_grows_within_its_last_chunk_and_beyond() {
    let mut cluster = Cluster::of(3);
    created(&mut cluster, topic("t", 100, 1));
    let first = cluster.state("t", 0).leader;
    for count in [101, 128, 129, 400] {
        try_grow(&mut cluster, to("t", count)).unwrap();
        let image = cluster.image.topic("t").unwrap();
        assert_eq!(image.partition_count(), count as usize);
        assert_eq!(image.partitions().count(), count as usize);
    }
    assert_eq!(cluster.state("t", 0).leader, first);
    // Leaders go on in turn.
    let leaders: Vec<_> = (99..103).map(|p| cluster.state("t", p).leader).collect();
    assert_eq!(leaders[0], leaders[3]);
    assert_ne!(leaders[0], leaders[1]);
    assert_ne!(leaders[1], leaders[2]);
}

#[test]
fn what_an_interrupted_growth_left_is_not_part_of_the_topic_nor_of_the_next_growth() {
    let mut cluster = Cluster::of(2);
    created(&mut cluster, manual("t", &[(0, &[1]), (1, &[1])]));
    let on = |broker: i32, count: i32| NewPartitions {
        assignments: Some(vec![ids(&[broker]); count as usize - 2]),
        ..to("t", count)
    };
    let mut random = StdRng::seed_from_u64(1);
    let (changes, _) = grow(&cluster.image, &[on(1, 5)], &mut random);
    // The controller died before it wrote the topic's key.
    cluster.apply(&changes[..changes.len() - 1]);
    assert_eq!(cluster.image.topic("t").unwrap().partitions().count(), 2);
    try_grow(&mut cluster, on(2, 3)).unwrap();
    assert_eq!(cluster.image.topic("t").unwrap().partitions().count(), 3);
    assert_eq!(cluster.state("t", 2).replicas, ids(&[2]));
}

#[test]
fn growth_that_makes_no_sense_is_refused_as_kafka_does() {
    let mut cluster = Cluster::of(2);
    created(&mut cluster, topic("t", 3, 1));
    let assigned = |count, assignments: &[&[i32]]| NewPartitions {
        assignments: Some(assignments.iter().map(|replicas| ids(replicas)).collect()),
        ..to("t", count)
    };
    let cases = [
        (to("t", 3), "Topic already has 3 partition(s)."),
        (
            to("t", 2),
            "The topic t currently has 3 partition(s); 2 would not be an increase.",
        ),
        (
            to("t", -1),
            "The topic t currently has 3 partition(s); -1 would not be an increase.",
        ),
        (
            to("none", 9),
            "This server does not host this topic-partition.",
        ),
        (
            assigned(5, &[&[1]]),
            "Attempted to add 2 additional partition(s), but only 1 assignment(s) were specified.",
        ),
        (
            assigned(4, &[&[1, 2]]),
            "The manual partition assignment includes a partition with 2 replica(s), but this is \
             not consistent with previous partitions, which have 1 replica(s).",
        ),
    ];
    for (request, error) in cases {
        assert_eq!(
            try_grow(&mut cluster, request).unwrap_err().to_string(),
            error
        );
    }
    try_grow(&mut cluster, assigned(5, &[&[2], &[1]])).unwrap();
    assert_eq!(cluster.state("t", 3).replicas, ids(&[2]));
}

#[test]
fn configs_are_checked_before_a_topic_is_created_with_them() {
    let mut cluster = Cluster::of(1);
    let with = |name: &str, value: Option<&str>| NewTopic {
        configs: vec![(name.to_owned(), value.map(str::to_owned))],
        ..topic("t", 1, 1)
    };
    for (name, value) in [
        ("retention.mss", Some("1")),
        ("retention.ms", Some("x")),
        ("retention.ms", None),
    ] {
        let answer = try_create(&mut cluster, &[with(name, value)]).remove(0);
        assert!(
            matches!(answer, Err(ControllerError::InvalidConfig(_))),
            "{answer:?}"
        );
    }
    created(&mut cluster, with("retention.ms", Some("1000")));
    let scope = ConfigScope::Topic("t".into());
    assert_eq!(
        cluster.image.config_value(&scope, "retention.ms"),
        Some("1000")
    );
    assert_eq!(cluster.image.config_scopes().count(), 1);
}

#[test]
fn a_topic_that_is_taken_over_keeps_its_id_and_leads_in_an_epoch_of_its_own() {
    let mut cluster = Cluster::of(1);
    let adopted = |name: &str, number: u8| NewTopic {
        adopted: Some(Adopted {
            id: TopicId::from_bytes([number; 16]),
            leader_epoch: LeaderEpoch::new(8),
        }),
        ..topic(name, 2, 1)
    };
    let t = created(&mut cluster, adopted("t", 1));
    assert_eq!(t.id, TopicId::from_bytes([1; 16]));
    assert_eq!(cluster.state("t", 1).leader_epoch.value(), 8);
    check_refused(
        &mut cluster,
        adopted("u", 1),
        "Topic id AQEBAQEBAQEBAQEBAQEBAQ belongs to another topic.",
    );
    let twice = [adopted("v", 2), adopted("w", 2)];
    let answers = try_create(&mut cluster, &twice);
    assert!(answers[0].is_ok() && answers[1].is_err(), "{answers:?}");
}

#[test]
fn ids_never_begin_with_a_dash() {
    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..1000 {
        assert!(!random_topic_id(&mut random).to_string().starts_with('-'));
    }
}
