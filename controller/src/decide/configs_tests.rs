use rand::{SeedableRng as _, rngs::StdRng};

use super::*;
use crate::decide::{
    testing::{Cluster, id, settings},
    topics::{self, NewTopic},
};

fn cluster(topics: &[&str]) -> Cluster {
    let mut cluster = Cluster::of(1);
    let topics: Vec<NewTopic> = topics
        .iter()
        .map(|&name| NewTopic {
            adopted: None,
            name: name.to_owned(),
            partitions: 1,
            replication_factor: 1,
            assignments: Vec::new(),
            configs: Vec::new(),
        })
        .collect();
    let mut random = StdRng::seed_from_u64(1);
    let (changes, _) = topics::create(&cluster.image, &settings(), &topics, &mut random);
    cluster.apply(&changes);
    cluster
}

fn of_topic(name: &str) -> ConfigScope {
    ConfigScope::Topic(name.into())
}

fn incremental(scope: &ConfigScope, steps: &[(&str, ConfigStep)]) -> ConfigAlteration {
    ConfigAlteration {
        scope: scope.clone(),
        change: ConfigChange::Incremental(
            steps
                .iter()
                .map(|(name, step)| ((*name).to_owned(), step.clone()))
                .collect(),
        ),
    }
}

fn full(scope: &ConfigScope, values: &[(&str, &str)]) -> ConfigAlteration {
    ConfigAlteration {
        scope: scope.clone(),
        change: ConfigChange::Full(
            values
                .iter()
                .map(|&(name, value)| (name.to_owned(), Some(value.to_owned())))
                .collect(),
        ),
    }
}

fn set(value: &str) -> ConfigStep {
    ConfigStep::Set(value.to_owned())
}

fn try_alter(cluster: &mut Cluster, alteration: ConfigAlteration) -> Result<(), ControllerError> {
    let (changes, mut answers) = alter(&cluster.image, &settings(), &[alteration]);
    cluster.apply(&changes);
    answers.remove(0)
}

