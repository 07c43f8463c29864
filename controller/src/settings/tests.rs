//! The facts that hold across the tables, the files and what is made of them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    CleanupPolicy, CompressionType, HostPort, Problem, ServerSettings, TopicSettings, Update,
    broker, describe, describe::Source, topic,
};

fn settings(text: &str) -> ServerSettings {
    ServerSettings::from_properties(text, &[]).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal(text: &str) -> String {
    match ServerSettings::from_properties(text, &[]) {
        Ok(_) => panic!("{text} was accepted"),
        Err(error) => error.to_string(),
    }
}

fn configs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn nothing_given_is_a_complete_broker_on_loopback() {
    let defaults = settings("");
    assert_eq!(defaults.node_id, 1);
    assert_eq!(defaults.listeners.to_string(), "PLAINTEXT://localhost:9092");
    assert_eq!(defaults.admin_listener, None);
    assert_eq!(defaults.data_dir().to_str(), Some("yuxi-data"));
    let topic = TopicSettings::resolve(&defaults, &BTreeMap::new());
    assert_eq!(topic.retention_ms, 7 * 24 * 3_600_000);
    assert_eq!(topic.segment_ms, 7 * 24 * 3_600_000);
    assert_eq!(topic.segment_jitter_ms, 0);
    assert_eq!(topic.max_message_bytes, 1_048_588);
    assert_eq!(topic.flush_ms, i64::MAX);
    assert_eq!(topic.cleanup_policy, CleanupPolicy::Delete);
    assert_eq!(topic.compression_type, CompressionType::Producer);
}

#[test]
fn every_name_stands_in_its_table_once() {
    let unique = |names: Vec<&str>| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    assert!(unique(broker::rows().map(|row| row.name).collect()));
    assert!(unique(
        topic::ROWS.iter().map(|row| row.setting.name).collect()
    ));
}

#[test]
fn what_kafka_changes_dynamically_is_the_first_synonym_of_a_topics_setting() {
    for row in topic::ROWS {
        let (first, rest) = row.synonyms.split_first().expect("a synonym");
        let update = |name| broker::find(name).expect(name).update;
        assert_eq!(update(first.name), Update::Running, "{}", first.name);
        for synonym in rest {
            assert_eq!(update(synonym.name), Update::AtStart, "{}", synonym.name);
        }
    }
}

#[test]
fn a_topic_accepts_what_its_broker_setting_may_hold() {
    for row in topic::ROWS {
        let name = row.setting.name;
        let value = row.inherited(&settings(""));
        assert_eq!(topic::validate(name, &value), Ok(()), "{name}={value}");
    }
}

#[test]
fn an_override_on_the_command_line_takes_precedence_over_the_file() {
    let overrides = [("node.id".to_owned(), "3".to_owned())];
    let settings = ServerSettings::from_properties("node.id = 2\nnum.partitions 8", &overrides);
    let settings = settings.expect("valid settings");
    assert_eq!((settings.node_id, settings.num_partitions), (3, 8));
}

#[test]
fn everything_that_is_wrong_is_named_with_key_value_and_what_is_accepted() {
    assert_eq!(
        refusal("num.partitions=0"),
        "Invalid value 0 for configuration num.partitions: expected a 32-bit whole number, 1 or \
         more"
    );
    assert_eq!(
        refusal("compression.type=lzma"),
        "Invalid value lzma for configuration compression.type: expected one of producer, \
         uncompressed, gzip, snappy, lz4, zstd"
    );
    assert_eq!(
        refusal("num.partition=1"),
        "Unknown broker config name: num.partition (did you mean num.partitions?)"
    );
    assert_eq!(
        refusal("zookeeper.connect=a:2181\nlog.retention.ms=0\nlog.dirs=/a,/b")
            .lines()
            .count(),
        4
    );
}

#[test]
fn values_outside_their_range_are_refused() {
    for text in [
        "node.id=-1",
        "node.id=2147483648",
        "node.id=one",
        "node.id=",
        "log.retention.ms=0",
        "log.retention.ms=-2",
        "log.roll.ms=",
        "auto.create.topics.enable=yes",
        "compression.gzip.level=0",
        "compression.gzip.level=10",
        "compression.zstd.level=23",
        "default.replication.factor=32768",
        "log.cleanup.policy=compacted",
        "log.cleanup.policy=delete,",
        "log.cleaner.min.cleanable.ratio=1.1",
        "log.cleaner.min.cleanable.ratio=NaN",
        "log.cleaner.io.max.bytes.per.second=0",
        "log.cleaner.io.max.bytes.per.second=inf",
        "log.cleaner.max.compaction.lag.ms=0",
        "listeners=SSL://localhost:9093",
        "listeners=PLAINTEXT://a:1,PLAINTEXT://b:2",
        "log.dirs=/a,/b",
        "etcd.endpoints=localhost:2379",
        "log.level=loud",
    ] {
        refusal(text);
    }
}

#[test]
fn values_at_the_ends_of_their_range_are_accepted() {
    for text in [
        "node.id=0",
        "log.retention.ms=-1",
        "log.retention.bytes=-1",
        "compression.gzip.level=-1",
        "compression.gzip.level=9",
        "compression.zstd.level=-131072",
        "auto.create.topics.enable=FALSE",
        "queued.max.request.bytes=-1",
        "admin.listener=",
        "broker.rack=",
        "log.cleanup.policy=delete",
        "log.cleanup.policy=compact",
        "log.cleanup.policy=delete, compact",
        "log.cleaner.min.cleanable.ratio=0",
        "log.cleaner.min.cleanable.ratio=1.0",
        "log.cleaner.io.max.bytes.per.second=1.7976931348623157E308",
        "log.cleaner.threads=0",
    ] {
        settings(text);
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    for (text, word) in [
        (
            "group.min.session.timeout.ms=2000000",
            "group.max.session.timeout.ms",
        ),
        ("listeners=PLAINTEXT://0.0.0.0:9092", "advertised.listeners"),
        ("listeners=PLAINTEXT://:9092", "advertised.listeners"),
        (
            "advertised.listeners=PLAINTEXT://[::]:9092",
            "advertised.listeners",
        ),
        (
            "socket.request.max.bytes=300000000",
            "queued.max.request.bytes",
        ),
        ("etcd.endpoints=https://etcd:2379", "etcd.tls.ca"),
        (
            "etcd.endpoints=http://etcd:2379\netcd.tls.key=key.pem",
            "etcd.tls.certificate",
        ),
        (
            "etcd.endpoints=http://etcd:2379\netcd.tls.ca=ca.pem",
            "https",
        ),
        (
            "etcd.endpoints=http://etcd:2379\netcd.user=yuxi",
            "etcd.password",
        ),
        (
            "etcd.endpoints=http://etcd:2379\netcd.request.timeout.ms=5000",
            "broker.session.timeout.ms",
        ),
        (
            "log.cleaner.max.compaction.lag.ms=5\nlog.cleaner.min.compaction.lag.ms=6",
            "log.cleaner.max.compaction.lag.ms",
        ),
        (
            "log.cleaner.dedupe.buffer.size=2000000\nlog.cleaner.threads=2",
            "log.cleaner.threads",
        ),
    ] {
        assert!(refusal(text).contains(word), "{text}");
    }
    settings("etcd.endpoints=https://etcd:2379\netcd.tls.ca=ca.pem");
    settings("listeners=PLAINTEXT://:9092\nadvertised.listeners=PLAINTEXT://kafka.example:9092");
}

#[test]
fn clients_are_told_the_advertised_host_and_the_port_really_bound() {
    let check = |text, host: &str, port| {
        let host = host.to_owned();
        assert_eq!(
            settings(text).advertised(4242),
            HostPort { host, port },
            "{text}"
        );
    };
    check("listeners=PLAINTEXT://localhost:0", "localhost", 4242);
    check("listeners=PLAINTEXT://localhost:9092", "localhost", 9092);
    check(
        "advertised.listeners=PLAINTEXT://a.example:0",
        "a.example",
        4242,
    );
    check(
        "advertised.listeners=PLAINTEXT://a.example:9",
        "a.example",
        9,
    );
}

#[test]
fn a_time_is_taken_in_the_finest_unit_that_is_given() {
    let retention = |text| TopicSettings::resolve(&settings(text), &BTreeMap::new()).retention_ms;
    assert_eq!(retention("log.retention.hours=2"), 7_200_000);
    assert_eq!(
        retention("log.retention.hours=2\nlog.retention.minutes=3"),
        180_000
    );
    assert_eq!(
        retention("log.retention.hours=2\nlog.retention.minutes=3\nlog.retention.ms=4"),
        4
    );
    assert_eq!(retention("log.retention.hours=-1"), -1);
    assert_eq!(retention("log.retention.minutes=-1"), -1);
    assert_eq!(
        retention("log.retention.hours=2147483647"),
        2_147_483_647 * 3_600_000
    );
}

#[test]
fn a_topic_takes_its_own_then_the_brokers_then_the_clusters_then_the_files_value() {
    let fixed = settings("log.segment.bytes=1000\nlog.retention.hours=1");
    let cluster = configs(&[("log.segment.bytes", "2000"), ("log.retention.ms", "20")]);
    let broker = configs(&[("log.segment.bytes", "3000")]);
    let own = configs(&[("segment.bytes", " 4000 ")]);
    let none = BTreeMap::new();
    let segment_bytes =
        |settings: &ServerSettings, own| TopicSettings::resolve(settings, own).segment_bytes;
    assert_eq!(segment_bytes(&fixed, &none), 1000);
    let clustered = fixed.with_dynamic(&cluster, &none);
    assert_eq!(segment_bytes(&clustered, &none), 2000);
    assert_eq!(clustered.log_segment_bytes, 2000);
    assert_eq!(TopicSettings::resolve(&clustered, &none).retention_ms, 20);
    let both = fixed.with_dynamic(&cluster, &broker);
    assert_eq!(segment_bytes(&both, &none), 3000);
    assert_eq!(both.log_segment_bytes, 3000);
    assert_eq!(segment_bytes(&both, &own), 4000);
    assert_eq!(segment_bytes(&both.with_dynamic(&none, &none), &none), 1000);
}

#[test]
fn stored_configs_that_are_not_valid_do_not_hold() {
    let odd = configs(&[
        ("log.segment.bytes", "many"),
        ("node.id", "7"),
        ("no.such", "1"),
    ]);
    let settings = settings("").with_dynamic(&odd, &odd);
    assert_eq!(settings.log_segment_bytes, 1 << 30);
    assert_eq!(settings.node_id, 1);
    let overrides = configs(&[("segment.bytes", "many"), ("no.such", "1")]);
    assert_eq!(
        TopicSettings::resolve(&settings, &overrides).segment_bytes,
        1 << 30
    );
}

#[test]
fn a_topic_may_be_compacted_and_its_old_records_deleted() {
    for policy in ["delete", "compact", "compact,delete"] {
        assert!(topic::validate("cleanup.policy", policy).is_ok());
    }
    assert!(topic::validate("cleanup.policy", "none").is_err());
    let overrides = configs(&[("cleanup.policy", "compact, delete")]);
    let resolved = TopicSettings::resolve(&settings(""), &overrides);
    assert_eq!(resolved.cleanup_policy, CleanupPolicy::CompactAndDelete);
}

#[test]
fn a_topics_overrides_are_checked_together_and_with_the_brokers_settings() {
    let check = |broker, own: &[(&str, &str)]| {
        topic::check_together(&settings(broker), &configs(own)).map_err(|error| error.to_string())
    };
    let (min, max) = ("min.compaction.lag.ms", "max.compaction.lag.ms");
    assert_eq!(check("", &[(min, "6"), (max, "6")]), Ok(()));
    let refused = Err("min.compaction.lag.ms=6 is more than max.compaction.lag.ms=5".to_owned());
    assert_eq!(check("", &[(min, "6"), (max, "5")]), refused);
    assert_eq!(
        check("log.cleaner.max.compaction.lag.ms=5", &[(min, "6")]),
        refused
    );
    assert_eq!(
        check("log.cleaner.min.compaction.lag.ms=6", &[(max, "5")]),
        refused
    );
}

#[test]
fn only_what_can_change_while_the_broker_runs_is_accepted_dynamically() {
    assert_eq!(broker::validate_dynamic("log.retention.ms", "-1"), Ok(()));
    assert_eq!(broker::validate_dynamic("max.connections", "7"), Ok(()));
    for name in ["num.partitions", "log.retention.hours", "listeners"] {
        let error = broker::validate_dynamic(name, "1").expect_err(name);
        assert!(matches!(error, Problem::ReadOnly { .. }), "{error}");
        assert!(
            error
                .to_string()
                .starts_with("Cannot update these configs dynamically")
        );
    }
    for (name, value) in [
        ("log.retention.ms", "0"),
        ("max.connections", "x"),
        ("no.such", "1"),
    ] {
        broker::validate_dynamic(name, value).expect_err(name);
    }
}

fn check_synonyms(found: &describe::DescribedConfig, expected: &[(Source, &str, &str)]) {
    let synonyms: Vec<_> = found
        .synonyms
        .iter()
        .map(|synonym| (synonym.source, synonym.name, synonym.value.as_str()))
        .collect();
    assert_eq!(synonyms, expected, "{}", found.name);
    let first = expected.first().map_or(Source::Default, |first| first.0);
    assert_eq!(found.source, first, "{}", found.name);
}

#[test]
fn a_topics_settings_are_described_with_all_their_sources_in_order() {
    let settings = settings("log.segment.bytes=1000\nlog.retention.hours=2").with_dynamic(
        &configs(&[("log.segment.bytes", "2000")]),
        &configs(&[("log.segment.bytes", "3000")]),
    );
    let described = describe::topic(&settings, &configs(&[("segment.bytes", "4000")]));
    assert_eq!(described.len(), topic::ROWS.len());
    let find = |name| {
        described
            .iter()
            .find(|config| config.name == name)
            .expect(name)
    };
    let segment = find("segment.bytes");
    assert_eq!(segment.value.as_deref(), Some("4000"));
    assert!(!segment.read_only && !segment.is_default());
    check_synonyms(
        segment,
        &[
            (Source::DynamicTopic, "segment.bytes", "4000"),
            (Source::DynamicBroker, "log.segment.bytes", "3000"),
            (Source::DynamicDefaultBroker, "log.segment.bytes", "2000"),
            (Source::StaticBroker, "log.segment.bytes", "1000"),
            (Source::Default, "log.segment.bytes", "1073741824"),
        ],
    );
    let retention = find("retention.ms");
    assert_eq!(retention.value.as_deref(), Some("7200000"));
    check_synonyms(
        retention,
        &[
            (Source::StaticBroker, "log.retention.hours", "2"),
            (Source::Default, "log.retention.hours", "168"),
        ],
    );
    assert!(find("preallocate").is_default());
}

#[test]
fn a_brokers_settings_are_described_with_what_takes_their_place() {
    let settings = settings("log.retention.minutes=5\nbroker.rack=a")
        .with_dynamic(&configs(&[("log.retention.ms", "60000")]), &BTreeMap::new());
    let described = describe::broker(&settings);
    let find = |name| {
        described
            .iter()
            .find(|config| config.name == name)
            .expect(name)
    };
    let retention = find("log.retention.ms");
    assert_eq!(retention.value.as_deref(), Some("60000"));
    assert!(!retention.read_only);
    check_synonyms(
        retention,
        &[
            (Source::DynamicDefaultBroker, "log.retention.ms", "60000"),
            (Source::StaticBroker, "log.retention.minutes", "5"),
            (Source::Default, "log.retention.hours", "168"),
        ],
    );
    check_synonyms(
        find("log.retention.hours"),
        &[(Source::Default, "log.retention.hours", "168")],
    );
    let rack = find("broker.rack");
    assert!(rack.read_only);
    check_synonyms(rack, &[(Source::StaticBroker, "broker.rack", "a")]);
    let unset = find("log.roll.ms");
    assert_eq!((unset.value.as_deref(), unset.is_default()), (None, true));
    check_synonyms(unset, &[]);
}

#[test]
fn of_the_clusters_dynamic_configs_only_those_set_are_described() {
    let described = describe::cluster_defaults(&configs(&[("message.max.bytes", "5")]));
    let [only] = described.as_slice() else {
        panic!("one is set: {described:?}");
    };
    assert_eq!(only.value.as_deref(), Some("5"));
    check_synonyms(
        only,
        &[(Source::DynamicDefaultBroker, "message.max.bytes", "5")],
    );
}