fn values(cluster: &Cluster, scope: &ConfigScope) -> Vec<String> {
    let config = cluster.image.config(scope);
    config
        .into_iter()
        .flat_map(|config| &config.values)
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

#[test]
fn steps_change_what_they_name_and_nothing_else() {
    let mut cluster = cluster(&["t"]);
    let t = of_topic("t");
    let first = [
        ("retention.ms", set("1000")),
        ("segment.bytes", set("1048576")),
    ];
    try_alter(&mut cluster, incremental(&t, &first)).unwrap();
    let second = [("retention.ms", set("2000"))];
    try_alter(&mut cluster, incremental(&t, &second)).unwrap();
    assert_eq!(
        values(&cluster, &t),
        ["retention.ms=2000", "segment.bytes=1048576"]
    );
    let third = [("retention.ms", ConfigStep::Delete)];
    try_alter(&mut cluster, incremental(&t, &third)).unwrap();
    assert_eq!(values(&cluster, &t), ["segment.bytes=1048576"]);
    // Deleting it again is no error.
    try_alter(&mut cluster, incremental(&t, &third)).unwrap();
}

#[test]
fn a_full_change_drops_what_it_does_not_name() {
    let mut cluster = cluster(&["t"]);
    let t = of_topic("t");
    try_alter(
        &mut cluster,
        full(&t, &[("retention.ms", "1"), ("flush.ms", "2")]),
    )
    .unwrap();
    try_alter(&mut cluster, full(&t, &[("flush.ms", "3")])).unwrap();
    assert_eq!(values(&cluster, &t), ["flush.ms=3"]);
    try_alter(&mut cluster, full(&t, &[])).unwrap();
    assert!(
        cluster.image.config(&t).is_none(),
        "no empty key stays behind"
    );
}

#[test]
fn lists_are_appended_to_and_subtracted_from_starting_from_the_default() {
    let mut cluster = cluster(&["__consumer_offsets"]);
    let topic = of_topic("__consumer_offsets");
    let step = |step| [("cleanup.policy", step)];
    let append = step(ConfigStep::Append("compact".to_owned()));
    try_alter(&mut cluster, incremental(&topic, &append)).unwrap();
    assert_eq!(values(&cluster, &topic), ["cleanup.policy=delete,compact"]);
    try_alter(&mut cluster, incremental(&topic, &append)).unwrap();
    assert_eq!(values(&cluster, &topic), ["cleanup.policy=delete,compact"]);
    let subtract = step(ConfigStep::Subtract("delete".to_owned()));
    try_alter(&mut cluster, incremental(&topic, &subtract)).unwrap();
    assert_eq!(values(&cluster, &topic), ["cleanup.policy=compact"]);
    let number = [("retention.ms", ConfigStep::Append("1".to_owned()))];
    assert_eq!(
        try_alter(&mut cluster, incremental(&topic, &number))
            .unwrap_err()
            .to_string(),
        "Can't APPEND to key retention.ms because its type is not LIST."
    );
}

#[test]
fn what_is_wrong_in_one_resource_changes_nothing_of_it_and_all_of_the_others() {
    let mut cluster = cluster(&["good", "bad"]);
    let (good, bad) = (of_topic("good"), of_topic("bad"));
    let (changes, answers) = alter(
        &cluster.image,
        &settings(),
        &[
            incremental(
                &bad,
                &[("flush.ms", set("1")), ("retention.ms", set("soon"))],
            ),
            incremental(&good, &[("flush.ms", set("1"))]),
        ],
    );
    cluster.apply(&changes);
    assert!(matches!(answers[0], Err(ControllerError::InvalidConfig(_))));
    assert_eq!(answers[1], Ok(()));
    assert!(values(&cluster, &bad).is_empty());
    assert_eq!(values(&cluster, &good), ["flush.ms=1"]);
}

#[test]
fn unknown_names_and_unknown_resources_are_refused() {
    let mut cluster = cluster(&["t"]);
    let wrong = [("retention.mss", set("1"))];
    let misspelt = [("retention.mss", ConfigStep::Delete)];
    for steps in [&wrong, &misspelt] {
        let answer = try_alter(&mut cluster, incremental(&of_topic("t"), steps));
        assert!(
            matches!(answer, Err(ControllerError::InvalidConfig(_))),
            "{answer:?}"
        );
    }
    let right = [("retention.ms", set("1"))];
    assert_eq!(
        try_alter(&mut cluster, incremental(&of_topic("none"), &right)),
        Err(ControllerError::UnknownTopic("none".to_owned()))
    );
    let nobody = ConfigScope::Broker(id(9));
    let dynamic = [("log.retention.ms", set("1"))];
    assert_eq!(
        try_alter(&mut cluster, incremental(&nobody, &dynamic)),
        Err(ControllerError::BrokerIdNotRegistered(9))
    );
}

#[test]
fn brokers_and_the_cluster_take_what_can_change_while_they_run() {
    let mut cluster = cluster(&[]);
    for scope in [ConfigScope::Broker(id(1)), ConfigScope::Cluster] {
        let dynamic = [("log.retention.ms", set("1000"))];
        try_alter(&mut cluster, incremental(&scope, &dynamic)).unwrap();
        assert_eq!(values(&cluster, &scope), ["log.retention.ms=1000"]);
        let fixed = [("node.id", set("2"))];
        let answer = try_alter(&mut cluster, incremental(&scope, &fixed));
        assert!(
            matches!(answer, Err(ControllerError::InvalidConfig(_))),
            "{answer:?}"
        );
    }
}

#[test]
fn what_is_named_twice_is_refused() {
    let mut cluster = cluster(&["t"]);
    let t = of_topic("t");
    let twice = [("flush.ms", set("1")), ("flush.ms", set("2"))];
    let answer = try_alter(&mut cluster, incremental(&t, &twice));
    assert!(matches!(answer, Err(ControllerError::InvalidRequest(_))));
    let once = incremental(&t, &[("flush.ms", set("1"))]);
    let (changes, answers) = alter(&cluster.image, &settings(), &[once.clone(), once]);
    assert!(changes.is_empty());
    assert!(answers.iter().all(Result::is_err));
}

#[test]
fn overrides_that_are_as_they_were_write_nothing() {
    let mut cluster = cluster(&["t"]);
    let t = of_topic("t");
    let step = incremental(&t, &[("flush.ms", set("1"))]);
    try_alter(&mut cluster, step.clone()).unwrap();
    let before = cluster.image.revision();
    try_alter(&mut cluster, step).unwrap();
    assert_eq!(cluster.image.revision(), before);
}

#[test]
fn a_lower_min_isr_first_takes_the_eligibility_of_those_it_no_longer_needs() {
    let of_cluster = ConfigScope::Cluster;
    for scope in [of_topic("t"), of_cluster] {
        let mut cluster = Cluster::of(2);
        let two = [("min.insync.replicas", set("2"))];
        try_alter(&mut cluster, incremental(&ConfigScope::Cluster, &two)).unwrap();
        cluster.create("t", &[&[1, 2]]);
        cluster.unregister(2);
        cluster.reconcile();
        assert_eq!(cluster.state("t", 0).elr, [id(2)]);
        let one = incremental(&scope, &[("min.insync.replicas", set("1"))]);
        let (changes, _) = alter(&cluster.image, &settings(), &[one]);
        let of_config = |set: &ChangeSet| set.operations[0].key().starts_with("configs/");
        assert_eq!(changes.len(), 2);
        assert!(
            of_config(&changes[1]),
            "the config is the last to be written"
        );
        cluster.apply(&changes);
        assert!(cluster.state("t", 0).elr.is_empty(), "{scope:?}");
    }
}

#[test]
fn one_broker_alone_can_not_have_another_min_isr() {
    let mut cluster = cluster(&[]);
    let scope = ConfigScope::Broker(id(1));
    let answer = try_alter(
        &mut cluster,
        incremental(&scope, &[("min.insync.replicas", set("2"))]),
    );
    assert!(matches!(answer, Err(ControllerError::InvalidConfig(_))));
}

#[test]
fn overrides_that_contradict_each_other_are_refused_wherever_they_come_from() {
    let min = ("min.compaction.lag.ms", set("6"));
    let max = ("max.compaction.lag.ms", set("5"));
    let refused = |answer| match answer {
        Err(ControllerError::InvalidConfig(message)) => message,
        other => panic!("{other:?}"),
    };
    let said = "min.compaction.lag.ms=6 is more than max.compaction.lag.ms=5";

    let mut cluster = cluster(&["t"]);
    let t = of_topic("t");
    let both = incremental(&t, &[min.clone(), max.clone()]);
    assert_eq!(refused(try_alter(&mut cluster, both)), said);
    try_alter(&mut cluster, incremental(&t, &[max])).unwrap();
    let second = incremental(&t, std::slice::from_ref(&min));
    assert_eq!(refused(try_alter(&mut cluster, second)), said);

    let of_cluster = incremental(
        &ConfigScope::Cluster,
        &[("log.cleaner.max.compaction.lag.ms", set("5"))],
    );
    try_alter(&mut cluster, of_cluster).unwrap();
    let of_broker = incremental(
        &ConfigScope::Broker(id(1)),
        &[("log.cleaner.min.compaction.lag.ms", set("6"))],
    );
    let message = refused(try_alter(&mut cluster, of_broker));
    assert!(
        message.contains("log.cleaner.min.compaction.lag.ms=6"),
        "{message}"
    );

    let topic = NewTopic {
        adopted: None,
        name: "u".to_owned(),
        partitions: 1,
        replication_factor: 1,
        assignments: Vec::new(),
        configs: vec![(min.0.to_owned(), Some("6".to_owned()))],
    };
    let mut random = StdRng::seed_from_u64(1);
    let (_, answers) = topics::create(&cluster.image, &settings(), &[topic], &mut random);
    assert_eq!(
        refused(answers.into_iter().next().unwrap().map(|_| ())),
        said
    );
}

#[test]
fn the_clusters_min_insync_replicas_is_written_down_once_and_can_not_be_taken_away() {
    let mut cluster = cluster(&["t"]);
    let flush = incremental(
        &ConfigScope::Cluster,
        &[("log.flush.interval.ms", set("7"))],
    );
    try_alter(&mut cluster, flush).unwrap();
    let changes = settle_min_isr(&cluster.image, &settings());
    cluster.apply(&changes);
    let settled = ["log.flush.interval.ms=7", "min.insync.replicas=1"];
    assert_eq!(values(&cluster, &ConfigScope::Cluster), settled);
    let given = [("min.insync.replicas".to_owned(), "2".to_owned())];
    let others = ServerSettings::from_properties("", &given).unwrap();
    assert!(settle_min_isr(&cluster.image, &others).is_empty());
    for removal in [
        incremental(&ConfigScope::Cluster, &[(MIN_ISR, ConfigStep::Delete)]),
        full(&ConfigScope::Cluster, &[]),
    ] {
        let refused = try_alter(&mut cluster, removal).unwrap_err();
        assert!(
            refused.to_string().contains("cannot be removed"),
            "{refused}"
        );
    }
    let raised = incremental(&ConfigScope::Cluster, &[(MIN_ISR, set("2"))]);
    try_alter(&mut cluster, raised).unwrap();
    assert_eq!(
        values(&cluster, &ConfigScope::Cluster)[1],
        "min.insync.replicas=2"
    );
}
